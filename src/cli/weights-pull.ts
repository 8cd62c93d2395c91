/** `weights plan`, `weights pull` and `weights repair`: what would be brought, bringing it, replacing what is broken. */
import { stringifyJson } from "../platform/json.ts";
import { formatSize } from "../platform/size.ts";
import type { InstallPlan } from "../weights/plan.ts";
import { describePlan } from "../weights/plan.ts";
import type { InstalledWeight, InstallProgress } from "../weights/plan-types.ts";
import type { Command, Invocation, Terminal } from "./command.ts";
import { EXIT } from "./command.ts";
import { ProgressBars } from "./progress-bars.ts";
import type { CliServices } from "./services.ts";
import { jobsFor } from "./targets.ts";

const TARGETS = "WORKFLOW|KIT|WEIGHT…";

export const planWeights: Command<CliServices> = {
  name: "weights plan",
  summary: "Show what a pull would download, from where, and whether it fits the disk",
  usage: TARGETS,
  words: [1, Number.POSITIVE_INFINITY],
  examples: ["bin/cog-comfyui weights plan sdxl", "bin/cog-comfyui weights plan my_workflow.json"],
  run: async ({ words, json }, services, { out }) => {
    const jobs = await jobsFor(words, services);
    const plan = await services.predictor().weights.plan(jobs, { signal: services.signal });
    out(json ? `${stringifyJson(planDocument(plan), 2)}\n` : `${describePlan(plan)}\n`);
    return plan.fileSystems.every(({ fits }) => fits) ? EXIT.done : EXIT.failed;
  },
};

export const pullWeights: Command<CliServices> = {
  name: "weights pull",
  summary: "Download and verify the weights of a workflow or a kit, or single ones",
  usage: TARGETS,
  words: [1, Number.POSITIVE_INFINITY],
  examples: ["bin/cog-comfyui weights pull my_workflow.json", "bin/cog-comfyui weights pull flux"],
  run: (invocation, services, terminal) => bring(invocation, services, terminal, false),
};

export const repairWeights: Command<CliServices> = {
  name: "weights repair",
  summary: "Replace broken weight files by whole ones",
  usage: TARGETS,
  words: [1, Number.POSITIVE_INFINITY],
  run: (invocation, services, terminal) => bring(invocation, services, terminal, true),
};

async function bring(
  { words, json }: Invocation,
  services: CliServices,
  terminal: Terminal,
  repair: boolean,
): Promise<number> {
  const jobs = await jobsFor(words, services);
  using bars = new ProgressBars(terminal);
  const installed = await services.predictor().weights.install(jobs, {
    signal: services.signal,
    repair,
    onProgress: (progress: InstallProgress) => bars.show(progress),
  });
  bars.clear();
  terminal.out(
    json ? `${stringifyJson({ weights: installed }, 2)}\n` : describeInstalled(installed),
  );
  return EXIT.done;
}

function describeInstalled(installed: readonly InstalledWeight[]): string {
  if (installed.length === 0) {
    return "Everything is there already.\n";
  }
  return installed
    .map(({ name, file, sizeBytes, fetched, sha256 }) => {
      const how = fetched
        ? `fetched, ${sha256 === undefined ? "verified" : "SHA-256 verified"}`
        : "there already";
      return `${name}  ${formatSize(sizeBytes)}  ${how}\n  ${file}\n`;
    })
    .join("");
}

function planDocument(plan: InstallPlan): unknown {
  return {
    total_bytes: plan.totalBytes,
    resumed_bytes: plan.resumedBytes,
    steps: plan.steps.map(({ job, action, bytes, resumedBytes, file, isArchive }) => ({
      name: job.name,
      category: job.category,
      action,
      bytes: bytes ?? null,
      resumed_bytes: resumedBytes,
      destination: file ?? job.destination,
      sources: job.sources.map(({ url }) => url),
      unpacked: isArchive,
      gated: job.gated === true,
    })),
    disks: plan.fileSystems.map(({ path, freeBytes, peakBytes, reserveBytes, fits }) => ({
      path,
      free_bytes: freeBytes,
      peak_bytes: peakBytes,
      reserve_bytes: reserveBytes,
      fits,
    })),
  };
}
