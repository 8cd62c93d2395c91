/** The server of bench/cog.ts: our protocol layer with a model that does nothing, at once. Prints its port. */
import { z } from "zod";
import { parseServerFlags } from "../src/cog/flags.ts";
import { stringInput } from "../src/cog/inputs.ts";
import type { CogModel } from "../src/cog/predictor.ts";
import { serveCog } from "../src/cog/serve.ts";
import { parseEnv } from "../src/platform/env.ts";
import { createLogger } from "../src/platform/log.ts";

const trivial: CogModel = {
  inputs: z.object({ workflow_json: stringInput({ default: "" }) }),
  output: { type: "array", items: { type: "string" } },
  streaming: false,
  setup: () => Promise.resolve(),
  predict: async (input, { signal }) => {
    if (input["workflow_json"] === "wait") {
      await new Promise((_, reject) =>
        signal.addEventListener("abort", () => reject(signal.reason)),
      );
    }
    return ["done"];
  },
  dispose: () => Promise.resolve(),
};

const server = await serveCog({
  model: trivial,
  config: parseEnv({ ...process.env, ALLOW_PRIVATE_NETWORK: "1" }),
  logger: createLogger(),
  flags: parseServerFlags(process.argv.slice(2)),
});
process.exit(await server.finished);
