/**
 * Who fetches which bytes. Every byte of [0, size) belongs to exactly one of: done, pending, or one active segment;
 * taking, stealing and giving back move bytes between them and never copy or lose one (property-tested).
 */

export interface Span {
  readonly start: number;
  /** Exclusive. */
  readonly end: number;
}

/** Bytes that one connection is fetching, in order. `end` shrinks when another connection steals the rest. */
export interface Segment {
  readonly start: number;
  /** The next byte to be written. */
  next: number;
  end: number;
}

export class SegmentQueue {
  /** Sorted, disjoint, never empty spans. */
  #pending: Span[];
  readonly #active = new Set<Segment>();

  constructor(pending: readonly Span[]) {
    this.#pending = pending
      .filter((span) => span.end > span.start)
      .toSorted((one, other) => one.start - other.start);
  }

  get pendingBytes(): number {
    return this.#pending.reduce((sum, span) => sum + span.end - span.start, 0);
  }

  get active(): ReadonlySet<Segment> {
    return this.#active;
  }

  /** True when nothing is left to fetch and nobody is fetching. */
  get isFinished(): boolean {
    return this.#pending.length === 0 && this.#active.size === 0;
  }

  /**
   * The lowest pending bytes, at most `maxBytes` of them, ending on a multiple of `align` where that is possible:
   * lowest first keeps the digest and the unpacker close behind.
   */
  take(maxBytes: number, align = 1): Segment | undefined {
    const first = this.#pending.shift();
    if (first === undefined) {
      return undefined;
    }
    let end = Math.min(first.end, first.start + maxBytes);
    const aligned = Math.floor(end / align) * align;
    if (end < first.end && aligned > first.start) {
      end = aligned;
    }
    if (end < first.end) {
      this.#pending.unshift({ start: end, end: first.end });
    }
    return this.#activate(first.start, end);
  }

  /**
   * Takes the tail of somebody's segment, `share` of what it has left. The victim stops at its new end by itself.
   * undefined when that would be under `minBytes` for either side.
   */
  steal(victim: Segment, share: number, minBytes: number): Segment | undefined {
    const left = victim.end - victim.next;
    const stolen = Math.floor(left * share);
    if (!this.#active.has(victim) || stolen < minBytes || left - stolen < 1) {
      return undefined;
    }
    const { end } = victim;
    victim.end = end - stolen;
    return this.#activate(victim.end, end);
  }

  /** Ends a segment; what it did not get becomes pending again. */
  release(segment: Segment): void {
    if (!this.#active.delete(segment)) {
      return;
    }
    this.#giveBack(segment.next, segment.end);
  }

  /** Ends a segment and distrusts everything it brought. */
  revoke(segment: Segment): void {
    if (!this.#active.delete(segment)) {
      return;
    }
    this.#giveBack(segment.start, segment.end);
  }

  #activate(start: number, end: number): Segment {
    const segment: Segment = { start, next: start, end };
    this.#active.add(segment);
    return segment;
  }

  #giveBack(start: number, end: number): void {
    if (start >= end) {
      return;
    }
    const at = this.#pending.findIndex((span) => span.start > start);
    this.#pending.splice(at === -1 ? this.#pending.length : at, 0, { start, end });
    this.#pending = merged(this.#pending);
  }
}

/** Neighbours that touch made one. */
export function merged(spans: readonly Span[]): Span[] {
  const result: Span[] = [];
  for (const span of spans) {
    const last = result.at(-1);
    if (last !== undefined && last.end === span.start) {
      result[result.length - 1] = { start: last.start, end: span.end };
    } else {
      result.push(span);
    }
  }
  return result;
}

/** What is missing of [0, size), when these chunks are there. */
export function gaps(sizeBytes: number, chunkBytes: number, done: ReadonlySet<number>): Span[] {
  const missing: Span[] = [];
  for (let index = 0; index * chunkBytes < sizeBytes; index += 1) {
    if (!done.has(index)) {
      missing.push({
        start: index * chunkBytes,
        end: Math.min(sizeBytes, (index + 1) * chunkBytes),
      });
    }
  }
  return merged(missing);
}
