import { expect, test } from "bun:test";
import { closeSync, openSync, writeSync } from "node:fs";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { readFully } from "../../src/platform/files.ts";
import { ChunkLedger } from "../../src/weights/chunks.ts";
import { Frontier } from "../../src/weights/frontier.ts";
import { tempDir } from "../support/temp-dir.ts";

interface Made {
  readonly ledger: ChunkLedger;
  readonly frontier: Frontier;
  readonly recorded: Map<number, number>;
}

function ledgerOver(fd: number, sizeBytes: number, chunkBytes: number): Made {
  const frontier = new Frontier();
  const recorded = new Map<number, number>();
  const journal = {
    record: (index: number, crc: number) => void recorded.set(index, crc),
    revoke: (index: number) => void recorded.delete(index),
  };
  const done = new Set<number>();
  const content = { read: (into: Uint8Array, at: number) => readFully(fd, into, at) };
  return {
    frontier,
    recorded,
    ledger: new ChunkLedger({ sizeBytes, chunkBytes, content, journal, frontier, done }),
  };
}

test("whatever the order of the writes, every chunk is recorded once with the CRC of its bytes", () => {
  using dir = tempDir();
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 1, maxLength: 400 }),
      fc.integer({ min: 1, max: 64 }),
      fc.array(fc.nat(400), { maxLength: 12 }),
      fc.infiniteStream(fc.nat(1000)),
      (bytes, chunkBytes, cuts, order) => {
        const fd = openSync(dir.join("data"), "w+");
        const { ledger, frontier, recorded } = ledgerOver(fd, bytes.length, chunkBytes);
        const borders = [
          ...new Set([0, ...cuts.filter((cut) => cut < bytes.length), bytes.length]),
        ].toSorted((one, other) => one - other);
        const pieces = borders.slice(0, -1).map((start, index) => ({
          start,
          end: borders[index + 1] ?? bytes.length,
          key: order.next().value,
        }));
        for (const { start, end } of pieces.toSorted((one, other) => one.key - other.key)) {
          writeSync(fd, bytes, start, end - start, start);
          ledger.wrote(start, bytes.subarray(start, end));
        }
        closeSync(fd);
        expect(ledger.isComplete).toBe(true);
        expect(frontier.position).toBe(bytes.length);
        for (let index = 0; index * chunkBytes < bytes.length; index += 1) {
          const part = bytes.subarray(index * chunkBytes, (index + 1) * chunkBytes);
          expect(recorded.get(index)).toBe(crc32(part));
        }
        expect(recorded.size).toBe(Math.ceil(bytes.length / chunkBytes));
      },
    ),
    { numRuns: 60 },
  );
});

test("revoked bytes are no longer there, and followers that read them are told", () => {
  using dir = tempDir({ data: Buffer.alloc(40, 1) });
  const fd = openSync(dir.join("data"), "r+");
  const { ledger, frontier, recorded } = ledgerOver(fd, 40, 10);
  ledger.wrote(0, Buffer.alloc(25, 1));
  expect([...recorded.keys()]).toEqual([0, 1]);
  ledger.revoke(15, 25);
  expect([...recorded.keys()]).toEqual([0]);
  expect(ledger.coveredBytes).toBe(15);
  expect(frontier.isTainted).toBe(true);
  const right = Buffer.alloc(25, 2);
  writeSync(fd, right, 0, 25, 15);
  ledger.wrote(15, right);
  expect(ledger.isComplete).toBe(true);
  expect(recorded.get(1)).toBe(crc32(Buffer.concat([Buffer.alloc(5, 1), Buffer.alloc(5, 2)])));
  closeSync(fd);
});
