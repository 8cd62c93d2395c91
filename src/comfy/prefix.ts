/**
 * Gives every saving node of a graph a sub-folder of this run. ComfyUI answers a cached save node with the old file
 * names, whatever became of the files (comfyui.md §8.2); with a prefix of its own each run saves anew, what comes
 * before the save stays cached, and the run's files lie together. Previews have no prefix and are marked instead.
 */
import { replaceInputs } from "../workflow/edits.ts";
import type { Graph, GraphNode } from "../workflow/graph.ts";
import { record } from "../workflow/graph-read.ts";

/** Every saver of ComfyUI and of the packs calls it so. */
const PREFIX_INPUT = "filename_prefix";
const DEFAULT_NAME = "ComfyUI";

/** Nodes that save temporary files under names of their own: nothing but a further input makes them run again. */
const PREVIEWS = new Set(["PreviewImage", "MaskPreview", "PreviewAudio"]);
/** ComfyUI ignores inputs that a class doesn't have, but tells results apart by them. */
const MARKER_INPUT = "cog_run";

/** The graph with `runId/` before each `filename_prefix` that is text, and previews marked as this run's. */
export function prefixOutputs(graph: Graph, runId: string): Graph {
  const prefixed = replaceInputs(graph, ({ input, value }) =>
    input === PREFIX_INPUT && typeof value === "string" ? `${runId}/${cleanPrefix(value)}` : value,
  );
  return record(
    Object.entries(prefixed).map(([id, node]): [string, GraphNode] => [
      id,
      PREVIEWS.has(node.class_type)
        ? { ...node, inputs: { ...node.inputs, [MARKER_INPUT]: runId } }
        : node,
    ]),
  );
}

/** Parts that would leave the folder are dropped; a prefix that ends in `/` would overwrite its own files. */
function cleanPrefix(prefix: string): string {
  const parts = prefix.split(/[\\/]/).filter((part) => !["", ".", ".."].includes(part));
  return parts.length === 0 || /[\\/]$/.test(prefix)
    ? [...parts, DEFAULT_NAME].join("/")
    : parts.join("/");
}
