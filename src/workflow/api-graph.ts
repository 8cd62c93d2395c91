/** Nodes in API form → a checked graph: every problem of the file in one error, harmless slips repaired and told. */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { NodeDefinitions } from "./definitions.ts";
import { clip, listProblems } from "./describe.ts";
import type { Graph, GraphNode } from "./graph.ts";
import { own, ownText, record } from "./graph-read.ts";
import { MAX_NODES } from "./limits.ts";
import { danglingLinks, findCycle, reachableNodes } from "./walk.ts";

/** Reads API nodes. Keys that begin with `_` and hold no node are remarks of the author. */
export function readApiGraph(nodes: JsonObject, notes: string[]): Graph {
  const entries = Object.entries(nodes).filter(([id, node]) => !isRemark(id, node));
  checkCount(entries.length);
  const problems: string[] = [];
  const ids = new Set(entries.map(([id]) => id));
  const read: [string, GraphNode][] = [];
  for (const [id, raw] of entries) {
    const problem = problemOf(id, raw);
    if (problem !== undefined) {
      problems.push(problem);
    } else if (isJsonObject(raw)) {
      read.push([id, readNode(id, raw, ids, notes)]);
    }
  }
  if (problems.length > 0) {
    throw new InputError("WORKFLOW_INVALID", `The workflow has ${listProblems(problems)}.`, {
      hint: "Every node of an API workflow needs class_type and inputs: export it again with Export (API).",
      details: { problems },
    });
  }
  return record(read);
}

export function checkCount(count: number): void {
  if (count > MAX_NODES) {
    throw new InputError(
      "WORKFLOW_INVALID",
      `The workflow has ${count} nodes; at most ${MAX_NODES} are read.`,
      { hint: "Split the workflow." },
    );
  }
}

function isRemark(id: string, node: JsonValue): boolean {
  return id.startsWith("_") && !(isJsonObject(node) && Object.hasOwn(node, "class_type"));
}

function problemOf(id: string, raw: JsonValue): string | undefined {
  if (!isJsonObject(raw)) {
    return `something that is no node under the key '${clip(id)}'`;
  }
  const classType = own(raw, "class_type");
  if (classType === undefined) {
    return `a node without class_type: '${clip(id)}'`;
  }
  if (typeof classType !== "string" || classType === "") {
    return `a node whose class_type is no text: '${clip(id)}'`;
  }
  const inputs = own(raw, "inputs");
  return inputs === undefined || isJsonObject(inputs)
    ? undefined
    : `a node whose inputs are no object: '${clip(id)}'`;
}

function readNode(
  id: string,
  raw: JsonObject,
  ids: ReadonlySet<string>,
  notes: string[],
): GraphNode {
  const inputs = own(raw, "inputs");
  const meta = own(raw, "_meta");
  const title = isJsonObject(meta) ? ownText(meta, "title") : undefined;
  const classType = ownText(raw, "class_type") ?? "";
  return {
    class_type: classType,
    inputs: repairLinks(id, isJsonObject(inputs) ? inputs : {}, ids, notes),
    ...(isJsonObject(meta) ? { _meta: { ...meta, title: title ?? classType } } : {}),
  };
}

/** Generators write `[3, 0]` for `["3", 0]`; ComfyUI fails on it with a KeyError. */
function repairLinks(
  id: string,
  inputs: JsonObject,
  ids: ReadonlySet<string>,
  notes: string[],
): JsonObject {
  const isSlip = (value: JsonValue): value is [number, number] =>
    Array.isArray(value) &&
    value.length === 2 &&
    Number.isInteger(value[0]) &&
    Number.isInteger(value[1]) &&
    ids.has(String(value[0]));
  const entries = Object.entries(inputs);
  if (!entries.some(([, value]) => isSlip(value))) {
    return inputs;
  }
  notes.push(`Node ${clip(id)}: links with a number as node id were read as text.`);
  return record(
    entries.map(([name, value]) => [name, isSlip(value) ? [String(value[0]), value[1]] : value]),
  );
}

/** Refuses links to nowhere and cycles, but only among nodes that run: ComfyUI never looks at the others. */
export function checkLinks(graph: Graph, definitions: NodeDefinitions, notes: string[]): void {
  const dangling = danglingLinks(graph);
  const cycle = findCycle(graph);
  if (dangling.length === 0 && cycle === undefined) {
    return;
  }
  const needed = reachableNodes(graph, (classType) => definitions.isOutput(classType));
  const problems = dangling.map((link) => ({
    nodeId: link.nodeId,
    text: `a link from node ${clip(link.nodeId)} (${clip(link.input)}) to missing node ${clip(link.target)}`,
  }));
  if (cycle !== undefined) {
    const path = [...cycle, cycle[0] ?? ""].map((id) => clip(id, 24));
    const shown = path.length > 12 ? [...path.slice(0, 11), "…", path[0] ?? ""] : path;
    problems.push({ nodeId: cycle[0] ?? "", text: `a cycle: ${shown.join(" → ")}` });
  }
  const serious = problems.filter((problem) => needed.has(problem.nodeId)).map(({ text }) => text);
  if (serious.length > 0) {
    throw new InputError("WORKFLOW_INVALID", `The workflow has ${listProblems(serious)}.`, {
      hint: "Mend these links in ComfyUI and export the workflow again.",
      details: { problems: serious },
    });
  }
  notes.push(...problems.map(({ text }) => `Nothing that runs needs it: ${text}.`));
}
