/** Runs an upscaling network over pictures of any size, in overlapping tiles with soft edges as ComfyUI does. */
import type { CompactNetwork, Planes } from "./compact.ts";
import { NodeError } from "./node-error.ts";
import { roundHalfEven } from "./python.ts";
import type { Breathe } from "./resample.ts";
import { ImageTensor } from "./values.ts";

const TILE = 512;
const OVERLAP = 32;

export interface TileOptions {
  readonly tile?: number;
  readonly overlap?: number;
  readonly breathe: Breathe;
  /** Tiles done and tiles in all, after each one. */
  readonly onTile?: ((done: number, total: number) => void) | undefined;
}

/** Where tiles begin along one side. */
function positions(size: number, tile: number, overlap: number): number[] {
  if (size <= tile) {
    return [0];
  }
  const starts: number[] = [];
  for (let start = 0; start < size - overlap; start += tile - overlap) {
    starts.push(start);
  }
  return starts;
}

function takePlanes(
  image: ImageTensor,
  x: number,
  y: number,
  size: { width: number; height: number },
): Planes {
  const { width, height } = size;
  const { channels } = image;
  const data = new Float32Array(channels * width * height);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const from = ((y + row) * image.width + x + column) * channels;
      for (let channel = 0; channel < channels; channel++) {
        data[(channel * height + row) * width + column] = image.data[from + channel] ?? 0;
      }
    }
  }
  return { channels, width, height, data };
}

/** Weights that rise from an edge over the overlap. */
function feather(length: number, overlap: number): Float32Array {
  const weights = new Float32Array(length).fill(1);
  for (let step = 0; step < overlap && overlap < length; step++) {
    const weight = Math.fround((step + 1) / overlap);
    weights[step] = Math.fround((weights[step] ?? 1) * weight);
    weights[length - 1 - step] = Math.fround((weights[length - 1 - step] ?? 1) * weight);
  }
  return weights;
}

/** Sums of weighted tiles, and of the weights. */
class Blend {
  readonly #sum: Float32Array;
  readonly #weight: Float32Array;
  readonly #target: ImageTensor;

  constructor(target: ImageTensor) {
    this.#target = target;
    this.#sum = target.data;
    this.#weight = new Float32Array(target.width * target.height);
  }

  add(tile: Planes, x: number, y: number, overlap: number): void {
    const alongX = feather(tile.width, overlap);
    const alongY = feather(tile.height, overlap);
    for (let row = 0; row < tile.height; row++) {
      for (let column = 0; column < tile.width; column++) {
        const weight = Math.fround((alongX[column] ?? 1) * (alongY[row] ?? 1));
        const pixel = (y + row) * this.#target.width + x + column;
        this.#weight[pixel] = (this.#weight[pixel] ?? 0) + weight;
        for (let channel = 0; channel < tile.channels; channel++) {
          const at = pixel * tile.channels + channel;
          const value = tile.data[(channel * tile.height + row) * tile.width + column] ?? 0;
          this.#sum[at] = (this.#sum[at] ?? 0) + Math.fround(value * weight);
        }
      }
    }
  }

  finish(): void {
    const { channels } = this.#target;
    for (let at = 0; at < this.#sum.length; at++) {
      const value = (this.#sum[at] ?? 0) / (this.#weight[Math.floor(at / channels)] ?? 1);
      this.#sum[at] = Math.min(Math.max(value, 0), 1);
    }
  }
}

/** Enlarges a batch. @throws NodeError for pictures whose channels the network doesn't take. */
export async function upscale(
  network: CompactNetwork,
  image: ImageTensor,
  options: TileOptions,
): Promise<ImageTensor> {
  if (image.channels !== network.inputs) {
    throw new NodeError(
      "RuntimeError",
      `Given groups=1, weight of size [${network.firstShape.join(", ")}], expected input[1, ${image.channels}, ${image.height}, ${image.width}] to have ${network.inputs} channels, but got ${image.channels} channels instead`,
    );
  }
  const { tile = TILE, overlap = OVERLAP } = options;
  const { scale } = network;
  const rows = positions(image.height, tile, overlap);
  const columns = positions(image.width, tile, overlap);
  const total = image.batch * rows.length * columns.length;
  const result = new ImageTensor({
    batch: image.batch,
    height: image.height * scale,
    width: image.width * scale,
    channels: network.outputs,
  });
  let done = 0;
  for (let index = 0; index < image.batch; index++) {
    const source = image.at(index);
    const blend = new Blend(result.at(index));
    for (const y of rows) {
      for (const x of columns) {
        const size = {
          width: Math.min(tile, image.width - x),
          height: Math.min(tile, image.height - y),
        };
        const planes = await network.run(takePlanes(source, x, y, size), options.breathe);
        // A picture of one tile has nothing to blend with: weight 1 everywhere.
        const soft = rows.length * columns.length === 1 ? 0 : roundHalfEven(overlap * scale);
        blend.add(planes, x * scale, y * scale, soft);
        done += 1;
        options.onTile?.(done, total);
      }
    }
    blend.finish();
  }
  return result;
}
