/** The routes that the server has beside Cog's ten, composed for one predictor. */
import type { Service } from "../cog/service.ts";
import { InputError } from "../platform/errors.ts";
import { adminRoutes } from "../routes/admin.ts";
import { ownRoutes } from "../routes/own.ts";
import type { InstallJob } from "../weights/plan-types.ts";
import type { PredictorPort } from "./services.ts";
import { looksLikeWorkflow, targetJobs } from "./targets.ts";

export function serverRoutes(
  service: Service,
  predictor: PredictorPort,
): ReturnType<typeof ownRoutes> {
  const { config, weights } = predictor;
  return [
    ...ownRoutes({ service, predictor, readyRequiresWeights: config.READY_REQUIRES_WEIGHTS }),
    adminRoutes({
      tokens: config.ADMIN_TOKEN,
      tasks: weights.tasks,
      weights,
      jobsFor: (targets, signal) => pullJobs(targets, predictor, signal),
    }),
  ];
}

/** What the operator asks for over HTTP. @throws InputError for a path: files of this machine are named at its console */
async function pullJobs(
  targets: readonly string[],
  predictor: PredictorPort,
  signal: AbortSignal,
): Promise<InstallJob[]> {
  const path = targets.find((one) => looksLikeWorkflow(one) && !/^(https?|data):/i.test(one));
  if (path !== undefined) {
    throw new InputError("INPUT_INVALID", `${path} is a path: name a workflow by its address`);
  }
  return await targetJobs(targets, { predictor: () => predictor, signal });
}
