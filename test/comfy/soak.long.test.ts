/** Hundreds of runs in a row leave nothing behind: no open files, no files, no queue, no history, no growing memory. */
import { describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { samplePicture } from "../../scripts/picture.ts";
import { prefixOutputs } from "../../src/comfy/prefix.ts";
import { runWorkflow } from "../../src/comfy/run.ts";
import { startEngine } from "../../src/comfy/start.ts";
import { placeInputs } from "../../src/media/inputs.ts";
import { InputShelf } from "../../src/media/shelf.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { silentLogger } from "../../src/platform/log.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { tempDir } from "../support/temp-dir.ts";

const RUNS = 500;

function openFiles(): number {
  return readdirSync("/proc/self/fd").length;
}

function heapBytes(): number {
  Bun.gc(true);
  return process.memoryUsage().heapUsed;
}

describe("a soak", () => {
  test(`of ${RUNS} runs leaves nothing behind`, async () => {
    using dir = tempDir({ "photo.png": await samplePicture(32, 32) });
    await using engine = await startEngine({
      config: parseEnv({
        PATH: process.env["PATH"],
        COMFYUI_ENGINE: "embedded",
        COMFYUI_MODELS_DIR: dir.join("models"),
        WORK_DIR: dir.join("work"),
      }),
      log: silentLogger,
    });
    const shelf = new InputShelf(engine);
    const http = new HttpClient();
    const graph: Graph = {
      "1": { class_type: "LoadImage", inputs: { image: "input.png" } },
      "2": { class_type: "ImageInvert", inputs: { image: ["1", 0] } },
      "3": { class_type: "SaveImage", inputs: { images: ["2", 0], filename_prefix: "s" } },
    };
    const once = async (): Promise<void> => {
      const options = { shelf, http, log: silentLogger, inputFile: dir.join("photo.png") };
      using placed = await placeInputs(graph, options);
      const run = prefixOutputs(placed.graph, crypto.randomUUID());
      const result = await runWorkflow(engine, run, { log: silentLogger });
      expect(result.files).toHaveLength(1);
    };
    for (let run = 0; run < RUNS / 5; run += 1) {
      await once();
    }
    const before = { files: openFiles(), heap: heapBytes() };
    for (let run = 0; run < RUNS; run += 1) {
      await once();
    }
    const after = { files: openFiles(), heap: heapBytes() };
    expect(after.files).toBeLessThanOrEqual(before.files + 2);
    // 500 forgotten runs of a few kB each would show as megabytes.
    expect((after.heap - before.heap) / RUNS).toBeLessThan(2000);
    const inputs = engine.dirs?.input ?? "";
    expect(readdirSync(inputs)).toEqual([]);
    const queue = await engine.client.queue();
    expect([...queue.queue_running, ...queue.queue_pending]).toEqual([]);
    const history = await fetch(`${engine.url}/history`);
    expect(Object.keys(Object(await history.json())).length).toBeLessThanOrEqual(1);
    await http.close();
  }, 120_000);
});
