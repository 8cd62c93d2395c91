/**
 * Checks inputs against the JSON schema of the OpenAPI document with Cog's semantics, words and order
 * (cog_protocol.md §12): keywords in alphabetical order, every error reported, nothing coerced, `nullable` and
 * `format` without meaning. zod and general validators differ in all of these.
 */
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { ExactNumber } from "./json-reader.ts";
import { compareBytes, writeJson } from "./json-writer.ts";
import { propertiesOf, schemasOf, secretNames } from "./openapi.ts";

/** One entry of the `detail` list of a 422 answer. */
export interface ValidationProblem {
  readonly loc: readonly [string, string, string];
  readonly msg: string;
  readonly type: "value_error" | "value_error.missing";
}

/** What a masked credential looks like in every echo. */
export const SECRET_MASK = "**********";

/** A mistake found, before it is told: where, and how. */
interface Mistake {
  readonly pointer: string;
  readonly msg: string;
  readonly type: ValidationProblem["type"];
}

type Keyword = (value: JsonValue, argument: JsonValue, at: Place) => Mistake[];

interface Place {
  readonly pointer: string;
  readonly components: JsonObject;
  /** How the value is printed in a message: masked where it is a credential. */
  readonly print: (value: unknown) => string;
}

/** Every mistake in `input`, in Cog's order; an empty list when there is none. */
export function validateInput(
  input: JsonValue,
  schema: JsonObject,
  document: JsonObject,
): ValidationProblem[] {
  const secrets = secretNames(schema);
  const place: Place = { pointer: "", components: schemasOf(document), print: writeJson };
  return check(input, schema, place, secrets).map(({ pointer, msg, type }) => ({
    loc: ["body", "input", pointer === "" ? "__root__" : pointer],
    msg,
    type,
  }));
}

/** Defaults that their own limits would refuse, in words: a mistake of the model's author. */
export function wrongDefaults(document: JsonObject): string[] {
  const schemas = schemasOf(document);
  return ["Input", "TrainingInput"].flatMap((name) => {
    const schema = schemas[name];
    const defaults = Object.entries(isJsonObject(schema) ? propertiesOf(schema) : {}).flatMap(
      ([field, property]): [string, JsonValue][] => {
        const value = isJsonObject(property) ? property["default"] : undefined;
        return value === undefined || value === null ? [] : [[field, value]];
      },
    );
    return isJsonObject(schema)
      ? validateInput(Object.fromEntries(defaults), schema, document)
          .filter(({ type }) => type === "value_error")
          .map(({ loc, msg }) => `${loc[2]}: ${msg}`)
      : [];
  });
}

/** The members of `input` that the schema names; anything but an object comes back as it is. */
export function withoutUnknown(
  input: JsonValue,
  schema: JsonObject,
): { readonly input: JsonValue; readonly dropped: readonly string[] } {
  if (!isObject(input)) {
    return { input, dropped: [] };
  }
  const known = propertiesOf(schema);
  const dropped = Object.keys(input).filter((name) => !Object.hasOwn(known, name));
  return {
    input: Object.fromEntries(Object.entries(input).filter(([name]) => Object.hasOwn(known, name))),
    dropped,
  };
}

/** `null` for every absent input that is nullable, has no default and is not required. */
export function withInjectedNulls(input: JsonObject, schema: JsonObject): JsonObject {
  const required = Array.isArray(schema["required"]) ? schema["required"] : [];
  const injected = Object.entries(propertiesOf(schema))
    .filter(
      ([name, property]) =>
        isJsonObject(property) &&
        property["nullable"] === true &&
        !("default" in property) &&
        !required.includes(name) &&
        !Object.hasOwn(input, name),
    )
    .map(([name]): [string, JsonValue] => [name, null]);
  return { ...input, ...Object.fromEntries(injected) };
}

function check(
  value: JsonValue,
  schema: JsonObject,
  place: Place,
  secrets: ReadonlySet<string> = new Set(),
): Mistake[] {
  const target = resolve(schema, place.components);
  const mistakes: Mistake[] = [];
  for (const keyword of Object.keys(target).sort(compareBytes)) {
    const argument = target[keyword];
    if (argument === undefined) {
      continue;
    }
    if (keyword === "properties") {
      mistakes.push(...checkProperties(value, argument, place, secrets));
    } else {
      mistakes.push(...(KEYWORDS[keyword]?.(value, argument, place) ?? []));
    }
  }
  return mistakes;
}

function resolve(schema: JsonObject, components: JsonObject): JsonObject {
  const reference = schema["$ref"];
  if (typeof reference !== "string") {
    return schema;
  }
  const target = components[reference.slice(reference.lastIndexOf("/") + 1)];
  return isJsonObject(target) ? target : {};
}

function checkProperties(
  value: JsonValue,
  properties: JsonValue,
  place: Place,
  secrets: ReadonlySet<string>,
): Mistake[] {
  if (!isObject(value) || !isJsonObject(properties)) {
    return [];
  }
  return Object.keys(properties)
    .sort(compareBytes)
    .flatMap((name) => {
      const property = properties[name];
      const inner = value[name];
      if (!Object.hasOwn(value, name) || inner === undefined || !isJsonObject(property)) {
        return [];
      }
      const print = secrets.has(name) ? () => `"${SECRET_MASK}"` : place.print;
      return check(inner, property, { ...place, pointer: below(place.pointer, name), print });
    });
}

function below(pointer: string, step: string): string {
  const escaped = step.replaceAll("~", "~0").replaceAll("/", "~1");
  return pointer === "" ? escaped : `${pointer}/${escaped}`;
}

function mistake(place: Place, msg: string): Mistake[] {
  return [{ pointer: place.pointer, msg, type: "value_error" }];
}

const KEYWORDS: Readonly<Record<string, Keyword>> = {
  allOf: (value, argument, place) =>
    schemasIn(argument).flatMap((schema) => check(value, schema, place)),
  anyOf: (value, argument, place) =>
    schemasIn(argument).some((schema) => check(value, schema, place).length === 0)
      ? []
      : mistake(
          place,
          `${place.print(value)} is not valid under any of the schemas listed in the 'anyOf' keyword`,
        ),
  enum: (value, argument, place) => {
    const choices = Array.isArray(argument) ? argument : [];
    return choices.some((choice) => isSame(choice, value))
      ? []
      : mistake(place, `${place.print(value)} is not one of ${writeJson(choices)}`);
  },
  items: (value, argument, place) =>
    Array.isArray(value) && isJsonObject(argument)
      ? value.flatMap((item, index) =>
          check(item, argument, { ...place, pointer: below(place.pointer, String(index)) }),
        )
      : [],
  maxLength: (value, argument, place) =>
    typeof value === "string" && codePoints(value) > Number(argument)
      ? mistake(place, `${place.print(value)} is longer than ${characters(argument)}`)
      : [],
  minLength: (value, argument, place) =>
    typeof value === "string" && codePoints(value) < Number(argument)
      ? mistake(place, `${place.print(value)} is shorter than ${characters(argument)}`)
      : [],
  maximum: (value, argument, place) => {
    const number = numberOf(value);
    return number !== undefined && number > Number(argument)
      ? mistake(
          place,
          `${place.print(value)} is greater than the maximum of ${writeJson(argument)}`,
        )
      : [];
  },
  minimum: (value, argument, place) => {
    const number = numberOf(value);
    return number !== undefined && number < Number(argument)
      ? mistake(place, `${place.print(value)} is less than the minimum of ${writeJson(argument)}`)
      : [];
  },
  pattern: (value, argument, place) =>
    typeof value === "string" && !new RegExp(String(argument), "u").test(value)
      ? mistake(place, `${place.print(value)} does not match "${String(argument)}"`)
      : [],
  required: (value, argument, place) =>
    isObject(value) && Array.isArray(argument)
      ? argument
          .map(String)
          .filter((name) => !Object.hasOwn(value, name))
          .map((name) => ({
            pointer: below(place.pointer, name),
            msg: "Field required",
            type: "value_error.missing" as const,
          }))
      : [],
  type: (value, argument, place) =>
    hasType(value, String(argument))
      ? []
      : mistake(place, `${place.print(value)} is not of type "${String(argument)}"`),
};

function schemasIn(argument: JsonValue): JsonObject[] {
  return Array.isArray(argument) ? argument.filter(isJsonObject) : [];
}

function characters(limit: JsonValue): string {
  return `${String(limit)} character${limit === 1 ? "" : "s"}`;
}

function codePoints(text: string): number {
  let count = 0;
  for (const _ of text) {
    count += 1;
  }
  return count;
}

function isObject(value: JsonValue): value is JsonObject {
  return isJsonObject(value) && !isExact(value);
}

function isExact(value: unknown): value is ExactNumber {
  return value instanceof ExactNumber;
}

function numberOf(value: unknown): number | bigint | undefined {
  if (isExact(value)) {
    return value.value;
  }
  return typeof value === "number" || typeof value === "bigint" ? value : undefined;
}

function hasType(value: JsonValue, type: string): boolean {
  const number = numberOf(value);
  switch (type) {
    case "integer":
      return typeof number === "bigint" || (number !== undefined && Number.isInteger(number));
    case "number":
      return number !== undefined;
    case "array":
      return Array.isArray(value);
    case "object":
      return isObject(value);
    case "null":
      return value === null;
    default:
      return typeof value === type;
  }
}

function isSame(one: JsonValue, other: JsonValue): boolean {
  const [a, b] = [numberOf(one), numberOf(other)];
  if (a !== undefined && b !== undefined) {
    return Number(a) === Number(b);
  }
  return writeJson(one) === writeJson(other);
}
