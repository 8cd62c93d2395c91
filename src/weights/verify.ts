/**
 * The one place where a file becomes a {@link VerifiedFile}: length, SHA-256 and format are what they should be. Only
 * such a file can be published; the type has no constructor outside of this module.
 */
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { inspect } from "../models/header.ts";
import type { UnpackedFile } from "../platform/archive.ts";
import type { AppError } from "../platform/errors.ts";
import { DownloadError } from "../platform/errors.ts";
import { fileAt, fileError, readFully } from "../platform/files.ts";
import { formatSize } from "../platform/size.ts";
import { digestOf } from "./digest.ts";
import { imposterOf } from "./probe.ts";

/** A file whose bytes are all there but not yet trusted. */
export interface PartialFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** Computed while it came in, if it was. */
  readonly sha256: string | undefined;
}

class Verified {
  readonly path: string;
  readonly sizeBytes: number;
  /** undefined when no one asked for a digest. */
  readonly sha256: string | undefined;
  /** Makes the class nominal: an object of the same shape is not one. */
  readonly #checked = true;

  constructor(path: string, sizeBytes: number, sha256: string | undefined) {
    this.path = path;
    this.sizeBytes = sizeBytes;
    this.sha256 = sha256;
  }

  static isOne(value: object): boolean {
    return #checked in value;
  }
}

/** A file that was checked. Made by {@link verify} and {@link verifyFile} only. */
export type VerifiedFile = Verified;

/** What a file must be. */
export interface Expectation {
  /** Name for messages. */
  readonly name: string;
  /** The file's own name, whose ending says which format it must have. */
  readonly fileName: string;
  readonly sizeBytes?: number | undefined;
  readonly sha256?: string | undefined;
}

/** True for what {@link verify} made; publishing asks again at run time. */
export function isVerified(value: object): boolean {
  return Verified.isOne(value);
}

/**
 * Checks a download that is complete.
 * @throws DownloadError SIZE_MISMATCH, HASH_MISMATCH, FORMAT_INVALID
 */
export async function verify(
  file: PartialFile,
  expected: Expectation,
  signal?: AbortSignal,
): Promise<VerifiedFile> {
  const sizeBytes = fileAt(file.path)?.size;
  if (sizeBytes === undefined) {
    throw new DownloadError("IO_ERROR", `${file.path} has gone before it could be checked`);
  }
  checkSize(sizeBytes, file.sizeBytes, expected.name);
  if (expected.sizeBytes !== undefined) {
    checkSize(sizeBytes, expected.sizeBytes, expected.name);
  }
  // Format before digest: it is quicker, and says more about what went wrong.
  checkFormat(file.path, expected);
  const wanted = expected.sha256?.toLowerCase();
  const sha256 =
    file.sha256 ?? (wanted === undefined ? undefined : await digestOf(file.path, signal));
  if (wanted !== undefined && sha256 !== wanted) {
    throw hashMismatch(expected.name, sha256, wanted);
  }
  return new Verified(file.path, sizeBytes, sha256);
}

/** Checks a file where it lies: size and format always, the digest where one is given. */
export async function verifyFile(
  path: string,
  expected: {
    readonly sizeBytes?: number | undefined;
    readonly sha256?: string | undefined;
    readonly name?: string | undefined;
  } = {},
  signal?: AbortSignal,
): Promise<VerifiedFile> {
  const stats = fileAt(path);
  if (stats === undefined || !stats.isFile()) {
    throw new DownloadError("NOT_FOUND", `There is no file at ${path}`);
  }
  return await verify(
    { path, sizeBytes: stats.size, sha256: undefined },
    { ...expected, name: expected.name ?? path, fileName: path },
    signal,
  );
}

class Tree {
  readonly root: string;
  readonly files: readonly UnpackedFile[];
  readonly #checked = true;

  constructor(root: string, files: readonly UnpackedFile[]) {
    this.root = root;
    this.files = files;
  }

  static isOne(value: object): boolean {
    return #checked in value;
  }
}

/** A folder of unpacked files, each checked as far as its name says what it is. Made by {@link verifyTree} only. */
export type VerifiedTree = Tree;

/** True for what {@link verifyTree} made. */
export function isVerifiedTree(value: object): boolean {
  return Tree.isOne(value);
}

/** One file of a tree that more is known of than its format. */
export interface TreeExpectation {
  readonly path: string;
  readonly sizeBytes?: number | undefined;
  readonly sha256?: string | undefined;
}

const WEIGHT_ENDING = /\.(safetensors|sft|ckpt|pth?|pt2|bin|gguf|onnx|torchscript)$/i;

/**
 * Checks what an archive was unpacked into.
 * @throws DownloadError as {@link verify}
 */
export function verifyTree(
  root: string,
  files: readonly UnpackedFile[],
  expected?: TreeExpectation,
): VerifiedTree {
  for (const file of files) {
    if (WEIGHT_ENDING.test(file.path)) {
      checkFormat(join(root, file.path), { name: file.path, fileName: file.path });
    }
  }
  const known = files.find((file) => file.path === expected?.path);
  if (known !== undefined && expected !== undefined) {
    if (expected.sizeBytes !== undefined) {
      checkSize(known.sizeBytes, expected.sizeBytes, known.path);
    }
    const wanted = expected.sha256?.toLowerCase();
    if (wanted !== undefined && known.sha256 !== wanted) {
      throw hashMismatch(known.path, known.sha256, wanted);
    }
  }
  return new Tree(root, files);
}

function hashMismatch(name: string, actual: string | undefined, wanted: string): DownloadError {
  return new DownloadError(
    "HASH_MISMATCH",
    `${name} has the SHA-256 ${actual}, not ${wanted} as it should`,
    { details: { expected: wanted, actual } },
  );
}

function checkSize(actual: number, expected: number, name: string): void {
  if (actual !== expected) {
    throw new DownloadError(
      "SIZE_MISMATCH",
      `${name} is ${actual} bytes long (${formatSize(actual)}), not ${expected} (${formatSize(expected)})`,
      { details: { expected, actual } },
    );
  }
}

const FORMAT_TEXT: Readonly<Record<string, string>> = {
  empty: "is an empty file",
  html: "is a web page or an XML message, not a weight",
  lfs_pointer: "is a Git LFS pointer, not the file itself",
  truncated: "is cut off: it is shorter than its own header says",
  oversized: "is longer than its own header says",
  not_safetensors: "is no safetensors file, though its name says so",
  bad_header: "has a damaged safetensors header",
  wrong_format: "is none of the formats that its ending stands for",
};

function checkFormat(path: string, expected: Expectation): void {
  const verdict = inspect(path, { as: expected.fileName });
  const defect = verdict.ok ? strictDefect(path, expected.fileName) : verdict.defect;
  if (defect === "unreadable") {
    throw readFault(path);
  }
  if (defect !== undefined) {
    throw new DownloadError(
      "FORMAT_INVALID",
      `${expected.name} ${FORMAT_TEXT[defect] ?? `can't be used (${defect})`}`,
      {
        hint: "The source does not serve this weight. Use another address for it.",
        details: { defect },
      },
    );
  }
}

/** Why a file can't be read: that says nothing of its bytes, which must not be thrown away for it. */
function readFault(path: string): AppError {
  try {
    closeSync(openSync(path, "r"));
  } catch (error) {
    return fileError(error, path, "read back");
  }
  return new DownloadError("IO_ERROR", `${path} could not be read back`);
}

/** What the check at stat cost leaves out and safetensors itself refuses: holes, overlaps, a key twice. */
function strictDefect(path: string, fileName: string): string | undefined {
  const fd = openSync(path, "r");
  try {
    if (/\.(safetensors|sft)$/i.test(fileName)) {
      const start = Buffer.alloc(8);
      readFully(fd, start, 0);
      const header = Buffer.alloc(Number(start.readBigUInt64LE(0)));
      readFully(fd, header, 8);
      return hasContiguousTensors(header.toString("utf8")) ? undefined : "bad_header";
    }
    const head = Buffer.alloc(512);
    const isText = /\.(json|ya?ml|txt|md|csv|xml|html?|py|model)$/i.test(fileName);
    const length = readFully(fd, head, 0);
    return isText || imposterOf(head.subarray(0, length)) === undefined ? undefined : "html";
  } finally {
    closeSync(fd);
  }
}

/** True when the tensors follow one another from 0 without a gap, and no name stands twice. */
function hasContiguousTensors(text: string): boolean {
  const header: unknown = JSON.parse(text);
  if (typeof header !== "object" || header === null) {
    return false;
  }
  const spans: [number, number][] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") {
      const { data_offsets: offsets } = entry;
      spans.push([offsets[0], offsets[1]]);
    }
  }
  // JSON.parse keeps the last of two equal keys; in the text there is one `data_offsets` for each.
  if (text.split('"data_offsets"').length - 1 !== spans.length) {
    return false;
  }
  spans.sort(([one, oneEnd], [other, otherEnd]) => one - other || oneEnd - otherEnd);
  let end = 0;
  for (const [from, to] of spans) {
    if (from !== end) {
      return false;
    }
    end = to;
  }
  return true;
}
