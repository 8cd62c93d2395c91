/**
 * Converts still pictures to the format that was asked for, and leaves alone what needs nothing done: files that have it
 * already, video, sound, animations it can't keep. A conversion that fails keeps the original and says so.
 */
import { closeSync, existsSync, openSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, extname, join } from "node:path";
import { CanceledError, messageOf } from "../platform/errors.ts";
import { readFully } from "../platform/files.ts";
import { Limiter } from "../platform/limit.ts";
import type { Logger } from "../platform/log.ts";
import { sniffFile } from "./sniff.ts";

export type OutputFormat = "webp" | "jpg" | "png";

export interface OptimiseOptions {
  readonly format: OutputFormat;
  /** 0 to 100. Of no meaning to png, which loses nothing. */
  readonly quality: number;
  readonly log: Logger;
  readonly signal?: AbortSignal | undefined;
}

/** What sharp reads everywhere it runs; others are returned as they are. */
const CONVERTIBLE = new Set(["png", "jpg", "webp", "gif", "tiff"]);
/** sharp uses several threads for one picture by itself. */
const PARALLEL = 2;
/** The largest side that WebP can store. */
const MAX_WEBP_SIDE = 16_383;
/** Pixels beyond which a picture is a bomb rather than an output: sharp's own bound is a quarter of it. */
const MAX_PIXELS = 2 ** 30;

type Sharp = typeof import("sharp").default;

/** sharp costs some 60 ms and 30 MB: loaded with the first picture. */
let loaded: Promise<Sharp> | undefined;
async function loadSharp(): Promise<Sharp> {
  loaded ??= import("sharp").then((module) => {
    // Every output is read once: a cache would only hold memory.
    module.default.cache(false);
    return module.default;
  });
  return await loaded;
}

/** The files in the same order, converted where there was something to do. Originals of converted ones are removed. */
export async function optimiseOutputs(
  paths: readonly string[],
  options: OptimiseOptions,
): Promise<string[]> {
  const limiter = new Limiter(PARALLEL);
  const taken = new Set(paths);
  return await Promise.all(
    paths.map((path) => {
      const target = plan(path, options.format, taken);
      return target === undefined
        ? path
        : limiter.run(async () => await convertOrKeep(path, target, options));
    }),
  );
}

/** Where the converted file goes; undefined when there is nothing to do. */
function plan(path: string, format: OutputFormat, taken: Set<string>): string | undefined {
  const { kind, extension } = sniffFile(path);
  if (kind !== "image" || extension === format || !CONVERTIBLE.has(extension)) {
    return undefined;
  }
  if (extension === "png" && isAnimatedPng(path)) {
    // sharp reads its first frame alone.
    return undefined;
  }
  const stem = join(dirname(path), basename(path, extname(path)));
  let target = `${stem}.${format}`;
  for (let count = 1; taken.has(target) || existsSync(target); count += 1) {
    target = `${stem}-${count}.${format}`;
  }
  taken.add(target);
  return target;
}

async function convertOrKeep(
  path: string,
  target: string,
  { format, quality, log, signal }: OptimiseOptions,
): Promise<string> {
  if (signal?.aborted) {
    throw new CanceledError("Converting outputs was called off");
  }
  const partial = `${target}.part`;
  try {
    const isConverted = await convert(path, partial, format, quality);
    if (!isConverted) {
      return path;
    }
    renameSync(partial, target);
    rmSync(path);
    return target;
  } catch (error) {
    rmSync(partial, { force: true });
    log.warn(
      `${basename(path)} could not be converted to ${format} and is returned as it is: ${messageOf(error)}`,
    );
    return path;
  }
}

/** @returns false when the picture moves and the format can't */
async function convert(
  path: string,
  partial: string,
  format: OutputFormat,
  quality: number,
): Promise<boolean> {
  const sharp = await loadSharp();
  const picture = sharp(path, {
    animated: true,
    limitInputPixels: MAX_PIXELS,
    failOn: "error",
  }).autoOrient();
  const { pages = 1, width, height, pageHeight } = await picture.metadata();
  if (pages > 1 && format !== "webp") {
    return false;
  }
  if (format === "webp") {
    const side = Math.max(width, pageHeight ?? height);
    if (side > MAX_WEBP_SIDE) {
      throw new Error(`a side of ${side} pixels is more than WebP holds (${MAX_WEBP_SIDE})`);
    }
    await picture.webp({ quality: Math.max(1, quality) }).toFile(partial);
  } else if (format === "jpg") {
    // JPEG has no transparency: on white, as a page would show it.
    await picture
      .flatten({ background: "#ffffff" })
      .jpeg({ quality: Math.max(1, quality) })
      .toFile(partial);
  } else {
    await picture.png().toFile(partial);
  }
  return true;
}

/** `acTL` stands before the picture's data. */
function isAnimatedPng(path: string): boolean {
  const fd = openSync(path, "r");
  try {
    const chunk = Buffer.alloc(8);
    const end = statSync(path).size;
    for (let at = 8; at + 8 <= end && readFully(fd, chunk, at) === 8; ) {
      const type = chunk.toString("latin1", 4, 8);
      if (type === "acTL" || type === "IDAT") {
        return type === "acTL";
      }
      at += 12 + chunk.readUInt32BE(0);
    }
    return false;
  } finally {
    closeSync(fd);
  }
}
