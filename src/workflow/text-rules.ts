/** What the page does to texts before it sends them: comments and choices in prompts, `%…%` in file names. */
import type { JsonValue } from "../platform/json.ts";
import { MAX_PROMPT_LENGTH } from "./limits.ts";

/** Chance and time, so that tests can fix them. */
export interface TextRuleOptions {
  readonly random: () => number;
  readonly now: () => Date;
}

/** Removes comments and takes one of every `{a|b}`; a backslash keeps the next bracket or bar as it is. */
export function applyDynamicPrompt(text: string, random: () => number): string {
  if (text.length > MAX_PROMPT_LENGTH) {
    return text;
  }
  const bare = withoutComments(text);
  return bare.includes("{") || bare.includes("\\") ? new PromptReader(bare, random).read() : bare;
}

/** Drops block comments and `//` to the end of the line. By hand: a pattern would try every unclosed start to the end. */
function withoutComments(text: string): string {
  const parts: string[] = [];
  let from = 0;
  for (let at = text.indexOf("/"); at !== -1; at = text.indexOf("/", at)) {
    const next = text.charAt(at + 1);
    const close = next === "*" ? text.indexOf("*/", at + 2) : -1;
    if (next === "*" && close === -1) {
      // Nothing closes this one, so nothing closes any later one.
      parts.push(text.slice(from, at), dropLines(text.slice(at)));
      return parts.join("");
    }
    if (next === "*" || next === "/") {
      parts.push(text.slice(from, at));
      from = next === "*" ? close + 2 : endOfLine(text, at);
      at = from;
    } else {
      at += 1;
    }
  }
  return parts.join("") + text.slice(from);
}

function dropLines(text: string): string {
  return text.replace(/\/\/.*/g, "");
}

function endOfLine(text: string, at: number): number {
  const end = text.indexOf("\n", at);
  return end === -1 ? text.length : end;
}

/** What has a meaning in a prompt with choices; a backslash takes the meaning from the character behind it. */
const MARKS = /\\[{}|]|[{}|]/g;

/** Reads nested choices with a stack of its own: a prompt full of brackets can't exhaust ours. */
class PromptReader {
  readonly #text: string;
  readonly #random: () => number;
  /** For each open bracket the options read so far, the last of them still growing; the text outside comes first. */
  readonly #open: string[][] = [[""]];

  constructor(text: string, random: () => number) {
    this.#text = text;
    this.#random = random;
  }

  read(): string {
    let from = 0;
    for (const { 0: mark, index } of this.#text.matchAll(MARKS)) {
      this.#append(this.#text.slice(from, index));
      this.#take(mark);
      from = index + mark.length;
    }
    this.#append(this.#text.slice(from));
    // The page takes a bracket that is never closed as closed at the end.
    while (this.#open.length > 1) {
      this.#close();
    }
    return this.#open[0]?.[0] ?? "";
  }

  #take(mark: string): void {
    const isInside = this.#open.length > 1;
    if (mark === "{") {
      this.#open.push([""]);
    } else if (mark === "}" && isInside) {
      this.#close();
    } else if (mark === "|" && isInside) {
      this.#open.at(-1)?.push("");
    } else {
      this.#append(mark.slice(-1));
    }
  }

  #append(text: string): void {
    const options = this.#open.at(-1) ?? [];
    options.push((options.pop() ?? "") + text);
  }

  #close(): void {
    const options = this.#open.pop() ?? [];
    this.#append(options[Math.floor(this.#random() * options.length)] ?? "");
  }
}

/** Classes whose `filename_prefix` the page completes. */
export const COMPLETED_PREFIX_CLASSES: ReadonlySet<string> = new Set([
  "SaveImage",
  "SaveImageAdvanced",
  "SaveVideo",
  "SaveAnimatedWEBP",
  "SaveAnimatedPNG",
  "SaveWEBM",
  "SaveAudio",
  "SaveAudioMP3",
  "SaveAudioOpus",
  "SaveGLB",
  "SaveLatent",
  "CLIPSave",
  "VAESave",
  "ModelSave",
  "CheckpointSave",
  "LoraSave",
]);

/** What a file name may not hold: separators, wildcards, control characters. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNFIT_FOR_FILES = /[/?<>\\:*|"\u0000-\u001f\u007f]/g;

/** Looks up `Name.widget`: undefined when there is no such node or widget. */
export type WidgetLookup = (name: string, widget: string) => JsonValue | undefined;

/** Replaces `%date:…%` and `%Name.widget%`; the server's own `%width%` and unknown ones stay. */
export function completeFilename(text: string, lookUp: WidgetLookup, now: () => Date): string {
  return text.replace(/%([^%]+)%/g, (whole, inner: string) => {
    const parts = inner.split(".");
    if (parts.length !== 2) {
      return inner.startsWith("date:") ? formatDate(inner.slice(5), now()) : whole;
    }
    const value = lookUp(parts[0] ?? "", parts[1] ?? "");
    return value === undefined ? whole : asText(value).replace(UNFIT_FOR_FILES, "_");
  });
}

function asText(value: JsonValue): string {
  return value === null ? "" : String(value);
}

function formatDate(pattern: string, date: Date): string {
  return pattern.replace(/d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy/g, (token) => {
    const year = String(date.getFullYear());
    if (token.startsWith("y")) {
      return token === "yy" ? year.slice(2) : year;
    }
    const parts: Readonly<Record<string, number>> = {
      d: date.getDate(),
      M: date.getMonth() + 1,
      h: date.getHours(),
      m: date.getMinutes(),
      s: date.getSeconds(),
    };
    return String(parts[token.charAt(0)] ?? "").padStart(token.length, "0");
  });
}
