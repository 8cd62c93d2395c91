/** UI workflow → API graph, equal to what ComfyUI's own page posts. */
import { InputError } from "../platform/errors.ts";
import type { JsonObject } from "../platform/json.ts";
import type { NodeDefinitions } from "./definitions.ts";
import type { Graph, ModelHint, NodePack } from "./graph.ts";

export interface Converted {
  readonly graph: Graph;
  readonly subgraphs: Readonly<Record<string, readonly string[]>>;
  readonly models: readonly ModelHint[];
  readonly packs: Readonly<Record<string, NodePack>>;
}

export function convertUi(
  _document: JsonObject,
  _definitions: NodeDefinitions,
  _notes: string[],
): Converted {
  throw new InputError("WORKFLOW_INVALID", "UI workflows can't be converted yet.");
}
