/** How a node is declared: its inputs and outputs (the source of `/object_info` and of validation) beside its code. */
import type { JsonObject, JsonValue } from "../../../platform/json.ts";
import type { EngineFolders } from "../folders.ts";
import type { NodeInputs } from "../inputs.ts";
import type { NodeValue } from "../values.ts";

/** The ComfyUI whose behaviour is shown. */
export type Compat = "0.33.0" | "0.3.64";

/** ComfyUI's MAX_RESOLUTION. */
export const MAX_RESOLUTION = 16_384;

export interface InputSpec {
  /** `INT`, `FLOAT`, `STRING`, `BOOLEAN`, `COMBO`, or the type of a socket. */
  readonly type: string;
  /** The values of a combo, asked for anew each time: files come and go. */
  readonly options?: ((folders: EngineFolders) => readonly string[]) | undefined;
  readonly config: JsonObject;
}

export type InputTable = Readonly<Record<string, InputSpec>>;

export interface OutputSpec {
  readonly type: string;
  /** Its name where that differs from the type. */
  readonly name?: string;
}

/** What a node may use while it runs. */
export interface NodeContext {
  readonly nodeId: string;
  readonly folders: EngineFolders;
  readonly compat: Compat;
  /** The API graph and `extra_pnginfo` of the prompt, for files that carry them; undefined with `--disable-metadata`. */
  readonly metadata: { readonly prompt: JsonObject; readonly extra: JsonObject } | undefined;
  /** Lets other work run when it is time to. Rejects once the prompt is interrupted. */
  breathe(): Promise<void> | undefined;
  progress(value: number, max: number, png?: Uint8Array): void;
  /** Shows a text on the node (a TEXT frame). */
  showText(text: string): void;
  /** The same five letters each time for one node of one class: the name of its temp files. */
  tempSuffix(): string;
}

export interface NodeOutcome {
  readonly outputs: readonly NodeValue[];
  /** What `executed` and the history say about the node. */
  readonly ui?: JsonObject | undefined;
}

export interface NodeDefinition {
  readonly className: string;
  readonly displayName: string;
  readonly category: string;
  readonly module: string;
  /** Which generation of ComfyUI's schema declares it; `v3-new`: V1 in 0.3.64, V3 in 0.33. */
  readonly schema: "v1" | "v3" | "v3-new";
  readonly required: InputTable;
  readonly optional?: InputTable | undefined;
  readonly hidden?: readonly ("PROMPT" | "EXTRA_PNGINFO" | "UNIQUE_ID")[] | undefined;
  readonly outputs: readonly OutputSpec[];
  readonly isOutput?: boolean | undefined;
  /** In 0.3.64 nothing could be linked from it. */
  readonly endsGraphInOld?: boolean | undefined;
  readonly isOnlyInNew?: boolean | undefined;
  readonly description?: string | undefined;
  /** `VALIDATE_INPUTS`: names whose own range and list checks it replaces, and the check. */
  readonly check?:
    | {
        readonly names: readonly string[];
        readonly run: (
          values: Readonly<Record<string, JsonValue>>,
          folders: EngineFolders,
        ) => string | undefined;
      }
    | undefined;
  /** `IS_CHANGED`: what else than the inputs decides whether a result may be taken from the cache. */
  readonly fingerprint?:
    | ((values: Readonly<Record<string, JsonValue>>, folders: EngineFolders) => Promise<string>)
    | undefined;
  readonly run: (inputs: NodeInputs, context: NodeContext) => Promise<NodeOutcome> | NodeOutcome;
}

/** Five letters that no temp file begins with yet. */
export function randomLetters(): string {
  const letter = () => String.fromCharCode(97 + Math.floor(Math.random() * 26));
  return Array.from({ length: 5 }, letter).join("");
}

export function socket(type: string, config: JsonObject = {}): InputSpec {
  return { type, config };
}

export function int(config: JsonObject): InputSpec {
  return { type: "INT", config };
}

export function float(config: JsonObject): InputSpec {
  return { type: "FLOAT", config };
}

export function text(config: JsonObject = {}): InputSpec {
  return { type: "STRING", config };
}

export function flag(config: JsonObject): InputSpec {
  return { type: "BOOLEAN", config };
}

export function combo(options: readonly string[], config: JsonObject = {}): InputSpec {
  return { type: "COMBO", options: () => options, config };
}

/** A combo of the files in a model category. */
export function files(category: string): InputSpec {
  return { type: "COMBO", options: (folders) => folders.models.list(category), config: {} };
}

export function output(type: string, name?: string): OutputSpec {
  return name === undefined ? { type } : { type, name };
}

/** True when the class is declared with the V3 schema in this version. */
export function isV3(definition: NodeDefinition, compat: Compat): boolean {
  return definition.schema === "v3" || (definition.schema === "v3-new" && compat === "0.33.0");
}

/** Inputs by name, required ones first. */
export function inputsOf(definition: NodeDefinition): InputTable {
  return { ...definition.required, ...definition.optional };
}

export function outputsOf(definition: NodeDefinition, compat: Compat): readonly OutputSpec[] {
  return definition.endsGraphInOld === true && compat === "0.3.64" ? [] : definition.outputs;
}
