/**
 * Where a source's bytes are asked for: hf://, s3://, file://, Civitai's and Hugging Face's pages turned into the
 * address of the file itself. Pure but for the signature of an s3 address.
 */
import { isAbsolute } from "node:path";
import { fileURLToPath } from "node:url";
import { WeightError } from "../platform/errors.ts";
import { hostMatches } from "../platform/guard.ts";
import { redactUrl } from "../platform/redact.ts";
import type { Credentials } from "./credentials.ts";
import { HUGGING_FACE } from "./credentials.ts";
import type { WeightSource } from "./plan-types.ts";

/** What s3:// addresses need; without keys they are asked for anonymously. */
export interface S3Settings {
  readonly accessKeyId?: string | undefined;
  readonly secretAccessKey?: string | undefined;
  readonly sessionToken?: string | undefined;
  readonly region?: string | undefined;
  /** `AWS_ENDPOINT_URL`: R2, MinIO, versitygw, … */
  readonly endpoint?: string | undefined;
}

export interface SourceSettings {
  readonly credentials: Credentials;
  readonly s3?: S3Settings | undefined;
  /** Host patterns that a request's own addresses may name; undefined lets every public host through. */
  readonly allowedHosts?: readonly string[] | undefined;
}

/** A source whose address can be asked. */
export interface Address {
  readonly source: WeightSource;
  readonly kind: "http" | "file";
  /** http(s) address, or the absolute path of a local file. */
  readonly url: string;
  /** From user info in the address; only ever for the address's own origin. */
  readonly authorization?: string;
  /** True when asking again gives a fresh signature. */
  readonly signed: boolean;
}

/** How long a signature of ours holds: longer than any file takes, renewed when it does not. */
const SIGNATURE_SECONDS = 6 * 3600;

const CIVITAI_HOSTS = new Set(["civitai.com", "www.civitai.com", "civitai.red", "www.civitai.red"]);

/** The address with credentials masked, as people may read it. */
export function sourceLabel(source: WeightSource): string {
  return redactUrl(source.url);
}

/**
 * The address to ask for a source.
 * @throws WeightError DOWNLOAD_REFUSED with the link to copy, for pages and schemes that hold no file.
 */
export function addressOf(source: WeightSource, settings: SourceSettings): Address {
  const { protocol } = parse(source.url);
  switch (protocol) {
    case "https:":
    case "http:":
      return webAddress(source, settings);
    case "hf:":
      return { source, kind: "http", url: hubAddress(source.url, settings), signed: false };
    case "s3:":
      refuseFromRequest(source, "s3");
      return s3Address(source, settings.s3 ?? {});
    case "file:":
      refuseFromRequest(source, "file");
      return { source, kind: "file", url: localPath(source.url), signed: false };
    default:
      throw refused(
        source.url,
        `has the scheme "${protocol.replace(":", "")}", which is not known`,
        "Use an https, hf://owner/repo/path, s3://bucket/key, file:/// or Civitai address.",
      );
  }
}

function parse(text: string): URL {
  if (isAbsolute(text)) {
    return new URL(`file://${encodeURI(text)}`);
  }
  try {
    return new URL(text);
  } catch (cause) {
    throw new WeightError("DOWNLOAD_REFUSED", `"${redactUrl(text)}" is not an address`, {
      cause,
      hint: "Write the whole address, starting with https://, hf:// or s3://.",
    });
  }
}

function refused(url: string, why: string, hint: string): WeightError {
  return new WeightError("DOWNLOAD_REFUSED", `${redactUrl(url)} ${why}`, { hint });
}

function refuseFromRequest(source: WeightSource, scheme: string): void {
  if (source.trust === "request") {
    throw refused(
      source.url,
      `is a ${scheme} address, which only the operator may name`,
      "Use an https, hf:// or Civitai address, or have the operator add it to WEIGHTS_MANIFEST.",
    );
  }
}

function localPath(url: string): string {
  return isAbsolute(url) ? url : fileURLToPath(url);
}

function webAddress(source: WeightSource, settings: SourceSettings): Address {
  const url = parse(source.url);
  const { allowedHosts } = settings;
  if (
    source.trust === "request" &&
    allowedHosts !== undefined &&
    !hostMatches(url.hostname.toLowerCase(), allowedHosts)
  ) {
    throw refused(
      source.url,
      `lies on ${url.hostname}, which is not among the hosts that weights may come from`,
      `Have the operator add ${url.hostname} to WEIGHTS_ALLOWED_HOSTS.`,
    );
  }
  const authorization = url.username === "" && url.password === "" ? undefined : basicOf(url);
  url.username = "";
  url.password = "";
  url.hash = "";
  const file = fileAddress(url, settings.credentials.hfEndpoint);
  return {
    source,
    kind: "http",
    url: file,
    signed: false,
    ...(authorization === undefined ? {} : { authorization }),
  };
}

function basicOf(url: URL): string {
  const pair = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
  return `Basic ${Buffer.from(pair).toString("base64")}`;
}

/** A page's address turned into that of the file it shows. */
function fileAddress(url: URL, hfEndpoint: string): string {
  const host = url.hostname.toLowerCase();
  const isHub = ["huggingface.co", "www.huggingface.co", "hf.co"].includes(host);
  if (isHub || url.origin === new URL(hfEndpoint).origin) {
    return hubFile(url, isHub ? hfEndpoint : url.origin);
  }
  if (CIVITAI_HOSTS.has(host)) {
    return civitaiFile(url);
  }
  if (host === "github.com") {
    return url.href.replace(/^(https:\/\/github\.com\/[^/]+\/[^/]+)\/blob\//, "$1/raw/");
  }
  return url.href;
}

const HUB_FILE = /^\/((?:(?:datasets|spaces)\/)?[^/]+\/[^/]+)\/(resolve|blob|raw)\/(.+)$/;
const HUB_PAGE =
  /^\/(?:(?:datasets|spaces)\/)?[^/]+\/[^/]+(?:\/(?:tree|discussions|commits)\b.*)?\/?$/;

function hubFile(url: URL, endpoint: string): string {
  const file = HUB_FILE.exec(url.pathname);
  if (file !== null) {
    return `${endpoint}/${file[1]}/resolve/${file[3]}`;
  }
  if (HUB_PAGE.test(url.pathname)) {
    throw refused(
      url.href,
      "is a page of Hugging Face, not a file",
      'Open "Files and versions" there and copy the link of the file (…/resolve/main/NAME), or write hf://owner/repo/NAME.',
    );
  }
  return url.href.replace(HUGGING_FACE, endpoint);
}

const HUB_SPEC = /^hf:\/\/((?:(?:datasets|spaces)\/)?[^/@]+\/[^/@]+)(?:@([^/]+))?\/(.+)$/;

function hubAddress(text: string, settings: SourceSettings): string {
  const spec = HUB_SPEC.exec(text);
  if (spec === null) {
    throw refused(
      text,
      "names no file of a Hugging Face repository",
      "Write hf://owner/repo/path/to/file, with @revision after the repository if it is not main.",
    );
  }
  const [, repository = "", revision = "main", path = ""] = spec;
  const escaped = path.split("/").map(encodeSegment).join("/");
  return `${settings.credentials.hfEndpoint}/${repository}/resolve/${encodeSegment(decode(revision))}/${escaped}`;
}

function encodeSegment(segment: string): string {
  return encodeURIComponent(decode(segment));
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function civitaiFile(url: URL): string {
  if (/^\/api\/download\/models\/\d+/.test(url.pathname)) {
    return url.href;
  }
  const page = /^\/(?:[a-z]{2}\/)?models\/\d+/.test(url.pathname);
  const version =
    url.searchParams.get("modelVersionId") ??
    /^\/(?:[a-z]{2}\/)?model-versions\/(\d+)/.exec(url.pathname)?.[1];
  if (version !== undefined && /^\d+$/.test(version)) {
    return `${url.origin}/api/download/models/${version}`;
  }
  if (page) {
    throw refused(
      url.href,
      "is a model's page on Civitai and does not say which version",
      "Choose the version on that page and copy the address then shown (it ends in ?modelVersionId=NUMBER), or the link of its download button.",
    );
  }
  return url.href;
}

function s3Address(source: WeightSource, settings: S3Settings): Address {
  const match = /^s3:\/\/([^/]+)\/(.+)$/.exec(source.url);
  if (match === null) {
    throw refused(source.url, "names no object", "Write s3://bucket/path/to/file.");
  }
  const [, bucket = "", key = ""] = match;
  if (settings.accessKeyId === undefined || settings.secretAccessKey === undefined) {
    return { source, kind: "http", url: anonymousS3(bucket, key, settings), signed: false };
  }
  const client = new Bun.S3Client({
    bucket,
    accessKeyId: settings.accessKeyId,
    secretAccessKey: settings.secretAccessKey,
    ...(settings.sessionToken === undefined ? {} : { sessionToken: settings.sessionToken }),
    ...(settings.region === undefined ? {} : { region: settings.region }),
    ...(settings.endpoint === undefined ? {} : { endpoint: settings.endpoint }),
  });
  const url = client.presign(key, { method: "GET", expiresIn: SIGNATURE_SECONDS });
  return { source, kind: "http", url, signed: true };
}

function anonymousS3(bucket: string, key: string, settings: S3Settings): string {
  const path = key.split("/").map(encodeSegment).join("/");
  if (settings.endpoint !== undefined) {
    return `${settings.endpoint.replace(/\/+$/, "")}/${bucket}/${path}`;
  }
  const region = settings.region === undefined ? "" : `.${settings.region}`;
  // A dot in the bucket's name breaks the certificate of the virtual-hosted form.
  return bucket.includes(".")
    ? `https://s3${region}.amazonaws.com/${bucket}/${path}`
    : `https://${bucket}.s3${region}.amazonaws.com/${path}`;
}

/** The same file of a Hugging Face repository at a fixed commit: `main` may move while a file is read. */
export function pinned(address: Address, commit: string | undefined): Address {
  if (commit === undefined || !/^[0-9a-f]{40}$/.test(commit)) {
    return address;
  }
  const url = new URL(address.url);
  url.pathname = url.pathname.replace(/\/resolve\/[^/]+\//, `/resolve/${commit}/`);
  return { ...address, url: url.href };
}

/** The file name that a source's address ends in, for people; never used as a path. */
export function sourceFileName(source: WeightSource): string {
  try {
    return decode(new URL(source.url).pathname.split("/").at(-1) ?? "");
  } catch {
    return source.url.split("/").at(-1) ?? "";
  }
}

/** True when the address ends like an archive: its body is unpacked, not installed as it is. */
export function looksLikeArchive(source: WeightSource): boolean {
  return /\.(tar|tar\.gz|tgz|tar\.zst)$/i.test(sourceFileName(source));
}
