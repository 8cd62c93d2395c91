/**
 * Reads and rebuilds objects whose keys a stranger chose: `__proto__` and `constructor` are ordinary names here,
 * never a prototype.
 */
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { Graph, GraphNode } from "./graph.ts";

/** The node of that id, or undefined; inherited names are no nodes. */
export function nodeOf(graph: Graph, id: string): GraphNode | undefined {
  return Object.hasOwn(graph, id) ? graph[id] : undefined;
}

/** The own property of that name. */
export function own<T>(record: Readonly<Record<string, T>>, key: string): T | undefined {
  return Object.hasOwn(record, key) ? record[key] : undefined;
}

/** The own property, if it is an object. */
export function ownObject(record: JsonObject, key: string): JsonObject | undefined {
  const value = own(record, key);
  return isJsonObject(value) ? value : undefined;
}

/** The own property, if it is a list; an empty one otherwise. */
export function ownList(record: JsonObject, key: string): readonly JsonValue[] {
  const value = own(record, key);
  return Array.isArray(value) ? value : [];
}

/** The own property, if it is text. */
export function ownText(record: JsonObject, key: string): string | undefined {
  const value = own(record, key);
  return typeof value === "string" ? value : undefined;
}

/** A record from pairs. Later pairs win; an assignment by key would trip over `__proto__`. */
export function record<T>(pairs: Iterable<readonly [string, T]>): Record<string, T> {
  return Object.fromEntries(pairs);
}
