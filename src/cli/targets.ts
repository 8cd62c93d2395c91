/** What words after `weights …` name: a workflow (file or address), a kit, or a weight. */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { jobKey } from "../weights/plan.ts";
import type { InstallJob } from "../weights/plan-types.ts";
import type { Validation } from "../weights/refs.ts";
import { weightsMissing } from "../weights/report.ts";
import type { Workflow } from "../workflow/graph.ts";
import type { CliServices, PredictorPort } from "./services.ts";

/** True for what can only be a workflow: an address, a file that is there, a name that ends like one. */
export function looksLikeWorkflow(word: string): boolean {
  return (
    /^https?:\/\/|^data:/i.test(word) || /\.(json|png|webp|mp4|gz)$/i.test(word) || isFile(word)
  );
}

function isFile(word: string): boolean {
  return (
    (word.includes("/") || word.includes(".")) &&
    existsSync(resolve(word)) &&
    !/\.(safetensors|sft|ckpt|pt|pth|bin|gguf|onnx)$/i.test(word)
  );
}

/** A path as its reader means it: relative to the caller's folder. */
export function fromCaller(word: string): string {
  return /^[a-z][a-z0-9+.-]*:/i.test(word) ? word : resolve(word);
}

/** Reads a workflow that the person at the command line names. */
export async function readWorkflow(
  word: string,
  services: Pick<CliServices, "predictor" | "signal">,
): Promise<Workflow> {
  const { comfyui } = services.predictor();
  return await comfyui.load_workflow(fromCaller(word), {
    trust: "operator",
    signal: services.signal,
  });
}

/** The predictor with the operator's manifest merged in: what every weights command works with. */
export async function readyWeights(services: CliServices): Promise<PredictorPort> {
  const predictor = services.predictor();
  await predictor.weights.load_manifest(services.signal);
  return predictor;
}

/**
 * The jobs for everything the words name. What is there already stays in: the plan says so.
 * @throws WeightError for a workflow with a weight nobody knows a source for, and for unknown names
 */
export async function jobsFor(
  words: readonly string[],
  services: CliServices,
): Promise<InstallJob[]> {
  await readyWeights(services);
  return await targetJobs(words, services);
}

/** Like {@link jobsFor}, where the manifest is loaded already. */
export async function targetJobs(
  words: readonly string[],
  services: Pick<CliServices, "predictor" | "signal">,
): Promise<InstallJob[]> {
  const { weights, comfyui } = services.predictor();
  const jobs: InstallJob[] = [];
  for (const word of words) {
    if (looksLikeWorkflow(word)) {
      const validation = comfyui.check_weights(await readWorkflow(word, services), "operator");
      jobs.push(...missingJobs(validation, services));
    } else if (weights.manifest.kits.has(word)) {
      jobs.push(...weights.kit_jobs(word));
    } else {
      jobs.push(...weights.jobs_for(word, "operator"));
    }
  }
  return jobs;
}

/**
 * The jobs for everything the words name, also for what is there: what a lock file or a baked layer is made of.
 * @throws WeightError WEIGHT_UNKNOWN for a weight that no source is known for
 */
export async function allJobsFor(
  words: readonly string[],
  services: CliServices,
): Promise<InstallJob[]> {
  const { weights, comfyui } = await readyWeights(services);
  const jobs: InstallJob[] = [];
  for (const word of words) {
    if (looksLikeWorkflow(word)) {
      const refs = comfyui.find_weights(await readWorkflow(word, services));
      jobs.push(...refs.flatMap((ref) => weights.jobs_for(ref, "operator")));
    } else if (weights.manifest.kits.has(word)) {
      jobs.push(...weights.kit_jobs(word));
    } else {
      jobs.push(...weights.jobs_for(word, "operator"));
    }
  }
  return [...new Map(jobs.map((job) => [jobKey(job), job])).values()];
}

function missingJobs(
  validation: Validation,
  services: Pick<CliServices, "predictor">,
): InstallJob[] {
  const { weights } = services.predictor();
  const resolutions = validation.missing.map((missing) => weights.resolve(missing, "operator"));
  if (resolutions.some(({ kind }) => kind !== "jobs")) {
    throw weightsMissing(validation, weights.manifest);
  }
  return resolutions.flatMap((resolution) => (resolution.kind === "jobs" ? resolution.jobs : []));
}
