/** Kills, corrupted journals, several processes, full and missing disks (downloader.md D, 33–50). */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { basename, join } from "node:path";
import { crc32 } from "node:zlib";
import type { OwnershipRules, PartialFolder } from "../../src/weights/journal.ts";
import {
  listPartials,
  openPartial,
  partialKey,
  partialState,
  removePartials,
} from "../../src/weights/journal.ts";
import { describePlan } from "../../src/weights/plan.ts";
import { canMount, smallDisk } from "../support/small-disk.ts";
import { tar } from "../support/tar.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, isFetch, WeightServer, when } from "../support/weight-server.ts";
import {
  codeOf,
  job,
  quickInstaller,
  safetensors,
  sha256,
  sha256File,
} from "../support/weights.ts";

const BODY = safetensors(3_000_000);
const SHA = sha256(BODY);
const PATH = "/w.safetensors";
const CHUNK = 64 * 1024;

let server: WeightServer;
let dir: TempDir;
let destination: string;

beforeEach(async () => {
  server = await WeightServer.start();
  server.on(PATH, file(BODY));
  dir = tempDir();
  destination = dir.join("checkpoints", "w.safetensors");
});

afterEach(() => {
  server[Symbol.dispose]();
  dir[Symbol.dispose]();
});

function child(url = server.url(PATH)): Bun.Subprocess<"ignore", "pipe", "pipe"> {
  const script = join(import.meta.dir, "../support/install-child.ts");
  return Bun.spawn([process.execPath, script, dir.path, url, SHA, destination], {
    stdout: "pipe",
    stderr: "pipe",
  });
}

/** Leaves a partial file with everything up to `stopAt`. */
async function leavePartial(stopAt = 1_000_000): Promise<string> {
  server.on(
    PATH,
    when(
      (one) => (one.range?.start ?? 0) >= stopAt,
      (_one, reply) => reply.send(500),
      file(BODY),
    ),
  );
  await using installer = quickInstaller(dir.path);
  expect(
    await codeOf(installer.install([job(destination, server.url(PATH), { sha256: SHA })])),
  ).toBe("SERVER_ERROR");
  server.on(PATH, file(BODY));
  const home = join(dir.path, ".cog-partial", partialKey(destination));
  const [attempt = ""] = readdirSync(home);
  return join(home, attempt);
}

async function resume(): Promise<number> {
  const before = server.requests.length;
  await using installer = quickInstaller(dir.path);
  await installer.install([job(destination, server.url(PATH), { sha256: SHA })]);
  expect(sha256File(destination)).toBe(SHA);
  expect(listPartials([dir.path])).toEqual([]);
  return server.askedBytes(PATH, before);
}

describe("after a kill", () => {
  test("D33: SIGKILL at random moments of a real process; each start goes on and the last one ends whole", async () => {
    server.on(PATH, file(BODY, { bytesPerSecond: 150_000 }));
    let kept = 0;
    for (let round = 0; round < 4; round += 1) {
      const running = child();
      while ((partialState(destination, [dir.path])?.doneBytes ?? 0) <= kept) {
        await Bun.sleep(5);
      }
      await Bun.sleep(Math.random() * 60);
      running.kill("SIGKILL");
      await running.exited;
      expect(existsSync(destination)).toBe(false);
      kept = partialState(destination, [dir.path])?.doneBytes ?? 0;
    }
    server.on(PATH, file(BODY));
    expect(await resume()).toBe(BODY.length - kept);
  }, 20_000);

  test("D40: five processes for one file fetch it once", async () => {
    server.on(PATH, file(BODY, { bytesPerSecond: 1_000_000 }));
    const all = [1, 2, 3, 4, 5].map(() => child());
    const texts = await Promise.all(all.map((one) => new Response(one.stdout).text()));
    expect(texts.filter((text) => text.includes("installed true"))).toHaveLength(1);
    expect(texts.filter((text) => text.includes("installed false"))).toHaveLength(4);
    expect(sha256File(destination)).toBe(SHA);
    expect(server.requests.filter((one) => one.range?.start === 0 && isFetch(one)).length).toBe(1);
  }, 20_000);

  test("a waiting process takes over when the one at work is killed", async () => {
    server.on(PATH, file(BODY, { bytesPerSecond: 200_000 }));
    const first = child();
    while ((partialState(destination, [dir.path])?.doneBytes ?? 0) === 0) {
      await Bun.sleep(10);
    }
    const second = child();
    await second.stdout.getReader().read();
    first.kill("SIGKILL");
    server.on(PATH, file(BODY));
    expect(await second.exited).toBe(0);
    expect(sha256File(destination)).toBe(SHA);
  }, 20_000);
});

describe("D35: a partial file after a power loss", () => {
  function zero(path: string, start: number, length: number): void {
    const fd = openSync(path, "r+");
    writeSync(fd, Buffer.alloc(length), 0, length, start);
    closeSync(fd);
  }

  test("with zeroed blocks has just those chunks fetched again", async () => {
    const attempt = await leavePartial();
    const done = partialState(destination, [dir.path])?.doneBytes ?? 0;
    zero(join(attempt, "data"), 3 * CHUNK + 100, 512);
    zero(join(attempt, "data"), 7 * CHUNK, CHUNK);
    expect(await resume()).toBe(BODY.length - done + 2 * CHUNK);
  });

  test("with truncated data loses what is beyond", async () => {
    const attempt = await leavePartial();
    truncateSync(join(attempt, "data"), 5 * CHUNK + 1);
    expect(await resume()).toBe(BODY.length - 5 * CHUNK);
  });

  test("with a torn last line loses one chunk at most", async () => {
    const attempt = await leavePartial();
    appendFileSync(join(attempt, "journal"), "c 44 ffff");
    const done = partialState(destination, [dir.path])?.doneBytes ?? 0;
    expect(await resume()).toBe(BODY.length - done);
  });

  test("with a line that lies about a chunk never there does not believe it", async () => {
    const attempt = await leavePartial();
    const done = partialState(destination, [dir.path])?.doneBytes ?? 0;
    appendFileSync(
      join(attempt, "journal"),
      "c 44 00000000 00\nc 99999 00000000 00\nx\n\u0000\u0000\n",
    );
    expect(await resume()).toBe(BODY.length - done);
  });

  for (const [what, spoil] of [
    ["an empty journal", (path: string) => writeFileSync(path, "")],
    [
      "a journal of another version",
      (path: string) => writeFileSync(path, readFileSync(path, "utf8").replace('"v":1', '"v":2')),
    ],
    ["no journal", (path: string) => rmSync(path)],
    ["a journal of rubbish", (path: string) => writeFileSync(path, Buffer.alloc(5000, 0xfe))],
  ] as const) {
    test(`with ${what} starts over`, async () => {
      spoil(join(await leavePartial(), "journal"));
      expect(await resume()).toBe(BODY.length);
    });
  }

  test("without its data starts over", async () => {
    rmSync(join(await leavePartial(), "data"));
    expect(await resume()).toBe(BODY.length);
  });
});

describe("a partial file", () => {
  test("D16: of another version on the server is thrown away, not mixed in", async () => {
    await leavePartial();
    server.on(PATH, file(BODY, { etag: '"another"' }));
    expect(await resume()).toBe(BODY.length);
  });

  test("without any validator is not resumed", async () => {
    server.on(
      PATH,
      when(
        (one) => (one.range?.start ?? 0) >= 1_000_000,
        (_one, reply) => reply.send(500),
        file(BODY, { etag: null }),
      ),
    );
    await using installer = quickInstaller(dir.path);
    expect(await codeOf(installer.install([job(destination, server.url(PATH))]))).toBe(
      "SERVER_ERROR",
    );
    server.on(PATH, file(BODY, { etag: null }));
    expect(await resume()).toBe(BODY.length);
  });

  test("goes on at a mirror when both state the same hash", async () => {
    using mirror = await WeightServer.start();
    mirror.on(PATH, file(BODY, { etag: '"mirror"' }));
    const stated = (url: string) => ({ url, trust: "operator" as const, sha256: SHA });
    server.on(
      PATH,
      when(
        (one) => (one.range?.start ?? 0) >= 1_000_000,
        (_one, reply) => reply.send(500),
        file(BODY),
      ),
    );
    await using installer = quickInstaller(dir.path);
    await installer.install([
      job(destination, [], { sources: [stated(server.url(PATH)), stated(mirror.url(PATH))] }),
    ]);
    expect(sha256File(destination)).toBe(SHA);
    expect(
      mirror.requests.filter(isFetch).every(({ range }) => (range?.start ?? 0) >= 900_000),
    ).toBe(true);
  });

  test("that nobody works on can be removed, one in use can't", async () => {
    await leavePartial();
    expect(removePartials([dir.path], 1e9)).toEqual([]);
    expect(removePartials([dir.path], -1)).toHaveLength(1);
    expect(listPartials([dir.path])).toEqual([]);
  });
});

describe("owners", () => {
  const identity = {
    sizeBytes: 3 * CHUNK,
    etag: '"e"',
    lastModified: null,
    sha256: null,
    url: "http://h/x",
  };
  const open = async (more: { alone?: boolean; rules?: OwnershipRules } = {}) =>
    await openPartial({
      root: dir.join(".cog-partial"),
      name: "x",
      destination: "/x",
      identity,
      chunkBytes: CHUNK,
      ...more,
    });

  function mine(opened: Awaited<ReturnType<typeof open>>): PartialFolder {
    if ("busy" in opened) {
      throw new Error("the folder is taken");
    }
    return opened;
  }

  test("a second one is told that the first one lives, until it lets go", async () => {
    const first = mine(await open());
    expect(await open()).toMatchObject({ busy: true });
    first[Symbol.dispose]();
    mine(await open()).remove();
    expect(readdirSync(dir.join(".cog-partial"))).toEqual([]);
  });

  test("one that lets go and removes its folder takes nothing from whoever comes at that moment", async () => {
    const script = join(import.meta.dir, "../support/partial-child.ts");
    const children = Array.from({ length: 4 }, () =>
      Bun.spawn([process.execPath, script, dir.join(".cog-partial"), "1500"], { stdout: "pipe" }),
    );
    const said = await Promise.all(
      children.map(async ({ stdout }) => JSON.parse(await new Response(stdout).text())),
    );
    expect(said.map(({ vanished }) => vanished)).toEqual([[], [], [], []]);
    expect(Math.min(...said.map(({ held }) => held))).toBeGreaterThan(0);
  });

  test("what a killed process left of making or removing a folder is swept away", async () => {
    const home = dir.join(".cog-partial", partialKey("/x"));
    mkdirSync(join(home, ".gone-h-1-00"), { recursive: true });
    writeFileSync(join(home, ".gone-h-1-00", "data"), "bytes");
    mkdirSync(join(home, ".new-h-1-00"));
    const old = new Date(Date.now() - 60_000);
    utimesSync(join(home, ".new-h-1-00"), old, old);
    mkdirSync(join(home, ".new-h-1-01"));
    expect(listPartials([dir.path])).toEqual([]);
    using held = mine(await open());
    expect(readdirSync(home).toSorted()).toEqual([".new-h-1-01", basename(held.path)]);
    mkdirSync(join(home, "h-1-02"));
    writeFileSync(join(home, "h-1-02", "owner"), "{");
    expect(removePartials([dir.path], 0)).toEqual([]);
    expect(readdirSync(home).toSorted()).toEqual([".new-h-1-01", basename(held.path)]);
  });

  test("D41: an owner of its own never shares a data file", async () => {
    const first = mine(await open());
    const second = mine(await open({ alone: true }));
    expect(second.dataPath).not.toBe(first.dataPath);
    first.remove();
    second.remove();
  });

  /** Rules of a file system where every lock succeeds for everybody. */
  const lying = (silentMs: number): OwnershipRules => ({
    tryLock: () => true,
    isRemote: () => true,
    silentMs,
  });
  /** Rules of one that knows no locks. */
  const lockless = (silentMs: number): OwnershipRules => ({
    tryLock: () => undefined,
    isRemote: () => false,
    silentMs,
  });

  test("D41: where every lock succeeds, an owner that shows signs of life keeps its folder", async () => {
    const first = mine(await open({ rules: lying(60_000) }));
    expect(await open({ rules: lying(60_000) })).toMatchObject({ busy: true });
    first.remove();
  });

  test("D41: there an owner of this machine that has ended is known to be gone at once", async () => {
    const first = mine(await open({ rules: lying(60_000) }));
    const owner = join(first.path, "owner");
    const pid = Bun.spawnSync(["true"]).pid;
    writeFileSync(owner, readFileSync(owner, "utf8").replace(/"pid":\d+/, `"pid":${pid}`));
    const heir = mine(await open({ rules: lying(60_000) }));
    expect(heir.path).not.toBe(first.path);
    heir.remove();
    first[Symbol.dispose]();
  });

  test("D43: an owner that slept and wakes up can't reach the bytes of whoever took over", async () => {
    const sleeper = mine(await open({ rules: lying(60_000) }));
    const bytes = Buffer.alloc(CHUNK, 1);
    writeSync(sleeper.content.fd, bytes, 0, CHUNK, 0);
    sleeper.record(0, crc32(bytes));
    // No sign of life for longer than the rule allows: it counts as gone.
    const heir = mine(await open({ rules: lying(-1) }));
    expect([...heir.done.keys()]).toEqual([0]);
    writeSync(sleeper.content.fd, Buffer.alloc(CHUNK, 9), 0, CHUNK, 0);
    expect(readFileSync(heir.dataPath).subarray(0, CHUNK).equals(bytes)).toBe(true);
    expect(() => sleeper.beat()).toThrow();
    heir.remove();
    sleeper[Symbol.dispose]();
  });

  test("D42: without locks, a process of this machine that runs is alive", async () => {
    const first = mine(await open({ rules: lockless(-1) }));
    expect(await open({ rules: lockless(-1) })).toMatchObject({ busy: true });
    first.remove();
  });

  test("D44: without locks, an owner elsewhere with a process id of ours counts by its signs of life alone", async () => {
    const first = mine(await open({ rules: lockless(60_000) }));
    const owner = join(first.path, "owner");
    writeFileSync(
      owner,
      readFileSync(owner, "utf8").replace(/"table":"[^"]*"/, '"table":"elsewhere"'),
    );
    expect(await open({ rules: lockless(60_000) })).toMatchObject({ busy: true });
    const heir = mine(await open({ rules: lockless(-1) }));
    expect(heir.path).not.toBe(first.path);
    heir.remove();
    first[Symbol.dispose]();
  });

  test("D43: an owner whose folder was taken over notices and stops", async () => {
    const first = mine(await open());
    first.beat();
    writeFileSync(join(first.path, "owner"), '{"token":"somebody else"}');
    expect(() => first.beat()).toThrow("took over");
    rmSync(first.path, { recursive: true });
    expect(() => first.beat()).toThrow("has gone");
  });

  test("D47: a folder that disappears midway ends the download with its reason, and the next start is clean", async () => {
    server.on(PATH, file(BODY, { bytesPerSecond: 500_000 }));
    await using installer = quickInstaller(dir.path);
    const running = installer.install([job(destination, server.url(PATH))], {
      onProgress: ({ doneBytes }) => {
        if (doneBytes > 200_000) {
          rmSync(dir.join(".cog-partial"), { recursive: true, force: true });
        }
      },
    });
    expect(await codeOf(running)).toBe("IO_ERROR");
    expect(existsSync(destination)).toBe(false);
    server.on(PATH, file(BODY));
    await resume();
  });
});

describe("disks", () => {
  test("D38: a models folder that can't be made says so", async () => {
    writeFileSync(dir.join("file"), "in the way");
    await using installer = quickInstaller(dir.join("file", "models"));
    const code = await codeOf(
      installer.install([job(dir.join("file", "models", "w.safetensors"), server.url(PATH))]),
    );
    expect(["IO_ERROR", "PATH_UNWRITABLE"]).toContain(code);
  });

  test("D38: without a file descriptor left each step says so, nothing is visible, and the next try goes on", async () => {
    const script = join(import.meta.dir, "../support/fd-child.ts");
    const told = await Promise.all(
      [2, 3, 4, 5, 6, 7].map(async (left) => {
        const models = dir.join(`m${left}`);
        const target = join(models, "checkpoints/w.safetensors");
        const command = [
          process.execPath,
          script,
          models,
          server.url(PATH),
          SHA,
          target,
          `${left}`,
        ];
        const running = Bun.spawn(["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", ...command], {
          stdout: "pipe",
        });
        return JSON.parse(await new Response(running.stdout).text());
      }),
    );
    expect(told.filter(({ second }) => second !== "installed")).toEqual([]);
    const failed = told.filter(({ first }) => first !== "installed");
    expect(failed.length).toBeGreaterThan(2);
    for (const { first, visible } of failed) {
      expect(first).toMatch(/^(IO_ERROR|NETWORK): .*(too many files are open|EMFILE)/);
      expect(visible).toBe(false);
    }
  });

  test("D38: a name too long for the file system says so", async () => {
    await using installer = quickInstaller(dir.path);
    const long = dir.join("checkpoints", `${"n".repeat(300)}.safetensors`);
    expect(await codeOf(installer.install([job(long, server.url(PATH))]))).toBe("IO_ERROR");
  });

  test.skipIf(!canMount())(
    "D36: a disk that is full says need and have, before a byte is fetched",
    async () => {
      using disk = smallDisk(dir.join("small"), 1_000_000);
      await using installer = quickInstaller(disk.path);
      expect(
        await codeOf(installer.install([job(join(disk.path, "w.safetensors"), server.url(PATH))])),
      ).toBe("NO_SPACE");
      expect(server.requests.filter(isFetch)).toEqual([]);
    },
  );

  test.skipIf(!canMount())(
    "D36: space that others take midway ends with NO_SPACE, keeps the bytes, and goes on when there is room",
    async () => {
      using disk = smallDisk(dir.join("small"), 4_500_000);
      const target = join(disk.path, "checkpoints", "w.safetensors");
      // Without ranges nothing is reserved beforehand: the disk fills up under the stream.
      const whole = file(BODY, { ranges: false });
      server.on(PATH, async (request, reply) => {
        if (isFetch(request)) {
          writeFileSync(join(disk.path, "others"), Buffer.alloc(3_000_000));
        }
        await whole(request, reply);
      });
      await using installer = quickInstaller(disk.path);
      const wanted = job(target, server.url(PATH), { sha256: SHA });
      expect(await codeOf(installer.install([wanted]))).toBe("NO_SPACE");
      expect(existsSync(target)).toBe(false);
      rmSync(join(disk.path, "others"));
      server.on(PATH, file(BODY));
      await installer.install([wanted]);
      expect(sha256File(target)).toBe(SHA);
    },
  );

  test.skipIf(!canMount())(
    "D38, D47: on a read-only disk a new file says why not, and one that is there is used",
    async () => {
      using disk = smallDisk(dir.join("small"), 8_000_000);
      const there = join(disk.path, "checkpoints", "there.safetensors");
      mkdirSync(join(disk.path, "checkpoints"));
      writeFileSync(there, BODY);
      await Bun.$`mount -o remount,ro ${disk.path}`.quiet();
      await using installer = quickInstaller(disk.path);
      const target = join(disk.path, "checkpoints", "w.safetensors");
      expect(await codeOf(installer.install([job(target, server.url(PATH))]))).toBe(
        "PATH_UNWRITABLE",
      );
      expect((await installer.install([job(there, server.url(PATH))]))[0]?.fetched).toBe(false);
    },
  );

  test.skipIf(!canMount())(
    "an archive for which there is no room beside its content is unpacked straight from the network, as the plan says",
    async () => {
      using disk = smallDisk(dir.join("small"), 4_500_000);
      const bytes = tar([{ name: "w.safetensors", body: BODY }]);
      let cuts = 0;
      server.on("/w.tar", async (request, reply) => {
        if (isFetch(request) && cuts < 2) {
          cuts += 1;
          reply.head(200, { "content-length": bytes.length, etag: '"1"' });
          await reply.write(bytes.subarray(0, 1_000_000));
          reply.close();
          return;
        }
        await file(bytes, { etag: '"1"' })(request, reply);
      });
      await using installer = quickInstaller(disk.path);
      const folder = join(disk.path, "checkpoints");
      const wanted = job(folder, server.url("/w.tar"), {
        name: "w.safetensors",
        unpack: "tar",
        sha256: SHA,
      });
      expect(describePlan(await installer.plan([wanted]))).toContain("straight from the network");
      await installer.install([wanted]);
      expect(sha256File(join(folder, "w.safetensors"))).toBe(SHA);
      expect(server.fetches("/w.tar").map(({ range }) => range)).toEqual([
        undefined,
        undefined,
        undefined,
      ]);
      expect(listPartials([disk.path])).toEqual([]);
    },
  );

  test.skipIf(!canMount())(
    "D45: a category folder on a file system of its own gets its file too",
    async () => {
      using disk = smallDisk(dir.join("small"), 8_000_000);
      const models = dir.join("models");
      mkdirSync(models);
      await using installer = quickInstaller(models);
      const target = join(disk.path, "w.safetensors");
      await installer.install([job(target, server.url(PATH), { sha256: SHA })]);
      expect(sha256File(target)).toBe(SHA);
    },
  );
});
