/** `weights check`: what a workflow needs, what of it is there, what else stops it, and the line that gets the rest. */
import { basename } from "node:path";
import { stringifyJson } from "../platform/json.ts";
import { checkDocument } from "../weights/check-document.ts";
import { checkTable } from "../weights/check-table.ts";
import { missingText } from "../weights/report.ts";
import type { Workflow } from "../workflow/graph.ts";
import { obstacleSections } from "../workflow/obstacles.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
import { ENGINE_OPTION, lookAt, SET_OPTION } from "./look.ts";
import type { CliServices } from "./services.ts";

export const checkWeights: Command<CliServices> = {
  name: "weights check",
  summary:
    "Show every weight a workflow needs: node, folder, size, source, and whether it is there",
  usage: "WORKFLOW [--set name=value] [--engine]",
  words: [1, 1],
  options: { ...SET_OPTION, ...ENGINE_OPTION },
  examples: [
    "bin/cog-comfyui weights check my_workflow.json",
    "bin/cog-comfyui weights check https://example.com/w.json --json",
  ],
  run: async (invocation, services, { out, err }) => {
    const [word = ""] = invocation.words;
    const { predictor, workflow } = await lookAt(invocation, services, { err });
    const { weights, comfyui } = predictor;
    const refs = comfyui.find_weights(workflow);
    const validation = comfyui.check_weights(workflow, "operator");
    const obstacles = comfyui.find_obstacles(workflow, refs);
    const options = { manifest: weights.manifest, workflow: word };
    const document = checkDocument(
      { refs, validation, obstacles },
      (ref) => weights.resolve(ref, "operator"),
      options,
    );
    const isMissing = validation.missing.length > 0;
    if (invocation.json) {
      out(`${stringifyJson(document, 2)}\n`);
    } else {
      out(`${basename(word)}: ${describe(workflow, refs.length)}\n\n`);
      if (refs.length > 0) {
        out(`${checkTable(document)}\n`);
      }
      out(
        isMissing
          ? `\n${missingText(validation, { ...options, obstacles })}\n\nTo have everything there before the first request:\nPRELOAD_WORKFLOW=${word}\n`
          : obstacleSections(obstacles)
              .map((section) => `\n${section}\n`)
              .join(""),
      );
    }
    return exitCode(isMissing, document.ok);
  },
};

function exitCode(isMissing: boolean, isOk: boolean): number {
  if (isMissing) {
    return EXIT.missing;
  }
  return isOk ? EXIT.done : EXIT.failed;
}

function describe(workflow: Workflow, count: number): string {
  const nodes = Object.keys(workflow.graph).length;
  const form = workflow.format === "ui" ? "saved by ComfyUI's editor" : "in API format";
  const weights =
    count === 0 ? "needs no weight" : `${count} place${count === 1 ? "" : "s"} that name a weight`;
  return `a workflow ${form}, ${nodes} node${nodes === 1 ? "" : "s"}, ${weights}.`;
}
