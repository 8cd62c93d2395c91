/**
 * What our road adds to a run beyond ComfyUI's own execution time (its history's clock), against a bare script that posts
 * and polls the history without a pause, alternating on one engine; and how soon its death is told. Embedded unless COMFYUI_PATH (and COMFYUI_PYTHON) say otherwise.
 *
 * usage: bun bench/run-overhead.ts [runs]
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import type { Engine } from "../src/comfy/engine.ts";
import { prefixOutputs } from "../src/comfy/prefix.ts";
import { runWorkflow } from "../src/comfy/run.ts";
import { startEngine } from "../src/comfy/start.ts";
import { parseEnv } from "../src/platform/env.ts";
import { silentLogger } from "../src/platform/log.ts";
import type { Graph } from "../src/workflow/graph.ts";
import { slowGraph } from "../test/support/graphs.ts";

const GRAPH: Graph = {
  "1": { class_type: "EmptyImage", inputs: { width: 64, height: 64, batch_size: 1, color: 7 } },
  "2": { class_type: "ImageInvert", inputs: { image: ["1", 0] } },
  "3": { class_type: "SaveImage", inputs: { images: ["2", 0], filename_prefix: "bench" } },
};
const WARM_UP_RUNS = 20;
const DEATHS = 5;

const Queued = z.object({ prompt_id: z.string() });
const Entry = z.object({
  status: z.object({
    messages: z.array(z.tuple([z.string(), z.looseObject({ timestamp: z.number() })])),
  }),
});

function executionMs(entry: z.infer<typeof Entry>): number {
  const times = entry.status.messages.map(([, { timestamp }]) => timestamp);
  return (times.at(-1) ?? 0) - (times[0] ?? 0);
}

/** What everybody writes first: POST, then GET until it is there. No events, no checks, no cancel. */
async function bare(engine: Engine, graph: Graph): Promise<number> {
  const started = performance.now();
  const answer = await fetch(`${engine.url}/prompt`, {
    method: "POST",
    body: JSON.stringify({ prompt: graph }),
  });
  const { prompt_id } = Queued.parse(await answer.json());
  for (;;) {
    const history = z
      .record(z.string(), Entry)
      .parse(await (await fetch(`${engine.url}/history/${prompt_id}`)).json());
    const entry = history[prompt_id];
    if (entry !== undefined) {
      return performance.now() - started - executionMs(entry);
    }
  }
}

async function ours(engine: Engine, graph: Graph): Promise<number> {
  const started = performance.now();
  const result = await runWorkflow(engine, graph, { log: silentLogger });
  return performance.now() - started - (result.executionMs ?? 0);
}

/** From the end of ComfyUI's process, in the middle of a run, to the run's error. */
async function deathToAnswer(engine: Engine): Promise<number> {
  await engine.ready();
  const pid = "pid" in engine && typeof engine.pid === "number" ? engine.pid : 0;
  let killedAt = 0;
  const graph = prefixOutputs(slowGraph(40, 500), crypto.randomUUID());
  await runWorkflow(engine, graph, {
    log: silentLogger,
    onProgress: ({ finished }) => {
      if (finished === 2 && killedAt === 0) {
        killedAt = performance.now();
        process.kill(pid, "SIGKILL");
      }
    },
  }).catch(() => undefined);
  return performance.now() - killedAt;
}

function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

function show(name: string, values: readonly number[]): void {
  const [p50, p99] = [quantile(values, 0.5), quantile(values, 0.99)];
  console.log(`${name.padEnd(28)} p50 ${p50.toFixed(2)} ms   p99 ${p99.toFixed(2)} ms`);
}

/** Open files and resident memory of this process. */
function footprint(): { files: number; megabytes: number } {
  const pages = Number(readFileSync("/proc/self/statm", "utf8").split(" ")[1]);
  return { files: readdirSync("/proc/self/fd").length, megabytes: (pages * 4096) / 1e6 };
}

const runs = Number(process.argv[2] ?? "300");
const folder = mkdtempSync(join(tmpdir(), "bench-run-"));
const { COMFYUI_PATH: path, COMFYUI_PYTHON: python } = process.env;
const engine = await startEngine({
  config: parseEnv({
    PATH: process.env["PATH"],
    HOME: process.env["HOME"],
    WORK_DIR: folder,
    COMFYUI_MODELS_DIR: join(folder, "models"),
    ...(path === undefined
      ? { COMFYUI_ENGINE: "embedded" }
      : { COMFYUI_PATH: path, COMFYUI_PYTHON: python, COMFYUI_ARGS: "--cpu" }),
  }),
  log: silentLogger,
  restart: { firstDelayMs: 10, attempts: DEATHS + 2 },
});
try {
  const times = { bare: [] as number[], ours: [] as number[] };
  let before = footprint();
  for (let index = -WARM_UP_RUNS; index < runs; index += 1) {
    if (index === 0) {
      before = footprint();
    }
    const samples = [
      await bare(engine, prefixOutputs(GRAPH, crypto.randomUUID())),
      await ours(engine, prefixOutputs(GRAPH, crypto.randomUUID())),
    ];
    if (index >= 0) {
      times.bare.push(samples[0] ?? 0);
      times.ours.push(samples[1] ?? 0);
    }
  }
  const after = footprint();
  console.log(`${runs} runs each on the ${engine.kind} engine, beyond its own execution time:`);
  show("bare post and busy poll", times.bare);
  show("runWorkflow", times.ours);
  const ratio = quantile(times.ours, 0.5) / quantile(times.bare, 0.5);
  console.log(`ours / bare (p50): ${ratio.toFixed(2)}`);
  console.log(
    `open files ${before.files} → ${after.files}, memory ${before.megabytes.toFixed(0)} → ${after.megabytes.toFixed(0)} MB`,
  );
  const deaths: number[] = [];
  for (let index = 0; index < DEATHS; index += 1) {
    deaths.push(await deathToAnswer(engine));
  }
  show("death of ComfyUI to answer", deaths);
} finally {
  await engine[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
}
