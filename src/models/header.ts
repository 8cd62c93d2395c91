/**
 * Is this file what its name says? At the price of a `stat`: size, and the header of the format, read once and
 * remembered for as long as the file's inode, size and times stay the same.
 */

import type { BigIntStats } from "node:fs";
import { closeSync, openSync, readSync } from "node:fs";
import type { JsonObject } from "../platform/json.ts";
import { isJsonObject, parseJson } from "../platform/json.ts";
import { extensionOf } from "./categories.ts";
import { statOf } from "./listing.ts";

/** What is wrong with a file that is there but can't be a weight. */
export const DEFECTS = [
  "empty",
  "html",
  "lfs_pointer",
  "truncated",
  "oversized",
  "not_safetensors",
  "bad_header",
  "wrong_format",
  "wrong_size",
  "dangling_link",
  "not_a_file",
  "incomplete_folder",
  "unreadable",
] as const;

export type Defect = (typeof DEFECTS)[number];

/** The defect as people read it, after "the file …". */
export const DEFECT_TEXT: Readonly<Record<Defect, string>> = {
  empty: "is empty",
  html: "is a web page, not a weight: the download was answered with HTML",
  lfs_pointer: "is a Git LFS pointer: the real file was never fetched",
  truncated: "is cut off: it is shorter than its own header says",
  oversized: "is longer than its own header says",
  not_safetensors: "is no safetensors file in spite of its name",
  bad_header: "has a damaged safetensors header",
  wrong_format: "has none of the formats that its ending stands for",
  wrong_size: "has another size than the weight",
  dangling_link: "is a link to a file that isn't there",
  not_a_file: "is no regular file",
  incomplete_folder: "is a folder in which files are missing",
  unreadable: "can't be read: its permissions forbid it",
};

export type Verdict =
  | {
      readonly ok: true;
      readonly sizeBytes: number;
      /** True when the format itself proves that nothing is cut off. */
      readonly complete: boolean;
    }
  | { readonly ok: false; readonly defect: Defect; readonly sizeBytes: number };

/** What the bytes of a file say. */
interface Finding {
  readonly defect?: Defect | undefined;
  readonly complete?: boolean;
}

export interface InspectOptions {
  /** Size the weight is known to have. */
  readonly expectedSize?: number | undefined;
  /** A `stat` made a moment ago. */
  readonly stat?: BigIntStats | undefined;
  /** The name it will have: a download is judged before it gets its own. */
  readonly as?: string | undefined;
}

/** safetensors' own limit for its header. */
const MAX_HEADER_BYTES = 100_000_000;
/** Enough for every magic, an LFS pointer's first line and the first tag of a web page. */
const HEAD_BYTES = 512;
/** The end of a zip file's directory is 22 bytes, behind it a comment that we allow to be short. */
const ZIP_TAIL_BYTES = 1024;
/** A file is forgotten, oldest first, beyond this many: more models than any disk of ours holds. */
const MEMO_ENTRIES = 20_000;

/** Reads `length` bytes at `position`; fewer at the end of the file. */
function readAt(fd: number, position: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const count = readSync(fd, bytes, filled, length - filled, position + filled);
    if (count === 0) {
      break;
    }
    filled += count;
  }
  return bytes.subarray(0, filled);
}

function startsWith(head: Uint8Array, magic: string | readonly number[]): boolean {
  const bytes = typeof magic === "string" ? new TextEncoder().encode(magic) : magic;
  return bytes.length <= head.length && [...bytes].every((byte, index) => head[index] === byte);
}

/** What a download left instead of a weight, whatever the ending. */
function impostor(head: Uint8Array): Defect | undefined {
  if (startsWith(head, "version https://git-lfs")) {
    return "lfs_pointer";
  }
  const text = new TextDecoder("latin1")
    .decode(head)
    .replace(/^\u00ef\u00bb\u00bf/, "")
    .trimStart();
  return /^<(!doctype|html|head|body|\?xml|error|!--)/i.test(text) ? "html" : undefined;
}

/** Length of the tensor data that a parsed header describes; undefined when its offsets are nonsense. */
function describedBytes(header: JsonObject): number | undefined {
  let end = 0;
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") {
      continue;
    }
    // By hand, not by zod: a header may hold thousands of tensors, and this is on the path of a request.
    const offsets = isJsonObject(entry) ? entry["data_offsets"] : undefined;
    const [from, to] = Array.isArray(offsets) ? offsets : [];
    if (typeof from !== "number" || typeof to !== "number" || !(from >= 0 && from <= to)) {
      return undefined;
    }
    end = Math.max(end, to);
  }
  return Number.isSafeInteger(end) ? end : undefined;
}

function parseHeader(bytes: Uint8Array): JsonObject | undefined {
  try {
    const header = parseJson(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    return isJsonObject(header) ? header : undefined;
  } catch {
    return undefined;
  }
}

function inspectSafetensors(fd: number, size: number, head: Uint8Array): Defect | undefined {
  if (size < 8) {
    return "truncated";
  }
  const length = Number(new DataView(head.buffer, head.byteOffset, 8).getBigUint64(0, true));
  if (length > MAX_HEADER_BYTES || head[8] !== 0x7b) {
    return length <= MAX_HEADER_BYTES && size === 8 ? "truncated" : "not_safetensors";
  }
  if (8 + length > size) {
    return "truncated";
  }
  const header = parseHeader(readAt(fd, 8, length));
  const described = header === undefined ? undefined : describedBytes(header);
  if (described === undefined) {
    return "bad_header";
  }
  const expected = 8 + length + described;
  if (size === expected) {
    return undefined;
  }
  return size < expected ? "truncated" : "oversized";
}

/** Zip (PyTorch's current form), pickle protocol 2 and up, the old tar form, TorchScript in zip. */
function isTorch(head: Uint8Array): boolean {
  return (
    startsWith(head, "PK\u0003\u0004") ||
    (head[0] === 0x80 && (head[1] ?? 9) <= 5) ||
    new TextDecoder("latin1").decode(head.subarray(257, 262)) === "ustar"
  );
}

/** An ONNX file is a protobuf whose first field is `ir_version` (or a later field of the model). */
function isOnnx(head: Uint8Array): boolean {
  return [0x08, 0x12, 0x1a, 0x22, 0x28, 0x32, 0x3a, 0x42, 0x72, 0xa2].includes(head[0] ?? -1);
}

const TORCH_ENDINGS = new Set([".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".torchscript"]);

/** A zip file ends with its directory; a cut one does not. PyTorch writes no comment behind it. */
function zipHasEnd(fd: number, size: number): boolean {
  const tail = readAt(fd, Math.max(0, size - ZIP_TAIL_BYTES), ZIP_TAIL_BYTES);
  return Buffer.from(tail.buffer, tail.byteOffset, tail.byteLength).includes("PK\u0005\u0006");
}

function inspectContent(fd: number, name: string, size: number): Finding {
  if (size === 0) {
    return { defect: "empty" };
  }
  const head = readAt(fd, 0, Math.min(HEAD_BYTES, size));
  const found = impostor(head);
  if (found !== undefined) {
    return { defect: found };
  }
  const ending = extensionOf(name);
  if (ending === ".safetensors" || ending === ".sft") {
    return { defect: inspectSafetensors(fd, size, head), complete: true };
  }
  if (ending === ".gguf") {
    return startsWith(head, "GGUF") ? {} : { defect: "wrong_format" };
  }
  if (ending === ".onnx") {
    return isOnnx(head) ? {} : { defect: "wrong_format" };
  }
  if (!TORCH_ENDINGS.has(ending)) {
    return {};
  }
  if (startsWith(head, "PK\u0003\u0004")) {
    return zipHasEnd(fd, size) ? { complete: true } : { defect: "truncated" };
  }
  // `.bin` holds other things too (tokenizers, OpenVINO); only what can't be a model at all is refused there.
  return isTorch(head) || ending === ".bin" ? {} : { defect: "wrong_format" };
}

/** Inspects files and remembers the answer by identity, so that an unchanged file costs one `stat`. */
export class Inspector {
  readonly #memo = new Map<string, Finding>();

  /** Says whether the file can be the weight that its name promises. */
  inspect(path: string, options: InspectOptions = {}): Verdict {
    const stat = options.stat ?? statOf(path);
    if (stat === undefined) {
      return { ok: false, defect: "dangling_link", sizeBytes: 0 };
    }
    const sizeBytes = Number(stat.size);
    if (!stat.isFile()) {
      return { ok: false, defect: "not_a_file", sizeBytes };
    }
    const { defect, complete = false } = this.#content(path, stat, options.as ?? path);
    if (defect !== undefined) {
      return { ok: false, defect, sizeBytes };
    }
    return options.expectedSize === undefined || options.expectedSize === sizeBytes
      ? { ok: true, sizeBytes, complete }
      : { ok: false, defect: "wrong_size", sizeBytes };
  }

  /** Forgets everything, for a benchmark of the cold path. */
  forget(): void {
    this.#memo.clear();
  }

  #content(path: string, stat: BigIntStats, name: string): Finding {
    // The ending belongs to the key: two links of different endings may lead to one file.
    const key = `${stat.dev}:${stat.ino}:${stat.size}:${stat.mtimeNs}:${stat.ctimeNs}:${extensionOf(name)}`;
    const known = this.#memo.get(key);
    if (known !== undefined) {
      return known;
    }
    const finding = readFinding(path, name, Number(stat.size));
    if (finding.defect === "unreadable") {
      // Of this moment, not of the file: descriptors may have run out.
      return finding;
    }
    if (this.#memo.size >= MEMO_ENTRIES) {
      const oldest = this.#memo.keys().next();
      if (oldest.done !== true) {
        this.#memo.delete(oldest.value);
      }
    }
    this.#memo.set(key, finding);
    return finding;
  }
}

function readFinding(path: string, name: string, sizeBytes: number): Finding {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return { defect: "unreadable" };
  }
  try {
    return inspectContent(fd, name, sizeBytes);
  } catch {
    return { defect: "unreadable" };
  } finally {
    closeSync(fd);
  }
}

const shared = new Inspector();

/** {@link Inspector.inspect} with a memory shared by the whole process. */
export function inspect(path: string, options: InspectOptions = {}): Verdict {
  return shared.inspect(path, options);
}
