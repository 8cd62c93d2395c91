/**
 * The inside of an archive source: unpacked behind the frontier while the archive still comes in (plain tar), or after
 * it is whole (compressed). After a kill the archive goes on from its journal and is unpacked again from disk.
 */
import { closeSync, mkdirSync, openSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import type {
  ArchiveLimits,
  FileFollower,
  UnpackedFile,
  UnpackOptions,
} from "../platform/archive.ts";
import { sniffArchive, unpackArchive, unpackTar } from "../platform/archive.ts";
import { CanceledError, DownloadError } from "../platform/errors.ts";
import { freeSpace, readFully } from "../platform/files.ts";
import { digestBehind, digestOf } from "./digest.ts";
import { Frontier, followFile } from "./frontier.ts";
import type { TreeExpectation } from "./verify.ts";
import { Writeback } from "./writeback.ts";

interface UnpackTarget {
  /** Made new; what is in it is removed first. */
  readonly treePath: string;
  readonly label: string;
  readonly sizeBytes: number | undefined;
  readonly reserveBytes: number;
  /** Whether anybody will compare the digests of the files. */
  readonly digest: boolean;
  readonly signal: AbortSignal;
}

export interface UnpackJob extends UnpackTarget {
  /** The archive, growing. */
  readonly dataPath: string;
  readonly frontier: Frontier;
}

export interface StreamJob extends UnpackTarget {
  readonly body: AsyncIterable<Uint8Array>;
  /** Sees every block of the archive itself. */
  readonly see: (block: Uint8Array) => void;
}

const SNIFF_BYTES = 512;
/** A member shorter than this is digested when it is whole. */
const FOLLOW_STEP_BYTES = 4 * 1024 * 1024;
/** Weights hardly compress: a tar that grows more than this many times is a bomb. */
const MAX_RATIO = 20;
/** Text compresses better than weights; small archives may be mostly text. */
const ALWAYS_ALLOWED_BYTES = 1024 * 1024 * 1024;

/** Unpacks a growing archive into `treePath`. */
export async function unpackBehind(job: UnpackJob): Promise<readonly UnpackedFile[]> {
  const options = prepare(job);
  if ((await firstKind(job)) === "tar") {
    return await unpackTar(followFile(job.dataPath, job.frontier), job.treePath, options);
  }
  await untilWhole(job.frontier);
  return await unpackArchive(job.dataPath, job.treePath, options);
}

/** Unpacks a tar as it comes, without keeping it. */
export async function unpackStream(job: StreamJob): Promise<readonly UnpackedFile[]> {
  const options = prepare(job);
  return await unpackTar(seen(job.body, job.see), job.treePath, options);
}

async function* seen(
  body: AsyncIterable<Uint8Array>,
  see: (block: Uint8Array) => void,
): AsyncGenerator<Uint8Array> {
  for await (const block of body) {
    see(block);
    yield block;
  }
}

function prepare(job: UnpackTarget): UnpackOptions {
  rmSync(job.treePath, { recursive: true, force: true });
  mkdirSync(job.treePath, { recursive: true });
  return {
    label: job.label,
    signal: job.signal,
    follow: (path) => new MemberFollower(path, job.digest),
    limits: byteLimits(job),
  };
}

/** At most what the disk can hold, and no bomb. */
function byteLimits(job: UnpackTarget): Pick<ArchiveLimits, "maxTotalBytes" | "spaceBytes"> {
  return {
    spaceBytes: Math.max(0, freeSpace(job.treePath).freeBytes - job.reserveBytes),
    maxTotalBytes: Math.max(ALWAYS_ALLOWED_BYTES, (job.sizeBytes ?? 0) * MAX_RATIO),
  };
}

/** Digests and flushes a large member behind its writer, in other threads. */
class MemberFollower implements FileFollower {
  readonly #path: string;
  readonly #frontier = new Frontier();
  readonly #digest: boolean;
  #digesting: Promise<string> | undefined;
  #fd: number | undefined;
  #writeback: Writeback | undefined;

  constructor(path: string, digest: boolean) {
    this.#path = path;
    this.#digest = digest;
  }

  advance(position: number): void {
    // Most members are small: threads and descriptors are for the large ones.
    if (position - this.#frontier.position < FOLLOW_STEP_BYTES) {
      return;
    }
    this.#frontier.advance(position);
    if (this.#digest && this.#digesting === undefined) {
      this.#digesting = digestBehind(this.#path, this.#frontier, Number.POSITIVE_INFINITY);
      this.#digesting.catch(() => undefined);
    }
    this.#fd ??= openSync(this.#path, "r");
    this.#writeback ??= new Writeback(this.#fd);
    this.#writeback.note(position);
  }

  async end(): Promise<string | undefined> {
    try {
      if (!this.#digest) {
        return undefined;
      }
      this.#frontier.advance(Bun.file(this.#path).size);
      this.#frontier.end();
      return await (this.#digesting ?? digestOf(this.#path));
    } finally {
      await this.#close();
    }
  }

  cancel(): void {
    this.#frontier.fail(new CanceledError("Unpacking was called off"));
    this.#close().catch(() => undefined);
  }

  async #close(): Promise<void> {
    const fd = this.#fd;
    this.#fd = undefined;
    await this.#writeback?.settle();
    if (fd !== undefined) {
      closeSync(fd);
    }
  }
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
