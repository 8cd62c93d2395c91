/**
 * The inside of an archive source: unpacked behind the frontier while the archive still comes in (plain tar), or after
 * it is whole (compressed). After a kill the archive goes on from its journal and is unpacked again from disk.
 */
import { closeSync, mkdirSync, openSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import type { ArchiveLimits, UnpackedFile } from "../platform/archive.ts";
import { sniffArchive, unpackArchive, unpackTar } from "../platform/archive.ts";
import { DownloadError } from "../platform/errors.ts";
import { freeSpace, readFully } from "../platform/files.ts";
import type { Frontier } from "./frontier.ts";
import { followFile } from "./frontier.ts";
import type { TreeExpectation } from "./verify.ts";

export interface UnpackJob {
  /** The archive, growing. */
  readonly dataPath: string;
  readonly frontier: Frontier;
  /** Made new; what is in it is removed first. */
  readonly treePath: string;
  readonly label: string;
  readonly sizeBytes: number | undefined;
  readonly reserveBytes: number;
  readonly signal: AbortSignal;
}

const SNIFF_BYTES = 512;
/** Weights hardly compress: a tar that grows more than this many times is a bomb. */
const MAX_RATIO = 20;
/** Text compresses better than weights; small archives may be mostly text. */
const ALWAYS_ALLOWED_BYTES = 1024 * 1024 * 1024;

/** Unpacks a growing archive into `treePath`. */
export async function unpackBehind(job: UnpackJob): Promise<readonly UnpackedFile[]> {
  rmSync(job.treePath, { recursive: true, force: true });
  mkdirSync(job.treePath, { recursive: true });
  const options = {
    label: job.label,
    signal: job.signal,
    hash: true,
    limits: byteLimits(job),
  };
  if ((await firstKind(job)) === "tar") {
    return await unpackTar(followFile(job.dataPath, job.frontier), job.treePath, options);
  }
  await untilWhole(job.frontier);
  return await unpackArchive(job.dataPath, job.treePath, options);
}

/** At most what the disk can hold, and no bomb. */
function byteLimits(job: UnpackJob): Pick<ArchiveLimits, "maxTotalBytes" | "spaceBytes"> {
  return {
    spaceBytes: Math.max(0, freeSpace(job.treePath).freeBytes - job.reserveBytes),
    maxTotalBytes: Math.max(ALWAYS_ALLOWED_BYTES, (job.sizeBytes ?? 0) * MAX_RATIO),
  };
}

async function firstKind(job: UnpackJob): Promise<ReturnType<typeof sniffArchive>> {
  await job.frontier.beyond(SNIFF_BYTES - 1);
  const fd = openSync(job.dataPath, "r");
  try {
    const head = Buffer.alloc(Math.min(SNIFF_BYTES, job.frontier.position));
    readFully(fd, head, 0);
    const kind = sniffArchive(head);
    if (kind === undefined) {
      throw new DownloadError("FORMAT_INVALID", `${job.label} is no archive, though it should be`, {
        hint: "The source does not serve this weight. Use another address for it.",
      });
    }
    return kind;
  } finally {
    closeSync(fd);
  }
}

async function untilWhole(frontier: Frontier): Promise<void> {
  for (let at = 0; await frontier.beyond(at); at = frontier.position) {
    // Each turn waits for more; the end ends it.
  }
}

/** The one file of an archive that a job is about. */
export function wantedMember(
  files: readonly UnpackedFile[],
  wanted: { readonly member: string; readonly name: string },
): UnpackedFile | undefined {
  const exact = files.find((file) => file.path === wanted.member || file.path === wanted.name);
  if (exact !== undefined) {
    return exact;
  }
  const byName = files.filter((file) => basename(file.path) === basename(wanted.member));
  if (byName.length === 1) {
    return byName[0];
  }
  return files.length === 1 ? files[0] : undefined;
}

/** What the archive must hold at `path`. */
export function memberExpectation(
  member: UnpackedFile | undefined,
  known: { readonly sizeBytes?: number | undefined; readonly sha256?: string | undefined },
): TreeExpectation | undefined {
  return member === undefined
    ? undefined
    : { path: member.path, sizeBytes: known.sizeBytes, sha256: known.sha256 };
}

/** Names of what an archive holds, for messages. */
export function contentText(files: readonly UnpackedFile[]): string {
  const names = files.slice(0, 5).map((file) => file.path);
  const more = files.length > names.length ? `, and ${files.length - names.length} more` : "";
  return `${names.join(", ")}${more}`;
}

/** The folder an archive is unpacked into, beside its data. */
export function treePathIn(folderPath: string): string {
  return join(folderPath, "tree");
}
