/**
 * Inputs that are files (cog_protocol.md §13): http(s) and data URLs become private temp files under Cog's names. A
 * local path from a client is refused, since it would read this machine's files. A cancellation ends a download at once.
 */
import { randomBytes } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdtemp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { finished } from "node:stream/promises";
import type { AppError } from "../platform/errors.ts";
import { DownloadError, InputError } from "../platform/errors.ts";
import { fileError, removeTree } from "../platform/files.ts";
import type { HttpClient } from "../platform/http.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { Limiter } from "../platform/limit.ts";
import { redactUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import { extensionOf } from "./mime.ts";
import { fileKind, propertiesOf } from "./openapi.ts";

/** Fetches going on at once for one prediction, as in Cog. */
const MAX_PARALLEL = 8;
/** Longest name taken from a URL, in bytes; `~` marks the cut. */
const MAX_NAME_BYTES = 200;
/** Without data for so long a download is given up. */
const STALL_MS = 30_000;
/** Largest file a client's address may give us; an option where more is needed. */
export const DEFAULT_MAX_FILE_BYTES = 4_000_000_000;

export interface FileInputOptions {
  readonly http: HttpClient;
  readonly tempDir: string;
  readonly maxFileBytes?: number | undefined;
  readonly userAgent?: string | undefined;
}

/** Inputs with their files on disk; disposing of it deletes them. */
export interface PreparedInputs extends Disposable {
  readonly input: JsonObject;
}

interface Wanted {
  readonly name: string;
  readonly index: number | undefined;
  readonly url: string;
}

/**
 * Fetches every file input of `input`.
 * @throws InputError, DownloadError naming the input; CanceledError when `signal` aborts
 */
export async function prepareFiles(
  input: JsonObject,
  schema: JsonObject,
  options: FileInputOptions,
  signal: AbortSignal,
): Promise<PreparedInputs> {
  const wanted = wantedFiles(input, schema);
  if (wanted.length === 0) {
    return { input, [Symbol.dispose]: () => undefined };
  }
  const folder = await mkdtemp(join(options.tempDir, "cog-input-"));
  try {
    return {
      input: await fetchAll(input, wanted, { ...options, folder, signal }),
      [Symbol.dispose]: () => removeTree(folder),
    };
  } catch (error) {
    removeTree(folder);
    throw error;
  }
}

function wantedFiles(input: JsonObject, schema: JsonObject): Wanted[] {
  return Object.entries(propertiesOf(schema)).flatMap(([name, property]): Wanted[] => {
    const value = input[name];
    const kind = fileKind(property);
    if (kind === "one" && typeof value === "string") {
      return [{ name, index: undefined, url: value }];
    }
    if (kind === "list" && Array.isArray(value)) {
      return value.map((url, index) => ({ name, index, url: String(url) }));
    }
    return [];
  });
}

interface FetchOptions extends FileInputOptions {
  readonly folder: string;
  readonly signal: AbortSignal;
}

async function fetchAll(
  input: JsonObject,
  wanted: readonly Wanted[],
  options: FetchOptions,
): Promise<JsonObject> {
  const limiter = new Limiter(MAX_PARALLEL);
  const abort = new AbortController();
  const signal = AbortSignal.any([options.signal, abort.signal]);
  const result: JsonObject = { ...input };
  const jobs = wanted.map(({ name, index, url }) =>
    limiter.run(async () => {
      const path = await fetchFile(url, name, { ...options, signal });
      if (index === undefined) {
        result[name] = path;
      } else {
        result[name] = replaced(result[name], index, path);
      }
    }),
  );
  try {
    await Promise.all(jobs);
  } catch (error) {
    abort.abort();
    await Promise.allSettled(jobs);
    throw error;
  }
  return result;
}

function replaced(list: JsonValue | undefined, index: number, path: string): JsonValue[] {
  return Array.isArray(list) ? list.with(index, path) : [path];
}

function fetchFile(url: string, name: string, options: FetchOptions): Promise<string> {
  if (/^data:/i.test(url)) {
    return decodeDataUrl(url, name, options.folder);
  }
  if (/^https?:\/\//i.test(url)) {
    return download(url, name, options);
  }
  throw new InputError(
    "INPUT_INVALID",
    `${name} is "${shorten(url)}", which is neither an http(s) address nor a data URL`,
    { hint: "Send the file as a data URL, or put it where this server can fetch it over http(s)." },
  );
}

function shorten(text: string): string {
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

async function download(url: string, name: string, options: FetchOptions): Promise<string> {
  const shown = redactUrl(url);
  const response = await options.http.request(url, {
    signal: options.signal,
    bodyTimeoutMs: STALL_MS,
    headers: options.userAgent === undefined ? {} : { "user-agent": options.userAgent },
  });
  if (response.status < 200 || response.status > 299) {
    await response.discard();
    throw new DownloadError("FETCH_FAILED", `${name}: ${shown} answered ${response.status}`, {
      hint: "Check the address, and that it needs no login.",
    });
  }
  const path = join(options.folder, temporaryName(baseName(url)));
  const limit = options.maxFileBytes ?? DEFAULT_MAX_FILE_BYTES;
  await writeBody(
    response.body,
    path,
    limit,
    () => new DownloadError("TOO_LARGE", `${name}: ${shown} sends more than ${formatSize(limit)}`),
  );
  return path;
}

async function writeBody(
  body: AsyncIterable<Uint8Array>,
  path: string,
  limit: number,
  tooLarge: () => AppError,
): Promise<void> {
  const file = createWriteStream(path, { mode: 0o600 });
  const done = finished(file);
  // The loop below reports a failure; a write error that arrives between two chunks must not be unhandled.
  done.catch(() => undefined);
  let total = 0;
  try {
    for await (const chunk of body) {
      total += chunk.byteLength;
      if (total > limit) {
        throw tooLarge();
      }
      if (!file.write(chunk)) {
        await Promise.race([new Promise<void>((drained) => file.once("drain", drained)), done]);
      }
    }
    file.end();
    await done;
  } catch (error) {
    file.destroy();
    throw fileError(error, path, "write");
  }
}

async function decodeDataUrl(url: string, name: string, folder: string): Promise<string> {
  const comma = url.indexOf(",");
  if (comma < 0) {
    throw new InputError("INPUT_INVALID", `${name} is a data URL without a comma`, {
      hint: "Write it as data:<type>;base64,<bytes>.",
    });
  }
  const head = url.slice("data:".length, comma);
  const text = url.slice(comma + 1);
  const isBase64 = /;\s*base64\s*$/i.test(head);
  const mime = (head.split(";")[0] ?? "").trim();
  const path = join(folder, temporaryName(`file${extensionOf(mime === "" ? "text/plain" : mime)}`));
  try {
    await writeFile(path, isBase64 ? fromBase64(text, name) : fromPercents(text), { mode: 0o600 });
  } catch (error) {
    throw fileError(error, path, "write");
  }
  return path;
}

function fromBase64(text: string, name: string): Uint8Array {
  const plain = text.includes("%") ? Buffer.from(fromPercents(text)).toString("latin1") : text;
  const compact = /\s/.test(plain) ? plain.replace(/\s+/g, "") : plain;
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(compact)) {
    throw new InputError("INPUT_INVALID", `${name} is a data URL that holds no valid base64`);
  }
  return Buffer.from(compact, "base64");
}

/** Bytes of percent-encoded text; a `%` that begins no escape stays. */
export function fromPercents(text: string): Uint8Array {
  const bytes = Buffer.from(text);
  const result = Buffer.alloc(bytes.length);
  let length = 0;
  for (let at = 0; at < bytes.length; at += 1) {
    const pair = bytes[at] === 0x25 ? bytes.toString("latin1", at + 1, at + 3) : "";
    if (/^[0-9a-fA-F]{2}$/.test(pair)) {
      result[length] = Number.parseInt(pair, 16);
      at += 2;
    } else {
      result[length] = bytes[at] ?? 0;
    }
    length += 1;
  }
  return result.subarray(0, length);
}

/** The last segment of the address's path, decoded, as a file name. */
function baseName(url: string): string {
  const { pathname } = new URL(url);
  const raw = Buffer.from(fromPercents(pathname.slice(pathname.lastIndexOf("/") + 1))).toString();
  // What a file system refuses, and what would break a line of a log.
  const clean = raw.replace(/[\p{Cc}/]/gu, "_");
  return cut(clean);
}

function cut(name: string): string {
  if (Buffer.byteLength(name) <= MAX_NAME_BYTES) {
    return name;
  }
  const dot = name.lastIndexOf(".");
  const extension = dot > 0 && name.length - dot <= 16 ? name.slice(dot) : "";
  const room = MAX_NAME_BYTES - Buffer.byteLength(extension) - 1;
  const start = Buffer.from(name)
    .subarray(0, room)
    .toString()
    .replace(/\ufffd+$/, "");
  return `${start}~${extension}`;
}

/** `tmpkkvxwpccpicture.png`: a random prefix without a separator, as Cog names them. */
function temporaryName(base: string): string {
  return `tmp${randomBytes(8).toString("base64url").toLowerCase().replaceAll("-", "_").slice(0, 8)}${base}`;
}
