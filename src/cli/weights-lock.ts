/** `weights lock` and `weights outdated`: pin the versions of weights, and ask whether their sources have moved on. */
import { join } from "node:path";
import { WeightError } from "../platform/errors.ts";
import { stringifyJson } from "../platform/json.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import { formatSize } from "../platform/size.ts";
import { LockFile } from "../weights/lock.ts";
import type { OutdatedRow, VersionFacts } from "../weights/lock-make.ts";
import type { InstallJob } from "../weights/plan-types.ts";
import type { Command } from "./command.ts";
import { EXIT, UsageError } from "./command.ts";
import type { CliServices } from "./services.ts";
import { allJobsFor, readyWeights } from "./targets.ts";

function lockPathOf({ config }: CliServices): string {
  return config.lockPath ?? join(PROJECT_ROOT, "weights.lock.json");
}

export const lockWeights: Command<CliServices> = {
  name: "weights lock",
  summary: "Pin the versions of weights in weights.lock.json (WEIGHTS_LOCK)",
  usage: "[WORKFLOW|KIT|WEIGHT…] [--update NAME]",
  words: [0, Number.POSITIVE_INFINITY],
  options: {
    update: {
      type: "string",
      multiple: true,
      value: "NAME",
      help: "move one locked weight to what its source serves now",
    },
  },
  examples: [
    "bin/cog-comfyui weights lock sdxl my_workflow.json",
    "bin/cog-comfyui weights lock --update my_lora.safetensors",
  ],
  run: async ({ words, json, texts }, services, { out, err }) => {
    const updates = texts("update");
    if (words.length === 0 && updates.length === 0) {
      throw new UsageError("Name what to lock: workflows, kits or weights, or --update NAME");
    }
    const known = LockFile.readIfThere(lockPathOf(services));
    services.predictor().weights.use_lock(known);
    const { weights } = await readyWeights(services);
    const named = await allJobsFor(words, services);
    const fresh = named.filter((job) => known.find(job.name, job.category) === undefined);
    const { signal } = services;
    const rows = [
      ...(await weights.lock_rows(fresh, { signal })),
      ...(await weights.lock_rows(updateJobs(updates, known, services), { signal, afresh: true })),
    ];
    const next = known.with(rows);
    next.write();
    const unhashed = rows.filter(({ sha256 }) => sha256 === undefined);
    if (json) {
      out(`${stringifyJson({ file: next.path, locked: rows }, 2)}\n`);
      return EXIT.done;
    }
    for (const { name, category } of named) {
      if (known.find(name, category) !== undefined) {
        out(`locked already  ${category}/${name}\n`);
      }
    }
    for (const row of rows) {
      const size = row.size === undefined ? "size unknown" : formatSize(row.size);
      const isMoved = updates.length > 0 && next.find(row.name, row.category) === row;
      out(
        `${isMoved ? "moved" : "locked"}  ${row.category}/${row.name}  ${size}  ${row.sha256 ?? "no SHA-256"}\n`,
      );
    }
    out(`${next.path}: ${next.rows.length} weights\n`);
    if (unhashed.length > 0) {
      err(
        `No SHA-256 is known of ${unhashed.map(({ name }) => name).join(", ")}: pull them first, then lock again.\n`,
      );
    }
    return EXIT.done;
  },
};

/** What brings the newest versions of locked weights: their moving sources, without what the lock pins. */
function updateJobs(names: readonly string[], lock: LockFile, services: CliServices): InstallJob[] {
  const { weights } = services.predictor();
  return names.map((name) => {
    const row = lock.find(name, undefined);
    if (row === undefined) {
      throw new WeightError("WEIGHT_UNKNOWN", `${name} is not in ${lock.path}`, {
        hint: "Lock it first: cog-comfyui weights lock NAME",
        details: { known: lock.rows.map((one) => `${one.category}/${one.name}`) },
      });
    }
    return weights.unlocked_job(row);
  });
}

export const outdatedWeights: Command<CliServices> = {
  name: "weights outdated",
  summary: "Compare the lock file with its sources, without downloading",
  usage: "",
  run: async ({ json }, services, { out }) => {
    const lock = LockFile.read(lockPathOf(services));
    const { weights } = await readyWeights(services);
    const rows = await weights.outdated(lock, services.signal);
    if (json) {
      out(`${stringifyJson({ weights: rows }, 2)}\n`);
    } else {
      for (const row of rows) {
        out(`${describeRow(row)}\n`);
      }
      const moved = rows.filter(({ state }) => state === "changed").length;
      out(`${rows.length} locked, ${moved} with another version at the source\n`);
    }
    return rows.every(({ state }) => state === "current") ? EXIT.done : EXIT.failed;
  },
};

function describeRow({ category, name, state, locked, source, reason }: OutdatedRow): string {
  const title = `${state.padEnd(8)} ${category}/${name}`;
  if (state === "changed" && source !== undefined) {
    return `${title}\n  locked: ${versionText(locked)}\n  source: ${versionText(source)}`;
  }
  return reason === undefined ? title : `${title}: ${reason}`;
}

function versionText({ revision, size, sha256, etag }: VersionFacts): string {
  return [
    sha256 === undefined ? undefined : `SHA-256 ${sha256}`,
    size === undefined ? undefined : formatSize(size),
    etag === undefined ? undefined : `ETag ${etag}`,
    revision === undefined ? undefined : `revision ${revision}`,
  ]
    .filter((part) => part !== undefined)
    .join(", ");
}
