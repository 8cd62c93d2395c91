/** An image registry on a port of 127.0.0.1, gone with its scope. */
import { writeFileSync } from "node:fs";
import { tempDir } from "../support/temp-dir.ts";
import { until } from "./engine.ts";

export const REGISTRY_PROGRAM = Bun.which("docker-registry");

export interface Registry extends AsyncDisposable {
  /** `localhost:PORT`, which an engine speaks to in plain HTTP. */
  readonly name: string;
}

function freePort(): number {
  const probe = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
  const port = probe.port ?? 0;
  void probe.stop(true);
  return port;
}

/** Starts one with nothing in it. */
export async function startRegistry(): Promise<Registry> {
  const folder = tempDir();
  const port = freePort();
  const config = {
    version: 0.1,
    log: { level: "error", accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: folder.join("data") } },
    http: { addr: `127.0.0.1:${port}` },
  };
  writeFileSync(folder.join("config.yml"), JSON.stringify(config));
  const child = Bun.spawn([REGISTRY_PROGRAM ?? "", "serve", folder.join("config.yml")], {
    stdio: ["ignore", "ignore", "ignore"],
  });
  await until("the registry to answer", async () => {
    const answer = await fetch(`http://127.0.0.1:${port}/v2/`).catch(() => undefined);
    return answer?.ok === true ? true : undefined;
  });
  return {
    name: `localhost:${port}`,
    [Symbol.asyncDispose]: async () => {
      child.kill();
      await child.exited;
      folder[Symbol.dispose]();
    },
  };
}
