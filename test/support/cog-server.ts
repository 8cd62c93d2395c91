/** A Cog server with the twin as its model, on a port of its own, for tests. */
import type { CogServer, ServeOptions } from "../../src/cog/serve.ts";
import { serveCog } from "../../src/cog/serve.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { silentLogger } from "../../src/platform/log.ts";
import type { TwinOptions } from "./cog-twin.ts";
import { Twin } from "./cog-twin.ts";

export interface TestServerOptions extends TwinOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly serve?: Partial<ServeOptions>;
  /** False does not wait for the end of setup. */
  readonly wait?: boolean;
}

export interface TestServer extends AsyncDisposable {
  readonly server: CogServer;
  readonly url: string;
}

/** Starts one; it may reach this machine, as a test's own receivers are on it. */
export async function startTwin(options: TestServerOptions = {}): Promise<TestServer> {
  const { env, serve, wait, ...twin } = options;
  const server = await serveCog({
    model: new Twin(twin),
    config: parseEnv({ PORT: "0", ALLOW_PRIVATE_NETWORK: "1", ...env }),
    logger: silentLogger,
    handleSignals: false,
    ...serve,
    flags: { host: "127.0.0.1", ...serve?.flags },
    timings: { shutdownGraceMs: 2_000, webhookGraceMs: 500, ...serve?.timings },
  });
  if (wait !== false) {
    await server.service.settled();
  }
  return {
    server,
    url: server.url,
    [Symbol.asyncDispose]: async () => {
      server.service.cancelAll();
      await server.stop();
    },
  };
}
