/**
 * RealESRGAN-Compact (SRVGGNetCompact), the one network that the embedded engine computes: 3×3 convolutions with
 * PReLU between them, pixel shuffle, plus the input enlarged by nearest neighbour. Shape and scale are read from the
 * tensors, as spandrel does.
 */
import type { Breathe } from "./resample.ts";
import type { Tensor } from "./safetensors.ts";

/** A picture as planes: `[channels, height, width]`. */
export interface Planes {
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  readonly data: Float32Array;
}

interface Layer {
  readonly inputs: number;
  readonly outputs: number;
  readonly weight: Float32Array;
  readonly bias: Float32Array;
  /** PReLU's slope by channel; undefined after the last convolution. */
  readonly slope: Float32Array | undefined;
}

/** Output channels computed side by side: their sums share each number that is loaded. */
const LANES = 4;
const TAPS = 9;

/** As spandrel removes them. */
const COMMON_PREFIX = /^(?:module\.|netG\.)/;

function numbered(names: Iterable<string>): Map<string, string> {
  return new Map([...names].map((name) => [name.replace(COMMON_PREFIX, ""), name]));
}

/** True when tensors of these names are such a network. */
export function isCompact(names: Iterable<string>): boolean {
  const known = numbered(names);
  return known.has("body.0.weight") && known.has("body.1.weight");
}

/** Scale and output channels from the width of the last convolution: `scale² × channels`. */
function shuffleOf(width: number, inputs: number): { scale: number; channels: number } | undefined {
  for (const channels of [inputs, 3, 4, 1]) {
    const scale = Math.sqrt(width / channels);
    if (width % channels === 0 && Number.isInteger(scale)) {
      return { scale, channels };
    }
  }
  return undefined;
}

function layersOf(tensors: ReadonlyMap<string, Tensor>): Layer[] | undefined {
  const names = numbered(tensors.keys());
  const find = (name: string) => tensors.get(names.get(name) ?? "");
  const last = Math.max(
    ...[...names.keys()].map((name) => Number(/^body\.(\d+)\./.exec(name)?.[1] ?? -1)),
  );
  const layers: Layer[] = [];
  for (let index = 0; index <= last; index += 2) {
    const weight = find(`body.${index}.weight`);
    const bias = find(`body.${index}.bias`);
    const slope = find(`body.${index + 1}.weight`);
    const [outputs = 0, inputs = 0, ...kernel] = weight?.shape ?? [];
    const expected = layers.at(-1)?.outputs ?? inputs;
    const fits =
      weight !== undefined &&
      bias?.data.length === outputs &&
      kernel.join() === "3,3" &&
      inputs === expected &&
      (index === last ? slope === undefined : slope?.data.length === outputs);
    if (!fits) {
      return undefined;
    }
    layers.push({ inputs, outputs, weight: weight.data, bias: bias.data, slope: slope?.data });
  }
  // The last tensor belongs to a convolution: numbers of convolutions are even.
  return layers.length < 2 || last % 2 !== 0 ? undefined : layers;
}

export class CompactNetwork {
  readonly scale: number;
  readonly inputs: number;
  readonly outputs: number;
  readonly #layers: readonly Layer[];

  private constructor(layers: readonly Layer[], shuffle: { scale: number; channels: number }) {
    this.#layers = layers;
    this.scale = shuffle.scale;
    this.outputs = shuffle.channels;
    this.inputs = layers[0]?.inputs ?? 0;
  }

  /** Undefined when the tensors don't make up such a network. */
  static from(tensors: ReadonlyMap<string, Tensor>): CompactNetwork | undefined {
    const layers = layersOf(tensors);
    const shuffle = shuffleOf(layers?.at(-1)?.outputs ?? 0, layers?.[0]?.inputs ?? 0);
    return layers === undefined || shuffle === undefined || shuffle.channels !== layers[0]?.inputs
      ? undefined
      : new CompactNetwork(layers, shuffle);
  }

  get bytes(): number {
    return this.#layers.reduce((sum, layer) => sum + layer.weight.byteLength, 0);
  }

  /** Shape of the first convolution's weight, for the message about a picture of other channels. */
  get firstShape(): readonly number[] {
    return [this.#layers[0]?.outputs ?? 0, this.inputs, 3, 3];
  }

  /** Enlarges one picture. */
  async run(input: Planes, breathe: Breathe): Promise<Planes> {
    let planes = pad(input);
    for (const layer of this.#layers) {
      planes = await convolve(planes, layer, breathe);
    }
    return shuffle(planes, input, this.scale);
  }
}

/** Planes with a frame of zeros, one pixel wide: convolutions needn't look at edges then. */
interface Padded extends Planes {
  /** Length of a padded row and of a padded plane. */
  readonly row: number;
  readonly plane: number;
}

function emptyPadded(channels: number, height: number, width: number): Padded {
  const row = width + 2;
  const plane = row * (height + 2);
  return { channels, height, width, row, plane, data: new Float32Array(channels * plane) };
}

function pad({ channels, height, width, data }: Planes): Padded {
  const padded = emptyPadded(channels, height, width);
  for (let line = 0; line < channels * height; line++) {
    const [channel, y] = [Math.floor(line / height), line % height];
    padded.data.set(
      data.subarray(line * width, (line + 1) * width),
      channel * padded.plane + (y + 1) * padded.row + 1,
    );
  }
  return padded;
}

/** Adds three taps of one input row to the sums of four output channels. */
function addTaps(sums: readonly Float64Array[], row: Float32Array, weights: Float64Array): void {
  const [sum0, sum1, sum2, sum3] = sums;
  if (sum0 === undefined || sum1 === undefined || sum2 === undefined || sum3 === undefined) {
    return;
  }
  const [a0 = 0, a1 = 0, a2 = 0, b0 = 0, b1 = 0, b2 = 0] = weights;
  const [c0 = 0, c1 = 0, c2 = 0, d0 = 0, d1 = 0, d2 = 0] = weights.subarray(6);
  let left = row[0] ?? 0;
  let middle = row[1] ?? 0;
  for (let x = 0; x < sum0.length; x++) {
    const right = row[x + 2] ?? 0;
    sum0[x] = (sum0[x] ?? 0) + left * a0 + middle * a1 + right * a2;
    sum1[x] = (sum1[x] ?? 0) + left * b0 + middle * b1 + right * b2;
    sum2[x] = (sum2[x] ?? 0) + left * c0 + middle * c1 + right * c2;
    sum3[x] = (sum3[x] ?? 0) + left * d0 + middle * d1 + right * d2;
    left = middle;
    middle = right;
  }
}

/** The weights that {@link addTaps} needs, packed by (group, input, kernel row); undefined where all are zero. */
function packWeights(layer: Layer): readonly (Float64Array | undefined)[] {
  const groups = Math.ceil(layer.outputs / LANES);
  return Array.from({ length: groups * layer.inputs * 3 }, (_, index) => {
    const kernelRow = index % 3;
    const input = Math.floor(index / 3) % layer.inputs;
    const group = Math.floor(index / (3 * layer.inputs));
    const packed = new Float64Array(LANES * 3);
    for (let lane = 0; lane < LANES * 3; lane++) {
      const output = group * LANES + Math.floor(lane / 3);
      const at = (output * layer.inputs + input) * TAPS + kernelRow * 3 + (lane % 3);
      packed[lane] = output < layer.outputs ? (layer.weight[at] ?? 0) : 0;
    }
    return packed.some((weight) => weight !== 0) ? packed : undefined;
  });
}

/** Writes one row of sums, through PReLU where there is one. */
function activate(sums: Float64Array, target: Float32Array, slope: number): void {
  for (let x = 0; x < sums.length; x++) {
    const value = sums[x] ?? 0;
    target[x] = value >= 0 ? value : value * slope;
  }
}

/** Computes four output channels of one row. */
function convolveRow(input: Padded, layer: PackedLayer, at: { y: number; first: number }): void {
  const { sums, packed } = layer;
  for (const [lane, sum] of sums.entries()) {
    sum.fill(layer.bias[at.first + lane] ?? 0);
  }
  const group = (at.first / LANES) * layer.inputs;
  for (let step = 0; step < layer.inputs * 3; step++) {
    const weights = packed[group * 3 + step];
    if (weights !== undefined) {
      const start = Math.floor(step / 3) * input.plane + (at.y + (step % 3)) * input.row;
      addTaps(sums, input.data.subarray(start, start + input.row), weights);
    }
  }
}

interface PackedLayer extends Layer {
  readonly packed: readonly (Float64Array | undefined)[];
  /** One row of sums for each lane. */
  readonly sums: readonly Float64Array[];
}

async function convolve(input: Padded, layer: Layer, breathe: Breathe): Promise<Padded> {
  const { width, height, row, plane } = input;
  const output = emptyPadded(layer.outputs, height, width);
  const sums = Array.from({ length: LANES }, () => new Float64Array(width));
  const packed = { ...layer, packed: packWeights(layer), sums };
  for (let y = 0; y < height; y++) {
    for (let first = 0; first < layer.outputs; first += LANES) {
      convolveRow(input, packed, { y, first });
      for (const [lane, sum] of sums.slice(0, layer.outputs - first).entries()) {
        const start = (first + lane) * plane + (y + 1) * row + 1;
        activate(sum, output.data.subarray(start, start + width), layer.slope?.[first + lane] ?? 1);
      }
    }
    await breathe();
  }
  return output;
}

/** Pixel shuffle, plus the input by nearest neighbour. */
function shuffle(features: Padded, input: Planes, scale: number): Planes {
  const { channels, height, width } = input;
  const outWidth = width * scale;
  const data = new Float32Array(channels * height * scale * outWidth);
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < height * scale; y++) {
      const sourceY = Math.floor(y / scale);
      for (let x = 0; x < outWidth; x++) {
        const sourceX = Math.floor(x / scale);
        const feature = (channel * scale + (y % scale)) * scale + (x % scale);
        const residual =
          features.data[feature * features.plane + (sourceY + 1) * features.row + sourceX + 1] ?? 0;
        const base = input.data[(channel * height + sourceY) * width + sourceX] ?? 0;
        data[(channel * height * scale + y) * outWidth + x] = residual + base;
      }
    }
  }
  return { channels, height: height * scale, width: outWidth, data };
}
