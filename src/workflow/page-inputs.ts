/**
 * Values that people set on the page at one place and that the prompt holds at others: the inputs chosen for App Mode
 * (`extra.linearData`), the widgets that a subgraph shows, those that a primitive feeds.
 */
import type { JsonObject } from "../platform/json.ts";
import { nameRows } from "./expose.ts";
import type { ExposedInput, Graph, InputPlaceName, ShownWidget } from "./graph.ts";
import { linkOf } from "./graph.ts";
import { nodeOf, own, ownList, ownObject } from "./graph-read.ts";
import type { Level } from "./levels.ts";
import { portTargets } from "./levels.ts";
import { MAX_SUBGRAPH_DEPTH } from "./limits.ts";
import { nodeIdOf } from "./meta.ts";
import type { UiNode } from "./ui-schema.ts";

/** A node of the page and the level it is in. */
export interface PagePlace {
  readonly level: Level;
  readonly node: UiNode;
}

/** Rows are `[node id, widget name]`; a node may be a subgraph or a primitive, whose widgets stand for others. */
export function appModeInputs(
  document: JsonObject,
  nodes: readonly PagePlace[],
  graph: Graph,
): ExposedInput[] {
  const linear = ownObject(ownObject(document, "extra") ?? {}, "linearData") ?? {};
  const rows = ownList(linear, "inputs").flatMap((row) => {
    const [id, widget] = Array.isArray(row) ? row : [];
    const found = nodes.find(({ node }) => node.id === nodeIdOf(id));
    if (found === undefined || typeof widget !== "string") {
      return [];
    }
    const places = placesOf({ ...found, widget }, 0).filter((place) => isValue(graph, place));
    const [first, ...also] = places;
    return first === undefined
      ? []
      : [{ ...first, also, title: found.node.title ?? found.node.type }];
  });
  return nameRows(rows);
}

/** The widgets that subgraphs show, each with the inputs in the prompt that it sets. */
export function shownWidgets(nodes: readonly PagePlace[], graph: Graph): ShownWidget[] {
  return nodes.flatMap(({ level, node }) => {
    const definition = level.children.get(node.id)?.host?.definition;
    if (definition === undefined) {
      return [];
    }
    const proxied = node.proxies?.map(({ widget }) => widget) ?? [];
    const promoted = definition.inputs.filter((port) => level.promoted.has(port));
    const names = new Set([...proxied, ...promoted.map(({ name }) => name)]);
    return [...names].flatMap((widget) => {
      const places = placesOf({ level, node, widget }, 0).filter((place) => isValue(graph, place));
      const title = node.title ?? definition.name;
      return places.length === 0 ? [] : [{ node: level.prefix + node.id, title, widget, places }];
    });
  });
}

/** A widget of the page and the level it is in. */
interface PageWidget extends PagePlace {
  readonly widget: string;
}

function isValue(graph: Graph, { node, input }: InputPlaceName): boolean {
  const inputs = nodeOf(graph, node)?.inputs;
  const value = inputs === undefined ? undefined : own(inputs, input);
  return value !== undefined && linkOf(value) === undefined;
}

/** The inputs in the prompt that a widget of the page sets. */
function placesOf(page: PageWidget, depth: number): InputPlaceName[] {
  const { level, node, widget } = page;
  if (depth > MAX_SUBGRAPH_DEPTH) {
    return [];
  }
  const inner = level.children.get(node.id);
  if (inner !== undefined) {
    return insideOf(page, inner).flatMap((target) => placesOf(target, depth + 1));
  }
  if (node.type === "PrimitiveNode") {
    return fedBy(page).flatMap((target) => placesOf(target, depth + 1));
  }
  return [{ node: level.prefix + node.id, input: widget }];
}

/** The widgets inside a subgraph that one of its own stands for. */
function insideOf({ node, widget }: PageWidget, inner: Level): PageWidget[] {
  const definition = inner.host?.definition;
  const proxy = node.proxies?.find((entry) => entry.widget === widget && entry.node !== "-1");
  const target = proxy === undefined ? undefined : inner.scope.nodes.get(proxy.node);
  if (target !== undefined) {
    return [{ level: inner, node: target, widget }];
  }
  const port = definition?.inputs.find(({ name }) => name === widget);
  return definition === undefined || port === undefined
    ? []
    : portTargets(definition, port).map((entry) => ({
        level: inner,
        node: entry.node,
        widget: entry.widget ?? entry.inputName,
      }));
}

/** The widgets that a primitive is wired to. */
function fedBy({ level, node }: PageWidget): PageWidget[] {
  return [...level.scope.nodes.values()].flatMap((target) =>
    target.inputs
      .filter((input) => level.scope.links.get(input.link ?? "")?.origin === node.id)
      .map((input) => ({ level, node: target, widget: input.widget ?? input.name })),
  );
}
