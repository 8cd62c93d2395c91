/** `workflow explain`, `workflow convert`, `workflow expose`: what a workflow is, and its API form. */
import { stringifyJson } from "../platform/json.ts";
import { checkReport, checkTable } from "../weights/check-table.ts";
import type { Explanation, SettableValue } from "../workflow/explain.ts";
import { explainWorkflow as explain } from "../workflow/explain.ts";
import { proposeInputs } from "../workflow/expose.ts";
import type { NodePack } from "../workflow/graph.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
import type { CliServices } from "./services.ts";
import { readWorkflow, readyWeights } from "./targets.ts";

const MAX_VALUE_LENGTH = 60;

export const explainWorkflow: Command<CliServices> = {
  name: "workflow explain",
  summary: "Say what a workflow is: nodes, weights, values that can be set, inputs, outputs",
  usage: "WORKFLOW",
  words: [1, 1],
  run: async ({ words: [word = ""], json }, services, { out }) => {
    const { comfyui, weights } = await readyWeights(services);
    const workflow = await readWorkflow(word, services);
    const explanation = explain(workflow, { definitions: comfyui.definitions });
    const validation = comfyui.check_weights(workflow, "operator");
    const report = checkReport(comfyui.find_weights(workflow), validation, (ref) =>
      weights.resolve(ref, "operator"),
    );
    if (json) {
      out(`${stringifyJson({ ...explanation, weights: report.weights }, 2)}\n`);
    } else {
      out(describe(explanation));
      out(report.weights.length === 0 ? "Weights: none\n" : `Weights:\n${checkTable(report)}\n`);
    }
    return EXIT.done;
  },
};

export const convertWorkflow: Command<CliServices> = {
  name: "workflow convert",
  summary: "Print a workflow in API format, as ComfyUI's own editor would export it",
  usage: "WORKFLOW",
  words: [1, 1],
  run: async ({ words: [word = ""] }, services, { out, err }) => {
    const workflow = await readWorkflow(word, services);
    for (const note of workflow.notes) {
      err(`${note}\n`);
    }
    out(`${stringifyJson(workflow.graph, 2)}\n`);
    return EXIT.done;
  },
};

export const exposeWorkflow: Command<CliServices> = {
  name: "workflow expose",
  summary: "Propose the named inputs of a workflow, as the `_meta.inputs` table for editing",
  usage: "WORKFLOW",
  words: [1, 1],
  run: async ({ words: [word = ""] }, services, { out }) => {
    const { comfyui } = services.predictor();
    const workflow = await readWorkflow(word, services);
    const inputs = proposeInputs(workflow, { definitions: comfyui.definitions });
    out(`${stringifyJson({ _meta: { inputs } }, 2)}\n`);
    return EXIT.done;
  },
};

function describe(explanation: Explanation): string {
  const { classes, unneeded, settable, files, outputs, notes } = explanation;
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
