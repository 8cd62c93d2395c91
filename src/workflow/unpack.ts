/** What the user gave (text, bytes, a picture, gzip) → the JSON documents in it. */
import { InputError } from "../platform/errors.ts";
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject, stringifyJson } from "../platform/json.ts";
import { describeBytes } from "./describe.ts";
import { GIVE_A_WORKFLOW, readJsonText, tooLarge } from "./json-text.ts";
import { MAX_TEXT_BYTES } from "./limits.ts";
import type { EmbeddedText, MediaTexts } from "./media-text.ts";
import { gunzip, readMediaTexts } from "./media-text.ts";

export interface Unpacked {
  /** The document to read, JSON already. */
  readonly document: JsonValue;
  /** The UI document that came beside a prompt in the same picture. */
  readonly beside?: JsonValue;
  readonly notes: readonly string[];
}

const MEDIA_NAMES: Readonly<Record<MediaTexts["kind"], string>> = {
  png: "PNG picture",
  webp: "WebP picture",
  jpeg: "JPEG picture",
  mp4: "MP4 video",
  webm: "WebM video",
};

/** Reads text: JSON, or a data URL of anything that {@link unpackBytes} takes. */
export function unpackText(text: string): Unpacked {
  const trimmed = text.slice(0, 64).trimStart();
  if (trimmed.startsWith("data:")) {
    return unpackBytes(decodeDataUrl(text.trimStart()));
  }
  return { document: readJsonText(text), notes: [] };
}

/** Reads bytes: JSON as UTF-8 (or UTF-16 with a mark), gzip of it, or a picture or video of ComfyUI's. */
export function unpackBytes(bytes: Uint8Array): Unpacked {
  const plain = unzip(bytes);
  const media = readMediaTexts(plain);
  if (media !== undefined) {
    return unpackMedia(media);
  }
  if (plain.byteLength > MAX_TEXT_BYTES) {
    throw tooLarge(plain.byteLength);
  }
  return { document: readJsonText(decodeText(plain)), notes: [] };
}

function unzip(bytes: Uint8Array): Uint8Array {
  try {
    return gunzip(bytes) ?? bytes;
  } catch (cause) {
    const tooBig =
      cause instanceof Error && "code" in cause && cause.code === "ERR_BUFFER_TOO_LARGE";
    if (tooBig || cause instanceof RangeError) {
      throw tooLarge(MAX_TEXT_BYTES + 1);
    }
    throw new InputError(
      "WORKFLOW_UNREADABLE",
      "The workflow is a gzip file that is damaged or cut off.",
      { hint: "Copy or download the whole file again.", cause },
    );
  }
}

/** Marks at the start of text in UTF-16, which Windows editors write. */
const UTF16_MARKS: readonly (readonly [number, number, "utf-16le" | "utf-16be"])[] = [
  [0xff, 0xfe, "utf-16le"],
  [0xfe, 0xff, "utf-16be"],
];

function decodeText(bytes: Uint8Array): string {
  const mark = UTF16_MARKS.find(([first, second]) => bytes[0] === first && bytes[1] === second);
  if (mark === undefined && bytes.subarray(0, 1024).includes(0)) {
    throw notText(bytes);
  }
  try {
    return new TextDecoder(mark?.[2] ?? "utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw notText(bytes, cause);
  }
}

function notText(bytes: Uint8Array, cause?: unknown): InputError {
  return new InputError("WORKFLOW_UNREADABLE", `The workflow looks like ${describeBytes(bytes)}.`, {
    hint: GIVE_A_WORKFLOW,
    cause,
  });
}

function decodeDataUrl(url: string): Uint8Array {
  const comma = url.indexOf(",");
  const header = comma === -1 ? "" : url.slice(5, comma);
  const body = comma === -1 ? "" : url.slice(comma + 1);
  try {
    const isBase64 = /;\s*base64\s*$/i.test(header);
    const bytes = isBase64
      ? Buffer.from(decodeURIComponent(body), "base64")
      : Buffer.from(decodeURIComponent(body), "utf8");
    if (bytes.length > 0) {
      return bytes;
    }
  } catch (cause) {
    throw new InputError(
      "WORKFLOW_UNREADABLE",
      "The workflow is a data URL that can't be decoded.",
      {
        hint: "Encode it as data:application/json;base64,….",
        cause,
      },
    );
  }
  throw new InputError("WORKFLOW_UNREADABLE", "The workflow is a data URL without content.", {
    hint: "Encode it as data:application/json;base64,….",
  });
}

function unpackMedia(media: MediaTexts): Unpacked {
  const name = MEDIA_NAMES[media.kind];
  const notes: string[] = [];
  const texts = [...media.texts, ...media.texts.flatMap(insideComment)];
  const prompt = lastOf(texts, "prompt", name, notes);
  const workflow = lastOf(texts, "workflow", name, notes);
  if (prompt === undefined && workflow === undefined) {
    throw noWorkflowInside(media, name, texts);
  }
  const readPrompt = prompt === undefined ? undefined : tryRead(prompt);
  const readWorkflow = workflow === undefined ? undefined : tryRead(workflow);
  if (readPrompt !== undefined && readWorkflow !== undefined) {
    return { document: readPrompt, beside: readWorkflow, notes };
  }
  return { document: readPrompt ?? readWorkflow ?? readJsonText(prompt ?? workflow ?? ""), notes };
}

/** Video tools keep both documents in one comment: `{"prompt": …, "workflow": …}`. */
function insideComment({ key, text }: EmbeddedText): EmbeddedText[] {
  if (!/comment|cmt|description/.test(key) || !text.trimStart().startsWith("{")) {
    return [];
  }
  const document = tryRead(text);
  return Object.entries(isJsonObject(document) ? document : {}).map(([name, value]) => ({
    key: name.toLowerCase(),
    text: typeof value === "string" ? value : stringifyJson(value),
  }));
}

/** A prompt that can't be read is not the end: the workflow beside it may be whole. */
function tryRead(text: string): JsonValue | undefined {
  try {
    return readJsonText(text);
  } catch {
    return undefined;
  }
}

/** The last text of that key, as ComfyUI's page takes it; a note where there are several different ones. */
function lastOf(
  texts: readonly EmbeddedText[],
  key: string,
  name: string,
  notes: string[],
): string | undefined {
  const found = texts.filter((entry) => entry.key === key).map((entry) => entry.text);
  const distinct = new Set(found).size;
  if (distinct > 1) {
    notes.push(`The ${name} holds ${distinct} different texts "${key}"; the last one is used.`);
  }
  return found.at(-1);
}

function noWorkflowInside(
  media: MediaTexts,
  name: string,
  texts: readonly EmbeddedText[],
): InputError {
  if (texts.some((entry) => entry.key === "parameters")) {
    return new InputError(
      "WORKFLOW_INVALID",
      `The ${name} holds the parameters of another program, but no ComfyUI workflow.`,
      { hint: GIVE_A_WORKFLOW },
    );
  }
  return media.truncated
    ? new InputError(
        "WORKFLOW_UNREADABLE",
        `The ${name} is cut off before any workflow was found in it.`,
        { hint: "Copy or download the whole file again." },
      )
    : new InputError("WORKFLOW_INVALID", `The ${name} holds no ComfyUI workflow.`, {
        hint: "Use the file that ComfyUI saved: editors, messengers and many sites strip the workflow from it.",
      });
}
