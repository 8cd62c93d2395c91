/** The embedded engine beside a real ComfyUI: the same graphs give the same pixels, give or take one level. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import sharp from "sharp";
import { samplePicture } from "../../scripts/picture.ts";
import { tinyUpscaler } from "../../scripts/tiny-upscaler.ts";
import { encodePng } from "../../src/comfy/embedded/png.ts";
import type { Engine } from "../../src/comfy/engine.ts";
import { startEngine } from "../../src/comfy/start.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { silentLogger } from "../../src/platform/log.ts";
import type { Json, TestGraph } from "../support/embedded.ts";
import { promptOf, TestEngine } from "../support/embedded.ts";
import { describeReal, REAL_START_TIMEOUT_MS } from "../support/real-comfy.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";

const load = (image: string) => ["LoadImage", { image }] as const;
const preview = (node: string, slot = 0) => ["PreviewImage", { images: [node, slot] }] as const;
const redMask = ["LoadImageMask", { image: "picture.png", channel: "red" }] as const;

/** One node on the sample picture. */
function onPicture(className: string, inputs: Readonly<Record<string, unknown>>): TestGraph {
  return {
    "1": load("picture.png"),
    "2": [className, { image: ["1", 0], ...inputs }],
    "3": preview("2"),
  };
}

/** One node on the red channel of the sample picture. */
function onMask(className: string, inputs: Readonly<Record<string, unknown>>): TestGraph {
  return {
    "1": redMask,
    "2": [className, { mask: ["1", 0], ...inputs }],
    "3": ["MaskPreview", { mask: ["2", 0] }],
  };
}

function onBoth(className: string, inputs: Readonly<Record<string, unknown>>): TestGraph {
  return {
    "1": load("picture.png"),
    "2": load("noise.png"),
    "3": redMask,
    "4": [className, inputs],
    "5": preview("4"),
  };
}

const SCALES = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"].flatMap((method) =>
  [
    [100, 90],
    [20, 13],
    [7, 111],
    [150, 20],
    [0, 30],
  ].flatMap(([width, height]) =>
    ["disabled", "center"].map((crop): [string, TestGraph] => [
      `ImageScale ${method} ${width}×${height} ${crop}`,
      onPicture("ImageScale", { upscale_method: method, width, height, crop }),
    ]),
  ),
);

const BLENDS = ["normal", "multiply", "screen", "overlay", "soft_light", "difference"].map(
  (blendMode): [string, TestGraph] => [
    `ImageBlend ${blendMode}`,
    onBoth("ImageBlend", {
      image1: ["1", 0],
      image2: ["2", 0],
      blend_factor: 0.37,
      blend_mode: blendMode,
    }),
  ],
);

const COMPOSITES = ["multiply", "add", "subtract", "and", "or", "xor"].map(
  (operation): [string, TestGraph] => [
    `MaskComposite ${operation}`,
    {
      "1": redMask,
      "2": ["LoadImageMask", { image: "noise.png", channel: "green" }],
      "3": ["MaskComposite", { destination: ["1", 0], source: ["2", 0], x: 40, y: 20, operation }],
      "4": ["MaskPreview", { mask: ["3", 0] }],
    },
  ],
);

const upscaled = (model: string, side: number): TestGraph => ({
  "1": load("picture.png"),
  "2": [
    "ImageScale",
    { image: ["1", 0], upscale_method: "bicubic", width: side, height: 43, crop: "disabled" },
  ],
  "3": ["UpscaleModelLoader", { model_name: model }],
  "4": ["ImageUpscaleWithModel", { upscale_model: ["3", 0], image: ["2", 0] }],
  "5": preview("4"),
});

const GRAPHS: readonly [string, TestGraph][] = [
  ...SCALES,
  ...BLENDS,
  ...COMPOSITES,
  [
    "LoadImage with alpha",
    { "1": load("alpha.png"), "2": preview("1"), "3": ["MaskPreview", { mask: ["1", 1] }] },
  ],
  ["ImageInvert", onPicture("ImageInvert", {})],
  ["ImageCrop", onPicture("ImageCrop", { width: 30, height: 90, x: 20, y: 30 })],
  ["ImageRotate", onPicture("ImageRotate", { rotation: "270 degrees" })],
  ["ImageFlip", onPicture("ImageFlip", { flip_method: "x-axis: vertically" })],
  [
    "ImagePadForOutpaint",
    {
      ...onPicture("ImagePadForOutpaint", { left: 1, top: 2, right: 3, bottom: 4, feathering: 9 }),
      "4": ["MaskPreview", { mask: ["2", 1] }],
    },
  ],
  ["ImageBatch", onBoth("ImageBatch", { image1: ["1", 0], image2: ["2", 0] })],
  [
    "ImageCompositeMasked",
    onBoth("ImageCompositeMasked", {
      destination: ["1", 0],
      source: ["2", 0],
      x: 30,
      y: 20,
      resize_source: false,
      mask: ["3", 0],
    }),
  ],
  ["FeatherMask", onMask("FeatherMask", { left: 9, top: 0, right: 20, bottom: 100 })],
  ["GrowMask", onMask("GrowMask", { expand: 3, tapered_corners: true })],
  ["GrowMask inwards", onMask("GrowMask", { expand: -2, tapered_corners: false })],
  ["ThresholdMask", onMask("ThresholdMask", { value: 0.4 })],
  ["the tiny 2x upscaler", upscaled("tiny2.safetensors", 61)],
  ["the tiny 4x upscaler", upscaled("tiny4.safetensors", 61)],
  ["tiles of an upscaler", upscaled("tiny2.safetensors", 700)],
];

function noise(length: number): Uint8Array {
  return Uint8Array.from(
    { length },
    (_, index) => (Math.imul(index + 1, 2_654_435_761) >>> 13) & 0xff,
  );
}

async function inputFiles(): Promise<Record<string, Uint8Array>> {
  return {
    "picture.png": await samplePicture(61, 43),
    "noise.png": await encodePng({ width: 37, height: 29, channels: 3, data: noise(37 * 29 * 3) }),
    "alpha.png": await encodePng({ width: 17, height: 11, channels: 4, data: noise(17 * 11 * 4) }),
  };
}

function modelFiles(): Record<string, Uint8Array> {
  return { "tiny2.safetensors": tinyUpscaler(2), "tiny4.safetensors": tinyUpscaler(4) };
}

function placed(
  folder: string,
  files: Readonly<Record<string, Uint8Array>>,
): Record<string, Uint8Array> {
  return Object.fromEntries(
    Object.entries(files).map(([name, bytes]) => [`${folder}/${name}`, bytes]),
  );
}

/** Runs a graph and gives the pictures of all its nodes. */
async function picturesOf(url: string, graph: TestGraph) {
  const response = await fetch(`${url}/prompt`, {
    method: "POST",
    body: JSON.stringify({ prompt: promptOf(graph) }),
  });
  const { prompt_id: id }: Json = await response.json();
  for (;;) {
    const history: Json = await (await fetch(`${url}/history/${id}`)).json();
    const entry = history[id];
    if (entry === undefined) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      continue;
    }
    expect(entry.status.status_str).toBe("success");
    const files = Object.keys(entry.outputs)
      .sort()
      .flatMap((node): Json[] => entry.outputs[node].images);
    return await Promise.all(
      files.map(async ({ filename, subfolder, type }) => {
        const query = new URLSearchParams({ filename, subfolder, type });
        const bytes = await (await fetch(`${url}/view?${query}`)).bytes();
        return await sharp(bytes).raw().toBuffer({ resolveWithObject: true });
      }),
    );
  }
}

describeReal("the embedded engine beside a real ComfyUI", ({ env, path }) => {
  describe(path, () => {
    let dir: TempDir;
    let real: Engine;
    let ours: TestEngine;

    beforeAll(async () => {
      const inputs = await inputFiles();
      dir = tempDir(placed("models/upscale_models", modelFiles()));
      ours = new TestEngine({
        ...placed("input", inputs),
        ...placed("models/upscale_models", modelFiles()),
      });
      real = await startEngine({
        config: parseEnv({
          ...env,
          COMFYUI_MODELS_DIR: dir.join("models"),
          WORK_DIR: dir.join("work"),
        }),
        log: silentLogger,
      });
      for (const [name, bytes] of Object.entries(inputs)) {
        await Bun.write(join(real.dirs?.input ?? "", name), bytes);
      }
    }, REAL_START_TIMEOUT_MS);

    afterAll(async () => {
      await real?.[Symbol.asyncDispose]();
      await ours?.[Symbol.asyncDispose]();
      dir?.[Symbol.dispose]();
    });

    test.each(GRAPHS)("%s", async (_name, graph) => {
      const [expected, got] = await Promise.all([
        picturesOf(real.url, graph),
        picturesOf(ours.url, graph),
      ]);
      expect(got.map(({ info }) => [info.width, info.height])).toEqual(
        expected.map(({ info }) => [info.width, info.height]),
      );
      for (const [index, { data }] of expected.entries()) {
        const other = got[index]!.data;
        const largest = data.reduce(
          (most, value, at) => Math.max(most, Math.abs(value - other[at]!)),
          0,
        );
        expect(largest).toBeLessThanOrEqual(1);
      }
    });
  });
});
