import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { WeightsDownloader } from "../weights_downloader.ts";
import { rejection, testConfig, UPSCALER_2X, UPSCALER_4X, weightOrigin } from "./support/app.ts";
import { tempDir } from "./support/temp-dir.ts";

describe("WeightsDownloader", () => {
  test("takes its settings from the environment when constructed with no argument", async () => {
    await using weights = new WeightsDownloader();
    expect(weights.weight_exists("no such weight.safetensors")).toBe(false);
    expect(weights.manifest.kits.has("sd15")).toBe(true);
  });

  test("download_weights brings a weight by its name: fetched, verified, in its folder, found", async () => {
    await using source = weightOrigin();
    using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
    await using weights = new WeightsDownloader({
      config: testConfig(dir, { WEIGHTS_MANIFEST: dir.join("manifest.json") }),
    });
    await weights.load_manifest();
    expect(weights.weight_exists(UPSCALER_2X)).toBe(false);
    const [installed] = await weights.download_weights(UPSCALER_2X);
    expect(installed).toMatchObject({
      name: UPSCALER_2X,
      fetched: true,
      sha256: source.files[0]?.sha256,
    });
    expect(readFileSync(dir.join("models/upscale_models", UPSCALER_2X))).toEqual(
      Buffer.from(source.files[0]!.bytes),
    );
    expect(weights.weight_exists(UPSCALER_2X)).toBe(true);
    expect(weights.weight_exists(`upscale_models/${UPSCALER_2X}`)).toBe(true);
    expect(weights.weight_exists(`loras/${UPSCALER_2X}`)).toBe(false);
  });

  test("download_weights asks no server for what is there already", async () => {
    await using source = weightOrigin();
    using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
    const config = testConfig(dir, { WEIGHTS_MANIFEST: dir.join("manifest.json") });
    await using weights = new WeightsDownloader({ config });
    await weights.load_manifest();
    await weights.download_weights([UPSCALER_2X, UPSCALER_4X]);
    source.origin.reset();
    const again = await weights.download_weights([UPSCALER_2X, UPSCALER_4X]);
    expect(again.map(({ fetched }) => fetched)).toEqual([false, false]);
    expect(source.origin.requests).toBe(0);
  });

  test("names a weight that nothing knows, and says where to add it", async () => {
    using dir = tempDir();
    await using weights = new WeightsDownloader({ config: testConfig(dir) });
    expect(await rejection(weights.download_weights("made-up.safetensors"))).toMatchObject({
      code: "WEIGHT_UNKNOWN",
      message: expect.stringContaining("made-up.safetensors"),
      hint: expect.stringContaining("WEIGHTS_MANIFEST"),
    });
  });

  test("publishes nothing when the bytes are not the ones the manifest promises", async () => {
    await using source = weightOrigin();
    const wrong = structuredClone(source.manifest) as { weights: { sha256: string }[] };
    wrong.weights[0]!.sha256 = "0".repeat(64);
    using dir = tempDir({ "manifest.json": JSON.stringify(wrong) });
    await using weights = new WeightsDownloader({
      config: testConfig(dir, { WEIGHTS_MANIFEST: dir.join("manifest.json") }),
    });
    await weights.load_manifest();
    expect((await rejection(weights.download_weights(UPSCALER_2X))).code).toBe("HASH_MISMATCH");
    expect(existsSync(dir.join("models/upscale_models", UPSCALER_2X))).toBe(false);
  });

  test("accepts the original's weights.json as it is", async () => {
    using dir = tempDir({
      "original.json": JSON.stringify({ LORAS: ["mine.safetensors"], VAE: ["ae.safetensors"] }),
    });
    await using weights = new WeightsDownloader({
      config: testConfig(dir, { WEIGHTS_MANIFEST: dir.join("original.json") }),
    });
    await weights.load_manifest();
    const resolution = weights.resolve("mine.safetensors", "operator");
    expect(resolution).toMatchObject({
      kind: "jobs",
      jobs: [{ category: "loras", destination: dir.join("models/loras"), unpack: "tar" }],
    });
  });

  test("reads WEIGHTS_MANIFEST from an address, and says what is wrong with one it can't read", async () => {
    await using source = weightOrigin();
    using dir = tempDir();
    await using server = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: (request) =>
        request.url.endsWith("/good.json")
          ? Response.json(source.manifest)
          : new Response("<html>", { status: request.url.endsWith("/404.json") ? 404 : 200 }),
    });
    const at = (path: string) =>
      new WeightsDownloader({
        config: testConfig(dir, { WEIGHTS_MANIFEST: `${server.url}${path}` }),
      });
    await using good = at("good.json");
    await good.load_manifest();
    expect(good.kit_jobs("tiny").map(({ name }) => name)).toEqual([UPSCALER_2X]);
    await using missing = at("404.json");
    expect((await rejection(missing.load_manifest())).message).toContain("answers 404");
    await using html = at("page.json");
    expect(await rejection(html.load_manifest())).toMatchObject({ code: "MANIFEST_INVALID" });
  });

  test("an unknown kit is answered with the known ones", async () => {
    using dir = tempDir();
    await using weights = new WeightsDownloader({ config: testConfig(dir) });
    const error = await rejection(Promise.try(() => weights.kit_jobs("sd16")));
    expect(error.code).toBe("KIT_UNKNOWN");
    expect(error.message).toMatch(/sd15.*sdxl.*flux/);
  });
});
