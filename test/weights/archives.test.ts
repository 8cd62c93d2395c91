/** Tars whose large members are written to their own files as they come: cuts, lies and tight disks. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { freeSpace } from "../../src/platform/files.ts";
import { listPartials, partialState } from "../../src/weights/journal.ts";
import type { InstallJob } from "../../src/weights/plan-types.ts";
import { canMount, fillDisk, smallDisk } from "../support/small-disk.ts";
import { tar } from "../support/tar.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import type { Handler } from "../support/weight-server.ts";
import { file, isFetch, WeightServer, when } from "../support/weight-server.ts";
import {
  codeOf,
  job,
  QUICK,
  quickInstaller,
  safetensors,
  sha256,
  sha256File,
} from "../support/weights.ts";

const PATH = "/x.tar";
const CHUNK = 16 * 1024;
const TUNING = { ...QUICK, chunkBytes: CHUNK };

/** Two large members that end and begin within a chunk, small ones between and after them, and links to large ones. */
const FILES: Readonly<Record<string, Buffer>> = {
  "kit/config.json": Buffer.from("{}"),
  "kit/unet/w.safetensors": safetensors(1_500_123),
  "kit/notes.txt": Buffer.from("hello"),
  "kit/vae/w.safetensors": safetensors(700_001),
  "kit/last.safetensors": safetensors(30_000),
};
const BYTES = tar([
  ...Object.entries(FILES).map(([name, body]) => ({ name, body })),
  { name: "kit/same.safetensors", type: "2", link: "vae/w.safetensors" },
  { name: "kit/again.safetensors", type: "1", link: "kit/unet/w.safetensors" },
]);
const EXPECTED: Readonly<Record<string, Buffer | undefined>> = {
  ...FILES,
  "kit/same.safetensors": FILES["kit/vae/w.safetensors"],
  "kit/again.safetensors": FILES["kit/unet/w.safetensors"],
};

let server: WeightServer;
let dir: TempDir;

beforeEach(async () => {
  server = await WeightServer.start();
  server.on(PATH, file(BYTES));
  dir = tempDir();
});

afterEach(() => {
  server[Symbol.dispose]();
  dir[Symbol.dispose]();
});

function wanted(root = dir.path, more: Partial<InstallJob> = {}): InstallJob {
  return job(join(root, "diffusers"), server.url(PATH), { name: "kit", unpack: "tar", ...more });
}

function expectInstalled(root = dir.path): void {
  const found = readdirSync(join(root, "diffusers"), { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).slice(join(root, "diffusers/").length));
  expect(found.toSorted()).toEqual(Object.keys(EXPECTED).toSorted());
  for (const [name, body] of Object.entries(EXPECTED)) {
    expect(sha256File(join(root, "diffusers", name))).toBe(sha256(body ?? Buffer.alloc(0)));
  }
  expect(listPartials([root])).toEqual([]);
}

/** Serves no range that reaches beyond this byte. */
function cutAt(position: number): Handler {
  return when(
    (request) => isFetch(request) && (request.range?.end ?? BYTES.length) >= position,
    (_request, reply) => reply.send(500),
    file(BYTES),
  );
}

function journalText(root = dir.path): string {
  const [state] = listPartials([root]);
  return state === undefined ? "" : readFileSync(join(state.path, "journal"), "utf8");
}

test("members large and small, and links to them, arrive as they are; the disk holds little more than one copy", async () => {
  server.on(PATH, file(BYTES, { bytesPerSecond: 1_000_000 }));
  await using installer = quickInstaller(dir.path, {
    tuning: { ...TUNING, connectionsPerFile: 4 },
  });
  let most = 0;
  let journal = "";
  await installer.install([wanted()], {
    onProgress: () => {
      most = Math.max(most, listPartials([dir.path])[0]?.allocatedBytes ?? 0);
      journal = journalText() || journal;
    },
  });
  expectInstalled();
  expect(journal.match(/^m /gm)).toHaveLength(2);
  expect(journal.match(/^d /gm)?.length).toBeGreaterThan((0.7 * BYTES.length) / CHUNK);
  expect(most).toBeLessThan(1.5 * BYTES.length);
});

test("cut off anywhere, nothing is visible, and the next start asks only for what is not there", async () => {
  for (let round = 0; round < 12; round += 1) {
    using place = tempDir();
    await using installer = quickInstaller(place.path, { tuning: TUNING });
    let kept = 0;
    for (let position = 0; ; ) {
      position += Math.floor(Math.random() * 900_000);
      if (position >= BYTES.length) {
        break;
      }
      server.on(PATH, cutAt(position));
      const before = server.requests.length;
      expect(await codeOf(installer.install([wanted(place.path)]))).toBe("SERVER_ERROR");
      expect(existsSync(join(place.path, "diffusers"))).toBe(false);
      const now = partialState(join(place.path, "diffusers/kit"), [place.path])?.doneBytes ?? kept;
      expect(now).toBeGreaterThanOrEqual(kept);
      kept = now;
      server.requests.splice(0, before);
    }
    server.on(PATH, file(BYTES));
    const before = server.requests.length;
    await installer.install([wanted(place.path)]);
    expectInstalled(place.path);
    expect(server.askedBytes(PATH, before)).toBe(BYTES.length - kept);
  }
});

describe("bytes that turn out wrong after they were unpacked", () => {
  /** The first headers still read as such. */
  function spoilt(start: number, end: number): Buffer {
    return Buffer.from(BYTES.subarray(start, end)).fill(7, Math.max(0, 4096 - start));
  }

  /** More than the range has, and another's: once, at this position. */
  function lieAt(position: number, lie = spoilt): Handler {
    let told = false;
    const over = Promise.withResolvers<void>();
    return async (request, reply) => {
      const { start, end } = request.range ?? { start: 0, end: BYTES.length - 1 };
      if (!isFetch(request) || told || start > position || end < position) {
        if (told) {
          // Or everything would be there before the lie is seen.
          await over.promise;
        }
        await file(BYTES, { etag: '"1"' })(request, reply);
        return;
      }
      told = true;
      const wrong = lie(start, end + 1);
      reply.head(206, {
        "content-range": `bytes ${start}-${end}/${BYTES.length}`,
        etag: '"1"',
        "transfer-encoding": "chunked",
      });
      await reply.chunk(wrong);
      // Time enough for it to be unpacked.
      await Bun.sleep(50);
      await reply.chunk(Buffer.from("surplus"));
      await reply.write("0\r\n\r\n");
      over.resolve();
    };
  }

  for (const position of [0, 20_000, 1_000_000, 1_600_000]) {
    test(`at byte ${position}: all of it is unpacked once more`, async () => {
      server.on(PATH, lieAt(position));
      await using installer = quickInstaller(dir.path, {
        tuning: { ...TUNING, startConnections: 1, connectionsPerFile: 2 },
      });
      expect(await codeOf(installer.install([wanted()]))).toBe("ok");
      expectInstalled();
    });
  }

  test("at the first header: what was put in place of a file that isn't there is thrown away", async () => {
    const other = tar([{ name: "kit/other.safetensors", body: safetensors(2_000_000) }]);
    server.on(
      PATH,
      lieAt(0, (start, end) => other.subarray(start, end)),
    );
    await using installer = quickInstaller(dir.path, {
      tuning: { ...TUNING, startConnections: 1, connectionsPerFile: 2 },
    });
    expect(await codeOf(installer.install([wanted()]))).toBe("ok");
    expectInstalled();
  });
});

describe("an archive that is known by its hash", () => {
  const stated = (hash: string): Partial<InstallJob> => ({
    sources: [{ url: server.url(PATH), trust: "operator", sha256: hash }],
  });

  test("is digested wherever its bytes lie", async () => {
    await using installer = quickInstaller(dir.path, { tuning: TUNING });
    expect(await codeOf(installer.install([wanted(dir.path, stated(sha256(BYTES)))]))).toBe("ok");
    expectInstalled();
    using place = tempDir();
    await using other = quickInstaller(place.path, { tuning: TUNING });
    const wrong = wanted(place.path, stated("0".repeat(64)));
    expect(await codeOf(other.install([wrong]))).toBe("HASH_MISMATCH");
    expect(existsSync(join(place.path, "diffusers"))).toBe(false);
    expect(listPartials([place.path])).toEqual([]);
  });

  test("also in a thread of its own, when it is large, and after a cut", async () => {
    const bytes = tar([
      { name: "kit/w.safetensors", body: safetensors(70_000_000) },
      { name: "kit/v.safetensors", body: safetensors(9_000_000) },
    ]);
    const hash = sha256(bytes);
    server.on(
      PATH,
      when(
        (request) => isFetch(request) && (request.range?.start ?? 0) >= 40_000_000,
        (_request, reply) => reply.send(500),
        file(bytes),
      ),
    );
    await using installer = quickInstaller(dir.path, {
      tuning: { ...QUICK, chunkBytes: 1024 * 1024 },
    });
    const known = wanted(dir.path, stated(hash));
    expect(await codeOf(installer.install([known]))).toBe("SERVER_ERROR");
    expect(journalText()).toMatch(/^d /m);
    server.on(PATH, file(bytes));
    const before = server.requests.length;
    expect(await codeOf(installer.install([known]))).toBe("ok");
    expect(server.askedBytes(PATH, before)).toBeLessThan(70_000_000);
    expect(readdirSync(dir.join("diffusers/kit")).toSorted()).toEqual([
      "v.safetensors",
      "w.safetensors",
    ]);
  });
});

test("a member that only the journal knows is never published", async () => {
  server.on(PATH, cutAt(900_000));
  await using installer = quickInstaller(dir.path, { tuning: TUNING });
  expect(await codeOf(installer.install([wanted()]))).toBe("SERVER_ERROR");
  const [state] = listPartials([dir.path]);
  const attempt = state?.path ?? "";
  const body = `m ${1_600_000} ${200_000} ${Buffer.from("kit/stray.safetensors").toString("base64url")}`;
  const check = (crc32(body) & 0xff).toString(16).padStart(2, "0");
  appendFileSync(join(attempt, "journal"), `${body} ${check}\n`);
  mkdirSync(join(attempt, "tree/kit"), { recursive: true });
  appendFileSync(join(attempt, "tree/kit/stray.safetensors"), Buffer.alloc(200_000));
  server.on(PATH, file(BYTES));
  // Once it is found out, everything starts over.
  expect(await codeOf(installer.install([wanted()]))).toBe("ok");
  expectInstalled();
});

test.skipIf(process.platform !== "linux")(
  "more large members than descriptors are kept open for arrive too",
  async () => {
    const bodies = Array.from({ length: 80 }, (_, index) => safetensors(80_000 + index));
    const bytes = tar(bodies.map((body, index) => ({ name: `kit/${index}.safetensors`, body })));
    server.on(PATH, file(bytes));
    await using installer = quickInstaller(dir.path, { tuning: { ...QUICK, chunkBytes: 4096 } });
    await installer.install([wanted()]);
    for (const [index, body] of bodies.entries()) {
      expect(sha256File(dir.join("diffusers/kit", `${index}.safetensors`))).toBe(sha256(body));
    }
    const open = readdirSync("/proc/self/fd").map((fd) => linkAt(`/proc/self/fd/${fd}`));
    expect(open.filter((path) => path.startsWith(dir.path))).toEqual([]);
  },
);

function linkAt(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    // The descriptor of the listing itself.
    return "";
  }
}

test.skipIf(!canMount())(
  "D36: on a disk that just holds tar and content, a cut download goes on and ends whole",
  async () => {
    using small = smallDisk(dir.join("small"), 2.04 * BYTES.length);
    const disk = small.path;
    await using installer = quickInstaller(disk, { tuning: TUNING });
    for (const position of [300_000, 1_200_000, 1_900_000]) {
      server.on(PATH, cutAt(position));
      expect(await codeOf(installer.install([wanted(disk)]))).toBe("SERVER_ERROR");
    }
    expect(journalText(disk)).toMatch(/^d /m);
    // What the large members take they have already: others may use the rest.
    writeFileSync(join(disk, "others"), Buffer.alloc(freeSpace(disk).freeBytes - 300_000));
    server.on(PATH, file(BYTES));
    const [need] = (await installer.plan([wanted(disk)])).fileSystems;
    expect(need).toMatchObject({ fits: true, streamsArchives: false });
    expect(need?.peakBytes).toBeLessThan(100_000);
    expect(await codeOf(installer.install([wanted(disk)]))).toBe("ok");
    expectInstalled(disk);
  },
);

test.skipIf(!canMount())(
  "D36: space that others take while a tar is unpacked ends with NO_SPACE, keeps the bytes, and goes on when there is room",
  async () => {
    using small = smallDisk(dir.join("small"), 2.1 * BYTES.length);
    const disk = small.path;
    const others = join(disk, "others");
    server.on(PATH, async (request, reply) => {
      if (isFetch(request) && !existsSync(others)) {
        fillDisk(others);
      }
      await file(BYTES)(request, reply);
    });
    await using installer = quickInstaller(disk, { tuning: TUNING });
    expect(await codeOf(installer.install([wanted(disk)]))).toBe("NO_SPACE");
    expect(existsSync(join(disk, "diffusers"))).toBe(false);
    expect(listPartials([disk])[0]?.doneBytes).toBeGreaterThan(0);
    rmSync(others);
    server.on(PATH, file(BYTES));
    expect(await codeOf(installer.install([wanted(disk)]))).toBe("ok");
    expectInstalled(disk);
  },
);

test.skipIf(process.platform !== "linux")(
  "a large download that is called off leaves nothing open, neither its own nor its digest's",
  async () => {
    const body = safetensors(70_000_000);
    server.on("/w.safetensors", file(body, { bytesPerSecond: 20_000_000 }));
    server.on(PATH, file(tar([{ name: "w.safetensors", body }]), { bytesPerSecond: 20_000_000 }));
    await using installer = quickInstaller(dir.path, {
      tuning: { ...QUICK, chunkBytes: 1024 * 1024 },
    });
    const jobs = [
      job(dir.join("loras/w.safetensors"), server.url("/w.safetensors")),
      wanted(dir.path, { name: "w.safetensors", sha256: sha256(body) }),
    ];
    for (const one of jobs) {
      const ending = new AbortController();
      const run = installer.install([one], {
        signal: ending.signal,
        onProgress: ({ doneBytes }) => doneBytes > 30_000_000 && ending.abort(),
      });
      expect(await codeOf(run)).toBe("CANCELED");
      await Bun.sleep(100);
      expect(openBelow(dir.path)).toEqual([]);
    }
  },
);

/** Files below a folder that this process has open. */
function openBelow(folder: string): string[] {
  return readdirSync("/proc/self/fd")
    .map((fd) => linkAt(`/proc/self/fd/${fd}`))
    .filter((path) => path.startsWith(folder));
}
