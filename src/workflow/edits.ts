/** Changes to a graph. Every one returns a copy: the workflow a user gave is never touched. */
import type { JsonValue } from "../platform/json.ts";
import type { Graph, GraphNode } from "./graph.ts";
import { record } from "./graph-read.ts";

/** Inputs that hold a seed, as the original names them. */
const SEED_INPUTS = ["seed", "noise_seed", "rand_seed"];

/** Seeds are drawn below this, as the original does: some samplers take no more than 31 bits. */
const SEED_LIMIT = 2 ** 31;

/** True for an input that holds a seed, inside of a dynamic input too. */
export function isSeedInput(input: string): boolean {
  return SEED_INPUTS.includes(input.slice(input.lastIndexOf(".") + 1));
}

/** A seed that was set. */
export interface UsedSeed {
  readonly nodeId: string;
  readonly input: string;
  readonly seed: number;
}

export interface SeedOptions {
  /** A number from 0 up to but not including 1; `Math.random` unless a test says otherwise. */
  readonly random?: () => number;
  /** Inputs to leave alone: those that somebody set on purpose. */
  readonly keep?: (nodeId: string, input: string) => boolean;
}

/** Gives every seed that is a number a new one; links and texts stay. Says which were set. */
export function randomiseSeeds(
  graph: Graph,
  { random = Math.random, keep }: SeedOptions = {},
): { graph: Graph; used: UsedSeed[] } {
  const used: UsedSeed[] = [];
  const changed = replaceInputs(graph, ({ nodeId, input, value }) => {
    const isNumber = typeof value === "number" || typeof value === "bigint";
    if (!isSeedInput(input) || !isNumber || keep?.(nodeId, input) === true) {
      return value;
    }
    const seed = Math.floor(random() * SEED_LIMIT);
    used.push({ nodeId, input, seed });
    return seed;
  });
  return { graph: changed, used };
}

/** What {@link replaceInputs} shows its callback. */
export interface InputPlace {
  readonly nodeId: string;
  readonly node: GraphNode;
  readonly input: string;
  readonly value: JsonValue;
}

/** A copy in which every input holds what `replace` returns for it. Untouched nodes are shared, not copied. */
export function replaceInputs(graph: Graph, replace: (place: InputPlace) => JsonValue): Graph {
  const entries = Object.entries(graph).map(([nodeId, node]): [string, GraphNode] => {
    let isChanged = false;
    const inputs = Object.entries(node.inputs).map(([input, value]): [string, JsonValue] => {
      const next = replace({ nodeId, node, input, value });
      isChanged ||= next !== value;
      return [input, next];
    });
    return [nodeId, isChanged ? { ...node, inputs: record(inputs) } : node];
  });
  return record(entries);
}
