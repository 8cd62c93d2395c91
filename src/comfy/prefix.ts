/**
 * Gives every saving node of a graph a sub-folder of this run. ComfyUI answers a cached save node with the old file
 * names, whatever became of the files (comfyui.md §8.2); with a prefix of its own each run saves anew, what comes
 * before the save stays cached, and the run's files lie together.
 */
import { replaceInputs } from "../workflow/edits.ts";
import type { Graph } from "../workflow/graph.ts";

/** Every saver of ComfyUI and of the packs calls it so. */
const PREFIX_INPUT = "filename_prefix";
const DEFAULT_NAME = "ComfyUI";

/** The graph with `runId/` before each `filename_prefix` that is text. */
export function prefixOutputs(graph: Graph, runId: string): Graph {
  return replaceInputs(graph, ({ input, value }) =>
    input === PREFIX_INPUT && typeof value === "string" ? `${runId}/${cleanPrefix(value)}` : value,
  );
}

/** Parts that would leave the folder are dropped; a prefix that ends in `/` would overwrite its own files. */
function cleanPrefix(prefix: string): string {
  const parts = prefix.split(/[\\/]/).filter((part) => !["", ".", ".."].includes(part));
  return parts.length === 0 || /[\\/]$/.test(prefix)
    ? [...parts, DEFAULT_NAME].join("/")
    : parts.join("/");
}
