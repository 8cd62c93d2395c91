/**
 * What ComfyUI would say to a prompt before it queues it, found beforehand from the node definitions and all at once:
 * the server stops at the first unknown class and answers 200 when a single output is valid. Files are not judged
 * here: whether a value that looks like one is there is for the weights and the inputs to say.
 */
import type { JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { InputDefinition, NodeDefinition, NodeDefinitions } from "./definitions.ts";
import { clip, listNames } from "./describe.ts";
import type { Graph, GraphNode } from "./graph.ts";
import { linkOf } from "./graph.ts";
import { nodeOf, record } from "./graph-read.ts";
import { didYouMean, nearNames } from "./near.ts";
import { choicesOf, looksLikeFile } from "./values.ts";
import { findCycle, reachableNodes } from "./walk.ts";

/** Names of the server's own errors, as `POST /prompt` gives them. */
export type PreflightType =
  | "prompt_no_outputs"
  | "missing_node_type"
  | "dependency_cycle"
  | "required_input_missing"
  | "bad_linked_input"
  | "return_type_mismatch"
  | "invalid_input_type"
  | "value_smaller_than_min"
  | "value_bigger_than_max"
  | "value_not_in_list";

export interface PreflightProblem {
  readonly type: PreflightType;
  /** One sentence for people, without the node's name. */
  readonly message: string;
  /**
   * False where a node may judge by itself: one that defines `VALIDATE_INPUTS` takes values beyond its own lists and
   * ranges, and packs have types and outputs that equal everything. The definitions don't tell.
   */
  readonly isCertain: boolean;
  readonly nodeId?: string;
  readonly classType?: string;
  readonly title?: string;
  readonly input?: string;
}

/** Everything the server would refuse, in the order of the file; classes first, as it looks at them first. */
export function preflight(graph: Graph, definitions: NodeDefinitions): PreflightProblem[] {
  return [...missingClasses(graph, definitions), ...refusedInputs(graph, definitions)];
}

/** Each is compared with every class there is: beyond these the list itself says enough. */
const MAX_COMPARED_NODES = 20;

function missingClasses(graph: Graph, definitions: NodeDefinitions): PreflightProblem[] {
  return Object.entries(graph)
    .filter(([, node]) => !definitions.has(node.class_type))
    .map(([id, node], index) => {
      const isCompared = index < MAX_COMPARED_NODES;
      const names = isCompared ? nearNames(node.class_type, definitions.classes(), 1) : [];
      const near = didYouMean(names);
      const message = `the class '${clip(node.class_type)}' is not installed${near}`;
      return problemAt(id, node, { type: "missing_node_type", message, isCertain: true });
    });
}

/** What the server would refuse beside classes that aren't there. */
export function refusedInputs(graph: Graph, definitions: NodeDefinitions): PreflightProblem[] {
  const problems: PreflightProblem[] = [];
  const entries = Object.entries(graph);
  if (!entries.some(([, node]) => definitions.isOutput(node.class_type) ?? true)) {
    const message = "no node saves or shows anything";
    return [{ type: "prompt_no_outputs", message, isCertain: true }];
  }
  const needed = reachableNodes(graph, (classType) => definitions.isOutput(classType));
  // The server never looks at nodes that no output needs.
  const cycle = findCycle(record(entries.filter(([id]) => needed.has(id))));
  if (cycle !== undefined) {
    const message = `nodes read from each other in a circle: ${listNames(cycle)}`;
    problems.push({ type: "dependency_cycle", message, isCertain: true });
  }
  for (const id of needed) {
    const node = nodeOf(graph, id);
    const definition = node && definitions.get(node.class_type);
    if (node !== undefined && definition !== undefined) {
      problems.push(...new NodeCheck(graph, definitions, id, node).run(definition));
    }
  }
  return problems;
}

type Finding = Pick<PreflightProblem, "type" | "message" | "input" | "isCertain">;

/** Complaints that the server makes of every node alike: it looks whether an input is there, then casts. */
const CERTAIN: ReadonlySet<PreflightType> = new Set([
  "required_input_missing",
  "bad_linked_input",
  "invalid_input_type",
]);

function problemAt(nodeId: string, node: GraphNode, finding: Finding): PreflightProblem {
  const title = node._meta?.title;
  const where = { nodeId, classType: node.class_type, ...(title === undefined ? {} : { title }) };
  return { ...finding, ...where };
}

/** Types of definitions that say nothing about what may be linked. */
const OPEN_TYPES = /^(\*|COMFY_.*|)$/;

class NodeCheck {
  readonly #graph: Graph;
  readonly #definitions: NodeDefinitions;
  readonly #id: string;
  readonly #node: GraphNode;
  readonly #found: Finding[] = [];

  constructor(graph: Graph, definitions: NodeDefinitions, id: string, node: GraphNode) {
    this.#graph = graph;
    this.#definitions = definitions;
    this.#id = id;
    this.#node = node;
  }

  run(definition: NodeDefinition): PreflightProblem[] {
    this.#checkAll(definition.inputs, "");
    return this.#found.map((finding) => problemAt(this.#id, this.#node, finding));
  }

  #checkAll(inputs: readonly InputDefinition[], prefix: string): void {
    for (const input of inputs) {
      if (input.group === undefined) {
        this.#checkInput(input, prefix + input.name);
      } else {
        this.#checkGroup(input, prefix + input.name);
      }
    }
  }

  #checkInput(input: InputDefinition, name: string): void {
    const { inputs } = this.#node;
    const given = Object.hasOwn(inputs, name) ? inputs[name] : undefined;
    const value = unwrapped(given);
    if (given === undefined || value === undefined) {
      // The server leaves a dynamic combo that isn't there out of what it checks.
      if (input.required && input.variants === undefined) {
        this.#report("required_input_missing", name, "nothing is connected or set");
      }
      return;
    }
    if (Array.isArray(given)) {
      this.#checkLink(given, input, name);
    } else {
      this.#checkValue(value, input, name);
    }
    const variant = input.variants?.find(({ key }) => key === value);
    if (variant !== undefined) {
      this.#checkAll(variant.inputs, `${name}.`);
    }
  }

  /** The first members of a growing group are needed, the others may be there. */
  #checkGroup(input: InputDefinition, name: string): void {
    const { group } = input;
    const [member] = group?.inputs ?? [];
    if (group === undefined || member === undefined) {
      return;
    }
    const names =
      group.names ??
      Array.from({ length: group.max }, (_none, index) => `${group.prefix ?? ""}${index}`);
    for (const [index, key] of names.entries()) {
      const required = input.required && member.required && index < group.min;
      this.#checkInput({ ...member, required }, `${name}.${key}`);
    }
  }

  #report(
    type: PreflightType,
    input: string,
    message: string,
    isCertain: boolean = CERTAIN.has(type),
  ): void {
    this.#found.push({ type, input, message: `${clip(input)}: ${message}`, isCertain });
  }

  #checkLink(value: readonly JsonValue[], input: InputDefinition, name: string): void {
    const link = linkOf([...value]);
    const source = link === undefined ? undefined : nodeOf(this.#graph, link.nodeId);
    if (link === undefined || source === undefined) {
      this.#report("bad_linked_input", name, "the link leads nowhere");
      return;
    }
    const outputs = this.#definitions.get(source.class_type)?.outputs;
    // Python counts a negative slot from the end.
    const output = outputs?.at(link.slot);
    if (outputs !== undefined && output === undefined) {
      const has = outputs.length === 1 ? "1 output" : `${outputs.length} outputs`;
      this.#report(
        "bad_linked_input",
        name,
        `node ${link.nodeId} has ${has}, not number ${link.slot}`,
        false,
      );
    } else if (output !== undefined && !canFeed(output.type, input.type)) {
      const message = `node ${link.nodeId} gives ${output.type}, wanted is ${clip(input.type, 40)}`;
      this.#report("return_type_mismatch", name, message);
    }
  }

  #checkValue(value: JsonValue, input: InputDefinition, name: string): void {
    switch (input.type) {
      case "INT":
      case "FLOAT":
        this.#checkNumber(value, input, name);
        break;
      case "COMBO":
        this.#checkChoice(value, input, name);
        break;
      default:
    }
  }

  /** The server casts text and cuts decimals, so only what Python's `int()` and `float()` refuse is wrong. */
  #checkNumber(value: JsonValue, input: InputDefinition, name: string): void {
    const number = castNumber(value, input.type === "INT");
    if (number === undefined) {
      const wanted = input.type === "INT" ? "a whole number" : "a number";
      this.#report("invalid_input_type", name, `${show(value)} is not ${wanted}`);
    } else if (input.min !== undefined && number < input.min) {
      this.#report("value_smaller_than_min", name, `${show(value)} is less than ${input.min}`);
    } else if (input.max !== undefined && number > input.max) {
      this.#report("value_bigger_than_max", name, `${show(value)} is more than ${input.max}`);
    }
  }

  #checkChoice(value: JsonValue, input: InputDefinition, name: string): void {
    const choices = choicesOf(input);
    const isFile =
      input.upload !== undefined || (typeof value === "string" && looksLikeFile(value));
    if (choices === undefined || isFile || isObject(value) || choices.includes(value)) {
      return;
    }
    const near = nearNames(String(value), choices.map(String));
    const list = choices.length <= 8 ? `; choices are ${listNames(choices.map(String))}` : "";
    const help = near.length > 0 ? didYouMean(near) : list;
    this.#report("value_not_in_list", name, `${show(value)} is not among its choices${help}`);
  }
}

/** The server takes what stands in `{"__value__": …}`, which is how a list is told from a link. */
function unwrapped(value: JsonValue | undefined): JsonValue | undefined {
  return isJsonObject(value) && Object.hasOwn(value, "__value__") ? value["__value__"] : value;
}

/** What Python's `float()` takes beyond digits. */
const WORDS_FOR_NUMBERS = /^\s*[+-]?(nan|inf|infinity)\s*$/i;

function castNumber(value: JsonValue, isWhole: boolean): number | bigint | undefined {
  if (typeof value === "number" || typeof value === "bigint") {
    return value;
  }
  if (typeof value === "boolean") {
    return Number(value);
  }
  if (!isWhole && typeof value === "string" && WORDS_FOR_NUMBERS.test(value)) {
    // Greater or less than nothing.
    return Number.NaN;
  }
  const pattern = isWhole
    ? /^\s*[+-]?\d[\d_]*\s*$/
    : /^\s*[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d+)?\s*$/i;
  return typeof value === "string" && pattern.test(value)
    ? Number(value.replaceAll("_", ""))
    : undefined;
}

function isObject(value: JsonValue): boolean {
  return typeof value === "object" && value !== null;
}

function canFeed(output: string, input: string): boolean {
  if (output === input) {
    return true;
  }
  const wanted = input.split(",").map((type) => type.trim());
  const given = output.split(",").map((type) => type.trim());
  const isOpen = [...wanted, ...given].some((type) => OPEN_TYPES.test(type));
  return isOpen || given.some((type) => wanted.includes(type));
}

function show(value: JsonValue): string {
  return typeof value === "object" ? "null" : `'${clip(String(value), 40)}'`;
}
