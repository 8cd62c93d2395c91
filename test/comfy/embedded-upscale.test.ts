/** The upscaling network against what a real ComfyUI made of it, and the tiny network that we make ourselves. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { TINY_UPSCALER_SHA256, tinyUpscaler } from "../../scripts/tiny-upscaler.ts";
import { CompactNetwork, isCompact } from "../../src/comfy/embedded/compact.ts";
import { NodeError } from "../../src/comfy/embedded/node-error.ts";
import { decodePicture } from "../../src/comfy/embedded/picture.ts";
import { scale, toBytes } from "../../src/comfy/embedded/resample.ts";
import type { Tensor } from "../../src/comfy/embedded/safetensors.ts";
import {
  readSafetensorsHeader,
  readTensors,
  writeSafetensors,
} from "../../src/comfy/embedded/safetensors.ts";
import { upscale } from "../../src/comfy/embedded/upscale.ts";
import { ImageTensor } from "../../src/comfy/embedded/values.ts";
import { casePath, describeCases } from "../support/shared.ts";
import { tempDir } from "../support/temp-dir.ts";

const breathe = () => undefined;

async function networkOf(path: string): Promise<CompactNetwork> {
  const tensors = await readTensors(path, readSafetensorsHeader(path));
  const network = tensors === undefined ? undefined : CompactNetwork.from(tensors);
  if (network === undefined) {
    throw new Error(`${path} is no Compact network`);
  }
  return network;
}

async function imageFrom(source: string): Promise<ImageTensor> {
  const picture = await decodePicture(source);
  if (picture === undefined) {
    throw new Error(`${source} is no picture`);
  }
  const image = new ImageTensor({
    batch: 1,
    width: picture.width,
    height: picture.height,
    channels: 3,
  });
  for (let index = 0; index < image.data.length; index++) {
    image.data[index] = picture.rgba[Math.floor(index / 3) * 4 + (index % 3)]! / 255;
  }
  return image;
}

function noise(width: number, height: number, batch = 1): ImageTensor {
  const image = new ImageTensor({ batch, width, height, channels: 3 });
  for (let index = 0; index < image.data.length; index++) {
    image.data[index] = ((index * 7919) % 256) / 255;
  }
  return image;
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let largest = Math.abs(a.length - b.length);
  for (let index = 0; index < a.length; index++) {
    largest = Math.max(largest, Math.abs(a[index]! - b[index]!));
  }
  return largest;
}

describeCases("upscale_oracle", () => {
  describe("what a real ComfyUI saved", () => {
    test.each(["compact_2x_f4", "compact_1x_f6"])("%s gives the same picture", async (name) => {
      const network = await networkOf(casePath("upscale_oracle", `${name}.safetensors`));
      const result = await upscale(
        network,
        await imageFrom(casePath("upscale_oracle", "in_a.png")),
        {
          breathe,
        },
      );
      const expected = await imageFrom(casePath("upscale_oracle", `${name}_a.png`));
      expect(result.shape).toEqual(expected.shape);
      expect(largestDifference(toBytes(result.data), toBytes(expected.data))).toBeLessThanOrEqual(
        1,
      );
    });
  });
});

describe("the tiny upscaler", () => {
  test.each([2, 4] as const)("%dx has the bytes that are known", (factor) => {
    const hash = new Bun.CryptoHasher("sha256").update(tinyUpscaler(factor)).digest("hex");
    expect(hash).toBe(TINY_UPSCALER_SHA256[factor]);
  });

  test.each([2, 4] as const)(
    "%dx enlarges bilinearly, edges and corners included",
    async (factor) => {
      using dir = tempDir({ "tiny.safetensors": tinyUpscaler(factor) });
      const network = await networkOf(dir.join("tiny.safetensors"));
      expect(network.scale).toBe(factor);
      for (const [width, height] of [
        [1, 1],
        [1, 5],
        [6, 1],
        [13, 9],
      ] as const) {
        const image = noise(width, height);
        const expected = await scale(
          image,
          { width: width * factor, height: height * factor, method: "bilinear" },
          breathe,
        );
        const result = await upscale(network, image, { breathe });
        expect(largestDifference(result.data, expected.data)).toBeLessThan(1e-6);
      }
    },
  );
});

describe("tiles", () => {
  async function tiny(): Promise<CompactNetwork> {
    using dir = tempDir({ "tiny.safetensors": tinyUpscaler(2) });
    return await networkOf(dir.join("tiny.safetensors"));
  }

  test("leave no seam in a smooth picture", async () => {
    const network = await tiny();
    const image = noise(50, 37, 2);
    for (let index = 0; index < image.data.length; index++) {
      image.data[index] = (Math.floor(index / 3) % 50) / 100 + (index % 3) / 8;
    }
    const whole = await upscale(network, image, { breathe });
    const steps: string[] = [];
    const tiled = await upscale(network, image, {
      tile: 16,
      overlap: 4,
      breathe,
      onTile: (done, total) => steps.push(`${done}/${total}`),
    });
    expect(largestDifference(toBytes(tiled.data), toBytes(whole.data))).toBeLessThanOrEqual(1);
    expect(steps).toEqual(Array.from({ length: 24 }, (_, index) => `${index + 1}/24`));
  });

  test("give a flat picture back as it is", async () => {
    const network = await tiny();
    const image = noise(40, 40);
    image.data.fill(0.5);
    const result = await upscale(network, image, { tile: 16, overlap: 4, breathe });
    expect(largestDifference(result.data, new Float32Array(80 * 80 * 3).fill(0.5))).toBeLessThan(
      1e-6,
    );
  });

  test("a picture with alpha is refused as PyTorch does", async () => {
    const network = await tiny();
    const image = new ImageTensor({ batch: 1, width: 2, height: 2, channels: 4 });
    const failure = await upscale(network, image, { breathe }).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(NodeError);
    expect(String(failure)).toContain(
      "weight of size [27, 3, 3, 3], expected input[1, 4, 2, 2] to have 3 channels, but got 4 channels instead",
    );
  });
});

describe("networks", () => {
  const layer = (outputs: number, inputs: number): Tensor => ({
    shape: [outputs, inputs, 3, 3],
    data: new Float32Array(outputs * inputs * 9),
  });
  const list = (length: number): Tensor => ({ shape: [length], data: new Float32Array(length) });
  const good = (): [string, Tensor][] => [
    ["body.0.weight", layer(4, 3)],
    ["body.0.bias", list(4)],
    ["body.1.weight", list(4)],
    ["body.2.weight", layer(12, 4)],
    ["body.2.bias", list(12)],
  ];

  test("are known by their first tensors, a common prefix aside", () => {
    expect(isCompact(["module.body.0.weight", "module.body.1.weight"])).toBe(true);
    expect(isCompact(["body.0.weight", "conv_first.weight"])).toBe(false);
    expect(CompactNetwork.from(new Map(good()))?.scale).toBe(2);
  });

  const broken: readonly (readonly [string, [string, Tensor][]])[] = [
    ["a bias is missing", good().filter(([name]) => name !== "body.2.bias")],
    ["layers don't fit each other", [...good(), ["body.2.weight", layer(12, 5)]]],
    [
      "the last layer makes no whole picture",
      [...good(), ["body.2.weight", layer(10, 4)], ["body.2.bias", list(10)]],
    ],
    ["a slope follows the last layer", [...good(), ["body.3.weight", list(12)]]],
    ["there are no tensors", []],
  ];

  test.each(broken)("are refused when %s", (_what, tensors) => {
    expect(CompactNetwork.from(new Map(tensors))).toBeUndefined();
  });
});

describe("safetensors", () => {
  test("what is written is read back", () =>
    fc.assert(
      fc.asyncProperty(
        fc.constantFrom("F32", "F16"),
        fc.array(fc.integer({ min: -2048, max: 2048 }), { maxLength: 20 }),
        async (dtype, numbers) => {
          const data = Float32Array.from(numbers, (number) => number / 4);
          const bytes = writeSafetensors(new Map([["a", { shape: [data.length], data }]]), dtype);
          using dir = tempDir({ "a.safetensors": bytes });
          const path = dir.join("a.safetensors");
          const tensors = await readTensors(path, readSafetensorsHeader(path));
          expect(tensors?.get("a")?.data).toEqual(data);
        },
      ),
      { numRuns: 30 },
    ));

  test("BF16 is read, and what holds no floats is not", async () => {
    const header = (dtype: string) =>
      Buffer.from(JSON.stringify({ a: { dtype, shape: [2], data_offsets: [0, 4] } }));
    const file = (dtype: string) => {
      const text = header(dtype);
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(text.length));
      return Buffer.concat([length, text, Buffer.from([0x80, 0x3f, 0x00, 0xc0])]);
    };
    using dir = tempDir({ "b.safetensors": file("BF16"), "i.safetensors": file("I16") });
    const read = (name: string) =>
      readTensors(dir.join(name), readSafetensorsHeader(dir.join(name)));
    expect((await read("b.safetensors"))?.get("a")?.data).toEqual(Float32Array.of(1, -2));
    expect(await read("i.safetensors")).toBeUndefined();
  });
});
