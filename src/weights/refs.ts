/** What the stages of the weights room hand on, from "a workflow names it" to "it lies verified on disk". */
import type { Defect } from "../models/header.ts";
import type { Trust } from "./plan-types.ts";

/** Why we think that a workflow needs a file. */
export type RefReason =
  | "loader" // a row of the loader table
  | "object_info" // the running engine lists files of a category for this input
  | "extension" // the value merely ends like a model file
  | "embedding" // `embedding:NAME` in a prompt
  | "lora_text" // `<lora:NAME:1>` where a node reads it
  | "implied" // a node fetches it without naming it: a row of the implied-weights table
  | "meta"; // `_meta.required_weights`

/** A weight that a workflow needs. */
export interface WeightRef {
  /** The name as the workflow spells it; of an implied weight, the file name of its row. */
  readonly name: string;
  /** ComfyUI category (`checkpoints`, `loras`, …); undefined when nothing tells. */
  readonly category: string | undefined;
  /** Path relative to ComfyUI's root, for implied weights that lie outside of `models/`. */
  readonly path?: string;
  /** Node that wants it; undefined for `_meta.required_weights`. */
  readonly nodeId: string | undefined;
  readonly nodeTitle?: string;
  readonly classType: string | undefined;
  readonly input: string | undefined;
  readonly reason: RefReason;
  /** True when ComfyUI would certainly fail without it: a miss blocks. Otherwise it is a warning. */
  readonly certain: boolean;
  readonly hints: readonly WeightHint[];
  /** Titles of the subgraphs the node lies in, outermost first. */
  readonly subgraphs?: readonly string[];
  /** The weight is a folder; these files must be in it, as far as they are known. */
  readonly folder?: { readonly files: readonly string[] };
  /** The node takes any file of the category whose name matches (a regular expression, case ignored). */
  readonly accepts?: string;
  /** Further categories in which the node looks the name up. */
  readonly otherCategories?: readonly string[];
  /** The running engine offers this very name: never reported missing. */
  readonly listed?: boolean;
  /** The name is an address; the file goes into the name-space of addresses and the input is rewritten. */
  readonly fromUrl?: boolean;
  /** Size of the finished file, where the table of implied weights knows it. */
  readonly sizeBytes?: number;
  /** Another place of the file that the node accepts too, written as `path`. */
  readonly altPath?: string;
  /** The node needs all weights of one option of a group, not of every option. */
  readonly oneOf?: WeightChoice;
}

/** An alternative: versions of a node pack, or base models that can't be told apart by name. */
export interface WeightChoice {
  readonly group: string;
  readonly option: string;
  /** The option to report when none is there. */
  readonly preferred: boolean;
}

/** A source that the workflow itself, or the table of implied weights, names for a weight. */
export interface WeightHint {
  readonly url: string;
  /** `operator` for what ships with the program; a workflow's own word is only a request's. */
  readonly trust?: Trust;
  readonly sha256?: string;
}

export interface PresentWeight {
  readonly ref: WeightRef;
  /** Absolute path ComfyUI will open. */
  readonly file: string;
  readonly sizeBytes: number;
  /** The name ComfyUI lists it under, where the workflow spells it otherwise: the input is to be rewritten. */
  readonly listedAs?: string;
}

/** Another file that may be the one meant. */
export interface NearMatch {
  readonly name: string;
  readonly category: string;
  readonly why: "case" | "separator" | "extension" | "subfolder" | "other_folder" | "spelling";
  /** False for a name that only the manifest has. */
  readonly onDisk?: boolean;
}

/** A weight that is not usable, with everything needed to tell a person how to fix it. */
export interface MissingWeight {
  readonly ref: WeightRef;
  /** Every input that wants it, `ref` included. */
  readonly uses?: readonly WeightRef[];
  readonly state: "missing" | "broken";
  readonly defect?: Defect;
  /** The broken file. */
  readonly file?: string;
  /** Folders that were searched, in ComfyUI's order. */
  readonly searched: readonly string[];
  readonly near: readonly NearMatch[];
  /** What the manifests or the workflow know of it. */
  readonly known?: KnownWeight;
  /** Why the known source may not be used by a request. */
  readonly refused?: string;
}

/** What a manifest row or a hint says of a weight, for the report. */
export interface KnownWeight {
  readonly name: string;
  readonly source: string;
  readonly origin: "lock" | "manifest" | "synonym" | "workflow" | "url";
  readonly sizeBytes?: number;
  /** A rounded size, where the exact one isn't known. */
  readonly approxBytes?: number;
  readonly license?: string;
  readonly nonCommercial?: boolean;
  readonly gated?: boolean;
}

/** The answer of validation. `missing` blocks; `warnings` are told and block nothing. */
export interface Validation {
  readonly present: readonly PresentWeight[];
  readonly missing: readonly MissingWeight[];
  readonly warnings: readonly MissingWeight[];
  readonly ignored: readonly WeightRef[];
  /** Not found by us, but the running engine offers the name: its word counts. */
  readonly listed?: readonly WeightRef[];
}
