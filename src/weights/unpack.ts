/**
 * The inside of an archive source: unpacked behind the frontier while the archive still comes in (plain tar), or after
 * it is whole (compressed). A tar's large members go into their own files as they come and are only looked over here.
 * After a kill the archive goes on from its journal and is unpacked again from disk.
 */
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import type {
  ArchiveMember,
  FileFollower,
  InPlace,
  UnpackedFile,
  UnpackOptions,
} from "../platform/archive.ts";
import { sniffArchive, unpackArchive, unpackTar } from "../platform/archive.ts";
import { CanceledError, DownloadError } from "../platform/errors.ts";
import { freeSpace, removeTree } from "../platform/files.ts";
import { memberPathIn, placedBytesIn, treePathIn } from "./content.ts";
import { digestBehind, digestOf } from "./digest.ts";
import { Frontier, followBy, readBlock } from "./frontier.ts";
import type { PartialFolder } from "./journal.ts";
import type { TreeExpectation } from "./verify.ts";
import { Writeback } from "./writeback.ts";

interface UnpackTarget {
  readonly label: string;
  readonly sizeBytes: number | undefined;
  readonly reserveBytes: number;
  /** Whether anybody will compare the digests of the files. */
  readonly digest: boolean;
  readonly signal: AbortSignal;
}

export interface UnpackJob extends UnpackTarget {
  /** Where the archive grows, and the tree in it. */
  readonly folder: PartialFolder;
  readonly frontier: Frontier;
}

export interface StreamJob extends UnpackTarget {
  /** Made new; what is in it is removed first. */
  readonly treePath: string;
  readonly body: AsyncIterable<Uint8Array>;
  /** Sees every block of the archive itself. */
  readonly see: (block: Uint8Array) => void;
}

const SNIFF_BYTES = 512;
/** How much of what is in place already is passed over at once. */
const STAND_IN_BYTES = 1024 * 1024;
/** A member shorter than this is digested when it is whole. */
const FOLLOW_STEP_BYTES = 4 * 1024 * 1024;
/** Weights hardly compress: a tar that grows more than this many times is a bomb. */
const MAX_RATIO = 20;
/** Text compresses better than weights; small archives may be mostly text. */
const ALWAYS_ALLOWED_BYTES = 1024 * 1024 * 1024;

/**
 * Unpacks a growing archive into its folder's tree. May be done again: what is in place stays.
 * @throws DownloadError SOURCE_CHANGED when what an earlier time found in it is not in it any more
 */
export async function unpackBehind(job: UnpackJob): Promise<readonly UnpackedFile[]> {
  const { folder, frontier } = job;
  const treePath = treePathIn(folder.path);
  sweepTree(folder);
  const options = prepare(job, treePath, placedBytesIn(folder.path, folder.content.members));
  const inPlace = new PlacedMembers(folder);
  let files: readonly UnpackedFile[];
  if ((await firstKind(job)) === "tar") {
    const source = followBy(frontier, inPlace.blockAt);
    files = await unpackTar(source, treePath, { ...options, inPlace });
  } else {
    await untilWhole(frontier);
    files = await unpackArchive(folder.dataPath, treePath, options);
  }
  inPlace.requireAll();
  return files;
}

/** Unpacks a tar as it comes, without keeping it. */
export async function unpackStream(job: StreamJob): Promise<readonly UnpackedFile[]> {
  removeTree(job.treePath);
  const options = prepare(job, job.treePath);
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

/** `heldBytes` of the archive's files take their room already. */
function prepare(job: UnpackTarget, treePath: string, heldBytes = 0): UnpackOptions {
  mkdirSync(treePath, { recursive: true });
  const { freeBytes } = freeSpace(treePath);
  return {
    label: job.label,
    signal: job.signal,
    follow: (path) => new MemberFollower(path, job.digest),
    // At most what the disk can hold, and no bomb.
    limits: {
      spaceBytes: Math.max(0, freeBytes + heldBytes - job.reserveBytes),
      maxTotalBytes: Math.max(ALWAYS_ALLOWED_BYTES, (job.sizeBytes ?? 0) * MAX_RATIO),
    },
  };
}

/** The large members, which whoever receives the tar writes to their places. */
class PlacedMembers implements InPlace {
  /** Never looked into, only measured. */
  readonly #standIn = Buffer.alloc(STAND_IN_BYTES);
  readonly #folder: PartialFolder;
  readonly #seen = new Set<number>();

  constructor(folder: PartialFolder) {
    this.#folder = folder;
  }

  readonly blockAt = (start: number, end: number): Uint8Array => {
    const { content } = this.#folder;
    const { inPlace, length } = content.stretchAt(start, end);
    return inPlace
      ? this.#standIn.subarray(0, Math.min(length, STAND_IN_BYTES))
      : readBlock(content, start, start + length);
  };

  isStandIn(block: Uint8Array): boolean {
    return block.buffer === this.#standIn.buffer;
  }

  adopt(member: ArchiveMember): number | undefined {
    this.#seen.add(member.offset);
    return this.#folder.adopt(member);
  }

  /** Whatever lies in the tree is published: nothing may lie there that is not of this archive. */
  requireAll(): void {
    const stray = this.#folder.content.members.find(({ offset }) => !this.#seen.has(offset));
    if (stray !== undefined) {
      throw new DownloadError(
        "SOURCE_CHANGED",
        `The archive holds no ${stray.path} any more, which an earlier start found in it`,
      );
    }
  }
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

async function firstKind({
  folder,
  frontier,
  label,
}: UnpackJob): Promise<ReturnType<typeof sniffArchive>> {
  await frontier.beyond(SNIFF_BYTES - 1);
  const head = Buffer.alloc(Math.min(SNIFF_BYTES, frontier.position));
  folder.content.read(head, 0);
  const kind = sniffArchive(head);
  if (kind === undefined) {
    throw new DownloadError("FORMAT_INVALID", `${label} is no archive, though it should be`, {
      hint: "The source does not serve this weight. Use another address for it.",
    });
  }
  return kind;
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

/** Removes what was unpacked and can be unpacked again: all but the members whose bytes are nowhere else. */
export function sweepTree(folder: PartialFolder): void {
  const treePath = treePathIn(folder.path);
  const kept = new Set(folder.content.members.map((one) => memberPathIn(folder.path, one)));
  if (kept.size === 0 || !existsSync(treePath)) {
    removeTree(treePath);
    return;
  }
  for (const entry of readdirSync(treePath, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (!entry.isDirectory() && !kept.has(path)) {
      rmSync(path, { force: true });
    }
  }
}
