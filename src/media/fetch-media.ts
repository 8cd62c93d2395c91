/**
 * Brings a file that a client names by address: http(s) through a guarded client, or a data URL. Sizes and times are
 * capped; the file's name is made from safe characters and its ending from its own bytes.
 */
import { closeSync, openSync, rmSync } from "node:fs";
import { join } from "node:path";
import { AppError, CanceledError, InputError, isAbort, messageOf } from "../platform/errors.ts";
import { fileError, writeFully } from "../platform/files.ts";
import type { HttpClient } from "../platform/http.ts";
import { redactUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import type { Sniffed } from "./sniff.ts";
import { sniffFile } from "./sniff.ts";

export interface FetchLimits {
  /** Of one file. */
  readonly maxBytes: number;
  /** Of one file, from the request to the last byte. */
  readonly timeoutMs: number;
}

/** A long video fits; a model does not, and has its own road. */
export const DEFAULT_FETCH_LIMITS: FetchLimits = { maxBytes: 2 * 2 ** 30, timeoutMs: 10 * 60_000 };

export interface FetchedMedia {
  readonly path: string;
  /** Safe name with the right ending. */
  readonly name: string;
  readonly sha256: string;
  readonly sizeBytes: number;
  readonly sniffed: Sniffed;
}

export interface FetchOptions {
  readonly http: HttpClient;
  /** Folder of our own that the file is written to. */
  readonly folder: string;
  readonly limits?: Partial<FetchLimits> | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** True for a value that is an address, not a name. */
export function isAddress(value: string): boolean {
  return /^(https?:\/\/|data:[^,]*,)/i.test(value);
}

/**
 * Fetches one address into the folder.
 * @throws InputError FETCH_FAILED, FETCH_REFUSED, INPUT_INVALID; CanceledError
 */
export async function fetchMedia(url: string, options: FetchOptions): Promise<FetchedMedia> {
  const limits = { ...DEFAULT_FETCH_LIMITS, ...options.limits };
  const path = join(options.folder, crypto.randomUUID());
  try {
    const source = /^data:/i.test(url)
      ? dataSource(url, limits)
      : await httpSource(url, limits, options);
    const written = await write(source.body, path, url, limits);
    const sniffed = sniffFile(path);
    refuseUseless(sniffed, url);
    return { path, ...written, sniffed, name: mediaName(source.name, sniffed, source.mime) };
  } catch (error) {
    rmSync(path, { force: true });
    throw translate(error, url, options.signal);
  }
}

interface Source {
  readonly body: AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
  readonly name: string;
  readonly mime: string;
}

async function httpSource(
  url: string,
  limits: FetchLimits,
  { http, signal }: FetchOptions,
): Promise<Source> {
  const deadline = AbortSignal.timeout(limits.timeoutMs);
  const response = await http.request(url, {
    signal: signal === undefined ? deadline : AbortSignal.any([signal, deadline]),
  });
  if (response.status !== 200) {
    await response.discard();
    throw new InputError("FETCH_FAILED", `${redactUrl(url)} answers ${response.status}`, {
      hint: "Check the address, and that it needs no login.",
      retryable: response.status >= 500,
    });
  }
  const declared = Number(response.headers.get("content-length"));
  if (declared > limits.maxBytes) {
    await response.discard();
    throw tooLarge(url, limits.maxBytes);
  }
  return {
    body: response.body,
    name: nameOfUrl(url),
    mime: (response.headers.get("content-type") ?? "").split(";")[0]?.trim() ?? "",
  };
}

function dataSource(url: string, limits: FetchLimits): Source {
  const comma = url.indexOf(",");
  const head = url.slice("data:".length, comma);
  const text = url.slice(comma + 1);
  const isBase64 = /;\s*base64\s*$/i.test(head);
  // Four characters of base64 are three bytes.
  if (text.length * (isBase64 ? 0.75 : 1 / 3) > limits.maxBytes) {
    throw tooLarge("a data URL", limits.maxBytes);
  }
  return {
    body: [isBase64 ? fromBase64(text) : percentDecoded(text)],
    name: "",
    mime: head.split(";")[0]?.trim() ?? "",
  };
}

function fromBase64(text: string): Uint8Array {
  const clean = /%/.test(text) ? percentDecoded(text).toString("latin1") : text;
  const compact = clean.replace(/\s+/g, "");
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(compact)) {
    throw new InputError("INPUT_INVALID", "A data URL holds characters that are not base64");
  }
  return Buffer.from(compact, "base64");
}

function percentDecoded(text: string): Buffer {
  return Buffer.from(
    text.replace(/%([0-9a-f]{2})/gi, (_whole, hex: string) =>
      String.fromCharCode(Number.parseInt(hex, 16)),
    ),
    "latin1",
  );
}

async function write(
  body: Source["body"],
  path: string,
  url: string,
  { maxBytes }: FetchLimits,
): Promise<{ sha256: string; sizeBytes: number }> {
  const hasher = new Bun.CryptoHasher("sha256");
  let fd: number;
  try {
    fd = openSync(path, "wx", 0o644);
  } catch (error) {
    throw fileError(error, path, "write");
  }
  let sizeBytes = 0;
  try {
    for await (const chunk of body) {
      if (sizeBytes + chunk.byteLength > maxBytes) {
        throw tooLarge(url, maxBytes);
      }
      writeFully(fd, chunk, sizeBytes);
      hasher.update(chunk);
      sizeBytes += chunk.byteLength;
    }
  } catch (error) {
    throw error instanceof Error && "syscall" in error ? fileError(error, path, "write") : error;
  } finally {
    closeSync(fd);
  }
  return { sha256: hasher.digest("hex"), sizeBytes };
}

function refuseUseless({ kind }: Sniffed, url: string): void {
  if (kind === "empty") {
    throw new InputError("FETCH_FAILED", `${redactUrl(url)} gave an empty file`);
  }
  if (kind === "html") {
    throw new InputError("FETCH_FAILED", `${redactUrl(url)} gave a web page, not a file`, {
      hint: "Use the address of the file itself, and one that needs no login.",
    });
  }
}

function tooLarge(url: string, maxBytes: number): InputError {
  return new InputError(
    "FETCH_FAILED",
    `${redactUrl(url)} is larger than ${formatSize(maxBytes)}, the most an input file may be`,
  );
}

function translate(error: unknown, url: string, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) {
    return new CanceledError("Fetching an input was called off", { cause: error });
  }
  if (error instanceof Error && (error.name === "TimeoutError" || isAbort(error))) {
    return new InputError("FETCH_FAILED", `${redactUrl(url)} did not arrive in time`, {
      cause: error,
      retryable: true,
    });
  }
  if (error instanceof AppError && (error.code === "NETWORK" || error.code === "STALLED")) {
    return new InputError("FETCH_FAILED", messageOf(error), { cause: error, retryable: true });
  }
  return error;
}

function nameOfUrl(url: string): string {
  const path = new URL(url).pathname.split("/").filter((part) => part !== "");
  try {
    return decodeURIComponent(path.at(-1) ?? "");
  } catch {
    return path.at(-1) ?? "";
  }
}

/** Endings for what bytes don't tell. */
const BY_MIME: Readonly<Record<string, string>> = {
  "model/obj": "obj",
  "model/stl": "stl",
  "model/gltf+json": "gltf",
  "application/json": "json",
  "text/plain": "txt",
};
/** Endings that are more exact than what the bytes say. */
const REFINES: Readonly<Record<string, readonly string[]>> = {
  jpg: ["jpeg"],
  safetensors: ["latent"],
  zip: ["usdz", "npz", "pth", "pt", "ckpt", "bin"],
  mp4: ["m4v", "mov"],
  ogg: ["oga"],
  tiff: ["tif"],
  "tar.gz": ["tgz"],
  mpg: ["mpeg"],
};
/** Long enough to be recognised, short enough for every file system. */
const MAX_STEM_LENGTH = 60;

/** A safe file name: the stem of the given one, the ending by the bytes. */
export function mediaName(given: string, sniffed: Sniffed, mime = ""): string {
  const [, stem = "", ending = ""] = /^(.*?)(?:\.([A-Za-z0-9]{1,10}))?$/s.exec(given) ?? [];
  const clean = stem.replace(/[^A-Za-z0-9._-]+/g, "_").replace(/^[._-]+|[._-]+$/g, "");
  const written = ending.toLowerCase();
  const refined = REFINES[sniffed.extension]?.includes(written) === true;
  const extension =
    sniffed.extension === "" || refined
      ? written || BY_MIME[mime.toLowerCase()] || "bin"
      : sniffed.extension;
  return `${clean.slice(0, MAX_STEM_LENGTH) || "file"}.${extension}`;
}
