/** The embedded engine as a process: ready line, exit codes, what it leaves behind. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArguments } from "../../src/comfy/embedded/arguments.ts";
import { AppError } from "../../src/platform/errors.ts";
import type { Json } from "../support/embedded.ts";
import { tempDir } from "../support/temp-dir.ts";

const MAIN = resolve(import.meta.dir, "../../src/comfy/embedded/main.ts");

async function readLine(stream: ReadableStream<Uint8Array>, pattern: RegExp): Promise<string> {
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true });
    const found = pattern.exec(text)?.[1];
    if (found !== undefined) {
      return found;
    }
  }
  throw new Error(`the process said: ${text}`);
}

function flagsFor(dir: string): string[] {
  return [
    ...["--listen", "127.0.0.1", "--port", "0", "--disable-auto-launch", "--cpu"],
    ...["--input-directory", join(dir, "in"), "--output-directory", join(dir, "out")],
    ...["--temp-directory", dir, "--models-directory", join(dir, "models")],
    ...["--user-directory", dir, "--database-url", "sqlite:///:memory:"],
  ];
}

describe("the process", () => {
  test.each(["SIGINT", "SIGTERM"] as const)(
    "says where it is, echoes its arguments, and cleans up on %s",
    async (signal) => {
      using dir = tempDir({ "temp/left_over.png": "x" });
      const flags = flagsFor(dir.path);
      const child = Bun.spawn([process.execPath, MAIN, ...flags], {
        stderr: "pipe",
        stdout: "ignore",
      });
      const url = await readLine(child.stderr, /To see the GUI go to: (http:\S+)\n/);
      const stats: Json = await (await fetch(`${url}/system_stats`)).json();
      expect(stats.system.argv).toEqual(["main.py", ...flags]);
      expect(existsSync(dir.join("temp", "left_over.png"))).toBe(false);
      child.kill(signal);
      expect(await child.exited).toBe(0);
      expect(existsSync(dir.join("temp"))).toBe(false);
      expect(existsSync(dir.join("in"))).toBe(true);
    },
  );

  test("exits with 1 when the port is taken, and with 2 for a flag that ComfyUI doesn't have", async () => {
    using dir = tempDir();
    const taken = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
    const run = async (...more: string[]) => {
      const argv = [process.execPath, MAIN, ...flagsFor(dir.path), ...more];
      const child = Bun.spawn(argv, { stderr: "pipe", stdout: "ignore" });
      return [await child.exited, await child.stderr.text()];
    };
    const [code, text] = await run("--port", String(taken.port));
    expect([code, text]).toEqual([
      1,
      expect.stringContaining(`Port ${taken.port} is already in use`),
    ]);
    expect(await run("--no-such-flag")).toEqual([
      2,
      expect.stringContaining("unrecognized arguments: --no-such-flag"),
    ]);
    await taken.stop(true);
  });

  test("--help lists the flags and starts nothing", async () => {
    const child = Bun.spawn([process.execPath, MAIN, "--help"], { stdout: "pipe" });
    expect(await child.stdout.text()).toContain("--extra-model-paths-config");
    expect(await child.exited).toBe(0);
  });
});

describe("arguments", () => {
  test("take several values, equals signs and defaults", () => {
    const parsed = parseArguments(
      [
        "--extra-model-paths-config",
        "a.yaml",
        "b.yaml",
        "--cache-lru=3",
        "--listen",
        "--base-directory",
        "base",
      ],
      "/srv",
    );
    expect(parsed).toMatchObject({
      host: "0.0.0.0",
      port: 8188,
      input: "/srv/base/input",
      temp: "/srv/base/temp",
      modelsDir: "/srv/base/models",
      extraModelPaths: ["/srv/a.yaml", "/srv/b.yaml"],
      cache: { kind: "lru", entries: 3 },
      compat: "0.33.0",
    });
  });

  test.each([
    ["a stray word", ["word"]],
    ["a port that is no number", ["--port", "x"]],
    ["a version that isn't known", ["--compat", "1.0"]],
  ])("%s is refused", (_what, argv) => {
    expect(() => parseArguments(argv, "/")).toThrow(AppError);
  });
});
