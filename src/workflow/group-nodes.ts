/**
 * Group nodes, the page's way of grouping before subgraphs: definitions under `extra.groupNodes`, instances of type
 * `workflow>NAME` (`workflow/NAME` in the oldest files). They are read as subgraphs, whose inner ids are places.
 */
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { DefinitionLookup } from "./definitions.ts";
import { own, ownList, ownObject, ownText } from "./graph-read.ts";
import type {
  UiDocument,
  UiInput,
  UiLink,
  UiNode,
  UiPort,
  UiProxy,
  UiSubgraph,
} from "./ui-schema.ts";
import { INPUT_PORTS, OUTPUT_PORTS, readLooseNode } from "./ui-schema.ts";
import { positionsOf } from "./widgets.ts";

/** A group node's definition, and the inner widgets that the values of an instance stand for. */
interface GroupNode {
  readonly subgraph: UiSubgraph;
  readonly proxies: readonly UiProxy[];
}

/** The document with its group nodes as subgraphs; the same document where it has none. */
export function readGroupNodes(
  document: JsonObject,
  ui: UiDocument,
  lookUp: DefinitionLookup,
): UiDocument {
  const raw = ownObject(ownObject(document, "extra") ?? {}, "groupNodes") ?? {};
  const groups = new Map<string, GroupNode>();
  for (const [name, group] of Object.entries(raw)) {
    if (isJsonObject(group)) {
      for (const id of [`workflow>${name}`, `workflow/${name}`]) {
        groups.set(id, new GroupReader(id, name, group).read(lookUp));
      }
    }
  }
  if (groups.size === 0) {
    return ui;
  }
  const nodes = [...ui.nodes].map(([id, node]) => [id, asInstance(node, groups)] as const);
  const subgraphs = [...groups].map(([id, group]) => [id, group.subgraph] as const);
  return { ...ui, nodes: new Map(nodes), subgraphs: new Map([...ui.subgraphs, ...subgraphs]) };
}

/** An instance whose inputs have the names of the ports; where a name is another, the order tells. */
function asInstance(node: UiNode, groups: ReadonlyMap<string, GroupNode>): UiNode {
  const group = groups.get(node.type);
  if (group === undefined) {
    return node;
  }
  const names = group.subgraph.inputs.map((port) => port.name);
  const taken = new Set(node.inputs.map((input) => input.name));
  const free = names.filter((name) => !taken.has(name));
  const inputs = node.inputs.map((input) =>
    names.includes(input.name) ? input : { ...input, name: free.shift() ?? input.name },
  );
  return { ...node, inputs, proxies: group.proxies };
}

class GroupReader {
  readonly #id: string;
  readonly #name: string;
  readonly #config: JsonObject;
  readonly #nodes: UiNode[];
  readonly #rows: readonly (readonly JsonValue[])[];
  readonly #external: ReadonlySet<string>;
  readonly #links = new Map<string, UiLink>();
  readonly #inputs: UiPort[] = [];
  readonly #outputs: UiPort[] = [];
  readonly #seen = new Map<string, number>();

  constructor(id: string, name: string, group: JsonObject) {
    this.#id = id;
    this.#name = name;
    this.#config = ownObject(group, "config") ?? {};
    this.#nodes = ownList(group, "nodes")
      .filter(isJsonObject)
      .flatMap((node, index) => readLooseNode(node, String(index)) ?? []);
    this.#rows = ownList(group, "links").filter(Array.isArray);
    const external = ownList(group, "external").filter(Array.isArray);
    this.#external = new Set(external.map(([node, slot]) => `${node}/${slot}`));
  }

  read(lookUp: DefinitionLookup): GroupNode {
    this.#linkInside();
    const sockets = (input: UiInput) => input.widget === undefined;
    this.#addPorts(sockets);
    // Widgets turned into inputs stand behind all sockets.
    this.#addPorts((input) => !sockets(input));
    const proxies = this.#nodes.flatMap((node) => this.#proxiesOf(node, lookUp));
    this.#addOutputs();
    const nodes = new Map(this.#nodes.map((node) => [node.id, node] as const));
    const ports = { inputs: this.#inputs, outputs: this.#outputs };
    const subgraph = { id: this.#id, name: this.#name, nodes, links: this.#links, ...ports };
    return { subgraph, proxies };
  }

  /** Rows are `[from node, from slot, to node, to slot, …]` by place; null marks an end outside of the group. */
  #linkInside(): void {
    for (const [index, [from, fromSlot, to, toSlot]] of this.#rows.entries()) {
      const target = this.#nodes[Number(to)];
      if (typeof from === "number" && typeof to === "number" && target !== undefined) {
        this.#link(`inside ${index}`, {
          origin: String(from),
          originSlot: Number(fromSlot),
          target: target.id,
          targetSlot: Number(toSlot),
        });
      }
    }
  }

  #link(id: string, link: UiLink): void {
    this.#links.set(id, link);
    const place = this.#nodes.findIndex((node) => node.id === link.target);
    const node = this.#nodes[place];
    if (node !== undefined) {
      const inputs = node.inputs.map((input, slot) =>
        slot === link.targetSlot ? { ...input, link: id } : input,
      );
      this.#nodes[place] = { ...node, inputs };
    }
  }

  #addPorts(isWanted: (input: UiInput) => boolean): void {
    for (const { id, inputs } of [...this.#nodes]) {
      for (const [slot, input] of inputs.entries()) {
        if (
          input.link === undefined &&
          isWanted(input) &&
          this.#isVisible(id, "input", input.name)
        ) {
          const linkId = `in ${this.#inputs.length}`;
          const origin = { origin: INPUT_PORTS, originSlot: this.#inputs.length };
          this.#inputs.push({
            name: this.#portName(id, input.name),
            type: input.type,
            linkIds: [linkId],
          });
          this.#link(linkId, { ...origin, target: id, targetSlot: slot });
        }
      }
    }
  }

  #settingOf(node: string, side: "input" | "output", key: string): JsonObject {
    const config = ownObject(this.#config, node) ?? {};
    return ownObject(ownObject(config, side) ?? {}, key) ?? {};
  }

  #isVisible(node: string, side: "input" | "output", key: string): boolean {
    return own(this.#settingOf(node, side, key), "visible") !== false;
  }

  /** The page's naming: as configured, else the input's name, with the node's title before it when it is taken. */
  #portName(nodeId: string, input: string): string {
    const plain = ownText(this.#settingOf(nodeId, "input", input), "name") ?? input;
    const node = this.#nodes.find(({ id }) => id === nodeId);
    const prefix = `${node?.title ?? node?.type ?? ""} `;
    const key = this.#seen.has(plain) ? `${prefix}${input}` : plain;
    const count = this.#seen.get(key);
    this.#seen.set(key, (count ?? 1) + 1);
    return count === undefined ? key : `${prefix}${count} ${input}`;
  }

  /** Outputs that nothing inside reads, or that are read outside as well. */
  #addOutputs(): void {
    const read = new Set(
      [...this.#links.values()].map((link) => `${link.origin}/${link.originSlot}`),
    );
    for (const { id, outputs } of this.#nodes) {
      for (const [slot, { name, type }] of outputs.entries()) {
        const place = `${id}/${slot}`;
        const setting = own(this.#settingOf(id, "output", String(slot)), "visible");
        const isShown = !read.has(place) || this.#external.has(place);
        if (typeof setting === "boolean" ? setting : isShown) {
          const linkId = `out ${this.#outputs.length}`;
          const target = { target: OUTPUT_PORTS, targetSlot: this.#outputs.length };
          this.#links.set(linkId, { origin: id, originSlot: slot, ...target });
          this.#outputs.push({ name, type, linkIds: [linkId] });
        }
      }
    }
  }

  #proxiesOf(node: UiNode, lookUp: DefinitionLookup): UiProxy[] {
    if (node.type === "PrimitiveNode") {
      const hasControl = Array.isArray(node.values) && node.values.length > 1;
      const value = { node: node.id, widget: "value" };
      return hasControl ? [value, NO_WIDGET] : [value];
    }
    const definition = lookUp(node.type);
    const converted = new Set(node.inputs.flatMap((input) => input.widget ?? []));
    return (definition === undefined ? [] : positionsOf(definition))
      .filter(({ name }) => !converted.has(name) && this.#isVisible(node.id, "input", name))
      .flatMap(({ name, extra }) => [
        { node: node.id, widget: name },
        ...Array<UiProxy>(extra).fill(NO_WIDGET),
      ]);
  }
}

/** A place in the values of an instance that holds a control word. */
const NO_WIDGET: UiProxy = { node: "", widget: "" };
