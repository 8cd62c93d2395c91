/**
 * Models and store on a file system that behaves as a network's does, of this machine all the same: FUSE, by bindfs
 * (Debian's package), where it is on PATH and this user may mount. It keeps the names of files that are open, and locks
 * and times on it are not to be trusted.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
} from "node:fs";
import { removeTree } from "../../src/platform/files.ts";
import { listPartials } from "../../src/weights/journal.ts";
import { rejection } from "../support/app.ts";
import { StoreProcess } from "../support/store-process.ts";
import { tar } from "../support/tar.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, isFetch, WeightServer } from "../support/weight-server.ts";
import { job, quickInstaller, safetensors, sha256, sha256File } from "../support/weights.ts";

const BODY = safetensors(3_000_000);
const SHA = sha256(BODY);
/** An owner that says nothing is waited for half a minute; these have nothing to wait for. */
const SOONER_THAN_SILENCE_MS = 25_000;

function reasonNotTo(): string | undefined {
  if (Bun.which("bindfs") === null) {
    return "bindfs is not on PATH";
  }
  using dir = tempDir();
  mkdirSync(dir.join("from"));
  mkdirSync(dir.join("to"));
  const mounted = Bun.spawnSync(["bindfs", dir.join("from"), dir.join("to")]).success;
  if (mounted) {
    Bun.spawnSync(["umount", "-l", dir.join("to")]);
  }
  return mounted ? undefined : "this user may not mount FUSE";
}

const reason = reasonNotTo();

if (reason !== undefined) {
  test.skip(`models and store on a FUSE mount: skipped, ${reason}`, () => undefined);
} else {
  describe("on a FUSE mount", () => {
    let disk: TempDir;
    let dir: string;
    let count = 0;

    beforeAll(() => {
      disk = tempDir();
      mkdirSync(disk.join("from"));
      mkdirSync(disk.join("to"));
      expect(Bun.spawnSync(["bindfs", disk.join("from"), disk.join("to")]).success).toBe(true);
    });

    afterAll(() => {
      Bun.spawnSync(["umount", "-l", disk.join("to")]);
      disk[Symbol.dispose]();
    });

    function fresh(): string {
      count += 1;
      dir = disk.join("to", String(count));
      mkdirSync(dir);
      return dir;
    }

    async function start(name: string, more: Readonly<Record<string, unknown>> = {}) {
      const child = new StoreProcess({ store: `${dir}/store`, models: `${dir}/${name}`, ...more });
      await child.next();
      return child;
    }

    function litter(folder: string): string[] {
      return readdirSync(folder, { recursive: true })
        .map(String)
        .filter((name) => /\.(gone|new)-|fuse_hidden|\.cog-new$/.test(name));
    }

    test("several processes fetch a weight once, and leave no litter", async () => {
      fresh();
      using server = await WeightServer.start();
      server.on("/w.safetensors", file(BODY, { bytesPerSecond: 6_000_000 }));
      const names = ["a", "b", "c", "d"];
      const children = await Promise.all(names.map((name) => start(name, { mode: "auto" })));
      const order = { do: "bring", name: "w.safetensors", url: server.url("/w.safetensors") };
      const answers = await Promise.all(children.map((child) => child.ask(order)));
      expect(answers.map(({ failed }) => failed)).toEqual(names.map(() => undefined));
      for (const name of names) {
        const path = `${dir}/${name}/loras/w.safetensors`;
        expect(sha256File(path)).toBe(SHA);
        // Through a network a model loads many times slower than from a copy.
        expect(lstatSync(path).isSymbolicLink()).toBe(false);
      }
      const begun = server.requests.filter(
        (request) => isFetch(request) && (request.range?.start ?? 0) === 0,
      );
      expect(begun).toHaveLength(1);
      await Promise.all(children.map((child) => child.ask({ do: "end" })));
      expect(litter(dir)).toEqual([]);
    });

    test(
      "what a killed process began is gone on with at once",
      async () => {
        fresh();
        using server = await WeightServer.start();
        server.on("/w.safetensors", file(BODY, { bytesPerSecond: 500_000 }));
        const order = {
          do: "bring",
          name: "w.safetensors",
          url: server.url("/w.safetensors"),
          progress: true,
        };
        await using leader = await start("a");
        leader.send(order);
        while (!leader.progress.some((one) => JSON.stringify(one).match(/"doneBytes":[1-9]/))) {
          await Bun.sleep(5);
        }
        await leader.kill();
        server.on("/w.safetensors", file(BODY));
        await using heir = await start("b");
        expect(await heir.ask(order)).toMatchObject({ brought: { sha256: SHA, fetched: true } });
      },
      SOONER_THAN_SILENCE_MS,
    );

    test(
      "a try after a failed one need not wait for it",
      async () => {
        const models = fresh();
        using server = await WeightServer.start();
        const destination = `${models}/loras/w.safetensors`;
        server.on("/w.safetensors", file(BODY, { bytesPerSecond: 500_000 }));
        await using installer = quickInstaller(models);
        const ending = new AbortController();
        const first = installer.install([job(destination, server.url("/w.safetensors"))], {
          signal: ending.signal,
          onProgress: ({ doneBytes }) => doneBytes > 100_000 && ending.abort(),
        });
        await expect(first).rejects.toMatchObject({ code: "CANCELED" });
        server.on("/w.safetensors", file(BODY));
        await installer.install([job(destination, server.url("/w.safetensors"))]);
        expect(sha256File(destination)).toBe(SHA);
        expect(litter(models)).toEqual([]);
      },
      SOONER_THAN_SILENCE_MS,
    );

    test(
      "a tar that is cut goes on, though its members were being written to their places",
      async () => {
        const models = fresh();
        const bytes = tar([
          { name: "kit/w.safetensors", body: BODY },
          { name: "kit/v.safetensors", body: BODY },
        ]);
        using server = await WeightServer.start();
        server.on("/w.tar", file(bytes, { bytesPerSecond: 500_000 }));
        const wanted = job(`${models}/diffusers`, server.url("/w.tar"), {
          name: "kit",
          unpack: "tar",
        });
        await using installer = quickInstaller(models);
        for (const enough of [2_500_000, 4_500_000]) {
          const ending = new AbortController();
          const run = installer.install([wanted], {
            signal: ending.signal,
            onProgress: ({ doneBytes }) => doneBytes > enough && ending.abort(),
          });
          // Not `.rejects`: while that waits, immediates come late.
          expect((await rejection(run)).code).toBe("CANCELED");
          const [left] = listPartials([models]);
          expect(readFileSync(`${left?.path}/journal`, "utf8")).toMatch(/^d /m);
        }
        server.on("/w.tar", file(bytes));
        const before = server.requests.length;
        await installer.install([wanted]);
        expect(server.askedBytes("/w.tar", before)).toBeLessThan(bytes.length - 3_000_000);
        for (const name of ["w", "v"]) {
          expect(sha256File(`${models}/diffusers/kit/${name}.safetensors`)).toBe(SHA);
        }
        expect(litter(models)).toEqual([]);
        expect(listPartials([models])).toEqual([]);
      },
      SOONER_THAN_SILENCE_MS,
    );

    test("a folder in which a file is open is left, not removed for ever", () => {
      const folder = `${fresh()}/tree`;
      mkdirSync(folder);
      const fd = openSync(`${folder}/open`, "w");
      removeTree(folder);
      // Where the file system lets go of the name, the folder has gone; here it keeps one.
      expect(readdirSync(folder)).toHaveLength(1);
      closeSync(fd);
      removeTree(folder);
      expect(existsSync(folder)).toBe(false);
    });
  });
}
