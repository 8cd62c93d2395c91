/**
 * How far a growing file is complete from its start, and a reader that follows right behind: digest and unpacker
 * work while the rest is still on its way, from the page cache.
 */
import { closeSync, openSync } from "node:fs";
import { readFully } from "../platform/files.ts";

/** Big enough to be cheap, small enough that the event loop answers in between. */
export const FOLLOW_BLOCK_BYTES = 256 * 1024;

export class Frontier {
  #position = 0;
  #ended = false;
  #tainted = false;
  #error: unknown;
  #waiters: (() => void)[] = [];

  /** Of a file that is complete. */
  static of(sizeBytes: number): Frontier {
    const frontier = new Frontier();
    frontier.advance(sizeBytes);
    frontier.end();
    return frontier;
  }

  get position(): number {
    return this.#position;
  }

  /** Everything before `position` is written now. */
  advance(position: number): void {
    if (position > this.#position) {
      this.#position = position;
      this.#wake();
    }
  }

  /** Bytes from here on turned out to be wrong: whoever has read them already must start again. */
  taint(from: number): void {
    this.#tainted ||= from < this.#position;
  }

  get isTainted(): boolean {
    return this.#tainted;
  }

  /** Nothing more comes. */
  end(): void {
    this.#ended = true;
    this.#wake();
  }

  /** Nothing more comes, and followers fail with this. */
  fail(error: unknown): void {
    this.#error ??= error;
    this.end();
  }

  /** Resolves to false at the end; throws what {@link fail} was given. */
  async beyond(position: number): Promise<boolean> {
    while (this.#position <= position && !this.#ended) {
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
    if (this.#error !== undefined) {
      throw this.#error;
    }
    return this.#position > position;
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) {
      wake();
    }
  }
}

/** The bytes of `path` from its start, as far as they are complete, until the frontier ends. */
export async function* followFile(path: string, frontier: Frontier): AsyncGenerator<Uint8Array> {
  const fd = openSync(path, "r");
  try {
    for (let position = 0; await frontier.beyond(position); ) {
      const length = Math.min(FOLLOW_BLOCK_BYTES, frontier.position - position);
      // Fresh each time: a parser may keep a slice of it.
      const block = Buffer.allocUnsafe(length);
      const read = readFully(fd, block, position);
      position += read;
      yield block.subarray(0, read);
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  } finally {
    closeSync(fd);
  }
}
