/** Which family of models (`sd15`, `sdxl`, …) a node works on, as far as the names of the checkpoints upstream tell. */
import type { Graph, GraphNode } from "../workflow/graph.ts";
import { nodeOf } from "../workflow/graph-read.ts";
import { loaderCategories } from "../workflow/loaders.ts";
import { sourcesOf } from "../workflow/walk.ts";

/** Only what a name says beyond doubt; an unknown family is better than a wrong one. First match wins. */
const FAMILIES: readonly (readonly [RegExp, string])[] = [
  [/flux/i, "flux"],
  [/sd3|stable-?diffusion-?3/i, "sd3"],
  [/sd_?xl|XL(?![a-z])|(^|[^A-Za-z])xl([^A-Za-z]|$)|kolors|pony|illustrious/, "sdxl"],
  [/v1-5|sd-?v?1[._]?5|(^|[^0-9a-z])1\.5([^0-9]|$)|_sd15/i, "sd15"],
];

const MODEL_CATEGORIES: ReadonlySet<string> = new Set(["checkpoints", "diffusion_models"]);
/** Nodes looked at before giving up: chains are short, hostile graphs are not. */
const MAX_NODES = 500;

/** The family that the nearest model file upstream of a node belongs to. */
export function baseModelOf(graph: Graph, nodeId: string): string | undefined {
  const queue = new Set([nodeId]);
  // A set visits what is added while it is walked, each id once.
  for (const id of queue) {
    const node = queue.size > MAX_NODES ? undefined : nodeOf(graph, id);
    if (node !== undefined) {
      const family = familyOf(node);
      if (family !== undefined) {
        return family;
      }
      for (const source of sourcesOf(node)) {
        queue.add(source);
      }
    }
  }
  return undefined;
}

/** What the model files that a node names say. */
function familyOf(node: GraphNode): string | undefined {
  for (const [input, value] of Object.entries(node.inputs)) {
    const [category = ""] = loaderCategories(node.class_type, input) ?? [];
    if (typeof value === "string" && MODEL_CATEGORIES.has(category)) {
      const family = FAMILIES.find(([pattern]) => pattern.test(value))?.[1];
      if (family !== undefined) {
        return family;
      }
    }
  }
  return undefined;
}
