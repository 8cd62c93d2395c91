/** `weights gc`: brings the shared store under its budget, and removes what interrupted work left behind. */

import { join } from "node:path";
import { stringifyJson } from "../platform/json.ts";
import { formatSize, parseSize } from "../platform/size.ts";
import { listPartials, PARTIAL_FOLDER, removePartials } from "../weights/journal.ts";
import type { Command } from "./command.ts";
import { EXIT, UsageError } from "./command.ts";
import type { CliServices } from "./services.ts";

/** Younger ones may still be wanted: the next start resumes them. */
const ABANDONED_MS = 7 * 24 * 3600 * 1000;

export const collectWeights: Command<CliServices> = {
  name: "weights gc",
  summary: "Evict what nobody needs from the shared store, and remove abandoned downloads",
  usage: "[--max SIZE] [--dry-run]",
  options: {
    max: {
      type: "string",
      value: "SIZE",
      help: "bytes the store may keep; WEIGHTS_CACHE_MAX_BYTES unless given, 0 for all that is not pinned",
    },
    "dry-run": { type: "boolean", help: "only say what would go" },
  },
  examples: ["bin/cog-comfyui weights gc --dry-run", "bin/cog-comfyui weights gc --max 200GB"],
  run: ({ json, flag, text }, services, { out }) => {
    const { config } = services;
    const { weights } = services.predictor();
    const dryRun = flag("dry-run");
    const given = text("max");
    const maxBytes = given === undefined ? config.WEIGHTS_CACHE_MAX_BYTES : parseSize(given);
    if (given !== undefined && maxBytes === undefined) {
      throw new UsageError(`"${given}" is no size`, "Write for example --max 200GB.");
    }
    weights.pin_lock();
    const { store } = weights;
    const before = store?.usage();
    const evicted = store?.gc({ maxBytes, dryRun }) ?? [];
    const abandoned = collectPartials(
      [...config.modelsDirs, ...(store === undefined ? [] : [join(store.root, PARTIAL_FOLDER)])],
      dryRun,
    );
    const pinned = before?.blobs.filter(({ pins }) => pins.length > 0) ?? [];
    if (json) {
      const document = { dry_run: dryRun, store: store?.root ?? null, evicted, abandoned, pinned };
      out(`${stringifyJson(document, 2)}\n`);
      return Promise.resolve(EXIT.done);
    }
    const verb = dryRun ? "would go" : "gone";
    for (const { name, sha256, size } of evicted) {
      out(`${verb}  ${name}  ${formatSize(size)}  ${sha256.slice(0, 12)}\n`);
    }
    for (const { name, bytes } of abandoned) {
      out(`${verb}  unfinished download of ${name}  ${formatSize(bytes)}\n`);
    }
    out(
      store === undefined
        ? "There is no shared store (WEIGHTS_CACHE_DIR).\n"
        : `${store.root}: ${formatSize(before?.bytes ?? 0)} before, ${formatSize(sum(evicted))} ${dryRun ? "to free" : "freed"}, ${pinned.length} pinned${maxBytes === undefined ? "; no budget is set (WEIGHTS_CACHE_MAX_BYTES or --max)" : ""}\n`,
    );
    return Promise.resolve(EXIT.done);
  },
};

function collectPartials(
  roots: readonly string[],
  dryRun: boolean,
): { readonly name: string; readonly bytes: number }[] {
  const old = dryRun
    ? listPartials(roots).filter(({ updatedAt }) => Date.now() - updatedAt.getTime() > ABANDONED_MS)
    : removePartials(roots, ABANDONED_MS);
  return old.map(({ name, allocatedBytes }) => ({ name, bytes: allocatedBytes }));
}

function sum(evicted: readonly { readonly size: number }[]): number {
  return evicted.reduce((total, { size }) => total + size, 0);
}
