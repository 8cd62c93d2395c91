/**
 * Finds the texts that ComfyUI writes into the files it saves: PNG text chunks, EXIF of WebP and JPEG, the metadata
 * of MP4 and WebM. Reads headers only, never a pixel; a damaged file gives what was readable before the damage.
 */
import { gunzipSync, inflateSync } from "node:zlib";
import { MAX_TEXT_BYTES } from "./limits.ts";
import { isMatroska, readMatroskaTags } from "./matroska-text.ts";

export type MediaKind = "png" | "webp" | "jpeg" | "mp4" | "webm";

export interface EmbeddedText {
  /** `prompt`, `workflow`, …: lower case. */
  readonly key: string;
  readonly text: string;
}

export interface MediaTexts {
  readonly kind: MediaKind;
  readonly texts: readonly EmbeddedText[];
  /** True when the file ends within a chunk. */
  readonly truncated: boolean;
}

/** The texts in a media file, or undefined when the bytes are none of the kinds read here. */
export function readMediaTexts(bytes: Uint8Array): MediaTexts | undefined {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.subarray(0, 8).toString("hex") === "89504e470d0a1a0a") {
    return { kind: "png", ...readPng(view) };
  }
  if (ascii(view, 0, 4) === "RIFF" && ascii(view, 8, 12) === "WEBP") {
    return { kind: "webp", ...readWebp(view) };
  }
  if (view.length > 3 && view.readUIntBE(0, 3) === 0xffd8ff) {
    return { kind: "jpeg", ...readJpeg(view) };
  }
  if (ascii(view, 4, 8) === "ftyp") {
    return { kind: "mp4", ...readMp4(view) };
  }
  if (isMatroska(view)) {
    return { kind: "webm", ...readMatroskaTags(view) };
  }
  return undefined;
}

/** What is in a gzip file, or undefined when the bytes are none. Throws what zlib throws on damage or excess. */
export function gunzip(bytes: Uint8Array): Uint8Array | undefined {
  return bytes[0] === 0x1f && bytes[1] === 0x8b
    ? gunzipSync(bytes, { maxOutputLength: MAX_TEXT_BYTES })
    : undefined;
}

type Found = Omit<MediaTexts, "kind">;

function ascii(view: Buffer, from: number, to: number): string {
  return view.subarray(from, to).toString("latin1");
}

/** UTF-8 where it is valid, else Latin-1: what PNG says and what tools write differ. */
function decode(view: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(view);
  } catch {
    return view.toString("latin1");
  }
}

function readPng(view: Buffer): Found {
  const texts: EmbeddedText[] = [];
  let at = 8;
  while (at + 8 <= view.length) {
    const length = view.readUInt32BE(at);
    const type = ascii(view, at + 4, at + 8);
    const end = at + 8 + length;
    if (end > view.length) {
      return { texts, truncated: true };
    }
    const text = pngText(type, view.subarray(at + 8, end));
    if (text !== undefined) {
      texts.push(text);
    }
    if (type === "IEND") {
      return { texts, truncated: false };
    }
    at = end + 4;
  }
  return { texts, truncated: true };
}

function pngText(type: string, chunk: Buffer): EmbeddedText | undefined {
  if (type !== "tEXt" && type !== "zTXt" && type !== "iTXt") {
    return undefined;
  }
  const split = chunk.indexOf(0);
  if (split <= 0) {
    return undefined;
  }
  const key = ascii(chunk, 0, split).toLowerCase();
  const body = type === "tEXt" ? chunk.subarray(split + 1) : packedText(type, chunk, split + 1);
  return body === undefined ? undefined : { key, text: decode(body) };
}

/** The text of a zTXt chunk, or of an iTXt one, whose language and translated keyword come first. */
function packedText(type: string, chunk: Buffer, from: number): Buffer | undefined {
  if (type === "zTXt") {
    return inflate(chunk.subarray(from + 1));
  }
  const language = chunk.indexOf(0, from + 2);
  const translated = language === -1 ? -1 : chunk.indexOf(0, language + 1);
  if (translated === -1) {
    return undefined;
  }
  const body = chunk.subarray(translated + 1);
  return chunk[from] === 1 ? inflate(body) : body;
}

function inflate(packed: Buffer): Buffer | undefined {
  try {
    return inflateSync(packed, { maxOutputLength: MAX_TEXT_BYTES });
  } catch {
    // A damaged or exploding chunk is as good as none: the file is a picture first.
    return undefined;
  }
}

function readWebp(view: Buffer): Found {
  const texts: EmbeddedText[] = [];
  let at = 12;
  while (at + 8 <= view.length) {
    const length = view.readUInt32LE(at + 4);
    const end = at + 8 + length;
    if (end > view.length) {
      return { texts, truncated: true };
    }
    if (ascii(view, at, at + 4) === "EXIF") {
      texts.push(...readExif(view.subarray(at + 8, end)));
    }
    at = end + (length % 2);
  }
  return { texts, truncated: false };
}

function readJpeg(view: Buffer): Found {
  const texts: EmbeddedText[] = [];
  let at = 2;
  // Segments before the picture's data; 0xda starts it.
  while (at + 4 <= view.length && view[at] === 0xff && view[at + 1] !== 0xda) {
    const end = at + 2 + view.readUInt16BE(at + 2);
    if (view[at + 1] === 0xe1 && ascii(view, at + 4, at + 8) === "Exif") {
      texts.push(...readExif(view.subarray(at + 4, end)));
    }
    at = end;
  }
  return { texts, truncated: at > view.length };
}

/** ComfyUI stores `prompt:{…}` and `workflow:{…}` in text tags of the first EXIF directory. */
function readExif(block: Buffer): EmbeddedText[] {
  const tiff = ascii(block, 0, 4) === "Exif" ? block.subarray(6) : block;
  const order = ascii(tiff, 0, 2);
  if (tiff.length < 8 || (order !== "II" && order !== "MM")) {
    return [];
  }
  const little = order === "II";
  const u16 = (at: number) => (little ? tiff.readUInt16LE(at) : tiff.readUInt16BE(at));
  const u32 = (at: number) => (little ? tiff.readUInt32LE(at) : tiff.readUInt32BE(at));
  const directory = u32(4);
  const texts: EmbeddedText[] = [];
  const count = directory + 2 <= tiff.length ? u16(directory) : 0;
  for (let index = 0; index < count; index += 1) {
    const entry = directory + 2 + index * 12;
    // Type 2 is text; up to four bytes of it stand in the entry itself and are too short to matter.
    if (entry + 12 > tiff.length || u16(entry + 2) !== 2 || u32(entry + 4) <= 4) {
      continue;
    }
    const from = u32(entry + 8);
    const text = decode(tiff.subarray(from, from + u32(entry + 4))).replace(/\0+$/, "");
    const match = /^(\w{1,40}):/.exec(text);
    if (match?.[1] !== undefined) {
      texts.push({ key: match[1].toLowerCase(), text: text.slice(match[0].length) });
    }
  }
  return texts;
}

interface Box {
  readonly type: string;
  readonly body: Buffer;
}

/** Boxes of an MP4 level. Stops at the first that doesn't fit: `truncated` tells. */
function boxesOf(view: Buffer): { boxes: Box[]; truncated: boolean } {
  const boxes: Box[] = [];
  let at = 0;
  while (at + 8 <= view.length) {
    const short = view.readUInt32BE(at);
    const header = short === 1 ? 16 : 8;
    if (at + header > view.length) {
      return { boxes, truncated: true };
    }
    // Size 0 means "to the end of the file", size 1 that 64 bits follow.
    const long = short === 1 ? Number(view.readBigUInt64BE(at + 8)) : short;
    const size = short === 0 ? view.length - at : long;
    if (size < header || at + size > view.length) {
      return { boxes, truncated: true };
    }
    boxes.push({
      type: ascii(view, at + 4, at + 8),
      body: view.subarray(at + header, at + size),
    });
    at += size;
  }
  return { boxes, truncated: at < view.length };
}

function readMp4(view: Buffer): Found {
  const top = boxesOf(view);
  const texts: EmbeddedText[] = [];
  for (const moov of top.boxes.filter((box) => box.type === "moov")) {
    const inside = boxesOf(moov.body).boxes;
    const userData = inside.filter((box) => box.type === "udta");
    const metas = [inside, ...userData.map((box) => boxesOf(box.body).boxes)].flat();
    for (const meta of metas.filter((box) => box.type === "meta")) {
      texts.push(...readMetaBox(meta.body));
    }
  }
  return { texts, truncated: top.truncated };
}

/** `keys` names the entries of `ilst`, which refer to it by number; the classic `©cmt` is a comment. */
function readMetaBox(body: Buffer): EmbeddedText[] {
  // ISO files have a version word before the boxes, QuickTime files don't.
  const boxes = boxesOf(ascii(body, 4, 8) === "hdlr" ? body : body.subarray(4)).boxes;
  const keys = boxes.filter((box) => box.type === "keys").flatMap((box) => readKeys(box.body));
  const texts: EmbeddedText[] = [];
  for (const list of boxes.filter((box) => box.type === "ilst")) {
    for (const item of boxesOf(list.body).boxes) {
      const value = boxesOf(item.body).boxes.find((box) => box.type === "data");
      const key = keys[Buffer.from(item.type, "latin1").readUInt32BE(0) - 1] ?? item.type;
      if (value !== undefined && value.body.length > 8) {
        texts.push({ key: key.toLowerCase(), text: decode(value.body.subarray(8)) });
      }
    }
  }
  return texts;
}

function readKeys(body: Buffer): string[] {
  const keys: string[] = [];
  let at = 8;
  while (at + 8 <= body.length) {
    const size = body.readUInt32BE(at);
    if (size < 8) {
      break;
    }
    keys.push(body.subarray(at + 8, at + size).toString("utf8"));
    at += size;
  }
  return keys;
}
