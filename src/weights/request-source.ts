/**
 * What a request may bring along (DESIGN §4, Trust): addresses of https, Hugging Face and Civitai, of safetensors and
 * GGUF files, into registered model folders, under a name-space of their own, so that no request can plant a file
 * under a name that another one knows.
 */
import { createHash } from "node:crypto";
import { extensionOf } from "../models/categories.ts";
import type { ModelFolders } from "../models/folders.ts";
import { hostMatches } from "../platform/guard.ts";
import { redactUrl } from "../platform/redact.ts";

/** Below each category's folder, where files that a request named by address go. */
export const URL_FOLDER = "_url";

/** Formats that can't run code when they are loaded. */
const SAFE_ENDINGS: ReadonlySet<string> = new Set([".safetensors", ".sft", ".gguf"]);
/** Folders that hold code or settings: no request puts anything there. */
const CLOSED_CATEGORIES: ReadonlySet<string> = new Set(["custom_nodes", "configs", "datasets"]);
const CIVITAI = /^(www\.)?civitai\.(com|red)$/i;
/** Civitai's download addresses name a version, not a file. */
const CIVITAI_FILE = /^\/api\/download\/models\/(\d+)/;
const MAX_NAME_CHARACTERS = 120;

/** Where a file that was fetched from this address lies, relative to its category's folder. */
export function addressName(url: string, name: string): string {
  return `${URL_FOLDER}/${createHash("sha256").update(url).digest("hex")}/${name}`;
}

function parse(url: string): URL | undefined {
  try {
    return new URL(url);
  } catch {
    return undefined;
  }
}

/** A file name of our own making for what an address holds; undefined when it names no file of a safe format. */
export function nameOfAddress(url: string): string | undefined {
  const parsed = parse(url);
  if (parsed === undefined) {
    return undefined;
  }
  const version =
    CIVITAI_FILE.exec(parsed.pathname)?.[1] ?? parsed.searchParams.get("modelVersionId");
  if (CIVITAI.test(parsed.hostname) && version !== null && version !== undefined) {
    return `civitai-${version.replace(/\D/g, "")}.safetensors`;
  }
  const last = parsed.pathname.split("/").at(-1) ?? "";
  const decoded = last.replace(/%[0-9a-f]{2}/gi, (code) => {
    const character = String.fromCharCode(Number.parseInt(code.slice(1), 16));
    return /[A-Za-z0-9 ._()+-]/.test(character) ? character : "_";
  });
  const clean = decoded.replace(/[^A-Za-z0-9 ._()+-]/g, "_").replace(/^\.+/, "");
  return SAFE_ENDINGS.has(extensionOf(clean)) ? clean.slice(-MAX_NAME_CHARACTERS) : undefined;
}

export interface RequestSource {
  readonly url: string;
  readonly category: string | undefined;
  /** Name the file gets; derived from the address unless the workflow names it. */
  readonly name?: string | undefined;
}

export interface RequestLimits {
  readonly folders: ModelFolders;
  /** Host patterns; undefined allows every public host. */
  readonly allowedHosts?: readonly string[] | undefined;
}

/** Why a source that a request gives is refused, as "… because it …"; undefined when it is allowed. */
export function refusalOf(source: RequestSource, limits: RequestLimits): string | undefined {
  const url = parse(source.url);
  const shown = redactUrl(source.url);
  if (url === undefined || !["https:", "hf:"].includes(url.protocol)) {
    return `${shown} is neither an https:// nor an hf:// address`;
  }
  const host = url.protocol === "hf:" ? "huggingface.co" : url.hostname.toLowerCase();
  if (limits.allowedHosts !== undefined && !hostMatches(host, limits.allowedHosts)) {
    return `${host} is not among the hosts that weights may come from (WEIGHTS_ALLOWED_HOSTS)`;
  }
  const name = nameOfAddress(source.url);
  if (name === undefined || !SAFE_ENDINGS.has(extensionOf(source.name ?? name))) {
    return `${shown} is no .safetensors or .gguf file; other formats can run code when loaded`;
  }
  const { category } = source;
  if (category === undefined || CLOSED_CATEGORIES.has(category)) {
    return category === undefined
      ? "nothing tells which model folder it belongs in"
      : `a request may put nothing into ${category}`;
  }
  return limits.folders.isRegistered(category)
    ? undefined
    : `${category} is no registered model folder`;
}
