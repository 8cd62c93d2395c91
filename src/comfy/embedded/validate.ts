/**
 * What `POST /prompt` checks before it queues a graph, with ComfyUI's own error types, messages and facts. Only what
 * an output node needs is checked; a graph with at least one good output is accepted, and the rest reported beside it.
 */
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";
import type { EngineFolders } from "./folders.ts";
import type { Compat, InputSpec, NodeDefinition } from "./nodes/definition.ts";
import { inputsOf, isV3, outputsOf } from "./nodes/definition.ts";
import type { NodeRegistry } from "./nodes/registry.ts";
import { inputConfig } from "./nodes/registry.ts";
import type { CastFailure } from "./python.ts";
import { repr, reprFloat, toBool, toFloat, toInt, toText, typeName } from "./python.ts";

export interface PromptError {
  readonly type: string;
  readonly message: string;
  readonly details: string;
  readonly extra_info: JsonObject;
}

export interface Verdict {
  /** Undefined when at least one output can run. */
  readonly error: PromptError | undefined;
  /** Output nodes to run. */
  readonly outputs: readonly string[];
  readonly nodeErrors: JsonObject;
}

/** Raised where Python would raise outside of any handler: the answer is a bare 500. */
export class PromptCrash extends Error {}

/** An exception inside the validation of one node. */
class NodeCrash extends Error {
  readonly pythonType: string;

  constructor(pythonType: string, message: string) {
    super(message);
    this.pythonType = pythonType;
  }
}

interface Result {
  readonly isValid: boolean;
  readonly errors: readonly PromptError[];
}

/** Longer lists of options are not sent back. */
const MAX_LISTED_OPTIONS = 20;

export interface ValidateOptions {
  readonly registry: NodeRegistry;
  readonly folders: EngineFolders;
  readonly compat: Compat;
  /** `partial_execution_targets`. */
  readonly targets?: readonly string[] | undefined;
}

/** True when a link of one type may go into an input of another: equal, any, or comma lists that share a word. */
export function typesMatch(received: string, wanted: string): boolean {
  if (received === wanted || received === "*" || wanted === "*") {
    return true;
  }
  const words = new Set(received.split(",").map((word) => word.trim()));
  return wanted.split(",").some((word) => words.has(word.trim()) || word.trim() === "*");
}

class Validation {
  readonly #prompt: JsonObject;
  readonly #options: ValidateOptions;
  readonly #results = new Map<string, Result>();
  readonly #path: string[] = [];

  constructor(prompt: JsonObject, options: ValidateOptions) {
    this.#prompt = prompt;
    this.#options = options;
  }

  get results(): ReadonlyMap<string, Result> {
    return this.#results;
  }

  /** One output and all it needs. */
  output(id: string): Result {
    try {
      return this.#node(id);
    } catch (error) {
      const result = { isValid: false, errors: [crashed(error, "node")] };
      this.#results.set(id, result);
      return result;
    }
  }

  #node(id: string): Result {
    const known = this.#results.get(id);
    if (known !== undefined) {
      return known;
    }
    if (this.#path.includes(id)) {
      return this.#cycle(id);
    }
    this.#path.push(id);
    try {
      const result = this.#inputs(id);
      // A cycle that was found below has its say already.
      const final = this.#results.get(id) ?? result;
      this.#results.set(id, final);
      return final;
    } finally {
      this.#path.pop();
    }
  }

  #cycle(id: string): Result {
    const cycle = this.#path.slice(this.#path.indexOf(id));
    if (this.#options.compat === "0.3.64") {
      // There the recursion overflows, which ends as an invalid node without a reason.
      const result = { isValid: false, errors: [] };
      this.#results.set(id, result);
      return result;
    }
    const path = [...cycle, id].map((node) => `${node} (${this.#definition(node).className})`);
    for (const node of cycle) {
      const error: PromptError = {
        type: "dependency_cycle",
        message: "Dependency cycle detected",
        details: path.join(" -> "),
        extra_info: { node_id: node, cycle_nodes: cycle },
      };
      this.#results.set(node, { isValid: false, errors: [error] });
    }
    return { isValid: false, errors: [] };
  }

  #definition(id: string): NodeDefinition {
    const node = this.#prompt[id];
    const name = isJsonObject(node) ? node["class_type"] : undefined;
    const definition = typeof name === "string" ? this.#options.registry.get(name) : undefined;
    if (!Object.hasOwn(this.#prompt, id) || definition === undefined) {
      throw new NodeCrash("KeyError", repr(id));
    }
    return definition;
  }

  #inputs(id: string): Result {
    const definition = this.#definition(id);
    const node = this.#prompt[id];
    const values = isJsonObject(node) ? node["inputs"] : undefined;
    if (!isJsonObject(values)) {
      throw new NodeCrash("KeyError", "'inputs'");
    }
    const errors: PromptError[] = [];
    let isValid = true;
    for (const [name, input] of Object.entries(inputsOf(definition))) {
      const problem = this.#input({ name, input, definition, values });
      if (problem === "invalid") {
        isValid = false;
      } else if (problem !== undefined) {
        errors.push(problem);
      }
    }
    errors.push(...this.#custom(definition, values));
    return { isValid: isValid && errors.length === 0, errors };
  }

  #custom({ check }: NodeDefinition, values: JsonObject): PromptError[] {
    const name = check?.names.find(
      (input) => !Array.isArray(values[input]) && Object.hasOwn(values, input),
    );
    const problem = name === undefined ? undefined : check?.run(values, this.#options.folders);
    return name === undefined || problem === undefined
      ? []
      : [
          {
            type: "custom_validation_failed",
            message: "Custom validation failed for node",
            details: `${name} - ${problem}`,
            extra_info: { input_name: name },
          },
        ];
  }

  /** `invalid`: wrong, but the reason stands at another node. */
  #input(slot: Slot): PromptError | "invalid" | undefined {
    const { name, definition, values } = slot;
    if (!Object.hasOwn(values, name)) {
      return Object.hasOwn(definition.required, name)
        ? {
            type: "required_input_missing",
            message: "Required input is missing",
            details: name,
            extra_info: { input_name: name },
          }
        : undefined;
    }
    const value = values[name] ?? null;
    return Array.isArray(value) ? this.#link(slot, value) : this.#value(slot);
  }

  #config({ input, definition }: Slot): readonly [JsonValue, JsonObject] {
    return inputConfig(input, isV3(definition, this.#options.compat), this.#options.folders);
  }

  #link(slot: Slot, link: JsonValue[]): PromptError | "invalid" | undefined {
    const { name, input } = slot;
    const config = [...this.#config(slot)];
    if (link.length !== 2) {
      return {
        type: "bad_linked_input",
        message: "Bad linked input, must be a length-2 list of [node_id, slot_index]",
        details: name,
        extra_info: { input_name: name, input_config: config, received_value: link },
      };
    }
    const [origin, slotIndex] = link;
    const received = this.#outputType(origin ?? null, slotIndex ?? null);
    if (!typesMatch(received, input.type)) {
      return {
        type: "return_type_mismatch",
        message: "Return type mismatch between linked nodes",
        details: `${name}, received_type(${received}) mismatch input_type(${input.type})`,
        extra_info: {
          input_name: name,
          input_config: config,
          received_type: received,
          linked_node: link,
        },
      };
    }
    const id = String(origin);
    try {
      return this.#node(id).isValid ? undefined : "invalid";
    } catch (error) {
      const inner = crashed(error, "inner node", { name, config, link });
      this.#results.set(id, { isValid: false, errors: [inner] });
      return "invalid";
    }
  }

  #outputType(origin: JsonValue, slot: JsonValue): string {
    if (typeof origin !== "string") {
      throw typeof origin === "object" && origin !== null
        ? new NodeCrash("TypeError", `unhashable type: '${typeName(origin)}'`)
        : new NodeCrash("KeyError", repr(origin));
    }
    const definition = this.#definition(origin);
    const { compat } = this.#options;
    const outputs = outputsOf(definition, compat);
    const sequence = isV3(definition, compat) ? "list" : "tuple";
    if (typeof slot !== "number" || !Number.isInteger(slot)) {
      throw new NodeCrash(
        "TypeError",
        `${sequence} indices must be integers or slices, not ${typeName(slot)}`,
      );
    }
    const type = outputs.at(slot)?.type;
    if (type === undefined) {
      throw new NodeCrash("IndexError", `${sequence} index out of range`);
    }
    return type;
  }

  #value(slot: Slot): PromptError | undefined {
    const { name, input, definition, values } = slot;
    const given = unwrapped(values[name] ?? null);
    values[name] = given;
    const cast = castTo(input.type, given);
    const failure = failureOf(cast);
    if (failure !== undefined) {
      return {
        type: "invalid_input_type",
        message: `Failed to convert an input value to a ${input.type} value`,
        details: `${name}, ${toText(given)}, ${failure}`,
        extra_info: {
          input_name: name,
          input_config: [...this.#config(slot)],
          received_value: given,
          exception_message: failure,
        },
      };
    }
    const value = resultOf(cast);
    values[name] = value;
    return definition.check?.names.includes(name) === true
      ? undefined
      : (this.#range(slot, value) ?? this.#choice(slot, value));
  }

  #range(slot: Slot, value: JsonValue): PromptError | undefined {
    const { min, max } = slot.input.config;
    if (typeof value !== "number" && typeof value !== "bigint") {
      return undefined;
    }
    const isBelow = isNumber(min) && value < min;
    const limit = isBelow ? min : max;
    if (!isNumber(limit) || (!isBelow && value <= limit)) {
      return undefined;
    }
    return {
      type: isBelow ? "value_smaller_than_min" : "value_bigger_than_max",
      message: `Value ${shownNumber(slot, value)} ${isBelow ? "smaller than min" : "bigger than max"} of ${shownNumber(slot, limit)}`,
      details: slot.name,
      extra_info: {
        input_name: slot.name,
        input_config: [...this.#config(slot)],
        received_value: value,
      },
    };
  }

  #choice(slot: Slot, value: JsonValue): PromptError | undefined {
    const { name, input, definition } = slot;
    const { compat, folders } = this.#options;
    const isUnchecked = compat === "0.3.64" && isV3(definition, compat);
    const options = isUnchecked ? undefined : input.options?.(folders);
    if (options === undefined || options.some((option) => option === value)) {
      return undefined;
    }
    const isLong = options.length > MAX_LISTED_OPTIONS;
    const shown = compat === "0.3.64" ? `'${toText(value)}'` : repr(value);
    const list = isLong ? `(list of length ${options.length})` : repr([...options]);
    return {
      type: "value_not_in_list",
      message: "Value not in list",
      details: `${name}: ${shown} not in ${list}`,
      extra_info: {
        input_name: name,
        input_config: isLong ? null : [...this.#config(slot)],
        received_value: value,
      },
    };
  }
}

interface Slot {
  readonly name: string;
  readonly input: InputSpec;
  readonly definition: NodeDefinition;
  readonly values: JsonObject;
}

/** As Python prints it: a FLOAT always with a fraction. */
function shownNumber({ input }: Slot, value: number | bigint): string {
  return input.type === "FLOAT" && typeof value === "number" ? reprFloat(value) : String(value);
}

function isNumber(value: JsonValue | undefined): value is number | bigint {
  return typeof value === "number" || typeof value === "bigint";
}

/** A literal list travels as `{"__value__": […]}`, since a bare one is a link. */
function unwrapped(value: JsonValue): JsonValue {
  return isJsonObject(value) && Object.hasOwn(value, "__value__")
    ? (value["__value__"] ?? null)
    : value;
}

type Cast = { readonly value: JsonValue } | CastFailure;

const CASTS: Readonly<Record<string, (value: JsonValue) => JsonValue | CastFailure>> = {
  INT: toInt,
  FLOAT: toFloat,
  STRING: toText,
  BOOLEAN: toBool,
};

function castTo(type: string, value: JsonValue): Cast {
  const cast = CASTS[type]?.(value);
  if (cast === undefined) {
    return { value };
  }
  return isFailure(cast) ? cast : { value: cast };
}

function isFailure(cast: JsonValue | CastFailure): cast is CastFailure {
  return typeof cast === "object" && cast !== null && "failure" in cast;
}

function failureOf(cast: Cast): string | undefined {
  return "failure" in cast ? cast.failure : undefined;
}

function resultOf(cast: Cast): JsonValue {
  return "value" in cast ? cast.value : null;
}

interface InnerCrash {
  readonly name: string;
  readonly config: readonly JsonValue[];
  readonly link: JsonValue[];
}

/** An exception as an error of a node. */
function crashed(error: unknown, what: "node" | "inner node", inner?: InnerCrash): PromptError {
  const isKnown = error instanceof NodeCrash;
  const message = error instanceof Error ? error.message : String(error);
  const facts = {
    exception_type: isKnown ? error.pythonType : "Exception",
    traceback: ['  File "/embedded/validate.ts", in validate_inputs\n'],
  };
  return {
    type: inner === undefined ? "exception_during_validation" : "exception_during_inner_validation",
    message: `Exception when validating ${what}`,
    details: message,
    extra_info:
      inner === undefined
        ? facts
        : {
            input_name: inner.name,
            input_config: [...inner.config],
            exception_message: message,
            ...facts,
            linked_node: inner.link,
          },
  };
}

/** The title that the user gave a node. */
function titleOf(node: JsonObject): string | undefined {
  const meta = node["_meta"];
  const title = isJsonObject(meta) ? meta["title"] : undefined;
  return typeof title === "string" ? title : undefined;
}

function withoutClass(id: string, node: JsonObject, compat: Compat): PromptError {
  const title = titleOf(node);
  return compat === "0.3.64"
    ? {
        type: "invalid_prompt",
        message: "Cannot execute because a node is missing the class_type property.",
        details: `Node ID '#${id}'`,
        extra_info: {},
      }
    : {
        type: "missing_node_type",
        message: `Node '${title ?? `ID #${id}`}' has no class_type. The workflow may be corrupted or a custom node is missing.`,
        details: `Node ID '#${id}'`,
        extra_info: { node_id: id, class_type: null, node_title: title ?? null },
      };
}

function unknownClass(id: string, node: JsonObject, compat: Compat): PromptError {
  const className = toText(node["class_type"] ?? null);
  const title = titleOf(node) ?? className;
  return compat === "0.3.64"
    ? {
        type: "invalid_prompt",
        message: `Cannot execute because node ${className} does not exist.`,
        details: `Node ID '#${id}'`,
        extra_info: {},
      }
    : {
        type: "missing_node_type",
        message: `Node '${title}' not found. The custom node may not be installed.`,
        details: `Node ID '#${id}'`,
        extra_info: { node_id: id, class_type: className, node_title: title },
      };
}

/** The first node that has no known class, as an error. */
function classError(
  prompt: JsonObject,
  { registry, compat }: ValidateOptions,
): PromptError | undefined {
  for (const [id, node] of Object.entries(prompt)) {
    if (!isJsonObject(node)) {
      if (compat === "0.3.64") {
        return withoutClass(id, {}, compat);
      }
      throw new PromptCrash(`node ${id} is no object`);
    }
    if (!Object.hasOwn(node, "class_type")) {
      return withoutClass(id, node, compat);
    }
    const name = node["class_type"];
    if (typeof name !== "string" || !registry.has(name)) {
      return unknownClass(id, node, compat);
    }
  }
  return undefined;
}

function refused(error: PromptError, nodeErrors: JsonObject = {}): Verdict {
  return { error, outputs: [], nodeErrors };
}

/** Checks a graph and casts its values in place. @throws PromptCrash where ComfyUI answers 500. */
export function validatePrompt(prompt: JsonObject, options: ValidateOptions): Verdict {
  const missing = classError(prompt, options);
  if (missing !== undefined) {
    return refused(missing);
  }
  const outputs = Object.keys(prompt).filter((id) => {
    const node = prompt[id];
    const definition = isJsonObject(node)
      ? options.registry.get(toText(node["class_type"] ?? ""))
      : undefined;
    return definition?.isOutput === true && (options.targets?.includes(id) ?? true);
  });
  if (outputs.length === 0) {
    return refused({
      type: "prompt_no_outputs",
      message: "Prompt has no outputs",
      details: "",
      extra_info: {},
    });
  }
  return judge(prompt, outputs, options);
}

function judge(prompt: JsonObject, outputs: readonly string[], options: ValidateOptions): Verdict {
  const validation = new Validation(prompt, options);
  const good: string[] = [];
  const reasons: PromptError[] = [];
  const dependents = new Map<string, string[]>();
  for (const id of outputs) {
    const result = validation.output(id);
    if (result.isValid) {
      good.push(id);
      continue;
    }
    reasons.push(...result.errors);
    for (const [node, { isValid, errors }] of validation.results) {
      if (!isValid && errors.length > 0) {
        dependents.set(node, [...(dependents.get(node) ?? []), id]);
      }
    }
  }
  const nodeErrors = Object.fromEntries(
    [...dependents].map(([id, needing]) => {
      const node = prompt[id];
      return [
        id,
        {
          errors: (validation.results.get(id)?.errors ?? []).map((error) => ({ ...error })),
          dependent_outputs: needing,
          class_type: (isJsonObject(node) ? node["class_type"] : undefined) ?? null,
        },
      ];
    }),
  );
  if (good.length > 0) {
    return { error: undefined, outputs: good, nodeErrors };
  }
  return refused(
    {
      type: "prompt_outputs_failed_validation",
      message: "Prompt outputs failed validation",
      details: reasons.map(({ message, details }) => `${message}: ${details}`).join("\n"),
      extra_info: {},
    },
    nodeErrors,
  );
}
