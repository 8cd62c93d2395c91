/**
 * Writes JSON as Cog does: compact, non-ASCII left as it is, keys in ascending order of their UTF-8 bytes at every
 * level (cog_protocol.md §1). Members that are undefined are left out; integers beyond 2^53 keep every digit.
 */
import { ExactNumber } from "./json-reader.ts";

/** JSON text of `value`, keys sorted. */
export function writeJson(value: unknown): string {
  switch (typeof value) {
    case "string":
      return JSON.stringify(value);
    case "number":
      return Number.isFinite(value) ? String(value) : "null";
    case "bigint":
      return value.toString();
    case "boolean":
      return value ? "true" : "false";
    case "object":
      return value === null ? "null" : writeContainer(value);
    default:
      return "null";
  }
}

function writeContainer(value: object): string {
  if (Array.isArray(value)) {
    return `[${value.map(writeJson).join(",")}]`;
  }
  if (value instanceof ExactNumber) {
    return printFloat(value.value);
  }
  const members = Object.entries(value)
    .filter(([, inner]) => inner !== undefined && typeof inner !== "function")
    .sort(([one], [other]) => compareBytes(one, other))
    .map(([key, inner]) => `${JSON.stringify(key)}:${writeJson(inner)}`);
  return `{${members.join(",")}}`;
}

/** Order of the UTF-8 bytes, which is the order of code points; JavaScript's own differs for surrogates. */
export function compareBytes(one: string, other: string): number {
  const length = Math.min(one.length, other.length);
  for (let at = 0; at < length; at += 1) {
    const a = one.charCodeAt(at);
    const b = other.charCodeAt(at);
    if (a !== b) {
      return isSurrogate(a) === isSurrogate(b) ? a - b : Number(isSurrogate(a)) - 0.5;
    }
  }
  return one.length - other.length;
}

function isSurrogate(unit: number): boolean {
  return unit >= 0xd800 && unit <= 0xdfff;
}

/** Decimal exponents between which Rust writes a float without an exponent. */
const PLAIN_FROM = -5;
const PLAIN_TO = 16;

/** A float as Rust prints it: `5.0`, `0.1`, `1e+20`, `1e-7`. */
export function printFloat(value: number): string {
  const [mantissa = "0", exponentText = "0"] = value.toExponential().split("e");
  const exponent = Number(exponentText);
  if (value !== 0 && (exponent < PLAIN_FROM || exponent >= PLAIN_TO)) {
    return `${mantissa}e${exponent < 0 ? "" : "+"}${exponent}`;
  }
  const plain = Object.is(value, -0) ? "-0" : plainDigits(value);
  return plain.includes(".") ? plain : `${plain}.0`;
}

function plainDigits(value: number): string {
  const text = String(value);
  return text.includes("e") ? value.toFixed(20).replace(/0+$/, "") : text;
}
