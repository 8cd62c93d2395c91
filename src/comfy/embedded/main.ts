#!/usr/bin/env bun
/** The embedded engine as a process of its own: ComfyUI's flags, ready line and exit codes. */
import { AppError, ConfigError } from "../../platform/errors.ts";
import { USAGE } from "./arguments.ts";
import { startEmbedded } from "./start.ts";

/** argparse's code for a wrong command line; ComfyUI exits with 1 for everything else. */
const WRONG_USAGE = 2;

function fail(error: unknown): never {
  if (!(error instanceof AppError)) {
    throw error;
  }
  process.stderr.write(`${error.describe()}\n`);
  const isUsage = error instanceof ConfigError && error.message.includes("argument");
  process.exit(isUsage ? WRONG_USAGE : 1);
}

function main(argv: readonly string[]): void {
  if (argv.includes("--help") || argv.includes("-h")) {
    process.stdout.write(`${USAGE}\n`);
    return;
  }
  try {
    const server = startEmbedded({ argv, cwd: process.cwd() });
    const stop = (): void => {
      void server.stop().finally(() => {
        process.stderr.write("\nStopped server\n");
        process.exit(0);
      });
    };
    process.once("SIGINT", stop);
    process.once("SIGTERM", stop);
  } catch (error) {
    fail(error);
  }
}

if (import.meta.main) {
  main(process.argv.slice(2));
}
