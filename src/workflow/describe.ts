/** Says in words what something is that was given as a workflow and is none. */
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { MAX_NAMED_IN_MESSAGE } from "./limits.ts";

/** `'a', 'b' and 3 more`: names for a message, bounded in number and in length. */
export function listNames(names: readonly string[], limit = MAX_NAMED_IN_MESSAGE): string {
  const shown = names.slice(0, limit).map((name) => `'${clip(name)}'`);
  const rest = names.length - shown.length;
  if (rest > 0) {
    return `${shown.join(", ")} and ${rest} more`;
  }
  const last = shown.pop() ?? "";
  return shown.length === 0 ? last : `${shown.join(", ")} and ${last}`;
}

/** Sentences for a message, bounded in number; control characters and length are tamed. */
export function listProblems(problems: readonly string[]): string {
  const shown = problems.slice(0, MAX_NAMED_IN_MESSAGE);
  const rest = problems.length - shown.length;
  return shown.join("; ") + (rest > 0 ? `; and ${rest} more` : "");
}

/** A name as it may stand in a message: one line, at most 80 characters. */
export function clip(text: string, length = 80): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: a name from a file may hold any character
  const clean = text.replace(/[\u0000-\u001f\u007f]+/g, " ");
  return clean.length > length ? `${clean.slice(0, length - 1)}…` : clean;
}

/** Texts that people paste or that servers send instead of a workflow; the first match wins. */
const TEXT_KINDS: readonly (readonly [RegExp, string])[] = [
  [/^<!doctype html|^<html|^<head|^<body/i, "an HTML page"],
  [/^<\?xml|^<svg/i, "an XML or SVG document"],
  [/^version https:\/\/git-lfs/i, "a Git LFS pointer, not the file itself"],
  [/^(https?|hf|s3):\/\/\S+$/i, "an address"],
  [/^(import |from \w+ import |#!|def |class )/, "a program"],
  [/^(---|[\w-]+:\s)/, "YAML or plain text"],
  [/^(?:\.{0,2}\/|[a-z]:\\)?[^\s{}]+\.(json|png|webp|mp4)$/i, "the name of a file"],
  [/^(input_file)$/, "the word input_file, which needs an uploaded file"],
];

/** What a text is that is no JSON. */
export function describeText(text: string): string {
  const start = text.slice(0, 400).trimStart();
  if (start === "") {
    return "empty text";
  }
  const kind = TEXT_KINDS.find(([pattern]) => pattern.test(start));
  return kind === undefined ? "text that is not JSON" : kind[1];
}

/** Documents of ComfyUI and its neighbours that are no workflow, told by keys that only they have. */
const OBJECT_KINDS: readonly (readonly [readonly string[], string])[] = [
  [["class_type", "inputs"], "a single node, not a graph of nodes"],
  [["openapi", "paths"], "an OpenAPI document"],
  [["prompt_id", "node_errors"], "ComfyUI's answer to a prompt"],
  [["queue_running", "queue_pending"], "ComfyUI's queue"],
  [["status", "outputs"], "an entry of ComfyUI's history, without its prompt"],
  [["urls", "status", "id"], "a prediction, not a workflow"],
  [["dependencies", "name"], "a package.json"],
  [["weights", "version"], "a weights manifest"],
  [["error"], "an error answer"],
];

/** What a JSON value is that is no workflow. */
export function describeValue(value: JsonValue): string {
  if (Array.isArray(value)) {
    return value.length === 0 ? "an empty list" : `a list of ${value.length} items`;
  }
  if (!isJsonObject(value)) {
    return value === null ? "null" : `a bare ${typeof value}`;
  }
  const keys = Object.keys(value);
  if (keys.length === 0) {
    return "an empty object";
  }
  const kind = OBJECT_KINDS.find(([needed]) => needed.every((key) => Object.hasOwn(value, key)));
  if (kind !== undefined) {
    return kind[1];
  }
  const first = value[keys[0] ?? ""];
  if (isJsonObject(first) && Object.hasOwn(first, "input") && Object.hasOwn(first, "output_node")) {
    return "ComfyUI's list of node definitions (/object_info)";
  }
  return `an object with the ${keys.length === 1 ? "key" : "keys"} ${listNames(keys)}`;
}

/** Magic numbers of files that hold no workflow. */
const BINARY_KINDS: readonly (readonly [string, string])[] = [
  ["504b0304", "a zip archive"],
  ["25504446", "a PDF"],
  ["47494638", "a GIF picture"],
  ["1f9d", "a compressed file"],
  ["fd377a585a00", "an xz file"],
  ["28b52ffd", "a zstd file"],
  ["425a68", "a bzip2 file"],
  ["7f454c46", "a program"],
  ["664c6143", "a FLAC file"],
  ["494433", "an MP3 file"],
  ["4f676753", "an Ogg file"],
];

/** What bytes are that are neither text nor a picture that may hold a workflow. */
export function describeBytes(bytes: Uint8Array): string {
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 12)).toString(
    "hex",
  );
  const kind = BINARY_KINDS.find(([magic]) => head.startsWith(magic));
  return kind === undefined ? "a binary file" : kind[1];
}
