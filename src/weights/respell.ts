/**
 * Gives every weight in a graph the name ComfyUI lists it under, where that is another one than the workflow spells: a
 * separator of another system, a synonym, a file that was fetched from an address. A name that exists is never touched.
 */
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { replaceInputs } from "../workflow/edits.ts";
import type { Graph } from "../workflow/graph.ts";
import type { PresentWeight } from "./refs.ts";

/** A name that was changed, for the log. */
export interface Respelled {
  readonly nodeId: string;
  readonly input: string;
  readonly from: string;
  readonly to: string;
}

/** The graph with listed names, and which inputs changed. */
export function respellWeights(
  graph: Graph,
  present: readonly PresentWeight[],
): { readonly graph: Graph; readonly respelled: readonly Respelled[] } {
  const renamed = new Map(
    present.flatMap(({ ref, listedAs }) =>
      listedAs === undefined || ref.nodeId === undefined || ref.input === undefined
        ? []
        : [[placeKey(ref.nodeId, ref.input), { from: ref.name, to: listedAs }] as const],
    ),
  );
  const respelled: Respelled[] = [];
  if (renamed.size === 0) {
    return { graph, respelled };
  }
  const changed = replaceInputs(graph, ({ nodeId, input, value }) => {
    const rename = renamed.get(placeKey(nodeId, input));
    const next = rename === undefined ? value : renameIn(value, rename.from, rename.to);
    if (rename !== undefined && next !== value) {
      respelled.push({ nodeId, input, ...rename });
    }
    return next;
  });
  return { graph: changed, respelled };
}

function placeKey(nodeId: string, input: string): string {
  return JSON.stringify([nodeId, input]);
}

/** The name may be the value itself, a member of an object row (`{on, lora}`), or a word within a text. */
function renameIn(value: JsonValue, from: string, to: string): JsonValue {
  if (typeof value === "string") {
    return value === from ? to : value.replaceAll(from, to);
  }
  if (isJsonObject(value)) {
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => [key, inner === from ? to : inner]),
    );
  }
  return value;
}
