/** What the history of a finished prompt says: how it ended, what was cached, how long it took. */
import type { HistoryEntry } from "./wire.ts";
import { ExecutionErrorFacts } from "./wire.ts";

export type Ending = "success" | "interrupted" | ExecutionErrorFacts;

function messagesOf(entry: HistoryEntry | undefined): readonly [string, Record<string, unknown>][] {
  return entry?.status?.messages ?? [];
}

/** How a prompt ended, by the messages: the status word can be stale (comfyui.md §8.5). */
export function howItEnded(entry: HistoryEntry): Ending {
  for (const [type, data] of messagesOf(entry).toReversed()) {
    if (type === "execution_success") {
      return "success";
    }
    if (type === "execution_interrupted") {
      return "interrupted";
    }
    if (type === "execution_error") {
      return ExecutionErrorFacts.parse(data);
    }
  }
  return entry.status?.status_str === "error"
    ? ExecutionErrorFacts.parse({
        exception_message: "ComfyUI reports an error without saying which",
      })
    : "success";
}

/** Nodes whose results came from the cache; undefined when the entry doesn't say. */
export function cachedNodesOf(entry: HistoryEntry | undefined): string[] | undefined {
  const nodes = messagesOf(entry).find(([type]) => type === "execution_cached")?.[1]["nodes"];
  return Array.isArray(nodes) ? nodes.map(String) : undefined;
}

/** From the first to the last message, in ms, by ComfyUI's own clock. */
export function executionTime(entry: HistoryEntry | undefined): number | undefined {
  const times = messagesOf(entry).map(([, data]) => data["timestamp"]);
  const [first, last] = [times[0], times.at(-1)];
  return typeof first === "number" && typeof last === "number" ? last - first : undefined;
}
