/**
 * Every use of a subgraph unfolded: a tree of levels, one per instance, each with the widget values that were set
 * on it from outside. A definition used twice gives two levels.
 */
import { InputError } from "../platform/errors.ts";
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { checkCount } from "./api-graph.ts";
import { clip } from "./describe.ts";
import { own } from "./graph-read.ts";
import { MAX_SUBGRAPH_DEPTH } from "./limits.ts";
import type { UiDocument, UiNode, UiPort, UiScope, UiSubgraph } from "./ui-schema.ts";
import { BYPASSED, INPUT_PORTS, MUTED } from "./ui-schema.ts";

/** The root graph, or one use of a subgraph. */
export interface Level {
  readonly scope: UiScope;
  /** What stands before the ids of its nodes in the prompt: empty, `57:`, `57:12:`. */
  readonly prefix: string;
  /** Titles of the instances it lies in, outermost first. */
  readonly titles: readonly string[];
  /** The node that this level is the inside of. */
  readonly host: Host | undefined;
  /** Levels inside, by the id of their instance. */
  readonly children: ReadonlyMap<string, Level>;
  /** Values that replace the saved ones of widgets in this level, by {@link widgetKey}. */
  readonly values: ReadonlyMap<string, JsonValue>;
  /** False inside an instance that is switched off: nothing in here runs. */
  readonly isActive: boolean;
  /** True inside an instance that is switched off at the root: the page sends nothing from in here. */
  readonly isHidden: boolean;
  /** Inputs of any subgraph of the document that lead to a widget. */
  readonly promoted: ReadonlySet<UiPort>;
}

export interface Host {
  readonly node: UiNode;
  readonly level: Level;
  readonly definition: UiSubgraph;
}

/** Names a widget of a level. */
export function widgetKey(nodeId: string, widget: string): string {
  return `${nodeId}\n${widget}`;
}

export function isOff(node: UiNode): boolean {
  return node.mode === MUTED || node.mode === BYPASSED;
}

/** Unfolds a document. Refuses subgraphs that contain themselves and those that multiply beyond measure. */
export function buildLevels(document: UiDocument): Level {
  let count = 0;
  const build = (scope: UiScope, seed: LevelSeed): Level => {
    count += scope.nodes.size;
    checkCount(count);
    const values = new Map(seed.values);
    applyPrimitives(scope, values);
    const children = new Map<string, Level>();
    const level: Level = { ...seed, scope, values, children };
    for (const node of scope.nodes.values()) {
      const definition = document.subgraphs.get(node.type);
      if (definition !== undefined) {
        const host = { node, level, definition };
        refuseRecursion(host);
        children.set(node.id, build(definition, seedOf(host)));
      }
    }
    return level;
  };
  return build(document, {
    prefix: "",
    titles: [],
    host: undefined,
    values: new Map(),
    isActive: true,
    isHidden: false,
    promoted: promotedPorts(document),
  });
}

type LevelSeed = Omit<Level, "scope" | "children">;

function refuseRecursion({ definition, level }: Host): void {
  let depth = 0;
  for (let host = level.host; host !== undefined; host = host.level.host) {
    depth += 1;
    if (host.definition.id === definition.id || depth > MAX_SUBGRAPH_DEPTH) {
      throw new InputError(
        "WORKFLOW_INVALID",
        host.definition.id === definition.id
          ? `The subgraph '${clip(definition.name)}' contains itself.`
          : `Subgraphs are nested more than ${MAX_SUBGRAPH_DEPTH} deep.`,
        { hint: "Open the workflow in ComfyUI and unpack this subgraph." },
      );
    }
  }
}

function seedOf(host: Host): LevelSeed {
  const { node, level, definition } = host;
  return {
    prefix: `${level.prefix}${node.id}:`,
    titles: [...level.titles, node.title ?? definition.name],
    host,
    values: hostedValues(host),
    isActive: level.isActive && !isOff(node),
    isHidden: level.isHidden || (level.host === undefined && isOff(node)),
    promoted: level.promoted,
  };
}

/** A primitive's value is that of every widget it is wired to directly, even when it is muted. */
function applyPrimitives(scope: UiScope, values: Map<string, JsonValue>): void {
  const primitives = new Map<string, JsonValue>();
  for (const node of scope.nodes.values()) {
    const saved = isJsonObject(node.values) ? undefined : node.values?.[0];
    const value = values.get(widgetKey(node.id, "value")) ?? saved;
    if (node.type === "PrimitiveNode" && value !== undefined) {
      primitives.set(node.id, value);
    }
  }
  const fed = [...scope.nodes.values()].flatMap((node) =>
    node.inputs.map((input) => ({ node, input, link: scope.links.get(input.link ?? "") })),
  );
  for (const { node, input, link } of primitives.size === 0 ? [] : fed) {
    const value = link === undefined ? undefined : primitives.get(link.origin);
    if (value !== undefined) {
      values.set(widgetKey(node.id, input.widget ?? input.name), value);
    }
  }
}

/** Key of a value that a subgraph's own input has, as its host sets it. */
export function portKey(name: string): string {
  return widgetKey(INPUT_PORTS, name);
}

/**
 * The values that an instance sets on its inside: what was set on the instance's widgets from outside, else what the
 * file saved on it, by its list of proxies or, without one, by the subgraph's inputs that lead to a widget.
 */
function hostedValues(host: Host): Map<string, JsonValue> {
  const { node, level, definition } = host;
  const places = promotedPlaces(host);
  const values = new Map<string, JsonValue>();
  for (const [index, { key, name }] of places.entries()) {
    const saved = isJsonObject(node.values) ? own(node.values, name) : node.values?.[index];
    const value = level.values.get(widgetKey(node.id, name)) ?? saved;
    if (value !== undefined && value !== null) {
      values.set(key, value);
    }
  }
  // A primitive may feed an input that no proxy lists.
  for (const port of definition.inputs) {
    const value = level.values.get(widgetKey(node.id, port.name));
    if (value !== undefined) {
      values.set(portKey(port.name), value);
    }
  }
  return values;
}

/** The widgets an instance shows, in the order of its values: their place inside and their name outside. */
function promotedPlaces({ node, definition, level }: Host): { key: string; name: string }[] {
  if (node.proxies !== undefined) {
    return node.proxies.map(({ node: inner, widget }) => ({
      key: inner === "-1" ? portKey(widget) : widgetKey(inner, widget),
      name: widget,
    }));
  }
  return definition.inputs
    .filter((port) => level.promoted.has(port))
    .map((port) => ({ key: portKey(port.name), name: port.name }));
}

/** The inputs behind which something is a widget, however deep. Each is looked at once: subgraphs may fan out. */
function promotedPorts(document: UiDocument): Set<UiPort> {
  const answers = new Map<UiPort, boolean>();
  const leadsToWidget = (definition: UiSubgraph, port: UiPort, depth: number): boolean => {
    const known = answers.get(port);
    if (known !== undefined || depth > MAX_SUBGRAPH_DEPTH) {
      return known ?? false;
    }
    // A subgraph that contains itself is refused later; until then this entry ends the circle.
    answers.set(port, false);
    const answer = portTargets(definition, port).some(({ node, inputName, widget }) => {
      const inner = document.subgraphs.get(node.type);
      const innerPort = inner?.inputs.find(({ name }) => name === inputName);
      return inner === undefined
        ? widget !== undefined
        : innerPort !== undefined && leadsToWidget(inner, innerPort, depth + 1);
    });
    answers.set(port, answer);
    return answer;
  };
  const all = [...document.subgraphs.values()].flatMap((definition) =>
    definition.inputs.filter((port) => leadsToWidget(definition, port, 0)),
  );
  return new Set(all);
}

export interface PortTarget {
  readonly node: UiNode;
  readonly inputName: string;
  readonly widget: string | undefined;
}

/** What hangs on an input of a subgraph, inside, in the order of its links. */
export function portTargets(definition: UiSubgraph, port: UiPort): PortTarget[] {
  return port.linkIds.flatMap((linkId) => {
    const link = definition.links.get(linkId);
    const node = link === undefined ? undefined : definition.nodes.get(link.target);
    const input = node?.inputs.find((slot) => slot.link === linkId);
    return node === undefined || input === undefined
      ? []
      : [{ node, inputName: input.name, widget: input.widget }];
  });
}
