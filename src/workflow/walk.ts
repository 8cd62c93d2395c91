/** Walks over a graph: every value with its place, the nodes that an output needs, cycles, links to nowhere. */
import type { JsonValue } from "../platform/json.ts";
import type { Graph, GraphNode } from "./graph.ts";
import { linkOf } from "./graph.ts";
import { nodeOf } from "./graph-read.ts";

/** A value of a node and where it stands. */
export interface PlacedValue {
  readonly nodeId: string;
  readonly node: GraphNode;
  readonly input: string;
  readonly value: JsonValue;
}

/** A link that points at no node of the graph. */
export interface DanglingLink {
  readonly nodeId: string;
  readonly input: string;
  readonly target: string;
}

/** Every input of every node, in the order of the file; `only` restricts it to some nodes. */
export function* walkInputs(graph: Graph, only?: ReadonlySet<string>): Generator<PlacedValue> {
  for (const [nodeId, node] of Object.entries(graph)) {
    if (only !== undefined && !only.has(nodeId)) {
      continue;
    }
    for (const [input, value] of Object.entries(node.inputs)) {
      yield { nodeId, node, input, value };
    }
  }
}

/** Nodes never change, and every look at a workflow asks for their sources: each is read once. */
const knownSources = new WeakMap<GraphNode, readonly string[]>();

/** Ids that a node reads from, each once, in the order of its inputs. */
export function sourcesOf(node: GraphNode): readonly string[] {
  const known = knownSources.get(node);
  if (known !== undefined) {
    return known;
  }
  const ids = new Set<string>();
  for (const value of Object.values(node.inputs)) {
    const link = linkOf(value);
    if (link !== undefined) {
      ids.add(link.nodeId);
    }
  }
  const sources = [...ids];
  knownSources.set(node, sources);
  return sources;
}

/**
 * Ids of the nodes that an output node depends on, outputs included: what ComfyUI validates and runs.
 * `isOutput` answers undefined for a class it doesn't know; such a node counts as an output when nothing reads from
 * it, since a node pack's own "save" is more likely than a dead end. Where no output is found, every node counts.
 */
export function reachableNodes(
  graph: Graph,
  isOutput: (classType: string) => boolean | undefined,
): ReadonlySet<string> {
  const ids = Object.keys(graph);
  const read = new Set<string>();
  for (const id of ids) {
    for (const source of sourcesOf(nodeOf(graph, id) ?? NO_NODE)) {
      read.add(source);
    }
  }
  const waiting = ids.filter((id) => {
    const node = nodeOf(graph, id) ?? NO_NODE;
    return isOutput(node.class_type) ?? !read.has(id);
  });
  if (waiting.length === 0) {
    return new Set(ids);
  }
  const reached = new Set<string>();
  for (let id = waiting.pop(); id !== undefined; id = waiting.pop()) {
    const node = reached.has(id) ? undefined : nodeOf(graph, id);
    if (node !== undefined) {
      reached.add(id);
      waiting.push(...sourcesOf(node));
    }
  }
  return new Set(ids.filter((id) => reached.has(id)));
}

const NO_NODE: GraphNode = { class_type: "", inputs: {} };

/** Links of the given nodes that lead nowhere, in the order of the file. */
export function danglingLinks(graph: Graph): DanglingLink[] {
  const found: DanglingLink[] = [];
  for (const { nodeId, input, value } of walkInputs(graph)) {
    const link = linkOf(value);
    if (link !== undefined && !Object.hasOwn(graph, link.nodeId)) {
      found.push({ nodeId, input, target: link.nodeId });
    }
  }
  return found;
}

/** The ids of one cycle in the order the data would flow, or undefined when there is none. Iterative: depth is free. */
export function findCycle(graph: Graph): string[] | undefined {
  const done = new Set<string>();
  const onPath = new Set<string>();
  for (const root of Object.keys(graph)) {
    const path: { id: string; sources: string[] }[] = [];
    const enter = (id: string) => {
      onPath.add(id);
      path.push({ id, sources: [...sourcesOf(nodeOf(graph, id) ?? NO_NODE)] });
    };
    if (!done.has(root)) {
      enter(root);
    }
    for (let top = path.at(-1); top !== undefined; top = path.at(-1)) {
      const next = top.sources.pop();
      if (next === undefined) {
        path.pop();
        onPath.delete(top.id);
        done.add(top.id);
      } else if (onPath.has(next)) {
        const ids = path.map((step) => step.id);
        return ids.slice(ids.indexOf(next)).reverse();
      } else if (!done.has(next) && Object.hasOwn(graph, next)) {
        enter(next);
      }
    }
  }
  return undefined;
}
