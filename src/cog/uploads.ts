/**
 * Outputs on their way to the client (cog_protocol.md §14): plain JSON, with every file turned into a data URL, or
 * sent to the upload URL and replaced by its address. Production order is kept; what can't be read or sent fails loudly.
 */
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { AppError, DownloadError, messageOf } from "../platform/errors.ts";
import type { HttpClient } from "../platform/http.ts";
import type { JsonValue } from "../platform/json.ts";
import { redactUrl } from "../platform/redact.ts";
import { mimeOf } from "./mime.ts";
import { OutputFile } from "./predictor.ts";

/** Cog's limit for one upload. */
const UPLOAD_MS = 25_000;
/** Uploads of one list going on at once; bounds what is held in memory. */
const MAX_PARALLEL = 4;

export interface OutputOptions {
  readonly http: HttpClient;
  /** Where files are PUT; data URLs unless given. */
  readonly uploadUrl?: string | undefined;
  readonly uploadTimeoutMs?: number | undefined;
}

/** The chunks a returned value stands for: one per element of a list, else one; none for nothing. */
export function chunksOf(value: unknown): readonly unknown[] {
  if (value === undefined || value === null) {
    return [];
  }
  return Array.isArray(value) ? value : [value];
}

/** Turns chunks into JSON in their own order, a few at a time; `emit` gets each as soon as all before it are there. */
export async function emitChunks(
  chunks: readonly unknown[],
  convert: (chunk: unknown) => Promise<JsonValue>,
  emit: (chunk: JsonValue) => void,
): Promise<void> {
  const running: Promise<JsonValue>[] = [];
  for (const [at, chunk] of chunks.entries()) {
    const job = convert(chunk);
    // The failure is reported when its turn comes; until then it must not count as unhandled.
    job.catch(() => undefined);
    running.push(job);
    const due = running[at - MAX_PARALLEL + 1];
    if (due !== undefined) {
      emit(await due);
    }
  }
  for (const job of running.slice(Math.max(0, chunks.length - MAX_PARALLEL + 1))) {
    emit(await job);
  }
}

/** One chunk as JSON. A file at the top is uploaded where an upload URL is set; a nested one is always a data URL. */
export function chunkToJson(
  chunk: unknown,
  options: OutputOptions,
  predictionId: string,
  signal: AbortSignal,
): Promise<JsonValue> {
  if (chunk instanceof OutputFile && options.uploadUrl !== undefined) {
    return upload(chunk.path, options.uploadUrl, options, { predictionId, signal });
  }
  return nestedToJson(chunk);
}

async function nestedToJson(value: unknown): Promise<JsonValue> {
  if (value instanceof OutputFile) {
    return dataUrl(value.path);
  }
  if (Array.isArray(value)) {
    return Promise.all(value.map(nestedToJson));
  }
  if (value instanceof Date) {
    return value.toISOString();
  }
  if (typeof value === "object" && value !== null) {
    const members = Object.entries(value).filter(([, inner]) => inner !== undefined);
    return Object.fromEntries(
      await Promise.all(
        members.map(async ([key, inner]) => [key, await nestedToJson(inner)] as const),
      ),
    );
  }
  return scalarToJson(value);
}

function scalarToJson(value: unknown): JsonValue {
  if (typeof value === "string" || typeof value === "boolean" || typeof value === "bigint") {
    return value;
  }
  if (typeof value === "number" && Number.isFinite(value)) {
    return value;
  }
  if (value === null || value === undefined) {
    return null;
  }
  throw new AppError(
    "OUTPUT_UNREADABLE",
    `The output holds ${String(value)}, which JSON can't hold`,
  );
}

async function read(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new AppError(
      "OUTPUT_UNREADABLE",
      `The output file ${basename(path)} can't be read: ${messageOf(cause)}`,
      { cause },
    );
  }
}

async function dataUrl(path: string): Promise<string> {
  return `data:${mimeOf(path)};base64,${(await read(path)).toString("base64")}`;
}

interface UploadOf {
  readonly predictionId: string;
  readonly signal: AbortSignal;
}

async function upload(
  path: string,
  uploadUrl: string,
  options: OutputOptions,
  { predictionId, signal }: UploadOf,
): Promise<string> {
  const name = basename(path);
  const target = uploadTarget(uploadUrl, name);
  const limitMs = options.uploadTimeoutMs ?? UPLOAD_MS;
  const deadline = AbortSignal.timeout(limitMs);
  try {
    const response = await options.http.request(target, {
      method: "PUT",
      headers: {
        "content-type": mimeOf(path),
        accept: "*/*",
        "x-prediction-id": headerSafe(predictionId),
      },
      body: await read(path),
      headersTimeoutMs: limitMs,
      signal: AbortSignal.any([signal, deadline]),
    });
    await response.discard();
    if (response.status < 200 || response.status > 299) {
      throw uploadFailed(name, target, `it answered ${response.status}`);
    }
    return addressOf(response.headers.get("location"), response.url);
  } catch (error) {
    if (signal.aborted || (error instanceof AppError && !(error instanceof DownloadError))) {
      throw error;
    }
    const reason = deadline.aborted ? `no answer within ${limitMs / 1000} s` : messageOf(error);
    throw uploadFailed(name, target, reason, error);
  }
}

function uploadTarget(uploadUrl: string, name: string): string {
  const base = uploadUrl.endsWith("/") ? uploadUrl : `${uploadUrl}/`;
  // Only what would end the path is escaped here; the URL parser escapes the rest.
  return new URL(`${base}${name.replace(/[?#]/g, encodeURIComponent)}`).href;
}

/** Header values are ASCII; an id may be anything. */
function headerSafe(id: string): string {
  return /^[\x20-\x7e]*$/.test(id) ? id : encodeURIComponent(id);
}

function uploadFailed(name: string, target: string, reason: string, cause?: unknown): AppError {
  return new AppError(
    "UPLOAD_FAILED",
    `Failed to upload output ${name} to ${redactUrl(target)}: ${reason}`,
    { cause, hint: "Check the upload URL the server was started with, and that it accepts PUT." },
  );
}

/** `Location` if there is one, else where the file was put; absolute addresses lose their query, as in Cog. */
function addressOf(location: string | null, finalUrl: string): string {
  const address = location ?? finalUrl;
  if (!URL.canParse(address)) {
    return address;
  }
  const url = new URL(address);
  url.search = "";
  return url.href;
}
