/**
 * A UI document → typed scopes: the root graph and every subgraph definition, each with its nodes and links by id.
 * Reads both link forms (rows of the 0.4 files, objects of the newer ones) and is tolerant in everything that the
 * conversion doesn't need: ComfyUI's page adds members with every release.
 */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { addBroadcastLinks } from "./broadcast-links.ts";
import { clip, listProblems } from "./describe.ts";
import { own, ownList, ownObject, ownText } from "./graph-read.ts";
import { MAX_INPUTS_PER_NODE, MAX_NODES, MAX_SUBGRAPH_DEPTH } from "./limits.ts";
import { nodeIdOf } from "./meta.ts";

/** An input slot as the file has it. */
export interface UiInput {
  readonly name: string;
  readonly type: string;
  /** Id of the link that feeds it. */
  readonly link: string | undefined;
  /** The widget it belongs to, when it is a converted widget. */
  readonly widget: string | undefined;
}

export interface UiOutput {
  readonly name: string;
  readonly type: string;
}

export interface UiNode {
  /** Unique among all scopes of the document. Some ids of inner nodes differ from the file, as on the page. */
  readonly id: string;
  readonly type: string;
  readonly mode: number;
  readonly title: string | undefined;
  readonly inputs: readonly UiInput[];
  readonly outputs: readonly UiOutput[];
  /** Values in the order of the widgets, or by name. */
  readonly values: readonly JsonValue[] | JsonObject | undefined;
  /** Values by name, which newer pages save beside the list. */
  readonly namedValues: JsonObject | undefined;
  readonly properties: JsonObject;
  /** Of a subgraph instance: the inner widgets that its own values stand for; absent in files that don't list them. */
  readonly proxies: readonly UiProxy[] | undefined;
}

/** An inner widget that a subgraph instance shows; node `-1` is the instance's own input. */
export interface UiProxy {
  readonly node: string;
  readonly widget: string;
}

export interface UiLink {
  readonly origin: string;
  readonly originSlot: number;
  readonly target: string;
  readonly targetSlot: number;
}

/** A graph level: the root or the inside of a subgraph. */
export interface UiScope {
  readonly nodes: ReadonlyMap<string, UiNode>;
  readonly links: ReadonlyMap<string, UiLink>;
}

/** A socket of a subgraph, with the links inside that hang on it. */
export interface UiPort {
  readonly name: string;
  readonly type: string;
  readonly linkIds: readonly string[];
}

export interface UiSubgraph extends UiScope {
  readonly id: string;
  readonly name: string;
  readonly inputs: readonly UiPort[];
  readonly outputs: readonly UiPort[];
}

export interface UiDocument extends UiScope {
  readonly subgraphs: ReadonlyMap<string, UiSubgraph>;
}

/** Ids by which links inside a subgraph name its own sockets. */
export const INPUT_PORTS = "-10";
export const OUTPUT_PORTS = "-20";

/** Modes of a node that is not run. */
export const MUTED = 2;
export const BYPASSED = 4;

/** Reads a UI document. Throws an `InputError` that names every node it can't make sense of. */
export function readUiDocument(document: JsonObject): UiDocument {
  const definitions = collectDefinitions(document);
  const problems: string[] = [];
  const changes = assignIds(document, definitions);
  const root = readScope(document, { where: "the graph", id: "", changes, problems });
  const subgraphs = new Map<string, UiSubgraph>();
  for (const definition of definitions) {
    const id = ownText(definition, "id") ?? "";
    const name = ownText(definition, "name") ?? id;
    const where = `the subgraph '${clip(name)}'`;
    const scope = readScope(definition, { where, id, changes, problems });
    const inputs = readPorts(definition, "inputs");
    subgraphs.set(id, { ...scope, id, name, inputs, outputs: readPorts(definition, "outputs") });
  }
  if (problems.length > 0) {
    throw new InputError("WORKFLOW_INVALID", `The workflow has ${listProblems(problems)}.`, {
      hint: "Open it in ComfyUI, mend it and export it again.",
      details: { problems },
    });
  }
  return { ...root, subgraphs };
}

/** New ids of inner nodes, by the id of the definition, then by the old id. */
type IdChanges = ReadonlyMap<string, ReadonlyMap<string, string>>;

interface ScopeContext {
  /** The scope in words, for messages. */
  readonly where: string;
  readonly id: string;
  readonly changes: IdChanges;
  readonly problems: string[];
}

/** Definitions are stored flat at the root, or inside each other. */
function collectDefinitions(document: JsonObject): JsonObject[] {
  const found: JsonObject[] = [];
  let holders: JsonObject[] = [document];
  for (let depth = 0; holders.length > 0 && depth <= MAX_SUBGRAPH_DEPTH; depth += 1) {
    holders = holders.flatMap((holder) =>
      ownList(ownObject(holder, "definitions") ?? {}, "subgraphs").filter(isJsonObject),
    );
    found.push(...holders);
  }
  return found;
}

/**
 * ComfyUI's page gives an inner node a new id when the root or an earlier definition uses the same one. Only the
 * key of the node in the prompt depends on it, but progress and errors are reported by this key.
 */
function assignIds(document: JsonObject, definitions: readonly JsonObject[]): IdChanges {
  const used = new Set(ownList(document, "nodes").filter(isJsonObject).map(idOf));
  let last = lastIdOf(document);
  const changes = new Map<string, Map<string, string>>();
  for (const definition of definitions) {
    const changed = new Map<string, string>();
    for (const node of ownList(definition, "nodes").filter(isJsonObject)) {
      const id = idOf(node);
      if (!used.has(id)) {
        used.add(id);
        continue;
      }
      do {
        last += 1;
      } while (used.has(String(last)));
      changed.set(id, String(last));
      used.add(String(last));
    }
    changes.set(ownText(definition, "id") ?? "", changed);
  }
  return changes;
}

function idOf(node: JsonObject): string {
  return nodeIdOf(own(node, "id")) ?? "";
}

function lastIdOf(document: JsonObject): number {
  const state = ownObject(document, "state") ?? {};
  const last = own(document, "last_node_id") ?? own(state, "lastNodeId");
  return typeof last === "number" && Number.isSafeInteger(last) ? last : 0;
}

function readScope(scope: JsonObject, context: ScopeContext): UiScope {
  const { where, problems } = context;
  const nodes = new Map<string, UiNode>();
  const raw = ownList(scope, "nodes");
  if (raw.length > MAX_NODES) {
    throw new InputError(
      "WORKFLOW_INVALID",
      `The workflow has ${raw.length} nodes in ${where}; at most ${MAX_NODES} are read.`,
      { hint: "Split the workflow." },
    );
  }
  for (const [index, node] of raw.entries()) {
    const read = isJsonObject(node) ? readNode(node, context) : undefined;
    if (read === undefined) {
      problems.push(`something in ${where} that is no node, at place ${index + 1}`);
    } else if (read.inputs.length > MAX_INPUTS_PER_NODE) {
      problems.push(`a node with ${read.inputs.length} inputs in ${where}: '${clip(read.id)}'`);
    } else if (nodes.has(read.id)) {
      problems.push(`two nodes with the id '${clip(read.id)}' in ${where}`);
    } else {
      nodes.set(read.id, read);
    }
  }
  const links = readLinks(scope, context);
  addBroadcastLinks(scope, nodes, links, (id) => newId(context.changes, context.id, id));
  return { nodes, links };
}

/** A node that stands outside of any scope, under the given id and without its links. */
export function readLooseNode(node: JsonObject, id: string): UiNode | undefined {
  const context = { where: "", id: "", changes: new Map(), problems: [] };
  const read = readNode({ ...node, id }, context);
  const inputs = read?.inputs.map((input) => ({ ...input, link: undefined })) ?? [];
  return read === undefined ? undefined : { ...read, inputs };
}

function readNode(node: JsonObject, context: ScopeContext): UiNode | undefined {
  const id = nodeIdOf(own(node, "id"));
  const type = ownText(node, "type");
  if (id === undefined || type === undefined || type === "") {
    return undefined;
  }
  const mode = own(node, "mode");
  const values = own(node, "widgets_values");
  const properties = ownObject(node, "properties") ?? {};
  return {
    id: newId(context.changes, context.id, id),
    type,
    mode: typeof mode === "number" ? mode : 0,
    title: ownText(node, "title"),
    inputs: ownList(node, "inputs").filter(isJsonObject).map(readInput),
    outputs: ownList(node, "outputs").filter(isJsonObject).map(readSlot),
    values: Array.isArray(values) || isJsonObject(values) ? values : undefined,
    namedValues: ownObject(node, "widgets_values_named"),
    properties,
    proxies: readProxies(properties, type, context.changes),
  };
}

function newId(changes: IdChanges, definition: string, id: string): string {
  return changes.get(definition)?.get(id) ?? id;
}

/** A proxy names a node inside the definition that its own node is an instance of. */
function readProxies(
  properties: JsonObject,
  definition: string,
  changes: IdChanges,
): UiProxy[] | undefined {
  const rows = own(properties, "proxyWidgets");
  if (!Array.isArray(rows)) {
    return undefined;
  }
  return rows.map((row) => {
    const [node, widget] = Array.isArray(row) ? row : [];
    return {
      node: newId(changes, definition, nodeIdOf(node) ?? ""),
      widget: typeof widget === "string" ? widget : "",
    };
  });
}

function readSlot(slot: JsonObject): UiOutput {
  return { name: ownText(slot, "name") ?? "", type: typeOf(own(slot, "type")) };
}

/** Types are text; 0 and -1 are litegraph's "any" and "event". */
function typeOf(type: JsonValue | undefined): string {
  return typeof type === "string" ? type : "*";
}

function readInput(input: JsonObject): UiInput {
  const widget = ownObject(input, "widget");
  return {
    ...readSlot(input),
    link: nodeIdOf(own(input, "link")),
    widget: widget === undefined ? undefined : ownText(widget, "name"),
  };
}

function readPorts(definition: JsonObject, key: "inputs" | "outputs"): UiPort[] {
  return ownList(definition, key)
    .filter(isJsonObject)
    .map((port) => ({
      ...readSlot(port),
      linkIds: ownList(port, "linkIds").flatMap((id) => nodeIdOf(id) ?? []),
    }));
}

function readLinks(scope: JsonObject, { id: scopeId, changes }: ScopeContext): Map<string, UiLink> {
  const links = new Map<string, UiLink>();
  for (const raw of ownList(scope, "links")) {
    const row = Array.isArray(raw) ? raw : linkRow(raw);
    const [id, origin, originSlot, target, targetSlot] = row;
    const linkId = nodeIdOf(id);
    const originId = nodeIdOf(origin);
    if (linkId === undefined || originId === undefined) {
      continue;
    }
    const targetId = nodeIdOf(target) ?? "";
    links.set(linkId, {
      origin: newId(changes, scopeId, originId),
      originSlot: Number(originSlot),
      target: newId(changes, scopeId, targetId),
      targetSlot: Number(targetSlot),
    });
  }
  return links;
}

function linkRow(link: JsonValue): JsonValue[] {
  if (!isJsonObject(link)) {
    return [];
  }
  const keys = ["id", "origin_id", "origin_slot", "target_id", "target_slot"];
  return keys.map((key) => own(link, key) ?? null);
}
