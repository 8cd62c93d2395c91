/** A workflow as an API of its own: its named inputs with kind, range and choices, and a proposal for one without. */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { NodeDefinitions } from "./definitions.ts";
import { clip, listNames, listProblems } from "./describe.ts";
import type { ExposedInput, Graph, InputPlaceName, Workflow } from "./graph.ts";
import { linkOf } from "./graph.ts";
import { nodeOf, own, ownObject, record } from "./graph-read.ts";
import { didYouMean, nearNames } from "./near.ts";
import { withValues } from "./overrides.ts";
import type { ValueKind } from "./values.ts";
import { checkValue, choicesOf, kindOf } from "./values.ts";
import { reachableNodes, walkInputs } from "./walk.ts";
import { isWidget } from "./widgets.ts";

/** A named input, ready to become a field of a schema. */
export interface NamedInput {
  readonly name: string;
  readonly description: string | undefined;
  /** Where the value goes; more than one place for a value that several nodes share. */
  readonly places: readonly InputPlaceName[];
  readonly kind: ValueKind;
  /** What the workflow holds now. */
  readonly default: JsonValue;
  readonly min?: number;
  readonly max?: number;
  readonly step?: number;
  readonly multiline?: boolean;
  readonly choices?: readonly JsonValue[];
  /** What a file input takes. */
  readonly accepts?: "image" | "audio" | "video" | "file";
}

interface Options {
  readonly definitions?: NodeDefinitions | undefined;
}

/** The named inputs of a workflow. Throws one `InputError` for all rows that name nothing. */
export function namedInputs(workflow: Workflow, options: Options = {}): NamedInput[] {
  const definitions = options.definitions ?? NodeDefinitions.core();
  const problems: string[] = [];
  const inputs = workflow.exposed.flatMap((row) => {
    const place = placeOf(workflow.graph, row);
    if ("problem" in place) {
      problems.push(`${clip(row.name)}: ${place.problem}`);
      return [];
    }
    return [describeInput(workflow.graph, row, place, definitions)];
  });
  if (problems.length > 0) {
    throw new InputError(
      "WORKFLOW_INVALID",
      `The workflow's named inputs don't fit its nodes: ${listProblems(problems)}.`,
      {
        hint: "Correct _meta.inputs, or write it anew with `cog-comfyui workflow expose`.",
        details: { problems },
      },
    );
  }
  return inputs;
}

/** The place a row means; `135` also means the one node `57:135` inside a subgraph. */
function placeOf(graph: Graph, row: ExposedInput): InputPlaceName | { readonly problem: string } {
  const ids = Object.hasOwn(graph, row.node)
    ? [row.node]
    : Object.keys(graph).filter((id) => id.endsWith(`:${row.node}`));
  const [id] = ids;
  if (id === undefined || ids.length > 1) {
    return ids.length > 1
      ? { problem: `several nodes are meant: ${listNames(ids)}` }
      : {
          problem: `there is no node ${clip(row.node)}${didYouMean(nearNames(row.node, Object.keys(graph)))}`,
        };
  }
  const node = nodeOf(graph, id);
  const names = Object.keys(node?.inputs ?? {});
  if (!names.includes(row.input)) {
    const near = didYouMean(nearNames(row.input, names));
    return { problem: `node ${id} (${node?.class_type}) has no input '${clip(row.input)}'${near}` };
  }
  if (linkOf(node?.inputs[row.input]) !== undefined) {
    return { problem: `'${clip(row.input)}' of node ${id} is a connection, not a value` };
  }
  return { node: id, input: row.input };
}

function describeInput(
  graph: Graph,
  row: ExposedInput,
  place: InputPlaceName,
  definitions: NodeDefinitions,
): NamedInput {
  const node = nodeOf(graph, place.node);
  const value = node === undefined ? null : (own(node.inputs, place.input) ?? null);
  const definition = definitions.input(node?.class_type ?? "", place.input);
  const kind = kindOf(definition, value);
  const choices = kind === "choice" ? choicesOf(definition) : undefined;
  return {
    name: row.name,
    description: row.description,
    places: [place, ...(row.also ?? [])],
    kind,
    default: value,
    ...(definition?.min === undefined ? {} : { min: definition.min }),
    ...(definition?.max === undefined ? {} : { max: definition.max }),
    ...(definition?.step === undefined ? {} : { step: definition.step }),
    ...(definition?.multiline === undefined ? {} : { multiline: definition.multiline }),
    ...(choices === undefined ? {} : { choices }),
    ...(definition?.upload === undefined ? {} : { accepts: definition.upload }),
  };
}

/** A copy of the graph with the values of named inputs; names without a value keep what the workflow holds. */
export function applyNamedInputs(
  workflow: Workflow,
  values: JsonObject,
  options: Options = {},
): Graph {
  const definitions = options.definitions ?? NodeDefinitions.core();
  const problems: string[] = [];
  const set = namedInputs(workflow, options).flatMap(({ name, places }) => {
    const value = own(values, name);
    return value === undefined
      ? []
      : places.flatMap(({ node, input }) => {
          const classType = nodeOf(workflow.graph, node)?.class_type ?? "";
          const checked = checkValue(value, definitions.input(classType, input));
          if ("problem" in checked) {
            problems.push(`${name}: ${checked.problem}`);
            return [];
          }
          return [{ nodeId: node, input, after: checked.value }];
        });
  });
  if (problems.length > 0) {
    throw new InputError(
      "INPUT_INVALID",
      `Inputs don't fit: ${listProblems([...new Set(problems)])}.`,
      {
        details: { problems },
      },
    );
  }
  return withValues(workflow.graph, set);
}

/** Inputs that people change from run to run, told by their name. */
const LIKELY_NAMES: ReadonlySet<string> = new Set([
  "aspect_ratio",
  "batch_size",
  "cfg",
  "denoise",
  "duration",
  "fps",
  "guidance",
  "height",
  "length",
  "negative_prompt",
  "noise_seed",
  "prompt",
  "resolution",
  "seed",
  "steps",
  "strength",
  "text",
  "width",
]);

/** What `workflow expose` proposes: files, long texts, and what is likely to change; of needed nodes only. */
export function proposeInputs(workflow: Workflow, options: Options = {}): ExposedInput[] {
  const definitions = options.definitions ?? NodeDefinitions.core();
  const { graph } = workflow;
  const needed = reachableNodes(graph, (classType) => definitions.isOutput(classType));
  const rows: { node: string; input: string; title: string }[] = [];
  for (const { nodeId, node, input, value } of walkInputs(graph, needed)) {
    const definition = definitions.input(node.class_type, input);
    const isLikely =
      definition?.upload !== undefined || definition?.multiline === true || LIKELY_NAMES.has(input);
    const isValue =
      linkOf(value) === undefined && (definition === undefined || isWidget(definition));
    if (isValue && isLikely) {
      rows.push({ node: nodeId, input, title: node._meta?.title ?? node.class_type });
    }
  }
  return nameRows(rows);
}

/** The document with these named inputs in its `_meta`, for `workflow expose` to write; all else stays as it is. */
export function withExposed(document: JsonObject, inputs: readonly ExposedInput[]): JsonObject {
  const meta = ownObject(document, "_meta") ?? {};
  const rows = inputs.map(({ name, node, input, description = "", also }): JsonObject => {
    const more = also === undefined ? {} : { also: also.map((place) => ({ ...place })) };
    return { name, node, input, description, ...more };
  });
  return { _meta: { ...meta, inputs: rows }, ...record(withoutMeta(document)) };
}

function withoutMeta(document: JsonObject): [string, JsonValue][] {
  return Object.entries(document).filter(([key]) => key !== "_meta");
}

/** Gives rows distinct names: the input's own, with the node's title before it where several share it. */
export function nameRows(
  rows: readonly (InputPlaceName & {
    readonly title: string;
    readonly also?: readonly InputPlaceName[];
  })[],
): ExposedInput[] {
  const counts = new Map<string, number>();
  for (const { input } of rows) {
    counts.set(input, (counts.get(input) ?? 0) + 1);
  }
  const taken = new Set<string>();
  return rows.map(({ node, input, title, also }) => {
    const isShared = (counts.get(input) ?? 0) > 1;
    const base = slug(isShared ? `${title}_${input}` : input);
    let name = base;
    for (let number = 2; taken.has(name); number += 1) {
      name = `${base}_${number}`;
    }
    taken.add(name);
    return { name, node, input, ...(also === undefined || also.length === 0 ? {} : { also }) };
  });
}

/** A name that can be a field of a schema and a word on the command line. */
function slug(text: string): string {
  const words = text
    .normalize("NFKD")
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "_")
    .replace(/^_+|_+$/g, "")
    .slice(0, 60);
  return /^[a-z]/.test(words) ? words : `input_${words || "value"}`;
}
