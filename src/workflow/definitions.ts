/**
 * What is known of node classes: inputs in order with kinds, ranges and choices, outputs, output nodes. Read from a
 * live `/object_info`, or from the committed table of facts about ComfyUI's own nodes. One class is read when it is
 * first asked for: most workflows use twenty of nine hundred.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import { own, ownList, ownObject, ownText } from "./graph-read.ts";

/** One input of a class, as `/object_info` declares it. Lists of choices have the type `COMBO`. */
export interface InputDefinition {
  readonly name: string;
  readonly type: string;
  readonly required: boolean;
  /** Choices of a combo. Of a model or file input: what the folder of that engine holds. */
  readonly choices?: readonly JsonValue[];
  readonly default?: JsonValue;
  readonly min?: number;
  readonly max?: number;
  readonly step?: number;
  readonly multiline?: boolean;
  readonly dynamicPrompts?: boolean;
  /** A socket, whatever the type says. */
  readonly forceInput?: boolean;
  /** The widget that an input of several types shows. */
  readonly widgetType?: string;
  /** True or a mode: the page puts a control widget behind it. Absent and false differ for inputs named `seed`. */
  readonly control?: boolean | string;
  readonly upload?: "image" | "audio" | "video" | "file";
  /** Options of a dynamic combo (`COMFY_DYNAMICCOMBO_V3`), each with inputs of its own. */
  readonly variants?: readonly InputVariant[];
  /** The growing group of inputs (`COMFY_AUTOGROW_V3`). */
  readonly group?: InputGroup;
}

/** An option of a dynamic combo and the inputs it brings. */
export interface InputVariant {
  readonly key: string;
  readonly inputs: readonly InputDefinition[];
}

/** Inputs that grow as they are linked: `PREFIX0`, `PREFIX1`, …, or the given names. */
export interface InputGroup {
  readonly inputs: readonly InputDefinition[];
  readonly prefix?: string;
  readonly names?: readonly string[];
  readonly min: number;
  readonly max: number;
}

export interface OutputDefinition {
  readonly name: string;
  readonly type: string;
}

export interface NodeDefinition {
  readonly classType: string;
  readonly displayName: string;
  readonly inputs: readonly InputDefinition[];
  readonly outputs: readonly OutputDefinition[];
  readonly isOutput: boolean;
  /** True for partner nodes, which call a paid service. */
  readonly isApiNode: boolean;
  /** `nodes`, `comfy_extras.…`, `custom_nodes.PACK`. */
  readonly pythonModule: string | undefined;
}

/** Asks for a class wherever it may be known. */
export type DefinitionLookup = (classType: string) => NodeDefinition | undefined;

/** The classes that an engine, or the committed table, knows. */
export class NodeDefinitions {
  readonly source: "engine" | "table";
  readonly #raw: JsonObject;
  readonly #lists: readonly JsonValue[];
  readonly #read = new Map<string, NodeDefinition>();

  private constructor(source: "engine" | "table", raw: JsonObject, lists: readonly JsonValue[]) {
    this.source = source;
    this.#raw = raw;
    this.#lists = lists;
  }

  /** Takes ComfyUI's answer to `GET /object_info`. */
  static fromObjectInfo(json: unknown): NodeDefinitions {
    if (!isJsonObject(json)) {
      throw new ConfigError("CONFIG_INVALID", "The node definitions are not a JSON object.", {
        hint: "Give ComfyUI's answer to GET /object_info.",
      });
    }
    return new NodeDefinitions("engine", json, []);
  }

  /** ComfyUI's own nodes, from the table that `scripts/build-definitions.ts` writes. Read once, on first use. */
  static core(): NodeDefinitions {
    coreDefinitions ??= NodeDefinitions.#readCore();
    return coreDefinitions;
  }

  static #readCore(): NodeDefinitions {
    const table: unknown = JSON.parse(
      readFileSync(join(PROJECT_ROOT, "src/workflow/core-definitions.json"), "utf8"),
    );
    const root = isJsonObject(table) ? table : {};
    return new NodeDefinitions("table", ownObject(root, "nodes") ?? {}, ownList(root, "lists"));
  }

  get size(): number {
    return Object.keys(this.#raw).length;
  }

  has(classType: string): boolean {
    return isJsonObject(own(this.#raw, classType));
  }

  classes(): string[] {
    return Object.keys(this.#raw);
  }

  get(classType: string): NodeDefinition | undefined {
    const known = this.#read.get(classType);
    if (known !== undefined) {
      return known;
    }
    const raw = ownObject(this.#raw, classType);
    if (raw === undefined) {
      return undefined;
    }
    const definition = readDefinition(classType, raw, this.#lists);
    this.#read.set(classType, definition);
    return definition;
  }

  /** Whether nodes of the class are outputs; undefined for a class nobody knows. */
  isOutput(classType: string): boolean | undefined {
    return this.get(classType)?.isOutput;
  }

  /** The definition of an input by its name in a prompt, dotted names of dynamic inputs included. */
  input(classType: string, name: string): InputDefinition | undefined {
    return findInput(this.get(classType)?.inputs ?? [], name);
  }
}

let coreDefinitions: NodeDefinitions | undefined;

/** Looks `format.bit_depth` up in `format`'s variants, `images.image3` in the group `images`. */
function findInput(inputs: readonly InputDefinition[], name: string): InputDefinition | undefined {
  const exact = inputs.find((input) => input.name === name);
  const dot = name.indexOf(".");
  if (exact !== undefined || dot === -1) {
    return exact;
  }
  const parent = inputs.find((input) => input.name === name.slice(0, dot));
  const rest = name.slice(dot + 1);
  for (const variant of parent?.variants ?? []) {
    const found = findInput(variant.inputs, rest);
    if (found !== undefined) {
      return found;
    }
  }
  const group = parent?.group;
  const member = group?.inputs.find(
    (input) => group.names?.includes(rest) || rest.startsWith(group.prefix ?? input.name),
  );
  return member === undefined ? undefined : { ...member, name: rest };
}

function readDefinition(
  classType: string,
  raw: JsonObject,
  lists: readonly JsonValue[],
): NodeDefinition {
  const types = ownList(raw, "output");
  const names = ownList(raw, "output_name");
  return {
    classType,
    displayName: ownText(raw, "display_name") || classType,
    inputs: readInputs(ownObject(raw, "input") ?? {}, ownObject(raw, "input_order"), lists),
    outputs: types.map((type, index) => {
      // A combo as output is declared by its list of choices.
      const typeName = typeof type === "string" ? type : "COMBO";
      const name = names[index];
      return { type: typeName, name: typeof name === "string" ? name : typeName };
    }),
    isOutput: own(raw, "output_node") === true,
    isApiNode: own(raw, "api_node") === true,
    pythonModule: ownText(raw, "python_module"),
  };
}

function readInputs(
  sections: JsonObject,
  order: JsonObject | undefined,
  lists: readonly JsonValue[],
): InputDefinition[] {
  return ["required", "optional"].flatMap((section) => {
    const specs = ownObject(sections, section) ?? {};
    const listed = ownList(order ?? {}, section).filter((name) => typeof name === "string");
    const names = listed.length > 0 ? listed : Object.keys(specs);
    return names.flatMap((name) => {
      const spec = own(specs, name);
      return Array.isArray(spec) ? [readInput(name, spec, section === "required", lists)] : [];
    });
  });
}

const UPLOADS = ["image", "audio", "video", "file"] as const;

function readInput(
  name: string,
  [kind = "*", rawOptions]: readonly JsonValue[],
  required: boolean,
  lists: readonly JsonValue[],
): InputDefinition {
  const options = isJsonObject(rawOptions) ? rawOptions : {};
  const type = typeof kind === "string" ? kind : "COMBO";
  const control = own(options, "control_after_generate");
  const upload = UPLOADS.find((what) => own(options, `${what}_upload`) === true);
  const variants = type === "COMFY_DYNAMICCOMBO_V3" ? readVariants(options, lists) : undefined;
  const group = type === "COMFY_AUTOGROW_V3" ? readGroup(options, lists) : undefined;
  const choices = Array.isArray(kind) ? kind : sharedList(own(options, "options"), lists);
  return {
    name,
    type,
    required,
    ...(type === "COMBO" && choices !== undefined ? { choices } : {}),
    ...(Object.hasOwn(options, "default") ? { default: options["default"] ?? null } : {}),
    ...numbersOf(options),
    ...(own(options, "multiline") === true ? { multiline: true } : {}),
    ...(own(options, "dynamicPrompts") === true ? { dynamicPrompts: true } : {}),
    ...(own(options, "forceInput") === true ? { forceInput: true } : {}),
    ...(typeof options["widgetType"] === "string" ? { widgetType: options["widgetType"] } : {}),
    ...(typeof control === "boolean" || typeof control === "string" ? { control } : {}),
    ...(upload === undefined ? {} : { upload }),
    ...(variants === undefined ? {} : { variants }),
    ...(group === undefined ? {} : { group }),
  };
}

/** The committed table keeps repeated lists of choices once and refers to them by number. */
function sharedList(
  value: JsonValue | undefined,
  lists: readonly JsonValue[],
): readonly JsonValue[] | undefined {
  const list = typeof value === "number" ? lists[value] : value;
  return Array.isArray(list) ? list : undefined;
}

function numbersOf(options: JsonObject): { min?: number; max?: number; step?: number } {
  const found: { min?: number; max?: number; step?: number } = {};
  for (const key of ["min", "max", "step"] as const) {
    const value = own(options, key);
    if (typeof value === "number" || typeof value === "bigint") {
      found[key] = Number(value);
    }
  }
  return found;
}

function readVariants(options: JsonObject, lists: readonly JsonValue[]): InputVariant[] {
  return ownList(options, "options")
    .filter(isJsonObject)
    .map((option) => ({
      key: ownText(option, "key") ?? "",
      inputs: readInputs(ownObject(option, "inputs") ?? {}, undefined, lists),
    }));
}

function readGroup(options: JsonObject, lists: readonly JsonValue[]): InputGroup {
  const template = ownObject(options, "template") ?? {};
  const names = ownList(template, "names").filter((name) => typeof name === "string");
  const prefix = ownText(template, "prefix");
  const min = own(template, "min");
  const max = own(template, "max");
  return {
    inputs: readInputs(ownObject(template, "input") ?? {}, undefined, lists),
    ...(prefix === undefined ? {} : { prefix }),
    ...(names.length === 0 ? {} : { names }),
    min: typeof min === "number" ? min : 0,
    max: typeof max === "number" ? max : names.length,
  };
}
