import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Installation } from "../../src/comfy/launch.ts";
import { embeddedInstallation } from "../../src/comfy/launch.ts";
import type { ProcessOptions } from "../../src/comfy/process.ts";
import { prepareFolders, startProcess } from "../../src/comfy/process.ts";
import { runWorkflow } from "../../src/comfy/run.ts";
import { SupervisedEngine } from "../../src/comfy/supervisor.ts";
import { makeWorkFolder, sweepWorkFolders } from "../../src/comfy/work-folder.ts";
import { AppError } from "../../src/platform/errors.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { pictureGraph } from "../support/graphs.ts";
import { tempDir } from "../support/temp-dir.ts";

const TIMES = { probeIntervalMs: 5, stopGraceMs: 100 };
const ENV = { PATH: process.env["PATH"] ?? "" };

/** A shell script in place of ComfyUI; `exec "$@"` in it becomes the embedded engine. */
function script(text: string): Installation {
  const engine = embeddedInstallation();
  return { ...engine, command: ["sh", "-c", text, "sh", ...engine.command] };
}

function optionsFor(
  root: string,
  installation: Installation,
  http: HttpClient,
  more: Partial<ProcessOptions> = {},
): ProcessOptions {
  return {
    installation,
    flags: undefined,
    folders: prepareFolders(root, [join(root, "models")], []),
    userArguments: [],
    env: ENV,
    http,
    log: silentLogger,
    times: TIMES,
    ...more,
  };
}

async function startFailure(text: string, more: Partial<ProcessOptions> = {}): Promise<AppError> {
  using dir = tempDir();
  const http = new HttpClient();
  try {
    const started = await startProcess(optionsFor(dir.path, script(text), http, more));
    await started.kill();
    throw new Error("it started");
  } catch (error) {
    if (error instanceof AppError) {
      return error;
    }
    throw error;
  } finally {
    await http.close();
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    // A child that ended but was not waited for still has a number.
    return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) {
    await new Promise((resolve) => setImmediate(resolve));
  }
}

describe("starting", () => {
  test.each([
    [
      "echo \"ModuleNotFoundError: No module named 'torchsde'\" >&2; exit 1",
      "exit code 1",
      "requirements",
    ],
    ["echo 'AssertionError: Torch not compiled with CUDA enabled'; exit 1", "CUDA", "--cpu"],
    ["echo 'main.py: error: unrecognized arguments: --nope' >&2; exit 2", "--nope", "COMFYUI_ARGS"],
    ["kill -9 $$", "ran out of memory", "by hand"],
    ["kill -SEGV $$", "crashed (SIGSEGV)", "by hand"],
  ])(
    "fails at once, with its last words and a cure, when it dies: %s",
    async (text, words, cure) => {
      const error = await startFailure(text);
      expect(error.code).toBe("ENGINE_UNAVAILABLE");
      expect(error.message).toContain(words);
      expect(error.hint).toContain(cure);
    },
  );

  test("is given up when it lives but never answers", async () => {
    const error = await startFailure("echo loading; sleep 100", {
      times: { ...TIMES, startTimeoutMs: 50 },
    });
    expect(error.message).toContain("runs, but does not answer");
    expect(error.message).toContain("loading");
    expect(error.hint).toContain("COMFYUI_START_TIMEOUT");
  });

  test("is called off by its signal, and nothing runs on", async () => {
    using dir = tempDir();
    const cancel = new AbortController();
    const pidFile = dir.join("pid");
    const failing = startFailure(`echo $$ > ${pidFile}; sleep 100`, { signal: cancel.signal });
    await until(() => existsSync(pidFile) && readFileSync(pidFile, "utf8").endsWith("\n"));
    cancel.abort();
    expect((await failing).code).toBe("CANCELED");
    expect(isAlive(Number(readFileSync(pidFile, "utf8")))).toBe(false);
  });

  test("takes another port when the first is taken by then", async () => {
    using dir = tempDir();
    const flag = dir.join("tried");
    const text = `[ -e ${flag} ] || { touch ${flag}; echo 'OSError: address already in use'; exit 1; }; exec "$@"`;
    const http = new HttpClient();
    const started = await startProcess(optionsFor(dir.path, script(text), http));
    expect(existsSync(flag)).toBe(true);
    await started.stop();
    await http.close();
  });
});

describe("stopping", () => {
  test("ends children that it started, and one that doesn't obey", async () => {
    using dir = tempDir();
    const pids = dir.join("pids");
    const text = `trap '' INT TERM; sleep 1000 & echo $! > ${pids}; "$@"; sleep 1000`;
    const http = new HttpClient();
    const started = await startProcess(optionsFor(dir.path, script(text), http));
    const child = Number(readFileSync(pids, "utf8"));
    expect(isAlive(child)).toBe(true);
    const exit = await started.stop();
    expect(exit).toMatchObject({ signal: "SIGKILL", reason: "ComfyUI was stopped" });
    await until(() => !isAlive(child));
    await http.close();
  });
});

async function supervised(
  root: string,
  installation: Installation,
  more: Partial<ProcessOptions> = {},
) {
  const http = new HttpClient();
  return await SupervisedEngine.start({
    kind: "embedded",
    root,
    http,
    log: silentLogger,
    restart: { firstDelayMs: 1, maxDelayMs: 2 },
    process: optionsFor(root, installation, http, more),
  });
}

describe("supervision", () => {
  test("starts it again after a death, and forgives deaths after a success", async () => {
    using dir = tempDir();
    await using engine = await supervised(dir.path, embeddedInstallation());
    for (let death = 1; death <= 4; death += 1) {
      const { pid } = engine;
      const exited = engine.exited;
      process.kill(pid, "SIGKILL");
      expect((await exited).reason).toContain("SIGKILL");
      await runWorkflow(engine, pictureGraph({ prefix: `d${death}` }), { log: silentLogger });
      expect(engine.pid).not.toBe(pid);
      expect(engine.unhealthy).toBeUndefined();
    }
  });

  test("calls it unhealthy after three deaths in a row, tries again when asked, and heals by a success", async () => {
    using dir = tempDir();
    await using engine = await supervised(dir.path, embeddedInstallation());
    for (let death = 1; death <= 3; death += 1) {
      await engine.ready();
      const exited = engine.exited;
      process.kill(engine.pid, "SIGSEGV");
      await exited;
    }
    await until(() => engine.unhealthy !== undefined);
    expect(engine.unhealthy).toContain("died 3 times in a row");
    expect(engine.unhealthy).toContain("SIGSEGV");
    await engine.ready();
    expect(engine.unhealthy).toBeDefined();
    await runWorkflow(engine, pictureGraph(), { log: silentLogger });
    expect(engine.unhealthy).toBeUndefined();
  });

  test("says why when it can't be started any more", async () => {
    using dir = tempDir();
    const gone = dir.join("gone");
    const text = `[ -e ${gone} ] && { echo 'disk on fire'; exit 7; }; exec "$@"`;
    await using engine = await supervised(dir.path, script(text));
    await Bun.write(gone, "");
    const exited = engine.exited;
    process.kill(engine.pid, "SIGKILL");
    await exited;
    await expect(engine.ready()).rejects.toMatchObject({
      code: "ENGINE_UNAVAILABLE",
      message: expect.stringContaining("disk on fire"),
    });
    await until(() => engine.unhealthy !== undefined);
    await expect(engine.ready()).rejects.toMatchObject({ code: "ENGINE_UNAVAILABLE" });
  });

  test("leaves no process and no folder behind when it is disposed", async () => {
    using dir = tempDir();
    const root = makeWorkFolder(dir.path);
    const engine = await supervised(root, embeddedInstallation());
    const { pid } = engine;
    await engine[Symbol.asyncDispose]();
    expect(isAlive(pid)).toBe(false);
    expect(readdirSync(dir.path)).toEqual([]);
    await expect(engine.ready()).rejects.toMatchObject({ code: "ENGINE_UNAVAILABLE" });
  });
});

describe("what a killed owner leaves", () => {
  test("is nothing: its engine ends with it", async () => {
    using dir = tempDir();
    const program = `
      const load = (name) => import(${JSON.stringify(join(import.meta.dir, "../../src"))} + name);
      const { startEngine } = await load("/comfy/start.ts");
      const { parseEnv } = await load("/platform/env.ts");
      const { silentLogger } = await load("/platform/log.ts");
      const config = parseEnv({ PATH: process.env.PATH, COMFYUI_ENGINE: "embedded", WORK_DIR: ${JSON.stringify(dir.path)} });
      const engine = await startEngine({ config, log: silentLogger });
      console.log(engine.pid);
      await Bun.sleep(1e6);
    `;
    const owner = Bun.spawn([process.execPath, "-e", program], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const { value } = await owner.stdout.getReader().read();
    const engine = Number(new TextDecoder().decode(value));
    expect(isAlive(engine)).toBe(true);
    owner.kill("SIGKILL");
    await owner.exited;
    await until(() => !isAlive(engine));
  });

  test("is ended and removed by the next one; folders that are in use stay", async () => {
    using dir = tempDir();
    const program = `
      const { makeWorkFolder, noteProcess } = await import(${JSON.stringify(join(import.meta.dir, "../../src/comfy/work-folder.ts"))});
      const root = makeWorkFolder(${JSON.stringify(dir.path)});
      const child = Bun.spawn(["sh", "-c", "sleep 1000", root], { detached: true, stdio: ["ignore", "ignore", "ignore"] });
      noteProcess(root, child.pid);
      console.log(child.pid);
      await Bun.sleep(1e6);
    `;
    const owner = Bun.spawn([process.execPath, "-e", program], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const reader = owner.stdout.getReader();
    const { value } = await reader.read();
    const orphan = Number(new TextDecoder().decode(value));
    const mine = makeWorkFolder(dir.path);
    expect(sweepWorkFolders(dir.path)).toBe(0);
    owner.kill("SIGKILL");
    await owner.exited;
    expect(isAlive(orphan)).toBe(true);
    expect(sweepWorkFolders(dir.path)).toBe(1);
    await until(() => !isAlive(orphan));
    expect(readdirSync(dir.path).map((name) => join(dir.path, name))).toEqual([mine]);
  });

  test("never is a folder of another machine, or one without an owner", () => {
    using dir = tempDir({
      "cog-comfyui-engine-a/owner.json": JSON.stringify({ host: "other", pid: 1, started: "0" }),
      "cog-comfyui-engine-b/owner.json": "half",
      "cog-comfyui-engine-c/x": "",
      "something-else/owner.json": "{}",
    });
    expect(sweepWorkFolders(dir.path)).toBe(0);
    expect(sweepWorkFolders(dir.join("not-there"))).toBe(0);
    expect(readdirSync(dir.path)).toHaveLength(4);
  });
});
