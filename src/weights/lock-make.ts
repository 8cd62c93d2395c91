/**
 * Rows of the lock file out of what sources and files say today, and the comparison of a lock file with its sources:
 * one small request per weight, nothing downloaded.
 */
import { AppError, isAbort, messageOf, WeightError } from "../platform/errors.ts";
import { fileAt } from "../platform/files.ts";
import { Limiter } from "../platform/limit.ts";
import { bareUrl, redactUrl } from "../platform/redact.ts";
import type { LockFile, LockRow } from "./lock.ts";
import { presentFile } from "./plan.ts";
import type { InstallJob, WeightSource } from "./plan-types.ts";
import { looksLikeArchive } from "./sources.ts";

/** What a source says of itself today; a part of what a probe finds out. */
export interface SourceLook {
  readonly source: WeightSource;
  readonly sizeBytes: number | undefined;
  readonly etag: string | undefined;
  readonly sha256: string | undefined;
  readonly commit: string | undefined;
}

export interface LockMaker {
  /** Asks the first source that answers. */
  look(job: InstallJob): Promise<SourceLook>;
  /** The SHA-256 of a file on the disk; undefined leaves the disk out: what lies there is the version to be left. */
  readonly digest: ((path: string) => Promise<string>) | undefined;
  readonly now?: (() => Date) | undefined;
}

/** Servers are asked side by side; many at once would look like an attack. */
const LOOKS_AT_ONCE = 8;

/**
 * A row for every job.
 * @throws WeightError LOCK_DRIFT naming every file on the disk that is not what its source serves; DownloadError
 */
export async function lockRows(jobs: readonly InstallJob[], maker: LockMaker): Promise<LockRow[]> {
  const limiter = new Limiter(LOOKS_AT_ONCE);
  const settled = await Promise.allSettled(
    jobs.map((job) => limiter.run(() => lockRow(job, maker))),
  );
  const failures = settled.flatMap((one) => (one.status === "rejected" ? [one.reason] : []));
  const [first, ...more] = failures;
  if (first !== undefined) {
    throw more.length === 0 || isAbort(first) || !(first instanceof AppError)
      ? first
      : new WeightError(
          first.code,
          `${failures.length} weights can't be locked:\n${failures.map((one) => `- ${messageOf(one)}`).join("\n")}`,
          { cause: first, hint: first.hint },
        );
  }
  return settled.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
}

async function lockRow(job: InstallJob, maker: LockMaker): Promise<LockRow> {
  const found = await maker.look(job);
  const content = await contentOf(job, found, maker);
  const from = withoutSecrets(found.source.url);
  const url = pinnedAddress(from, found.commit);
  return {
    name: job.name,
    category: job.category,
    url,
    ...(url === from ? {} : { from }),
    ...(found.commit === undefined ? {} : { revision: found.commit }),
    ...content,
    ...(found.etag === undefined ? {} : { etag: found.etag }),
    ...(job.license === undefined ? {} : { license: job.license }),
    locked: `${(maker.now?.() ?? new Date()).toISOString().slice(0, 19)}Z`,
  };
}

/** Length and digest: of the file on the disk where it is there, else what manifest and server state. */
async function contentOf(
  job: InstallJob,
  found: SourceLook,
  maker: LockMaker,
): Promise<Pick<LockRow, "size" | "sha256">> {
  const isArchive = job.unpack !== undefined || looksLikeArchive(found.source);
  const stated = (job.sha256 ?? (isArchive ? undefined : found.sha256))?.toLowerCase();
  const file = presentFile(job);
  const there = file === undefined ? undefined : fileAt(file);
  if (file === undefined || there?.isFile() !== true || maker.digest === undefined) {
    const size = job.sizeBytes ?? (isArchive ? undefined : found.sizeBytes);
    return {
      ...(size === undefined ? {} : { size }),
      ...(stated === undefined ? {} : { sha256: stated }),
    };
  }
  const sha256 = await maker.digest(file);
  if (stated !== undefined && sha256 !== stated) {
    throw new WeightError(
      "LOCK_DRIFT",
      `${job.category}/${job.name}: the file on the disk has the SHA-256 ${sha256}, its source serves ${stated}`,
      {
        hint: "Move the file away and pull it again, or add its own source to a manifest.",
        details: { file, onDisk: sha256, source: stated },
      },
    );
  }
  return { size: there.size, sha256 };
}

/** A lock file goes into version control: what would be masked in a log is left out. */
function withoutSecrets(url: string): string {
  return redactUrl(url) === url ? url : bareUrl(url);
}

const HUB_SPEC = /^(hf:\/\/(?:(?:datasets|spaces)\/)?[^/@]+\/[^/@]+)(?:@[^/]+)?(\/.+)$/;
const HUB_FILE =
  /^(https?:\/\/[^/]+\/(?:(?:datasets|spaces)\/)?[^/]+\/[^/]+\/)(?:resolve|blob|raw)\/[^/]+(\/.+)$/;

/** The address with the commit in place of a branch; other hosts' addresses stay as they are. */
export function pinnedAddress(url: string, commit: string | undefined): string {
  if (commit === undefined) {
    return url;
  }
  const spec = HUB_SPEC.exec(url);
  if (spec !== null) {
    return `${spec[1]}@${commit}${spec[2]}`;
  }
  const file = HUB_FILE.exec(url);
  return file === null ? url : `${file[1]}resolve/${commit}${file[2]}`;
}

/** One weight of a lock file, compared with what its source serves today. */
export interface OutdatedRow {
  readonly name: string;
  readonly category: string;
  readonly state: "current" | "changed" | "gone" | "unknown";
  readonly locked: VersionFacts;
  readonly source?: VersionFacts;
  /** Why nothing can be said. */
  readonly reason?: string;
}

export interface VersionFacts {
  readonly revision?: string;
  readonly size?: number;
  readonly sha256?: string;
  readonly etag?: string;
}

/** Compares every row, or those named, with its moving source. */
export async function outdatedRows(
  lock: LockFile,
  look: (row: LockRow, url: string) => Promise<SourceLook>,
): Promise<OutdatedRow[]> {
  const limiter = new Limiter(LOOKS_AT_ONCE);
  return await Promise.all(lock.rows.map((row) => limiter.run(() => outdatedRow(row, look))));
}

async function outdatedRow(
  row: LockRow,
  look: (row: LockRow, url: string) => Promise<SourceLook>,
): Promise<OutdatedRow> {
  const { name, category } = row;
  const locked = facts({
    commit: row.revision,
    sizeBytes: row.size,
    sha256: row.sha256,
    etag: row.etag,
  });
  try {
    const found = await look(row, row.from ?? row.url);
    const source = facts(found);
    return { name, category, state: isSame(row, found) ? "current" : "changed", locked, source };
  } catch (error) {
    if (isAbort(error) || !(error instanceof AppError)) {
      throw error;
    }
    const state = error.code === "NOT_FOUND" ? "gone" : "unknown";
    return { name, category, state, locked, reason: error.message };
  }
}

function facts(given: Omit<SourceLook, "source">): VersionFacts {
  const { commit, sizeBytes, sha256, etag } = given;
  return {
    ...(commit === undefined ? {} : { revision: commit }),
    ...(sizeBytes === undefined ? {} : { size: sizeBytes }),
    ...(sha256 === undefined ? {} : { sha256 }),
    ...(etag === undefined ? {} : { etag }),
  };
}

/** The strongest evidence both sides have decides: content, then validator, then length. */
function isSame(row: LockRow, found: SourceLook): boolean {
  const isArchive = looksLikeArchive(found.source);
  if (!isArchive && row.sha256 !== undefined && found.sha256 !== undefined) {
    return row.sha256 === found.sha256.toLowerCase();
  }
  if (row.etag !== undefined && found.etag !== undefined) {
    return row.etag === found.etag;
  }
  return isArchive || row.size === undefined || row.size === found.sizeBytes;
}
