/** The shared store within one process: budget, pins, altered blobs, folders that are none, ways of linking. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { ModelFolders } from "../../src/models/folders.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { bringWeights } from "../../src/weights/bring.ts";
import { DigestBook } from "../../src/weights/digests.ts";
import type { InstallJob } from "../../src/weights/plan-types.ts";
import type { StoreOptions } from "../../src/weights/store.ts";
import { WeightStore } from "../../src/weights/store.ts";
import { leadsTo, linkBlob } from "../../src/weights/store-link.ts";
import { LocalCopies } from "../../src/weights/store-stage.ts";
import { rejection } from "../support/app.ts";
import { tar } from "../support/tar.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, WeightServer } from "../support/weight-server.ts";
import {
  LEASE_TIMES,
  quickInstaller,
  safetensors,
  sha256,
  sha256File,
} from "../support/weights.ts";

const BODIES = [safetensors(40_000), safetensors(40_000), safetensors(40_000)] as const;
const SIZE = BODIES[0].length;
const SHAS = BODIES.map((body) => sha256(body));

let server: WeightServer;
let dir: TempDir;

beforeEach(async () => {
  server = await WeightServer.start();
  for (const [index, body] of BODIES.entries()) {
    server.on(`/${index}.safetensors`, file(body));
  }
  dir = tempDir();
});

afterEach(() => {
  server[Symbol.dispose]();
  dir[Symbol.dispose]();
});

/** One user of the store, with a models folder of its own. */
function user(name: string, options: Partial<StoreOptions> = {}) {
  const models = dir.join(name);
  const digests = new DigestBook([models]);
  const store = new WeightStore({
    root: dir.join("store"),
    modelsRoots: [models],
    digests,
    log: silentLogger,
    minFreeBytes: 0,
    leaseTimes: LEASE_TIMES,
    ...options,
  });
  const installer = quickInstaller(models, { store: () => store });
  const around = {
    installer,
    folders: ModelFolders.fromDirs({ modelsDirs: [models] }),
    modelsRoots: [models],
    digests,
    lock: undefined,
    store,
  };
  return {
    models,
    store,
    path: (index: number) => join(models, "loras", `${index}.safetensors`),
    bring: async (index: number, more: Partial<InstallJob> = {}) => {
      const job: InstallJob = {
        name: `${index}.safetensors`,
        category: "loras",
        destination: join(models, "loras", `${index}.safetensors`),
        sources: [{ url: server.url(`/${index}.safetensors`), trust: "operator" }],
        ...more,
      };
      const [brought] = await bringWeights([job], around);
      return brought;
    },
    [Symbol.asyncDispose]: async () => {
      store[Symbol.dispose]();
      await installer.close();
    },
  };
}

function blob(index: number): string {
  const sha = SHAS[index] ?? "";
  return dir.join("store/blobs/sha256", sha.slice(0, 2), sha);
}

describe("a weight in the store", () => {
  test("is served to another models folder without a word to its source, hash known or not", async () => {
    await using first = user("a");
    expect(await first.bring(0)).toMatchObject({ fetched: true, sha256: SHAS[0] });
    const requests = server.requests.length;
    await using second = user("b");
    expect(await second.bring(0)).toMatchObject({ fetched: false, sha256: SHAS[0] });
    await using third = user("c");
    expect(await third.bring(0, { sha256: SHAS[0]!, sources: [] })).toMatchObject({
      sha256: SHAS[0],
    });
    expect(server.requests.length).toBe(requests);
  });

  test("that was altered through a link is caught, set aside and fetched again", async () => {
    await using first = user("a");
    await first.bring(0, { sha256: SHAS[0]! });
    // Same length, times put back: only the change time tells.
    const before = statSync(blob(0));
    chmodSync(blob(0), 0o644);
    const altered = Buffer.from(BODIES[0]);
    altered[SIZE - 1] = (altered[SIZE - 1] ?? 0) ^ 1;
    writeFileSync(first.path(0), altered);
    utimesSync(blob(0), before.atime, before.mtime);
    await using second = user("b");
    expect(await second.bring(0, { sha256: SHAS[0]! })).toMatchObject({ fetched: true });
    expect(sha256File(second.path(0))).toBe(SHAS[0]!);
    expect(readdirSync(dir.join("store/quarantine")).map((name) => name.slice(0, 64))).toEqual([
      SHAS[0]!,
    ]);
  });

  test("out of an archive is unpacked once for all", async () => {
    const archive = tar([{ name: "0.safetensors", body: BODIES[0] }]);
    server.on("/0.safetensors.tar", file(archive));
    const folder = (name: string) => ({
      destination: dir.join(name, "loras"),
      unpack: "tar" as const,
      member: "0.safetensors",
      sources: [{ url: server.url("/0.safetensors.tar"), trust: "operator" as const }],
    });
    await using first = user("a");
    expect(await first.bring(0, folder("a"))).toMatchObject({ fetched: true });
    const requests = server.requests.length;
    await using second = user("b");
    expect(await second.bring(0, folder("b"))).toMatchObject({ fetched: false, sha256: SHAS[0] });
    expect(server.requests.length).toBe(requests);
    expect(sha256File(second.path(0))).toBe(SHAS[0]!);
  });

  test("in two versions of one name: both stay, and going back is linking again", async () => {
    await using first = user("a");
    const one = {
      sha256: SHAS[0]!,
      name: "w.safetensors",
      destination: dir.join("a/loras/w.safetensors"),
    };
    const two = { ...one, sha256: SHAS[1]! };
    await first.bring(0, one);
    rmSync(one.destination);
    await first.bring(1, two);
    rmSync(one.destination);
    const requests = server.requests.length;
    expect(await first.bring(0, one)).toMatchObject({ fetched: false });
    expect(sha256File(one.destination)).toBe(SHAS[0]!);
    expect(server.requests.length).toBe(requests);
    expect(
      first.store
        .list()
        .map(({ sha256: sha }) => sha)
        .sort(),
    ).toEqual([SHAS[0]!, SHAS[1]!].sort());
  });

  test("does not take the place of somebody else's file", async () => {
    await using first = user("a");
    await first.bring(0, { sha256: SHAS[0]! });
    await using second = user("b");
    mkdirSync(dirname(second.path(0)), { recursive: true });
    writeFileSync(second.path(0), "mine");
    expect(await rejection(second.bring(0, { sha256: SHAS[0]! }))).toMatchObject({
      code: "CONFLICT",
    });
    expect(readFileSync(second.path(0), "utf8")).toBe("mine");
  });

  test("replaces a link that leads nowhere", async () => {
    await using first = user("a");
    mkdirSync(dirname(first.path(0)), { recursive: true });
    symlinkSync(dir.join("store/blobs/sha256/00/gone"), first.path(0));
    expect(await first.bring(0, { sha256: SHAS[0]! })).toMatchObject({ fetched: true });
    expect(sha256File(first.path(0))).toBe(SHAS[0]!);
  });
});

describe("the budget", () => {
  const maxBytes = 2 * SIZE + 10_000;

  test("is kept by evicting what was longest unused, before the next download begins", async () => {
    await using first = user("a", { maxBytes });
    await first.bring(0);
    await first.bring(1);
    first.store.pin([SHAS[0]!], "now")[Symbol.dispose]();
    await until(() => (first.store.usedAt(SHAS[0]!)?.getTime() ?? 0) > 0);
    first.store.touch([SHAS[0]!]);
    await first.bring(2);
    expect([0, 1, 2].map((index) => existsSync(blob(index)))).toEqual([true, false, true]);
    // The link went with the blob.
    expect(() => lstatSync(first.path(1))).toThrow();
    expect(first.store.usage().bytes).toBeLessThanOrEqual(maxBytes);
  });

  test("never touches what is pinned: the error lists what is pinned by whom, and nothing was downloaded", async () => {
    await using first = user("a", { maxBytes });
    await first.bring(0);
    await first.bring(1);
    using _one = first.store.pin([SHAS[0]!], "preloaded");
    using _two = first.store.pin([SHAS[1]!], "lock file");
    const failure = await rejection(first.bring(2));
    expect(failure.code).toBe("NO_SPACE");
    expect(failure.message).toContain("0.safetensors, 40.1 kB: preloaded (this process)");
    expect(failure.message).toContain("1.safetensors, 40.1 kB: lock file (this process)");
    expect(server.fetches("/2.safetensors")).toEqual([]);
    expect([0, 1].map((index) => existsSync(first.path(index)))).toEqual([true, true]);
  });

  test("asks others for links they don't need; what they need stays, and the error says whose it is", async () => {
    await using first = user("a", { maxBytes });
    await first.bring(0);
    await first.bring(1);
    await using second = user("b", { maxBytes });
    using held = first.store.pin([SHAS[0]!], "prediction");
    expect(await second.bring(2)).toMatchObject({ fetched: true });
    expect([0, 1].map((index) => existsSync(first.path(index)))).toEqual([true, false]);
    expect(() => lstatSync(first.path(1))).toThrow();
    using _own = second.store.pin([SHAS[2]!], "preloaded");
    const failure = await rejection(second.bring(1));
    expect(failure.code).toBe("NO_SPACE");
    expect(failure.message).toMatch(/prediction \(.*, process \d+\)/);
    held[Symbol.dispose]();
  });

  test("does not ask away what another process on the same models folder needs", async () => {
    await using first = user("a", { maxBytes });
    await first.bring(0);
    await first.bring(1);
    await using beside = user("a", { maxBytes });
    await beside.bring(0);
    using _held = beside.store.pin([SHAS[0]!], "prediction");
    await using third = user("c", { maxBytes });
    expect(await third.bring(2)).toMatchObject({ fetched: true });
    expect([0, 1].map((index) => existsSync(first.path(index)))).toEqual([true, false]);
    expect(existsSync(blob(0))).toBe(true);
  });

  test("counts a blob as linked until the last of its names is gone", async () => {
    await using first = user("a");
    const again = first.path(0).replace("0.safe", "again.safe");
    await first.bring(0);
    await first.bring(0, { name: "again.safetensors", destination: again });
    await using second = user("b");
    expect(first.store.remove(first.path(0), SHAS[0]!)).toBe(false);
    expect(second.store.gc({ maxBytes: 0 })).toEqual([]);
    expect(sha256File(again)).toBe(SHAS[0]!);
    expect(first.store.remove(again, SHAS[0]!)).toBe(true);
    expect(existsSync(blob(0))).toBe(false);
  });

  test("forgets links to a blob that is gone, and removes those that lead nowhere", async () => {
    await using first = user("a");
    await first.bring(0);
    rmSync(first.path(0));
    symlinkSync(blob(0), first.path(0));
    rmSync(blob(0));
    const records = dir.join("store/links", SHAS[0]!);
    await using second = user("b");
    second.store.gc({});
    // Its owner lives, and may be about to fetch it again.
    expect(readdirSync(records)).toHaveLength(1);
    first.store[Symbol.dispose]();
    second.store.gc({});
    expect(existsSync(records)).toBe(false);
    expect(() => lstatSync(first.path(0))).toThrow();
  });

  test("is kept without racing: who takes a blob in waits for an eviction of it that was announced", async () => {
    await using first = user("a");
    const announcement = dir.join("store/evicting", `${SHAS[0]}-00`);
    writeFileSync(announcement, "");
    let over = false;
    const brought = first.bring(0).finally(() => {
      over = true;
    });
    await until(() => server.fetches("/0.safetensors").length > 0);
    await Bun.sleep(100);
    expect(over).toBe(false);
    expect(existsSync(blob(0))).toBe(false);
    rmSync(announcement);
    expect(await brought).toMatchObject({ fetched: true });
    expect(existsSync(blob(0))).toBe(true);
  });

  test("frees a thousand blobs in one go", async () => {
    await using first = user("a");
    await first.bring(0);
    for (let index = 0; index < 1000; index += 1) {
      const body = Buffer.from(`blob ${index}`);
      const sha = sha256(body);
      mkdirSync(dir.join("store/blobs/sha256", sha.slice(0, 2)), { recursive: true });
      writeFileSync(dir.join("store/blobs/sha256", sha.slice(0, 2), sha), body);
    }
    expect(first.store.gc({ maxBytes: 0, dryRun: true })).toHaveLength(1001);
    expect(first.store.gc({ maxBytes: 0 })).toHaveLength(1001);
    expect(first.store.list()).toEqual([]);
  });
});

describe("a folder", () => {
  test("that is the models folder, lies in it or holds it, is refused", () => {
    for (const root of [dir.join("a"), dir.join("a/store"), dir.path]) {
      expect(() => user("a", { root })).toThrow("can't be the shared store");
    }
  });

  test("with files that no store put there is refused, and nothing in it is touched", () => {
    mkdirSync(dir.join("store"));
    writeFileSync(dir.join("store/photo.jpg"), "mine");
    expect(() => user("a")).toThrow("photo.jpg");
    expect(readdirSync(dir.join("store"))).toEqual(["photo.jpg"]);
  });

  test("that was deleted while in use is made again", async () => {
    await using first = user("a");
    await first.bring(0);
    rmSync(dir.join("store"), { recursive: true });
    expect(await first.bring(1)).toMatchObject({ fetched: true });
    expect(existsSync(blob(1))).toBe(true);
    rmSync(first.path(0), { force: true });
    expect(await first.bring(0)).toMatchObject({ fetched: true });
  });
});

describe("links", () => {
  test("are tried in order: a symbolic link where the blob lies on another file system", () => {
    using other = tempDir();
    writeFileSync(other.join("blob"), "content");
    const destination = dir.join("models/loras/x");
    const how = linkBlob({
      blob: other.join("blob"),
      destination,
      methods: ["symbolic link", "copy"],
      replace: false,
    });
    expect(how).toBe("symbolic link");
    expect(readlinkSync(destination)).toBe(other.join("blob"));
    expect(
      linkBlob({ blob: other.join("blob"), destination, methods: ["copy"], replace: false }),
    ).toBe("taken");
    expect(
      linkBlob({ blob: other.join("blob"), destination, methods: ["copy"], replace: true }),
    ).toBe("copy");
    expect(lstatSync(destination).isFile()).toBe(true);
    expect(
      linkBlob({
        blob: other.join("none"),
        destination: dir.join("y"),
        methods: ["hard link", "copy"],
        replace: false,
      }),
    ).toBe("gone");
  });

  test("are copies in copy mode, within a local budget, and never of what is in use", async () => {
    const pinned = new Set<string>();
    const copies = new LocalCopies({
      modelsRoot: dir.join("a"),
      maxBytes: 2 * SIZE,
      minFreeBytes: 0,
      pinsOf: (path) => (pinned.has(path) ? ["prediction"] : []),
      log: silentLogger,
    });
    await using first = user("a", { mode: "copy", copies });
    await first.bring(0);
    await first.bring(1);
    expect(statSync(first.path(0)).nlink).toBe(1);
    pinned.add(first.path(0));
    await first.bring(2);
    expect([0, 1, 2].map((index) => existsSync(first.path(index)))).toEqual([true, false, true]);
    pinned.add(first.path(2));
    const failure = await rejection(first.bring(1));
    expect(failure.code).toBe("NO_SPACE");
    expect(failure.message).toContain("prediction");
    expect([0, 1, 2].every((index) => existsSync(blob(index)))).toBe(true);
  });

  test("that another process makes and removes all the time are looked at without a fault", async () => {
    const [blob, link] = [dir.join("blob"), dir.join("link")];
    writeFileSync(blob, "bytes");
    const flicker = `const { symlinkSync, unlinkSync } = require("node:fs");
      for (;;) { symlinkSync(${JSON.stringify(blob)}, ${JSON.stringify(link)}); unlinkSync(${JSON.stringify(link)}); }`;
    const running = Bun.spawn([process.execPath, "-e", flicker]);
    try {
      const seen = new Set<boolean>();
      const until = performance.now() + 5000;
      for (
        let round = 0;
        round < 50_000 || (seen.size < 2 && performance.now() < until);
        round += 1
      ) {
        seen.add(leadsTo(link, blob));
      }
      expect(seen).toEqual(new Set([false, true]));
    } finally {
      running.kill("SIGKILL");
      await running.exited;
    }
  });
});

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) {
    await Bun.sleep(5);
  }
}

describe("a digest that was noted", () => {
  test("is expected of the very file also after it was written to, and of no other in its place", async () => {
    await using first = user("a");
    await first.bring(0);
    const digests = new DigestBook([first.models]);
    expect(digests.known(first.path(0))).toBe(SHAS[0]!);
    chmodSync(blob(0), 0o644);
    writeFileSync(first.path(0), BODIES[1]);
    expect(digests.known(first.path(0))).toBeUndefined();
    expect(digests.expected(first.path(0))).toBe(SHAS[0]!);
    rmSync(first.path(0));
    writeFileSync(dir.join("another"), "");
    writeFileSync(first.path(0), BODIES[1]);
    expect(digests.expected(first.path(0))).toBeUndefined();
  });
});
