/**
 * The lock file's word against what is there: a file with the locked SHA-256 satisfies it without any question to a
 * source; another version of ours makes way; somebody else's file, or a source that serves something else, is an error
 * that shows both.
 */
import { renameSync, rmSync } from "node:fs";
import { AppError, WeightError } from "../platform/errors.ts";
import { entryAt, fileAt } from "../platform/files.ts";
import type { DigestBook } from "./digests.ts";
import type { LockRow } from "./lock.ts";
import { partialRootFor } from "./placing.ts";
import { jobKey } from "./plan.ts";
import type { InstallJob } from "./plan-types.ts";
import { forget, isOurs } from "./records.ts";

/** Another version of ours, out of the way until the locked one is there. */
export interface MovedAside {
  readonly file: string;
  readonly aside: string;
}

const ASIDE_ENDING = ".cog-other-version";

export interface LockCheck {
  readonly modelsRoots: readonly string[];
  readonly digests: DigestBook;
  /** Whether the file that lies there was put there by us, beyond what records say: a link into our store. */
  readonly isOurs?: ((file: string) => boolean) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Makes way for the locked version where another one of ours lies.
 * @throws WeightError LOCK_DRIFT for another file that we did not put there
 */
export async function makeWayForLocked(
  job: InstallJob,
  row: LockRow,
  check: LockCheck,
): Promise<MovedAside | undefined> {
  const file = jobKey(job);
  if (row.sha256 === undefined || fileAt(file)?.isFile() !== true) {
    return undefined;
  }
  const actual = await check.digests.of(file, check.signal);
  if (actual === row.sha256) {
    return undefined;
  }
  const root = partialRootFor(file, check.modelsRoots);
  if (!isOurs(root, file) && check.isOurs?.(file) !== true) {
    throw new WeightError(
      "LOCK_DRIFT",
      `${row.category}/${row.name}: the file there has the SHA-256 ${actual}, the lock file says ${row.sha256}`,
      {
        hint: "Move the file away, or accept it with `cog-comfyui weights lock --update` after giving it a source.",
        details: { file, actual, locked: row.sha256 },
      },
    );
  }
  const aside = `${file}${ASIDE_ENDING}`;
  renameSync(file, aside);
  forget(root, file);
  return { file, aside };
}

/** The locked version is there (or could not be had): the other one goes, or comes back. */
export function settleAside({ file, aside }: MovedAside): void {
  if (entryAt(file) === undefined) {
    renameSync(aside, file);
  } else {
    rmSync(aside, { force: true });
  }
}

/** A source that serves something else than the lock file pins, told as that. Other errors pass through. */
export function driftOf(
  error: unknown,
  rowOf: (job: InstallJob) => LockRow | undefined,
  jobs: readonly InstallJob[],
): unknown {
  if (!(error instanceof AppError)) {
    return error;
  }
  const { expected, actual } = error.details;
  const isMismatch = ["HASH_MISMATCH", "SIZE_MISMATCH", "FORMAT_INVALID"].includes(error.code);
  for (const job of isMismatch ? jobs : []) {
    const row = rowOf(job);
    const isIt = row !== undefined && (expected === row.sha256 || expected === row.size);
    if (isIt || (row !== undefined && jobs.length === 1)) {
      return new WeightError(
        "LOCK_DRIFT",
        `${row.category}/${row.name}: its source serves another version than the lock file pins. Locked: ${versionText(row)}. There now: ${actual === undefined ? error.message : textOf(actual)}`,
        {
          cause: error,
          hint: `Accept the new version with \`cog-comfyui weights lock --update ${row.name}\`, or give the locked one another source.`,
          details: { locked: row, actual },
        },
      );
    }
  }
  return error;
}

function versionText(row: LockRow): string {
  const size = row.size === undefined ? "" : `, ${row.size} bytes`;
  return `SHA-256 ${row.sha256 ?? "unknown"}${size}, of ${row.locked}`;
}

function textOf(actual: unknown): string {
  return typeof actual === "number" ? `${actual} bytes` : `SHA-256 ${String(actual)}`;
}
