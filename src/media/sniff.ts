/**
 * What a file is, by its first bytes: names and content types of strangers are not believed. Unknown bytes are `other`,
 * never an error.
 */
import { closeSync, openSync } from "node:fs";
import { sniffArchive } from "../platform/archive.ts";
import { fileError, readFully } from "../platform/files.ts";

export type MediaKind =
  | "image"
  | "video"
  | "audio"
  | "3d"
  | "archive"
  | "tensors"
  | "html"
  | "text"
  | "empty"
  | "other";

export interface Sniffed {
  readonly kind: MediaKind;
  /** Usual ending without a dot; empty when the bytes don't tell. */
  readonly extension: string;
  readonly mime: string;
}

/** Enough for every signature below, the checksum of a tar header included. */
export const SNIFF_BYTES = 4096;

interface Signature {
  readonly kind: MediaKind;
  readonly extension: string;
  readonly mime: string;
  /** Latin-1 text at an offset; several must all be there. */
  readonly at: readonly (readonly [offset: number, bytes: string])[];
}

function signature(
  [kind, extension, mime]: readonly [MediaKind, string, string],
  ...at: readonly (readonly [number, string])[]
): Signature {
  return { kind, extension, mime, at };
}

const SIGNATURES: readonly Signature[] = [
  signature(["image", "png", "image/png"], [0, "\x89PNG\r\n\x1a\n"]),
  signature(["image", "jpg", "image/jpeg"], [0, "\xff\xd8\xff"]),
  signature(["image", "gif", "image/gif"], [0, "GIF8"]),
  signature(["image", "webp", "image/webp"], [0, "RIFF"], [8, "WEBP"]),
  signature(["image", "tiff", "image/tiff"], [0, "II*\0"]),
  signature(["image", "tiff", "image/tiff"], [0, "MM\0*"]),
  signature(["image", "exr", "image/x-exr"], [0, "v/1\x01"]),
  signature(["image", "hdr", "image/vnd.radiance"], [0, "#?RADIANCE"]),
  signature(["image", "psd", "image/vnd.adobe.photoshop"], [0, "8BPS"]),
  signature(["image", "jxl", "image/jxl"], [0, "\xff\x0a"]),
  signature(["image", "jxl", "image/jxl"], [4, "JXL \r\n\x87\n"]),
  signature(["audio", "wav", "audio/wav"], [0, "RIFF"], [8, "WAVE"]),
  signature(["video", "avi", "video/x-msvideo"], [0, "RIFF"], [8, "AVI "]),
  signature(["audio", "flac", "audio/flac"], [0, "fLaC"]),
  signature(["audio", "mp3", "audio/mpeg"], [0, "ID3"]),
  signature(["audio", "aiff", "audio/aiff"], [0, "FORM"], [8, "AIF"]),
  signature(["video", "flv", "video/x-flv"], [0, "FLV\x01"]),
  signature(["video", "mpg", "video/mpeg"], [0, "\0\0\x01\xba"]),
  signature(["3d", "glb", "model/gltf-binary"], [0, "glTF"]),
  signature(["3d", "ply", "model/ply"], [0, "ply\n"]),
  signature(["3d", "fbx", "model/fbx"], [0, "Kaydara FBX Binary"]),
  signature(["tensors", "gguf", "application/octet-stream"], [0, "GGUF"]),
];

/** Brands of ISO media files that are not plain video. */
const ISO_BRANDS: Readonly<Record<string, Sniffed>> = {
  avif: { kind: "image", extension: "avif", mime: "image/avif" },
  avis: { kind: "image", extension: "avif", mime: "image/avif" },
  heic: { kind: "image", extension: "heic", mime: "image/heic" },
  heix: { kind: "image", extension: "heic", mime: "image/heic" },
  mif1: { kind: "image", extension: "heic", mime: "image/heif" },
  "M4A ": { kind: "audio", extension: "m4a", mime: "audio/mp4" },
  "M4B ": { kind: "audio", extension: "m4a", mime: "audio/mp4" },
  "qt  ": { kind: "video", extension: "mov", mime: "video/quicktime" },
};

const ARCHIVES = {
  tar: { kind: "archive", extension: "tar", mime: "application/x-tar" },
  gzip: { kind: "archive", extension: "tar.gz", mime: "application/gzip" },
  zstd: { kind: "archive", extension: "tar.zst", mime: "application/zstd" },
  zip: { kind: "archive", extension: "zip", mime: "application/zip" },
} as const satisfies Record<string, Sniffed>;

/** What the beginning of a file says; the first {@link SNIFF_BYTES} are enough. */
export function sniff(head: Uint8Array): Sniffed {
  if (head.byteLength === 0) {
    return { kind: "empty", extension: "", mime: "application/octet-stream" };
  }
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength);
  const text = bytes.toString("latin1", 0, Math.min(bytes.length, SNIFF_BYTES));
  const known = SIGNATURES.find(({ at }) =>
    at.every(([offset, wanted]) => text.startsWith(wanted, offset)),
  );
  if (known !== undefined) {
    const { kind, extension, mime } = known;
    return { kind, extension, mime };
  }
  return containerOf(bytes, text) ?? textOf(bytes, text);
}

/** What a file is. @throws AppError when it can't be read */
export function sniffFile(path: string): Sniffed {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    throw fileError(error, path, "read");
  }
  try {
    const head = Buffer.alloc(SNIFF_BYTES);
    return sniff(head.subarray(0, readFully(fd, head, 0)));
  } finally {
    closeSync(fd);
  }
}

function containerOf(bytes: Buffer, text: string): Sniffed | undefined {
  if (text.startsWith("ftyp", 4)) {
    const brand = text.slice(8, 12);
    return Object.hasOwn(ISO_BRANDS, brand)
      ? ISO_BRANDS[brand]
      : { kind: "video", extension: "mp4", mime: "video/mp4" };
  }
  if (text.startsWith("\x1a\x45\xdf\xa3")) {
    return text.includes("webm")
      ? { kind: "video", extension: "webm", mime: "video/webm" }
      : { kind: "video", extension: "mkv", mime: "video/x-matroska" };
  }
  if (text.startsWith("OggS")) {
    if (text.includes("\x80theora")) {
      return { kind: "video", extension: "ogv", mime: "video/ogg" };
    }
    const extension = text.includes("OpusHead") ? "opus" : "ogg";
    return { kind: "audio", extension, mime: "audio/ogg" };
  }
  // Two letters are few: the size that follows must be plausible too.
  if (text.startsWith("BM") && bytes.length >= 26 && bytes.readUInt32LE(10) < 4096) {
    return { kind: "image", extension: "bmp", mime: "image/bmp" };
  }
  const archive = sniffArchive(bytes);
  if (archive !== undefined) {
    return ARCHIVES[archive];
  }
  return isMpegAudio(bytes) ?? tensorsOf(bytes, text);
}

/** A frame header of MPEG audio or AAC without a tag before it. */
function isMpegAudio(bytes: Buffer): Sniffed | undefined {
  const [first = 0, second = 0, third = 0] = bytes;
  if (first !== 0xff) {
    return undefined;
  }
  if ((second & 0xf6) === 0xf0) {
    return { kind: "audio", extension: "aac", mime: "audio/aac" };
  }
  const isLayer = (second & 0xe0) === 0xe0 && (second & 0x06) !== 0;
  const hasRates = (third & 0xf0) !== 0xf0 && (third & 0x0c) !== 0x0c;
  return isLayer && hasRates ? { kind: "audio", extension: "mp3", mime: "audio/mpeg" } : undefined;
}

/** A safetensors header: its length, then JSON. ComfyUI's latents have this form too. */
function tensorsOf(bytes: Buffer, text: string): Sniffed | undefined {
  const isSafetensors = bytes.length > 9 && bytes.readUInt32LE(4) === 0 && text.startsWith('{"', 8);
  return isSafetensors
    ? { kind: "tensors", extension: "safetensors", mime: "application/octet-stream" }
    : undefined;
}

function textOf(bytes: Buffer, text: string): Sniffed {
  if (bytes.includes(0)) {
    return { kind: "other", extension: "", mime: "application/octet-stream" };
  }
  const start = text
    .replace(/^\xef\xbb\xbf/, "")
    .trimStart()
    .slice(0, 200)
    .toLowerCase();
  if (start.startsWith("<!doctype html") || start.startsWith("<html")) {
    return { kind: "html", extension: "html", mime: "text/html" };
  }
  if (start.startsWith("<svg") || (start.startsWith("<?xml") && text.includes("<svg"))) {
    return { kind: "image", extension: "svg", mime: "image/svg+xml" };
  }
  if (start.startsWith("solid ")) {
    return { kind: "3d", extension: "stl", mime: "model/stl" };
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what text has not
  return /[\x01-\x08\x0e-\x1a]/.test(text)
    ? { kind: "other", extension: "", mime: "application/octet-stream" }
    : { kind: "text", extension: "", mime: "text/plain" };
}
