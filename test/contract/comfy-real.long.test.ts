/**
 * The contract on a real ComfyUI: needs COMFYUI_PATH (a source tree) and COMFYUI_PYTHON (a Python with its requirements;
 * `npm run test:real` prepares one). Skipped with its reason otherwise.
 */
import { test } from "bun:test";
import { join } from "node:path";
import { startEngine } from "../../src/comfy/start.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { comfyContract } from "../support/comfy-contract.ts";
import { slowGraph } from "../support/graphs.ts";
import { tempDir } from "../support/temp-dir.ts";

const path = process.env["COMFYUI_PATH"];
const python = process.env["COMFYUI_PYTHON"];
/** Importing torch on a slow machine, twice in a test that restarts. */
const START_TIMEOUT_MS = 180_000;

if (path === undefined || python === undefined) {
  test.skip("real ComfyUI: skipped, COMFYUI_PATH and COMFYUI_PYTHON are not both set", () =>
    undefined);
} else {
  const dir = tempDir();
  comfyContract(`a real ComfyUI (${path})`, {
    start: async () =>
      await startEngine({
        config: parseEnv({
          PATH: process.env["PATH"],
          HOME: process.env["HOME"],
          COMFYUI_PATH: path,
          COMFYUI_PYTHON: python,
          COMFYUI_ENGINE: "real",
          COMFYUI_ARGS: process.env["COMFYUI_ARGS"] ?? "--cpu",
          COMFYUI_MODELS_DIR: join(dir.path, "models"),
          WORK_DIR: join(dir.path, "work"),
        }),
        log: silentLogger,
      }),
    slow: slowGraph(12, 1500),
    startTimeoutMs: START_TIMEOUT_MS,
  });
}
