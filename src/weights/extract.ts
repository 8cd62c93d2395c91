/**
 * Which weights does a workflow need? Every file that the nodes an output depends on name, or fetch without naming.
 * Pure: neither disk nor network is touched. A link is never a name, free text never a file.
 */
import {
  canonicalCategory,
  categoryRow,
  fileCounts,
  looksLikeWeight,
} from "../models/categories.ts";
import { isNothing, specialValue } from "../models/special.ts";
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { NodeDefinitions } from "../workflow/definitions.ts";
import type { GraphNode, ModelHint, Workflow } from "../workflow/graph.ts";
import { linkOf } from "../workflow/graph.ts";
import { nodeOf } from "../workflow/graph-read.ts";
import {
  hintedCategory,
  isNoModelInput,
  isSwitchedOff,
  isTextInput,
  loaderCategories,
  loraTextInputs,
} from "../workflow/loaders.ts";
import { reachableNodes } from "../workflow/walk.ts";
import { baseModelOf } from "./base-model.ts";
import type { ImpliedNeed } from "./implied.ts";
import { ImpliedTable } from "./implied.ts";
import type { RefReason, WeightHint, WeightRef } from "./refs.ts";

export interface ExtractOptions {
  /** The running engine's classes; ComfyUI's own from the committed table otherwise. */
  readonly definitions?: NodeDefinitions | undefined;
  readonly implied?: ImpliedTable | undefined;
  /** Categories that hold all these choices of an input (`ModelFolders.categoriesHolding`), for classes of no table. */
  readonly categoriesHolding?: ((choices: readonly string[]) => readonly string[]) | undefined;
}

/** A node on the way through the extraction. */
interface Place {
  readonly nodeId: string;
  readonly node: GraphNode;
  readonly workflow: Workflow;
  readonly definitions: NodeDefinitions;
  readonly categoriesHolding: ExtractOptions["categoriesHolding"];
}

const URL_VALUE = /^(https?|hf|s3|civitai):\/\/\S+$/i;
/** `embedding:NAME`, wider than ComfyUI's own rule on purpose (comfyui.md §6.2). */
const EMBEDDING = /(?:^|[\s([,])embedding:([^\s,:()[\]<>]+)/g;
const LORA_TAG = /<lora:([^:>]+)/gi;
const EMBEDDING_ENDINGS = "(\\.(safetensors|pt|bin))?";
const LORA_ENDINGS = "(\\.(safetensors|pt|ckpt|bin|pth))?";
/** Categories of packs in which whole folders are models. */
const FOLDER_CATEGORIES: ReadonlySet<string> = new Set(["LLM"]);
/** Nodes that write files: what they name isn't there yet. */
const WRITER_CLASS = /Save|Export/;

/**
 * The weights in the order of the workflow: integer node ids ascending, then the others as written, then
 * `_meta.required_weights`. One entry for every input that names a weight.
 */
export function extractWeights(workflow: Workflow, options: ExtractOptions = {}): WeightRef[] {
  const definitions = options.definitions ?? NodeDefinitions.core();
  const implied = options.implied ?? ImpliedTable.builtIn();
  const { categoriesHolding } = options;
  const reachable = reachableNodes(workflow.graph, (name) => definitions.isOutput(name));
  const refs = orderedIds(workflow).flatMap((nodeId) => {
    const node = reachable.has(nodeId) ? nodeOf(workflow.graph, nodeId) : undefined;
    return node === undefined
      ? []
      : nodeWeights({ nodeId, node, workflow, definitions, categoriesHolding }, implied);
  });
  return [...refs, ...workflow.requiredWeights.map((name) => metaRef(name, workflow))];
}

/** The names once each, in order: what `extract_required_weights` answers. */
export function weightNames(refs: readonly WeightRef[]): string[] {
  return [...new Set(refs.map((ref) => ref.name))];
}

function orderedIds(workflow: Workflow): string[] {
  const ids = Object.keys(workflow.graph);
  const numbers = ids.filter((id) => /^\d+$/.test(id));
  numbers.sort((a, b) => a.length - b.length || (a < b ? -1 : Number(a > b)));
  return [...numbers, ...ids.filter((id) => !/^\d+$/.test(id))];
}

function nodeWeights(place: Place, implied: ImpliedTable): WeightRef[] {
  const { node } = place;
  const named = Object.entries(node.inputs).flatMap(([input, value]) =>
    linkOf(value) === undefined ? inputWeights(place, input, value) : [],
  );
  if (!implied.knows(node.class_type)) {
    return named;
  }
  const family = baseModelOf(place.workflow.graph, place.nodeId);
  const needs = implied.needsOf(node.class_type, node.inputs, family);
  const isNamed = (need: ImpliedNeed) => named.some((ref) => isSameFile(ref, need));
  return [
    ...named.map((ref) => withFacts(ref, needs)),
    ...needs.filter((need) => !isNamed(need)).map((need) => impliedRef(place, need)),
  ];
}

/** An input may name the very file whose place the table knows, with its sub-folder or without. */
function isSameFile(ref: WeightRef, need: ImpliedNeed): boolean {
  return ref.name === need.name || need.path.endsWith(`/${ref.name}`);
}

/** One weight, not two: the table adds where a guessed name lies, and where any of them can be had. */
function withFacts(ref: WeightRef, needs: readonly ImpliedNeed[]): WeightRef {
  const need = needs.find((candidate) => isSameFile(ref, candidate));
  if (need === undefined) {
    return ref;
  }
  const hints = [...ref.hints, ...hintsOf(need)];
  return ref.reason === "extension"
    ? { ...ref, ...placeOf(need), reason: "implied", certain: need.certain, hints }
    : { ...ref, hints };
}

function inputWeights(place: Place, input: string, value: JsonValue): WeightRef[] {
  const { class_type: classType, inputs } = place.node;
  if (isNoModelInput(classType, input) || isSwitchedOff(classType, input, inputs)) {
    return [];
  }
  const categories = loaderCategories(classType, input);
  const name = nameIn(value);
  const found =
    categories === undefined
      ? guessedWeights(place, input, name)
      : loaderWeights(place, input, name, categories);
  return typeof value === "string" ? [...found, ...textWeights(place, input, value)] : found;
}

/** The name in a value: the text itself, or the file of an object row (`{on, lora}`, `{content}`). */
function nameIn(value: JsonValue): string | undefined {
  if (typeof value === "string") {
    return value;
  }
  if (!isJsonObject(value) || value["on"] === false) {
    return undefined;
  }
  const name = value["lora"] ?? value["content"];
  return typeof name === "string" ? name : undefined;
}

/** True when the running engine itself offers this value for the input. */
function isListed(place: Place, input: string, name: string): boolean {
  return choicesOf(place, input)?.includes(name) ?? false;
}

function choicesOf(place: Place, input: string): readonly JsonValue[] | undefined {
  return place.definitions.source === "engine"
    ? place.definitions.input(place.node.class_type, input)?.choices
    : undefined;
}

function loaderWeights(
  place: Place,
  input: string,
  name: string | undefined,
  categories: readonly string[],
): WeightRef[] {
  if (name === undefined) {
    return [];
  }
  const isUrl = URL_VALUE.test(name);
  const ending = isUrl ? name.replace(/[?#].*$/, "") : name;
  const category =
    categories.find((candidate) => fileCounts(categoryRow(candidate).files, ending)) ??
    categories[0] ??
    "";
  const special = specialValue(category, name);
  if (special?.kind === "nothing" || isWordOfTheNode(place, input, name, category)) {
    return [];
  }
  if (special?.kind === "prefixes") {
    return special.prefixes.map((prefix) => ({
      ...makeRef(place, {
        name: `${prefix}pth`,
        input,
        reason: "loader",
        category: special.category,
      }),
      accepts: `^${escapeRegExp(prefix)}`,
    }));
  }
  const ref = makeRef(place, {
    name,
    input,
    reason: "loader",
    category: special?.category ?? category,
  });
  const others = categories.filter((other) => other !== category);
  return [
    {
      ...ref,
      ...(others.length === 0 ? {} : { otherCategories: others }),
      ...(isUrl ? { hints: [...ref.hints, { url: name }], fromUrl: true } : {}),
      ...(isListed(place, input, name) ? { listed: true } : {}),
    },
  ];
}

/**
 * A choice that is no file (`ESAM`, `Baked VAE`): the engine offers it though it ends like nothing. Without an engine
 * that is believed of node packs; ComfyUI's own loaders take nothing but files, and a name without an ending is a
 * mistake worth telling.
 */
function isWordOfTheNode(place: Place, input: string, name: string, category: string): boolean {
  const { files } = categoryRow(category);
  if (
    URL_VALUE.test(name) ||
    looksLikeWeight(name) ||
    (files !== "any" && fileCounts(files, name))
  ) {
    return false;
  }
  if (files === "folder" || FOLDER_CATEGORIES.has(category)) {
    return false;
  }
  return place.definitions.source === "engine"
    ? isListed(place, input, name)
    : !NodeDefinitions.core().has(place.node.class_type);
}

/** An input that no row knows: the engine's list of choices tells, else only the ending of the value. */
function guessedWeights(place: Place, input: string, name: string | undefined): WeightRef[] {
  if (name === undefined || !isFileName(name) || WRITER_CLASS.test(place.node.class_type)) {
    return [];
  }
  const definition = place.definitions.input(place.node.class_type, input);
  const isText = definition === undefined ? isTextInput(input) : definition.type === "STRING";
  if (isText) {
    return [];
  }
  const isEngine = place.definitions.source === "engine" && definition?.choices !== undefined;
  const ref = makeRef(place, {
    name,
    input,
    reason: isEngine ? "object_info" : "extension",
    category: isEngine ? listedCategory(place, input) : hintedCategory(input),
  });
  return [isListed(place, input, name) ? { ...ref, listed: true } : ref];
}

/** The folder whose files the engine offers for an input: by the choices, by the input's name among several. */
function listedCategory(place: Place, input: string): string | undefined {
  const hinted = hintedCategory(input);
  const choices = (choicesOf(place, input) ?? []).filter((choice) => typeof choice === "string");
  const files = choices.filter(looksLikeWeight);
  const holding = place.categoriesHolding?.(files) ?? [];
  const isHintHeld = hinted !== undefined && holding.includes(canonicalCategory(hinted));
  return isHintHeld || holding.length !== 1 ? hinted : holding[0];
}

function isFileName(value: string): boolean {
  return looksLikeWeight(value) && !/[\n\r\t]|:\/\//.test(value) && value.length < 1024;
}

/** Embeddings anywhere in text, LoRA tags where the node reads them. ComfyUI warns of a miss and runs on: so do we. */
function textWeights(place: Place, input: string, text: string): WeightRef[] {
  const embeddings = text.includes("embedding:") ? matchesOf(EMBEDDING, text) : [];
  const isLoraText = loraTextInputs(place.node.class_type).includes(input);
  const loras = isLoraText ? matchesOf(LORA_TAG, text) : [];
  return [
    ...embeddings.map((name) => ({
      ...makeRef(place, { name, input, reason: "embedding", category: "embeddings" }),
      accepts: `(^|/)${escapeRegExp(name)}${EMBEDDING_ENDINGS}$`,
    })),
    ...loras.map((name) => ({
      ...makeRef(place, { name, input, reason: "lora_text", category: "loras" }),
      accepts: `(^|/)${escapeRegExp(name)}${LORA_ENDINGS}$`,
    })),
  ];
}

function matchesOf(pattern: RegExp, text: string): string[] {
  return [...new Set([...text.matchAll(pattern)].map((match) => (match[1] ?? "").trim()))];
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/** Reasons that leave no doubt: ComfyUI would fail without the file. */
const CERTAIN: ReadonlySet<RefReason> = new Set(["loader", "object_info", "meta"]);

/** What a place in a node says of a weight. */
type Naming = Pick<WeightRef, "name" | "input" | "reason" | "category">;

function makeRef(place: Place, { name, input, reason, category }: Naming): WeightRef {
  const { nodeId, node, workflow } = place;
  const title = node._meta?.title;
  const subgraphs = Object.hasOwn(workflow.subgraphs, nodeId)
    ? workflow.subgraphs[nodeId]
    : undefined;
  return {
    name,
    category: category === undefined ? undefined : canonicalCategory(category),
    nodeId,
    ...(title === undefined ? {} : { nodeTitle: title }),
    classType: node.class_type,
    input,
    reason,
    certain: CERTAIN.has(reason),
    hints: workflowHints(workflow.models, name, category),
    ...(subgraphs === undefined ? {} : { subgraphs }),
  };
}

function impliedRef(place: Place, need: ImpliedNeed): WeightRef {
  const [top, category] = need.path.split("/");
  const ref = makeRef(place, {
    name: need.name,
    input: undefined,
    reason: "implied",
    category: top === "models" ? category : undefined,
  });
  return { ...ref, ...placeOf(need), certain: need.certain, hints: hintsOf(need) };
}

function placeOf(need: ImpliedNeed): Partial<WeightRef> {
  const { facts } = need;
  return {
    path: need.path,
    ...(facts.folder === true ? { folder: { files: facts.files ?? [] } } : {}),
    ...(facts.accepts === undefined ? {} : { accepts: facts.accepts }),
    ...(facts.altPath === undefined ? {} : { altPath: facts.altPath }),
    ...(facts.size === undefined || facts.folder === true ? {} : { sizeBytes: facts.size }),
    ...(need.choice === undefined ? {} : { oneOf: need.choice }),
  };
}

function hintsOf({ facts }: ImpliedNeed): WeightHint[] {
  return (facts.urls ?? []).map((url) => ({
    url,
    trust: "operator" as const,
    ...(facts.sha256 === undefined ? {} : { sha256: facts.sha256 }),
  }));
}

function metaRef(name: string, workflow: Workflow): WeightRef {
  // `loras/a.safetensors` says the folder; a bare name is looked up in all of them.
  const [top = "", ...rest] = name.split("/");
  const isPath = top === "models" && rest.length > 1;
  return {
    name,
    category: isPath ? canonicalCategory(rest[0] ?? "") : undefined,
    ...(isPath ? { path: name } : {}),
    nodeId: undefined,
    classType: undefined,
    input: undefined,
    reason: "meta",
    certain: true,
    hints: workflowHints(workflow.models, name, undefined),
  };
}

/** Addresses that the workflow itself gives for a file of this name in this folder. */
function workflowHints(
  models: readonly ModelHint[],
  name: string,
  category: string | undefined,
): WeightHint[] {
  const base = name.slice(Math.max(name.lastIndexOf("/"), name.lastIndexOf("\\")) + 1);
  return models
    .filter((model) => {
      const folder = model.directory?.split("/")[0];
      const isSameFolder =
        folder === undefined ||
        category === undefined ||
        canonicalCategory(folder) === canonicalCategory(category);
      return isSameFolder && (model.name === name || model.name === base) && !isNothing(model.url);
    })
    .map((model) => ({ url: model.url, ...hashOf(model) }));
}

function hashOf(model: ModelHint): { sha256?: string } {
  const isSha256 = (model.hashType ?? "sha256").toLowerCase().replace("-", "") === "sha256";
  const hash = model.hash?.toLowerCase();
  return hash !== undefined && isSha256 && /^[0-9a-f]{64}$/.test(hash) ? { sha256: hash } : {};
}
