import { describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { PredictInput, Predictor } from "../../predict.ts";
import { runCommand } from "../../src/cli/command.ts";
import { COMMANDS } from "../../src/cli/commands.ts";
import type { CliServices } from "../../src/cli/services.ts";
import { unpackTar } from "../../src/platform/archive.ts";
import { silentLogger } from "../../src/platform/log.ts";
import type { BakeFile } from "../../src/weights/bake.ts";
import { bake, planLayers } from "../../src/weights/bake.ts";
import { WeightsDownloader } from "../../weights_downloader.ts";
import { rejection, testConfig, UPSCALER_2X, UPSCALER_4X, weightOrigin } from "../support/app.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { safetensors, sha256, sha256File } from "../support/weights.ts";

function weight(dir: TempDir, path: string, body: Uint8Array): BakeFile {
  const file = dir.join(path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, body);
  return { path, file, size: body.length, sha256: sha256(body) };
}

function tree(root: string): Record<string, string> {
  return Object.fromEntries(
    readdirSync(root, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => `${entry.parentPath}/${entry.name}`)
      .map((path): [string, string] => [path.slice(root.length + 1), sha256File(path)])
      .sort(),
  );
}

const LONG = `loras/${"a-long-folder-name/".repeat(9)}x.safetensors`;

describe("baking", () => {
  test("twice gives the same bytes, whatever the order, the times and the place of the files", async () => {
    using one = tempDir();
    using two = tempDir();
    const bodies: [string, Uint8Array][] = [
      ["checkpoints/a.safetensors", safetensors(70_000)],
      ["loras/b.safetensors", safetensors(3_000)],
      [LONG, safetensors(1_000)],
    ];
    const first = bodies.map(([path, body]) => weight(one, path, body));
    const second = bodies.map(([path, body]) => weight(two, path, body)).toReversed();
    for (const { file } of second) {
      utimesSync(file, 1, 1);
    }
    const layers = await bake(first, { out: one.join("out"), prefix: "/opt/models" });
    await bake(second, { out: two.join("out"), prefix: "/opt/models" });
    expect(tree(two.join("out"))).toEqual(tree(one.join("out")));
    expect(layers).toHaveLength(1);
    expect(layers[0]?.paths).toEqual(
      ["checkpoints/a.safetensors", "loras/b.safetensors", LONG].sort(),
    );
  });

  test("makes a layer of its own of every large weight, and groups the small ones", () => {
    const row = (path: string, size: number) => ({ path, file: path, size, sha256: path });
    const MiB = 2 ** 20;
    const files = [
      row("z", 100 * MiB),
      row("b", 300),
      row("a", 200),
      row("y", 64 * MiB),
      ...Array.from({ length: 10 }, (_, index) => row(`m${index}`, 60 * MiB)),
    ];
    const paths = planLayers(files).map((group) => group.map(({ path }) => path).join(" "));
    expect(paths).toEqual(["y", "z", "a b m0 m1 m2 m3 m4 m5 m6 m7", "m8 m9"]);
    expect(planLayers(files.toReversed())).toEqual(planLayers(files));
  });

  test("writes an OCI image layout: every digest is that of the bytes it names", async () => {
    using dir = tempDir();
    const file = weight(dir, "vae/v.safetensors", safetensors(5_000));
    const [layer] = await bake([file], { out: dir.join("out"), prefix: "/opt/models" });
    const read = (digest: string) => {
      const path = dir.join("out/blobs/sha256", digest.replace("sha256:", ""));
      expect(`sha256:${sha256File(path)}`).toBe(digest);
      return JSON.parse(readFileSync(path, "utf8"));
    };
    expect(JSON.parse(readFileSync(dir.join("out/oci-layout"), "utf8"))).toEqual({
      imageLayoutVersion: "1.0.0",
    });
    const index = read(
      JSON.parse(readFileSync(dir.join("out/index.json"), "utf8")).manifests[0].digest,
    );
    expect(index.manifests.map((one: { platform: unknown }) => one.platform)).toEqual([
      { architecture: "amd64", os: "linux" },
      { architecture: "arm64", os: "linux" },
    ]);
    const manifest = read(index.manifests[0].digest);
    expect(manifest.layers).toEqual([
      {
        mediaType: "application/vnd.oci.image.layer.v1.tar",
        digest: layer?.digest,
        size: layer?.size,
      },
    ]);
    expect(read(manifest.config.digest).rootfs.diff_ids).toEqual([layer?.digest]);
    expect(readFileSync(dir.join("out/Dockerfile"), "utf8")).toContain(
      `ADD blobs/sha256/${layer?.digest.replace("sha256:", "")} /`,
    );
  });

  test("refuses a file that is not what its digest says", async () => {
    using dir = tempDir();
    const file = weight(dir, "vae/v.safetensors", safetensors(5_000));
    const wrong = { ...file, sha256: "0".repeat(64) };
    const failure = await rejection(bake([wrong], { out: dir.join("out"), prefix: "/opt/models" }));
    expect(failure.code).toBe("HASH_MISMATCH");
    expect(readdirSync(dir.join("out/blobs/sha256"))).toEqual([]);
  });
});

describe("a baked weight", () => {
  test("is found at start, trusted by its digest, not downloaded, and not in the store", async () => {
    await using source = weightOrigin({ kits: { both: [UPSCALER_2X, UPSCALER_4X] } });
    using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
    const WeightsManifest = dir.join("manifest.json");
    const config = testConfig(dir, { WEIGHTS_MANIFEST: WeightsManifest });
    await using predictor = new Predictor({ config });
    const services: CliServices = {
      config,
      log: silentLogger,
      inputs: PredictInput,
      signal: new AbortController().signal,
      predictor: () => predictor,
      serve: () => Promise.resolve(0),
    };
    const out: string[] = [];
    const code = await runCommand(["weights", "bake", "both", "-o", dir.join("layers")], COMMANDS, {
      services,
      terminal: {
        out: (text) => out.push(text),
        err: (text) => out.push(text),
        isInteractive: false,
      },
    });
    expect([code, out.join("")]).toEqual([0, expect.stringContaining("1 layer in")]);
    const [blob] = /sha256:([0-9a-f]{64})/.exec(out.join("")) ?? [];
    // What `docker build` does with the layer.
    mkdirSync(dir.join("image"));
    const layer = dir.join("layers/blobs/sha256", blob?.replace("sha256:", "") ?? "");
    const tar = Bun.spawnSync(["tar", "-xf", layer, "-C", dir.join("image")]);
    expect(tar.exitCode).toBe(0);
    await unpackTar(Bun.file(layer).stream(), dir.join("ours"));

    source.origin.reset();
    const baked = dir.join("image/opt/models");
    const env = {
      WEIGHTS_MANIFEST: WeightsManifest,
      COMFYUI_MODELS_DIR: `${dir.join("volume")}:${baked}`,
      WEIGHTS_CACHE_DIR: dir.join("store"),
    };
    await using weights = new WeightsDownloader({ config: testConfig(dir, env) });
    await weights.load_manifest();
    const file = `${baked}/upscale_models/${UPSCALER_2X}`;
    expect(weights.digests.known(file)).toBe(source.files[0]?.sha256);
    const installed = await weights.install(weights.kit_jobs("both"));
    expect(installed.map((one) => [one.file, one.fetched])).toContainEqual([file, false]);
    expect(source.origin.requests).toBe(0);
    expect(weights.store?.usage().bytes).toBe(0);
    // Written to since: no longer trusted unread.
    writeFileSync(file, readFileSync(file));
    expect(statSync(file).mtimeMs).not.toBe(Date.UTC(1980, 0, 1));
    await using later = new WeightsDownloader({ config: testConfig(dir, env) });
    expect(later.digests.known(file)).toBeUndefined();
  });
});
