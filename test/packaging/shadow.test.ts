import { describe, expect, test } from "bun:test";
import { chmodSync, cpSync } from "node:fs";
import { join } from "node:path";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";

const ROOT = join(import.meta.dir, "../..");
const STUB = join(ROOT, "scripts/container-python.sh");
const python = Bun.which("python3");

/** Answers with its arguments, as Bun would get them. */
const FAKE_BUN = '#!/bin/sh\nprintf "%s\\n" "$@"\n';

async function run(
  command: readonly string[],
  cwd: string,
  env: Readonly<Record<string, string>>,
): Promise<{ out: string; err: string; code: number }> {
  const child = Bun.spawn([...command], { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { out, err, code };
}

/** A folder like /src: the shadow package, and a `bun` on PATH that shows what it is given. */
function project(hasBun = true): TempDir {
  const folder = tempDir({ "bin/.keep": "", ...(hasBun ? { "bin/bun": FAKE_BUN } : {}) });
  if (hasBun) {
    chmodSync(folder.join("bin/bun"), 0o755);
  }
  cpSync(join(ROOT, "cog"), folder.join("cog"), { recursive: true });
  return folder;
}

function environment(folder: TempDir): Record<string, string> {
  return { PATH: `${folder.join("bin")}:/usr/bin:/bin`, PYTHONDONTWRITEBYTECODE: "1" };
}

describe.if(python !== null)("python -m cog.server.http in the checkout", () => {
  const command = [
    python ?? "python3",
    "--check-hash-based-pycs",
    "never",
    "-m",
    "cog.server.http",
    "--await-explicit-shutdown",
    "true",
    "--upload-url",
    "http://localhost/u",
  ];

  test("becomes Bun with predict.ts and the flags, and leaves nothing in the folder", async () => {
    using folder = project();
    const { out, code } = await run(command, folder.path, environment(folder));
    const flags = ["--await-explicit-shutdown", "true", "--upload-url", "http://localhost/u"];
    expect(out.trimEnd().split("\n")).toEqual(["run", folder.join("predict.ts"), ...flags]);
    expect(code).toBe(0);
    expect([...new Bun.Glob("**/__pycache__/*").scanSync(folder.path)]).toEqual([]);
  });

  test("says in one sentence that Bun is missing", async () => {
    using folder = project(false);
    const { err, code } = await run(command, folder.path, environment(folder));
    expect(code).toBe(127);
    expect(err).toBe(
      "cog-comfyui: bun is not on PATH, so the server cannot start. Build with this repository's cog.yaml, which installs it.\n",
    );
  });
});

describe("python in the image", () => {
  test("answers the freeze that follows a cog build with nothing", async () => {
    using folder = project();
    const answer = await run(["sh", STUB, "-m", "pip", "freeze"], folder.path, environment(folder));
    expect(answer).toEqual({ out: "", err: "", code: 0 });
  });

  test.each([
    [["-m", "cog.server.http"], []],
    [
      ["--check-hash-based-pycs", "never", "-m", "cog.server.http", "--upload-url", "u v"],
      ["--upload-url", "u v"],
    ],
  ])("starts the server for %j", async (given, passed) => {
    using folder = project();
    const env = { ...environment(folder), COG_COMFYUI_HOME: folder.path };
    const { out, code } = await run(["sh", STUB, ...given], folder.path, env);
    expect(code).toBe(0);
    expect(out.trimEnd().split("\n")).toEqual(["run", folder.join("predict.ts"), ...passed]);
  });

  test.if(python !== null)("hands every other command line to a real Python", async () => {
    using folder = project();
    const hasReal = await Bun.file("/usr/bin/python3").exists();
    const { out, err, code } = await run(
      ["sh", STUB, "-c", "print(6 * 7)"],
      folder.path,
      environment(folder),
    );
    expect(hasReal ? out : `${code} ${err.split(";")[0]}`).toBe(
      hasReal ? "42\n" : "127 python: this image has no Python",
    );
  });
});
