/** What a model may record about a prediction, by Cog's rules for names, modes and types (cog_protocol.md §16). */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { MetricMode } from "./predictor.ts";

const MAX_NAME_LENGTH = 128;
const MAX_SEGMENTS = 4;
const RESERVED = "predict_time";
const RESERVED_PREFIX = "cog.";

function refuse(reason: string): InputError {
  return new InputError("INPUT_INVALID", reason);
}

/** Throws unless `name` may be used. */
function checkName(name: string): void {
  if (name.length > MAX_NAME_LENGTH) {
    throw refuse(`metric name is longer than ${MAX_NAME_LENGTH} characters`);
  }
  if (name === RESERVED || name.startsWith(`${RESERVED}.`)) {
    throw refuse(`metric name '${name}' is reserved`);
  }
  if (name.startsWith(RESERVED_PREFIX)) {
    throw refuse(
      `metric name '${name}' must not begin with '${RESERVED_PREFIX}', which is reserved`,
    );
  }
  if (name.startsWith(".")) {
    throw refuse(`metric name '${name}' must not start with a dot`);
  }
  const segments = name.split(".");
  if (segments.includes("")) {
    throw refuse(`metric name '${name}' has empty segments`);
  }
  if (segments.length > MAX_SEGMENTS) {
    throw refuse(`metric name '${name}' may have at most ${MAX_SEGMENTS} dot-separated segments`);
  }
  segments.forEach(checkSegment);
}

function checkSegment(segment: string): void {
  if (!/^[A-Za-z]/.test(segment)) {
    throw refuse(`metric name segment '${segment}' must start with a letter`);
  }
  if (segment.includes("__")) {
    throw refuse(`metric name segment '${segment}' must not contain consecutive underscores`);
  }
  if (!/[A-Za-z0-9]$/.test(segment)) {
    throw refuse(`metric name segment '${segment}' must end with a letter or digit`);
  }
  if (!/^[A-Za-z0-9_]+$/.test(segment)) {
    throw refuse(`metric name segment '${segment}' may hold letters, digits and underscores only`);
  }
}

function typeOf(value: JsonValue): string {
  if (Array.isArray(value)) {
    return "list";
  }
  return typeof value === "bigint" ? "number" : typeof value;
}

/** The metrics of one prediction; dotted names build nested objects. */
export class Metrics {
  readonly #root: JsonObject = {};

  /** @throws InputError when the name or the change of type is against the rules */
  record(name: string, value: JsonValue, mode: MetricMode): void {
    checkName(name);
    const steps = name.split(".");
    const last = steps.pop() ?? name;
    const parent = this.#parent(steps, name);
    const before = Object.hasOwn(parent, last) ? parent[last] : undefined;
    if (mode === "replace" && value === null) {
      delete parent[last];
      return;
    }
    parent[last] = combined(name, before, value, mode);
  }

  toJson(): JsonObject {
    return structuredClone(this.#root);
  }

  #parent(steps: readonly string[], name: string): JsonObject {
    let at = this.#root;
    for (const step of steps) {
      const next: JsonValue = (Object.hasOwn(at, step) ? at[step] : undefined) ?? {};
      if (!isJsonObject(next)) {
        throw refuse(`metric '${name}' can't be nested: '${step}' holds a value already`);
      }
      at[step] = next;
      at = next;
    }
    return at;
  }
}

function combined(
  name: string,
  before: JsonValue | undefined,
  value: JsonValue,
  mode: MetricMode,
): JsonValue {
  if (mode === "append") {
    const list = Array.isArray(before) ? before : [before].filter((one) => one !== undefined);
    return [...list, value];
  }
  if (mode === "increment") {
    if (typeof value !== "number" || (before !== undefined && typeof before !== "number")) {
      throw refuse(`metric '${name}' can only be incremented by a number, from a number`);
    }
    return (before ?? 0) + value;
  }
  if (before !== undefined && typeOf(before) !== typeOf(value)) {
    throw refuse(
      `metric '${name}' is a ${typeOf(before)} and can't become a ${typeOf(value)}; delete it first`,
    );
  }
  return value;
}
