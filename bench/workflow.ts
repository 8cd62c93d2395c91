/**
 * Speed of reading workflows: the largest UI file converted, and a graph of 300 nodes parsed and explained.
 * Usage: bun bench/workflow.ts [folder of UI files]. Without a folder, files of its own making are used.
 */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
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
  const text = JSON.stringify(parseWorkflow(madeUpUi(300)).graph);
  report(
    "parse + explain 300 nodes",
    time(() => explainWorkflow(parseWorkflow(text))),
    EXPLAIN_AIM_MS,
  );
}

if (import.meta.main) {
  main();
}
