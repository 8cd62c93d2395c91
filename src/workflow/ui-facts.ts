/** What a UI file says about models and node packs, in every node and every subgraph, whether it runs or not. */
import type { JsonObject } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { ModelHint, NodePack } from "./graph.ts";
import { ownList, ownObject, ownText, record } from "./graph-read.ts";
import { readModels } from "./meta.ts";

export interface UiFacts {
  readonly models: readonly ModelHint[];
  /** Node pack by class; ComfyUI's own nodes are left out. */
  readonly packs: Readonly<Record<string, NodePack>>;
}

/** Collects `properties.models`, top-level `models`, and the packs of all nodes. */
export function collectFacts(document: JsonObject): UiFacts {
  const models: ModelHint[] = readModels(document);
  const packs = new Map<string, NodePack>();
  const scopes = [document];
  // Definitions are stored flat or inside each other; the list grows while it is walked.
  for (const scope of scopes) {
    scopes.push(
      ...ownList(ownObject(scope, "definitions") ?? {}, "subgraphs").filter(isJsonObject),
    );
    for (const node of ownList(scope, "nodes").filter(isJsonObject)) {
      const properties = ownObject(node, "properties") ?? {};
      models.push(...readModels(properties));
      const classType = ownText(node, "type");
      const pack = packOf(properties);
      if (classType !== undefined && pack !== undefined && !packs.has(classType)) {
        packs.set(classType, pack);
      }
    }
  }
  return { models, packs: record(packs) };
}

/** The pack a node's properties name, as ComfyUI-Manager and the registry write it. */
export function packOf(properties: JsonObject): NodePack | undefined {
  const cnrId = ownText(properties, "cnr_id");
  const auxId = ownText(properties, "aux_id");
  const version = ownText(properties, "ver");
  if (cnrId === "comfy-core" || (cnrId === undefined && auxId === undefined)) {
    return undefined;
  }
  return {
    ...(cnrId === undefined ? {} : { cnrId }),
    ...(auxId === undefined ? {} : { auxId }),
    ...(version === undefined ? {} : { version }),
  };
}
