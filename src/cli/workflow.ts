/** `workflow explain`, `workflow convert`, `workflow expose`: what a workflow is, its API form, its named inputs. */
import type { JsonObject } from "../platform/json.ts";
import { isJsonObject, parseJson, stringifyJson } from "../platform/json.ts";
import { checkReport, checkTable } from "../weights/check-table.ts";
import type { Explanation, SettableValue } from "../workflow/explain.ts";
import { explainWorkflow as explain } from "../workflow/explain.ts";
import { proposeInputs, withExposed } from "../workflow/expose.ts";
import type { NodePack, Workflow } from "../workflow/graph.ts";
import { obstacleSections } from "../workflow/obstacles.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
import { deliver, ENGINE_OPTION, lookAt, OUTPUT_OPTION, SET_OPTION } from "./look.ts";
import type { CliServices } from "./services.ts";

const MAX_VALUE_LENGTH = 60;

export const explainWorkflow: Command<CliServices> = {
  name: "workflow explain",
  summary: "Say what a workflow is: nodes, weights, values to set, inputs, outputs, what can't run",
  usage: "WORKFLOW [--set name=value] [--engine]",
  words: [1, 1],
  options: { ...SET_OPTION, ...ENGINE_OPTION },
  run: async (invocation, services, { out, err }) => {
    const { predictor, workflow } = await lookAt(invocation, services, { err });
    const { comfyui, weights } = predictor;
    const explanation = explain(workflow, { definitions: comfyui.definitions });
    const refs = comfyui.find_weights(workflow);
    const validation = comfyui.check_weights(workflow, "operator");
    const obstacles = comfyui.find_obstacles(workflow, refs);
    const report = checkReport(refs, validation, (ref) => weights.resolve(ref, "operator"));
    if (invocation.json) {
      out(`${stringifyJson({ ...explanation, weights: report.weights, obstacles }, 2)}\n`);
    } else {
      out(describe(explanation));
      out(report.weights.length === 0 ? "Weights: none\n" : `Weights:\n${checkTable(report)}\n`);
      out(
        obstacleSections(obstacles)
          .map((section) => `\n${section}\n`)
          .join(""),
      );
    }
    return EXIT.done;
  },
};

export const convertWorkflow: Command<CliServices> = {
  name: "workflow convert",
  summary: "Print a workflow in API format, as ComfyUI's own editor would export it",
  usage: "WORKFLOW [-o FILE] [--set name=value] [--engine]",
  words: [1, 1],
  options: { ...OUTPUT_OPTION, ...SET_OPTION, ...ENGINE_OPTION },
  run: async (invocation, services, { out, err }) => {
    const { workflow } = await lookAt(invocation, services, { err, isStrict: true });
    for (const note of workflow.notes) {
      err(`${note}\n`);
    }
    const text = `${stringifyJson(workflow.graph, 2)}\n`;
    const written = deliver(text, invocation.text("output"), { out, err });
    if (written !== undefined && invocation.json) {
      out(`${stringifyJson({ written, notes: workflow.notes }, 2)}\n`);
    }
    return EXIT.done;
  },
};

export const exposeWorkflow: Command<CliServices> = {
  name: "workflow expose",
  summary:
    "Print a workflow with a table of named inputs in its `_meta`, for editing and WORKFLOW=",
  usage: "WORKFLOW [-o FILE] [--engine]",
  words: [1, 1],
  options: { ...OUTPUT_OPTION, ...ENGINE_OPTION },
  examples: [
    "bin/cog-comfyui workflow expose my_workflow.json -o my_api.json    (then edit _meta.inputs)",
    "WORKFLOW=my_api.json bin/cog-comfyui predict -i prompt='a cat'",
  ],
  run: async (invocation, services, { out, err }) => {
    const { predictor, workflow } = await lookAt(invocation, services, { err });
    const { definitions } = predictor.comfyui;
    // What the file names already (`_meta.inputs`, App Mode) is its author's choice.
    const isNamed = workflow.exposed.length > 0;
    const inputs = isNamed ? workflow.exposed : proposeInputs(workflow, { definitions });
    const text = `${stringifyJson(withExposed(documentOf(workflow), inputs), 2)}\n`;
    const written = deliver(text, invocation.text("output"), { out, err });
    if (written !== undefined && invocation.json) {
      out(`${stringifyJson({ written, inputs }, 2)}\n`);
    }
    return EXIT.done;
  },
};

/** The file as it was given; the graph where it was no JSON object (a prompt as text inside of text). */
function documentOf({ document, graph }: Workflow): JsonObject {
  const nodes = document ?? parseJson(stringifyJson(graph));
  return isJsonObject(nodes) ? nodes : {};
}

function describe(explanation: Explanation): string {
  const { classes, unneeded, settable, files, outputs, named, unnamed, notes } = explanation;
  const unknown = classes.filter(({ isKnown }) => !isKnown);
  const paid = classes.filter(({ isApiNode }) => isApiNode);
  return [
    `Format: ${explanation.format}, ${explanation.nodeCount} nodes${unneeded.length === 0 ? "" : `, ${unneeded.length} of them needed by no output`}`,
    `Classes: ${classes.map(({ classType, count }) => (count === 1 ? classType : `${classType} ×${count}`)).join(", ")}`,
    ...(unknown.length === 0
      ? []
      : [
          `Not ComfyUI's own: ${unknown.map(({ classType, pack }) => (packName(pack) === "" ? classType : `${classType} (${packName(pack)})`)).join(", ")}`,
        ]),
    ...(paid.length === 0
      ? []
      : [`Calls paid services: ${paid.map(({ classType }) => classType).join(", ")}`]),
    `Outputs: ${outputs.map(({ nodeId, classType, title }) => `${nodeId} ${title} (${classType})`).join(", ") || "none"}`,
    `Files it loads: ${files.map(({ name, value }) => `${name}=${shorten(value)}`).join(", ") || "none"}`,
    ...(named.length === 0
      ? []
      : [
          `Named inputs (WORKFLOW=): ${named.map(({ name, kind }) => `${name} (${kind})`).join(", ")}`,
        ]),
    ...unnamed.map(
      ({ nodeId, classType, pack }) =>
        `Values without names: node ${nodeId} (${classType}${pack === undefined ? "" : ` of ${pack}`}); it needs an engine that has the class`,
    ),
    ...(settable.length === 0 ? [] : ["Values that can be set (overrides, --set):"]),
    ...settable.map(settableLine),
    ...notes.map((note) => `Note: ${note}`),
    "",
  ].join("\n");
}

function settableLine(value: SettableValue): string {
  const { min, max, choices } = value;
  const range = min === undefined && max === undefined ? "" : ` ${min ?? ""}…${max ?? ""}`;
  const options = choices === undefined ? "" : ` of ${choices.length}`;
  return `  ${value.name} = ${shorten(value.value)}  (${value.title}, ${value.kind}${range}${options})`;
}

function shorten(value: unknown): string {
  const text = stringifyJson(value);
  return text.length > MAX_VALUE_LENGTH ? `${text.slice(0, MAX_VALUE_LENGTH - 1)}…` : text;
}

function packName(pack: NodePack | undefined): string {
  return pack?.cnrId ?? pack?.auxId ?? "";
}
