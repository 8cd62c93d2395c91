/** The one function that tells the formats of workflows apart, wrappers included. */
import { InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import { describeValue } from "./describe.ts";
import type { WorkflowFormat } from "./graph.ts";
import { own, ownList, ownObject, ownText, record } from "./graph-read.ts";
import { GIVE_A_WORKFLOW, readJsonText } from "./json-text.ts";
import { MAX_WRAPPERS } from "./limits.ts";
import { nodeIdOf } from "./meta.ts";

/** A document told apart, not yet checked node by node. */
export interface Recognised {
  readonly format: WorkflowFormat;
  /** Nodes in API form; of a UI file the whole document. */
  readonly body: JsonObject;
  readonly isUi: boolean;
  /** Documents whose `_meta` and `models` count, outermost first. */
  readonly holders: readonly JsonObject[];
  /** The UI document that came beside a prompt. */
  readonly beside: JsonObject | undefined;
}

/** Members under which servers and clients wrap a workflow, in the order they are tried. */
const WRAPPERS = ["output", "prompt", "workflow", "workflow_json", "input", "api"] as const;

/** Tells what a document is. Throws an `InputError` that says in words what was given instead. */
export function recognise(document: JsonValue): Recognised {
  let current = document;
  const holders: JsonObject[] = [];
  let beside: JsonObject | undefined;
  for (let layer = 0; layer <= MAX_WRAPPERS; layer += 1) {
    if (typeof current === "string") {
      current = readJsonText(current);
    }
    if (!isJsonObject(current)) {
      break;
    }
    const found = recogniseBare(current);
    if (found !== undefined) {
      const format = layer > 0 && found.format === "api" ? "wrapped" : found.format;
      return { ...found, format, holders: [...holders, current], beside };
    }
    beside ??= findBeside(current);
    holders.push(current);
    const inner = unwrap(current);
    if (inner === undefined) {
      break;
    }
    current = inner;
  }
  throw unrecognised(document);
}

type Bare = Pick<Recognised, "format" | "body" | "isUi">;

function recogniseBare(document: JsonObject): Bare | undefined {
  const nodes = own(document, "nodes");
  if (Array.isArray(nodes)) {
    return recogniseNodeList(document, nodes);
  }
  if (isJsonObject(nodes) && hasNode(nodes)) {
    return { format: "guide", body: nodes, isUi: false };
  }
  return hasNode(document) ? { format: "api", body: document, isUi: false } : undefined;
}

/** A list of nodes is ComfyUI's UI form, unless the nodes have a `class_type`: then it is a prompt as a list. */
function recogniseNodeList(document: JsonObject, nodes: readonly JsonValue[]): Bare | undefined {
  const objects = nodes.filter(isJsonObject);
  if (objects.some((node) => Object.hasOwn(node, "class_type"))) {
    const entries = objects.map((node, index): [string, JsonValue] => [
      nodeIdOf(own(node, "id")) ?? String(index + 1),
      node,
    ]);
    const ids = entries.map(([id]) => id);
    const twice = ids.find((id, index) => ids.indexOf(id) !== index);
    if (twice !== undefined) {
      throw new InputError(
        "WORKFLOW_INVALID",
        `The workflow has two nodes with the id '${twice}'.`,
        {
          hint: "Give every node an id of its own.",
        },
      );
    }
    return { format: "guide", body: record(entries), isUi: false };
  }
  const isUi =
    objects.some((node) => Object.hasOwn(node, "type")) ||
    Object.hasOwn(document, "links") ||
    Object.hasOwn(document, "last_node_id");
  return isUi ? { format: "ui", body: document, isUi: true } : undefined;
}

function hasNode(record_: JsonObject): boolean {
  return Object.values(record_).some(
    (node) => isJsonObject(node) && typeof own(node, "class_type") === "string",
  );
}

function unwrap(document: JsonObject): JsonValue | undefined {
  for (const key of WRAPPERS) {
    const inner = own(document, key);
    if (isJsonObject(inner) || (typeof inner === "string" && /^\s*[{"]/.test(inner))) {
      return inner;
    }
    // A queue item or history entry: [number, prompt id, prompt, extra data, outputs].
    if (key === "prompt" && Array.isArray(inner) && isJsonObject(inner[2])) {
      return inner[2];
    }
  }
  return undefined;
}

/** The UI document in `{prompt, workflow}` or `extra_data.extra_pnginfo.workflow`. */
function findBeside(document: JsonObject): JsonObject | undefined {
  const extra = ownObject(ownObject(document, "extra_data") ?? {}, "extra_pnginfo") ?? {};
  const candidates = [ownObject(document, "workflow"), ownObject(extra, "workflow")];
  return candidates.find((candidate) => candidate !== undefined && isUiDocument(candidate));
}

/** True for a document in ComfyUI's UI form. */
export function isUiDocument(document: JsonValue | undefined): document is JsonObject {
  return isJsonObject(document) && recogniseBare(document)?.isUi === true;
}

function unrecognised(document: JsonValue): InputError {
  const missing = nodesWithoutClass(document);
  if (missing !== undefined) {
    return new InputError(
      "WORKFLOW_INVALID",
      `The workflow has a node without class_type: '${missing}'.`,
      {
        hint: "Every node of an API workflow needs class_type: export it again with Export (API).",
      },
    );
  }
  return new InputError(
    "WORKFLOW_INVALID",
    `This is no workflow: it looks like ${describeValue(document)}.`,
    { hint: GIVE_A_WORKFLOW },
  );
}

/** The first key whose value is built like a node but lacks the class. */
function nodesWithoutClass(document: JsonValue): string | undefined {
  if (!isJsonObject(document) || ownText(document, "class_type") !== undefined) {
    return undefined;
  }
  const nodes = ownObject(document, "nodes") ?? document;
  const values = Object.entries(nodes).filter(([key]) => !key.startsWith("_"));
  const isNodeLike = ([, node]: [string, JsonValue]) =>
    isJsonObject(node) &&
    isJsonObject(own(node, "inputs")) &&
    ownList(node, "outputs").length === 0;
  return values.length > 0 && values.every(isNodeLike) ? values[0]?.[0] : undefined;
}
