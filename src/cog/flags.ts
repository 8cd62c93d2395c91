/** The command line of `python -m cog.server.http` (cog_protocol.md §18.1), which ours takes unchanged. */
import { isIP } from "node:net";
import { parseArgs } from "node:util";
import { ConfigError, messageOf } from "../platform/errors.ts";

export interface ServerFlags {
  readonly host: string;
  /** SIGTERM is ignored; only SIGINT and `/shutdown` stop the server. */
  readonly awaitExplicitShutdown: boolean;
  readonly mode: "predict" | "train";
  readonly uploadUrl: string | undefined;
  readonly version: boolean;
}

export const SERVER_USAGE =
  "usage: [-v] [--host IP] [--upload-url URL] [--await-explicit-shutdown X] [--threads N] [--x-mode predict|train]";

/** @throws ConfigError CONFIG_INVALID for an unknown flag or a bad value */
export function parseServerFlags(argv: readonly string[]): ServerFlags {
  const values = parse(argv);
  const mode = values["x-mode"] ?? "predict";
  if (mode !== "predict" && mode !== "train") {
    throw new ConfigError("CONFIG_INVALID", `--x-mode is "${mode}"; it can be predict or train`);
  }
  if (isIP(values.host) === 0) {
    throw new ConfigError(
      "CONFIG_INVALID",
      `--host ${values.host}: invalid socket address syntax`,
      {
        hint: "Give an IP address, for example 127.0.0.1 or 0.0.0.0.",
      },
    );
  }
  return {
    host: values.host,
    // Any text counts as true, `false` too: that is what Cog does.
    awaitExplicitShutdown: (values["await-explicit-shutdown"] ?? "") !== "",
    mode,
    uploadUrl: values["upload-url"],
    version: values.version,
  };
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({
      args: [...argv],
      options: {
        version: { type: "boolean", short: "v", default: false },
        host: { type: "string", default: "0.0.0.0" },
        "await-explicit-shutdown": { type: "string" },
        "x-mode": { type: "string" },
        threads: { type: "string" },
        "upload-url": { type: "string" },
      },
    }).values;
  } catch (cause) {
    throw new ConfigError("CONFIG_INVALID", messageOf(cause), { cause, hint: SERVER_USAGE });
  }
}
