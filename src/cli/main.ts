/**
 * From a command line to an exit code: the environment parsed, the log set up, the command found and run. Without a
 * command, or with nothing but flags, the line is that of Cog's own server.
 */
import { parseServerFlags } from "../cog/flags.ts";
import { serveCog } from "../cog/serve.ts";
import { COG_VERSION } from "../cog/service.ts";
import type { Config } from "../platform/env.ts";
import { readConfig, secretsOf } from "../platform/env.ts";
import type { Logger } from "../platform/log.ts";
import { createLogger, logSettings } from "../platform/log.ts";
import { Redactor } from "../platform/redact.ts";
import { isAdminRequest } from "../routes/admin.ts";
import type { Terminal } from "./command.ts";
import { describeCommands, EXIT, reportError, runCommand } from "./command.ts";
import { COMMANDS } from "./commands.ts";
import { serverRoutes } from "./server-routes.ts";
import type { CliServices, Composition, PredictorPort } from "./services.ts";

/** How often an engine that was given up is looked for, where the process is to end with it. */
const UNHEALTHY_POLL_MS = 1000;

/** Runs the line and resolves to the exit code; never throws. */
export async function runMain<P extends PredictorPort>(
  argv: readonly string[],
  composition: Composition<P>,
): Promise<number> {
  const terminal = processTerminal();
  const [first, ...rest] = argv;
  if (first === "--help" || first === "-h" || first === "help") {
    terminal.out(describeCommands(COMMANDS));
    return EXIT.done;
  }
  const isServer = first === undefined || first === "serve" || first.startsWith("-");
  try {
    const config = readConfig();
    if (isServer && !rest.includes("--help")) {
      return await serve(first === "serve" ? rest : argv, config, composition);
    }
    return await runLocal(asOwnFlags(argv), config, { composition, terminal });
  } catch (error) {
    return reportError(error, argv.includes("--json"), terminal);
  }
}

/** `cog predict --json '{…}'` means inputs there; ours is `--inputs '{…}' --json`. */
function asOwnFlags(argv: readonly string[]): readonly string[] {
  const at = argv.indexOf("--json");
  const isInputs =
    at !== -1 &&
    argv[0] === "predict" &&
    /^[{@-]/.test(argv[at + 1] ?? "") &&
    !/^--?[a-z]/.test(argv[at + 1] ?? "");
  return isInputs ? argv.toSpliced(at, 1, "--json", "--inputs") : argv;
}

function processTerminal(): Terminal {
  return {
    out: (text) => process.stdout.write(text),
    err: (text) => process.stderr.write(text),
    isInteractive: process.stderr.isTTY === true,
  };
}

function makeLogger(config: Config, format?: "plain"): Logger {
  const settings = logSettings(config);
  return createLogger({
    ...settings,
    ...(format === undefined ? {} : { format }),
    redactor: new Redactor(secretsOf(config)),
  });
}

/** A command that works here and now: its log is for a person. */
async function runLocal<P extends PredictorPort>(
  argv: readonly string[],
  config: Config,
  context: { readonly composition: Composition<P>; readonly terminal: Terminal },
): Promise<number> {
  const { composition, terminal } = context;
  const log = makeLogger(config, config.LOG_FORMAT === undefined ? "plain" : undefined);
  const ending = new AbortController();
  const interrupt = (): void => ending.abort();
  process.once("SIGINT", interrupt);
  process.once("SIGTERM", interrupt);
  let made: P | undefined;
  const services: CliServices = {
    config,
    log,
    inputs: composition.inputs,
    signal: ending.signal,
    predictor: () => {
      made ??= composition.makePredictor(config, log);
      return made;
    },
    serve: (flags) => serve(flags, config, composition),
  };
  try {
    const code = await runCommand(argv, COMMANDS, { services, terminal });
    return ending.signal.aborted ? EXIT.interrupted : code;
  } finally {
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", interrupt);
    await made?.[Symbol.asyncDispose]();
  }
}

/** The Cog server, until it is stopped. */
async function serve<P extends PredictorPort>(
  argv: readonly string[],
  config: Config,
  composition: Composition<P>,
): Promise<number> {
  const flags = parseServerFlags(argv);
  if (flags.version) {
    process.stdout.write(`coglet (Rust) ${COG_VERSION}\n`);
    return EXIT.done;
  }
  const logger = makeLogger(config);
  const predictor = composition.makePredictor(config, logger);
  const server = await serveCog({
    model: composition.makeModel(predictor),
    config,
    logger,
    flags,
    routes: (service) => serverRoutes(service, predictor),
    guardsItself: isAdminRequest,
  });
  if (config.EXIT_WHEN_UNHEALTHY) {
    const watch = setInterval(() => {
      if (predictor.comfyui.unhealthy !== undefined) {
        logger.error(`Ending, as EXIT_WHEN_UNHEALTHY asks: ${predictor.comfyui.unhealthy}`);
        clearInterval(watch);
        void server.stop(EXIT.failed);
      }
    }, UNHEALTHY_POLL_MS);
    watch.unref();
  }
  return await server.finished;
}
