/**
 * Which chunks of a growing file are complete, and the CRC of each. A chunk that one connection wrote in order is
 * summed on the way; one that was split between two is read back. Moves the frontier and tells the journal.
 */
import { crc32 } from "node:zlib";
import { crcOfRange } from "./content.ts";
import type { Frontier, Readable } from "./frontier.ts";

/** Followers are woken for this much, not for every packet. */
const FRONTIER_STEP_BYTES = 1024 * 1024;

interface ChunkState {
  covered: number;
  /** Bytes from the chunk's start that were summed in order. */
  summed: number;
  crc: number;
}

export interface ChunkJournal {
  record(index: number, crc: number): void;
  revoke(index: number): void;
}

export class ChunkLedger {
  readonly #sizeBytes: number;
  readonly #chunkBytes: number;
  readonly #content: Readable;
  readonly #journal: ChunkJournal;
  readonly #frontier: Frontier;
  readonly #states = new Map<number, ChunkState>();
  readonly #done: Set<number>;
  #doneBytes = 0;
  #nextAtFrontier = 0;

  constructor(parts: {
    readonly sizeBytes: number;
    readonly chunkBytes: number;
    readonly content: Readable;
    readonly journal: ChunkJournal;
    readonly frontier: Frontier;
    readonly done: ReadonlySet<number>;
  }) {
    this.#sizeBytes = parts.sizeBytes;
    this.#chunkBytes = parts.chunkBytes;
    this.#content = parts.content;
    this.#journal = parts.journal;
    this.#frontier = parts.frontier;
    this.#done = new Set(parts.done);
    for (const index of this.#done) {
      this.#doneBytes += this.#lengthOf(index);
    }
    this.#moveFrontier();
  }

  /** Bytes written so far, those of unfinished chunks included. */
  get coveredBytes(): number {
    return this.#doneBytes;
  }

  get isComplete(): boolean {
    return this.#doneBytes === this.#sizeBytes;
  }

  /** Notes bytes that were written at `position`; they may span chunks. No byte is noted twice. */
  wrote(position: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const index = Math.floor((position + at) / this.#chunkBytes);
      const within = position + at - index * this.#chunkBytes;
      const length = Math.min(bytes.byteLength - at, this.#lengthOf(index) - within);
      this.#cover(index, within, bytes.subarray(at, at + length));
      at += length;
    }
  }

  /** Forgets bytes that turned out to be untrustworthy. */
  revoke(start: number, end: number): void {
    this.#frontier.taint(start);
    for (let at = start; at < end; ) {
      const index = Math.floor(at / this.#chunkBytes);
      const chunkStart = index * this.#chunkBytes;
      const length = Math.min(end, chunkStart + this.#lengthOf(index)) - at;
      const state = this.#states.get(index) ?? this.#reopen(index);
      state.covered -= length;
      state.summed = Math.min(state.summed, at - chunkStart);
      if (state.summed > 0) {
        state.crc = crcOfRange(this.#content, { start: chunkStart, end: at }) ?? 0;
      } else {
        state.crc = 0;
      }
      this.#doneBytes -= length;
      at += length;
    }
  }

  #reopen(index: number): ChunkState {
    const length = this.#done.delete(index) ? this.#lengthOf(index) : 0;
    if (length > 0) {
      this.#journal.revoke(index);
    }
    const state = { covered: length, summed: length, crc: 0 };
    this.#states.set(index, state);
    return state;
  }

  #cover(index: number, within: number, part: Uint8Array): void {
    const state = this.#states.get(index) ?? this.#reopen(index);
    state.covered += part.byteLength;
    this.#doneBytes += part.byteLength;
    if (state.summed === within) {
      state.crc = crc32(part, state.crc);
      state.summed += part.byteLength;
    }
    if (state.covered === this.#lengthOf(index)) {
      this.#complete(index, state);
    } else if (index === this.#nextAtFrontier) {
      const reached = index * this.#chunkBytes + state.summed;
      if (reached - this.#frontier.position >= FRONTIER_STEP_BYTES) {
        this.#frontier.advance(reached);
      }
    }
  }

  #complete(index: number, state: ChunkState): void {
    const start = index * this.#chunkBytes;
    const length = this.#lengthOf(index);
    const crc =
      state.summed === length
        ? state.crc
        : (crcOfRange(this.#content, { start, end: start + length }) ?? 0);
    this.#states.delete(index);
    this.#done.add(index);
    this.#journal.record(index, crc);
    this.#moveFrontier();
  }

  #moveFrontier(): void {
    while (this.#done.has(this.#nextAtFrontier)) {
      this.#nextAtFrontier += 1;
    }
    this.#frontier.advance(Math.min(this.#sizeBytes, this.#nextAtFrontier * this.#chunkBytes));
  }

  #lengthOf(index: number): number {
    return Math.min(this.#chunkBytes, this.#sizeBytes - index * this.#chunkBytes);
  }
}
