/**
 * Why a workflow can't run, apart from its weights: classes that aren't there and where to get them, what ComfyUI would
 * refuse, nodes that call paid services. Everything at once, each with its fix, as data and as text. Pure.
 */
import { z } from "zod";
import { EngineError } from "../platform/errors.ts";
import { NodeDefinitions } from "./definitions.ts";
import { clip, listNames } from "./describe.ts";
import type { GraphNode, Workflow } from "./graph.ts";
import { own } from "./graph-read.ts";
import { didYouMean, nearNames } from "./near.ts";
import { customNodesRow, folderKey, PackFacts, packOfClass } from "./node-packs.ts";
import type { PreflightProblem } from "./preflight.ts";
import { refusedInputs } from "./preflight.ts";

export const OBSTACLE_KINDS = [
  "unknown_class",
  "import_failed",
  "not_in_embedded",
  "not_in_version",
  "partner_node",
  "refused",
] as const;

/** One reason. `blocks` is true only for what ComfyUI would refuse for certain. */
export const Obstacle = z.object({
  kind: z
    .enum(OBSTACLE_KINDS)
    .describe(
      "unknown_class: of a node pack that isn't installed, or of none; import_failed: its pack is installed but did not load; not_in_embedded: ComfyUI has it, the embedded engine doesn't; not_in_version: this ComfyUI doesn't; partner_node: calls a paid service; refused: a complaint of ComfyUI's own check",
    ),
  blocks: z
    .boolean()
    .describe("False: told, but left to ComfyUI, which may accept it; or no engine was asked"),
  message: z.string(),
  fix: z.string(),
  type: z.string().optional().describe("ComfyUI's own name of the error"),
  classType: z.string().optional(),
  nodes: z.array(
    z.object({ nodeId: z.string(), title: z.string().optional(), classType: z.string() }),
  ),
  input: z.string().optional(),
  pack: PackFacts.optional(),
  customNodesRow: z.string().optional().describe("The row of custom_nodes.json that adds the pack"),
  log: z.string().optional().describe("ComfyUI's own line"),
});
export type Obstacle = z.infer<typeof Obstacle>;

/** A node pack that is there but did not load, as ComfyUI's log says. */
export interface ImportFailure {
  /** Name of its folder in `custom_nodes`. */
  readonly folder: string;
  readonly line: string;
}

/** What is known of the engine beside its definitions. */
export interface EngineFacts {
  readonly kind: "real" | "remote" | "embedded";
  readonly importFailures: readonly ImportFailure[];
}

export interface ObstacleOptions {
  /** The running engine's classes; without one, only classes are told and nothing blocks. */
  readonly definitions?: NodeDefinitions | undefined;
  readonly engine?: EngineFacts | undefined;
  /** True for an input that names a weight: whether that is there is for the weights to say. */
  readonly isWeight?: ((nodeId: string, input: string) => boolean) | undefined;
}

/** Everything that stands in the way of a run, classes first. */
export function findObstacles(workflow: Workflow, options: ObstacleOptions = {}): Obstacle[] {
  const definitions = options.definitions ?? NodeDefinitions.core();
  const problems = refusedInputs(workflow.graph, definitions);
  const told =
    definitions.source === "engine"
      ? problems.filter((problem) => !isWeightChoice(problem, options))
      : // Versions differ in their inputs, never in what a graph must have.
        problems.filter(({ type }) => type === "prompt_no_outputs" || type === "dependency_cycle");
  return [
    ...classObstacles(workflow, definitions, options),
    ...told.map((problem) => refused(problem, definitions)),
  ];
}

function isWeightChoice(problem: PreflightProblem, { isWeight }: ObstacleOptions): boolean {
  const { type, nodeId, input } = problem;
  return (
    type === "value_not_in_list" &&
    nodeId !== undefined &&
    input !== undefined &&
    isWeight?.(nodeId, input) === true
  );
}

function refused(problem: PreflightProblem, definitions: NodeDefinitions): Obstacle {
  const { type, nodeId, classType, title, input, message, isCertain } = problem;
  return {
    kind: "refused",
    blocks: isCertain && definitions.source === "engine",
    message,
    fix: fixFor(problem),
    type,
    ...(classType === undefined ? {} : { classType }),
    nodes:
      nodeId === undefined || classType === undefined
        ? []
        : [{ nodeId, classType, ...(title === undefined ? {} : { title }) }],
    ...(input === undefined ? {} : { input }),
  };
}

function fixFor({ type, nodeId, input }: PreflightProblem): string {
  const place = `${input ?? "the input"} of node ${nodeId ?? "?"}`;
  switch (type) {
    case "prompt_no_outputs":
      return "add a node that saves or shows something, such as SaveImage";
    case "dependency_cycle":
      return "cut one of these connections";
    case "required_input_missing":
      return `connect or set ${place}`;
    case "bad_linked_input":
    case "return_type_mismatch":
      return `connect ${place} anew`;
    default:
      return `correct ${place}`;
  }
}

type Uses = readonly (readonly [string, GraphNode])[];

function classObstacles(
  workflow: Workflow,
  definitions: NodeDefinitions,
  options: ObstacleOptions,
): Obstacle[] {
  const byClass = Map.groupBy(Object.entries(workflow.graph), ([, node]) => node.class_type);
  let compared = 0;
  return [...byClass].flatMap(([classType, uses]) => {
    const definition = definitions.get(classType);
    if (definition === undefined) {
      compared += 1;
      const isCompared = compared <= MAX_COMPARED_CLASSES;
      const { engine } = options;
      return [missingClass({ classType, uses, workflow, definitions, engine, isCompared })];
    }
    return definition.isApiNode ? [partnerNode(classType, uses, definitions)] : [];
  });
}

/** A class is compared with every one there is; where so many are missing, none of them is a slip of the keyboard. */
const MAX_COMPARED_CLASSES = 20;

interface MissingClass {
  readonly classType: string;
  readonly uses: Uses;
  readonly workflow: Workflow;
  readonly definitions: NodeDefinitions;
  readonly engine: EngineFacts | undefined;
  /** Near names are looked for. */
  readonly isCompared: boolean;
}

const GET_COMFYUI =
  "set COMFYUI_PATH to the folder of a ComfyUI, or COMFYUI_URL to one that runs: the embedded engine has image nodes only";

function missingClass(missing: MissingClass): Obstacle {
  const { classType, definitions, engine } = missing;
  const own = NodeDefinitions.core().get(classType);
  const blocks = definitions.source === "engine";
  const base = { classType, type: "missing_node_type", blocks, nodes: usesOf(missing.uses) };
  const name = clip(classType);
  if (own?.isApiNode === true) {
    return {
      ...base,
      kind: "partner_node",
      message: `${name} calls a paid service of a partner; such nodes are switched off here (--disable-api-nodes)`,
      fix: "replace it: no account of Comfy.org is used by this server",
    };
  }
  if (own !== undefined) {
    return engine?.kind === "embedded"
      ? {
          ...base,
          kind: "not_in_embedded",
          message: `${name} is not in the embedded engine`,
          fix: GET_COMFYUI,
        }
      : {
          ...base,
          kind: "not_in_version",
          message: `${name} is a class of ComfyUI that this version doesn't have`,
          fix: "use a newer ComfyUI (COMFYUI_COMMIT of the image), or another node",
          ...failedLines(engine, (folder) => OWN_MODULE.test(folder)),
        };
  }
  return packMissing(missing, base);
}

function packMissing(
  { classType, workflow, definitions, engine, isCompared }: MissingClass,
  base: Pick<Obstacle, "classType" | "type" | "blocks" | "nodes">,
): Obstacle {
  const pack = packOfClass(classType, own(workflow.packs ?? {}, classType));
  const name = clip(classType);
  const facts = pack === undefined ? {} : { pack };
  const failure = failureOf(pack, engine);
  if (failure !== undefined && pack !== undefined) {
    return {
      ...base,
      ...facts,
      kind: "import_failed",
      message: `${name} is missing because its node pack ${pack.name} is installed but did not load`,
      fix: "install what its import lacks into ComfyUI's Python (the pack's requirements.txt), then start again",
      log: failure.line,
    };
  }
  const row = pack === undefined ? undefined : customNodesRow(pack);
  const from = pack === undefined ? "" : ` of the node pack ${pack.name}`;
  const isAsked = definitions.source === "engine";
  const near =
    pack === undefined && isCompared
      ? didYouMean(nearNames(classType, definitions.classes(), 1))
      : "";
  return {
    ...base,
    ...facts,
    kind: "unknown_class",
    message: isAsked
      ? `the class ${name}${from} is not installed${near}`
      : `the class ${name}${from} is not ComfyUI's own${near}`,
    fix: packFix(pack, row, engine),
    ...(row === undefined ? {} : { customNodesRow: row }),
    ...(pack === undefined ? failedLines(engine, (folder) => !OWN_MODULE.test(folder)) : {}),
  };
}

function packFix(
  pack: PackFacts | undefined,
  row: string | undefined,
  engine: EngineFacts | undefined,
): string {
  const first =
    engine?.kind === "embedded"
      ? "node packs need a real ComfyUI (COMFYUI_PATH or COMFYUI_URL); there "
      : "";
  if (row !== undefined) {
    return `${first}add to custom_nodes.json: ${row}`;
  }
  return pack === undefined
    ? `${first}find the node pack that has it and add it to custom_nodes.json, or correct the class`
    : `${first}install the pack https://registry.comfy.org/nodes/${encodeURIComponent(pack.name)}`;
}

function failureOf(
  pack: PackFacts | undefined,
  engine: EngineFacts | undefined,
): ImportFailure | undefined {
  return pack === undefined
    ? undefined
    : engine?.importFailures.find(({ folder }) => folderKey(folder) === folderKey(pack.name));
}

/** Files of ComfyUI's own `comfy_extras`, which fail to import like packs do. */
const OWN_MODULE = /^nodes_\w+\.py$/;

/** Nobody knows where the class comes from: one of those that did not load may have it. */
function failedLines(
  engine: EngineFacts | undefined,
  isCandidate: (folder: string) => boolean,
): Pick<Obstacle, "log"> {
  const failures = engine?.importFailures.filter(({ folder }) => isCandidate(folder)) ?? [];
  return failures.length === 0 ? {} : { log: failures.map(({ line }) => line).join("\n") };
}

function partnerNode(classType: string, uses: Uses, definitions: NodeDefinitions): Obstacle {
  return {
    kind: "partner_node",
    // ComfyUI takes the prompt; the node itself fails without a key.
    blocks: false,
    message: `${clip(classType)} calls a paid service of a partner${definitions.source === "engine" ? ", and this server sends no key of an account" : "; such nodes are switched off here"}`,
    fix: "replace it: no account of Comfy.org is used by this server",
    classType,
    nodes: usesOf(uses),
  };
}

function usesOf(uses: Uses): Obstacle["nodes"] {
  return uses.map(([nodeId, { class_type: classType, _meta }]) => ({
    nodeId,
    classType,
    ...(_meta?.title === undefined ? {} : { title: _meta.title }),
  }));
}

/** Width of the words in front of each line; the same as in the report of weights. */
const LABEL_WIDTH = 9;
/** Further nodes of one class are counted. */
const NAMED_NODES = 8;
/** Further obstacles are counted; all of them are in the data. */
const MAX_BLOCKS = 100;

/** One block of lines for every obstacle, the fix first. */
export function obstacleBlocks(obstacles: readonly Obstacle[]): string[] {
  const line = (label: string, text: string) => `  ${label.padEnd(LABEL_WIDTH)} ${text}`;
  const blocks = obstacles
    .slice(0, MAX_BLOCKS)
    .map(({ message, fix, nodes, pack, log }) =>
      [
        message,
        line("fix", fix),
        ...nodesLines(nodes).map((text) => line("node", text)),
        ...(pack === undefined ? [] : [line("pack", packLine(pack))]),
        ...(log === undefined ? [] : log.split("\n").map((text) => line("log", text))),
      ].join("\n"),
    );
  const rest = obstacles.length - blocks.length;
  return rest > 0 ? [...blocks, `and ${rest} more`] : blocks;
}

function nodesLines(nodes: Obstacle["nodes"]): string[] {
  const lines = nodes.slice(0, NAMED_NODES).map(({ nodeId, classType, title }) => {
    const name = title === undefined || title === classType ? "" : ` "${clip(title)}"`;
    return `${nodeId}${name}: ${clip(classType)}`;
  });
  const rest = nodes.length - lines.length;
  return rest > 0 ? [...lines, `and ${rest} more`] : lines;
}

function packLine({ name, repo, commit, version, toldBy }: PackFacts): string {
  return [
    repo ?? name,
    ...(commit === undefined ? [] : [`commit ${commit}`]),
    ...(version === undefined || version === commit ? [] : [`version ${version}`]),
    ...(toldBy === "workflow" ? ["as the workflow says"] : []),
  ].join(" · ");
}

/** The sections of a report: what ComfyUI would refuse, then what is only told. Empty where there is nothing. */
export function obstacleSections(obstacles: readonly Obstacle[], more = false): string[] {
  const blocking = obstacles.filter(({ blocks }) => blocks);
  const others = obstacles.filter(({ blocks }) => !blocks);
  const title = more ? "ComfyUI would refuse it for this too:" : "ComfyUI would refuse it:";
  return [
    ...(blocking.length === 0 ? [] : [title, ...obstacleBlocks(blocking)]),
    ...(others.length === 0
      ? []
      : ["Worth knowing (not certain to stop it):", ...obstacleBlocks(others)]),
  ];
}

/** One sentence for the log and for a first line. */
export function obstacleLine({ message, nodes }: Obstacle): string {
  const ids = nodes.map(({ nodeId }) => nodeId);
  return ids.length === 0
    ? message
    : `${message} (node${ids.length === 1 ? "" : "s"} ${listNames(ids, NAMED_NODES)})`;
}

/** The error of a workflow that ComfyUI would refuse, before it is queued: all reasons as text, the same as data. */
export function refusedBeforehand(obstacles: readonly Obstacle[]): EngineError {
  const blocking = obstacles.filter(({ blocks }) => blocks);
  const first = blocking.length === 1 ? blocking.map(obstacleLine).join("") : undefined;
  return new EngineError(
    "PROMPT_REJECTED",
    [
      `ComfyUI would refuse the workflow: ${first ?? `${blocking.length} reasons`}`,
      ...obstacleBlocks(obstacles),
    ].join("\n\n"),
    { details: { obstacles } },
  );
}
