/**
 * The contract on a real ComfyUI: needs COMFYUI_PATH (a source tree) and COMFYUI_PYTHON (a Python with its requirements;
 * `npm run test:real` prepares one). Skipped with its reason otherwise.
 */
import { afterAll } from "bun:test";
import { join } from "node:path";
import { startEngine } from "../../src/comfy/start.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { comfyContract } from "../support/comfy-contract.ts";
import { slowGraph } from "../support/graphs.ts";
import { describeReal, REAL_START_TIMEOUT_MS } from "../support/real-comfy.ts";
import { tempDir } from "../support/temp-dir.ts";

describeReal("the contract on a real ComfyUI", ({ path, env }) => {
  const dir = tempDir();
  afterAll(() => dir[Symbol.dispose]());
  comfyContract(`a real ComfyUI (${path})`, {
    start: async () =>
      await startEngine({
        config: parseEnv({
          ...env,
          COMFYUI_MODELS_DIR: join(dir.path, "models"),
          WORK_DIR: join(dir.path, "work"),
        }),
        log: silentLogger,
      }),
    slow: slowGraph(12, 1500),
    startTimeoutMs: REAL_START_TIMEOUT_MS,
  });
});
