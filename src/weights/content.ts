/**
 * Where the bytes of a growing file lie. In `data`; or, of a tar whose large members are known, in the members' own files
 * at once, so that no byte of them is written twice. It is decided for a whole chunk when its first byte comes, and the
 * journal says which it was.
 */
import { closeSync, openSync } from "node:fs";
import { dirname, join } from "node:path";
import { crc32 } from "node:zlib";
import type { ArchiveMember } from "../platform/archive.ts";
import {
  allocatedBytes,
  fileError,
  joinInside,
  makeFolder,
  readFully,
  WRITE_BLOCK_BYTES,
  writeAway,
} from "../platform/files.ts";
import { release, reserve } from "../platform/native.ts";
import type { Readable } from "./frontier.ts";
import type { Span } from "./segments.ts";
import { merged } from "./segments.ts";

/** Bytes that lie together in one file. */
export interface Stretch {
  /** Open for as long as what told of it. */
  readonly fd: number;
  /** Where in that file they begin. */
  readonly offset: number;
  readonly length: number;
}

/** Of a growing tar. */
export interface ContentStretch extends Stretch {
  /** True when they are where the unpacked file wants them. */
  readonly inPlace: boolean;
}

/** A member whose chunks go into its own file. */
export interface AdoptedMember extends ArchiveMember {
  /** Open for reading and writing until the content is disposed of. */
  readonly fd: number;
}

/** A member with fewer chunks to come is not worth a file of its own before its turn. */
const MIN_CHUNKS = 4;
/** Each takes a descriptor until the download ends. What comes after them is written by the unpacker. */
const MAX_MEMBERS = 64;

/** Names inside a download's folder. */
const DATA = "data";
const TREE = "tree";

/** The folder an archive is unpacked into, beside its data. */
export function treePathIn(folderPath: string): string {
  return join(folderPath, TREE);
}

export function dataPathIn(folderPath: string): string {
  return join(folderPath, DATA);
}

/** @throws InputError when its name leads out of the tree */
export function memberPathIn(folderPath: string, { path }: ArchiveMember): string {
  return joinInside(treePathIn(folderPath), path);
}

/** What the files of these members take on the disk by now. */
export function placedBytesIn(folderPath: string, members: readonly ArchiveMember[]): number {
  return members
    .map((member) => allocatedBytes(memberPathIn(folderPath, member)))
    .reduce((sum, bytes) => sum + bytes, 0);
}

/** A file that lies in one piece, open for reading. */
export class WholeFile implements Readable, Disposable {
  readonly path: string;
  readonly #fd: number;

  constructor(path: string) {
    this.path = path;
    this.#fd = openSync(path, "r");
  }

  read(into: Uint8Array, position: number): number {
    return readFully(this.#fd, into, position);
  }

  stretchAt(position: number, end: number): Stretch {
    return { fd: this.#fd, offset: position, length: end - position };
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

export class PartialContent implements Readable, Disposable {
  /** Of `data`, open for reading and writing. */
  readonly fd: number;
  /** Of `data`. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly #folderPath: string;
  readonly #chunkBytes: number;
  readonly #members: AdoptedMember[] = [];
  /** Chunks that have a place; undefined stands for `data`. */
  readonly #places = new Map<number, AdoptedMember | undefined>();

  /** Closes `fd` in the end. */
  constructor(parts: {
    readonly folderPath: string;
    readonly fd: number;
    readonly sizeBytes: number;
    readonly chunkBytes: number;
  }) {
    this.fd = parts.fd;
    this.path = dataPathIn(parts.folderPath);
    this.sizeBytes = parts.sizeBytes;
    this.#folderPath = parts.folderPath;
    this.#chunkBytes = parts.chunkBytes;
  }

  get members(): readonly AdoptedMember[] {
    return this.#members;
  }

  /** True for a chunk that lies in a member's file. */
  isInPlace(index: number): boolean {
    return this.#places.get(index) !== undefined;
  }

  /** Writes at `position`, on another thread. `bytes` must stay as they are until it is done. */
  async write(bytes: Uint8Array, position: number): Promise<void> {
    for (let at = 0; at < bytes.byteLength; ) {
      const index = Math.floor((position + at) / this.#chunkBytes);
      const length = Math.min(
        bytes.byteLength - at,
        (index + 1) * this.#chunkBytes - (position + at),
      );
      const member = this.#decide(index);
      await writeAway(
        member?.fd ?? this.fd,
        bytes.subarray(at, at + length),
        position + at - (member?.offset ?? 0),
      );
      at += length;
    }
  }

  read(into: Uint8Array, position: number): number {
    let done = 0;
    while (done < into.byteLength) {
      const { member, end } = this.#runAt(position + done, position + into.byteLength);
      const part = into.subarray(done, end - position);
      const read = readFully(member?.fd ?? this.fd, part, position + done - (member?.offset ?? 0));
      done += read;
      if (read < part.byteLength) {
        break;
      }
    }
    return done;
  }

  /** Where the bytes from `position` on lie, as far as they lie together and before `end`. */
  stretchAt(position: number, end: number): ContentStretch {
    const run = this.#runAt(position, end);
    return {
      fd: run.member?.fd ?? this.fd,
      offset: position - (run.member?.offset ?? 0),
      length: run.end - position,
      inPlace: run.member !== undefined,
    };
  }

  /**
   * From now on chunks of the member that have no place yet go into its own file; what came before is for the caller to
   * put there. undefined when that is not worth it.
   */
  adopt(member: ArchiveMember): AdoptedMember | undefined {
    const chunks = this.#freeChunks(member);
    if (
      this.#members.length >= MAX_MEMBERS ||
      chunks.length < MIN_CHUNKS ||
      member.offset + member.sizeBytes > this.sizeBytes
    ) {
      return undefined;
    }
    const adopted = this.#open(member, "w+");
    // What was set aside for these chunks in `data` is given to the file they go to instead.
    const spans = chunks.map((index) => ({
      start: index * this.#chunkBytes,
      end: (index + 1) * this.#chunkBytes,
    }));
    for (const { start, end } of merged(spans)) {
      release(this.fd, start, end - start);
    }
    reserve(adopted.fd, member.sizeBytes);
    this.#members.push(adopted);
    return adopted;
  }

  /** A member that an earlier process adopted. Its chunks have no place when its file has gone. */
  restore(member: ArchiveMember): void {
    try {
      this.#members.push(this.#open(member, "r+"));
    } catch {
      // They come again.
    }
  }

  /** Says of a chunk of an earlier process where it lies; false when there is no such place. */
  place(index: number, inPlace: boolean): boolean {
    const member = inPlace ? this.#memberOf(index) : undefined;
    this.#places.set(index, member);
    return !inPlace || member !== undefined;
  }

  /** Takes back {@link place}: the chunk is to come again. */
  forget(index: number): void {
    this.#places.delete(index);
  }

  /** Sets disk blocks aside for what is to come; false where the file system can't or won't. */
  reserve(): boolean {
    // A start that goes on with members has theirs already, and little is left to come into `data`.
    return this.#members.length > 0 || reserve(this.fd, this.sizeBytes);
  }

  [Symbol.dispose](): void {
    for (const fd of [this.fd, ...this.#members.map((member) => member.fd)]) {
      closeSync(fd);
    }
  }

  #open(member: ArchiveMember, flags: "w+" | "r+"): AdoptedMember {
    const file = memberPathIn(this.#folderPath, member);
    try {
      makeFolder(dirname(file));
      return { ...member, fd: openSync(file, flags, 0o644) };
    } catch (error) {
      throw fileError(error, file, "unpack");
    }
  }

  #decide(index: number): AdoptedMember | undefined {
    if (!this.#places.has(index)) {
      this.#places.set(index, this.#memberOf(index));
    }
    return this.#places.get(index);
  }

  /** The member that the whole chunk is of. */
  #memberOf(index: number): AdoptedMember | undefined {
    return this.#members.find((member) => {
      const { first, last } = this.#wholeChunks(member);
      return index >= first && index <= last;
    });
  }

  #wholeChunks({ offset, sizeBytes }: ArchiveMember): { first: number; last: number } {
    return {
      first: Math.ceil(offset / this.#chunkBytes),
      last: Math.floor((offset + sizeBytes) / this.#chunkBytes) - 1,
    };
  }

  #freeChunks(member: ArchiveMember): number[] {
    const { first, last } = this.#wholeChunks(member);
    const free: number[] = [];
    for (let index = first; index <= last; index += 1) {
      if (!this.#places.has(index)) {
        free.push(index);
      }
    }
    return free;
  }

  #runAt(position: number, end: number): { member: AdoptedMember | undefined; end: number } {
    const first = Math.floor(position / this.#chunkBytes);
    const member = this.#places.get(first);
    let next = first + 1;
    while (next * this.#chunkBytes < end && this.#places.get(next) === member) {
      next += 1;
    }
    return { member, end: Math.min(end, next * this.#chunkBytes) };
  }
}

/** CRC-32 of a part of it; undefined when it ends before. `seen` gets each block and where it stands. */
export function crcOfRange(
  content: Readable,
  { start, end }: Span,
  block: Buffer = Buffer.allocUnsafe(WRITE_BLOCK_BYTES),
  seen?: (block: Uint8Array, position: number) => void,
): number | undefined {
  let crc = 0;
  for (let at = start; at < end; ) {
    const part = block.subarray(0, Math.min(block.length, end - at));
    if (content.read(part, at) < part.length) {
      return undefined;
    }
    crc = crc32(part, crc);
    seen?.(part, at);
    at += part.length;
  }
  return crc;
}
