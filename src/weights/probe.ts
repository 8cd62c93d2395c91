/**
 * The first small request to a source: is it there, may we, how long is it, which representation is it, can ranges
 * be had. Everything a download needs to know before its first byte, in one round trip and never by HEAD.
 */
import type { ErrorCode } from "../platform/errors.ts";
import { DownloadError } from "../platform/errors.ts";
import { fileAt } from "../platform/files.ts";
import { redactUrl } from "../platform/redact.ts";
import { retryAfterMs } from "../platform/retry.ts";
import type { Address } from "./sources.ts";
import { sourceLabel } from "./sources.ts";
import type { Road, RoadAnswer } from "./transport.ts";
import { networkError } from "./transport.ts";

/** One state of one file on one server; what all its ranges must agree with. */
export interface Representation {
  readonly address: Address;
  /** The address that served the probe: redirects are not walked again for every range. */
  readonly url: string;
  /** True when `url` came from a redirect or a signature, and may run out. */
  readonly derived: boolean;
  readonly expiresAtMs: number | undefined;
  readonly sizeBytes: number | undefined;
  /** Strong validator, quotes included. */
  readonly etag: string | undefined;
  /** A weak validator: no proof that two states are one, but proof that they are two. */
  readonly weakEtag: string | undefined;
  readonly lastModified: string | undefined;
  /** True when a range was asked for and given. */
  readonly ranges: boolean;
  /** True when the body ends with a mark of its own, so that a cut shows even without a length. */
  readonly endMarked: boolean;
  /** Stated by the server for these bytes (Hugging Face). */
  readonly sha256: string | undefined;
  /** The commit a moving revision stood at. */
  readonly commit: string | undefined;
}

export interface ProbeOptions {
  readonly signal: AbortSignal;
  /** Without a byte for this long, the probe has failed. */
  readonly stallTimeoutMs: number;
}

/** Enough to tell a page or a pointer from a weight. */
const PROBE_BYTES = 1024;
const SHA256 = /^[0-9a-f]{64}$/;

/**
 * @throws DownloadError AUTH_REQUIRED, AUTH_FORBIDDEN, GATED, NOT_FOUND, RATE_LIMITED, SERVER_ERROR, ENCODED_BODY,
 * FORMAT_INVALID (a page instead of a file), NETWORK, STALLED
 */
export async function probe(
  address: Address,
  road: Road,
  options: ProbeOptions,
): Promise<Representation> {
  if (address.kind === "file") {
    return probeFile(address);
  }
  // One controller for headers and body: a server that answers and then falls silent must not hold the plan.
  const controller = new AbortController();
  const cancel = (): void => controller.abort();
  options.signal.addEventListener("abort", cancel, { once: true });
  const timer = setTimeout(cancel, options.stallTimeoutMs);
  try {
    options.signal.throwIfAborted();
    const answer = await road.get({
      url: address.url,
      trust: address.source.trust,
      authorization: address.authorization,
      headers: { range: `bytes=0-${PROBE_BYTES - 1}` },
      signal: controller.signal,
    });
    return await read(address, answer, road);
  } catch (error) {
    if (controller.signal.aborted && !options.signal.aborted) {
      throw new DownloadError(
        "STALLED",
        `${sourceLabel(address.source)} did not answer within ${Math.round(options.stallTimeoutMs / 1000)} s`,
        { cause: error, retryable: true },
      );
    }
    throw networkError(error, address.url);
  } finally {
    clearTimeout(timer);
    options.signal.removeEventListener("abort", cancel);
  }
}

async function read(address: Address, answer: RoadAnswer, road: Road): Promise<Representation> {
  const { status } = answer;
  if (status === 416 && contentRange(answer.headers)?.sizeBytes === 0) {
    await answer.discard();
    throw new DownloadError("FORMAT_INVALID", `${sourceLabel(address.source)} is an empty file`);
  }
  if (status !== 200 && status !== 206) {
    const refusal = await refusalOf(answer, address, road);
    throw refusal;
  }
  requireIdentity(answer, address);
  const head = await readHead(answer);
  refuseImposter(head, answer.headers.get("content-type") ?? "", address, road);
  return represent(address, answer);
}

function represent(address: Address, answer: RoadAnswer): Representation {
  const range = answer.status === 206 ? contentRange(answer.headers) : undefined;
  const usable = range !== undefined && range.start === 0 && range.sizeBytes !== undefined;
  const length = Number(answer.headers.get("content-length") ?? Number.NaN);
  const whole = answer.status === 200 && Number.isSafeInteger(length) ? length : undefined;
  const linked = hubFacts(answer);
  return {
    address,
    url: answer.url,
    derived: address.signed || answer.hops.length > 0,
    expiresAtMs: expiryOf(answer.url),
    sizeBytes: range?.sizeBytes ?? whole ?? linked.sizeBytes,
    etag: strongEtag(answer.headers),
    weakEtag: weakEtag(answer.headers),
    lastModified: answer.headers.get("last-modified") ?? undefined,
    ranges: usable,
    endMarked: (answer.headers.get("transfer-encoding") ?? "").includes("chunked"),
    sha256: linked.sha256,
    commit: linked.commit,
  };
}

/** A weak validator says "about the same": no use for putting ranges together. */
export function strongEtag(headers: Headers): string | undefined {
  const etag = headers.get("etag");
  return etag === null || etag === "" || etag.startsWith("W/") ? undefined : etag;
}

export function weakEtag(headers: Headers): string | undefined {
  const etag = headers.get("etag");
  return etag?.startsWith("W/") === true ? etag : undefined;
}

export interface ContentRange {
  readonly start: number;
  readonly end: number;
  /** undefined for `*`. */
  readonly sizeBytes: number | undefined;
}

/** `bytes 0-99/1234`, or the size alone in `bytes *​/1234`. */
export function contentRange(headers: Headers): ContentRange | undefined {
  const text = headers.get("content-range") ?? "";
  const match = /^bytes (?:(\d+)-(\d+)|\*)\/(\d+|\*)$/i.exec(text.trim());
  if (match === null) {
    return undefined;
  }
  return {
    start: Number(match[1] ?? -1),
    end: Number(match[2] ?? -1),
    sizeBytes: match[3] === "*" ? undefined : Number(match[3]),
  };
}

/** Hugging Face states hash, size and commit on the redirect itself, nowhere later. */
function hubFacts(answer: RoadAnswer): {
  sha256: string | undefined;
  sizeBytes: number | undefined;
  commit: string | undefined;
} {
  const all = [...answer.hops.map((hop) => hop.headers), answer.headers];
  const find = (name: string): string | undefined =>
    all.map((headers) => headers.get(name)).find((value) => value !== null) ?? undefined;
  const etag = find("x-linked-etag")?.replaceAll('"', "").toLowerCase();
  const size = Number(find("x-linked-size") ?? Number.NaN);
  return {
    sha256: etag !== undefined && SHA256.test(etag) ? etag : undefined,
    sizeBytes: Number.isSafeInteger(size) ? size : undefined,
    commit: find("x-repo-commit"),
  };
}

/** When a presigned address stops working, by its own words. */
export function expiryOf(address: string): number | undefined {
  const query = new URL(address).searchParams;
  for (const prefix of ["X-Amz", "X-Goog"]) {
    const date = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(
      query.get(`${prefix}-Date`) ?? "",
    );
    const seconds = Number(query.get(`${prefix}-Expires`) ?? Number.NaN);
    if (date !== null && Number.isFinite(seconds)) {
      const [, year, month, day, hour, minute, second] = date.map(Number);
      const from = Date.UTC(year ?? 0, (month ?? 1) - 1, day, hour, minute, second);
      return from + seconds * 1000;
    }
  }
  const expires = Number(query.get("Expires") ?? Number.NaN);
  return Number.isFinite(expires) && expires > 1e9 ? expires * 1000 : undefined;
}

export function requireIdentity(answer: { headers: Headers }, address: Address): void {
  const encoding = (answer.headers.get("content-encoding") ?? "identity").toLowerCase().trim();
  if (encoding !== "identity" && encoding !== "") {
    throw new DownloadError(
      "ENCODED_BODY",
      `${sourceLabel(address.source)} comes ${encoding}-encoded although the plain bytes were asked for`,
      { hint: "Use another mirror, or have that server send the file as it is." },
    );
  }
}

async function readHead(answer: RoadAnswer): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of answer.body) {
    chunks.push(chunk);
    length += chunk.byteLength;
    if (length >= PROBE_BYTES) {
      break;
    }
  }
  if (answer.status === 200) {
    await answer.discard();
  }
  return Buffer.concat(chunks).subarray(0, PROBE_BYTES);
}

/** What a server sends, with status 200, instead of the file. */
export type Imposter = "a web page" | "a Git LFS pointer" | "a JSON message" | "an XML message";

/** Names what `head` really is, when it certainly is no weight. */
export function imposterOf(head: Uint8Array): Imposter | undefined {
  const text = Buffer.from(head.buffer, head.byteOffset, Math.min(head.byteLength, 512))
    .toString("latin1")
    .replace(/^\u00ef\u00bb\u00bf/, "")
    .trimStart();
  if (text.startsWith("version https://git-lfs")) {
    return "a Git LFS pointer";
  }
  if (/^(<!doctype html|<html|<head|<body|<script)/i.test(text)) {
    return "a web page";
  }
  if (/^<\?xml|^<Error>/.test(text)) {
    return "an XML message";
  }
  return /^\{\s*"(error|message|detail|code|statusCode|success)"/i.test(text)
    ? "a JSON message"
    : undefined;
}

function refuseImposter(head: Buffer, contentType: string, address: Address, road: Road): void {
  const imposter =
    imposterOf(head) ?? (/^text\/html/i.test(contentType) ? "a web page" : undefined);
  if (imposter === undefined || wantsText(address)) {
    return;
  }
  const login = imposter === "a web page" || imposter === "a JSON message";
  throw new DownloadError(
    "FORMAT_INVALID",
    `${sourceLabel(address.source)} answers with ${imposter}, not with the file`,
    {
      hint: login ? signInHint(address, road) : "Copy the address of the download itself.",
      details: { says: redactUrl(head.toString("utf8", 0, 160).replace(/\s+/g, " ").trim()) },
    },
  );
}

/** Small companions of weights (tokenizer.json, config.yaml) are text by right. */
function wantsText(address: Address): boolean {
  return /\.(json|ya?ml|txt|md|csv|xml|html?|py|model)$/i.test(new URL(address.url).pathname);
}

function signInHint(address: Address, road: Road): string {
  const variable = tokenVariable(address, road);
  return variable === undefined
    ? "Copy the address of the download itself; a browser shows what this one is."
    : `It may want a sign-in: set ${variable}. Otherwise copy the address of the download itself.`;
}

/** The setting that would give this host a token; the input of the same purpose for a request's own source. */
function tokenVariable(address: Address, road: Road): string | undefined {
  const isRequest = address.source.trust === "request";
  switch (road.credentials.providerOf(address.url)) {
    case "hugging_face":
      return isRequest ? "the input hf_api_token" : "HF_TOKEN";
    case "civitai":
      return isRequest ? "the input civitai_api_token" : "CIVITAI_API_TOKEN";
    case "other":
      return undefined;
  }
}

/** Statuses with which signed storage says that the signature has run out. */
const EXPIRED_STATUSES = new Set([400, 401, 403, 410]);

/** The error for an answer that brings no bytes. Reads (a little of) the body for the server's own words. */
export async function refusalOf(
  answer: RoadAnswer,
  address: Address,
  road: Road,
  derived = false,
): Promise<DownloadError> {
  const { status, headers } = answer;
  await answer.discard();
  const label = sourceLabel(address.source);
  const host = new URL(answer.url).host;
  const waitMs = retryAfterMs(headers.get("retry-after")) ?? rateLimitMs(headers);
  const details = { url: label, host, status, ...(waitMs === undefined ? {} : { waitMs }) };
  if (derived && EXPIRED_STATUSES.has(status)) {
    return new DownloadError("URL_EXPIRED", `The signed address of ${label} has run out`, {
      details,
      retryable: true,
    });
  }
  const [code, what, hint] =
    hubVerdict(headers.get("x-error-code") ?? "") ?? verdict(status, waitMs !== undefined);
  return new DownloadError(code, `${label} ${what} (HTTP ${status} from ${host})`, {
    hint: hint ?? accessHint(code, address, road),
    details,
    retryable: code === "RATE_LIMITED" || status === 408 || status === 416 || status >= 500,
  });
}

/** Hugging Face hides private repositories behind 401, and says in a header what it means. */
function hubVerdict(errorCode: string): [ErrorCode, string, string | undefined] | undefined {
  if (/gated/i.test(errorCode)) {
    return ["GATED", "is behind a licence that was not accepted", undefined];
  }
  if (/^(Repo|Entry|Revision)NotFound$/.test(errorCode)) {
    const what = errorCode.replace("NotFound", "").toLowerCase().replace("entry", "file");
    return [
      "NOT_FOUND",
      `names no ${what} that this token, or nobody, may see`,
      "Check the spelling; if the repository is private, set HF_TOKEN to a token that may read it.",
    ];
  }
  return undefined;
}

function verdict(status: number, toldToWait: boolean): [ErrorCode, string, string | undefined] {
  if (status === 429 || (status === 503 && toldToWait)) {
    return ["RATE_LIMITED", "asks to wait", "Try again later, or add a mirror to the manifest."];
  }
  const table: Readonly<Record<number, [ErrorCode, string, string | undefined]>> = {
    401: ["AUTH_REQUIRED", "wants a sign-in", undefined],
    403: ["AUTH_FORBIDDEN", "may not be read with what we have", undefined],
    404: [
      "NOT_FOUND",
      "is not there",
      "Check the address; the file may have been moved or renamed.",
    ],
    407: [
      "NETWORK",
      "is behind a proxy that wants a sign-in",
      "Put user and password into HTTPS_PROXY.",
    ],
    410: ["NOT_FOUND", "is gone", "Use another address for it."],
    416: ["RANGE_INVALID", "refuses a range it should have", undefined],
    451: ["NOT_FOUND", "is blocked for legal reasons", "Use another address for it."],
  };
  return (
    table[status] ?? [
      "SERVER_ERROR",
      status >= 500 ? "has a server fault" : "was refused",
      undefined,
    ]
  );
}

function accessHint(code: ErrorCode, address: Address, road: Road): string | undefined {
  const variable = tokenVariable(address, road);
  if (code === "GATED") {
    return `Accept the licence at ${hubPage(address.url)}, then set ${variable ?? "HF_TOKEN"} to a token of that account.`;
  }
  if (code !== "AUTH_REQUIRED" && code !== "AUTH_FORBIDDEN") {
    return undefined;
  }
  if (address.source.url.startsWith("s3://")) {
    return "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and what that key may read.";
  }
  return variable === undefined
    ? "Use an address that is open to all, or a signed one."
    : `Set ${variable} to a token that may read it.`;
}

function hubPage(url: string): string {
  const { origin, pathname } = new URL(url);
  return `${origin}${pathname.replace(/\/(resolve|blob|raw)\/.*$/, "")}`;
}

/** Hugging Face: `RateLimit: "resolvers";r=0;t=55` = no request left, 55 seconds to the next window. */
function rateLimitMs(headers: Headers): number | undefined {
  const text = headers.get("ratelimit") ?? "";
  const seconds = /(?:^|;)\s*t=(\d+)/.exec(text)?.[1];
  return seconds === undefined || !/(?:^|;)\s*r=0\b/.test(text) ? undefined : retryAfterMs(seconds);
}

function probeFile(address: Address): Representation {
  const stats = fileAt(address.url);
  if (stats === undefined || !stats.isFile()) {
    throw new DownloadError("NOT_FOUND", `There is no file at ${address.url}`, {
      hint: "Check the path; a relative one is not accepted.",
    });
  }
  return {
    address,
    url: address.url,
    derived: false,
    expiresAtMs: undefined,
    sizeBytes: stats.size,
    etag: undefined,
    weakEtag: undefined,
    lastModified: new Date(stats.mtimeMs).toUTCString(),
    ranges: false,
    endMarked: true,
    sha256: undefined,
    commit: undefined,
  };
}
