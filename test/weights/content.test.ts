/** Where the bytes of a growing tar lie: in `data`, or at once in the files of its large members. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import type { ArchiveMember } from "../../src/platform/archive.ts";
import { allocatedBytes, readFully } from "../../src/platform/files.ts";
import { PartialContent, treePathIn, WholeFile } from "../../src/weights/content.ts";
import { Frontier, follow, followBy, readBlock } from "../../src/weights/frontier.ts";
import type { OwnershipRules, PartialFolder } from "../../src/weights/journal.ts";
import { openPartial, partialState } from "../../src/weights/journal.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";

let dir: TempDir;

beforeEach(() => {
  dir = tempDir();
});

afterEach(() => {
  dir[Symbol.dispose]();
});

function bytesOf(length: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, at) => (at * 7 + (at >> 8)) % 251));
}

/** Members one after the other, each with a header before it. */
function membersOf(sizes: readonly number[], headerBytes: number): ArchiveMember[] {
  let at = 0;
  return sizes.map((sizeBytes, index) => {
    const member = { path: `m${index}/w`, offset: at + headerBytes, sizeBytes };
    at += headerBytes + sizeBytes;
    return member;
  });
}

test("whatever comes in whichever order, and whenever a member is adopted, every byte is found again, and whole chunks in place", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 4 }),
      fc.integer({ min: 1, max: 24 }),
      fc.integer({ min: 1, max: 40 }),
      fc.infiniteStream(fc.nat(1000)),
      async (sizes, chunkBytes, pieceBytes, random) => {
        using place = tempDir();
        const members = membersOf(sizes, 5);
        const last = members.at(-1);
        const bytes = bytesOf((last?.offset ?? 0) + (last?.sizeBytes ?? 0) + 7);
        const fd = openSync(place.join("data"), "w+");
        const sizeBytes = bytes.length;
        using content = new PartialContent({ folderPath: place.path, fd, sizeBytes, chunkBytes });
        const steps: { key: number; run: () => Promise<void> | void }[] = members.map((member) => ({
          key: random.next().value,
          run: () => void content.adopt(member),
        }));
        for (let start = 0; start < bytes.length; start += pieceBytes) {
          const part = bytes.subarray(start, start + pieceBytes);
          steps.push({ key: random.next().value, run: () => content.write(part, start) });
        }
        for (const { run } of steps.toSorted((one, other) => one.key - other.key)) {
          await run();
        }
        const read = Buffer.alloc(bytes.length);
        expect(content.read(read, 0)).toBe(bytes.length);
        expect(read.equals(bytes)).toBe(true);
        for (let at = 0; at < bytes.length; ) {
          const stretch = content.stretchAt(at, bytes.length);
          const found = Buffer.alloc(stretch.length);
          expect(readFully(stretch.fd, found, stretch.offset)).toBe(stretch.length);
          expect(found.equals(bytes.subarray(at, at + stretch.length))).toBe(true);
          expect(stretch.inPlace).toBe(stretch.fd !== fd);
          if (stretch.inPlace) {
            const owner = content.members.find((member) => stretch.fd === member.fd);
            expect(owner?.offset).toBeLessThanOrEqual(at);
            expect((owner?.offset ?? 0) + (owner?.sizeBytes ?? 0)).toBeGreaterThanOrEqual(
              at + stretch.length,
            );
          }
          at += stretch.length;
        }
      },
    ),
    { numRuns: 60 },
  );
});

test("what is in place is passed over, everything else is read, and together it has the tar's length", async () => {
  const fd = openSync(dir.join("data"), "w+");
  const bytes = bytesOf(1000);
  using content = new PartialContent({
    folderPath: dir.path,
    fd,
    sizeBytes: bytes.length,
    chunkBytes: 64,
  });
  await content.write(bytes.subarray(0, 100), 0);
  expect(content.adopt({ path: "w", offset: 10, sizeBytes: 900 })).toBeDefined();
  await content.write(bytes.subarray(100), 100);
  const standIn = Buffer.alloc(100);
  const blockAt = (start: number, end: number): Uint8Array => {
    const { inPlace, length } = content.stretchAt(start, end);
    return inPlace ? standIn.subarray(0, length) : readBlock(content, start, start + length);
  };
  let at = 0;
  let passed = 0;
  for await (const block of followBy(Frontier.of(bytes.length), blockAt)) {
    if (block.buffer === standIn.buffer) {
      passed += block.length;
    } else {
      expect(bytes.subarray(at, at + block.length).equals(block)).toBe(true);
    }
    at += block.length;
  }
  expect(at).toBe(bytes.length);
  // Chunks 2 to 13: the first two had begun, and the last ones are not wholly the member's.
  expect(passed).toBe(12 * 64);
});

test("a file that gets shorter while it is read ends the reading", async () => {
  writeFileSync(dir.join("short"), bytesOf(1000));
  const read = async (): Promise<void> => {
    using short = new WholeFile(dir.join("short"));
    for await (const _ of follow(short, Frontier.of(2000))) {
      // All of it.
    }
  };
  await expect(read()).rejects.toMatchObject({ code: "IO_ERROR" });
});

test("space set aside for a member's chunks in `data` is given back when they go elsewhere", () => {
  const chunkBytes = 64 * 1024;
  const sizeBytes = 64 * chunkBytes;
  const fd = openSync(dir.join("data"), "w+");
  using content = new PartialContent({ folderPath: dir.path, fd, sizeBytes, chunkBytes });
  const canReserve = content.reserve();
  content.adopt({ path: "w", offset: 512, sizeBytes: sizeBytes - 2048 });
  if (canReserve) {
    expect(allocatedBytes(dir.join("data"))).toBeLessThanOrEqual(3 * chunkBytes);
    expect(allocatedBytes(join(treePathIn(dir.path), "w"))).toBeGreaterThanOrEqual(
      sizeBytes - 2048,
    );
    // Its length stays: what is read there must not end early.
    expect(fstatSync(fd).size).toBe(sizeBytes);
  }
});

test("a member that is small, that has come already or that does not fit into the tar is not adopted", async () => {
  const fd = openSync(dir.join("data"), "w+");
  using content = new PartialContent({ folderPath: dir.path, fd, sizeBytes: 1000, chunkBytes: 64 });
  expect(content.adopt({ path: "small", offset: 10, sizeBytes: 250 })).toBeUndefined();
  expect(content.adopt({ path: "long", offset: 500, sizeBytes: 501 })).toBeUndefined();
  await content.write(bytesOf(640), 0);
  expect(content.adopt({ path: "late", offset: 10, sizeBytes: 800 })).toBeUndefined();
  expect(existsSync(treePathIn(dir.path))).toBe(false);
});

describe("after a kill", () => {
  const chunkBytes = 1024;
  const sizeBytes = 20 * chunkBytes;
  const member: ArchiveMember = {
    path: "sub/wéight.bin",
    offset: 512,
    sizeBytes: sizeBytes - 2048,
  };
  const bytes = bytesOf(sizeBytes);
  const identity = {
    sizeBytes,
    etag: '"1"',
    lastModified: null,
    sha256: null,
    url: "https://h/x.tar",
  };
  /** A file system where a lock proves nothing, and an owner counts as gone at once. */
  const lying: OwnershipRules = { tryLock: () => true, isRemote: () => true, silentMs: -1 };

  async function open(rules?: OwnershipRules): Promise<PartialFolder> {
    const opened = await openPartial({
      root: dir.join(".cog-partial"),
      name: "x",
      destination: "/x",
      identity,
      chunkBytes,
      rules,
    });
    if ("busy" in opened) {
      throw new Error("the folder is taken");
    }
    return opened;
  }

  async function writeChunk(folder: PartialFolder, index: number): Promise<void> {
    const part = bytes.subarray(index * chunkBytes, (index + 1) * chunkBytes);
    await folder.content.write(part, index * chunkBytes);
    folder.record(index, crc32(part));
  }

  /** Chunks 0 and 1 came before the member was known, 2 to 9 after; then the end. */
  async function begun(rules?: OwnershipRules): Promise<PartialFolder> {
    const folder = await open(rules);
    for (const index of [0, 1]) {
      await writeChunk(folder, index);
    }
    expect(folder.adopt(member)).toBeNumber();
    for (const index of [2, 3, 4, 5, 6, 7, 8, 9, 19]) {
      await writeChunk(folder, index);
    }
    return folder;
  }

  function memberFile(folder: PartialFolder): string {
    return join(treePathIn(folder.path), member.path);
  }

  function expectRight(folder: PartialFolder, chunks: readonly number[]): void {
    expect([...folder.done.keys()]).toEqual([...chunks]);
    for (const index of chunks) {
      const read = Buffer.alloc(chunkBytes);
      folder.content.read(read, index * chunkBytes);
      expect(read.equals(bytes.subarray(index * chunkBytes, (index + 1) * chunkBytes))).toBe(true);
    }
  }

  const all = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 19];
  const inData = [0, 1, 19];

  test("everything recorded is there again, and the member goes on where it was", async () => {
    (await begun())[Symbol.dispose]();
    expect(partialState("/x", [dir.path])?.doneBytes).toBe(all.length * chunkBytes);
    const next = await open();
    expectRight(next, all);
    expect(next.content.isInPlace(5)).toBe(true);
    expect(next.content.isInPlace(1)).toBe(false);
    expect(next.adopt(member)).toBeNumber();
    await writeChunk(next, 10);
    const there = readFileSync(memberFile(next)).subarray(10 * chunkBytes - member.offset);
    expect(
      there.subarray(0, chunkBytes).equals(bytes.subarray(10 * chunkBytes, 11 * chunkBytes)),
    ).toBe(true);
    next[Symbol.dispose]();
    const last = await open();
    expectRight(last, [...all.slice(0, -1), 10, 19]);
    last.remove();
    expect(readdirSync(dir.join(".cog-partial"))).toEqual([]);
  });

  test("a chunk that is damaged in the member's file is fetched again, and a file that has gone altogether", async () => {
    const folder = await begun();
    folder[Symbol.dispose]();
    const file = memberFile(folder);
    const content = readFileSync(file);
    content.writeUInt8(content.readUInt8(3 * chunkBytes) ^ 1, 3 * chunkBytes);
    writeFileSync(file, content);
    const next = await open();
    expectRight(
      next,
      all.filter((index) => index !== 3),
    );
    next[Symbol.dispose]();
    rmSync(memberFile(next));
    const last = await open();
    expectRight(last, inData);
    // It may be adopted anew.
    expect(last.adopt(member)).toBeNumber();
    last.remove();
  });

  test("D35: a torn line of a member costs its chunks, never truth", async () => {
    const folder = await begun();
    folder[Symbol.dispose]();
    const journal = join(folder.path, "journal");
    writeFileSync(journal, readFileSync(journal, "utf8").replace(/^(m \d+ )(\d)/m, "$19"));
    const next = await open();
    expectRight(next, inData);
    next.remove();
  });

  test("a journal that names a place outside is not followed", async () => {
    const folder = await begun();
    folder[Symbol.dispose]();
    const victim = dir.join("victim");
    writeFileSync(victim, bytes);
    const name = Buffer.from("../../../../victim").toString("base64url");
    const body = `m 512 ${sizeBytes - 2048} ${name}`;
    const check = (crc32(body) & 0xff).toString(16).padStart(2, "0");
    appendFileSync(join(folder.path, "journal"), `${body} ${check}\n`);
    expect(partialState("/x", [dir.path])).toMatchObject({ path: folder.path });
    const next = await open();
    expectRight(next, inData);
    next.remove();
    expect(readFileSync(victim).equals(bytes)).toBe(true);
  });

  test("another member at the same place means another archive", async () => {
    const folder = await begun();
    expect(() => folder.adopt({ ...member, path: "other.bin" })).toThrow(
      expect.objectContaining({ code: "SOURCE_CHANGED" }),
    );
    expect(() => folder.adopt({ ...member, sizeBytes: member.sizeBytes - 1 })).toThrow(
      expect.objectContaining({ code: "SOURCE_CHANGED" }),
    );
    folder.remove();
  });

  test("D43: an owner that slept and wakes up can't reach the member's bytes of whoever took over", async () => {
    const sleeper = await begun(lying);
    const fd = sleeper.content.members[0]?.fd ?? -1;
    const heir = await open(lying);
    expectRight(heir, all);
    expect(existsSync(treePathIn(heir.path))).toBe(false);
    expect(heir.adopt(member)).toBeNumber();
    await writeChunk(heir, 10);
    writeSync(fd, Buffer.alloc(sizeBytes, 9), 0, sizeBytes - 2048, 0);
    expectRight(heir, all);
    const there = readFileSync(memberFile(heir)).subarray(10 * chunkBytes - member.offset);
    expect(
      there.subarray(0, chunkBytes).equals(bytes.subarray(10 * chunkBytes, 11 * chunkBytes)),
    ).toBe(true);
    heir.remove();
    sleeper[Symbol.dispose]();
  });
});
