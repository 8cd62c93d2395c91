/** Python's way with values where clients can see it: casts and their messages, `repr`, `json.dumps`, rounding. */
import type { JsonValue } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";

export type PythonNumber = number | bigint;

/** What a cast raises: the text of the exception is part of the answer to `/prompt`. */
export interface CastFailure {
  readonly failure: string;
}

const PYTHON_TYPES = { string: "str", boolean: "bool" } as const;

function typeName(value: JsonValue): string {
  if (value === null) {
    return "NoneType";
  }
  if (typeof value === "string" || typeof value === "boolean") {
    return PYTHON_TYPES[typeof value === "string" ? "string" : "boolean"];
  }
  if (Array.isArray(value)) {
    return "list";
  }
  return typeof value === "object" ? "dict" : "int";
}

function shrink(value: bigint): PythonNumber {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** `int(value)`. */
export function toInt(value: JsonValue): PythonNumber | CastFailure {
  if (typeof value === "number") {
    return Number.isFinite(value)
      ? Math.trunc(value)
      : { failure: "cannot convert float infinity to integer" };
  }
  if (typeof value === "bigint") {
    return value;
  }
  if (typeof value === "boolean") {
    return Number(value);
  }
  if (typeof value === "string") {
    const text = value.trim();
    return /^[+-]?\d+(?:_\d+)*$/.test(text)
      ? shrink(BigInt(text.replaceAll("_", "").replace(/^\+/, "")))
      : { failure: `invalid literal for int() with base 10: ${repr(value)}` };
  }
  return {
    failure: `int() argument must be a string, a bytes-like object or a real number, not '${typeName(value)}'`,
  };
}

/** `float(value)`. */
export function toFloat(value: JsonValue): number | CastFailure {
  if (typeof value === "number" || typeof value === "bigint" || typeof value === "boolean") {
    return Number(value);
  }
  if (typeof value === "string") {
    const text = value.trim();
    return /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i.test(text)
      ? Number(text)
      : { failure: `could not convert string to float: ${repr(value)}` };
  }
  return {
    failure: `float() argument must be a string or a real number, not '${typeName(value)}'`,
  };
}

/** `bool(value)`: every text that isn't empty is true, "false" as well. */
export function toBool(value: JsonValue): boolean {
  if (Array.isArray(value)) {
    return value.length > 0;
  }
  return isJsonObject(value) ? Object.keys(value).length > 0 : Boolean(value);
}

/** `str(value)`. */
export function toText(value: JsonValue): string {
  return typeof value === "string" ? value : repr(value);
}

function reprText(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text
    .replaceAll("\\", "\\\\")
    .replaceAll("\n", "\\n")
    .replaceAll("\r", "\\r")
    .replaceAll("\t", "\\t")
    .replaceAll(quote, `\\${quote}`);
  return `${quote}${escaped}${quote}`;
}

/** `repr(value)`. A number without a fraction is taken for an int: JSON doesn't say which it was. */
export function repr(value: JsonValue): string {
  if (value === null) {
    return "None";
  }
  if (typeof value === "boolean") {
    return value ? "True" : "False";
  }
  if (typeof value === "string") {
    return reprText(value);
  }
  if (Array.isArray(value)) {
    return `[${value.map(repr).join(", ")}]`;
  }
  if (isJsonObject(value)) {
    const entries = Object.entries(value).map(([key, inner]) => `${reprText(key)}: ${repr(inner)}`);
    return `{${entries.join(", ")}}`;
  }
  return String(value);
}

function dumpText(text: string): string {
  // ensure_ascii: everything outside ASCII as \uXXXX, which is what makes a tEXt chunk enough.
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** `json.dumps(value)`, or with `indent=4`. */
export function dumps(value: JsonValue, indent?: 4, level = 0): string {
  const isList = Array.isArray(value);
  if (!isList && !isJsonObject(value)) {
    return typeof value === "string" ? dumpText(value) : String(value);
  }
  const parts = isList
    ? value.map((inner) => dumps(inner, indent, level + 1))
    : Object.entries(value).map(
        ([key, inner]) => `${dumpText(key)}: ${dumps(inner, indent, level + 1)}`,
      );
  const [open, close] = isList ? "[]" : "{}";
  if (indent === undefined || parts.length === 0) {
    return `${open}${parts.join(", ")}${close}`;
  }
  const pad = " ".repeat(indent * (level + 1));
  return `${open}\n${pad}${parts.join(`,\n${pad}`)}\n${" ".repeat(indent * level)}${close}`;
}

/** `round(value)`: halves go to the even neighbour. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) {
    return Math.round(value);
  }
  return floor % 2 === 0 ? floor : floor + 1;
}
