/** Every command of `bin/cog-comfyui`, in the order of the help. */
import type { Command } from "./command.ts";
import { doctor } from "./doctor.ts";
import { predict } from "./predict.ts";
import type { CliServices } from "./services.ts";
import { bakeWeights } from "./weights-bake.ts";
import { checkWeights } from "./weights-check.ts";
import { collectWeights } from "./weights-gc.ts";
import { listWeights } from "./weights-list.ts";
import { lockWeights, outdatedWeights } from "./weights-lock.ts";
import { planWeights, pullWeights, repairWeights } from "./weights-pull.ts";
import { verifyWeights } from "./weights-verify.ts";
import { convertWorkflow, explainWorkflow, exposeWorkflow } from "./workflow.ts";

const serve: Command<CliServices> = {
  name: "serve",
  summary: "Serve the Cog HTTP prediction protocol",
  usage: "[--host IP] [--upload-url URL] [--await-explicit-shutdown X]",
  options: {
    host: {
      type: "string",
      value: "IP",
      help: "address to listen on (0.0.0.0); the port is PORT (5000)",
    },
    "upload-url": {
      type: "string",
      value: "URL",
      help: "PUT output files there instead of data URLs",
    },
    "await-explicit-shutdown": {
      type: "string",
      value: "X",
      help: "ignore SIGTERM; stop by /shutdown",
    },
  },
  // With flags alone the server never comes here: Cog's own command line has no --json and no words.
  run: ({ text }, services) =>
    services.serve(
      ["host", "upload-url", "await-explicit-shutdown"].flatMap((name) => {
        const value = text(name);
        return value === undefined ? [] : [`--${name}`, value];
      }),
    ),
};

export const COMMANDS: readonly Command<CliServices>[] = [
  serve,
  predict,
  checkWeights,
  planWeights,
  pullWeights,
  verifyWeights,
  repairWeights,
  listWeights,
  lockWeights,
  outdatedWeights,
  collectWeights,
  bakeWeights,
  explainWorkflow,
  convertWorkflow,
  exposeWorkflow,
  doctor,
];
