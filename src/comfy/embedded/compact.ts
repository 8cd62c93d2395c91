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

/** One row of sums for each of the output channels that are computed side by side. */
interface Lanes {
  readonly a: Float64Array;
  readonly b: Float64Array;
  readonly c: Float64Array;
  readonly d: Float64Array;
}

/** Three taps for each lane. */
interface Taps {
  readonly a: TapTriple;
  readonly b: TapTriple;
  readonly c: TapTriple;
  readonly d: TapTriple;
}

interface TapTriple {
  readonly left: number;
  readonly middle: number;
  readonly right: number;
}

/** Adds three taps of the input row at `start` to the sums of four output channels: the innermost loop of it all. */
function addTaps({ a, b, c, d }: Lanes, data: Float32Array, start: number, taps: Taps): void {
  const { left: a0, middle: a1, right: a2 } = taps.a;
  const { left: b0, middle: b1, right: b2 } = taps.b;
  const { left: c0, middle: c1, right: c2 } = taps.c;
  const { left: d0, middle: d1, right: d2 } = taps.d;
  let left = data[start] ?? 0;
  let middle = data[start + 1] ?? 0;
  for (let x = 0; x < a.length; x++) {
    const right = data[start + x + 2] ?? 0;
    a[x] = (a[x] ?? 0) + (left * a0 + middle * a1 + right * a2);
    b[x] = (b[x] ?? 0) + (left * b0 + middle * b1 + right * b2);
    c[x] = (c[x] ?? 0) + (left * c0 + middle * c1 + right * c2);
    d[x] = (d[x] ?? 0) + (left * d0 + middle * d1 + right * d2);
    left = middle;
    middle = right;
  }
}

function tripleOf(
  { weight, inputs, outputs }: Layer,
  at: { output: number; input: number; row: number },
): TapTriple {
  const first = (at.output * inputs + at.input) * TAPS + at.row * 3;
  const tap = (index: number) => (at.output < outputs ? (weight[first + index] ?? 0) : 0);
  return { left: tap(0), middle: tap(1), right: tap(2) };
}

/** The taps that {@link addTaps} needs, by (group, input, kernel row); undefined where all are zero. */
function packTaps(layer: Layer): readonly (Taps | undefined)[] {
  const groups = Math.ceil(layer.outputs / LANES);
  return Array.from({ length: groups * layer.inputs * 3 }, (_, index) => {
    const row = index % 3;
    const input = Math.floor(index / 3) % layer.inputs;
    const output = Math.floor(index / (3 * layer.inputs)) * LANES;
    const of = (lane: number) => tripleOf(layer, { output: output + lane, input, row });
    const taps = { a: of(0), b: of(1), c: of(2), d: of(3) };
    const isIdle = Object.values(taps).every(
      ({ left, middle, right }) => left === 0 && middle === 0 && right === 0,
    );
    return isIdle ? undefined : taps;
  });
}

/** Writes one row of sums, through PReLU where there is one. */
function activate(sums: Float64Array, target: Float32Array, start: number, slope: number): void {
  for (let x = 0; x < sums.length; x++) {
    const value = sums[x] ?? 0;
    target[start + x] = value >= 0 ? value : value * slope;
  }
}

interface PackedLayer extends Layer {
  readonly taps: readonly (Taps | undefined)[];
  readonly lanes: Lanes;
}

/** Computes four output channels of one row. */
function convolveRow(input: Padded, layer: PackedLayer, y: number, first: number): void {
  const { lanes, taps, bias, inputs } = layer;
  for (const [lane, sums] of [lanes.a, lanes.b, lanes.c, lanes.d].entries()) {
    sums.fill(bias[first + lane] ?? 0);
  }
  const group = (first / LANES) * inputs * 3;
  for (let step = 0; step < inputs * 3; step++) {
    const known = taps[group + step];
    if (known !== undefined) {
      const start = Math.floor(step / 3) * input.plane + (y + (step % 3)) * input.row;
      addTaps(lanes, input.data, start, known);
    }
  }
}

async function convolve(input: Padded, layer: Layer, breathe: Breathe): Promise<Padded> {
  const { width, height, row, plane } = input;
  const output = emptyPadded(layer.outputs, height, width);
  const lane = () => new Float64Array(width);
  const lanes = { a: lane(), b: lane(), c: lane(), d: lane() };
  const packed = { ...layer, taps: packTaps(layer), lanes };
  for (let y = 0; y < height; y++) {
    for (let first = 0; first < layer.outputs; first += LANES) {
      convolveRow(input, packed, y, first);
      const sums = [lanes.a, lanes.b, lanes.c, lanes.d].slice(0, layer.outputs - first);
      for (const [offset, sum] of sums.entries()) {
        const start = (first + offset) * plane + (y + 1) * row + 1;
        activate(sum, output.data, start, layer.slope?.[first + offset] ?? 1);
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
