/** What the page does to texts before it sends them: comments and choices in prompts, `%…%` in file names. */
import type { JsonValue } from "../platform/json.ts";

/** Chance and time, so that tests can fix them. */
export interface TextRuleOptions {
  readonly random: () => number;
  readonly now: () => Date;
}

/** Removes comments and takes one of every `{a|b}`; a backslash keeps the next bracket or bar as it is. */
export function applyDynamicPrompt(text: string, random: () => number): string {
  const bare = text.replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, "");
  return bare.includes("{") || bare.includes("\\") ? new PromptReader(bare, random).read() : bare;
}

/** Reads nested choices with a stack of its own: a prompt of brackets can't exhaust ours. */
class PromptReader {
  readonly #text: string;
  readonly #random: () => number;
  #at = 0;

  constructor(text: string, random: () => number) {
    this.#text = text;
    this.#random = random;
  }

  read(): string {
    // Each open bracket has the options read so far, the last of them still growing.
    const open: string[][] = [[""]];
    for (; this.#at < this.#text.length; this.#at += 1) {
      const character = this.#text.charAt(this.#at);
      if (character === "{") {
        open.push([""]);
      } else if (character === "}" && open.length > 1) {
        this.#append(open, this.#choose(open.pop() ?? []));
      } else if (character === "|" && open.length > 1) {
        open.at(-1)?.push("");
      } else {
        this.#append(open, this.#plain(character));
      }
    }
    // What was never closed stands as it is.
    while (open.length > 1) {
      const rest = open.pop() ?? [];
      this.#append(open, `{${rest.join("|")}`);
    }
    return open[0]?.[0] ?? "";
  }

  /** A character as it is, or the bracket behind a backslash. */
  #plain(character: string): string {
    const next = this.#text.charAt(this.#at + 1);
    if (character === "\\" && (next === "{" || next === "}" || next === "|")) {
      this.#at += 1;
      return next;
    }
    return character;
  }

  #append(open: string[][], text: string): void {
    const options = open.at(-1) ?? [];
    options.push((options.pop() ?? "") + text);
  }

  #choose(options: readonly string[]): string {
    return options[Math.floor(this.#random() * options.length)] ?? "";
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
