/**
 * The newcomer's first minute: a bare clone, a PATH with nothing on it but what the README asks for. Needs the npm
 * registry this machine is configured for.
 */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { tempDir } from "../support/temp-dir.ts";

const ROOT = resolve(import.meta.dir, "../..");
/** What any POSIX system has. */
const BASICS = ["sh", "env", "dirname", "readlink", "uname", "git"];

function pathWith(folder: string, tools: Readonly<Record<string, string>>): string {
  mkdirSync(folder, { recursive: true });
  for (const [name, target] of Object.entries(tools)) {
    symlinkSync(target, join(folder, name));
  }
  for (const name of BASICS) {
    const target = Bun.which(name);
    if (target !== null && !existsSync(join(folder, name))) {
      symlinkSync(target, join(folder, name));
    }
  }
  return folder;
}

interface Outcome {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

async function run(
  command: readonly string[],
  cwd: string,
  env: Record<string, string>,
): Promise<Outcome> {
  const registry =
    process.env["npm_config_registry"] ??
    (
      await new Response(
        Bun.spawn(["npm", "config", "get", "registry"], { stdout: "pipe" }).stdout,
      ).text()
    ).trim();
  const child = Bun.spawn([...command], {
    cwd,
    env: { HOME: cwd, npm_config_registry: registry, BUN_CONFIG_REGISTRY: registry, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, err };
}

async function clone(into: string): Promise<void> {
  const done = await run(["git", "clone", "--quiet", ROOT, into], "/", {
    PATH: process.env["PATH"] ?? "",
  });
  expect(done).toMatchObject({ code: 0 });
}

describe("a bare clone", () => {
  const node = Bun.which("node");
  const npm = Bun.which("npm");

  test.skipIf(node === null || npm === null)(
    "runs with Node and npm alone, without install scripts, and installs once",
    async () => {
      using dir = tempDir();
      await clone(dir.join("clone"));
      const env = {
        PATH: pathWith(dir.join("bin"), { node: node ?? "", npm: npm ?? "" }),
        npm_config_ignore_scripts: "true",
      };
      const first = await run(
        ["npm", "run", "--silent", "cog-comfyui", "--", "--help"],
        dir.join("clone"),
        env,
      );
      expect(first.out).toContain("cog-comfyui");
      expect(first.err).toContain("Installing Bun");
      expect(first.code).toBe(0);
      const second = await run(
        ["npm", "run", "--silent", "cog-comfyui", "--", "--help"],
        dir.join("clone"),
        env,
      );
      expect(second).toEqual({ code: 0, out: first.out, err: "" });
    },
    300_000,
  );

  test("runs with Bun alone", async () => {
    using dir = tempDir();
    await clone(dir.join("clone"));
    const env = { PATH: pathWith(dir.join("bin"), { bun: process.execPath }) };
    const first = await run(["bun", "run", "cog-comfyui", "--help"], dir.join("clone"), env);
    expect(first).toMatchObject({ code: 0 });
    expect(first.out).toContain("weights check");
  }, 300_000);

  test("can be called from any folder, also through a link", async () => {
    using dir = tempDir();
    await clone(dir.join("clone"));
    symlinkSync(dir.join("clone/bin/cog-comfyui"), dir.join("cog-comfyui"));
    const env = { PATH: pathWith(dir.join("bin"), { bun: process.execPath }) };
    const done = await run([dir.join("cog-comfyui"), "--help"], dir.path, env);
    expect(done).toMatchObject({ code: 0 });
  }, 300_000);
});
