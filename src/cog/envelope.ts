/**
 * The body of a creation request, read member by member as Cog reads it (cog_protocol.md §1.1, §3): what is wrong
 * first is what is answered, with Cog's own texts. Knows no HTTP beyond the content type.
 */
import { AppError, InputError } from "../platform/errors.ts";
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { ExactNumber, JsonReader, JsonSyntaxError } from "./json-reader.ts";
import { printFloat } from "./json-writer.ts";

export const WEBHOOK_EVENTS = ["start", "output", "logs", "completed"] as const;
export type WebhookEvent = (typeof WEBHOOK_EVENTS)[number];

/** A creation request, its input not yet validated. */
export interface Envelope {
  readonly id: string | undefined;
  readonly input: JsonValue;
  readonly context: Readonly<Record<string, string>>;
  readonly webhook: string | undefined;
  readonly webhookEvents: readonly WebhookEvent[];
}

/** 100 MiB: Cog's own limit, in bytes as they arrive. */
export const MAX_BODY_BYTES = 104_857_600;

const MALFORMED = "Failed to parse the request body as JSON: ";
const WRONG_SHAPE = "Failed to deserialize the JSON body into the target type: ";

const EMPTY: Envelope = {
  id: undefined,
  input: {},
  context: {},
  webhook: undefined,
  webhookEvents: WEBHOOK_EVENTS,
};

/** Type, subtype and parameters as the `mime` crate takes them apart: no blank before a semicolon. */
const MEDIA_TYPE =
  /^([\w!#$&^.-]+)\/([\w!#$&^.+-]+)(?:; *[\w!#$&^.+-]+=(?:[\w!#$&^.+-]+|"[^"]*"))*;? *$/;

/** True for `application/json` and `application/*+json`, whatever parameters follow. */
export function isJsonType(contentType: string): boolean {
  const [, type = "", subtype = ""] = MEDIA_TYPE.exec(contentType.toLowerCase()) ?? [];
  const plus = subtype.lastIndexOf("+");
  const isJson = subtype === "json" || (plus > 0 && subtype.slice(0, plus) === "json");
  return type === "application" && (isJson || (plus > 0 && subtype.slice(plus + 1) === "json"));
}

/**
 * Reads a body. Without a content type the body does not count, as in Cog.
 * @throws InputError BODY_TYPE, BODY_TOO_LARGE, BODY_MALFORMED, BODY_SHAPE
 */
export async function readEnvelope(
  contentType: string | undefined,
  body: AsyncIterable<Uint8Array> | null,
  isTooLarge = false,
): Promise<{ readonly envelope: Envelope; readonly text: string }> {
  if (contentType === undefined) {
    return { envelope: EMPTY, text: "" };
  }
  if (!isJsonType(contentType)) {
    throw new InputError("BODY_TYPE", "Expected request with `Content-Type: application/json`");
  }
  if (isTooLarge) {
    throw tooLarge();
  }
  const text = decode(await collect(body));
  return { envelope: parseEnvelope(text), text };
}

async function collect(body: AsyncIterable<Uint8Array> | null): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for await (const chunk of body ?? []) {
    total += chunk.byteLength;
    if (total > MAX_BODY_BYTES) {
      throw tooLarge();
    }
    chunks.push(chunk);
  }
  return chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks);
}

function tooLarge(): InputError {
  return new InputError(
    "BODY_TOO_LARGE",
    "Failed to buffer the request body: length limit exceeded",
  );
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    const place = new JsonReader(new TextDecoder().decode(bytes));
    throw new InputError(
      "BODY_MALFORMED",
      `${MALFORMED}invalid unicode code point ${place.here()}`,
      { cause },
    );
  }
}

/** Parses the text of a body. @throws InputError BODY_MALFORMED, BODY_SHAPE */
export function parseEnvelope(text: string): Envelope {
  const reader = new JsonReader(text);
  try {
    const envelope = readRoot(reader);
    reader.end();
    return envelope;
  } catch (error) {
    if (error instanceof AppError) {
      throw error;
    }
    if (error instanceof JsonSyntaxError) {
      throw new InputError("BODY_MALFORMED", `${MALFORMED}${error.message}`, { cause: error });
    }
    throw error;
  }
}

/** The input of a body that parses, every number as it was spelt: for validation messages. */
export function exactInput(text: string): JsonValue {
  const body = text === "" ? {} : new JsonReader(text, { exact: true }).value();
  const input = Array.isArray(body) ? body[MEMBERS.indexOf("input")] : undefined;
  return (isJsonObject(body) ? body["input"] : input) ?? {};
}

function wrongShape(reader: JsonReader, message: string, path = reader.path): InputError {
  return new InputError("BODY_SHAPE", `${WRONG_SHAPE}${path}${message} ${reader.here()}`);
}

/** What serde calls the value that comes next; scalars are read so that the place is behind them. */
function unexpected(reader: JsonReader): string {
  const first = reader.peek();
  if (first === "{") {
    return "map";
  }
  if (first === "[") {
    return "sequence";
  }
  const value = reader.exactValue();
  if (value === null) {
    return "null";
  }
  if (value instanceof ExactNumber) {
    return `floating point \`${printFloat(value.value)}\``;
  }
  if (typeof value === "string") {
    return `string ${JSON.stringify(value)}`;
  }
  return `${typeof value === "boolean" ? "boolean" : "integer"} \`${String(value)}\``;
}

function expecting(reader: JsonReader, expected: string): InputError {
  const path = reader.path;
  const found = unexpected(reader);
  return wrongShape(reader, `invalid type: ${found}, expected ${expected}`, path);
}

const MEMBERS = ["id", "input", "context", "webhook", "webhook_events_filter"] as const;
type Member = (typeof MEMBERS)[number];

interface Draft {
  id?: string | undefined;
  input?: JsonValue;
  context?: Readonly<Record<string, string>>;
  webhook?: string | undefined;
  webhookEvents?: readonly WebhookEvent[];
}

const READERS: Readonly<Record<Member, (reader: JsonReader, draft: Draft) => void>> = {
  id: (reader, draft) => {
    draft.id = optionalText(reader);
  },
  input: (reader, draft) => {
    draft.input = reader.value();
  },
  context: (reader, draft) => {
    draft.context = textMap(reader);
  },
  webhook: (reader, draft) => {
    draft.webhook = optionalText(reader);
  },
  webhook_events_filter: (reader, draft) => {
    draft.webhookEvents = eventList(reader);
  },
};

function readRoot(reader: JsonReader): Envelope {
  const draft: Draft = {};
  const first = reader.peek();
  if (first === "{") {
    readMembers(reader, draft);
  } else if (first === "[") {
    readPositions(reader, draft);
  } else {
    throw expecting(reader, "struct PredictionRequest");
  }
  return { ...EMPTY, ...draft, input: draft.input ?? {} };
}

function isMember(key: string): key is Member {
  return MEMBERS.some((member) => member === key);
}

function readMembers(reader: JsonReader, draft: Draft): void {
  const seen = new Set<string>();
  const refuseTwice = (key: string): void => {
    if (isMember(key) && seen.has(key)) {
      throw wrongShape(reader, `duplicate field \`${key}\``, "");
    }
    seen.add(key);
  };
  reader.members((key) => {
    if (isMember(key)) {
      READERS[key](reader, draft);
    } else {
      reader.skip();
    }
  }, refuseTwice);
}

/** The members a list can't do without: the others have defaults. */
const REQUIRED_POSITIONS = [0, 3] as const;

/** A list is taken by position, as serde takes structs. */
function readPositions(reader: JsonReader, draft: Draft): void {
  let length = 0;
  reader.elements((index) => {
    const member = MEMBERS[index];
    if (member === undefined) {
      return false;
    }
    READERS[member](reader, draft);
    length = index + 1;
    return true;
  });
  const missing = REQUIRED_POSITIONS.find((position) => position >= length);
  if (missing !== undefined) {
    throw wrongShape(
      reader,
      `invalid length ${missing}, expected struct PredictionRequest with ${MEMBERS.length} elements`,
      "",
    );
  }
}

function optionalText(reader: JsonReader): string | undefined {
  const first = reader.peek();
  if (first === '"') {
    return reader.string();
  }
  if (first === "n") {
    reader.value();
    return undefined;
  }
  throw expecting(reader, "a string");
}

function textMap(reader: JsonReader): Record<string, string> {
  if (reader.peek() !== "{") {
    throw expecting(reader, "a map");
  }
  const entries: [string, string][] = [];
  reader.members((key) => {
    if (reader.peek() !== '"') {
      throw expecting(reader, "a string");
    }
    entries.push([key, reader.string()]);
  });
  return Object.fromEntries(entries);
}

function eventList(reader: JsonReader): WebhookEvent[] {
  if (reader.peek() !== "[") {
    throw expecting(reader, "a sequence");
  }
  const events: WebhookEvent[] = [];
  reader.elements(() => {
    events.push(webhookEvent(reader));
    return true;
  });
  return events;
}

/** A variant is a text, or an object whose one key is the variant and whose value is null. */
function webhookEvent(reader: JsonReader): WebhookEvent {
  const first = reader.peek();
  if (first === '"') {
    return namedEvent(reader, reader.string());
  }
  if (first !== "{") {
    throw reader.failAhead("expected value");
  }
  return reader.single(
    (key) => namedEvent(reader, key),
    () => {
      if (reader.peek() !== "n") {
        throw expecting(reader, "unit");
      }
      reader.value();
    },
  );
}

function namedEvent(reader: JsonReader, name: string): WebhookEvent {
  const event = WEBHOOK_EVENTS.find((known) => known === name);
  if (event === undefined) {
    const known = WEBHOOK_EVENTS.map((one) => `\`${one}\``).join(", ");
    throw wrongShape(reader, `unknown variant \`${name}\`, expected one of ${known}`);
  }
  return event;
}
