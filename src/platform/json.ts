/**
 * JSON whose integers survive: one beyond 2^53 (a seed) is read as a `bigint` and written digit for digit.
 * Keys such as `__proto__` become ordinary own properties, never a prototype.
 */

export type JsonValue = null | boolean | number | bigint | string | JsonValue[] | JsonObject;
export interface JsonObject {
  [key: string]: JsonValue;
}

/** What `JSON.parse` hands a reviver beside key and value: the literal as it stood in the text. */
interface ReviverContext {
  readonly source?: string;
}

function keepBigIntegers(_key: string, value: unknown, context?: ReviverContext): unknown {
  if (typeof value === "number" && !Number.isSafeInteger(value) && context?.source !== undefined) {
    return /^-?\d+$/.test(context.source) ? BigInt(context.source) : value;
  }
  return value;
}

/** `JSON.rawJSON` (ES2026, in this Bun, not yet in the type library): text that `stringify` copies verbatim. */
const { rawJSON } = JSON as typeof JSON & { readonly rawJSON: (text: string) => unknown };

/** Parses JSON text. Throws `SyntaxError`, as `JSON.parse` does. */
export function parseJson(text: string): JsonValue {
  // The reviver costs a walk over the whole document; only texts that hold a long digit run need it.
  return JSON.parse(text, /\d{16}/.test(text) ? keepBigIntegers : undefined) as JsonValue;
}

/** Writes JSON, bigints as bare integers. */
export function stringifyJson(value: unknown, indent?: number): string {
  return JSON.stringify(
    value,
    (_key, inner: unknown) => (typeof inner === "bigint" ? rawJSON(inner.toString()) : inner),
    indent,
  );
}

/** True for a JSON object: not null, not a list. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
