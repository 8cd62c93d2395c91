/** The contract of `test/support/comfy-contract.ts` on the embedded engine, run as it runs for users: as a child process. */
import { afterAll } from "bun:test";
import { join } from "node:path";
import { startEngine } from "../../src/comfy/start.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { comfyContract } from "../support/comfy-contract.ts";
import { slowGraph } from "../support/graphs.ts";
import { tempDir } from "../support/temp-dir.ts";

const dir = tempDir();
afterAll(() => dir[Symbol.dispose]());

comfyContract("the embedded engine", {
  start: async () =>
    await startEngine({
      config: parseEnv({
        PATH: process.env["PATH"],
        HOME: process.env["HOME"],
        COMFYUI_ENGINE: "embedded",
        COMFYUI_MODELS_DIR: join(dir.path, "models"),
        WORK_DIR: join(dir.path, "work"),
      }),
      log: silentLogger,
      restart: { firstDelayMs: 10 },
    }),
  slow: slowGraph(40, 600),
  startTimeoutMs: 30_000,
});
