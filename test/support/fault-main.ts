/** A server whose model leaves faults behind that nothing catches. Prints its port on a line. */
import { z } from "zod";
import { stringInput } from "../../src/cog/inputs.ts";
import { serveCog } from "../../src/cog/serve.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { createLogger } from "../../src/platform/log.ts";

const server = await serveCog({
  model: {
    inputs: z.object({ fault: stringInput({ default: "" }) }),
    output: { type: "array", items: { type: "string" } },
    streaming: false,
    setup: () => Promise.resolve(),
    predict: async ({ fault }) => {
      if (fault === "throw") {
        setTimeout(() => {
          throw new Error("thrown at nobody");
        });
      } else {
        void Promise.reject(new Error("rejected unheard"));
      }
      await Bun.sleep(20);
      return ["done"];
    },
    dispose: () => Promise.resolve(),
  },
  config: parseEnv(process.env),
  logger: createLogger(),
});
process.stdout.write(`${server.port}\n`);
process.exit(await server.finished);
