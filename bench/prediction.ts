/**
 * The price of one prediction over HTTP: from the request's arrival until the engine is asked, and the whole answer, beside
 * a bare script that posts the same graph to the same engine and polls its history. `bun bench/prediction.ts [rounds]`
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cogModel, Predictor } from "../predict.ts";
import { serveCog } from "../src/cog/serve.ts";
import { startEngine } from "../src/comfy/start.ts";
import { parseEnv } from "../src/platform/env.ts";
import { silentLogger } from "../src/platform/log.ts";
import { proxyTo } from "../test/support/engine-proxy.ts";

const rounds = Number(process.argv[2] ?? 200);
const WARM_UP_ROUNDS = 20;
const GRAPH = {
  "1": { class_type: "EmptyImage", inputs: { width: 64, height: 64, batch_size: 1, color: 255 } },
  "2": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "bench" } },
};

function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

function row(name: string, values: readonly number[]): string {
  return `${name.padEnd(44)} p50 ${percentile(values, 0.5).toFixed(2).padStart(8)} ms   p99 ${percentile(values, 0.99).toFixed(2).padStart(8)} ms`;
}

const work = mkdtempSync(join(tmpdir(), "cog-comfyui-bench-"));
const base = {
  WORK_DIR: work,
  COMFYUI_MODELS_DIR: join(work, "models"),
  PORT: "0",
  PATH: process.env["PATH"] ?? "",
};
try {
  await using engine = await startEngine({
    config: parseEnv({ ...base, COMFYUI_ENGINE: "embedded" }),
    log: silentLogger,
  });
  let askedAt = 0;
  await using proxy = proxyTo(engine.url, {
    request: (path) => {
      if (path === "/prompt") {
        askedAt = performance.now();
      }
      return undefined;
    },
  });
  const config = parseEnv({ ...base, COMFYUI_URL: proxy.url });
  const predictor = new Predictor({ config });
  const server = await serveCog({
    model: cogModel(predictor),
    config,
    logger: silentLogger,
    flags: { host: "127.0.0.1" },
    handleSignals: false,
  });
  await server.service.settled();

  const asked: number[] = [];
  const ours: number[] = [];
  const bare: number[] = [];
  const body = JSON.stringify({
    input: { workflow_json: JSON.stringify(GRAPH), output_format: "png" },
  });
  for (let round = -WARM_UP_ROUNDS; round < rounds; round += 1) {
    const sentAt = performance.now();
    const response = await fetch(`${server.url}/predictions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
    });
    const answer = (await response.json()) as { status: string; error?: string };
    if (answer.status !== "succeeded") {
      throw new Error(answer.error ?? answer.status);
    }
    const took = performance.now() - sentAt;
    const askedAfter = askedAt - sentAt;
    const bareTook = await postAndPoll(proxy.url, round);
    if (round >= 0) {
      asked.push(askedAfter);
      ours.push(took);
      bare.push(bareTook);
    }
  }
  await server.stop();
  console.log(`${rounds} predictions of a weight-free graph on the embedded engine, one at a time`);
  console.log(row("HTTP request in → engine asked", asked));
  console.log(row("whole prediction over HTTP", ours));
  console.log(row("bare script: post, poll history, fetch", bare));
  console.log(
    `ratio of the medians, ours ÷ bare: ${(percentile(ours, 0.5) / percentile(bare, 0.5)).toFixed(2)}`,
  );
} finally {
  rmSync(work, { recursive: true, force: true });
}

async function postAndPoll(url: string, round: number): Promise<number> {
  const started = performance.now();
  const id = crypto.randomUUID();
  const prompt = structuredClone(GRAPH);
  prompt["2"].inputs.filename_prefix = `bare/${round}`;
  await fetch(`${url}/prompt`, {
    method: "POST",
    body: JSON.stringify({ prompt, prompt_id: id, client_id: id }),
  });
  for (;;) {
    const history = (await (await fetch(`${url}/history/${id}`)).json()) as Record<
      string,
      { outputs: Record<string, { images: { filename: string; subfolder: string }[] }> }
    >;
    const image = history[id]?.outputs["2"]?.images[0];
    if (image !== undefined) {
      await (
        await fetch(`${url}/view?filename=${image.filename}&subfolder=${image.subfolder}`)
      ).arrayBuffer();
      return performance.now() - started;
    }
    await Bun.sleep(1);
  }
}
