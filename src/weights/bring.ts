/**
 * Installing by the rules around the data plane: what lies whole in another models folder is there, what the lock file
 * pins is that version and no other, and what was brought is remembered with its digest.
 */

import { rmSync } from "node:fs";
import type { ModelFolders } from "../models/folders.ts";
import { inspect } from "../models/header.ts";
import { entryAt, fileError } from "../platform/files.ts";
import type { DigestBook } from "./digests.ts";
import type { Installer, InstallOptions } from "./install.ts";
import type { LockFile, LockRow } from "./lock.ts";
import type { MovedAside } from "./lock-enforce.ts";
import { driftOf, makeWayForLocked, settleAside } from "./lock-enforce.ts";
import { partialRootFor } from "./placing.ts";
import { jobKey, presentFile } from "./plan.ts";
import type { InstalledWeight, InstallJob } from "./plan-types.ts";
import { forget, isOurs } from "./records.ts";
import type { WeightStore } from "./store.ts";

export interface Surroundings {
  readonly installer: Installer;
  readonly folders: ModelFolders;
  readonly modelsRoots: readonly string[];
  readonly digests: DigestBook;
  readonly lock: LockFile | undefined;
  readonly store?: WeightStore | undefined;
}

/** Brings every job's file; tells first of those that were there. @throws WeightError LOCK_DRIFT; DownloadError */
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
      const found = await whatIsThere(job, rowOf(job), around, { ...options, moved });
      if (found !== undefined) {
        there.set(job, found);
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

/** A weight that needs no source; before that, another version than the locked one has made way. */
async function whatIsThere(
  job: InstallJob,
  row: LockRow | undefined,
  around: Surroundings,
  options: InstallOptions & { readonly moved: MovedAside[] },
): Promise<InstalledWeight | undefined> {
  const elsewhere = await foundElsewhere(job, row, around, options.signal);
  if (elsewhere !== undefined) {
    return elsewhere;
  }
  if (row !== undefined) {
    const { modelsRoots, digests } = around;
    const isOurs = (file: string) => isStored(file, around);
    const check = { modelsRoots, digests, isOurs, signal: options.signal };
    const aside = await makeWayForLocked(job, row, check);
    options.moved.push(...(aside === undefined ? [] : [aside]));
  }
  return await fromStore(job, around, options);
}

/** Removes a weight that we installed or that somebody put there. True when its bytes are gone too. */
export function removeWeight(
  file: string,
  around: Pick<Surroundings, "modelsRoots" | "digests" | "store">,
): boolean {
  const sha256 = around.digests.known(file);
  const { store } = around;
  const freed =
    sha256 !== undefined && store?.isStored(file, sha256) ? store.remove(file, sha256) : true;
  try {
    rmSync(file, { force: true });
  } catch (error) {
    throw fileError(error, file, "remove");
  }
  forget(partialRootFor(file, around.modelsRoots), file);
  return freed;
}

/** Puts into place what the store holds of these; true when it held any. */
export async function linkStored(
  jobs: readonly InstallJob[],
  around: Surroundings,
  options: InstallOptions = {},
): Promise<boolean> {
  let any = false;
  for (const job of jobs) {
    any = (await fromStore(job, around, options)) !== undefined || any;
  }
  return any;
}

/** What the store holds needs no source to be asked, not even whether it is still there. */
async function fromStore(
  job: InstallJob,
  around: Surroundings,
  { repair, signal }: InstallOptions,
): Promise<InstalledWeight | undefined> {
  const { store, modelsRoots } = around;
  if (store === undefined || presentFile(job) !== undefined) {
    return undefined;
  }
  const file = jobKey(job);
  const replace =
    repair === true || isOurs(partialRootFor(file, modelsRoots), file) || isStored(file, around);
  // Somebody else's file in the way is for the installer to tell.
  return entryAt(file) === undefined || replace
    ? await store.serve(job, { replace, signal })
    : undefined;
}

function isStored(
  file: string,
  { store, digests }: Pick<Surroundings, "store" | "digests">,
): boolean {
  return store?.isStored(file, digests.known(file)) === true;
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
