/**
 * Speed of reading workflows: the largest UI file converted, and a graph of 300 nodes parsed, explained and checked as
 * `workflow explain`, `weights check` and `POST /weights/check` do it.
 * Usage: bun bench/workflow.ts [folder of UI files]. Without a folder, files of its own making are used.
 */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { Predictor } from "../predict.ts";
import { parseEnv } from "../src/platform/env.ts";
import { checkDocument } from "../src/weights/check-document.ts";
import type { WeightRef } from "../src/weights/refs.ts";
import { explainWorkflow } from "../src/workflow/explain.ts";
import { parseWorkflow } from "../src/workflow/parse.ts";

/** Aims of the issue that asked for this room. */
const CONVERT_AIM_MS = 50;
const EXPLAIN_AIM_MS = 5;
const ROUNDS = 50;

interface Times {
  readonly cold: number;
  readonly median: number;
}

function time(work: () => unknown): Times {
  const times = Array.from({ length: ROUNDS }, () => {
    const start = performance.now();
    work();
    return performance.now() - start;
  });
  return {
    cold: times[0] ?? 0,
    median: [...times].sort((one, other) => one - other)[ROUNDS >> 1] ?? 0,
  };
}

function report(what: string, { cold, median }: Times, aim: number): void {
  const verdict = median <= aim ? "within" : "OVER";
  console.log(
    `${what}: ${median.toFixed(2)} ms median, ${cold.toFixed(1)} ms first; ${verdict} the aim of ${aim} ms`,
  );
}

/** A chain of samplers of `count` nodes as the page saves it, for machines without recorded files. */
function madeUpUi(count: number): string {
  const nodes = Array.from({ length: count }, (_none, id) => ({
    id: id + 1,
    type: id === count - 1 ? "SaveImage" : "KSampler",
    inputs: [{ name: "latent_image", type: "LATENT", link: id === 0 ? null : id }],
    outputs: [{ name: "LATENT", type: "LATENT" }],
    widgets_values: [id, "randomize", 20, 8, "euler", "normal", 1],
  }));
  const links = Array.from({ length: count - 1 }, (_none, id) => [
    id + 1,
    id + 1,
    0,
    id + 2,
    0,
    "LATENT",
  ]);
  return JSON.stringify({ nodes, links, version: 0.4 });
}

/** Groups of five nodes: a LoRA of its own, a prompt, a sampler, decoding and saving. */
function madeUpGraph(count: number): Record<string, unknown> {
  const nodes: Record<string, unknown> = {
    base: { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "base.safetensors" } },
  };
  for (let group = 0; group * 5 < count - 1; group += 1) {
    const id = (part: number) => String(group * 5 + part);
    const loraName = `lora-${group}.safetensors`;
    const strengths = { strength_model: 1, strength_clip: 1 };
    const numbers = { seed: group, steps: 20, cfg: 7, denoise: 1 };
    const words = { sampler_name: "euler", scheduler: "normal" };
    Object.assign(nodes, {
      [id(1)]: {
        class_type: "LoraLoader",
        inputs: { model: ["base", 0], clip: ["base", 1], lora_name: loraName, ...strengths },
      },
      [id(2)]: { class_type: "CLIPTextEncode", inputs: { text: "a cat", clip: [id(1), 1] } },
      [id(3)]: {
        class_type: "KSampler",
        inputs: {
          model: [id(1), 0],
          positive: [id(2), 0],
          negative: [id(2), 0],
          latent_image: group === 0 ? ["base", 2] : [String((group - 1) * 5 + 3), 0],
          ...numbers,
          ...words,
        },
      },
      [id(4)]: { class_type: "VAEDecode", inputs: { samples: [id(3), 0], vae: ["base", 2] } },
      [id(5)]: { class_type: "SaveImage", inputs: { images: [id(4), 0], filename_prefix: "a" } },
    });
  }
  return nodes;
}

function largestFile(folder: string): { name: string; text: string } {
  const files = readdirSync(folder).filter((name) => name.endsWith(".json"));
  const bySize = files.sort(
    (one, other) => statSync(join(folder, other)).size - statSync(join(folder, one)).size,
  );
  const name = bySize[0] ?? "";
  return { name, text: readFileSync(join(folder, name), "utf8") };
}

function main(): void {
  const folder = process.argv[2] ?? join(import.meta.dir, "../../shared/cases/ui_to_api/ui");
  const largest = existsSync(folder)
    ? largestFile(folder)
    : { name: "400 nodes made up", text: madeUpUi(400) };
  const size = (largest.text.length / 1e3).toFixed(0);
  report(
    `convert ${largest.name} (${size} kB)`,
    time(() => parseWorkflow(largest.text)),
    CONVERT_AIM_MS,
  );
  const text = JSON.stringify(madeUpGraph(300));
  const { comfyui, weights } = new Predictor({ config: parseEnv({ COMFYUI_ENGINE: "embedded" }) });
  report(
    "parse + explain + check 300 nodes, 60 of them loaders",
    time(() => {
      const workflow = parseWorkflow(text);
      const explanation = explainWorkflow(workflow);
      const refs = comfyui.find_weights(workflow);
      const found = {
        refs,
        validation: comfyui.check_weights(workflow),
        obstacles: comfyui.find_obstacles(workflow, refs),
      };
      const resolve = (ref: WeightRef) => weights.resolve(ref, "request");
      return [explanation, checkDocument(found, resolve, { manifest: weights.manifest })];
    }),
    EXPLAIN_AIM_MS,
  );
}

if (import.meta.main) {
  main();
}
