/** Writes 8-bit PNG files with text chunks: the one picture format that nodes save. Reading is `picture.ts`. */
import { promisify } from "node:util";
import { crc32, deflate } from "node:zlib";

const deflateAsync = promisify(deflate);

const SIGNATURE = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
const COLOR_TYPES: Readonly<Record<number, number>> = { 1: 0, 3: 2, 4: 6 };

export interface PixelGrid {
  readonly width: number;
  readonly height: number;
  /** 1 grey, 3 RGB, 4 RGBA. */
  readonly channels: 1 | 3 | 4;
  readonly data: Uint8Array;
}

export interface PngOptions {
  /** zlib's level; ComfyUI saves with 4, and previews with 1. */
  readonly level?: number;
  /** Text chunks, in order. */
  readonly text?: readonly (readonly [keyword: string, text: string])[];
  /** Called between rows, so that a big picture doesn't hold up everything else. */
  readonly breathe?: () => Promise<void> | undefined;
}

function chunk(type: string, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(12 + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, body.length);
  bytes.set(Buffer.from(type, "latin1"), 4);
  bytes.set(body, 8);
  view.setUint32(8 + body.length, crc32(bytes.subarray(4, 8 + body.length)));
  return bytes;
}

/** tEXt where Latin-1 can say it, else iTXt, as Pillow decides. */
function textChunk(keyword: string, text: string): Uint8Array {
  const isLatin = [...text].every((char) => char.charCodeAt(0) <= 0xff);
  return isLatin
    ? chunk("tEXt", Buffer.from(`${keyword}\0${text}`, "latin1"))
    : chunk("iTXt", Buffer.from(`${keyword}\0\0\0\0\0${text}`, "utf8"));
}

function header({ width, height, channels }: PixelGrid): Uint8Array {
  const body = new Uint8Array(13);
  const view = new DataView(body.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  body[8] = 8;
  body[9] = COLOR_TYPES[channels] ?? 2;
  return chunk("IHDR", body);
}

function paeth(left: number, up: number, corner: number): number {
  const guess = left + up - corner;
  const toLeft = Math.abs(guess - left);
  const toUp = Math.abs(guess - up);
  const toCorner = Math.abs(guess - corner);
  if (toLeft <= toUp && toLeft <= toCorner) {
    return left;
  }
  return toUp <= toCorner ? up : corner;
}

type Predictor = (left: number, up: number, corner: number) => number;

/** Filter types of PNG and what each predicts; the row that deviates least usually packs best. */
const PREDICTORS: readonly (readonly [type: number, predict: Predictor])[] = [
  [0, () => 0],
  [1, (left) => left],
  [2, (_left, up) => up],
  [4, paeth],
];

/** One filtered row, and how big its numbers are. */
function filterRow(rows: FilterRows, predict: Predictor, out: Uint8Array): number {
  const { data, start, above, length, step } = rows;
  let weight = 0;
  for (let index = 0; index < length; index++) {
    const hasLeft = index >= step;
    const left = hasLeft ? (data[start + index - step] ?? 0) : 0;
    const up = data[above + index] ?? 0;
    const corner = hasLeft ? (data[above + index - step] ?? 0) : 0;
    const byte = ((data[start + index] ?? 0) - predict(left, up, corner)) & 0xff;
    out[index] = byte;
    weight += byte < 128 ? byte : 256 - byte;
  }
  return weight;
}

interface FilterRows {
  readonly data: Uint8Array;
  readonly start: number;
  /** Start of the row above; negative, so that nothing is found there, for the first one. */
  readonly above: number;
  readonly length: number;
  readonly step: number;
}

async function filtered(grid: PixelGrid, options: PngOptions): Promise<Uint8Array> {
  const length = grid.width * grid.channels;
  const out = new Uint8Array((length + 1) * grid.height);
  let best = new Uint8Array(length);
  let trial = new Uint8Array(length);
  for (let y = 0; y < grid.height; y++) {
    const start = y * length;
    const rows = { data: grid.data, start, above: start - length, length, step: grid.channels };
    let least = Number.POSITIVE_INFINITY;
    let chosen = 0;
    for (const [type, predict] of PREDICTORS) {
      const weight = filterRow(rows, predict, trial);
      if (weight < least) {
        [least, chosen] = [weight, type];
        [best, trial] = [trial, best];
      }
    }
    out[y * (length + 1)] = chosen;
    out.set(best, y * (length + 1) + 1);
    await options.breathe?.();
  }
  return out;
}

/** The bytes of a PNG file. */
export async function encodePng(grid: PixelGrid, options: PngOptions = {}): Promise<Uint8Array> {
  const packed = await deflateAsync(await filtered(grid, options), { level: options.level ?? 4 });
  return Buffer.concat([
    SIGNATURE,
    header(grid),
    ...(options.text ?? []).map(([keyword, text]) => textChunk(keyword, text)),
    chunk("IDAT", packed),
    chunk("IEND", new Uint8Array(0)),
  ]);
}
