/**
 * Log lines on stderr in Cog's two forms (cog_protocol.md §15.1): one JSON object a line by default,
 * `LOG_FORMAT=console` for people. The only writer of console output outside the command line.
 */
import { Redactor } from "./redact.ts";

export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export type LogFormat = "json" | "console" | "plain";

export type LogFields = Readonly<Record<string, unknown>>;

export interface Logger {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** A logger whose lines carry `target` (the module name) and these fields too. */
  child(target: string, fields?: LogFields): Logger;
}

export interface LogRecord {
  readonly at: Date;
  readonly level: LogLevel;
  readonly target: string;
  readonly message: string;
  readonly fields: LogFields;
}

export interface LogOptions {
  readonly level?: LogLevel | undefined;
  readonly format?: LogFormat | undefined;
  readonly redactor?: Redactor | undefined;
  /** Where a finished line goes; stderr unless given. */
  readonly write?: ((line: string) => void) | undefined;
  /** Sees every record, whatever the level (the setup log of `/health-check`). */
  readonly observe?: ((record: LogRecord) => void) | undefined;
}

function formatJson({ at, level, target, message, fields }: LogRecord): string {
  // Cog's timestamps have microseconds; a JavaScript clock has milliseconds.
  const timestamp = at.toISOString().replace("Z", "000Z");
  return JSON.stringify({
    timestamp,
    level: level.toUpperCase(),
    fields: { message, ...fields },
    target,
  });
}

function formatConsole({ at, level, target, message, fields }: LogRecord): string {
  const extra = Object.entries(fields).map(([name, value]) => ` ${name}=${JSON.stringify(value)}`);
  return `${at.toISOString()} ${level.toUpperCase().padStart(5)} ${target}: ${message}${extra.join("")}`;
}

/** For a person at a terminal: the message alone, with the level where it matters. */
function formatPlain({ level, message }: LogRecord): string {
  return level === "warn" || level === "error" ? `${level}: ${message}` : message;
}

const FORMATTERS = { json: formatJson, console: formatConsole, plain: formatPlain } as const;

/** Makes the root logger. Every line is redacted before it is written or observed. */
export function createLogger(options: LogOptions = {}): Logger {
  const redactor = options.redactor ?? new Redactor();
  const format = FORMATTERS[options.format ?? "json"];
  const least = LOG_LEVELS.indexOf(options.level ?? "info");
  const write = options.write ?? ((line: string) => process.stderr.write(`${line}\n`));

  function emit(record: LogRecord): void {
    const message = redactor.text(record.message);
    const fields = Object.fromEntries(
      Object.entries(record.fields)
        .filter(([, value]) => value !== undefined)
        .map(([name, value]) => [name, typeof value === "string" ? redactor.text(value) : value]),
    );
    const clean = { ...record, message, fields };
    options.observe?.(clean);
    if (LOG_LEVELS.indexOf(record.level) >= least) {
      write(format(clean));
    }
  }

  function make(target: string, bound: LogFields): Logger {
    const at =
      (level: LogLevel) =>
      (message: string, fields: LogFields = {}) =>
        emit({ at: new Date(), level, target, message, fields: { ...bound, ...fields } });
    return {
      debug: at("debug"),
      info: at("info"),
      warn: at("warn"),
      error: at("error"),
      child: (inner, fields = {}) => make(inner, { ...bound, ...fields }),
    };
  }
  return make("cog_comfyui", {});
}

/** A logger whose lines of level info and above also go to `write`, as plain text: the log of a prediction. */
export function teeLogger(logger: Logger, write: ((line: string) => void) | undefined): Logger {
  if (write === undefined) {
    return logger;
  }
  return {
    debug: (message, fields) => logger.debug(message, fields),
    info: (message, fields) => {
      logger.info(message, fields);
      write(message);
    },
    warn: (message, fields) => {
      logger.warn(message, fields);
      write(`Warning: ${message}`);
    },
    error: (message, fields) => {
      logger.error(message, fields);
      write(`Error: ${message}`);
    },
    child: (target, fields) => teeLogger(logger.child(target, fields), write),
  };
}

/** Level and format of the log as Cog's server reads them: garbage means the default (cog_protocol.md §15.1). */
export function logSettings(variables: {
  readonly COG_LOG_LEVEL?: string | undefined;
  readonly LOG_FORMAT?: string | undefined;
}): { readonly level: LogLevel; readonly format: LogFormat } {
  const levels: Readonly<Record<string, LogLevel>> = {
    debug: "debug",
    info: "info",
    warn: "warn",
    warning: "warn",
    error: "error",
  };
  return {
    level: levels[(variables.COG_LOG_LEVEL ?? "").toLowerCase()] ?? "info",
    format: variables.LOG_FORMAT === "console" ? "console" : "json",
  };
}

/** A logger that says nothing, for callers that want none. */
export const silentLogger: Logger = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  child: () => silentLogger,
};
