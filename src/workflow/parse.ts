/**
 * Whatever the user gave as a workflow → a {@link Workflow}: formats told apart, wrappers opened, pictures searched,
 * UI files converted. Pure: no network, no disk but the table of node definitions. Throws only `InputError`.
 */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { checkLinks, readApiGraph } from "./api-graph.ts";
import { convertUi } from "./convert.ts";
import { NodeDefinitions } from "./definitions.ts";
import type { ModelHint, NodePack, Workflow } from "./graph.ts";
import { checkDepth } from "./json-text.ts";
import type { WorkflowMeta } from "./meta.ts";
import { mergeMeta, readMeta } from "./meta.ts";
import type { Recognised } from "./recognise.ts";
import { isUiDocument, recognise } from "./recognise.ts";
import { collectFacts } from "./ui-facts.ts";
import { unpackBytes, unpackText } from "./unpack.ts";

export interface ParseOptions {
  /** What the running engine knows; the committed table of ComfyUI's own nodes otherwise. */
  readonly definitions?: NodeDefinitions | undefined;
  /**
   * For looking, not for running: values whose names neither definitions nor file tell are kept as `widget_0`, …
   * and their nodes listed in {@link Workflow.unnamed}, instead of the whole workflow being refused.
   */
  readonly allowUnnamed?: boolean | undefined;
}

/** Reads a workflow from text, bytes or an object. */
export function parseWorkflow(
  source: string | Uint8Array | JsonObject,
  options: ParseOptions = {},
): Workflow {
  const { document, beside, notes } = unpack(source);
  const definitions = options.definitions ?? NodeDefinitions.core();
  const found = recognise(document);
  const ui = found.beside ?? (isUiDocument(beside) ? beside : undefined);
  const remarks = [...notes];
  const workflow = found.isUi
    ? fromUi(found, { ...options, definitions }, remarks)
    : fromApi(found, ui, remarks);
  checkLinks(workflow.graph, definitions, remarks);
  return { ...workflow, ...(isJsonObject(document) ? { document } : {}), notes: remarks };
}

function unpack(source: string | Uint8Array | JsonObject): {
  document: JsonValue;
  beside?: JsonValue;
  notes: readonly string[];
} {
  if (typeof source === "string") {
    return unpackText(source);
  }
  if (source instanceof Uint8Array) {
    return unpackBytes(source);
  }
  checkDepth(source);
  return { document: source, notes: [] };
}

function metaOf(found: Recognised): WorkflowMeta {
  const metas = found.holders.map(readMeta);
  const [first, ...rest] = metas.reverse();
  return rest.reduce((inner, outer) => mergeMeta(outer, inner), first ?? NO_META);
}

const NO_META: WorkflowMeta = { requiredWeights: [], ignoredWeights: [], models: [], exposed: [] };

function fromApi(found: Recognised, ui: JsonObject | undefined, notes: string[]): Workflow {
  const meta = metaOf(found);
  const facts = ui === undefined ? { models: [], packs: {} } : collectFacts(ui);
  return {
    format: found.format,
    graph: readApiGraph(found.body, notes),
    ...withFacts(meta, facts),
    subgraphs: {},
    ...(ui === undefined ? {} : { ui }),
    notes,
  };
}

function fromUi(
  found: Recognised,
  options: ParseOptions & { readonly definitions: NodeDefinitions },
  notes: string[],
): Workflow {
  const { allowUnnamed } = options;
  const converted = convertUi(found.body, options.definitions, { allowUnnamed });
  if (Object.keys(converted.graph).length === 0) {
    throw new InputError("WORKFLOW_INVALID", "The workflow has no node that can run.", {
      hint: "Notes, muted and bypassed nodes don't run: add some, or switch them on.",
      details: { notes: converted.notes },
    });
  }
  notes.push(...converted.notes);
  const meta = metaOf(found);
  const exposed = meta.exposed.length > 0 ? meta.exposed : converted.exposed;
  return {
    format: found.format,
    graph: converted.graph,
    ...withFacts({ ...meta, exposed }, converted),
    subgraphs: converted.subgraphs,
    shown: converted.shown,
    ...(converted.unnamed.length === 0 ? {} : { unnamed: converted.unnamed }),
    ui: found.body,
    notes,
  };
}

function withFacts(
  meta: WorkflowMeta,
  facts: { models: readonly ModelHint[]; packs: Readonly<Record<string, NodePack>> },
): WorkflowMeta & Pick<Workflow, "packs"> {
  return { ...meta, models: uniqueModels([...meta.models, ...facts.models]), packs: facts.packs };
}

/** The same hint often stands on several nodes. */
function uniqueModels(models: readonly ModelHint[]): ModelHint[] {
  const seen = new Map(
    models.map((hint) => [`${hint.directory ?? ""}\n${hint.name}\n${hint.url}`, hint] as const),
  );
  return [...seen.values()];
}
