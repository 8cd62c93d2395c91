/** What a workflow is, as data: its nodes, what can be set, what it reads and makes, what this engine can't run. */
import type { JsonValue } from "../platform/json.ts";
import type { InputDefinition } from "./definitions.ts";
import { NodeDefinitions } from "./definitions.ts";
import type { NamedInput } from "./expose.ts";
import { namedInputs } from "./expose.ts";
import type {
  GraphNode,
  NodePack,
  ShownWidget,
  UnnamedNode,
  Workflow,
  WorkflowFormat,
} from "./graph.ts";
import { linkOf } from "./graph.ts";
import { own } from "./graph-read.ts";
import type { ValueKind } from "./values.ts";
import { choicesOf, kindOf } from "./values.ts";
import { reachableNodes } from "./walk.ts";

/** A value that `overrides` and `--set` can change. */
export interface SettableValue {
  /** The name that sets it: `6.text`. */
  readonly name: string;
  readonly nodeId: string;
  readonly title: string;
  readonly classType: string;
  readonly input: string;
  readonly kind: ValueKind;
  readonly value: JsonValue;
  readonly default?: JsonValue;
  readonly min?: number;
  readonly max?: number;
  readonly choices?: readonly JsonValue[];
}

/** A node as the explanation names it. */
export interface NodeName {
  readonly nodeId: string;
  readonly classType: string;
  readonly title: string;
}

/** Nodes of one class. */
export interface ClassUse {
  readonly classType: string;
  readonly displayName: string;
  readonly count: number;
  /** False when neither the engine nor the table knows it. */
  readonly isKnown: boolean;
  /** A partner node, which calls a paid service. */
  readonly isApiNode: boolean;
  readonly pack?: NodePack;
}

export interface Explanation {
  readonly format: WorkflowFormat;
  readonly nodeCount: number;
  /** Nodes that no output needs: they never run. */
  readonly unneeded: readonly string[];
  readonly classes: readonly ClassUse[];
  readonly settable: readonly SettableValue[];
  /** Files that the workflow reads from the input folder. */
  readonly files: readonly SettableValue[];
  readonly outputs: readonly NodeName[];
  readonly named: readonly NamedInput[];
  /** Widgets that subgraphs show, which can be set by the subgraph's name as well. */
  readonly shown: readonly ShownWidget[];
  /** Nodes whose values have no names here: the workflow can't run without their packs. */
  readonly unnamed: readonly UnnamedNode[];
  readonly notes: readonly string[];
}

/** Explains a workflow. Nodes that no output needs are counted, not described. */
export function explainWorkflow(
  workflow: Workflow,
  options: { readonly definitions?: NodeDefinitions | undefined } = {},
): Explanation {
  const definitions = options.definitions ?? NodeDefinitions.core();
  const needed = reachableNodes(workflow.graph, (classType) => definitions.isOutput(classType));
  const entries = Object.entries(workflow.graph);
  const running = entries.filter(([id]) => needed.has(id));
  const settable = running.flatMap(([id, node]) => settableOf(id, node, definitions));
  return {
    format: workflow.format,
    nodeCount: entries.length,
    unneeded: entries.flatMap(([id]) => (needed.has(id) ? [] : [id])),
    classes: classesOf(workflow, running, definitions),
    settable,
    files: settable.filter(({ kind }) => kind === "file"),
    outputs: outputsOf(running, definitions),
    named: namedInputs(workflow, options),
    shown: workflow.shown ?? [],
    unnamed: workflow.unnamed ?? [],
    notes: workflow.notes,
  };
}

function titleOf(node: GraphNode): string {
  return node._meta?.title ?? node.class_type;
}

function settableOf(
  nodeId: string,
  node: GraphNode,
  definitions: NodeDefinitions,
): SettableValue[] {
  return Object.entries(node.inputs)
    .filter(([, value]) => linkOf(value) === undefined)
    .map(([input, value]) => {
      const definition = definitions.input(node.class_type, input);
      return {
        name: `${nodeId}.${input}`,
        nodeId,
        title: titleOf(node),
        classType: node.class_type,
        input,
        kind: kindOf(definition, value),
        value,
        ...boundsOf(definition),
      };
    });
}

function boundsOf(
  definition: InputDefinition | undefined,
): Pick<SettableValue, "default" | "min" | "max" | "choices"> {
  const choices = choicesOf(definition);
  return {
    ...(definition?.default === undefined ? {} : { default: definition.default }),
    ...(definition?.min === undefined ? {} : { min: definition.min }),
    ...(definition?.max === undefined ? {} : { max: definition.max }),
    ...(choices === undefined ? {} : { choices }),
  };
}

function classesOf(
  workflow: Workflow,
  running: readonly (readonly [string, GraphNode])[],
  definitions: NodeDefinitions,
): ClassUse[] {
  const counts = new Map<string, number>();
  for (const [, node] of running) {
    counts.set(node.class_type, (counts.get(node.class_type) ?? 0) + 1);
  }
  return [...counts].map(([classType, count]) => {
    const definition = definitions.get(classType);
    const pack = own(workflow.packs ?? {}, classType);
    return {
      classType,
      displayName: definition?.displayName ?? classType,
      count,
      isKnown: definition !== undefined,
      isApiNode: definition?.isApiNode === true,
      ...(pack === undefined ? {} : { pack }),
    };
  });
}

/** Output nodes; where a class is unknown, the nodes that nothing reads from. */
function outputsOf(
  running: readonly (readonly [string, GraphNode])[],
  definitions: NodeDefinitions,
): NodeName[] {
  const read = new Set(
    running.flatMap(([, node]) =>
      Object.values(node.inputs).flatMap((value) => linkOf(value)?.nodeId ?? []),
    ),
  );
  return running
    .filter(([id, node]) => definitions.isOutput(node.class_type) ?? !read.has(id))
    .map(([nodeId, node]) => ({ nodeId, classType: node.class_type, title: titleOf(node) }));
}
