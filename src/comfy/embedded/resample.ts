/**
 * ComfyUI's five ways to scale a picture, number by number as PyTorch (no antialiasing, half-pixel centres) and, for
 * lanczos, Pillow (8-bit fixed point) do it. All are separable: first along x, then along y.
 */
import { NodeError } from "./node-error.ts";
import { roundHalfEven } from "./python.ts";
import { ImageTensor } from "./values.ts";

export const SCALE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"] as const;
export type ScaleMethod = (typeof SCALE_METHODS)[number];

export type Breathe = () => Promise<void> | undefined;

export interface ScaleTarget {
  readonly width: number;
  readonly height: number;
  readonly method: ScaleMethod;
  readonly crop?: "disabled" | "center";
}

/** For each output position: where its inputs begin, and their weights. */
interface Taps {
  readonly starts: Int32Array;
  readonly counts: Int32Array;
  readonly weights: Float64Array;
  /** Weights per position. */
  readonly span: number;
}

/** Taps given as (position → indices and weights), indices clamped to the picture. */
function clampedTaps(
  size: number,
  outSize: number,
  span: number,
  at: (index: number) => Float64Array,
) {
  const starts = new Int32Array(outSize);
  const counts = new Int32Array(outSize);
  const weights = new Float64Array(outSize * span);
  for (let index = 0; index < outSize; index++) {
    const [first = 0, ...rest] = at(index);
    const start = Math.min(Math.max(first, 0), size - 1);
    starts[index] = start;
    for (const [offset, weight] of rest.entries()) {
      const position = Math.min(Math.max(first + offset, 0), size - 1) - start;
      weights[index * span + position] = (weights[index * span + position] ?? 0) + weight;
      counts[index] = Math.max(counts[index] ?? 0, position + 1);
    }
  }
  return { starts, counts, weights, span };
}

function nearestTaps(size: number, outSize: number): Taps {
  const scale = size / outSize;
  return clampedTaps(size, outSize, 1, (index) =>
    Float64Array.of(Math.floor((index + 0.5) * scale), 1),
  );
}

function bilinearTaps(size: number, outSize: number): Taps {
  const scale = Math.fround(size / outSize);
  return clampedTaps(size, outSize, 2, (index) => {
    const source = Math.max(Math.fround(scale * (index + 0.5) - 0.5), 0);
    const first = Math.min(Math.floor(source), size - 1);
    const rest = Math.fround(source - first);
    return Float64Array.of(first, Math.fround(1 - rest), rest);
  });
}

/** PyTorch's bicubic coefficient. */
const CUBIC_A = -0.75;

function cubic(distance: number): number {
  const x = Math.abs(distance);
  return x <= 1
    ? ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    : ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A;
}

function bicubicTaps(size: number, outSize: number): Taps {
  const scale = Math.fround(size / outSize);
  return clampedTaps(size, outSize, 4, (index) => {
    const source = Math.fround(scale * (index + 0.5) - 0.5);
    const first = Math.floor(source);
    const rest = Math.fround(source - first);
    const near = [cubic(rest + 1), cubic(rest), cubic(1 - rest), cubic(2 - rest)].map(Math.fround);
    return Float64Array.of(first - 1, ...near);
  });
}

/** Adaptive average pooling. */
function areaTaps(size: number, outSize: number): Taps {
  const span = Math.ceil(size / outSize) + 1;
  return clampedTaps(size, outSize, span, (index) => {
    const start = Math.floor((index * size) / outSize);
    const count = Math.ceil(((index + 1) * size) / outSize) - start;
    return Float64Array.of(start, ...new Array<number>(count).fill(1 / count));
  });
}

const LANCZOS_LOBES = 3;

function lanczos(x: number): number {
  const sinc = (value: number) => (value === 0 ? 1 : Math.sin(value * Math.PI) / (value * Math.PI));
  return x > -LANCZOS_LOBES && x < LANCZOS_LOBES ? sinc(x) * sinc(x / LANCZOS_LOBES) : 0;
}

/** Bits of Pillow's fixed point weights. */
const PRECISION_BITS = 22;

function lanczosTaps(size: number, outSize: number): Taps {
  const scale = size / outSize;
  const filterScale = Math.max(scale, 1);
  const support = LANCZOS_LOBES * filterScale;
  const span = Math.ceil(support) * 2 + 1;
  const taps = {
    starts: new Int32Array(outSize),
    counts: new Int32Array(outSize),
    weights: new Float64Array(outSize * span),
    span,
  };
  for (let index = 0; index < outSize; index++) {
    const center = (index + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.trunc(center + support + 0.5), size) - start;
    const raw = Array.from({ length: count }, (_, offset) =>
      lanczos((offset + start - center + 0.5) / filterScale),
    );
    const sum = raw.reduce((total, weight) => total + weight, 0);
    taps.starts[index] = start;
    taps.counts[index] = count;
    for (const [offset, weight] of raw.entries()) {
      const fixed = (sum === 0 ? weight : weight / sum) * 2 ** PRECISION_BITS;
      taps.weights[index * span + offset] = Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    }
  }
  return taps;
}

const TAPS = {
  "nearest-exact": nearestTaps,
  bilinear: bilinearTaps,
  area: areaTaps,
  bicubic: bicubicTaps,
  lanczos: lanczosTaps,
} as const;

/** What one pass works on: `lines` runs of `size` positions, each holding `block` numbers side by side. */
interface Pass {
  readonly lines: number;
  readonly size: number;
  readonly outSize: number;
  readonly block: number;
  readonly taps: Taps;
}

/** Computes the numbers of one output position: `block` of them from `source` on to `target` on. */
type Kernel = (target: number, source: number, position: number) => void;

/** Sums between two looks at the clock. */
const SUMS_PER_BREATH = 200_000;

async function eachPosition(pass: Pass, kernel: Kernel, breathe: Breathe): Promise<void> {
  const { lines, size, outSize, block, taps } = pass;
  let sums = 0;
  for (let line = 0; line < lines; line++) {
    for (let position = 0; position < outSize; position++) {
      const source = (line * size + (taps.starts[position] ?? 0)) * block;
      kernel((line * outSize + position) * block, source, position);
      sums += block * (taps.counts[position] ?? 0);
      if (sums > SUMS_PER_BREATH) {
        sums = 0;
        await breathe();
      }
    }
  }
}

function floatKernel(data: Float32Array, out: Float32Array, { block, taps }: Pass): Kernel {
  const { counts, weights, span } = taps;
  return (target, source, position) => {
    const count = counts[position] ?? 0;
    for (let inner = 0; inner < block; inner++) {
      let sum = 0;
      for (let tap = 0; tap < count; tap++) {
        sum += (weights[position * span + tap] ?? 0) * (data[source + tap * block + inner] ?? 0);
      }
      out[target + inner] = sum;
    }
  };
}

/** The same in Pillow's fixed point: weights are whole numbers, the result is clipped to a byte. */
function byteKernel(data: Uint8Array, out: Uint8Array, { block, taps }: Pass): Kernel {
  const { counts, span } = taps;
  const weights = Int32Array.from(taps.weights);
  return (target, source, position) => {
    const count = counts[position] ?? 0;
    for (let inner = 0; inner < block; inner++) {
      let sum = 1 << (PRECISION_BITS - 1);
      for (let tap = 0; tap < count; tap++) {
        const value = data[source + tap * block + inner] ?? 0;
        sum += Math.imul(weights[position * span + tap] ?? 0, value);
      }
      out[target + inner] = Math.min(Math.max(sum >> PRECISION_BITS, 0), 255);
    }
  };
}

function passes(image: ImageTensor, { width, height, method }: ScaleTarget): readonly [Pass, Pass] {
  const taps = TAPS[method];
  return [
    {
      lines: image.batch * image.height,
      size: image.width,
      outSize: width,
      block: image.channels,
      taps: taps(image.width, width),
    },
    {
      lines: image.batch,
      size: image.height,
      outSize: height,
      block: width * image.channels,
      taps: taps(image.height, height),
    },
  ];
}

/** RGBA is scaled with its colours multiplied by alpha, as Pillow does. */
function premultiply(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; at += 4) {
    const alpha = bytes[at + 3] ?? 0;
    for (let channel = at; channel < at + 3; channel++) {
      const product = (bytes[channel] ?? 0) * alpha + 128;
      bytes[channel] = ((product >> 8) + product) >> 8;
    }
  }
}

function unpremultiply(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; at += 4) {
    const alpha = bytes[at + 3] ?? 0;
    for (let channel = at; channel < at + 3 && alpha !== 0 && alpha !== 255; channel++) {
      bytes[channel] = Math.min(Math.trunc((255 * (bytes[channel] ?? 0)) / alpha), 255);
    }
  }
}

/** `np.clip(255. * x, 0, 255).astype(np.uint8)`. */
export function toBytes(data: Float32Array): Uint8Array {
  const bytes = new Uint8Array(data.length);
  for (let index = 0; index < data.length; index++) {
    const value = Math.fround((data[index] ?? 0) * 255);
    // The comparison also sends NaN to 0.
    bytes[index] = value > 0 ? Math.min(value, 255) : 0;
  }
  return bytes;
}

/** `x.astype(np.float32) / 255.0`. */
export function fromBytes(
  bytes: Uint8Array,
  out: Float32Array = new Float32Array(bytes.length),
): Float32Array {
  for (let index = 0; index < bytes.length; index++) {
    out[index] = (bytes[index] ?? 0) / 255;
  }
  return out;
}

async function scaleLanczos(image: ImageTensor, target: ScaleTarget, breathe: Breathe) {
  const [alongX, alongY] = passes(image, target);
  const result = new ImageTensor({ ...image.size(), width: target.width, height: target.height });
  let bytes = toBytes(image.data);
  const hasAlpha = image.channels === 4;
  if (target.width === image.width && target.height === image.height) {
    fromBytes(bytes, result.data);
    return result;
  }
  if (hasAlpha) {
    premultiply(bytes);
  }
  if (target.width !== image.width) {
    const wide = new Uint8Array(image.batch * image.height * target.width * image.channels);
    await eachPosition(alongX, byteKernel(bytes, wide, alongX), breathe);
    bytes = wide;
  }
  if (target.height !== image.height) {
    const high = new Uint8Array(result.data.length);
    await eachPosition(alongY, byteKernel(bytes, high, alongY), breathe);
    bytes = high;
  }
  if (hasAlpha) {
    unpremultiply(bytes);
  }
  fromBytes(bytes, result.data);
  return result;
}

function refuseEmpty(image: ImageTensor, { width, height, method }: ScaleTarget): void {
  if (method === "lanczos") {
    throw new NodeError("ValueError", "height and width must be > 0");
  }
  if (method !== "area" || image.width * image.height === 0) {
    throw new NodeError(
      "RuntimeError",
      `Input and output sizes should be greater than 0, but got input (H: ${image.height}, W: ${image.width}) output (H: ${height}, W: ${width})`,
    );
  }
}

/** Cuts the margins that don't fit the target's shape. */
export function cropToAspect(image: ImageTensor, width: number, height: number): ImageTensor {
  const aspect = image.width / image.height;
  const wanted = width / height;
  const x =
    aspect > wanted ? roundHalfEven((image.width - image.width * (wanted / aspect)) / 2) : 0;
  const y =
    aspect < wanted ? roundHalfEven((image.height - image.height * (aspect / wanted)) / 2) : 0;
  return slice(image, { x, y, width: image.width - 2 * x, height: image.height - 2 * y });
}

export interface Rect {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/** A part of every picture, copied. The rectangle must lie inside. */
export function slice(image: ImageTensor, { x, y, width, height }: Rect): ImageTensor {
  if (x === 0 && y === 0 && width === image.width && height === image.height) {
    return image;
  }
  const part = new ImageTensor({ ...image.size(), width, height });
  for (let picture = 0; picture < image.batch; picture++) {
    for (let row = 0; row < height; row++) {
      const from = ((picture * image.height + y + row) * image.width + x) * image.channels;
      part.data.set(
        image.data.subarray(from, from + width * image.channels),
        (picture * height + row) * width * image.channels,
      );
    }
  }
  return part;
}

/** `comfy.utils.common_upscale`. */
export async function scale(
  whole: ImageTensor,
  target: ScaleTarget,
  breathe: Breathe,
): Promise<ImageTensor> {
  const { width, height, method } = target;
  const image = target.crop === "center" ? cropToAspect(whole, width, height) : whole;
  if (width * height * image.width * image.height === 0) {
    refuseEmpty(image, target);
    return new ImageTensor({ ...image.size(), width, height });
  }
  if (method === "lanczos") {
    return scaleLanczos(image, target, breathe);
  }
  const [alongX, alongY] = passes(image, target);
  const wide = new ImageTensor({ ...image.size(), width });
  await eachPosition(alongX, floatKernel(image.data, wide.data, alongX), breathe);
  const result = new ImageTensor({ ...image.size(), width, height });
  await eachPosition(alongY, floatKernel(wide.data, result.data, alongY), breathe);
  return result;
}
