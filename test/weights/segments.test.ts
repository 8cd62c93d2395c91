import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { Segment } from "../../src/weights/segments.ts";
import { gaps, SegmentQueue } from "../../src/weights/segments.ts";

describe("gaps", () => {
  test("are what the finished chunks leave, neighbours joined", () => {
    expect(gaps(100, 10, new Set([0, 1, 5, 9]))).toEqual([
      { start: 20, end: 50 },
      { start: 60, end: 90 },
    ]);
    expect(gaps(95, 10, new Set())).toEqual([{ start: 0, end: 95 }]);
    expect(gaps(0, 10, new Set())).toEqual([]);
  });

  test("beyond 2^32 are exact", () => {
    const size = 2 ** 32 + 3;
    const chunk = 2 ** 23;
    const done = new Set(Array.from({ length: 512 }, (_, index) => index));
    expect(gaps(size, chunk, done)).toEqual([{ start: 2 ** 32, end: size }]);
  });
});

describe("SegmentQueue", () => {
  test("hands out the lowest bytes first, on chunk borders", () => {
    const queue = new SegmentQueue([{ start: 0, end: 100 }]);
    expect(queue.take(25, 10)).toMatchObject({ start: 0, end: 20 });
    expect(queue.take(30, 10)).toMatchObject({ start: 20, end: 50 });
    expect(queue.take(1000, 10)).toMatchObject({ start: 50, end: 100 });
    expect(queue.take(10, 10)).toBeUndefined();
  });

  test("a thief gets the tail, the victim stops where it begins", () => {
    const queue = new SegmentQueue([{ start: 0, end: 100 }]);
    const victim = queue.take(100)!;
    victim.next = 20;
    expect(queue.steal(victim, 0.5, 10)).toMatchObject({ start: 60, end: 100 });
    expect(victim.end).toBe(60);
    expect(queue.steal(victim, 0.1, 10)).toBeUndefined();
  });

  test("every byte is written exactly once, whatever is taken, stolen, cut and given back", () => {
    const step = fc.record({
      act: fc.constantFrom("take", "write", "steal", "release", "finish"),
      pick: fc.nat(7),
      amount: fc.integer({ min: 1, max: 400 }),
    });
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 3000 }),
        fc.integer({ min: 1, max: 128 }),
        fc.uniqueArray(fc.nat(30)),
        fc.array(step, { maxLength: 120 }),
        (size, chunk, done, steps) => {
          const finished = new Set(done.filter((index) => index * chunk < size));
          const queue = new SegmentQueue(gaps(size, chunk, finished));
          const written = new Uint8Array(size);
          for (const index of finished) {
            written.fill(1, index * chunk, Math.min(size, (index + 1) * chunk));
          }
          const active: Segment[] = [];
          const write = (segment: Segment, bytes: number): void => {
            const end = Math.min(segment.end, segment.next + bytes);
            for (let at = segment.next; at < end; at += 1) {
              written[at] = (written[at] ?? 0) + 1;
            }
            segment.next = end;
          };
          for (const { act, pick, amount } of steps) {
            const segment = active[pick % Math.max(1, active.length)];
            if (act === "take") {
              const taken = queue.take(amount, chunk);
              active.push(...(taken === undefined ? [] : [taken]));
            } else if (segment === undefined) {
              // Nobody is there to act on.
            } else if (act === "write") {
              write(segment, amount);
            } else if (act === "steal") {
              const stolen = queue.steal(segment, amount / 500, 1);
              active.push(...(stolen === undefined ? [] : [stolen]));
            } else {
              if (act === "finish") {
                write(segment, Number.MAX_SAFE_INTEGER);
              }
              queue.release(segment);
              active.splice(active.indexOf(segment), 1);
            }
          }
          for (const segment of active) {
            write(segment, Number.MAX_SAFE_INTEGER);
            queue.release(segment);
          }
          for (let rest = queue.take(97, chunk); rest !== undefined; rest = queue.take(97, chunk)) {
            write(rest, Number.MAX_SAFE_INTEGER);
            queue.release(rest);
          }
          expect(queue.isFinished).toBe(true);
          expect(written.every((count) => count === 1)).toBe(true);
        },
      ),
    );
  });

  test("revoked bytes are fetched again from the segment's start", () => {
    const queue = new SegmentQueue([{ start: 0, end: 100 }]);
    const segment = queue.take(50)!;
    segment.next = 50;
    queue.revoke(segment);
    queue.release(segment);
    expect(queue.pendingBytes).toBe(100);
    expect(queue.take(100)).toMatchObject({ start: 0, end: 100 });
  });
});
