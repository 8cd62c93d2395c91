/** Follows a link upstream to the node that really makes the value, through everything that exists on the page only. */
import type { JsonValue } from "../platform/json.ts";
import type { Level, PortTarget } from "./levels.ts";
import { portKey, portTargets } from "./levels.ts";
import type { UiNode, UiPort } from "./ui-schema.ts";
import { BYPASSED, INPUT_PORTS, MUTED } from "./ui-schema.ts";
import { findSetter, isPassThrough, isVirtual } from "./virtual-nodes.ts";

/** Where an input's value comes from. */
export type Source =
  | { readonly kind: "node"; readonly id: string; readonly slot: number }
  | { readonly kind: "value"; readonly value: JsonValue };

/** What the resolver asks of its owner. */
export interface LinkContext {
  /** Answers so far, by place and type: many inputs may hang on one long chain. */
  readonly resolved: Map<string, Source | undefined>;
  /** The value that a widget of a plain node has, with everything set from outside. */
  readonly widgetValue: (level: Level, node: UiNode, widget: string) => JsonValue | undefined;
  /** Input slots of a node in the page's order, with those that the file leaves out. */
  readonly slots: (node: UiNode) => readonly Slot[];
}

export interface Slot {
  readonly name: string;
  readonly type: string;
  readonly link: string | undefined;
}

/** A link in a level: the place a search has come to. */
interface Place {
  readonly level: Level;
  readonly linkId: string;
}

/** The source of a link in a level; undefined when nothing real is behind it. A loop: chains may be long. */
export function resolveLink(context: LinkContext, start: Place, type: string): Source | undefined {
  const passed = new Set<string>();
  // A value that a host's primitive gave the socket, for when nothing real is wired to it.
  let given: Source | undefined;
  let place: Place | undefined = start;
  let found: Source | undefined;
  while (place !== undefined) {
    const key = `${place.level.prefix}#${place.linkId}#${type}`;
    if (passed.has(key)) {
      break;
    }
    if (context.resolved.has(key)) {
      found = context.resolved.get(key);
      break;
    }
    passed.add(key);
    const next: Source | Place | undefined = step(context, place, type);
    if (next !== undefined && "kind" in next) {
      found = next;
      break;
    }
    given = givenValue(place) ?? given;
    place = next;
  }
  const answer = found ?? given;
  // A given value belongs to where it was found; places before it may have one of their own.
  for (const key of found === undefined ? [] : passed) {
    context.resolved.set(key, found);
  }
  return answer;
}

function step(context: LinkContext, place: Place, type: string): Source | Place | undefined {
  const { level } = place;
  const link = level.scope.links.get(place.linkId);
  if (link?.origin === INPUT_PORTS) {
    return stepOut(context, level, link.originSlot);
  }
  const node = link === undefined ? undefined : level.scope.nodes.get(link.origin);
  return link === undefined || node === undefined
    ? undefined
    : stepUp({ context, level, node, slot: link.originSlot, type });
}

/** From an input of the subgraph to what is wired to the instance, else to the promoted widget's value. */
function stepOut(context: LinkContext, level: Level, slot: number): Source | Place | undefined {
  const { host } = level;
  const port = host?.definition.inputs[slot];
  if (host === undefined || port === undefined) {
    return undefined;
  }
  const outer = host.node.inputs.find((input) => input.name === port.name);
  if (outer?.link !== undefined) {
    return { level: host.level, linkId: outer.link };
  }
  const value = promotedValue(context, level, port);
  return value === undefined ? undefined : { kind: "value", value };
}

/** What a primitive outside gives the subgraph's input that a link comes from. */
function givenValue({ level, linkId }: Place): Source | undefined {
  const link = level.scope.links.get(linkId);
  const port =
    link?.origin === INPUT_PORTS ? level.host?.definition.inputs[link.originSlot] : undefined;
  const value = port === undefined ? undefined : level.values.get(portKey(port.name));
  return value === undefined ? undefined : { kind: "value", value };
}

/** The value of a promoted widget: what the host says, else what the first widget behind it has. */
export function promotedValue(
  context: LinkContext,
  level: Level,
  port: UiPort,
): JsonValue | undefined {
  const definition = level.host?.definition;
  if (definition === undefined || !level.promoted.has(port)) {
    return undefined;
  }
  const set = level.values.get(portKey(port.name));
  if (set !== undefined) {
    return set;
  }
  for (const target of portTargets(definition, port)) {
    const value = targetValue(context, level, target);
    if (value !== undefined) {
      return value;
    }
  }
  return undefined;
}

function targetValue(
  context: LinkContext,
  level: Level,
  { node, inputName, widget }: PortTarget,
): JsonValue | undefined {
  const child = level.children.get(node.id);
  if (child === undefined) {
    return widget === undefined ? undefined : context.widgetValue(level, node, widget);
  }
  const port = child.host?.definition.inputs.find(({ name }) => name === inputName);
  return port === undefined ? undefined : promotedValue(context, child, port);
}

interface OutputQuery {
  readonly context: LinkContext;
  readonly level: Level;
  readonly node: UiNode;
  readonly slot: number;
  /** What the consumer wants. */
  readonly type: string;
}

/** From a node's output to the node itself, or past it when it is off, a container or on the page only. */
function stepUp(query: OutputQuery): Source | Place | undefined {
  const { level, node, slot } = query;
  if (node.mode === MUTED) {
    return undefined;
  }
  if (node.mode === BYPASSED) {
    return placeOf(level, bypassInput(query)?.link);
  }
  const child = level.children.get(node.id);
  if (child !== undefined) {
    return placeOf(child, outputLink(child, node, slot));
  }
  if (isPassThrough(node)) {
    return placeOf(level, node.inputs[0]?.link);
  }
  const setter = findSetter(level, node);
  if (setter !== undefined) {
    return placeOf(setter.level, setter.node.inputs[0]?.link);
  }
  return isVirtual(node) ? undefined : { kind: "node", id: level.prefix + node.id, slot };
}

function placeOf(level: Level, linkId: string | undefined): Place | undefined {
  return linkId === undefined ? undefined : { level, linkId };
}

/** The link inside that feeds an output of the instance, matched by name where the counts differ. */
function outputLink(child: Level, node: UiNode, slot: number): string | undefined {
  const ports = child.host?.definition.outputs ?? [];
  const name = node.outputs[slot]?.name;
  const byName = ports.find((port) => port.name === name);
  const port = node.outputs.length === ports.length ? ports[slot] : (byName ?? ports[slot]);
  return port?.linkIds[0];
}

/** Which input a bypassed node hands through: the one at the same place if it fits, else the first of the type. */
function bypassInput({ context, node, slot, type }: OutputQuery): Slot | undefined {
  const slots = context.slots(node);
  if (isAny(type)) {
    return slots[slot] ?? slots[0];
  }
  const opposite = slots[slot];
  const outputType = node.outputs[slot]?.type ?? "*";
  if (opposite !== undefined && fits(opposite.type, outputType) && fits(opposite.type, type)) {
    return opposite;
  }
  return (
    slots.find((input) => input.type === type) ?? slots.find((input) => fits(input.type, type))
  );
}

function isAny(type: string): boolean {
  return type === "*" || type === "";
}

/** Litegraph's rule: equal, any, or two lists with a type in common; case doesn't count. */
function fits(one: string, other: string): boolean {
  if (isAny(one) || isAny(other)) {
    return true;
  }
  const types = other.toLowerCase().split(",");
  return one
    .toLowerCase()
    .split(",")
    .some((type) => types.includes(type));
}
