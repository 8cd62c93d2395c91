/** What travels along the links between nodes: pictures, masks, models and plain values. */
import type { JsonValue } from "../../platform/json.ts";
import type { CompactNetwork } from "./compact.ts";
import { memoryLeft, memoryLimit } from "./memory.ts";
import { NodeError } from "./node-error.ts";

const BYTES_PER_FLOAT = 4;

/** No single picture may take more than this share of the memory: the kernel would kill the process instead. */
const MEMORY_SHARE = 0.6;

export interface ImageSize {
  readonly batch: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
}

export type MaskSize = Omit<ImageSize, "channels">;

/** IMAGE: float32, `[batch, height, width, channels]`, nominally 0 to 1. Never changed once another node sees it. */
export class ImageTensor {
  readonly batch: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  readonly data: Float32Array;

  constructor(size: ImageSize, data?: Float32Array) {
    this.batch = size.batch;
    this.height = size.height;
    this.width = size.width;
    this.channels = size.channels;
    this.data = data ?? allocate(size.batch * size.height * size.width * size.channels);
  }

  get shape(): readonly number[] {
    return [this.batch, this.height, this.width, this.channels];
  }

  /** Numbers in one picture of the batch. */
  get stride(): number {
    return this.height * this.width * this.channels;
  }

  /** One picture of the batch, without a copy. */
  at(index: number): ImageTensor {
    const { stride } = this;
    return new ImageTensor(
      { ...this.size(), batch: 1 },
      this.data.subarray(index * stride, (index + 1) * stride),
    );
  }

  size(): ImageSize {
    return { batch: this.batch, height: this.height, width: this.width, channels: this.channels };
  }
}

/** MASK: float32, `[batch, height, width]`. */
export class MaskTensor {
  readonly batch: number;
  readonly height: number;
  readonly width: number;
  readonly data: Float32Array;

  constructor(size: MaskSize, data?: Float32Array) {
    this.batch = size.batch;
    this.height = size.height;
    this.width = size.width;
    this.data = data ?? allocate(size.batch * size.height * size.width);
  }

  get shape(): readonly number[] {
    return [this.batch, this.height, this.width];
  }

  size(): MaskSize {
    return { batch: this.batch, height: this.height, width: this.width };
  }

  /** The same numbers seen as a picture of one channel. */
  asImage(): ImageTensor {
    return new ImageTensor({ ...this.size(), channels: 1 }, this.data);
  }
}

/** UPSCALE_MODEL: a network read from a file. */
export class UpscaleModel {
  readonly network: CompactNetwork;

  constructor(network: CompactNetwork) {
    this.network = network;
  }
}

/** A MODEL, CLIP, VAE, … whose file was found and checked, but which nothing here can compute with. */
export class OpaqueModel {
  readonly type: string;
  readonly file: string;

  constructor(type: string, file: string) {
    this.type = type;
    this.file = file;
  }
}

/** LATENT of zeros: only its shape is known. */
export class EmptyLatent {
  readonly shape: readonly number[];

  constructor(shape: readonly number[]) {
    this.shape = shape;
  }
}

export type NodeValue =
  | ImageTensor
  | MaskTensor
  | UpscaleModel
  | OpaqueModel
  | EmptyLatent
  | JsonValue;

/** True for a plain value: a number, a text, a flag, nothing, or JSON. */
export function isPlain(value: NodeValue | undefined): value is JsonValue {
  return !(
    value === undefined ||
    value instanceof ImageTensor ||
    value instanceof MaskTensor ||
    value instanceof UpscaleModel ||
    value instanceof OpaqueModel ||
    value instanceof EmptyLatent
  );
}

/** Numbers set to zero; refuses what this machine can't hold, as PyTorch does, instead of being killed. */
export function allocate(count: number): Float32Array {
  const bytes = count * BYTES_PER_FLOAT;
  if (bytes > UNCHECKED_BYTES && bytes > Math.min(memoryLimit() * MEMORY_SHARE, memoryLeft())) {
    throw outOfMemory(bytes);
  }
  try {
    return new Float32Array(count);
  } catch {
    throw outOfMemory(bytes);
  }
}

function outOfMemory(bytes: number): NodeError {
  return new NodeError(
    "RuntimeError",
    `[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate ${bytes} bytes. Error code 12 (Cannot allocate memory)`,
  );
}

/** Smaller pictures aren't worth a look at the memory. */
const UNCHECKED_BYTES = 16 * 1024 ** 2;

/** Bytes that a value holds on to, for the cache's budget. */
export function bytesOf(value: NodeValue): number {
  if (value instanceof ImageTensor || value instanceof MaskTensor) {
    return value.data.byteLength;
  }
  return value instanceof UpscaleModel ? value.network.bytes : 0;
}

/** As `format_value` of ComfyUI prints a value in `current_inputs`, but never megabytes of it. */
export function describeValue(value: NodeValue): string | undefined {
  if (value instanceof ImageTensor || value instanceof MaskTensor) {
    const empty = value.data.length === 0 ? "[]" : "[...]";
    return `tensor(${empty}, size=(${value.shape.join(", ")}))`;
  }
  if (value instanceof OpaqueModel) {
    return `<${value.type} of ${value.file}>`;
  }
  if (value instanceof UpscaleModel) {
    return "<spandrel.ImageModelDescriptor>";
  }
  return value instanceof EmptyLatent
    ? `{'samples': tensor(size=(${value.shape.join(", ")}))}`
    : undefined;
}
