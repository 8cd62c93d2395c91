/**
 * Installing by the rules around the data plane: what lies whole in another models folder is there, what the lock file
 * pins is that version and no other, and what was brought is remembered with its digest.
 */

import type { ModelFolders } from "../models/folders.ts";
import { inspect } from "../models/header.ts";
import type { DigestBook } from "./digests.ts";
import type { Installer, InstallOptions } from "./install.ts";
import type { LockFile, LockRow } from "./lock.ts";
import type { MovedAside } from "./lock-enforce.ts";
import { driftOf, makeWayForLocked, settleAside } from "./lock-enforce.ts";
import { jobKey } from "./plan.ts";
import type { InstalledWeight, InstallJob } from "./plan-types.ts";

export interface Surroundings {
  readonly installer: Installer;
  readonly folders: ModelFolders;
  readonly modelsRoots: readonly string[];
  readonly digests: DigestBook;
  readonly lock: LockFile | undefined;
  /** Whether a file is a link into our own store. */
  readonly isStored?: ((file: string) => boolean) | undefined;
}

/** Brings every job's file, in the order given. @throws WeightError LOCK_DRIFT; DownloadError */
export async function bringWeights(
  jobs: readonly InstallJob[],
  around: Surroundings,
  options: InstallOptions = {},
): Promise<InstalledWeight[]> {
  const rowOf = (job: InstallJob) => around.lock?.find(job.name, job.category);
  const there = new Map<InstallJob, InstalledWeight>();
  const moved: MovedAside[] = [];
  try {
    for (const job of jobs) {
      const row = rowOf(job);
      const elsewhere = await foundElsewhere(job, row, around, options.signal);
      if (elsewhere !== undefined) {
        there.set(job, elsewhere);
      } else if (row !== undefined) {
        const { modelsRoots, digests, isStored: isOurs } = around;
        const check = { modelsRoots, digests, isOurs, signal: options.signal };
        const aside = await makeWayForLocked(job, row, check);
        moved.push(...(aside === undefined ? [] : [aside]));
      }
    }
    const missing = jobs.filter((job) => !there.has(job));
    const brought = await around.installer.install(missing, options);
    for (const { file, sha256, fetched } of brought) {
      if (fetched && sha256 !== undefined) {
        around.digests.note(file, sha256);
      }
    }
    return [...there.values(), ...brought];
  } catch (error) {
    throw driftOf(error, rowOf, jobs);
  } finally {
    for (const aside of moved) {
      settleAside(aside);
    }
  }
}

/** The same weight, whole, in a models folder other than the receiving one: of an image's layer, a shared volume. */
async function foundElsewhere(
  job: InstallJob,
  row: LockRow | undefined,
  { folders, digests }: Surroundings,
  signal: AbortSignal | undefined,
): Promise<InstalledWeight | undefined> {
  const found = job.unpack === undefined ? folders.find(job.category, job.name) : undefined;
  if (found === undefined || found.path === jobKey(job) || !found.stat.isFile()) {
    return undefined;
  }
  if (!inspect(found.path, { expectedSize: job.sizeBytes }).ok) {
    return undefined;
  }
  const locked = row?.sha256;
  if (locked !== undefined && (await digests.of(found.path, signal)) !== locked) {
    return undefined;
  }
  return {
    name: job.name,
    category: job.category,
    file: found.path,
    sizeBytes: Number(found.stat.size),
    sha256: locked ?? digests.known(found.path),
    source: "",
    fetched: false,
  };
}
