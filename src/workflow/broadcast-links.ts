/**
 * Links that "Use Everywhere" nodes make without a wire. The pack saves the links it would make in the graph's
 * `extra.ue_links`; they are read from there, so that the rules by which it found them need not be known.
 */
import type { JsonObject } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { own, ownList, ownObject, ownText } from "./graph-read.ts";
import { nodeIdOf } from "./meta.ts";
import type { UiLink, UiNode } from "./ui-schema.ts";

/** Adds the saved links to nodes and links of one scope, each where the input is still free. */
export function addBroadcastLinks(
  scope: JsonObject,
  nodes: Map<string, UiNode>,
  links: Map<string, UiLink>,
  newId: (id: string) => string,
): void {
  const rows = ownList(ownObject(scope, "extra") ?? {}, "ue_links").filter(isJsonObject);
  for (const [index, row] of rows.entries()) {
    const ids = ["upstream", "downstream", "controller"].map((key) => nodeIdOf(own(row, key)));
    const [origin = "", target = "", controller = ""] = ids.map((id) => newId(id ?? ""));
    const node = nodes.get(target);
    const slot = node === undefined ? -1 : freeSlot(node, row);
    if (node === undefined || slot === -1 || nodes.get(controller)?.mode !== 0) {
      continue;
    }
    const linkId = `everywhere ${index}`;
    const originSlot = Number(own(row, "upstream_slot"));
    links.set(linkId, { origin, originSlot, target, targetSlot: slot });
    const inputs = node.inputs.map((input, place) =>
      place === slot ? { ...input, link: linkId } : input,
    );
    nodes.set(target, { ...node, inputs });
  }
}

/** The slot the row names, if it is free and of the type; else the first such one: files leave slots out. */
function freeSlot(node: UiNode, row: JsonObject): number {
  const type = ownText(row, "type");
  const isFree = (slot: number) =>
    node.inputs[slot]?.link === undefined && node.inputs[slot]?.type === type;
  const named = Number(own(row, "downstream_slot"));
  return isFree(named) ? named : node.inputs.findIndex((_input, slot) => isFree(slot));
}
