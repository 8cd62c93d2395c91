/**
 * How far a growing file is complete from its start, and a reader that follows right behind: digest and unpacker
 * work while the rest is still on its way, from the page cache.
 */
import { DownloadError } from "../platform/errors.ts";

/** Big enough to be cheap, small enough that the event loop answers in between. */
const FOLLOW_BLOCK_BYTES = 256 * 1024;

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

/** Bytes that are read by their position, wherever they lie. */
export interface Readable {
  /** Fills `into`; fewer bytes only at the end. */
  read(into: Uint8Array, position: number): number;
}

/**
 * The blocks from the start, as far as they are complete, until the frontier ends. `blockAt` gives the next one of what is
 * complete between two positions: at least one byte.
 */
export async function* followBy(
  frontier: Frontier,
  blockAt: (start: number, end: number) => Uint8Array,
): AsyncGenerator<Uint8Array> {
  for (let position = 0; await frontier.beyond(position); ) {
    const block = blockAt(position, frontier.position);
    position += block.byteLength;
    yield block;
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
}

/** The bytes of `source` from its start, in blocks, as far as they are complete, until the frontier ends. */
export function follow(source: Readable, frontier: Frontier): AsyncGenerator<Uint8Array> {
  return followBy(frontier, (start, end) => readBlock(source, start, end));
}

/**
 * A block of what lies between two positions, in a fresh buffer: a parser may keep a slice of it.
 * @throws DownloadError IO_ERROR when bytes that were complete have gone
 */
export function readBlock(source: Readable, start: number, end: number): Uint8Array {
  const block = Buffer.allocUnsafe(Math.min(FOLLOW_BLOCK_BYTES, end - start));
  const read = source.read(block, start);
  if (read === 0) {
    // Else whoever follows would wait for them for ever.
    throw new DownloadError("IO_ERROR", `A file got shorter than ${end} bytes while it was read`);
  }
  return block.subarray(0, read);
}
