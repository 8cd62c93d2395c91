/** Reads what stands beside the nodes: `_meta` (weights and named inputs, ours) and `models` (ComfyUI's). */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { ExposedInput, InputPlaceName, ModelHint } from "./graph.ts";
import { own, ownList, ownText } from "./graph-read.ts";

export interface WorkflowMeta {
  readonly requiredWeights: readonly string[];
  readonly ignoredWeights: readonly string[];
  readonly models: readonly ModelHint[];
  readonly exposed: readonly ExposedInput[];
}

/** Reads the `_meta` and `models` of a document. What is there but malformed is refused: a typo must not pass. */
export function readMeta(document: JsonObject): WorkflowMeta {
  const raw = own(document, "_meta");
  if (raw !== undefined && !isJsonObject(raw)) {
    throw malformed("_meta", "an object");
  }
  const meta = raw ?? {};
  return {
    requiredWeights: readNames(meta, "required_weights"),
    ignoredWeights: readNames(meta, "ignored_weights"),
    models: [...readModels(meta), ...readModels(document)],
    exposed: readExposed(own(meta, "inputs")),
  };
}

function malformed(place: string, wanted: string): InputError {
  return new InputError("WORKFLOW_INVALID", `The workflow's ${place} is not ${wanted}.`, {
    hint: `Correct or remove ${place}.`,
  });
}

function readNames(meta: JsonObject, key: string): string[] {
  const value = own(meta, key) ?? [];
  const names = Array.isArray(value) ? value : [value];
  const texts = names.filter((name) => typeof name === "string" && name.trim() !== "");
  if (texts.length !== names.length) {
    throw malformed(`_meta.${key}`, "a list of file names");
  }
  return [...new Set(texts.map(String))];
}

/** Model entries as ComfyUI writes them: `{name, url, directory, hash?, hash_type?}`; others are passed over. */
export function readModels(holder: JsonObject): ModelHint[] {
  return ownList(holder, "models").flatMap((entry) => {
    const name = isJsonObject(entry) ? ownText(entry, "name") : undefined;
    const url = isJsonObject(entry) ? ownText(entry, "url") : undefined;
    if (!isJsonObject(entry) || !name || !url) {
      return [];
    }
    const directory = ownText(entry, "directory");
    const hash = ownText(entry, "hash");
    const hashType = ownText(entry, "hash_type");
    return [
      {
        name,
        url,
        ...(directory === undefined ? {} : { directory }),
        ...(hash === undefined ? {} : { hash }),
        ...(hashType === undefined ? {} : { hashType }),
      },
    ];
  });
}

function readExposed(value: JsonValue | undefined): ExposedInput[] {
  if (value === undefined) {
    return [];
  }
  if (!Array.isArray(value)) {
    throw malformed("_meta.inputs", 'a list of {"name", "node", "input"}');
  }
  const names = new Set<string>();
  return value.map((entry, index) => {
    const row = isJsonObject(entry) ? entry : {};
    const name = ownText(row, "name");
    const node = nodeIdOf(own(row, "node"));
    const input = ownText(row, "input");
    if (!name || node === undefined || !input) {
      throw malformed(`_meta.inputs[${index}]`, 'an object with "name", "node" and "input"');
    }
    if (names.has(name)) {
      throw malformed(`_meta.inputs[${index}]`, `unique: the name "${name}" occurs twice`);
    }
    names.add(name);
    const description = ownText(row, "description");
    const also = readPlaces(row);
    return {
      name,
      node,
      input,
      ...(description === undefined ? {} : { description }),
      ...(also.length === 0 ? {} : { also }),
    };
  });
}

function readPlaces(row: JsonObject): InputPlaceName[] {
  return ownList(row, "also").flatMap((place) => {
    const node = isJsonObject(place) ? nodeIdOf(own(place, "node")) : undefined;
    const input = isJsonObject(place) ? ownText(place, "input") : undefined;
    return node === undefined || input === undefined ? [] : [{ node, input }];
  });
}

/** Node ids are numbers in UI files and text in prompts. */
export function nodeIdOf(value: JsonValue | undefined): string | undefined {
  const isId = typeof value === "string" || typeof value === "number" || typeof value === "bigint";
  return isId ? String(value) : undefined;
}

/** `_meta` of a document that wraps another: the outer one adds to the inner. */
export function mergeMeta(outer: WorkflowMeta, inner: WorkflowMeta): WorkflowMeta {
  return {
    requiredWeights: [...new Set([...inner.requiredWeights, ...outer.requiredWeights])],
    ignoredWeights: [...new Set([...inner.ignoredWeights, ...outer.ignoredWeights])],
    models: [...inner.models, ...outer.models],
    exposed: inner.exposed.length > 0 ? inner.exposed : outer.exposed,
  };
}
