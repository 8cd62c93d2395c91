/** Text of unknown origin → JSON, in bounded depth and time, with an error that says where the text goes wrong. */
import { InputError } from "../platform/errors.ts";
import type { JsonValue } from "../platform/json.ts";
import { parseJson } from "../platform/json.ts";
import { formatSize } from "../platform/size.ts";
import { describeText } from "./describe.ts";
import { MAX_JSON_DEPTH, MAX_JSON_OBJECTS, MAX_TEXT_BYTES } from "./limits.ts";

/** What a workflow may be given as; the hint of every refusal. */
export const GIVE_A_WORKFLOW =
  "Give a workflow as JSON (in ComfyUI: Workflow → Export, or Export (API)), or a PNG, WebP or MP4 that ComfyUI saved.";

/** Parses the text of a workflow. Throws only `InputError`. */
export function readJsonText(text: string): JsonValue {
  if (text.length > MAX_TEXT_BYTES) {
    throw tooLarge(text.length);
  }
  const body = text.charCodeAt(0) === 0xfeff ? text.slice(1) : text;
  const shape = scan(body);
  if (shape.deepest > MAX_JSON_DEPTH && looksLikeJson(body)) {
    throw tooDeep();
  }
  try {
    return parseJson(body);
  } catch (cause) {
    return readPythonNumbers(body) ?? refuse(body, shape, cause);
  }
}

export function tooLarge(bytes: number): InputError {
  return new InputError(
    "WORKFLOW_INVALID",
    `The workflow has ${formatSize(bytes)}; at most ${formatSize(MAX_TEXT_BYTES)} are read.`,
    { hint: "Give pictures and videos as inputs instead of pasting them into the workflow." },
  );
}

function tooDeep(): InputError {
  return new InputError(
    "WORKFLOW_INVALID",
    `The workflow is nested more than ${MAX_JSON_DEPTH} levels deep.`,
    { hint: "Check how the file was made: no ComfyUI workflow nests like this." },
  );
}

/** Refuses an object that was not read from text and nests too deep, contains itself, or never ends. */
export function checkDepth(value: unknown): void {
  let level: unknown[] = [value];
  let seen = 0;
  for (let depth = 0; level.length > 0; depth += 1) {
    seen += level.length;
    if (depth > MAX_JSON_DEPTH || seen > MAX_JSON_OBJECTS) {
      throw tooDeep();
    }
    level = level.flatMap((item) =>
      isContainer(item) ? Object.values(item).filter(isContainer) : [],
    );
  }
}

function isContainer(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}

/** Depth of nesting, and what is still open at the end. */
interface TextShape {
  readonly deepest: number;
  readonly open: number;
  readonly inString: boolean;
}

/** One pass over the text, jumping over strings: no recursion, so no depth can hurt. */
function scan(text: string): TextShape {
  let depth = 0;
  let deepest = 0;
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    if (code === 0x22) {
      at = endOfString(text, at);
      if (at === text.length) {
        return { deepest, open: depth, inString: true };
      }
    } else if (code === 0x7b || code === 0x5b) {
      depth += 1;
      deepest = Math.max(deepest, depth);
    } else if (code === 0x7d || code === 0x5d) {
      depth -= 1;
    }
  }
  return { deepest, open: depth, inString: false };
}

/** Position of the quote that closes the string opened at `start`; the text's length if none does. */
function endOfString(text: string, start: number): number {
  let end = text.indexOf('"', start + 1);
  while (end !== -1) {
    let slashes = 0;
    while (text.charCodeAt(end - 1 - slashes) === 0x5c) {
      slashes += 1;
    }
    if (slashes % 2 === 0) {
      return end;
    }
    end = text.indexOf('"', end + 1);
  }
  return text.length;
}

function looksLikeJson(text: string): boolean {
  return /^\s*[[{"]/.test(text);
}

/** Python writes `NaN` and `Infinity`, which are no JSON; ComfyUI's page reads them as null, and so do we. */
function readPythonNumbers(text: string): JsonValue | undefined {
  if (!/\b(NaN|Infinity)\b/.test(text)) {
    return undefined;
  }
  const parts: string[] = [];
  let from = 0;
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    if (code === 0x22) {
      at = endOfString(text, at);
    } else if (code === 0x4e || code === 0x49 || code === 0x2d) {
      const word = /^(-?Infinity|NaN)/.exec(text.slice(at, at + 9))?.[0];
      if (word !== undefined) {
        parts.push(text.slice(from, at), "null");
        from = at + word.length;
        at = from - 1;
      }
    }
  }
  try {
    return parseJson(parts.join("") + text.slice(from));
  } catch {
    return undefined;
  }
}

function refuse(text: string, shape: TextShape, cause: unknown): never {
  if (looksLikeJson(text) && (shape.open > 0 || shape.inString)) {
    throw new InputError(
      "WORKFLOW_UNREADABLE",
      `The workflow's JSON is cut off at ${placeOf(text, text.length)}: ${whatIsOpen(shape)}.`,
      { hint: "Copy or download the whole file again.", cause },
    );
  }
  if (looksLikeJson(text)) {
    const reason = cause instanceof Error ? cause.message.replace(/^JSON Parse error: /, "") : "";
    throw new InputError(
      "WORKFLOW_UNREADABLE",
      `The workflow is not valid JSON: ${reason}${nearFault(text)}.`,
      { hint: "Export it from ComfyUI again, or check it with a JSON linter.", cause },
    );
  }
  throw new InputError("WORKFLOW_UNREADABLE", `The workflow looks like ${describeText(text)}.`, {
    hint: GIVE_A_WORKFLOW,
    cause,
  });
}

function whatIsOpen(shape: TextShape): string {
  const brackets = shape.open === 1 ? "1 bracket is" : `${shape.open} brackets are`;
  return shape.inString ? `a text and ${brackets} still open` : `${brackets} still open`;
}

function placeOf(text: string, at: number): string {
  const before = text.slice(0, at);
  const line = before.split("\n").length;
  return `line ${line}, column ${at - before.lastIndexOf("\n")}`;
}

/** Mistakes of people who edit JSON by hand, found so that the message can point at them. */
const COMMON_FAULTS: readonly (readonly [RegExp, string])[] = [
  [/,\s*[}\]]/, "a comma before a closing bracket"],
  [/[{,]\s*'[^'\n]*'\s*:/, "single quotes where JSON wants double ones"],
  [/[}\]"][^\S\n]*\n\s*["{[]/, "a comma missing between two lines"],
  [/(^|\s)\/\/[^\n]*/m, "a comment, which JSON doesn't have"],
  [/:\s*(True|False|None)\b/, "a Python value (True, False, None)"],
];

function nearFault(text: string): string {
  // Strings are blanked first, so that a prompt can't be taken for a mistake.
  const bare = blankStrings(text);
  for (const [pattern, what] of COMMON_FAULTS) {
    const match = pattern.exec(bare);
    if (match !== null) {
      return `; ${what} near ${placeOf(text, match.index)}`;
    }
  }
  return "";
}

function blankStrings(text: string): string {
  const parts: string[] = [];
  let from = 0;
  for (let at = text.indexOf('"'); at !== -1; at = text.indexOf('"', from)) {
    const end = endOfString(text, at);
    parts.push(text.slice(from, at + 1), " ".repeat(Math.max(0, end - at - 1)), '"');
    from = end + 1;
  }
  return parts.join("") + text.slice(from);
}
