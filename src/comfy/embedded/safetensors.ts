/** Reads safetensors files: the header with every check the real reader makes, and tensors as float32. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { messageOf } from "../../platform/errors.ts";
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";
import { NodeError } from "./node-error.ts";

const LENGTH_BYTES = 8;
/** The reader's own limit for a header. */
const MAX_HEADER_BYTES = 100_000_000;

export interface TensorEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  /** First byte and the byte after the last one, counted from the end of the header. */
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: JsonObject | undefined;
  /** Where the tensors' bytes begin in the file. */
  readonly dataStart: number;
}

export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

const BYTES_PER_VALUE: Readonly<Record<string, number>> = { F32: 4, F16: 2, BF16: 2 };

function fault(problem: string): NodeError {
  return new NodeError(
    "safetensors._safetensors_rust.SafetensorError",
    `Error while deserializing header: ${problem}`,
  );
}

function readAt(fd: number, position: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const read = readSync(fd, bytes, done, length - done, position + done);
    if (read === 0) {
      break;
    }
    done += read;
  }
  return bytes.subarray(0, done);
}

/** Words the commonest two faults as the real reader's JSON parser does. */
function jsonFault(text: string, error: unknown): NodeError {
  if (!/^\s*\{/.test(text)) {
    return fault("invalid JSON in header: expected value at line 1 column 1");
  }
  const key = /^\s*\{\s*(?=[^\s"}])/.exec(text)?.[0];
  const problem =
    key === undefined
      ? messageOf(error)
      : `key must be a string at line 1 column ${key.length + 1}`;
  return fault(`invalid JSON in header: ${problem}`);
}

function parseHeader(bytes: Uint8Array): JsonObject {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw fault("invalid UTF-8 in header");
  }
  let parsed: JsonValue;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw jsonFault(text, error);
  }
  if (!isJsonObject(parsed)) {
    throw fault("invalid JSON in header: invalid type: expected a map at line 1 column 1");
  }
  return parsed;
}

function isCount(value: JsonValue | undefined): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function parseEntry(value: JsonValue): TensorEntry {
  if (isJsonObject(value)) {
    const { dtype, shape, data_offsets: offsets } = value;
    if (typeof dtype === "string" && Array.isArray(shape) && Array.isArray(offsets)) {
      const [begin, end] = offsets;
      if (shape.every(isCount) && isCount(begin) && isCount(end) && begin <= end) {
        return { dtype, shape: shape.filter(isCount), begin, end };
      }
    }
  }
  throw fault("invalid JSON in header: missing field `dtype`, `shape` or `data_offsets`");
}

/** Reads and checks the header. @throws NodeError worded as the safetensors library words it. */
export function readSafetensorsHeader(path: string): SafetensorsHeader {
  const fd = openSync(path, "r");
  try {
    const { size } = fstatSync(fd);
    if (size < LENGTH_BYTES) {
      throw fault("header too small");
    }
    const prefix = readAt(fd, 0, LENGTH_BYTES);
    const length = Number(new DataView(prefix.buffer).getBigUint64(0, true));
    if (length > MAX_HEADER_BYTES) {
      throw fault("header too large");
    }
    if (LENGTH_BYTES + length > size) {
      throw fault("invalid header length");
    }
    const header = parseHeader(readAt(fd, LENGTH_BYTES, length));
    return checked(header, LENGTH_BYTES + length, size);
  } finally {
    closeSync(fd);
  }
}

function checked(header: JsonObject, dataStart: number, size: number): SafetensorsHeader {
  const { __metadata__: metadata, ...entries } = header;
  const tensors = new Map(
    Object.entries(entries).map(([name, value]) => [name, parseEntry(value)] as const),
  );
  let covered = 0;
  for (const [name, entry] of [...tensors].sort(([, a], [, b]) => a.begin - b.begin)) {
    if (entry.begin !== covered) {
      throw fault(`invalid offset for tensor \`${name}\``);
    }
    covered = entry.end;
  }
  if (dataStart + covered !== size) {
    throw fault("incomplete metadata, file not fully covered");
  }
  return { tensors, metadata: isJsonObject(metadata) ? metadata : undefined, dataStart };
}

function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0) {
    return sign * fraction * 2 ** -24;
  }
  if (exponent === 0x1f) {
    return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  }
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function decode(bytes: Uint8Array, dtype: string): Float32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const width = BYTES_PER_VALUE[dtype] ?? 0;
  const out = new Float32Array(bytes.byteLength / width);
  const bits = new Uint32Array(out.buffer);
  for (let index = 0; index < out.length; index++) {
    if (dtype === "F32") {
      bits[index] = view.getUint32(index * 4, true);
    } else if (dtype === "BF16") {
      bits[index] = view.getUint16(index * 2, true) << 16;
    } else {
      out[index] = halfToFloat(view.getUint16(index * 2, true));
    }
  }
  return out;
}

/** Reads these tensors of a file; undefined when one has a type that isn't a float of 16 or 32 bits. */
export async function readTensors(
  path: string,
  header: SafetensorsHeader,
): Promise<ReadonlyMap<string, Tensor> | undefined> {
  const file = Bun.file(path);
  const tensors = new Map<string, Tensor>();
  for (const [name, { dtype, shape, begin, end }] of header.tensors) {
    const count = shape.reduce((product, side) => product * side, 1);
    if (count * (BYTES_PER_VALUE[dtype] ?? Number.NaN) !== end - begin) {
      return undefined;
    }
    const bytes = await file.slice(header.dataStart + begin, header.dataStart + end).bytes();
    tensors.set(name, { shape, data: decode(bytes, dtype) });
  }
  return tensors;
}

/** Writes a safetensors file of these tensors; `F16` needs values that a half can hold. */
export function writeSafetensors(
  tensors: ReadonlyMap<string, Tensor>,
  dtype: "F32" | "F16",
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  const width = dtype === "F32" ? 4 : 2;
  const entries: JsonObject =
    Object.keys(metadata).length > 0 ? { __metadata__: { ...metadata } } : {};
  let offset = 0;
  for (const [name, { shape, data }] of tensors) {
    entries[name] = {
      dtype,
      shape: [...shape],
      data_offsets: [offset, offset + data.length * width],
    };
    offset += data.length * width;
  }
  const text = JSON.stringify(entries);
  // The format wants the tensors aligned to 8 bytes; blanks at the end of the header are allowed.
  const header = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8, " "), "utf8");
  const bytes = new Uint8Array(LENGTH_BYTES + header.length + offset);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(header.length), true);
  bytes.set(header, LENGTH_BYTES);
  let at = LENGTH_BYTES + header.length;
  for (const { data } of tensors.values()) {
    for (const value of data) {
      if (dtype === "F32") {
        view.setFloat32(at, value, true);
      } else {
        view.setUint16(at, floatToHalf(value), true);
      }
      at += width;
    }
  }
  return bytes;
}

function floatToHalf(value: number): number {
  if (value === 0) {
    return 0;
  }
  const exponent = Math.floor(Math.log2(Math.abs(value)));
  const fraction = (Math.abs(value) / 2 ** exponent - 1) * 1024;
  return (value < 0 ? 0x8000 : 0) | ((exponent + 15) << 10) | Math.round(fraction);
}
