/** A store in trouble: only readable, of another user, full, altered in its records, leftovers of killed processes. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { canMount, fillDisk, smallDisk } from "../support/small-disk.ts";
import { StoreProcess } from "../support/store-process.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, WeightServer } from "../support/weight-server.ts";
import { safetensors, sha256, sha256File } from "../support/weights.ts";

const BODY = safetensors(200_000);
const SHA = sha256(BODY);
const OTHER = safetensors(100_000);
/** Nobody: another user than the one who filled the store. */
const NOBODY = 65_534;

let server: WeightServer;
let dir: TempDir;

beforeEach(async () => {
  server = await WeightServer.start();
  server.on("/w.safetensors", file(BODY));
  server.on("/other.safetensors", file(OTHER));
  dir = tempDir();
});

afterEach(() => {
  server[Symbol.dispose]();
  dir[Symbol.dispose]();
});

async function start(
  name: string,
  more: Readonly<Record<string, unknown>> = {},
  as?: { readonly uid: number },
) {
  const child = new StoreProcess({ store: dir.join("store"), models: dir.join(name), ...more }, as);
  await child.next();
  return child;
}

function order(more: Readonly<Record<string, unknown>> = {}) {
  return { do: "bring", name: "w.safetensors", url: server.url("/w.safetensors"), ...more };
}

function blobFolder(): string {
  return dir.join("store/blobs/sha256", SHA.slice(0, 2));
}

describe("a store", () => {
  test.if(process.getuid?.() === 0)(
    "that belongs to another user is read: hits are served, misses go around it",
    async () => {
      await using owner = await start("a");
      await owner.ask(order({ sha256: SHA }));
      chmodSync(dir.path, 0o755);
      mkdirSync(dir.join("b"));
      chmodSync(dir.join("b"), 0o777);
      await using guest = await start("b", {}, { uid: NOBODY });
      expect(await guest.ask(order({ sha256: SHA }))).toMatchObject({
        brought: { fetched: false, sha256: SHA },
      });
      expect(sha256File(dir.join("b/loras/w.safetensors"))).toBe(SHA);
      const miss = await guest.ask(
        order({ name: "other.safetensors", url: server.url("/other.safetensors") }),
      );
      expect(miss).toMatchObject({ brought: { fetched: true } });
      expect(sha256File(dir.join("b/loras/other.safetensors"))).toBe(sha256(OTHER));
      const shards = readdirSync(dir.join("store/blobs/sha256"));
      expect(shards).toEqual([SHA.slice(0, 2)]);
    },
  );

  test("whose record of a blob is lost or torn reads the blob once, and serves it", async () => {
    await using first = await start("a");
    await first.ask(order({ sha256: SHA }));
    const meta = dir.join("store/meta/sha256", SHA.slice(0, 2), `${SHA}.json`);
    for (const [name, content] of [
      ["b", undefined],
      ["c", '{"v":1,"sha'],
    ] as const) {
      rmSync(meta);
      if (content !== undefined) {
        writeFileSync(meta, content);
      }
      await using next = await start(name);
      expect(await next.ask(order({ sha256: SHA }))).toMatchObject({ brought: { fetched: false } });
      expect(existsSync(meta)).toBe(true);
    }
  });

  test("with a garbled blob of the right length fetches it again", async () => {
    await using first = await start("a", { mode: "copy" });
    await first.ask(order({ sha256: SHA }));
    const blob = join(blobFolder(), SHA);
    chmodSync(blob, 0o644);
    const garbled = Buffer.from(BODY);
    garbled.fill(0, 100_000, 140_000);
    writeFileSync(blob, garbled);
    await using second = await start("b");
    expect(await second.ask(order({ sha256: SHA }))).toMatchObject({ brought: { fetched: true } });
    expect(sha256File(dir.join("b/loras/w.safetensors"))).toBe(SHA);
    expect(sha256File(blob)).toBe(SHA);
  });

  test("with leases that can't be read, and intents and trash of killed processes, goes on", async () => {
    await using first = await start("a");
    await first.ask(order({ sha256: SHA }));
    writeFileSync(dir.join("store/leases/torn.json"), '{"v":1,');
    writeFileSync(dir.join("store/leases/other.json"), '{"v":99}');
    writeFileSync(dir.join("store/trash", `${"0".repeat(64)}-dead`), "left over");
    writeFileSync(dir.join("store/tmp/left"), "over");
    await using second = await start("b");
    expect(await second.ask(order({ sha256: SHA }))).toMatchObject({ brought: { fetched: false } });
    expect(await second.ask({ do: "gc", maxBytes: 0 })).toEqual({ evicted: [] });
    expect(sha256File(dir.join("b/loras/w.safetensors"))).toBe(SHA);
  });

  test("that vanishes while it is in use costs a download, not an error", async () => {
    await using first = await start("a", { mode: "copy" });
    await first.ask(order({ sha256: SHA }));
    rmSync(dir.join("store"), { recursive: true });
    rmSync(dir.join("a/loras"), { recursive: true });
    expect(await first.ask(order({ sha256: SHA }))).toMatchObject({ brought: { fetched: true } });
    expect(sha256File(dir.join("a/loras/w.safetensors"))).toBe(SHA);
    expect(readdirSync(blobFolder())).toEqual([SHA]);
  });

  test.skipIf(!canMount())(
    "on a full disk serves hits, shows nothing half written, and goes on when there is room",
    async () => {
      using _ = smallDisk(dir.join("disk"), 2_000_000);
      const store = dir.join("disk/store");
      await using first = await start("a", { store });
      await first.ask(order({ sha256: SHA }));
      fillDisk(dir.join("disk/others"));

      await using second = await start("b", { store });
      expect(await second.ask(order({ sha256: SHA }))).toMatchObject({
        brought: { fetched: false, sha256: SHA },
      });
      expect(sha256File(dir.join("b/loras/w.safetensors"))).toBe(SHA);
      const other = order({
        name: "other.safetensors",
        url: server.url("/other.safetensors"),
        sha256: sha256(OTHER),
      });
      expect(await second.ask(other)).toMatchObject({ failed: "NO_SPACE" });
      expect(readdirSync(join(store, "tmp"))).toEqual([]);
      expect(existsSync(dir.join("b/loras/other.safetensors"))).toBe(false);

      rmSync(dir.join("disk/others"));
      expect(await second.ask(other)).toMatchObject({ brought: { fetched: true } });
      expect(sha256File(dir.join("b/loras/other.safetensors"))).toBe(sha256(OTHER));
    },
  );
});
