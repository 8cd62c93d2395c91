/**
 * Values set from outside by name, without editing JSON: `6.text`, `KSampler.seed`, `My title.steps`, inside
 * subgraphs `57:3.text` or `Upscale/KSampler.seed`. Every wrong name and value is told at once.
 */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject, parseJson } from "../platform/json.ts";
import { NodeDefinitions } from "./definitions.ts";
import { clip, listNames, listProblems } from "./describe.ts";
import { replaceInputs } from "./edits.ts";
import type { Graph, GraphNode, InputPlaceName, ShownWidget, Workflow } from "./graph.ts";
import { linkOf } from "./graph.ts";
import { nodeOf, record } from "./graph-read.ts";
import { didYouMean, nearNames } from "./near.ts";
import { checkValue } from "./values.ts";
import { isWidget } from "./widgets.ts";

/** A value that was set. */
export interface AppliedOverride {
  readonly nodeId: string;
  readonly input: string;
  readonly before: JsonValue | undefined;
  readonly after: JsonValue;
}

export interface Overridden {
  readonly graph: Graph;
  readonly applied: readonly AppliedOverride[];
}

type Named = Pick<Workflow, "graph" | "subgraphs" | "shown">;

/** Reads the input `overrides`: JSON text of an object, or nothing. */
export function readOverrides(text: string): JsonObject {
  if (text.trim() === "") {
    return {};
  }
  let value: JsonValue;
  try {
    value = parseJson(text);
  } catch (cause) {
    throw notOverrides("is not valid JSON", cause);
  }
  if (!isJsonObject(value)) {
    throw notOverrides("is no JSON object");
  }
  return value;
}

function notOverrides(what: string, cause?: unknown): InputError {
  return new InputError("INPUT_INVALID", `The input overrides ${what}.`, {
    hint: 'Give a JSON object such as {"6.text": "a cat", "KSampler.seed": 7}.',
    cause,
  });
}

/** Reads `name=value` of a command line; the value is JSON where it reads as JSON, else text. */
export function readSetting(setting: string): [string, JsonValue] {
  const split = setting.indexOf("=");
  if (split <= 0) {
    throw new InputError("INPUT_INVALID", `'${clip(setting)}' is no name=value.`, {
      hint: "Write --set 6.text='a cat'.",
    });
  }
  const text = setting.slice(split + 1);
  try {
    return [setting.slice(0, split), parseJson(text)];
  } catch {
    return [setting.slice(0, split), text];
  }
}

/** Sets values in a copy of the workflow's graph. Throws one `InputError` for all names and values that are wrong. */
export function applyOverrides(
  workflow: Named,
  overrides: JsonObject,
  options: { readonly definitions?: NodeDefinitions | undefined } = {},
): Overridden {
  const definitions = options.definitions ?? NodeDefinitions.core();
  const problems: string[] = [];
  const applied: AppliedOverride[] = [];
  for (const [name, value] of Object.entries(overrides)) {
    const found = new Target(workflow, definitions).find(name, value);
    if ("problem" in found) {
      problems.push(`${clip(name)}: ${found.problem}`);
    } else {
      applied.push(...found.set);
    }
  }
  if (problems.length > 0) {
    throw new InputError(
      "INPUT_INVALID",
      `Overrides can't be applied: ${listProblems(problems)}.`,
      {
        hint: "Run `cog-comfyui workflow explain` on the workflow: it lists what can be set.",
        details: { problems },
      },
    );
  }
  return { graph: withValues(workflow.graph, applied), applied };
}

/** A copy of the graph with these values; inputs that a node doesn't have yet are added. */
export function withValues(
  graph: Graph,
  values: readonly Pick<AppliedOverride, "nodeId" | "input" | "after">[],
): Graph {
  const byNode = new Map<string, Map<string, JsonValue>>();
  for (const { nodeId, input, after } of values) {
    byNode.set(nodeId, (byNode.get(nodeId) ?? new Map<string, JsonValue>()).set(input, after));
  }
  const replaced = replaceInputs(graph, ({ nodeId, input, value }) => {
    const after = byNode.get(nodeId)?.get(input);
    return after === undefined ? value : after;
  });
  const entries = Object.entries(replaced).map(([id, node]): [string, GraphNode] => {
    const added = [...(byNode.get(id) ?? [])].filter(([name]) => !Object.hasOwn(node.inputs, name));
    return [
      id,
      added.length === 0
        ? node
        : { ...node, inputs: record([...Object.entries(node.inputs), ...added]) },
    ];
  });
  return record(entries);
}

type Found = { readonly set: readonly AppliedOverride[] } | { readonly problem: string };

class Target {
  readonly #workflow: Named;
  readonly #definitions: NodeDefinitions;

  constructor(workflow: Named, definitions: NodeDefinitions) {
    this.#workflow = workflow;
    this.#definitions = definitions;
  }

  /** Titles and input names may hold dots themselves, so every dot is tried as the one between the two. */
  find(name: string, value: JsonValue): Found {
    let isNodeKnown: { ids: string[]; input: string } | undefined;
    for (let dot = name.indexOf("."); dot !== -1; dot = name.indexOf(".", dot + 1)) {
      const input = name.slice(dot + 1);
      const ids = this.#nodesNamed(name.slice(0, dot));
      const holders = ids.filter((id) => this.#hasInput(id, input));
      if (holders.length > 1) {
        return { problem: `several nodes are meant: ${listNames(holders)}; use an id` };
      }
      if (holders[0] !== undefined) {
        return this.#set([{ node: holders[0], input }], value);
      }
      const shown = this.#shownBy(name.slice(0, dot), input);
      if (shown.length > 1) {
        return {
          problem: `several subgraphs are meant: ${listNames(shown.map(({ node }) => node))}; use an id`,
        };
      }
      if (shown[0] !== undefined) {
        return this.#set(shown[0].places, value);
      }
      if (ids.length > 0) {
        isNodeKnown ??= { ids, input };
      }
    }
    return { problem: this.#whyNot(name, isNodeKnown) };
  }

  /** Ids of the nodes that a name means: by id, else by title, else by class; a path narrows it to subgraphs. */
  #nodesNamed(name: string): string[] {
    const { graph } = this.#workflow;
    if (Object.hasOwn(graph, name)) {
      return [name];
    }
    // A title may hold a slash itself, so the whole name comes first.
    const whole = this.#nodesInside([], name);
    const parts = name.split("/");
    return whole.length > 0 || parts.length === 1
      ? whole
      : this.#nodesInside(parts.slice(0, -1), parts.at(-1) ?? "");
  }

  #nodesInside(path: readonly string[], name: string): string[] {
    const { graph } = this.#workflow;
    const inside = Object.keys(graph).filter((id) => this.#isInside(id, path));
    const byTitle = inside.filter((id) => nodeOf(graph, id)?._meta?.title === name);
    const byClass = inside.filter((id) => nodeOf(graph, id)?.class_type === name);
    const byLastId = path.length === 0 ? [] : inside.filter((id) => id.split(":").at(-1) === name);
    return [byTitle, byClass, byLastId].find((ids) => ids.length > 0) ?? [];
  }

  /** True when the node lies in subgraphs of these titles or ids, innermost last; others may lie between. */
  #isInside(id: string, path: readonly string[]): boolean {
    const titles = Object.hasOwn(this.#workflow.subgraphs, id) ? this.#workflow.subgraphs[id] : [];
    const ids = id.split(":");
    let at = 0;
    for (const [level, title] of (titles ?? []).entries()) {
      if (path[at] === title || path[at] === ids[level]) {
        at += 1;
      }
    }
    return at === path.length;
  }

  #hasInput(id: string, input: string): boolean {
    const node = nodeOf(this.#workflow.graph, id);
    if (node === undefined) {
      return false;
    }
    return (
      Object.hasOwn(node.inputs, input) ||
      this.#definitions.input(node.class_type, input) !== undefined
    );
  }

  /** The widget of a subgraph as the page shows it: by the id or the title of the subgraph's node. */
  #shownBy(name: string, widget: string): ShownWidget[] {
    const all = (this.#workflow.shown ?? []).filter((entry) => entry.widget === widget);
    const byId = all.filter(({ node }) => node === name);
    return byId.length > 0 ? byId : all.filter(({ title }) => title === name);
  }

  #set(places: readonly InputPlaceName[], value: JsonValue): Found {
    const set: AppliedOverride[] = [];
    for (const { node, input } of places) {
      const found = this.#check(node, input, value);
      if ("problem" in found) {
        return found;
      }
      set.push(found);
    }
    return { set };
  }

  #check(
    nodeId: string,
    input: string,
    value: JsonValue,
  ): AppliedOverride | { readonly problem: string } {
    const node = nodeOf(this.#workflow.graph, nodeId);
    const before =
      node !== undefined && Object.hasOwn(node.inputs, input) ? node.inputs[input] : undefined;
    const definition = node && this.#definitions.input(node.class_type, input);
    const isSocket =
      definition === undefined ? linkOf(before) !== undefined : !isWidget(definition);
    if (isSocket) {
      const source = linkOf(before);
      const wire = source === undefined ? "" : `, wired to node ${source.nodeId}`;
      return { problem: `it is a connection${wire}, not a value` };
    }
    const checked = checkValue(value, definition);
    return "problem" in checked ? checked : { nodeId, input, before, after: checked.value };
  }

  #whyNot(name: string, known: { ids: string[]; input: string } | undefined): string {
    const { graph } = this.#workflow;
    if (known !== undefined) {
      const inputs = known.ids.flatMap((id) => this.#valueNames(id));
      const near = nearNames(known.input, new Set(inputs));
      return `node ${listNames(known.ids)} has no input '${clip(known.input)}'${didYouMean(near)}`;
    }
    if (!name.includes(".")) {
      return "the name lacks a dot between node and input, as in 6.text";
    }
    const subgraphs = (this.#workflow.shown ?? []).flatMap(({ node, title }) => [node, title]);
    const names = Object.entries(graph).flatMap(([id, node]) => [
      id,
      node.class_type,
      ...(node._meta?.title === undefined ? [] : [node._meta.title]),
    ]);
    const near = nearNames(name.slice(0, name.lastIndexOf(".")), new Set([...names, ...subgraphs]));
    return `no node has this id, title or class${didYouMean(near)}`;
  }

  #valueNames(id: string): string[] {
    const node = nodeOf(this.#workflow.graph, id);
    const values = Object.entries(node?.inputs ?? {}).filter(
      ([, value]) => linkOf(value) === undefined,
    );
    return values.map(([name]) => name);
  }
}
