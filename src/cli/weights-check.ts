/** `weights check`: what a workflow needs, what of it is there, and the line to paste that gets the rest. */
import { basename } from "node:path";
import { stringifyJson } from "../platform/json.ts";
import { checkReport, checkTable } from "../weights/check-table.ts";
import { missingReport, missingText } from "../weights/report.ts";
import type { Workflow } from "../workflow/graph.ts";
import { applyOverrides, readSetting } from "../workflow/overrides.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
import type { CliServices } from "./services.ts";
import { readWorkflow, readyWeights } from "./targets.ts";

export const checkWeights: Command<CliServices> = {
  name: "weights check",
  summary:
    "Show every weight a workflow needs: node, folder, size, source, and whether it is there",
  usage: "WORKFLOW [--set name=value]",
  words: [1, 1],
  options: {
    set: {
      type: "string",
      multiple: true,
      value: "name=value",
      help: "set a value first, as the input `overrides` does: --set 4.ckpt_name=x.safetensors",
    },
  },
  examples: [
    "bin/cog-comfyui weights check my_workflow.json",
    "bin/cog-comfyui weights check https://example.com/w.json --json",
  ],
  run: async ({ words, json, texts }, services, { out }) => {
    const [word = ""] = words;
    const { weights, comfyui } = await readyWeights(services);
    const workflow = withOverrides(await readWorkflow(word, services), texts("set"));
    const refs = comfyui.find_weights(workflow);
    const validation = comfyui.check_weights(workflow, "operator");
    const report = checkReport(refs, validation, (ref) => weights.resolve(ref, "operator"));
    const options = { manifest: weights.manifest, workflow: word };
    const isComplete = validation.missing.length === 0;
    if (json) {
      const document = { ...report, ok: isComplete, report: missingReport(validation, options) };
      out(`${stringifyJson(document, 2)}\n`);
    } else {
      out(`${basename(word)}: ${describe(workflow, refs.length)}\n\n`);
      if (refs.length > 0) {
        out(`${checkTable(report)}\n`);
      }
      if (!isComplete) {
        out(`\n${missingText(validation, options)}\n`);
        out(`\nTo have everything there before the first request:\nPRELOAD_WORKFLOW=${word}\n`);
      }
    }
    return isComplete ? EXIT.done : EXIT.missing;
  },
};

function describe(workflow: Workflow, count: number): string {
  const nodes = Object.keys(workflow.graph).length;
  const form = workflow.format === "ui" ? "saved by ComfyUI's editor" : "in API format";
  const weights =
    count === 0 ? "needs no weight" : `${count} place${count === 1 ? "" : "s"} that name a weight`;
  return `a workflow ${form}, ${nodes} node${nodes === 1 ? "" : "s"}, ${weights}.`;
}

/** The workflow with the values of `--set` in it. */
export function withOverrides(workflow: Workflow, pairs: readonly string[]): Workflow {
  const values = Object.fromEntries(pairs.map(readSetting));
  return { ...workflow, graph: applyOverrides(workflow, values).graph };
}
