/** What a finished prompt produced, read from its history: files and texts, in node and batch order. */
import type { ReportedFile } from "../workflow/engine-files.ts";
import type { Graph } from "../workflow/graph.ts";
import type { HistoryEntry } from "./wire.ts";

/** UI output of nodes: node id → key → list. */
export type NodeOutputs = Readonly<Record<string, Readonly<Record<string, unknown>>>>;

export interface ReportedOutputs {
  readonly files: readonly ReportedFile[];
  readonly texts: readonly { readonly nodeId: string; readonly text: string }[];
}

/** Files and texts of all nodes: in the order of the graph, then nodes that a node made while it ran. */
export function readOutputs(
  graph: Graph,
  outputs: NodeOutputs,
  meta: HistoryEntry["meta"],
): ReportedOutputs {
  const order = new Map(Object.keys(graph).map((id, index) => [id, index]));
  const rank = (id: string): number =>
    order.get(id) ?? order.get(displayed(id, meta)) ?? order.size;
  const found = Object.keys(outputs)
    .toSorted((one, other) => rank(one) - rank(other))
    .flatMap((id) => {
      const nodeId = order.has(id) ? id : displayed(id, meta);
      return elementsOf(outputs[id] ?? {}).map((element) => ({ nodeId, ...element }));
    });
  const files = found.flatMap(({ nodeId, key, value }) => fileOf(nodeId, key, value) ?? []);
  const texts = found.flatMap(({ nodeId, key, value }) =>
    key === "text" && typeof value === "string" ? [{ nodeId, text: value }] : [],
  );
  return { files: distinct(files), texts };
}

function elementsOf(output: Readonly<Record<string, unknown>>): { key: string; value: unknown }[] {
  return Object.entries(output).flatMap(([key, value]) =>
    (Array.isArray(value) ? value : [value]).map((element: unknown) => ({ key, value: element })),
  );
}

/** A file that several nodes report counts for the first of them. */
function distinct(files: readonly ReportedFile[]): ReportedFile[] {
  const byPlace = new Map<string, ReportedFile>();
  for (const file of files) {
    const place = `${file.type}/${file.subfolder}/${file.filename}`;
    byPlace.set(place, byPlace.get(place) ?? file);
  }
  return [...byPlace.values()];
}

function displayed(id: string, meta: HistoryEntry["meta"]): string {
  return meta?.[id]?.display_node ?? id.split(".")[0] ?? id;
}

/** Anything with a file name is a file, whatever its key: video lies under `images`, VHS's under `gifs`. */
function fileOf(nodeId: string, key: string, element: unknown): ReportedFile | undefined {
  if (typeof element !== "object" || element === null || !("filename" in element)) {
    return undefined;
  }
  const { filename } = element;
  if (typeof filename !== "string" || filename === "") {
    return undefined;
  }
  const subfolder = "subfolder" in element ? element.subfolder : "";
  const type = "type" in element ? element.type : "output";
  return {
    nodeId,
    key,
    filename,
    subfolder: typeof subfolder === "string" ? subfolder : "",
    type: type === "temp" || type === "input" ? type : "output",
  };
}
