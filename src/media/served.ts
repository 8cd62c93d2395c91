/**
 * A workflow that is served as an API of its own (`WORKFLOW`): its named inputs, as they can be described to clients, and
 * the workflow with a client's values in it. Files come as local paths and are shelved with the other inputs.
 */
import { statSync } from "node:fs";
import { join } from "node:path";
import { InputError, messageOf } from "../platform/errors.ts";
import type { JsonValue } from "../platform/json.ts";
import { parseJson, stringifyJson } from "../platform/json.ts";
import type { NodeDefinitions } from "../workflow/definitions.ts";
import { isSeedInput } from "../workflow/edits.ts";
import type { EngineDirs } from "../workflow/engine-files.ts";
import type { NamedInput } from "../workflow/expose.ts";
import { applyNamedInputs, namedInputs } from "../workflow/expose.ts";
import type { Workflow } from "../workflow/graph.ts";
import { nodeOf, record } from "../workflow/graph-read.ts";
import { withValues } from "../workflow/overrides.ts";
import { isAddress } from "./fetch-media.ts";
import type { LoaderInput } from "./loader-inputs.ts";
import { loaderInput, parseAnnotation } from "./loader-inputs.ts";

export interface ServedInput extends NamedInput {
  /** A file without which the workflow can't run. */
  readonly isRequired: boolean;
  /** A seed: left empty it is random, or what the workflow holds. */
  readonly isOpen: boolean;
}

export interface ServeOptions {
  readonly definitions?: NodeDefinitions | undefined;
  /** Folders of an engine on this machine. */
  readonly dirs?: EngineDirs | undefined;
}

/** The workflow of one request. */
export interface FilledWorkflow {
  readonly workflow: Workflow;
  /** Local paths that the graph names. */
  readonly files: readonly string[];
  /** Inputs that the client set. */
  readonly set: readonly { readonly nodeId: string; readonly input: string }[];
}

const SEED_NOTE = "Empty: random, or the workflow's own seed when randomise_seeds is false.";

export class ServedWorkflow {
  readonly workflow: Workflow;
  readonly inputs: readonly ServedInput[];
  readonly #options: ServeOptions;

  /** @throws InputError WORKFLOW_INVALID for named inputs that fit no node */
  constructor(workflow: Workflow, options: ServeOptions = {}) {
    this.workflow = workflow;
    this.#options = options;
    this.inputs = namedInputs(workflow, options).map((input) => serve(input, workflow, options));
  }

  /** @throws InputError INPUT_INVALID naming every value that doesn't fit */
  fill(given: Readonly<Record<string, unknown>>): FilledWorkflow {
    const files: string[] = [];
    const set: FilledWorkflow["set"][number][] = [];
    const fileValues: { nodeId: string; input: string; after: JsonValue }[] = [];
    const values: [string, JsonValue][] = [];
    for (const { name, kind, places } of this.inputs) {
      const value = Object.hasOwn(given, name) ? given[name] : undefined;
      if (value === undefined || value === null) {
        continue;
      }
      set.push(...places.map(({ node, input }) => ({ nodeId: node, input })));
      if (kind === "file" && typeof value === "string") {
        files.push(...(isAddress(value) ? [] : [value]));
        fileValues.push(
          ...places.map(({ node, input }) => ({ nodeId: node, input, after: value })),
        );
      } else {
        values.push([name, kind === "json" ? readValue(name, value) : asJson(value)]);
      }
    }
    const graph = applyNamedInputs(this.workflow, record(values), this.#options);
    return {
      workflow: { ...this.workflow, graph: withValues(graph, fileValues) },
      files: [...new Set(files)],
      set,
    };
  }
}

function serve(input: NamedInput, workflow: Workflow, options: ServeOptions): ServedInput {
  const loader = loaderOf(input, workflow, options);
  if (input.kind === "file" || loader?.form === "name" || loader?.form === "path") {
    const isRequired = !isThere(input, loader, workflow, options);
    return { ...input, kind: "file", isRequired, isOpen: false };
  }
  const isOpen =
    input.kind === "integer" && input.places.every((place) => isSeedInput(place.input));
  const description = [input.description, SEED_NOTE].filter(Boolean).join(" ");
  return { ...input, ...(isOpen ? { description } : {}), isRequired: false, isOpen };
}

function loaderOf(
  { places: [place] }: NamedInput,
  { graph }: Workflow,
  { definitions }: ServeOptions,
): LoaderInput | undefined {
  const node = place === undefined ? undefined : nodeOf(graph, place.node);
  return node === undefined
    ? undefined
    : loaderInput(node.class_type, place?.input ?? "", definitions);
}

/** True when the workflow's own file can be had without a client: fetched, offered by the engine, or on this disk. */
function isThere(
  { default: value, places: [place] }: NamedInput,
  loader: LoaderInput | undefined,
  { graph }: Workflow,
  { definitions, dirs }: ServeOptions,
): boolean {
  if (typeof value !== "string" || place === undefined) {
    return false;
  }
  const classType = nodeOf(graph, place.node)?.class_type ?? "";
  const { name, root } = parseAnnotation(value);
  const path = dirs && join(dirs[root ?? loader?.root ?? "input"], name);
  return (
    isAddress(value) ||
    (definitions?.source === "engine" &&
      definitions.input(classType, place.input)?.choices?.includes(value) === true) ||
    (path !== undefined && statSync(path, { throwIfNoEntry: false })?.isFile() === true)
  );
}

function readValue(name: string, value: unknown): JsonValue {
  if (typeof value !== "string") {
    return asJson(value);
  }
  try {
    return parseJson(value);
  } catch (cause) {
    throw new InputError("INPUT_INVALID", `${name} is not JSON: ${messageOf(cause)}`, { cause });
  }
}

/** What arrives was JSON, or is what a caller of the class wrote as such. */
function asJson(value: unknown): JsonValue {
  return parseJson(stringifyJson(value));
}
