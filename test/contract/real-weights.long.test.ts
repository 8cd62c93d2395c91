/**
 * Real weights in a real ComfyUI through our whole path: missing → reported → downloaded → verified → listed by ComfyUI →
 * run → result. One pair of published weights (`../shared/weights`), and a checkpoint made by program.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { Predictor } from "../../predict.ts";
import { writeTinyCheckpoint } from "../../scripts/tiny-checkpoint.ts";
import type { RunProgress } from "../../src/comfy/engine.ts";
import type { PreviewEvent } from "../../src/comfy/events.ts";
import { runWorkflow } from "../../src/comfy/run.ts";
import { startEngine } from "../../src/comfy/start.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { AppError } from "../../src/platform/errors.ts";
import { silentLogger } from "../../src/platform/log.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { describeReal, REAL_START_TIMEOUT_MS } from "../support/real-comfy.ts";
import { casePath, describeCases } from "../support/shared.ts";
import { tempDir } from "../support/temp-dir.ts";

const TAEF2_FILES = ["taef2_encoder.pth", "taef2_decoder.pth"];

/** A soft picture, as a photo is: what a tiny autoencoder can give back. */
async function photo(side: number): Promise<Buffer> {
  const pixels = Buffer.alloc(side * side * 3);
  for (let y = 0; y < side; y += 1) {
    for (let x = 0; x < side; x += 1) {
      const at = (y * side + x) * 3;
      const isInside = (x - side * 0.6) ** 2 + (y - side * 0.4) ** 2 < (side * 0.2) ** 2;
      pixels[at] = isInside ? 230 : (x / side) * 200;
      pixels[at + 1] = isInside ? 180 : (y / side) * 160;
      pixels[at + 2] = isInside ? 90 : 140;
    }
  }
  return await sharp(pixels, { raw: { width: side, height: side, channels: 3 } })
    .png()
    .toBuffer();
}

/** Mean difference per channel, 0 to 255. */
async function distance(one: string | Buffer, other: string | Buffer): Promise<number> {
  const [a, b] = await Promise.all(
    [one, other].map(async (file) => await sharp(file).removeAlpha().raw().toBuffer()),
  );
  let sum = 0;
  for (const [index, value] of (a ?? Buffer.alloc(0)).entries()) {
    sum += Math.abs(value - (b?.[index] ?? 0));
  }
  return sum / (a?.length ?? 1);
}

const TAEF2_GRAPH = {
  "1": { class_type: "LoadImage", inputs: { image: "input.png" }, _meta: { title: "Photo" } },
  "2": { class_type: "VAELoader", inputs: { vae_name: "taef2" }, _meta: { title: "Tiny VAE" } },
  "3": { class_type: "VAEEncode", inputs: { pixels: ["1", 0], vae: ["2", 0] } },
  "4": { class_type: "VAEDecode", inputs: { samples: ["3", 0], vae: ["2", 0] } },
  "5": { class_type: "SaveImage", inputs: { images: ["4", 0], filename_prefix: "back" } },
};

describeReal("real weights", ({ env, path }) => {
  const isOld = readFileSync(join(path, "comfyui_version.py"), "utf8").includes('"0.3.');

  describeCases("../weights", () => {
    test.skipIf(isOld)(
      `published weights are reported missing, then fetched, verified, listed and used${isOld ? ": skipped, ComfyUI 0.3 has no taef2" : ""}`,
      async () => {
        using dir = tempDir({ "photo.png": await photo(256) });
        const origin = Bun.serve({
          hostname: "127.0.0.1",
          port: 0,
          fetch: (request) =>
            new Response(Bun.file(casePath("../weights", new URL(request.url).pathname.slice(1)))),
        });
        const manifest = {
          version: 2,
          weights: TAEF2_FILES.map((name) => ({
            name,
            category: "vae_approx",
            urls: [`http://127.0.0.1:${origin.port}/${name}`],
            size: statSync(casePath("../weights", name)).size,
            sha256: new Bun.CryptoHasher("sha256")
              .update(readFileSync(casePath("../weights", name)))
              .digest("hex"),
          })),
        };
        await Bun.write(dir.join("manifest.json"), JSON.stringify(manifest));
        await using predictor = new Predictor({
          config: parseEnv({
            ...env,
            WEIGHTS_MANIFEST: dir.join("manifest.json"),
            COMFYUI_MODELS_DIR: dir.join("models"),
            WORK_DIR: dir.join("work"),
          }),
        });
        await predictor.setup();
        const input = {
          workflow_json: JSON.stringify(TAEF2_GRAPH),
          input_file: dir.join("photo.png"),
          output_format: "png" as const,
        };
        const refused = await predictor.predict(input).catch((error: unknown) => error);
        expect(refused).toBeInstanceOf(AppError);
        expect(refused).toMatchObject({ code: "WEIGHTS_MISSING" });
        for (const name of TAEF2_FILES) {
          expect(String(refused)).toContain(name);
        }
        const [picture] = await predictor.predict({ ...input, download_missing_weights: true });
        for (const { name, size } of manifest.weights) {
          expect(statSync(dir.join("models/vae_approx", name)).size).toBe(size);
        }
        expect(await distance(dir.join("photo.png"), picture ?? "")).toBeLessThan(8);
        const [again] = await predictor.predict(input);
        expect(await distance(picture ?? "", again ?? "")).toBe(0);
        await origin.stop(true);
      },
      REAL_START_TIMEOUT_MS,
    );
  });

  describe("a checkpoint", () => {
    const dir = tempDir();
    let engine: Awaited<ReturnType<typeof startEngine>>;
    beforeAll(async () => {
      await Bun.write(dir.join("models/checkpoints/.keep"), "");
      writeTinyCheckpoint(dir.join("models/checkpoints/tiny.safetensors"));
      engine = await startEngine({
        config: parseEnv({
          ...env,
          COMFYUI_MODELS_DIR: dir.join("models"),
          WORK_DIR: dir.join("work"),
        }),
        log: silentLogger,
      });
    }, REAL_START_TIMEOUT_MS);
    afterAll(async () => {
      await engine?.[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    });

    const graph = (steps: number, seed: number | bigint): Graph => ({
      "1": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "tiny.safetensors" } },
      "2": { class_type: "CLIPTextEncode", inputs: { text: "a cat", clip: ["1", 1] } },
      "3": { class_type: "CLIPTextEncode", inputs: { text: "", clip: ["1", 1] } },
      "4": {
        class_type: "EmptyLatentImage",
        inputs: { width: 128, height: 128, batch_size: 1 },
      },
      "5": {
        class_type: "KSampler",
        inputs: {
          model: ["1", 0],
          positive: ["2", 0],
          negative: ["3", 0],
          latent_image: ["4", 0],
          seed,
          steps,
          cfg: 2,
          sampler_name: "euler",
          scheduler: "normal",
          denoise: 1,
        },
        _meta: { title: "Sample" },
      },
      "6": {
        class_type: "SaveLatent",
        inputs: { samples: ["5", 0], filename_prefix: `latents/${crypto.randomUUID()}` },
      },
    });

    test(
      "is loaded and sampled with real progress and previews, and a seed of 64 bits",
      async () => {
        const progress: RunProgress[] = [];
        const previews: PreviewEvent[] = [];
        const result = await runWorkflow(engine, graph(6, 18_446_744_073_709_551_615n), {
          log: silentLogger,
          onProgress: (at) => progress.push(at),
          onPreview: (preview) => previews.push(preview),
        });
        expect(result.files).toMatchObject([{ nodeId: "6", key: "latents" }]);
        const steps = progress.filter(({ nodeId, max }) => nodeId === "5" && max === 6);
        expect(steps.at(-1)).toMatchObject({ nodeTitle: "Sample", value: 6, total: 6 });
        expect(steps.length).toBeGreaterThanOrEqual(6);
        expect(previews.length).toBeGreaterThan(0);
        const { width } = await sharp(Buffer.from(previews[0]?.image ?? [])).metadata();
        expect(width).toBeGreaterThan(0);
      },
      REAL_START_TIMEOUT_MS,
    );

    test(
      "is interrupted within a node, and the next run is untouched",
      async () => {
        const cancel = new AbortController();
        const run = runWorkflow(engine, graph(500, 2), {
          log: silentLogger,
          signal: cancel.signal,
          onProgress: ({ value }) => {
            if (value === 3) {
              cancel.abort();
            }
          },
        });
        await expect(run).rejects.toMatchObject({ code: "CANCELED" });
        const result = await runWorkflow(engine, graph(1, 3), { log: silentLogger });
        expect(result.files).toHaveLength(1);
        expect(result.cachedNodes).toContain("1");
      },
      REAL_START_TIMEOUT_MS,
    );

    test(
      "without a VAE fails in the node that needs one, by name",
      async () => {
        const broken: Graph = {
          ...graph(1, 4),
          "7": {
            class_type: "VAEDecode",
            inputs: { samples: ["5", 0], vae: ["1", 2] },
            _meta: { title: "Decode" },
          },
          "8": { class_type: "SaveImage", inputs: { images: ["7", 0], filename_prefix: "x" } },
        };
        const run = runWorkflow(engine, broken, { log: silentLogger });
        await expect(run).rejects.toMatchObject({
          code: "NODE_FAILED",
          message: expect.stringContaining('node 7 "Decode" (VAEDecode) failed'),
        });
      },
      REAL_START_TIMEOUT_MS,
    );
  });
});
