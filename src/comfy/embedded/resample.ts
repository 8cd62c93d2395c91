/**
 * ComfyUI's five ways to scale a picture, number by number as PyTorch (no antialiasing, half-pixel centres) and, for
 * lanczos, Pillow (8-bit fixed point) do it. All are separable: first along x, then along y.
 */
import { NodeError } from "./node-error.ts";
import { roundHalfEven } from "./python.ts";
import type { ImageSize } from "./values.ts";
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

const { fround, floor, ceil, min, max } = Math;

/** For each output position the inputs that make it up (edges repeated), and their weights. */
interface Taps {
  readonly indices: Int32Array;
  readonly weights: Float32Array;
  /** Inputs per position. */
  readonly span: 1 | 2 | 4;
}

type TapsAt = (position: number) => { first: number; weights: readonly number[] };

function tapsOf(size: number, outSize: number, span: 1 | 2 | 4, at: TapsAt): Taps {
  const indices = new Int32Array(outSize * span);
  const weights = new Float32Array(outSize * span);
  for (let position = 0; position < outSize; position++) {
    const taps = at(position);
    for (const [offset, weight] of taps.weights.entries()) {
      indices[position * span + offset] = min(max(taps.first + offset, 0), size - 1);
      weights[position * span + offset] = weight;
    }
  }
  return { indices, weights, span };
}

function nearestTaps(size: number, outSize: number): Taps {
  const scale = size / outSize;
  return tapsOf(size, outSize, 1, (position) => ({
    first: floor((position + 0.5) * scale),
    weights: [1],
  }));
}

/** Where a position lies in the source: half-pixel centres, rounded as one fused multiply-add in float32. */
function sourceOf(size: number, outSize: number): (position: number) => number {
  const scale = fround(size / outSize);
  return (position) => fround(scale * (position + 0.5) - 0.5);
}

function bilinearTaps(size: number, outSize: number): Taps {
  const sourceAt = sourceOf(size, outSize);
  return tapsOf(size, outSize, 2, (position) => {
    const source = max(sourceAt(position), 0);
    const first = min(floor(source), size - 1);
    const rest = fround(source - first);
    return { first, weights: [fround(1 - rest), rest] };
  });
}

/** PyTorch's bicubic coefficient. */
const CUBIC_A = -0.75;

/** Weight of the two inner taps; float32 after each operation, as PyTorch's CPU kernel computes it. */
function cubicInner(x: number): number {
  const slope = fround(fround((CUBIC_A + 2) * x) - (CUBIC_A + 3));
  return fround(fround(fround(slope * x) * x) + 1);
}

/** Weight of the two outer taps; its second step is one fused multiply-add there. */
function cubicOuter(x: number): number {
  const slope = fround(fround(CUBIC_A * x) - 5 * CUBIC_A);
  return fround(fround(fround(slope * x + 8 * CUBIC_A) * x) - 4 * CUBIC_A);
}

function bicubicTaps(size: number, outSize: number): Taps {
  const sourceAt = sourceOf(size, outSize);
  return tapsOf(size, outSize, 4, (position) => {
    const source = sourceAt(position);
    const rest = fround(source - floor(source));
    const opposite = fround(1 - rest);
    const weights = [
      cubicOuter(fround(rest + 1)),
      cubicInner(rest),
      cubicInner(opposite),
      cubicOuter(fround(opposite + 1)),
    ];
    return { first: floor(source) - 1, weights };
  });
}

const LANCZOS_LOBES = 3;

function lanczos(x: number): number {
  const sinc = (value: number) => (value === 0 ? 1 : Math.sin(value * Math.PI) / (value * Math.PI));
  return x > -LANCZOS_LOBES && x < LANCZOS_LOBES ? sinc(x) * sinc(x / LANCZOS_LOBES) : 0;
}

/** Bits of Pillow's fixed point weights. */
const PRECISION_BITS = 22;

/** Taps of Pillow: a run of inputs for each position, weights as whole numbers. */
interface FixedTaps {
  readonly starts: Int32Array;
  readonly counts: Int32Array;
  readonly weights: Int32Array;
  /** Weights per position. */
  readonly span: number;
}

function lanczosTaps(size: number, outSize: number): FixedTaps {
  const scale = size / outSize;
  const filterScale = Math.max(scale, 1);
  const support = LANCZOS_LOBES * filterScale;
  const span = Math.ceil(support) * 2 + 1;
  const taps = {
    starts: new Int32Array(outSize),
    counts: new Int32Array(outSize),
    weights: new Int32Array(outSize * span),
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

/** What one pass works on: `lines` runs of `size` positions, each holding `block` numbers side by side. */
interface Pass {
  readonly lines: number;
  readonly size: number;
  readonly outSize: number;
  readonly block: number;
}

/** Computes the numbers of one output position, the first of them at `target`; `line` is where its inputs begin. */
type Kernel = (target: number, line: number, position: number) => void;

/** Sums between two looks at the clock. */
const SUMS_PER_BREATH = 200_000;

async function eachPosition(
  pass: Pass,
  sumsEach: number,
  kernel: Kernel,
  breathe: Breathe,
): Promise<void> {
  const { lines, size, outSize, block } = pass;
  let sums = 0;
  for (let line = 0; line < lines; line++) {
    for (let position = 0; position < outSize; position++) {
      kernel((line * outSize + position) * block, line * size * block, position);
      sums += block * sumsEach;
      if (sums > SUMS_PER_BREATH) {
        sums = 0;
        await breathe();
      }
    }
  }
}

/**
 * Float32 sums in PyTorch's order: the second product is rounded, the first, third and fourth are fused into it.
 * A double holds a product of two float32 exactly, so that one `fround` is one rounding.
 */
function floatKernel(data: Float32Array, out: Float32Array, block: number, taps: Taps): Kernel {
  const { indices, weights, span } = taps;
  const at = (position: number, tap: number) => (indices[position * span + tap] ?? 0) * block;
  const weight = (position: number, tap: number) => weights[position * span + tap] ?? 0;
  if (span === 1) {
    return (target, line, position) => {
      const source = line + at(position, 0);
      out.set(data.subarray(source, source + block), target);
    };
  }
  return (target, line, position) => {
    const [a, b] = [line + at(position, 0), line + at(position, 1)];
    const [wa, wb] = [weight(position, 0), weight(position, 1)];
    for (let inner = 0; inner < block; inner++) {
      const product = fround(wb * (data[b + inner] ?? 0));
      out[target + inner] = wa * (data[a + inner] ?? 0) + product;
    }
    if (span === 4) {
      const [c, d] = [line + at(position, 2), line + at(position, 3)];
      const [wc, wd] = [weight(position, 2), weight(position, 3)];
      for (let inner = 0; inner < block; inner++) {
        const sum = fround(wc * (data[c + inner] ?? 0) + (out[target + inner] ?? 0));
        out[target + inner] = wd * (data[d + inner] ?? 0) + sum;
      }
    }
  };
}

/** Pillow's sums: weights are whole numbers, the result is clipped to a byte. */
function byteKernel(data: Uint8Array, out: Uint8Array, block: number, taps: FixedTaps): Kernel {
  const { starts, counts, weights, span } = taps;
  return (target, line, position) => {
    const source = line + (starts[position] ?? 0) * block;
    const count = counts[position] ?? 0;
    for (let inner = 0; inner < block; inner++) {
      let sum = 1 << (PRECISION_BITS - 1);
      for (let tap = 0; tap < count; tap++) {
        const value = data[source + tap * block + inner] ?? 0;
        sum += Math.imul(weights[position * span + tap] ?? 0, value);
      }
      out[target + inner] = min(max(sum >> PRECISION_BITS, 0), 255);
    }
  };
}

function passAlongX(image: ImageSize, width: number): Pass {
  const { batch, height, channels } = image;
  return { lines: batch * height, size: image.width, outSize: width, block: channels };
}

function passAlongY(image: ImageSize, height: number): Pass {
  const { batch, width, channels } = image;
  return { lines: batch, size: image.height, outSize: height, block: width * channels };
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
function fromBytes(
  bytes: Uint8Array,
  out: Float32Array = new Float32Array(bytes.length),
): Float32Array {
  for (let index = 0; index < bytes.length; index++) {
    out[index] = (bytes[index] ?? 0) / 255;
  }
  return out;
}

/** A picture of bytes on its way through Pillow. */
interface ByteImage extends ImageSize {
  readonly data: Uint8Array;
}

async function resizeBytes(
  image: ByteImage,
  size: { width: number } | { height: number },
  breathe: Breathe,
): Promise<ByteImage> {
  const pass = "width" in size ? passAlongX(image, size.width) : passAlongY(image, size.height);
  const { outSize } = pass;
  if (pass.size === outSize) {
    return image;
  }
  const data = new Uint8Array(pass.lines * outSize * pass.block);
  const taps = lanczosTaps(pass.size, outSize);
  await eachPosition(pass, taps.span, byteKernel(image.data, data, pass.block, taps), breathe);
  return { ...image, ...size, data };
}

async function scaleLanczos(image: ImageTensor, target: ScaleTarget, breathe: Breathe) {
  const { width, height } = target;
  const data = toBytes(image.data);
  const isSame = width === image.width && height === image.height;
  const isPremultiplied = image.channels === 4 && !isSame;
  if (isPremultiplied) {
    premultiply(data);
  }
  const start = { ...image.size(), data };
  // Pillow 13 takes the vertical pass first where that one drops more than twice as many pixels.
  const isTallFirst = height < image.height && image.height - height > 2 * (image.width - width);
  const half = await resizeBytes(start, isTallFirst ? { height } : { width }, breathe);
  const done = await resizeBytes(half, isTallFirst ? { width } : { height }, breathe);
  if (isPremultiplied) {
    unpremultiply(done.data);
  }
  const result = new ImageTensor({ ...image.size(), width, height });
  fromBytes(done.data, result.data);
  return result;
}

/** Adaptive average pooling: sums in float32 row by row, divided by the height and then by the width of the part. */
async function scaleArea(image: ImageTensor, target: ScaleTarget, breathe: Breathe) {
  const result = new ImageTensor({ ...image.size(), width: target.width, height: target.height });
  for (let line = 0; line < image.batch * target.height; line++) {
    const y = line % target.height;
    const top = floor((y * image.height) / target.height);
    const rows = ceil(((y + 1) * image.height) / target.height) - top;
    const first = ((line - y) / target.height) * image.height + top;
    for (let x = 0; x < target.width; x++) {
      const left = floor((x * image.width) / target.width);
      const columns = ceil(((x + 1) * image.width) / target.width) - left;
      averageInto(result.data, (line * target.width + x) * image.channels, image, {
        x: left,
        y: first,
        width: columns,
        height: rows,
      });
    }
    await breathe();
  }
  return result;
}

/** Mean of a rectangle; its rows are counted through the whole batch. */
function averageInto(out: Float32Array, target: number, image: ImageTensor, part: Rect): void {
  const { data, channels, width } = image;
  for (let channel = 0; channel < channels; channel++) {
    let sum = 0;
    for (let y = part.y; y < part.y + part.height; y++) {
      const row = (y * width + part.x) * channels + channel;
      for (let at = row; at < row + part.width * channels; at += channels) {
        sum = fround(sum + (data[at] ?? 0));
      }
    }
    out[target + channel] = fround(sum / part.height) / part.width;
  }
}

const FLOAT_TAPS = {
  "nearest-exact": nearestTaps,
  bilinear: bilinearTaps,
  bicubic: bicubicTaps,
} as const;

async function scaleFloat(
  image: ImageTensor,
  target: ScaleTarget,
  tapsFor: (size: number, outSize: number) => Taps,
  breathe: Breathe,
): Promise<ImageTensor> {
  const alongX = passAlongX(image, target.width);
  const wide = new ImageTensor({ ...image.size(), width: target.width });
  const tapsX = tapsFor(image.width, target.width);
  await eachPosition(
    alongX,
    tapsX.span,
    floatKernel(image.data, wide.data, alongX.block, tapsX),
    breathe,
  );
  const alongY = passAlongY(wide, target.height);
  const result = new ImageTensor({ ...wide.size(), height: target.height });
  const tapsY = tapsFor(image.height, target.height);
  await eachPosition(
    alongY,
    tapsY.span,
    floatKernel(wide.data, result.data, alongY.block, tapsY),
    breathe,
  );
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
    return await scaleLanczos(image, target, breathe);
  }
  return method === "area"
    ? await scaleArea(image, target, breathe)
    : await scaleFloat(image, target, FLOAT_TAPS[method], breathe);
}
