import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { runWorkflow } from "../../src/comfy/run.ts";
import { startEngine } from "../../src/comfy/start.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { createLogger, silentLogger } from "../../src/platform/log.ts";
import { pictureGraph } from "../support/graphs.ts";
import { tempDir } from "../support/temp-dir.ts";

function configFor(root: string, env: Readonly<Record<string, string>> = {}) {
  return parseEnv({
    PATH: process.env["PATH"],
    WORK_DIR: `${root}/work`,
    COMFYUI_MODELS_DIR: `${root}/models`,
    ...env,
  });
}

describe("starting an engine", () => {
  test("without an install takes the embedded one and says so; tokens never reach it, and nothing stays", async () => {
    using dir = tempDir();
    const lines: string[] = [];
    const log = createLogger({
      write: () => undefined,
      observe: ({ message }) => lines.push(message),
    });
    const config = configFor(dir.path, {
      HF_TOKEN: "hf_abcdefghijklmnop",
      API_TOKEN: "client-token",
      AWS_SECRET_ACCESS_KEY: "aws-secret",
      MY_NODES_SETTING: "on",
      COMFYUI_ENV_PASS: "MY_NODES_SETTING",
    });
    const engine = await startEngine({ config, log });
    expect(engine.kind).toBe("embedded");
    expect(lines.join("\n")).toContain("Engine: embedded");
    expect(lines.join("\n")).toContain("Set COMFYUI_PATH");
    const pid = "pid" in engine ? engine.pid : undefined;
    const environment = readFileSync(`/proc/${pid}/environ`, "utf8");
    for (const secret of ["hf_abcdefghijklmnop", "client-token", "aws-secret"]) {
      expect(environment).not.toContain(secret);
    }
    expect(environment).toContain("MY_NODES_SETTING=on");
    await engine[Symbol.asyncDispose]();
    expect(readdirSync(dir.join("work"))).toEqual([]);
  });

  test("lets it read the given models folders, and further ones by yaml", async () => {
    using dir = tempDir({
      "models/upscale_models/one.pth": "x",
      "more/esrgan/two.pth": "x",
    });
    writeFileSync(
      dir.join("extra.yaml"),
      `mine:\n  base_path: ${dir.join("more")}\n  upscale_models: esrgan\n`,
    );
    const config = configFor(dir.path, { COMFYUI_EXTRA_MODEL_PATHS: dir.join("extra.yaml") });
    await using engine = await startEngine({ config, log: silentLogger });
    const listed = await fetch(`${engine.url}/models/upscale_models`);
    expect(await listed.json()).toEqual(["one.pth", "two.pth"]);
  });

  test("connects to one elsewhere, runs there, and leaves it running", async () => {
    using dir = tempDir();
    await using own = await startEngine({ config: configFor(dir.path), log: silentLogger });
    const config = configFor(dir.path, { COMFYUI_URL: `${own.url}/` });
    const remote = await startEngine({ config, log: silentLogger });
    expect(remote.kind).toBe("remote");
    const result = await runWorkflow(remote, pictureGraph(), { log: silentLogger });
    expect(result.files).toHaveLength(1);
    await remote[Symbol.asyncDispose]();
    expect((await own.client.systemStats()).system.comfyui_version).toBeDefined();
  });

  test.each(["http://127.0.0.1:9/", "http://127.0.0.1:9/?token=hush"])(
    "says which variable is wrong when nobody answers at %s",
    async (url) => {
      using dir = tempDir();
      const config = configFor(dir.path, { COMFYUI_URL: url });
      const failing = startEngine({ config, log: silentLogger });
      const error = await failing.catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({
        code: "ENGINE_UNAVAILABLE",
        message: expect.stringContaining("COMFYUI_URL"),
        hint: expect.stringContaining("COMFYUI_URL"),
      });
      expect(String(error)).not.toContain("hush");
    },
  );

  test("leaves no folder behind when it can't be started", async () => {
    using dir = tempDir({
      "comfy/main.py": "",
      "comfy/venv/bin/python": '#!/bin/sh\n[ "$2" = --help ] && exit 0\nexit 3\n',
    });
    Bun.spawnSync(["chmod", "+x", dir.join("comfy/venv/bin/python")]);
    const config = configFor(dir.path, { COMFYUI_PATH: dir.join("comfy") });
    await expect(startEngine({ config, log: silentLogger })).rejects.toMatchObject({
      code: "ENGINE_UNAVAILABLE",
      message: expect.stringContaining("exit code 3"),
    });
    expect(readdirSync(dir.join("work"))).toEqual([]);
  });
});
