/**
 * UI workflow → API graph, equal to what ComfyUI's own page posts for the file: the same nodes under the same ids, since
 * ids are what errors and progress name. `test/workflow/convert-oracle.test.ts` holds it against recordings of the page.
 */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import type { DefinitionLookup, NodeDefinition } from "./definitions.ts";
import { NodeDefinitions } from "./definitions.ts";
import { clip, listNames } from "./describe.ts";
import type { ExposedInput, Graph, GraphNode, ShownWidget, UnnamedNode } from "./graph.ts";
import { linkOf } from "./graph.ts";
import { record } from "./graph-read.ts";
import { readGroupNodes } from "./group-nodes.ts";
import type { Level } from "./levels.ts";
import { buildLevels, isOff, widgetKey } from "./levels.ts";
import type { LinkContext, Slot, Source } from "./links.ts";
import { resolveLink } from "./links.ts";
import type { PagePlace } from "./page-inputs.ts";
import { appModeInputs, shownWidgets } from "./page-inputs.ts";
import type { TextRuleOptions } from "./text-rules.ts";
import { applyDynamicPrompt, COMPLETED_PREFIX_CLASSES, completeFilename } from "./text-rules.ts";
import type { UiFacts } from "./ui-facts.ts";
import { collectFacts, packOf } from "./ui-facts.ts";
import type { UiDocument, UiNode, UiScope } from "./ui-schema.ts";
import { BYPASSED, MUTED, readUiDocument } from "./ui-schema.ts";
import { isVirtual } from "./virtual-nodes.ts";
import type { Widget } from "./widgets.ts";
import { isWidget, readUnknownWidgets, readWidgets } from "./widgets.ts";

export interface Converted extends UiFacts {
  readonly graph: Graph;
  /** Titles of the subgraphs a node lies in, by node id. */
  readonly subgraphs: Readonly<Record<string, readonly string[]>>;
  /** The inputs chosen for App Mode. */
  readonly exposed: readonly ExposedInput[];
  readonly shown: readonly ShownWidget[];
  readonly unnamed: readonly UnnamedNode[];
  /** What was left out or decided, for people. */
  readonly notes: readonly string[];
}

export interface ConvertOptions extends Partial<TextRuleOptions> {
  /** Values whose names nobody knows are kept as `widget_0`, `widget_1`, … instead of refused. */
  readonly allowUnnamed?: boolean | undefined;
}

/** Converts a UI document. Throws one `InputError` that lists every node whose widgets can't be named. */
export function convertUi(
  document: JsonObject,
  definitions: NodeDefinitions,
  options: ConvertOptions = {},
): Converted {
  // A class that this engine lacks is still told apart by the table; that it can't run is for others to say.
  const lookUp = (classType: string) =>
    definitions.get(classType) ?? NodeDefinitions.core().get(classType);
  const ui = readGroupNodes(document, readUiDocument(document), lookUp);
  const conversion = new Conversion(ui, lookUp, {
    random: options.random ?? Math.random,
    now: options.now ?? (() => new Date()),
  });
  const converted = conversion.run(document);
  if (converted.unnamed.length > 0 && options.allowUnnamed !== true) {
    throw unnamedNodes(converted.unnamed);
  }
  return { ...converted, ...collectFacts(document) };
}

class Conversion {
  readonly #document: UiDocument;
  readonly #definition: DefinitionLookup;
  readonly #options: TextRuleOptions;
  readonly #context: LinkContext;
  /** Widgets by level prefix and node id: read once, asked for by links and file names too. */
  readonly #widgets = new Map<string, readonly Widget[] | undefined>();
  readonly #slots = new Map<UiNode, readonly Slot[]>();
  #names: Map<string, PagePlace> | undefined;
  readonly #unnamed: UnnamedNode[] = [];
  readonly #notes: string[] = [];
  /** Ids of nodes whose output something reads, by scope. */
  readonly #origins = new Map<UiScope, ReadonlySet<string>>();

  constructor(document: UiDocument, definition: DefinitionLookup, options: TextRuleOptions) {
    this.#document = document;
    this.#definition = definition;
    this.#options = options;
    this.#context = {
      resolved: new Map(),
      widgetValue: (level, node, widget) =>
        this.#widgetsOf(level, node)?.find(({ name }) => name === widget)?.value,
      slots: (node) => this.#slotsOf(node),
    };
  }

  run(document: JsonObject): Omit<Converted, keyof UiFacts> {
    const nodes: [string, GraphNode][] = [];
    const subgraphs: [string, readonly string[]][] = [];
    const root = buildLevels(this.#document);
    for (const { level, node } of emitted(root, this.#definition)) {
      if (this.#isLoose(level, node)) {
        continue;
      }
      const id = level.prefix + node.id;
      nodes.push([id, this.#convertNode(root, level, node)]);
      if (level.titles.length > 0) {
        subgraphs.push([id, level.titles]);
      }
    }
    this.#notes.push(...notesOnSwitchedOff(root));
    const graph = withoutDeadLinks(nodes);
    const places = [...everyNode(root)];
    return {
      graph,
      subgraphs: record(subgraphs),
      exposed: appModeInputs(document, places, graph),
      shown: shownWidgets(places, graph),
      unnamed: this.#unnamed,
      notes: this.#notes,
    };
  }

  /** True for a node of an unknown class that is wired to nothing: a label or a switch of the page, in all likelihood. */
  #isLoose(level: Level, node: UiNode): boolean {
    if (this.#definition(node.type) !== undefined || this.#isWired(level.scope, node)) {
      return false;
    }
    this.#notes.push(
      `Node ${level.prefix}${node.id} is left out: it is wired to nothing, and its class '${clip(node.type)}' is unknown.`,
    );
    return true;
  }

  #isWired(scope: UiScope, node: UiNode): boolean {
    const origins =
      this.#origins.get(scope) ?? new Set([...scope.links.values()].map(({ origin }) => origin));
    this.#origins.set(scope, origins);
    return origins.has(node.id) || node.inputs.some((input) => input.link !== undefined);
  }

  #convertNode(root: Level, level: Level, node: UiNode): GraphNode {
    const definition = this.#definition(node.type);
    const widgets = this.#widgetsOf(level, node);
    if (widgets === undefined) {
      const pack = packOf(node.properties);
      const nodeId = level.prefix + node.id;
      const source = { pack: pack?.auxId ?? pack?.cnrId, version: pack?.version };
      this.#unnamed.push({ nodeId, classType: node.type, ...source });
    }
    const inputs = new Map<string, JsonValue>();
    for (const widget of widgets ?? numberedWidgets(node)) {
      inputs.set(widget.name, this.#promptValue(root, node, widget));
    }
    for (const input of node.inputs) {
      const start = input.link === undefined ? undefined : { level, linkId: input.link };
      const source = start && resolveLink(this.#context, start, input.type);
      if (source !== undefined) {
        inputs.set(input.name, sourceValue(source));
      }
    }
    return {
      class_type: node.type,
      inputs: record(inputs),
      _meta: { title: node.title ?? definition?.displayName ?? node.type },
    };
  }

  #widgetsOf(level: Level, node: UiNode): readonly Widget[] | undefined {
    const key = level.prefix + node.id;
    if (!this.#widgets.has(key)) {
      this.#widgets.set(key, this.#readWidgets(level, node));
    }
    return this.#widgets.get(key);
  }

  #readWidgets(level: Level, node: UiNode): readonly Widget[] | undefined {
    const definition = this.#definition(node.type);
    const isSet = (name: string) => level.values.get(widgetKey(node.id, name));
    return definition === undefined
      ? readUnknownWidgets(node, isSet)
      : readWidgets(definition, node.values, isSet);
  }

  #promptValue(root: Level, node: UiNode, { name, value, definition }: Widget): JsonValue {
    if (typeof value === "string") {
      if (definition?.dynamicPrompts === true) {
        return applyDynamicPrompt(value, this.#options.random);
      }
      if (name === "filename_prefix" && COMPLETED_PREFIX_CLASSES.has(node.type)) {
        const lookUp = (title: string, widget: string) => this.#lookUp(root, title, widget);
        return completeFilename(value, lookUp, this.#options.now);
      }
    }
    return wrapped(value, definition?.type);
  }

  #slotsOf(node: UiNode): readonly Slot[] {
    const slots = this.#slots.get(node) ?? slotsOf(node, this.#definition(node.type));
    this.#slots.set(node, slots);
    return slots;
  }

  /** A widget by its node's class name as the page keeps it, else by its title. */
  #lookUp(root: Level, title: string, widget: string): JsonValue | undefined {
    this.#names ??= this.#nameNodes(root);
    const found = this.#names.get(title);
    return found && this.#context.widgetValue(found.level, found.node, widget);
  }

  /** The first node of every name; titles give way to the names of classes. */
  #nameNodes(root: Level): Map<string, PagePlace> {
    const names = new Map<string, PagePlace>();
    const all = [...everyNode(root)].reverse();
    for (const placed of all) {
      names.set(this.#titleOf(placed.node), placed);
    }
    for (const placed of all) {
      const name = placed.node.properties["Node name for S&R"];
      if (typeof name === "string") {
        names.set(name, placed);
      }
    }
    return names;
  }

  #titleOf(node: UiNode): string {
    return node.title ?? this.#definition(node.type)?.displayName ?? node.type;
  }
}

/** Every node of every level, those inside an instance behind it. Levels are few and bounded in depth. */
function* everyNode(level: Level): Generator<PagePlace> {
  for (const node of level.scope.nodes.values()) {
    yield { level, node };
    const child = level.children.get(node.id);
    if (child !== undefined) {
      yield* everyNode(child);
    }
  }
}

/**
 * The nodes that the page sends. It sends what is inside a container that is switched off within another subgraph,
 * though nothing needs it; output nodes in there are left out here, for they would run, or fail, against the user's wish.
 */
function* emitted(root: Level, definition: DefinitionLookup): Generator<PagePlace> {
  for (const { level, node } of everyNode(root)) {
    const isSent = !level.isHidden && !isOff(node) && !isVirtual(node);
    const isUnwanted = !level.isActive && definition(node.type)?.isOutput !== false;
    if (isSent && !isUnwanted && !level.children.has(node.id)) {
      yield { level, node };
    }
  }
}

function notesOnSwitchedOff(root: Level): string[] {
  const modes = [...everyNode(root)].map(({ node }) => node.mode);
  const muted = modes.filter((mode) => mode === MUTED).length;
  const bypassed = modes.filter((mode) => mode === BYPASSED).length;
  const count = (number: number, what: string) =>
    number === 0 ? [] : [`${number} ${what} ${number === 1 ? "node is" : "nodes are"} left out.`];
  return [...count(muted, "muted"), ...count(bypassed, "bypassed")];
}

function sourceValue(source: Source): JsonValue {
  return source.kind === "node" ? [source.id, source.slot] : wrapped(source.value, undefined);
}

/** A bare list would be taken for a link: ComfyUI's server wants it wrapped. */
function wrapped(value: JsonValue, type: string | undefined): JsonValue {
  if (!Array.isArray(value)) {
    return rounded(value);
  }
  return type === "CURVE" ? { __type__: "CURVE", __value__: value } : { __value__: value };
}

/** The values of a node in the order of the file, for want of their names. */
function numberedWidgets(node: UiNode): Widget[] {
  const values = Array.isArray(node.values) ? node.values : [];
  return values.map((value: JsonValue, index) => ({
    name: `widget_${index}`,
    value,
    definition: undefined,
  }));
}

/** The page is JavaScript: an integer beyond 2^53 reaches the server as the nearest number it has. */
function rounded(value: JsonValue): JsonValue {
  return typeof value === "bigint" ? Number(value) : value;
}

/** Input slots in the page's order: sockets of the definition, its widgets, then what only the file has. */
function slotsOf(node: UiNode, definition: NodeDefinition | undefined): readonly Slot[] {
  if (definition === undefined) {
    return node.inputs;
  }
  const declared = definition.inputs.filter((input) => input.group === undefined);
  const names = new Set(declared.map(({ name }) => name));
  const ordered = [...declared.filter((input) => !isWidget(input)), ...declared.filter(isWidget)];
  return [
    ...ordered.map(
      ({ name, type }) =>
        node.inputs.find((input) => input.name === name) ?? { name, type, link: undefined },
    ),
    ...node.inputs.filter((input) => !names.has(input.name)),
  ];
}

/** A link to a node that isn't sent would be refused by the server. */
function withoutDeadLinks(nodes: readonly (readonly [string, GraphNode])[]): Graph {
  const ids = new Set(nodes.map(([id]) => id));
  const isAlive = ([, value]: [string, JsonValue]) => {
    const link = linkOf(value);
    return link === undefined || ids.has(link.nodeId);
  };
  return record(
    nodes.map(([id, node]) => {
      const entries = Object.entries(node.inputs);
      return [
        id,
        entries.every(isAlive) ? node : { ...node, inputs: record(entries.filter(isAlive)) },
      ];
    }),
  );
}

function unnamedNodes(unknown: readonly UnnamedNode[]): InputError {
  const classes = [...new Set(unknown.map(({ classType }) => classType))];
  const packs = [...new Set(unknown.flatMap(({ pack }) => pack ?? []))];
  const source = packs.length === 0 ? "" : ` (from ${packs.join(", ")})`;
  return new InputError(
    "WORKFLOW_INVALID",
    `The workflow has nodes whose values can't be named without their node pack: ${listNames(classes)}${source}.`,
    {
      hint: "Install the node packs, or export the workflow with Export (API) where they are installed.",
      details: { unknown_nodes: unknown.map((node) => ({ ...node })) },
    },
  );
}
