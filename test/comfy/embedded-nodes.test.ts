/** What the image nodes compute, against numbers that real ComfyUI servers gave (comfyui.md §8.6). */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { decodePicture } from "../../src/comfy/embedded/picture.ts";
import type { TestGraph } from "../support/embedded.ts";
import { TestEngine } from "../support/embedded.ts";

let engine: TestEngine;
let old: TestEngine;
beforeAll(() => {
  engine = new TestEngine();
  old = new TestEngine({}, ["--compat", "0.3.64"]);
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
  await old[Symbol.asyncDispose]();
});

const blank = (width: number, height: number, color = 0, batchSize = 1) =>
  ["EmptyImage", { width, height, batch_size: batchSize, color }] as const;

/** Two black pixels beside two of .5, in one row of four (the second row is the same). */
const STEP: TestGraph = {
  "1": blank(2, 2),
  "2": [
    "ImagePadForOutpaint",
    { image: ["1", 0], left: 0, top: 0, right: 2, bottom: 0, feathering: 0 },
  ],
};

const scaled = (method: string, width: number, height: number): TestGraph => ({
  ...STEP,
  "3": ["ImageScale", { image: ["2", 0], upscale_method: method, width, height, crop: "disabled" }],
});

async function pixel(graph: TestGraph, image: readonly [string, number]): Promise<number[]> {
  return [...(await engine.picture(graph, image)).rgba.subarray(0, 3)];
}

const mask = (node: readonly [string, number]) => ["MaskToImage", { mask: node }] as const;

describe("golden values", () => {
  test("EmptyImage 0x4180FF, inverted", async () => {
    const graph: TestGraph = {
      "1": blank(4, 4, 0x41_80_ff),
      "2": ["ImageInvert", { image: ["1", 0] }],
    };
    expect(await pixel(graph, ["2", 0])).toEqual([189, 126, 0]);
  });

  test.each([
    ["normal", [128, 96, 116]],
    ["multiply", [56, 80, 112]],
    ["screen", [136, 143, 203]],
    ["overlay", [81, 96, 179]],
    ["soft_light", [81, 112, 183]],
    ["difference", [0, 96, 184]],
  ])("ImageBlend %s", async (blendMode, expected) => {
    const graph: TestGraph = {
      "1": blank(4, 4, 0x41_80_c8),
      "2": blank(4, 4, 0xc0_40_20),
      "3": [
        "ImageBlend",
        { image1: ["1", 0], image2: ["2", 0], blend_factor: 0.5, blend_mode: blendMode },
      ],
    };
    expect(await pixel(graph, ["3", 0])).toEqual(expected);
  });

  test.each([
    ["nearest-exact", [0, 0, 0, 127, 127, 127]],
    ["area", [0, 0, 0, 127, 127, 127]],
    ["bilinear", [0, 0, 21, 106, 127, 127]],
    ["bicubic", [0, 0, 18, 109, 139, 127]],
    ["lanczos", [4, 0, 16, 111, 140, 123]],
  ])("ImageScale %s of a step to 6×1", async (method, expected) => {
    expect(await engine.reds(scaled(method, 6, 1), ["3", 0])).toEqual([expected]);
  });

  test("the mask of ImagePadForOutpaint", async () => {
    const graph: TestGraph = {
      "1": blank(6, 6),
      "2": [
        "ImagePadForOutpaint",
        { image: ["1", 0], left: 1, top: 0, right: 0, bottom: 0, feathering: 2 },
      ],
      "3": mask(["2", 1]),
    };
    const row = [255, 255, 63, 0, 0, 0, 0];
    expect(await engine.reds(graph, ["3", 0])).toEqual(Array.from({ length: 6 }, () => row));
  });

  test.each([
    ["0.33.0", [255, 255, 255, 191, 127, 63]],
    ["0.3.64", [63, 255, 255, 255, 191, 127]],
  ])("FeatherMask right=4 in %s", async (version, expected) => {
    const graph: TestGraph = {
      "1": ["SolidMask", { value: 1, width: 6, height: 1 }],
      "2": ["FeatherMask", { mask: ["1", 0], left: 0, top: 0, right: 4, bottom: 0 }],
      "3": mask(["2", 0]),
    };
    const which = version === "0.3.64" ? old : engine;
    expect(await which.reds(graph, ["3", 0])).toEqual([expected]);
  });

  test.each([
    ["multiply", 76],
    ["add", 255],
    ["subtract", 25],
    ["and", 0],
    ["or", 255],
    ["xor", 255],
  ])("MaskComposite %s", async (operation, expected) => {
    const graph: TestGraph = {
      "1": ["SolidMask", { value: 0.6, width: 3, height: 1 }],
      "2": ["SolidMask", { value: 0.5, width: 2, height: 1 }],
      "3": ["MaskComposite", { destination: ["1", 0], source: ["2", 0], x: 2, y: 0, operation }],
      "4": mask(["3", 0]),
    };
    expect((await engine.reds(graph, ["4", 0]))[0]?.at(-1)).toBe(expected);
  });

  test("ImageCrop beyond the edge", async () => {
    const graph: TestGraph = {
      "1": blank(10, 10),
      "2": ["ImageCrop", { image: ["1", 0], width: 8, height: 8, x: 50, y: 5 }],
    };
    const { width, height } = await engine.picture(graph, ["2", 0]);
    expect([width, height]).toEqual([1, 5]);
  });

  test("ImageScale 10×7 to a height of 3 keeps the aspect", async () => {
    const graph: TestGraph = {
      "1": blank(10, 7),
      "2": [
        "ImageScale",
        { image: ["1", 0], upscale_method: "area", width: 0, height: 3, crop: "disabled" },
      ],
    };
    const { width, height } = await engine.picture(graph, ["2", 0]);
    expect([width, height]).toEqual([4, 3]);
  });

  test("ImageScaleBy rounds halves to even", async () => {
    const graph: TestGraph = {
      "1": blank(10, 14),
      "2": ["ImageScaleBy", { image: ["1", 0], upscale_method: "area", scale_by: 0.25 }],
    };
    const { width, height } = await engine.picture(graph, ["2", 0]);
    expect([width, height]).toEqual([2, 4]);
  });

  test("ImageRotate turns clockwise", async () => {
    const graph: TestGraph = {
      "1": blank(2, 1),
      "2": [
        "ImagePadForOutpaint",
        { image: ["1", 0], left: 0, top: 0, right: 1, bottom: 0, feathering: 0 },
      ],
      "3": ["ImageRotate", { image: ["2", 0], rotation: "90 degrees" }],
    };
    expect(await engine.reds(graph, ["3", 0])).toEqual([[0], [0], [127]]);
  });
});

describe("by their definition", () => {
  test("ImageScale with both sides 0 changes nothing, center crops to the target's shape", async () => {
    const none = scaled("bilinear", 0, 0);
    expect(await engine.reds(none, ["3", 0])).toEqual([
      [0, 0, 127, 127],
      [0, 0, 127, 127],
    ]);
    const graph: TestGraph = {
      ...STEP,
      "3": [
        "ImageScale",
        { image: ["2", 0], upscale_method: "area", width: 2, height: 2, crop: "center" },
      ],
    };
    expect(await engine.reds(graph, ["3", 0])).toEqual([
      [0, 127],
      [0, 127],
    ]);
  });

  test("a scale that leaves nothing fails where the real one fails", async () => {
    const graph = (method: string): TestGraph => ({
      "1": blank(10, 10),
      "2": ["ImageScaleBy", { image: ["1", 0], upscale_method: method, scale_by: 0.01 }],
      "3": ["SaveImage", { images: ["2", 0], filename_prefix: "x" }],
    });
    const failureOf = async (method: string) => {
      const [type, data] = (await engine.run(graph(method))).status.messages.at(-1);
      return [type, data.node_id, data.exception_type, data.exception_message];
    };
    expect(await failureOf("area")).toEqual([
      "execution_error",
      "3",
      "ValueError",
      "cannot write empty image\n",
    ]);
    expect(await failureOf("bilinear")).toEqual([
      "execution_error",
      "2",
      "RuntimeError",
      "Input and output sizes should be greater than 0, but got input (H: 10, W: 10) output (H: 0, W: 0)\n",
    ]);
    expect(await failureOf("lanczos")).toEqual([
      "execution_error",
      "2",
      "ValueError",
      "height and width must be > 0\n",
    ]);
  });

  test("ImageBatch resizes the second picture, ImageFromBatch takes a part, RepeatImageBatch repeats", async () => {
    const graph: TestGraph = {
      "1": blank(4, 2, 0x10_10_10),
      "2": blank(8, 8, 0x20_20_20, 2),
      "3": ["ImageBatch", { image1: ["1", 0], image2: ["2", 0] }],
      "4": ["GetImageSize", { image: ["3", 0] }],
      "5": ["PreviewAny", { source: ["4", 2] }],
      "6": ["ImageFromBatch", { image: ["3", 0], batch_index: -1, length: 5 }],
      "7": ["RepeatImageBatch", { image: ["6", 0], amount: 3 }],
      "8": ["SaveImage", { images: ["7", 0], filename_prefix: "batch" }],
    };
    const { outputs } = await engine.run(graph);
    expect(outputs["5"].text).toEqual(["3"]);
    expect(outputs["8"].images.map(({ filename }: { filename: string }) => filename)).toEqual([
      "batch_00001_.png",
      "batch_00002_.png",
      "batch_00003_.png",
    ]);
    expect(await pixel({ ...graph, "8": ["ImageInvert", { image: ["7", 0] }] }, ["8", 0])).toEqual([
      223, 223, 223,
    ]);
  });

  test("ImageFlip mirrors along the axis it names", async () => {
    const flipped = (flipMethod: string): TestGraph => ({
      ...STEP,
      "3": ["ImageFlip", { image: ["2", 0], flip_method: flipMethod }],
    });
    expect((await engine.reds(flipped("y-axis: horizontally"), ["3", 0]))[0]).toEqual([
      127, 127, 0, 0,
    ]);
    expect((await engine.reds(flipped("x-axis: vertically"), ["3", 0]))[0]).toEqual([
      0, 0, 127, 127,
    ]);
  });

  test("masks: threshold, invert, grow, crop, channel", async () => {
    const graph: TestGraph = {
      "1": ["SolidMask", { value: 0, width: 5, height: 5 }],
      "2": ["SolidMask", { value: 1, width: 1, height: 1 }],
      "3": [
        "MaskComposite",
        { destination: ["1", 0], source: ["2", 0], x: 2, y: 2, operation: "add" },
      ],
      "4": ["GrowMask", { mask: ["3", 0], expand: 1, tapered_corners: true }],
      "5": ["InvertMask", { mask: ["4", 0] }],
      "6": ["ThresholdMask", { mask: ["5", 0], value: 0.5 }],
      "7": ["CropMask", { mask: ["6", 0], x: 1, y: 1, width: 3, height: 3 }],
      "8": mask(["7", 0]),
      "9": ["ImageToMask", { image: ["8", 0], channel: "red" }],
      "10": mask(["9", 0]),
    };
    expect(await engine.reds(graph, ["10", 0])).toEqual([
      [255, 0, 255],
      [0, 0, 0],
      [255, 0, 255],
    ]);
    const full: TestGraph = {
      ...graph,
      "4": ["GrowMask", { mask: ["3", 0], expand: 1, tapered_corners: false }],
    };
    expect(await engine.reds(full, ["10", 0])).toEqual([
      [0, 0, 0],
      [0, 0, 0],
      [0, 0, 0],
    ]);
  });

  test("ImageToMask alpha of an RGB picture raises IndexError", async () => {
    const entry = await engine.run({
      "1": blank(2, 2),
      "2": ["ImageToMask", { image: ["1", 0], channel: "alpha" }],
      "3": ["MaskPreview", { mask: ["2", 0] }],
    });
    expect(entry.status.messages.at(-1)[1].exception_type).toBe("IndexError");
  });

  test("ImageCompositeMasked pastes through a mask that is scaled to the source", async () => {
    const graph: TestGraph = {
      "1": blank(4, 1, 0),
      "2": blank(2, 1, 0xff_ff_ff),
      "3": ["SolidMask", { value: 0.5, width: 1, height: 1 }],
      "4": [
        "ImageCompositeMasked",
        {
          destination: ["1", 0],
          source: ["2", 0],
          x: 3,
          y: 0,
          resize_source: false,
          mask: ["3", 0],
        },
      ],
      "5": [
        "ImageCompositeMasked",
        { destination: ["1", 0], source: ["2", 0], x: 1, y: 0, resize_source: true },
      ],
    };
    expect(await engine.reds(graph, ["4", 0])).toEqual([[0, 0, 0, 127]]);
    expect(await engine.reds(graph, ["5", 0])).toEqual([[0, 255, 255, 255]]);
  });

  test.each([
    ["PrimitiveInt", "18446744073709551615", ["18446744073709551615"]],
    ["PrimitiveInt", 7, ["7"]],
    ["PrimitiveBoolean", true, ["True"]],
    ["PrimitiveString", "as is", ["as is"]],
    ["PrimitiveFloat", 0.25, ["0.25"]],
  ])("%s shown by PreviewAny", async (className, value, text) => {
    const max = className === "PrimitiveInt" && typeof value === "string";
    const graph: TestGraph = {
      "1": [className, { value: max ? "9223372036854775807" : value }],
      "2": ["PreviewAny", { source: ["1", 0] }],
    };
    const { outputs } = await engine.run(graph);
    expect(outputs["2"].text).toEqual(max ? ["9223372036854775807"] : text);
  });

  test("SaveAnimatedWEBP writes all pictures of a batch", async () => {
    const { outputs } = await engine.run({
      "1": blank(8, 6, 0x10_20_30),
      "2": ["ImageInvert", { image: ["1", 0] }],
      "3": ["ImageBatch", { image1: ["1", 0], image2: ["2", 0] }],
      "4": [
        "SaveAnimatedWEBP",
        {
          images: ["3", 0],
          filename_prefix: "anim",
          fps: 6,
          lossless: true,
          quality: 80,
          method: "default",
        },
      ],
    });
    expect(outputs["4"]).toEqual({
      images: [{ filename: "anim_00001_.webp", subfolder: "", type: "output" }],
      animated: [true],
    });
    const picture = await decodePicture(engine.dir.join("output", "anim_00001_.webp"));
    expect(picture).toMatchObject({ frames: 2, width: 8, height: 6 });
    expect(picture?.rgba.at(8 * 6 * 4)).toBe(0xef);
  });
});
