import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { PredictInput, Predictor } from "../../predict.ts";
import { runCommand } from "../../src/cli/command.ts";
import { COMMANDS } from "../../src/cli/commands.ts";
import type { CliServices } from "../../src/cli/services.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { LockFile } from "../../src/weights/lock.ts";
import { pinnedAddress } from "../../src/weights/lock-make.ts";
import { WeightsDownloader } from "../../weights_downloader.ts";
import { rejection, testConfig } from "../support/app.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, WeightServer } from "../support/weight-server.ts";
import { safetensors, sha256, sha256File } from "../support/weights.ts";

const V1 = safetensors(40_000);
const V2 = safetensors(40_000);
const LONGER = safetensors(50_000);

interface World extends Disposable {
  readonly server: WeightServer;
  readonly dir: TempDir;
  readonly lockPath: string;
  env: Record<string, string>;
}

/** An origin with one moving file, a manifest that knows it without size and hash, and a lock file's path. */
async function world(): Promise<World> {
  const server = await WeightServer.start();
  server.on("/a.safetensors", file(V1, { etag: '"one"' }));
  const dir = tempDir();
  const manifest = {
    version: 2,
    weights: [
      { name: "a.safetensors", category: "loras", urls: [server.url("/a.safetensors")] },
      { name: "b.safetensors", category: "loras", urls: [server.url("/b.safetensors")] },
    ],
    kits: { one: ["a.safetensors"] },
  };
  writeFileSync(dir.join("manifest.json"), JSON.stringify(manifest));
  const lockPath = dir.join("weights.lock.json");
  return {
    server,
    dir,
    lockPath,
    env: { WEIGHTS_MANIFEST: dir.join("manifest.json"), WEIGHTS_LOCK: lockPath },
    [Symbol.dispose]: () => {
      server[Symbol.dispose]();
      dir[Symbol.dispose]();
    },
  };
}

async function command(world: World, line: readonly string[]) {
  const config = testConfig(world.dir, world.env);
  await using predictor = new Predictor({ config });
  const out: string[] = [];
  const services: CliServices = {
    config,
    log: silentLogger,
    inputs: PredictInput,
    signal: new AbortController().signal,
    predictor: () => predictor,
    serve: () => Promise.resolve(0),
  };
  const code = await runCommand(line, COMMANDS, {
    services,
    terminal: {
      out: (text) => out.push(text),
      err: (text) => out.push(text),
      isInteractive: false,
    },
  });
  return { code, text: out.join("") };
}

async function downloader(world: World) {
  const weights = new WeightsDownloader({ config: testConfig(world.dir, world.env) });
  await weights.load_manifest();
  return weights;
}

/** Installs a.safetensors and locks it as it is. */
async function locked(world: World): Promise<void> {
  const { WEIGHTS_LOCK: _, ...withoutLock } = world.env;
  await using weights = new WeightsDownloader({ config: testConfig(world.dir, withoutLock) });
  await weights.load_manifest();
  await weights.install(weights.kit_jobs("one"));
  const { code, text } = await command(world, ["weights", "lock", "one"]);
  expect({ code, text }).toMatchObject({ code: 0 });
}

describe("the lock file", () => {
  test("is written sorted and the same twice, and a row that says nothing new keeps its date", () => {
    const row = (name: string, locked: string, sha = "a".repeat(64)) => ({
      name,
      category: "loras",
      url: `https://h/${name}`,
      sha256: sha,
      locked,
    });
    const first = new LockFile("x", [
      row("b", "2026-01-01T00:00:00Z"),
      row("a", "2026-01-01T00:00:00Z"),
    ]);
    const again = first.with([
      row("a", "2026-02-02T00:00:00Z"),
      row("b", "2026-02-02T00:00:00Z", "b".repeat(64)),
    ]);
    expect(LockFile.parse(first.toText(), "x").toText()).toBe(first.toText());
    expect(again.rows.map(({ name, locked }) => [name, locked.slice(0, 7)])).toEqual([
      ["a", "2026-01"],
      ["b", "2026-02"],
    ]);
  });

  test("with a row twice, a wrong hash or a climbing name is refused with the row's place", () => {
    const text = (row: object) =>
      JSON.stringify({
        version: 1,
        weights: [
          { name: "a", category: "loras", url: "u", locked: "2026-01-01T00:00:00Z", ...row },
        ],
      });
    expect(() => LockFile.parse(text({ sha256: "xyz" }), "f")).toThrow("weights.0.sha256");
    expect(() => LockFile.parse(text({ name: "../a" }), "f")).toThrow("weights.0.name");
    expect(() => LockFile.parse("{", "f")).toThrow("f is no lock file: it is not JSON");
  });

  test("names the commit in addresses of Hugging Face, and leaves others alone", () => {
    expect(pinnedAddress("hf://o/r/sub/a.gguf", "abc")).toBe("hf://o/r@abc/sub/a.gguf");
    expect(pinnedAddress("hf://o/r@main/a.gguf", "abc")).toBe("hf://o/r@abc/a.gguf");
    expect(pinnedAddress("https://huggingface.co/o/r/resolve/main/a.bin", "abc")).toBe(
      "https://huggingface.co/o/r/resolve/abc/a.bin",
    );
    expect(pinnedAddress("https://h/a.bin", "abc")).toBe("https://h/a.bin");
    expect(pinnedAddress("hf://o/r/a.bin", undefined)).toBe("hf://o/r/a.bin");
  });
});

describe("weights lock", () => {
  test("pins name, source, length, digest and validator, and a second run changes nothing", async () => {
    using here = await world();
    await locked(here);
    const text = readFileSync(here.lockPath, "utf8");
    expect(JSON.parse(text)).toEqual({
      version: 1,
      weights: [
        {
          name: "a.safetensors",
          category: "loras",
          url: here.server.url("/a.safetensors"),
          size: V1.length,
          sha256: sha256(V1),
          etag: '"one"',
          locked: expect.stringMatching(/^\d{4}-.*Z$/),
        },
      ],
    });
    const again = await command(here, ["weights", "lock", "one"]);
    expect(again).toMatchObject({ code: 0 });
    expect(again.text).toContain("locked already  loras/a.safetensors");
    expect(readFileSync(here.lockPath, "utf8")).toBe(text);
  });

  test("outdated shows both versions, --update moves one, and the new one is then installed", async () => {
    using here = await world();
    await locked(here);
    expect(await command(here, ["weights", "outdated"])).toMatchObject({ code: 0 });
    here.server.on("/a.safetensors", file(LONGER, { etag: '"two"' }));
    const outdated = await command(here, ["weights", "outdated"]);
    expect(outdated.code).toBe(1);
    expect(outdated.text).toContain("changed  loras/a.safetensors");
    expect(outdated.text).toContain('ETag "one"');
    expect(outdated.text).toContain('ETag "two"');
    expect(here.server.fetches("/a.safetensors").length).toBe(1);

    const moved = await command(here, ["weights", "lock", "--update", "a.safetensors"]);
    expect(moved).toMatchObject({ code: 0 });
    expect(LockFile.read(here.lockPath).rows[0]).toMatchObject({
      size: LONGER.length,
      etag: '"two"',
    });
    await using weights = await downloader(here);
    const [installed] = await weights.install(weights.kit_jobs("one"));
    expect(installed).toMatchObject({ fetched: true, sha256: sha256(LONGER) });
  });

  test("of a name that is not in the file says which are", async () => {
    using here = await world();
    await locked(here);
    const { code, text } = await command(here, ["weights", "lock", "--update", "b.safetensors"]);
    expect(code).toBe(1);
    expect(text).toContain("b.safetensors is not in");
  });
});

describe("a locked weight", () => {
  test("that lies there with its digest asks no source, also where the source has gone", async () => {
    using here = await world();
    await locked(here);
    here.server.on("/a.safetensors", (_request, reply) => reply.send(404));
    const before = here.server.requests.length;
    await using weights = await downloader(here);
    const [installed] = await weights.install(weights.kit_jobs("one"));
    expect(installed).toMatchObject({ fetched: false });
    expect(here.server.requests.length).toBe(before);
  });

  test("whose source has drifted is an error that shows both", async () => {
    using here = await world();
    await locked(here);
    const path = here.dir.join("models/loras/a.safetensors");
    renameSync(path, here.dir.join("away"));
    here.server.on("/a.safetensors", file(V2, { etag: '"two"' }));
    await using weights = await downloader(here);
    const drift = await rejection(weights.install(weights.kit_jobs("one")));
    expect(drift.code).toBe("LOCK_DRIFT");
    expect(drift.message).toContain(sha256(V1));
    expect(drift.message).toContain(sha256(V2));
    expect(drift.hint).toContain("weights lock --update a.safetensors");
    expect(existsSync(path)).toBe(false);
  });

  test("replaces another version of ours, and somebody else's file is told with both digests", async () => {
    using here = await world();
    await locked(here);
    const path = here.dir.join("models/loras/a.safetensors");
    const v1 = LockFile.read(here.lockPath);
    // The next version, installed by us under the same name and of the same length.
    here.server.on("/a2.safetensors", file(V2));
    const [row] = v1.rows;
    new LockFile(here.lockPath, [
      { ...row!, url: here.server.url("/a2.safetensors"), sha256: sha256(V2) },
    ]).write();
    await using second = await downloader(here);
    expect(await second.install(second.kit_jobs("one"))).toMatchObject([{ fetched: true }]);
    expect(sha256File(path)).toBe(sha256(V2));
    // Rolled back.
    v1.write();
    await using first = await downloader(here);
    expect(await first.install(first.kit_jobs("one"))).toMatchObject([{ fetched: true }]);
    expect(sha256File(path)).toBe(sha256(V1));
    // A stranger's file of the same length.
    renameSync(path, here.dir.join("away"));
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, V2);
    await using third = await downloader(here);
    const drift = await rejection(third.install(third.kit_jobs("one")));
    expect(drift).toMatchObject({ code: "LOCK_DRIFT" });
    expect(drift.message).toContain(sha256(V1));
    expect(drift.message).toContain(sha256(V2));
    expect(sha256File(path)).toBe(sha256(V2));
  });

  test("is enforced by setup", async () => {
    using here = await world();
    await locked(here);
    renameSync(here.dir.join("models/loras/a.safetensors"), here.dir.join("away"));
    here.server.on("/a.safetensors", file(LONGER));
    const config = testConfig(here.dir, { ...here.env, BASE_MODEL_KIT: "one" });
    await using predictor = new Predictor({ config });
    expect(await rejection(predictor.setup())).toMatchObject({ code: "LOCK_DRIFT" });
  });
});
