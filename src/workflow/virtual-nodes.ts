/** Nodes that exist on the page only: they never reach the server, but links may run through them. */
import type { JsonValue } from "../platform/json.ts";
import type { Level } from "./levels.ts";
import type { UiNode } from "./ui-schema.ts";

/** Page-only nodes that hand their first input through. */
const PASS_THROUGH: ReadonlySet<string> = new Set(["Reroute", "Reroute (rgthree)", "SetNode"]);

/** Page-only nodes without any effect on the prompt. */
const INERT: ReadonlySet<string> = new Set([
  "PrimitiveNode",
  "Note",
  "MarkdownNote",
  "GetNode",
  // rgthree-comfy
  "Bookmark (rgthree)",
  "Fast Actions Button (rgthree)",
  "Fast Bypasser (rgthree)",
  "Fast Groups Bypasser (rgthree)",
  "Fast Groups Muter (rgthree)",
  "Fast Muter (rgthree)",
  "Label (rgthree)",
  "Mute / Bypass Relay (rgthree)",
  "Mute / Bypass Repeater (rgthree)",
  "Node Collector (rgthree)",
  "Random Unmuter (rgthree)",
  // cg-use-everywhere: its links are read from the file
  "Anything Everywhere",
  "Anything Everywhere3",
  "Anything Everywhere?",
  "Prompts Everywhere",
  // others
  "Note Plus (mtb)",
  "Note _O",
]);

export function isPassThrough(node: UiNode): boolean {
  return PASS_THROUGH.has(node.type);
}

/** True for a node that the page never sends to the server. */
export function isVirtual(node: UiNode): boolean {
  return PASS_THROUGH.has(node.type) || INERT.has(node.type);
}

/** The `SetNode` that a `GetNode` reads from by name, in its own graph or one around it. */
export function findSetter(
  level: Level,
  node: UiNode,
): { readonly level: Level; readonly node: UiNode } | undefined {
  const name = node.type === "GetNode" ? variableOf(node) : undefined;
  if (name === undefined) {
    return undefined;
  }
  for (let at: Level | undefined = level; at !== undefined; at = at.host?.level) {
    for (const candidate of at.scope.nodes.values()) {
      if (candidate.type === "SetNode" && variableOf(candidate) === name) {
        return { level: at, node: candidate };
      }
    }
  }
  return undefined;
}

function variableOf(node: UiNode): JsonValue | undefined {
  return Array.isArray(node.values) ? node.values[0] : undefined;
}
