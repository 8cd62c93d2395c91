/**
 * ComfyUI's refusals and failures, told so that they can be acted on: which node, which input, what was allowed, what
 * went out of memory, what tried to use the network. Never its Python traceback; never a whole tensor.
 */
import { EngineError } from "../platform/errors.ts";
import type { Graph } from "../workflow/graph.ts";
import { nodeOf } from "../workflow/graph-read.ts";
import type { ExecutionErrorFacts, InputProblem, NodeProblem, PromptRefusal } from "./wire.ts";

/** Allowed values named in a message; all of them are in the details. */
const NAMED_CHOICES = 10;
/** Allowed values kept in details: a folder of thousands of LoRAs must not fill an answer. */
const KEPT_CHOICES = 200;
const MAX_MESSAGE_LENGTH = 1500;
const MAX_VALUE_LENGTH = 200;

/** How people find a node: `node 4 "Load" (LoadImage)`. */
export function nodeLabel(graph: Graph, id: string, classType?: string): string {
  const node = nodeOf(graph, id);
  const title = node?._meta?.title;
  const kind = classType ?? node?.class_type ?? "?";
  return title === undefined || title === kind
    ? `node ${id} (${kind})`
    : `node ${id} "${title}" (${kind})`;
}

function shorten(text: string, length: number): string {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}

function show(value: unknown): string {
  const text = typeof value === "string" ? `"${value}"` : (JSON.stringify(value) ?? String(value));
  return shorten(text, MAX_VALUE_LENGTH);
}

/** What one complaint is about, as data. */
interface InputComplaint {
  readonly type: string;
  readonly input: string | undefined;
  readonly sentence: string;
  readonly received?: unknown;
  readonly allowed?: readonly string[];
}

/** The choices of a combo, in either schema: `[["a", "b"], {…}]` or `["COMBO", {"options": […]}]`. */
function choicesOf(problem: InputProblem): string[] | undefined {
  const config = problem.extra_info["input_config"];
  if (!Array.isArray(config)) {
    return undefined;
  }
  const [kind, options]: unknown[] = config;
  const list =
    typeof options === "object" && options !== null && "options" in options
      ? options.options
      : kind;
  return Array.isArray(list) ? list.map(String) : undefined;
}

function complaintOf(problem: InputProblem): InputComplaint {
  const name = problem.extra_info["input_name"];
  const input = typeof name === "string" ? name : undefined;
  const received = problem.extra_info["received_value"];
  const base = { type: problem.type, input, ...(received === undefined ? {} : { received }) };
  if (problem.type === "value_not_in_list") {
    const allowed = choicesOf(problem);
    return {
      ...base,
      sentence: `${input ?? "an input"} is ${show(received)}, which is not among ${namedChoices(allowed, problem.details)}`,
      ...(allowed === undefined ? {} : { allowed: allowed.slice(0, KEPT_CHOICES) }),
    };
  }
  if (problem.type === "required_input_missing") {
    return { ...base, sentence: `the input ${input ?? problem.details} is missing` };
  }
  const details = problem.details === "" ? "" : `: ${shorten(problem.details, MAX_VALUE_LENGTH)}`;
  return { ...base, sentence: `${problem.message || problem.type}${details}` };
}

function namedChoices(allowed: readonly string[] | undefined, details: string): string {
  if (allowed === undefined) {
    // ComfyUI leaves lists of more than twenty out.
    const count = /list of length (\d+)/.exec(details)?.[1];
    return count === undefined ? "the allowed values" : `the ${count} allowed values`;
  }
  if (allowed.length === 0) {
    return "the allowed values: there are none";
  }
  const named = allowed.slice(0, NAMED_CHOICES).map((choice) => shorten(choice, 80));
  const rest = allowed.length - named.length;
  return `the allowed values: ${named.join(", ")}${rest > 0 ? ` and ${rest} more` : ""}`;
}

/** The complaints about some nodes as lines, and as data. */
function describeNodes(
  graph: Graph,
  nodes: Readonly<Record<string, NodeProblem>>,
): { lines: string[]; data: unknown[] } {
  const lines: string[] = [];
  const data: unknown[] = [];
  for (const [nodeId, node] of Object.entries(nodes)) {
    const complaints = node.errors.map(complaintOf);
    for (const { sentence } of complaints) {
      lines.push(`${nodeLabel(graph, nodeId, node.class_type)}: ${sentence}`);
    }
    data.push({
      nodeId,
      classType: node.class_type,
      title: nodeOf(graph, nodeId)?._meta?.title,
      errors: complaints.map(({ sentence, ...facts }) => ({ ...facts, message: sentence })),
    });
  }
  return { lines, data };
}

/** ComfyUI took nothing of the workflow. */
export function refusalError(graph: Graph, refusal: PromptRefusal): EngineError {
  const { error } = refusal;
  const { lines, data } = describeNodes(graph, refusal.node_errors);
  const missingClass = missingClassOf(graph, refusal);
  const details = {
    type: error.type,
    nodes: data,
    ...(missingClass === undefined ? {} : { missingClass }),
  };
  if (missingClass !== undefined) {
    return new EngineError(
      "PROMPT_REJECTED",
      `This ComfyUI has no node of the class ${missingClass.classType}${missingClass.where}`,
      { details, hint: "Install the custom nodes that bring it, or use another node." },
    );
  }
  const about = [error.message, error.details].filter((part) => part !== "").join(": ");
  return new EngineError(
    "PROMPT_REJECTED",
    lines.length === 0
      ? `ComfyUI refused the workflow: ${about || error.type}`
      : `ComfyUI refused the workflow. ${sentences(lines)}`,
    { details, hint: hintFor(lines) },
  );
}

/** ComfyUI took a part of the workflow and would have dropped the rest in silence. */
export function partialRefusalError(
  graph: Graph,
  nodes: Readonly<Record<string, NodeProblem>>,
): EngineError {
  const { lines, data } = describeNodes(graph, nodes);
  return new EngineError(
    "PROMPT_REJECTED",
    `ComfyUI would have run only a part of the workflow. ${sentences(lines)}`,
    {
      details: { type: "prompt_outputs_failed_validation", partial: true, nodes: data },
      hint: hintFor(lines) ?? "Correct these nodes, or remove the outputs that need them.",
    },
  );
}

function sentences(lines: readonly string[]): string {
  return lines.length === 1 ? (lines[0] ?? "") : lines.map((line) => `\n  ${line}`).join("");
}

function hintFor(lines: readonly string[]): string | undefined {
  return lines.length === 0 ? undefined : "Correct the inputs named here in the workflow.";
}

function missingClassOf(
  graph: Graph,
  { error }: PromptRefusal,
): { classType: string; nodeId: string | undefined; where: string } | undefined {
  const known = error.extra_info["class_type"];
  const id = error.extra_info["node_id"];
  const oldForm = /node (.+) does not exist/.exec(error.message)?.[1];
  const classType = typeof known === "string" ? known : oldForm;
  if ((error.type !== "missing_node_type" && oldForm === undefined) || classType === undefined) {
    return undefined;
  }
  const nodeId = typeof id === "string" ? id : /#([^']+)/.exec(error.details)?.[1]?.trim();
  const where = nodeId === undefined ? "" : `, which ${nodeLabel(graph, nodeId)} needs`;
  return { classType, nodeId, where };
}

const OUT_OF_MEMORY = /out of memory|OutOfMemory|MPS backend out|hipErrorOutOfMemory/i;
const NO_DISK = /\[Errno 28\]|No space left on device/i;
/** What the libraries of the Hub say when they wanted the network and had none. */
const WENT_OFFLINE =
  /OfflineModeIsEnabled|LocalEntryNotFound|HF_HUB_OFFLINE|outgoing traffic has been disabled|couldn't connect to 'https:\/\/huggingface\.co'|offline mode/i;
const REPOSITORY =
  /huggingface\.co\/(?:api\/(?:models|datasets)\/)?([\w.-]+\/[\w.-]+)|(?:repo(?:sitory)?(?: id)?|model)[ :=]+['"]?([\w.-]+\/[\w.-]+)|['"]([\w.-]+\/[\w.-]+)['"] is (?:not|the correct)/i;

/** A node raised something while it ran. */
export function executionError(graph: Graph, facts: ExecutionErrorFacts): EngineError {
  const label = nodeLabel(graph, facts.node_id, facts.node_type);
  const message = shorten(facts.exception_message.trim(), MAX_MESSAGE_LENGTH);
  const what = message === "" ? "no message" : message;
  const details = {
    nodeId: facts.node_id,
    classType: facts.node_type,
    title: nodeOf(graph, facts.node_id)?._meta?.title,
    exceptionType: facts.exception_type,
    exceptionMessage: message,
    inputs: shortInputs(facts.current_inputs),
  };
  const text = `${facts.exception_type} ${facts.exception_message}`;
  if (OUT_OF_MEMORY.test(text)) {
    return new EngineError("OUT_OF_MEMORY", `${label} ran out of memory: ${what}`, {
      details,
      hint: "Use a smaller picture or batch, a smaller or quantised model, or a larger GPU. Models were unloaded, so the next run starts with free memory.",
      retryable: true,
    });
  }
  if (NO_DISK.test(text)) {
    return new EngineError("NO_SPACE", `${label} found no space left on the disk: ${what}`, {
      details,
      hint: "Free space on the disk of WORK_DIR.",
    });
  }
  const all = `${text}\n${facts.traceback.join("\n")}`;
  if (WENT_OFFLINE.test(all)) {
    return offlineError(label, what, all, details);
  }
  return new EngineError(
    "NODE_FAILED",
    `${label} failed: ${facts.exception_type === "" ? "" : `${facts.exception_type}: `}${what}`,
    { details },
  );
}

function offlineError(
  label: string,
  what: string,
  all: string,
  details: Readonly<Record<string, unknown>>,
): EngineError {
  const match = REPOSITORY.exec(all);
  const repository = match?.[1] ?? match?.[2] ?? match?.[3];
  const wanted = repository === undefined ? "a model" : `the model ${repository}`;
  return new EngineError(
    "NODE_FAILED",
    `${label} tried to fetch ${wanted} by itself while the workflow ran, which this server does not allow: ${what}`,
    {
      details: { ...details, ...(repository === undefined ? {} : { repository }), offline: true },
      hint: "Install it beforehand (a row in WEIGHTS_MANIFEST, or COG_WEIGHTS), or set COMFYUI_OFFLINE=0 to let nodes use the network.",
    },
  );
}

/** A failed node's inputs arrive as text, each as a list; tensors print by the megabyte. */
function shortInputs(inputs: Readonly<Record<string, unknown>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(inputs).map(([name, value]) => {
      const [only, ...others]: unknown[] = Array.isArray(value) ? value : [value];
      const text = typeof only === "string" && others.length === 0 ? only : show(value);
      return [name, shorten(text, MAX_VALUE_LENGTH)];
    }),
  );
}
