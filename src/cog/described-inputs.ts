/**
 * Inputs that are known only at run time, from descriptions to fields of the schema. What a client sends is checked
 * against the schema; a value that wasn't sent stays undefined, though the schema shows what holds then.
 */
import { z } from "zod";
import { ConfigError } from "../platform/errors.ts";
import type { JsonValue } from "../platform/json.ts";
import { stringifyJson } from "../platform/json.ts";

export interface DescribedInput {
  readonly name: string;
  readonly description?: string | undefined;
  readonly kind: "string" | "integer" | "number" | "boolean" | "choice" | "file" | "json";
  /** What holds when nothing is sent. */
  readonly default: JsonValue;
  readonly min?: number | undefined;
  readonly max?: number | undefined;
  readonly choices?: readonly JsonValue[] | undefined;
  readonly accepts?: "image" | "audio" | "video" | "file" | undefined;
  /** A client must send it. */
  readonly isRequired?: boolean | undefined;
  /** No default is shown: empty is an answer of its own. */
  readonly isOpen?: boolean | undefined;
}

/** Choices are components of the document by their input's name, beside these. */
const COMPONENTS =
  /^((Training)?(Input|Output)|(Prediction|Training)(Request|Response)|Status|HTTPValidationError|ValidationError)$/;
/** Names that forms, command lines and Python can all write. */
const NAME = /^[A-Za-z][A-Za-z0-9_]*$/;

/**
 * One field for every description, in their order. `taken`: names that mean something else.
 * @throws ConfigError naming every name that can't be used
 */
export function describedInputs(
  inputs: readonly DescribedInput[],
  taken: readonly string[],
): Record<string, z.ZodType> {
  const wrong = inputs.filter(
    ({ name }) => !NAME.test(name) || COMPONENTS.test(name) || taken.includes(name),
  );
  if (wrong.length > 0) {
    const names = wrong.map(({ name }) => JSON.stringify(name)).join(", ");
    throw new ConfigError("CONFIG_INVALID", `These can't be names of inputs: ${names}`, {
      hint: `Use letters, digits and underscores, beginning with a letter, and none of ${taken.join(", ")}.`,
    });
  }
  return Object.fromEntries(inputs.map((input) => [input.name, fieldOf(input)]));
}

function fieldOf(input: DescribedInput): z.ZodType {
  const { description } = input;
  const shape = { ...(description === undefined ? {} : { description }), ...shapeOf(input) };
  return input.isRequired === true
    ? z
        .unknown()
        .refine((value) => value !== undefined && value !== null, "Field required")
        .meta(shape)
    : z.unknown().optional().meta(shape);
}

/** The JSON Schema of a field. A default, or a limit, that contradicts the rest is left out: it must not end setup. */
function shapeOf(input: DescribedInput): Record<string, unknown> {
  const { kind } = input;
  switch (kind) {
    case "integer":
    case "number":
      return numberShape(input, kind);
    case "boolean":
      return { type: kind, ...shown(input, typeof input.default === "boolean") };
    case "choice":
      return choiceShape(input);
    case "file":
      return { type: "string", format: "uri", ...acceptOf(input.accepts) };
    case "json":
      return {
        type: "string",
        ...shown({ ...input, default: stringifyJson(input.default) }, true),
      };
    case "string":
      return { type: "string", ...shown(input, typeof input.default === "string") };
  }
}

function shown(
  { default: value, isOpen }: DescribedInput,
  fits: boolean,
): { readonly default?: JsonValue } {
  return fits && isOpen !== true ? { default: value } : {};
}

function numberShape(input: DescribedInput, type: "integer" | "number"): Record<string, unknown> {
  const value = numericDefault(input.default, type);
  // Limits beyond 2^53 can't be written exactly; ComfyUI minds them itself.
  const limits = [
    ["minimum", input.min, (limit: number) => value === undefined || value >= limit],
    ["maximum", input.max, (limit: number) => value === undefined || value <= limit],
  ] as const;
  const kept = limits.filter(
    ([, limit, fits]) =>
      limit !== undefined && Math.abs(limit) <= Number.MAX_SAFE_INTEGER && fits(limit),
  );
  return {
    type,
    ...Object.fromEntries(kept.map(([keyword, limit]) => [keyword, limit])),
    ...(value === undefined ? {} : shown({ ...input, default: value }, true)),
  };
}

/** A workflow may hold a number as text, as ComfyUI takes it. A bigint has no place in the document. */
function numericDefault(value: JsonValue, type: "integer" | "number"): number | undefined {
  const number = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  if (typeof number !== "number" || !Number.isFinite(number)) {
    return undefined;
  }
  return type === "integer" ? Math.trunc(number) : number;
}

function choiceShape(input: DescribedInput): Record<string, unknown> {
  const choices = input.choices ?? [];
  const type = commonType(choices);
  // What isn't among the choices now may be later: a weight that a request brings.
  return type === undefined || !choices.includes(input.default)
    ? { type: "string", ...shown({ ...input, default: String(input.default) }, true) }
    : { type, enum: [...choices], ...shown(input, true) };
}

function commonType(choices: readonly JsonValue[]): string | undefined {
  if (choices.length > 0 && choices.every((choice) => typeof choice === "string")) {
    return "string";
  }
  const numbers = choices.filter((choice) => typeof choice === "number");
  if (numbers.length === 0 || numbers.length < choices.length) {
    return undefined;
  }
  return numbers.every(Number.isInteger) ? "integer" : "number";
}

function acceptOf(accepts: DescribedInput["accepts"]): { readonly "x-cog-accept"?: string } {
  return accepts === undefined || accepts === "file" ? {} : { "x-cog-accept": `${accepts}/*` };
}
