/** Python's way with values where clients can see it: casts and their messages, `repr`, `json.dumps`, rounding. */
import type { JsonValue } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";

export type PythonNumber = number | bigint;

/** What a cast raises: the text of the exception is part of the answer to `/prompt`. */
export interface CastFailure {
  readonly failure: string;
}

const PYTHON_TYPES = { string: "str", boolean: "bool" } as const;

/** The name of a value's Python type. */
export function typeName(value: JsonValue): string {
  if (value === null) {
    return "NoneType";
  }
  if (typeof value === "string" || typeof value === "boolean") {
    return PYTHON_TYPES[typeof value === "string" ? "string" : "boolean"];
  }
  if (Array.isArray(value)) {
    return "list";
  }
  if (typeof value === "object") {
    return "dict";
  }
  return typeof value === "number" && !Number.isInteger(value) ? "float" : "int";
}

function shrink(value: bigint): PythonNumber {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** `int(value)`. */
export function toInt(value: JsonValue): PythonNumber | CastFailure {
  if (typeof value === "number") {
    // Beyond 2^53 an int has more digits than a double prints.
    return Number.isFinite(value)
      ? shrink(BigInt(Math.trunc(value)))
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
    const endless = /^([+-]?)inf(?:inity)?$/i.exec(text);
    if (endless !== null) {
      return endless[1] === "-" ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
    }
    const digits = text.replace(/(?<=\d)_(?=\d)/g, "");
    return /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i.test(digits)
      ? Number(digits)
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
    .replace(/[\p{Cc}\u00ad]/gu, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`)
    .replaceAll(quote, `\\${quote}`);
  return `${quote}${escaped}${quote}`;
}

/** `repr(float(value))`: a whole number has a fraction of 0, exponents have two digits and begin at 16. */
export function reprFloat(value: number): string {
  if (Number.isNaN(value) || !Number.isFinite(value)) {
    return String(value).replace("Infinity", "inf").replace("NaN", "nan");
  }
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e16 || size < 1e-4)) {
    return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
  }
  return Number.isInteger(value) ? `${value}.0` : String(value);
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
  return numberText(value);
}

function numberText(value: PythonNumber): string {
  return typeof value === "number" && !Number.isInteger(value) ? reprFloat(value) : String(value);
}

export interface DumpOptions {
  readonly indent?: 4;
  /** `ensure_ascii=False`: text outside ASCII stays as it is. */
  readonly keepUnicode?: boolean;
}

function dumpText(text: string, options: DumpOptions): string {
  const quoted = JSON.stringify(text);
  // Everything outside ASCII as \uXXXX, which is what makes a tEXt chunk enough.
  return options.keepUnicode === true
    ? quoted
    : quoted.replace(
        /[\u007f-\uffff]/g,
        (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
      );
}

/** `json.dumps(value)`, or with `indent=4`. */
export function dumps(value: JsonValue, options: DumpOptions = {}, level = 0): string {
  const isList = Array.isArray(value);
  if (!isList && !isJsonObject(value)) {
    if (typeof value === "string") {
      return dumpText(value, options);
    }
    return typeof value === "number" ? numberText(value) : String(value);
  }
  const inside = (inner: JsonValue) => dumps(inner, options, level + 1);
  const parts = isList
    ? value.map(inside)
    : Object.entries(value).map(([key, inner]) => `${dumpText(key, options)}: ${inside(inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  if (options.indent === undefined || parts.length === 0) {
    return `${open}${parts.join(", ")}${close}`;
  }
  const pad = " ".repeat(options.indent * (level + 1));
  return `${open}\n${pad}${parts.join(`,\n${pad}`)}\n${" ".repeat(options.indent * level)}${close}`;
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
