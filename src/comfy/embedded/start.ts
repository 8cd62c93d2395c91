/** Puts an embedded engine together from its arguments and starts it: in this process, or as `main.ts` in one of its own. */
import { mkdirSync } from "node:fs";
import { removeTree } from "../../platform/files.ts";
import type { Logger } from "../../platform/log.ts";
import { createLogger } from "../../platform/log.ts";
import type { EngineArguments } from "./arguments.ts";
import { parseArguments } from "./arguments.ts";
import { EmbeddedEngine } from "./engine.ts";
import { EngineFolders } from "./folders.ts";
import { LogRing } from "./log-ring.ts";
import type { EmbeddedServer } from "./server.ts";
import { startServer } from "./server.ts";

export interface StartOptions {
  /** Flags as on the command line. */
  readonly argv: readonly string[];
  readonly cwd: string;
  /** `$VARS` in yaml files. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined;
  /** Where log lines go; stderr unless given. */
  readonly write?: ((line: string) => void) | undefined;
}

function createLog(settings: EngineArguments, ring: LogRing, options: StartOptions): Logger {
  return createLogger({
    format: "plain",
    level: settings.isVerbose ? "debug" : "info",
    observe: (record) => ring.add(record),
    write: options.write,
  });
}

/** Starts an engine; `stop` ends it and removes its temp folder. @throws ConfigError */
export function startEmbedded(options: StartOptions): EmbeddedServer {
  const settings = parseArguments(options.argv, options.cwd);
  const logs = new LogRing();
  const log = createLog(settings, logs, options);
  removeTree(settings.temp);
  for (const dir of [settings.input, settings.output, settings.temp]) {
    mkdirSync(dir, { recursive: true });
  }
  const folders = new EngineFolders({
    ...settings,
    isOld: settings.compat === "0.3.64",
    env: options.env,
  });
  const engine = new EmbeddedEngine({ ...settings, folders, log });
  logs.onEntry((clientId, entry) =>
    engine.hub.send("logs", { entries: [{ ...entry }], size: { cols: 80, rows: 24 } }, clientId),
  );
  const server = startServer({
    engine,
    host: settings.host,
    port: settings.port,
    argv: ["main.py", ...options.argv],
    logs,
  });
  log.warn(
    "This is the embedded engine of cog-comfyui, not ComfyUI: image nodes and RealESRGAN-Compact upscalers only.",
  );
  log.info("Starting server\n");
  log.info(`To see the GUI go to: ${server.url}`);
  return {
    url: server.url,
    port: server.port,
    stop: async () => {
      await server.stop();
      removeTree(settings.temp);
    },
  };
}
