/** Archives that are honest, cut, hostile (downloader.md D, 51–57). */
import { describe, expect, test } from "bun:test";
import { lstatSync, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import type { UnpackedFile, UnpackOptions } from "../../src/platform/archive.ts";
import { safeEntryPath, sniffArchive, unpackArchive } from "../../src/platform/archive.ts";
import { AppError } from "../../src/platform/errors.ts";
import type { TarEntry } from "../support/tar.ts";
import { paxEntry, TAR_END, tar, tarEntry } from "../support/tar.ts";
import { tempDir } from "../support/temp-dir.ts";

interface Outcome {
  readonly files: Readonly<Record<string, string>>;
  readonly code: string | undefined;
  readonly listed: readonly UnpackedFile[];
}

/** Unpacks bytes into a fresh folder; also proves that nothing lies beside it. */
async function unpack(bytes: Uint8Array, options: UnpackOptions = {}): Promise<Outcome> {
  using dir = tempDir({ archive: bytes });
  const root = dir.join("root");
  mkdirSync(root);
  let code: string | undefined;
  let listed: readonly UnpackedFile[] = [];
  try {
    listed = await unpackArchive(dir.join("archive"), root, options);
  } catch (error) {
    if (!(error instanceof AppError)) {
      throw error;
    }
    code = error.code;
  }
  expect(readdirSync(dir.path).toSorted()).toEqual(["archive", "root"]);
  const files: Record<string, string> = {};
  for (const entry of readdirSync(root, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    expect(lstatSync(path).isSymbolicLink()).toBe(false);
    if (entry.isFile()) {
      files[path.slice(root.length + 1)] = readFileSync(path, "latin1");
    }
  }
  return { files, code, listed };
}

const HONEST: TarEntry[] = [
  { name: "loras/", type: "5" },
  { name: "loras/a.bin", body: "alpha" },
  { name: "./loras/sub/b.bin", body: "beta" },
];

describe("honest archives", () => {
  const files = { "loras/a.bin": "alpha", "loras/sub/b.bin": "beta" };

  test("a tar is unpacked with its tree, sizes and digests", async () => {
    const outcome = await unpack(tar(HONEST), { hash: true });
    expect(outcome.files).toEqual(files);
    expect(outcome.listed.map(({ path, sizeBytes }) => [path, sizeBytes])).toEqual([
      ["loras/a.bin", 5],
      ["loras/sub/b.bin", 4],
    ]);
    expect(outcome.listed[0]?.sha256).toBe(
      new Bun.CryptoHasher("sha256").update("alpha").digest("hex"),
    );
  });

  test("gzip and zstd around a tar are recognised by their bytes, whatever the name", async () => {
    expect((await unpack(gzipSync(tar(HONEST)))).files).toEqual(files);
    expect((await unpack(zstdCompressSync(tar(HONEST)))).files).toEqual(files);
  });

  test("D56: several gzip members in a row are one archive", async () => {
    const bytes = tar(HONEST);
    const joined = Buffer.concat([gzipSync(bytes.subarray(0, 700)), gzipSync(bytes.subarray(700))]);
    expect((await unpack(joined)).files).toEqual(files);
  });

  test("D53: long names of PAX are read", async () => {
    const long = `loras/${"n".repeat(180)}.bin`;
    const outcome = await unpack(tar([paxEntry({ path: long }), { name: "short", body: "x" }]));
    expect(outcome.files).toEqual({ [long]: "x" });
  });

  test("D56: a tar whose first name begins with BZ is a tar", async () => {
    expect((await unpack(tar([{ name: "BZh9.bin", body: "x" }]))).files).toEqual({
      "BZh9.bin": "x",
    });
  });

  test("D54: links to files inside become files", async () => {
    const outcome = await unpack(
      tar([
        { name: "blobs/1", body: "weights" },
        { name: "snapshots/main/model.bin", type: "2", link: "../../blobs/1" },
        { name: "copy.bin", type: "1", link: "blobs/1" },
        { name: "chain.bin", type: "2", link: "snapshots/main/model.bin" },
        { name: "all", type: "2", link: "snapshots" },
      ]),
    );
    expect(outcome.files).toEqual({
      "blobs/1": "weights",
      "snapshots/main/model.bin": "weights",
      "copy.bin": "weights",
      "chain.bin": "weights",
      "all/main/model.bin": "weights",
    });
  });

  test("D55: the mode of a member is not taken over", async () => {
    using dir = tempDir({ archive: tar([{ name: "x", body: "x", mode: 0o4777 }]) });
    mkdirSync(dir.join("root"));
    await unpackArchive(dir.join("archive"), dir.join("root"));
    expect(statSync(dir.join("root", "x")).mode & 0o7133).toBe(0);
  });
});

describe("archives that were cut", () => {
  const whole = tar(HONEST);
  for (const [where, bytes] of [
    ["in a member", tar([{ name: "x", body: "y".repeat(5000) }]).subarray(0, 3000)],
    ["in a header", whole.subarray(0, 700)],
    ["exactly between two members", tar([HONEST[1]!], false)],
    ["before the end mark", tar(HONEST, false)],
    ["in the end mark", whole.subarray(0, whole.length - 512)],
    ["in the middle of a gzip stream", gzipSync(whole).subarray(0, 60)],
  ] as const) {
    test(`D51: a tar cut ${where} is refused`, async () => {
      expect((await unpack(bytes)).code).toBe("ARCHIVE_TRUNCATED");
    });
  }

  test("D51: a file that ends in zeros does not pass for the end mark", async () => {
    const zeros = tar([{ name: "zeros", body: Buffer.alloc(4096) }], false);
    expect((await unpack(zeros)).code).toBe("ARCHIVE_TRUNCATED");
  });

  test("D51: rubbish after the end mark is refused", async () => {
    expect((await unpack(Buffer.concat([whole, Buffer.alloc(600, 7)]))).code).toBe(
      "ARCHIVE_TRUNCATED",
    );
  });

  test("D52: a wrong checksum in the middle is refused", async () => {
    const bytes = tar([
      HONEST[1]!,
      { name: "b", body: "b", broken: true },
      { name: "c", body: "c" },
    ]);
    expect((await unpack(bytes)).code).toBe("ARCHIVE_TRUNCATED");
  });

  test("D57: an archive without a file is refused", async () => {
    expect((await unpack(tar([{ name: "only/", type: "5" }]))).code).toBe("ARCHIVE_TRUNCATED");
    expect((await unpack(gzipSync(TAR_END))).code).toBe("ARCHIVE_TRUNCATED");
  });

  test("D57: a page or nothing is no archive", async () => {
    expect((await unpack(Buffer.from("<html>".repeat(200)))).code).toBe("FORMAT_INVALID");
    expect((await unpack(Buffer.alloc(0))).code).toBe("FORMAT_INVALID");
    expect((await unpack(TAR_END)).code).toBe("FORMAT_INVALID");
  });
});

describe("archives that want out", () => {
  const Hostile: readonly (readonly [string, readonly (TarEntry | Buffer)[]])[] = [
    ["a parent folder", [{ name: "../evil", body: "x" }]],
    ["a parent folder in the middle", [{ name: "a/../../evil", body: "x" }]],
    ["a folder above", [{ name: "../evil/", type: "5" }]],
    ["an absolute name", [{ name: "/tmp/evil", body: "x" }]],
    ["a sibling with the root as prefix", [{ name: "../root-evil/x", body: "x" }]],
    ["a drive letter", [{ name: "C:\\evil", body: "x" }]],
    ["backslashes", [{ name: "..\\evil", body: "x" }]],
    ["a NUL in a PAX name", [paxEntry({ path: "a\u0001b" }), { name: "x", body: "x" }]],
    [
      "the same name twice",
      [
        { name: "a", body: "1" },
        { name: "a", body: "2" },
      ],
    ],
    [
      "a file used as a folder",
      [
        { name: "a", body: "1" },
        { name: "a/b", body: "2" },
      ],
    ],
    [
      "a link used as a folder",
      [
        { name: "l", type: "2", link: "/tmp" },
        { name: "l/evil", body: "x" },
      ],
    ],
    [
      "an absolute symbolic link",
      [
        { name: "f", body: "f" },
        { name: "l", type: "2", link: "/etc/passwd" },
      ],
    ],
    [
      "a symbolic link outside",
      [
        { name: "f", body: "f" },
        { name: "d/l", type: "2", link: "../../x" },
      ],
    ],
    [
      "a hard link outside",
      [
        { name: "f", body: "f" },
        { name: "l", type: "1", link: "../../etc/passwd" },
      ],
    ],
    [
      "a link to nothing",
      [
        { name: "f", body: "f" },
        { name: "l", type: "2", link: "gone" },
      ],
    ],
    [
      "links in a circle",
      [
        { name: "f", body: "f" },
        { name: "a", type: "2", link: "b" },
        { name: "b", type: "2", link: "a" },
      ],
    ],
    [
      "a link to the root",
      [
        { name: "f", body: "f" },
        { name: "d/l", type: "2", link: ".." },
      ],
    ],
    [
      "a device",
      [
        { name: "f", body: "f" },
        { name: "dev", type: "3" },
      ],
    ],
    [
      "a fifo",
      [
        { name: "f", body: "f" },
        { name: "fifo", type: "6" },
      ],
    ],
    ["a sparse file of PAX", [paxEntry({ "GNU.sparse.major": "1" }), { name: "s", body: "x" }]],
    [
      "a path 200 folders deep",
      [paxEntry({ path: `${"d/".repeat(200)}f` }), { name: "x", body: "x" }],
    ],
  ];
  for (const [what, entries] of Hostile) {
    test(`D53–55: ${what} refuses the archive`, async () => {
      expect((await unpack(tar(entries))).code).toBe("ARCHIVE_UNSAFE");
    });
  }

  test("D55: an old GNU sparse file is refused", async () => {
    expect((await unpack(tar([{ name: "s", type: "S", body: "x" }]))).code).toMatch(/^ARCHIVE_/);
  });

  test("D55: sizes that are negative or beyond all disks are refused", async () => {
    const negative = Buffer.alloc(12, 0xff);
    const huge = Buffer.concat([Buffer.from([0x80, 0, 0, 0, 0x7f]), Buffer.alloc(7, 0xff)]);
    expect((await unpack(tar([{ name: "n", body: "x", sizeField: negative }]))).code).toMatch(
      /^ARCHIVE_/,
    );
    expect((await unpack(tar([{ name: "h", body: "x", sizeField: huge }]))).code).toMatch(
      /^ARCHIVE_/,
    );
  });

  test("D56: a bomb ends at the limit, not at the end of the disk", async () => {
    const bomb = gzipSync(tar([{ name: "zeros", body: Buffer.alloc(20_000_000) }]));
    expect(bomb.length).toBeLessThan(50_000);
    const outcome = await unpack(bomb, { limits: { maxTotalBytes: 1_000_000 } });
    expect(outcome.code).toBe("ARCHIVE_UNSAFE");
  });

  test("an archive that the disk has no room for is told as that, not as a bad archive", async () => {
    const archive = tar([{ name: "big", body: Buffer.alloc(20_000) }]);
    const outcome = await unpack(archive, { limits: { spaceBytes: 10_000 } });
    expect(outcome.code).toBe("NO_SPACE");
  });

  test("D56: too many entries are refused", async () => {
    const many = Array.from({ length: 30 }, (_, index) => ({ name: `f${index}`, body: "x" }));
    expect((await unpack(tar(many), { limits: { maxEntries: 20 } })).code).toBe("ARCHIVE_UNSAFE");
  });

  test("whatever a member is called, it lands inside of the root or is refused", () => {
    const part = fc.oneof(
      fc.constantFrom("..", ".", "", "a", "C:", "\0", "\\", "..\\..", "~", "\u202e"),
      fc.string({ maxLength: 8 }),
    );
    fc.assert(
      fc.property(
        fc.array(part, { maxLength: 8 }),
        fc.constantFrom("/", "\\", "//"),
        (parts, separator) => {
          const name = parts.join(separator);
          let path: string;
          try {
            path = safeEntryPath(name);
          } catch (error) {
            expect(error).toBeInstanceOf(AppError);
            return;
          }
          const root = "/srv/root";
          expect(resolve(root, path) === root || resolve(root, path).startsWith(`${root}/`)).toBe(
            true,
          );
          expect(path.split("/")).not.toContain("..");
        },
      ),
    );
  });

  test("arbitrary archives never write outside of their root", async () => {
    const name = fc.oneof(
      fc.constantFrom("../x", "/abs", "a/../../x", "l/x", "l", "d/", "d/f", "."),
      fc.string({ minLength: 1, maxLength: 12 }),
    );
    const entry = fc.record({
      name,
      type: fc.constantFrom("0", "1", "2", "5"),
      link: fc.constantFrom("/etc/passwd", "..", "../..", "d", "d/f", "l", "gone"),
      body: fc.constant(""),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(entry, { maxLength: 6 }), async (entries) => {
        // `unpack` itself checks that nothing appeared beside the root and that no link is in it.
        await unpack(tar(entries));
      }),
      { numRuns: 60 },
    );
  });
});

describe("zip", () => {
  /** A zip with stored members, written by hand. */
  function zip(
    members: readonly { name: string; body: string; mode?: number; crc?: number }[],
  ): Buffer {
    const locals: Buffer[] = [];
    const central: Buffer[] = [];
    let offset = 0;
    for (const { name, body, mode, crc } of members) {
      const bytes = Buffer.from(body);
      const sum = crc ?? Bun.hash.crc32(bytes);
      const local = Buffer.alloc(30);
      local.writeUInt32LE(0x04034b50, 0);
      local.writeUInt32LE(sum, 14);
      local.writeUInt32LE(bytes.length, 18);
      local.writeUInt32LE(bytes.length, 22);
      local.writeUInt16LE(Buffer.byteLength(name), 26);
      const record = Buffer.alloc(46);
      record.writeUInt32LE(0x02014b50, 0);
      record.writeUInt8(mode === undefined ? 0 : 3, 5);
      record.writeUInt32LE(sum, 16);
      record.writeUInt32LE(bytes.length, 20);
      record.writeUInt32LE(bytes.length, 24);
      record.writeUInt16LE(Buffer.byteLength(name), 28);
      record.writeUInt32LE(((mode ?? 0) << 16) >>> 0, 38);
      record.writeUInt32LE(offset, 42);
      locals.push(local, Buffer.from(name), bytes);
      central.push(record, Buffer.from(name));
      offset += 30 + Buffer.byteLength(name) + bytes.length;
    }
    const directory = Buffer.concat(central);
    const end = Buffer.alloc(22);
    end.writeUInt32LE(0x06054b50, 0);
    end.writeUInt16LE(members.length, 10);
    end.writeUInt32LE(directory.length, 12);
    end.writeUInt32LE(offset, 16);
    return Buffer.concat([...locals, directory, end]);
  }

  test("is unpacked by its table of contents", async () => {
    const outcome = await unpack(
      zip([
        { name: "loras/a.bin", body: "alpha" },
        { name: "e/", body: "" },
      ]),
    );
    expect(outcome.files).toEqual({ "loras/a.bin": "alpha" });
  });

  test("names that climb, wrong checksums and cuts are refused", async () => {
    expect((await unpack(zip([{ name: "../evil", body: "x" }]))).code).toBe("ARCHIVE_UNSAFE");
    expect((await unpack(zip([{ name: "..\\evil", body: "x" }]))).code).toBe("ARCHIVE_UNSAFE");
    expect((await unpack(zip([{ name: "a", body: "x", crc: 1 }]))).code).toBe("ARCHIVE_TRUNCATED");
    const bytes = zip([{ name: "a", body: "x".repeat(100) }]);
    expect((await unpack(bytes.subarray(0, bytes.length - 30))).code).toBe("ARCHIVE_TRUNCATED");
  });

  test("a link that stays inside becomes a file, one that leaves refuses the archive", async () => {
    const link = 0o120777;
    const inside = [
      { name: "a", body: "alpha", mode: 0o100644 },
      { name: "b", body: "a", mode: link },
    ];
    expect((await unpack(zip(inside))).files).toEqual({ a: "alpha", b: "alpha" });
    const outside = [inside[0]!, { name: "b", body: "../../etc/passwd", mode: link }];
    expect((await unpack(zip(outside))).code).toBe("ARCHIVE_UNSAFE");
  });
});

test("a called-off unpacking stops with nothing but its own folder touched", async () => {
  using dir = tempDir({ archive: tar([{ name: "a", body: "x".repeat(1_000_000) }]) });
  mkdirSync(dir.join("root"));
  const signal = AbortSignal.abort();
  const attempt = unpackArchive(dir.join("archive"), dir.join("root"), { signal });
  expect(attempt).rejects.toThrow();
  await attempt.catch(() => undefined);
});

test("kinds are told by their bytes", () => {
  expect(sniffArchive(tarEntry({ name: "a", body: "b" }))).toBe("tar");
  expect(sniffArchive(gzipSync("x"))).toBe("gzip");
  expect(sniffArchive(Buffer.from("PK\u0003\u0004abc"))).toBe("zip");
  expect(sniffArchive(Buffer.from("hello"))).toBeUndefined();
});
