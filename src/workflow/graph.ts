/**
 * The shapes that the rest of the program works on: ComfyUI's API graph, and a workflow read from whatever the
 * user gave. Pure types and tiny readers; nothing here touches network or disk.
 */
import type { JsonObject, JsonValue } from "../platform/json.ts";

/** One node of an API-format prompt. `inputs` holds values, and links as `[nodeId, outputSlot]`. */
export interface GraphNode {
  readonly class_type: string;
  readonly inputs: Readonly<Record<string, JsonValue>>;
  readonly _meta?: { readonly title?: string; readonly [key: string]: JsonValue | undefined };
}

/** ComfyUI's API format: node id → node, in the order of the file. Ids of subgraph nodes look like `57:3`. */
export type Graph = Readonly<Record<string, GraphNode>>;

/** Where a model can be had, as the workflow itself says (`properties.models`, top-level `models`, `_meta`). */
export interface ModelHint {
  readonly name: string;
  readonly url: string;
  /** ComfyUI category, possibly with a sub-path (`loras/foo`). */
  readonly directory?: string;
  readonly hash?: string;
  readonly hashType?: string;
}

/** The node pack a class comes from, as a UI file says. */
export interface NodePack {
  /** Id in ComfyUI's registry. */
  readonly cnrId?: string;
  /** `owner/repository` on GitHub. */
  readonly auxId?: string;
  /** Version or commit. */
  readonly version?: string;
}

/** An input of a node, by their names. */
export interface InputPlaceName {
  readonly node: string;
  readonly input: string;
}

/** A named input of a workflow served as an API of its own (`_meta.inputs`, App Mode, `workflow expose`). */
export interface ExposedInput extends InputPlaceName {
  readonly name: string;
  readonly description?: string;
  /** Further places that get the same value: one primitive or subgraph widget may feed several nodes. */
  readonly also?: readonly InputPlaceName[];
}

/** A widget that a subgraph shows on the page; the prompt has its value at other nodes. */
export interface ShownWidget {
  /** Id of the subgraph's node, which isn't in the prompt. */
  readonly node: string;
  readonly title: string;
  readonly widget: string;
  readonly places: readonly InputPlaceName[];
}

/** A node of a class nobody knows, whose file doesn't name its widgets. */
export interface UnnamedNode {
  readonly nodeId: string;
  readonly classType: string;
  /** `owner/repository`, or the id in ComfyUI's registry. */
  readonly pack: string | undefined;
  readonly version: string | undefined;
}

export type WorkflowFormat = "api" | "wrapped" | "guide" | "ui";

/** A workflow read and, if need be, converted: what every later stage takes. */
export interface Workflow {
  readonly format: WorkflowFormat;
  readonly graph: Graph;
  /** `_meta.required_weights`: needed whatever the graph says. */
  readonly requiredWeights: readonly string[];
  /** `_meta.ignored_weights`: never reported missing. */
  readonly ignoredWeights: readonly string[];
  readonly models: readonly ModelHint[];
  readonly exposed: readonly ExposedInput[];
  /** Titles of the subgraphs a node lies in, outermost first, by node id; absent for nodes of the root graph. */
  readonly subgraphs: Readonly<Record<string, readonly string[]>>;
  /** Node packs by class, where a UI file names them; ComfyUI's own nodes have none. */
  readonly packs?: Readonly<Record<string, NodePack>>;
  /** Of a UI file: the widgets that its subgraphs show. */
  readonly shown?: readonly ShownWidget[];
  /** Nodes whose values have numbers for names; only where the caller allows them. Such a graph can't run. */
  readonly unnamed?: readonly UnnamedNode[];
  /** The whole document it was read from, wrappers included: for writing it out again. */
  readonly document?: JsonObject;
  /** The UI document it was converted from; ComfyUI stores it in the pictures (`extra_pnginfo.workflow`). */
  readonly ui?: JsonObject;
  /** Things worth telling that stop nothing ("node 7 is muted", "two surplus widget values dropped"). */
  readonly notes: readonly string[];
}

/** A link to another node's output, or undefined when the value is none. */
export function linkOf(
  value: JsonValue | undefined,
): { readonly nodeId: string; readonly slot: number } | undefined {
  if (!Array.isArray(value) || value.length !== 2) {
    return undefined;
  }
  const [nodeId, slot] = value;
  return typeof nodeId === "string" && typeof slot === "number" ? { nodeId, slot } : undefined;
}
