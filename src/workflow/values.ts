/** What a value of an input may be: its kind in plain words, and whether a given one fits. */
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { InputDefinition } from "./definitions.ts";
import { clip } from "./describe.ts";
import { didYouMean, nearNames } from "./near.ts";

/** The kinds of values that people set. `file` is the name of an uploaded file, `choice` one of a list. */
export type ValueKind = "string" | "integer" | "number" | "boolean" | "choice" | "file" | "json";

const KIND_BY_TYPE: Readonly<Record<string, ValueKind>> = {
  INT: "integer",
  FLOAT: "number",
  BOOLEAN: "boolean",
  STRING: "string",
  COMBO: "choice",
  COMFY_DYNAMICCOMBO_V3: "choice",
};

/** The kind of an input, from its definition, else from the value it has. */
export function kindOf(definition: InputDefinition | undefined, value: JsonValue): ValueKind {
  if (definition?.upload !== undefined) {
    return "file";
  }
  const type = definition?.widgetType ?? definition?.type ?? "";
  const kind = Object.hasOwn(KIND_BY_TYPE, type) ? KIND_BY_TYPE[type] : undefined;
  return kind ?? kindOfValue(value);
}

function kindOfValue(value: JsonValue): ValueKind {
  switch (typeof value) {
    case "string":
      return "string";
    case "boolean":
      return "boolean";
    case "bigint":
      return "integer";
    case "number":
      // JSON from Python writes a whole FLOAT as 1.0, which is 1 here: the wider kind can't refuse a good value.
      return "number";
    default:
      return "json";
  }
}

/** The choices of a combo or dynamic combo; undefined for any other input and where the list says nothing. */
export function choicesOf(
  definition: InputDefinition | undefined,
): readonly JsonValue[] | undefined {
  const choices = definition?.variants?.map(({ key }) => key) ?? definition?.choices;
  return choices === undefined || choices.length === 0 ? undefined : choices;
}

export type Checked = { readonly value: JsonValue } | { readonly problem: string };

/** The value as ComfyUI should get it, or what is wrong with it. Text that reads as the wanted kind is converted. */
export function checkValue(value: JsonValue, definition: InputDefinition | undefined): Checked {
  if (definition === undefined) {
    return { value: Array.isArray(value) ? { __value__: value } : value };
  }
  switch (kindOf(definition, value)) {
    case "integer":
      return checkRange(toInteger(value), "a whole number", value, definition);
    case "number":
      return checkRange(toNumber(value), "a number", value, definition);
    case "boolean":
      return checkBoolean(value);
    case "choice":
      return checkChoice(value, definition);
    case "string":
    case "file":
      return checkText(value);
    case "json":
      return { value: Array.isArray(value) ? { __value__: value } : value };
  }
}

function toInteger(value: JsonValue): number | bigint | undefined {
  if (typeof value === "bigint" || (typeof value === "number" && Number.isInteger(value))) {
    return value;
  }
  if (typeof value === "string" && /^\s*-?\d{1,30}\s*$/.test(value)) {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : BigInt(value.trim());
  }
  return undefined;
}

function toNumber(value: JsonValue): number | bigint | undefined {
  if (typeof value === "bigint" || (typeof value === "number" && Number.isFinite(value))) {
    return value;
  }
  const isNumeric =
    typeof value === "string" && value.trim() !== "" && Number.isFinite(Number(value));
  return isNumeric ? Number(value) : undefined;
}

function checkRange(
  number: number | bigint | undefined,
  wanted: string,
  value: JsonValue,
  { min, max }: InputDefinition,
): Checked {
  if (number === undefined) {
    return { problem: `${show(value)} is not ${wanted}` };
  }
  if ((min !== undefined && number < min) || (max !== undefined && number > max)) {
    return { problem: `${show(value)} is outside of ${min ?? "-∞"} … ${max ?? "∞"}` };
  }
  return { value: number };
}

function checkBoolean(value: JsonValue): Checked {
  if (typeof value === "boolean") {
    return { value };
  }
  const word = typeof value === "string" ? value.trim().toLowerCase() : "";
  return word === "true" || word === "false"
    ? { value: word === "true" }
    : { problem: `${show(value)} is neither true nor false` };
}

function checkText(value: JsonValue): Checked {
  if (typeof value === "string") {
    return { value };
  }
  return value === null || typeof value === "object"
    ? { problem: `${show(value)} is no text` }
    : { value: String(value) };
}

/** A file name is never refused: the file may be fetched before the run, or uploaded with it. */
function checkChoice(value: JsonValue, definition: InputDefinition): Checked {
  const choices = choicesOf(definition);
  const text = typeof value === "string" ? value : undefined;
  const same = choices?.find((choice) => choice === value || String(choice) === text);
  if (same !== undefined) {
    return { value: same };
  }
  const isOpen = choices === undefined || (text !== undefined && looksLikeFile(text));
  if (isOpen) {
    return value === null || typeof value === "object"
      ? { problem: `${show(value)} is no choice` }
      : { value };
  }
  const names = choices.map(String);
  const near = nearNames(String(text ?? value), names);
  const list =
    names.length <= 12 ? `; choices are ${names.map((name) => `'${clip(name)}'`).join(", ")}` : "";
  return { problem: `${show(value)} is not among its choices${didYouMean(near) || list}` };
}

/** True for text that ends like a file name. */
export function looksLikeFile(text: string): boolean {
  return /\.[a-z][a-z0-9]{1,11}$/i.test(text);
}

function show(value: JsonValue): string {
  if (typeof value === "bigint") {
    return value.toString();
  }
  return isJsonObject(value) || Array.isArray(value)
    ? clip(
        JSON.stringify(value, (_key, inner: unknown) =>
          typeof inner === "bigint" ? String(inner) : inner,
        ),
        40,
      )
    : `'${clip(String(value), 40)}'`;
}
