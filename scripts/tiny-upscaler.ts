/**
 * Makes a tiny RealESRGAN-Compact network that enlarges a picture bilinearly: real weights in the real format, 20 to
 * 40 kB, for the demo and the tests. It runs unchanged in a real ComfyUI.
 *
 * How: a Compact network adds its output to the input enlarged by nearest neighbour, so its last convolution holds
 * bilinear minus nearest weights. Convolutions see zeros beyond the edge, where bilinear repeats the last pixel: for
 * each side and corner a feature carries the pixel only where that side is the picture's edge (a constant 1, shifted,
 * shows whether there is a neighbour; ReLU gates the pixel with it), and the last convolution adds what is missing.
 */
import type { Tensor } from "../src/comfy/embedded/safetensors.ts";
import { writeSafetensors } from "../src/comfy/embedded/safetensors.ts";

/** sha256 of the files, by scale. */
export const TINY_UPSCALER_SHA256 = {
  2: "eede5dcc2f36c06619076e59a4393ccd02012a60296738d0f33d3afb09176f0b",
  4: "09dde8a11e11b432343879a7e9bd541e80fb7e385ab57c6de2331de0e3df61a8",
} as const;

const COLORS = 3;
/** Steps to the neighbours whose absence a gate detects: four sides, then four corners. */
const GATES: readonly (readonly [dx: number, dy: number])[] = [
  [-1, 0],
  [1, 0],
  [0, -1],
  [0, 1],
  [-1, -1],
  [1, -1],
  [-1, 1],
  [1, 1],
];
/** The picture, and the picture behind each gate. */
const FEATURES = COLORS * (1 + GATES.length);
/** In the first layer the feature after the colours is a constant 1. */
const ONE = COLORS;

/** A 3×3 convolution, filled tap by tap. */
class Convolution {
  readonly weight: Float32Array;
  readonly bias: Float32Array;
  readonly shape: readonly number[];
  readonly #inputs: number;

  constructor(outputs: number, inputs: number) {
    this.#inputs = inputs;
    this.shape = [outputs, inputs, 3, 3];
    this.weight = new Float32Array(outputs * inputs * 9);
    this.bias = new Float32Array(outputs);
  }

  /** Adds to the weight of the neighbour at `(dx, dy)`. */
  add(output: number, input: number, tap: { dx: number; dy: number; weight: number }): void {
    const at = (output * this.#inputs + input) * 9 + (tap.dy + 1) * 3 + tap.dx + 1;
    this.weight[at] = (this.weight[at] ?? 0) + tap.weight;
  }
}

/** Passes the colours on, and makes a constant. */
function firstLayer(): Convolution {
  const layer = new Convolution(FEATURES, COLORS);
  for (let color = 0; color < COLORS; color++) {
    layer.add(color, color, { dx: 0, dy: 0, weight: 1 });
  }
  layer.bias[ONE] = 1;
  return layer;
}

/** Passes the colours on, and each colour behind each gate: minus 1 for every neighbour that is there. */
function gateLayer(): Convolution {
  const layer = new Convolution(FEATURES, FEATURES);
  for (let color = 0; color < COLORS; color++) {
    layer.add(color, color, { dx: 0, dy: 0, weight: 1 });
    for (const [gate, [dx, dy]] of GATES.entries()) {
      const feature = COLORS * (gate + 1) + color;
      layer.add(feature, color, { dx: 0, dy: 0, weight: 1 });
      if (dx !== 0) {
        layer.add(feature, ONE, { dx, dy: 0, weight: -1 });
      }
      if (dy !== 0) {
        layer.add(feature, ONE, { dx: 0, dy, weight: -1 });
      }
    }
  }
  return layer;
}

/** Bilinear weights of the pixel before, the pixel itself and the one behind, for one position inside a pixel. */
function bilinear(
  position: number,
  scale: number,
): readonly [before: number, at: number, behind: number] {
  const offset = (position + 0.5) / scale - 0.5;
  return [Math.max(-offset, 0), 1 - Math.abs(offset), Math.max(offset, 0)];
}

const STEPS = [-1, 0, 1] as const;

type WeightOf = (dx: number, dy: number) => number;

/** What lies beyond a side or corner: a copy of the pixels along it. */
function addBeyond(layer: Convolution, output: number, color: number, weightOf: WeightOf): void {
  for (const [gate, [gateX, gateY]] of GATES.entries()) {
    const feature = COLORS * (gate + 1) + color;
    const isCorner = gateX !== 0 && gateY !== 0;
    for (const along of isCorner ? [0] : STEPS) {
      const [dx, dy] = gateX === 0 ? [along, 0] : [0, along];
      layer.add(output, feature, { dx, dy, weight: weightOf(gateX || dx, gateY || dy) });
    }
  }
}

/** Bilinear minus nearest for every position inside a pixel, and what the gates say is missing. */
function lastLayer(scale: number): Convolution {
  const layer = new Convolution(COLORS * scale * scale, FEATURES);
  for (let output = 0; output < COLORS * scale * scale; output++) {
    const color = Math.floor(output / (scale * scale));
    const alongY = bilinear(Math.floor(output / scale) % scale, scale);
    const alongX = bilinear(output % scale, scale);
    const weightOf = (dx: number, dy: number) => (alongX[dx + 1] ?? 0) * (alongY[dy + 1] ?? 0);
    layer.add(output, color, { dx: 0, dy: 0, weight: -1 });
    for (const dy of STEPS) {
      for (const dx of STEPS) {
        layer.add(output, color, { dx, dy, weight: weightOf(dx, dy) });
      }
    }
    addBeyond(layer, output, color, weightOf);
  }
  return layer;
}

/** The bytes of the safetensors file: always the same for one scale. */
export function tinyUpscaler(scale: 2 | 4): Uint8Array {
  const tensors = new Map<string, Tensor>();
  const layers = [firstLayer(), gateLayer(), lastLayer(scale)];
  for (const [index, { shape, weight, bias }] of layers.entries()) {
    tensors.set(`body.${index * 2}.weight`, { shape, data: weight });
    tensors.set(`body.${index * 2}.bias`, { shape: [bias.length], data: bias });
    if (index < layers.length - 1) {
      // PReLU with slope 0 is ReLU.
      const slope = { shape: [FEATURES], data: new Float32Array(FEATURES) };
      tensors.set(`body.${index * 2 + 1}.weight`, slope);
    }
  }
  return writeSafetensors(tensors, "F16", {
    format: "pt",
    description: `bilinear ${scale}x as a RealESRGAN-Compact network, made by cog-comfyui-bun`,
    license: "MIT",
  });
}

if (import.meta.main) {
  const [scale, path] = process.argv.slice(2);
  if ((scale !== "2" && scale !== "4") || path === undefined) {
    console.error("usage: bun scripts/tiny-upscaler.ts 2|4 FILE");
    process.exit(2);
  }
  await Bun.write(path, tinyUpscaler(scale === "2" ? 2 : 4));
}
