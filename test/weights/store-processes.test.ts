/** The shared store with real processes: one download for all, leaders that die, sleep and wake, clocks that differ. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, lstatSync, readdirSync, readFileSync, statSync } from "node:fs";
import { StoreProcess } from "../support/store-process.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, isProbe, WeightServer } from "../support/weight-server.ts";
import { safetensors, sha256, sha256File } from "../support/weights.ts";

const BODY = safetensors(3_000_000);
const SHA = sha256(BODY);

let server: WeightServer;
let dir: TempDir;

beforeEach(async () => {
  server = await WeightServer.start();
  server.on("/w.safetensors", file(BODY));
  dir = tempDir();
});

afterEach(() => {
  server[Symbol.dispose]();
  dir[Symbol.dispose]();
});

async function start(name: string, more: Readonly<Record<string, unknown>> = {}) {
  const child = new StoreProcess({ store: dir.join("store"), models: dir.join(name), ...more });
  await child.next();
  return child;
}

function order(more: Readonly<Record<string, unknown>> = {}) {
  return { do: "bring", name: "w.safetensors", url: server.url("/w.safetensors"), ...more };
}

/** How often the file was fetched. Later parts may be asked for again, when one connection takes over another's rest. */
function downloads(): number {
  return server.requests.filter(
    (request) => !isProbe(request) && (request.range === undefined || request.range.start === 0),
  ).length;
}

function blobs(): string[] {
  return readdirSync(dir.join("store/blobs/sha256"), { recursive: true })
    .map(String)
    .filter((name) => name.length > 2);
}

describe("several processes that want one weight", () => {
  test.each([true, false])(
    "cost its source one download, hash known beforehand: %p; every one ends with the right bytes",
    async (known) => {
      server.on("/w.safetensors", file(BODY, { bytesPerSecond: 6_000_000 }));
      const names = ["a", "b", "c", "d"];
      const children = await Promise.all(names.map((name) => start(name)));
      const answers = await Promise.all(
        children.map((child) => child.ask(order(known ? { sha256: SHA } : {}))),
      );
      await Promise.all(children.map((child) => child.kill()));
      expect(answers.map(({ failed, message }) => [failed, message])).toEqual(
        names.map(() => [undefined, undefined]),
      );
      for (const name of names) {
        expect(sha256File(dir.join(name, "loras/w.safetensors"))).toBe(SHA);
      }
      expect(downloads()).toBe(1);
      expect(blobs()).toEqual([`${SHA.slice(0, 2)}/${SHA}`]);
      expect(statSync(dir.join("store/blobs/sha256", SHA.slice(0, 2), SHA)).mode & 0o777).toBe(
        0o444,
      );
    },
  );

  test("go on where a killed leader stopped", async () => {
    server.on("/w.safetensors", file(BODY, { bytesPerSecond: 120_000 }));
    const leader = await start("a");
    leader.send(order({ sha256: SHA, progress: true }));
    await until(() =>
      leader.progress.some(
        (one) => JSON.stringify(one).includes('"downloading"') && doneBytes(one) > 300_000,
      ),
    );
    await using follower = await start("b");
    follower.send(order({ sha256: SHA, progress: true }));
    await until(() => follower.progress.some((one) => doneBytes(one) > 0));
    server.on("/w.safetensors", file(BODY));
    const before = server.requests.length;
    await leader.kill();
    expect(await follower.next()).toMatchObject({ brought: { sha256: SHA } });
    expect(sha256File(dir.join("b/loras/w.safetensors"))).toBe(SHA);
    const asked = server.askedBytes("/w.safetensors", before);
    expect(asked).toBeLessThan(BODY.length);
  }, 15_000);

  test("do not wait for ever for a leader that sleeps, and it harms nothing when it wakes", async () => {
    server.on("/w.safetensors", file(BODY, { bytesPerSecond: 120_000 }));
    await using leader = await start("a");
    leader.send(order({ sha256: SHA, progress: true }));
    await until(() => leader.progress.some((one) => doneBytes(one) > 300_000));
    leader.signal("SIGSTOP");
    server.on("/w.safetensors", file(BODY));
    await using follower = await start("b", { busyPatienceMs: 300 });
    expect(await follower.ask(order({ sha256: SHA }))).toMatchObject({ brought: { sha256: SHA } });
    const blob = dir.join("store/blobs/sha256", SHA.slice(0, 2), SHA);
    const inode = statSync(blob).ino;
    leader.signal("SIGCONT");
    await leader.next();
    expect(statSync(blob).ino).toBe(inode);
    expect(sha256File(blob)).toBe(SHA);
    expect(sha256File(dir.join("b/loras/w.safetensors"))).toBe(SHA);
  }, 15_000);
});

describe("a lease", () => {
  test("protects a blob from other processes' eviction, and no longer when its holder was killed", async () => {
    const holder = await start("a");
    await holder.ask(order({ sha256: SHA }));
    await using other = await start("b");
    expect(await other.ask({ do: "gc", maxBytes: 0 })).toEqual({ evicted: [] });
    expect(sha256File(dir.join("a/loras/w.safetensors"))).toBe(SHA);
    await holder.kill();
    expect(await other.ask({ do: "gc", maxBytes: 0 })).toMatchObject({
      evicted: [{ sha256: SHA }],
    });
    expect(blobs()).toEqual([]);
    // The dead process's link went first: nothing leads nowhere.
    expect(existsSync(dir.join("a/loras/w.safetensors"))).toBe(false);
    expect(() => lstatSync(dir.join("a/loras/w.safetensors"))).toThrow();
  });

  test.each([86_400_000, -86_400_000])(
    "is judged by the store's clock: a machine %p ms off counts as alive",
    async (skewMs) => {
      await using holder = await start("a", { skewMs });
      await holder.ask(order({ sha256: SHA }));
      await using other = await start("b", { skewMs: -skewMs });
      expect(await other.ask({ do: "gc", maxBytes: 0 })).toEqual({ evicted: [] });
      expect(sha256File(dir.join("a/loras/w.safetensors"))).toBe(SHA);
    },
  );

  test("of a process that sleeps runs out; when it wakes it fetches again what it needs", async () => {
    await using sleeper = await start("a");
    await sleeper.ask(order({ sha256: SHA }));
    sleeper.signal("SIGSTOP");
    await using other = await start("b");
    await until(async () => {
      const { evicted } = await other.ask({ do: "gc", maxBytes: 0 });
      return JSON.stringify(evicted).includes(SHA);
    });
    sleeper.signal("SIGCONT");
    expect(await sleeper.ask(order({ sha256: SHA }))).toMatchObject({ brought: { sha256: SHA } });
    expect(readFileSync(dir.join("a/loras/w.safetensors")).equals(BODY)).toBe(true);
  }, 15_000);
});

function doneBytes(answer: Readonly<Record<string, unknown>>): number {
  const { progress } = answer;
  return typeof progress === "object" && progress !== null && "doneBytes" in progress
    ? Number(progress.doneBytes)
    : 0;
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) {
    await Bun.sleep(20);
  }
}
