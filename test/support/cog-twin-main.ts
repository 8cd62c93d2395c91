/** The twin's server as a process of its own, for tests of signals. Prints its port on a line, exits with its code. */

import { parseServerFlags } from "../../src/cog/flags.ts";
import { serveCog } from "../../src/cog/serve.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { createLogger } from "../../src/platform/log.ts";
import { Twin } from "./cog-twin.ts";

const setupUrl = process.env["TWIN_SETUP_URL"];
const server = await serveCog({
  model: new Twin({
    streaming: process.env["TWIN_STREAMING"] === "1",
    ...(setupUrl === undefined ? {} : { setupUrl }),
  }),
  config: parseEnv(process.env),
  logger: createLogger(),
  flags: parseServerFlags(process.argv.slice(2)),
});
process.stdout.write(`${server.port}\n`);
process.exit(await server.finished);
