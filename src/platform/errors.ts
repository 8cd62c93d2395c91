/**
 * The error classes of the whole program. An error carries a `code` from the closed list below, the facts
 * (`message`, `details`), what to do about it (`hint`) and the `cause` it wraps. Nothing here knows HTTP: the one
 * table from code to status is in `src/cog/app.ts` and `src/routes`.
 */

/** Every code an {@link AppError} may carry, grouped by the room that throws it. */
export const ERROR_CODES = [
  // configuration and the machine
  "CONFIG_INVALID",
  "PORT_IN_USE",
  "PATH_UNWRITABLE",
  // what a client sent
  "INPUT_INVALID",
  "WORKFLOW_INVALID",
  "WORKFLOW_UNREADABLE",
  "FETCH_REFUSED",
  "FETCH_FAILED",
  // the Cog protocol
  "BODY_TYPE",
  "BODY_TOO_LARGE",
  "BODY_MALFORMED",
  "BODY_SHAPE",
  "PATH_UNDECODABLE",
  "ID_MISMATCH",
  "WEBHOOK_REFUSED",
  "NOT_READY",
  "AT_CAPACITY",
  "STREAM_UNSUPPORTED",
  "STREAM_CROWDED",
  "UNAUTHORIZED",
  "UPLOAD_FAILED",
  // weights
  "WEIGHTS_MISSING",
  "WEIGHT_UNKNOWN",
  "KIT_UNKNOWN",
  "MANIFEST_INVALID",
  "LOCK_DRIFT",
  "DOWNLOAD_REFUSED",
  // data plane (reference: downloader.md C.8)
  "AUTH_REQUIRED",
  "AUTH_FORBIDDEN",
  "GATED",
  "NOT_FOUND",
  "URL_EXPIRED",
  "RATE_LIMITED",
  "NETWORK",
  "STALLED",
  "SERVER_ERROR",
  "RANGE_INVALID",
  "SOURCE_CHANGED",
  "ENCODED_BODY",
  "SHORT_BODY",
  "TOO_LARGE",
  "HASH_MISMATCH",
  "SIZE_MISMATCH",
  "FORMAT_INVALID",
  "NO_SPACE",
  "IO_ERROR",
  "ARCHIVE_UNSAFE",
  "ARCHIVE_TRUNCATED",
  "CONFLICT",
  // ComfyUI
  "ENGINE_UNAVAILABLE",
  "ENGINE_DIED",
  "ENGINE_TIMEOUT",
  "ENGINE_PROTOCOL",
  "PROMPT_REJECTED",
  "NODE_FAILED",
  "OUT_OF_MEMORY",
  "OUTPUT_MISSING",
  "OUTPUT_UNREADABLE",
  "OUTPUT_TOO_LARGE",
  // life cycle
  "CANCELED",
  "DEADLINE",
  "INTERNAL",
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

export interface ErrorFacts {
  /** What to do about it, in the imperative. */
  readonly hint?: string | undefined;
  /** The facts as data, for JSON answers; must hold no secret. */
  readonly details?: Readonly<Record<string, unknown>> | undefined;
  readonly cause?: unknown;
  /** True when trying the same thing again may help. */
  readonly retryable?: boolean | undefined;
}

/** The base of every error this program throws on purpose; anything else is a bug. */
export class AppError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;
  readonly retryable: boolean;

  constructor(code: ErrorCode, message: string, facts: ErrorFacts = {}) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.name = new.target.name;
    this.code = code;
    this.hint = facts.hint;
    this.details = facts.details ?? {};
    this.retryable = facts.retryable ?? false;
  }

  /** Message and hint as people read them: the fix is on a line of its own. */
  describe(): string {
    return this.hint === undefined ? this.message : `${this.message}\n${this.hint}`;
  }

  toJSON(): Record<string, unknown> {
    return {
      code: this.code,
      message: this.message,
      ...(this.hint === undefined ? {} : { hint: this.hint }),
      ...(Object.keys(this.details).length === 0 ? {} : { details: this.details }),
    };
  }
}

/** An environment variable, a flag or a file of the operator is wrong. */
export class ConfigError extends AppError {}
/** What a client sent is wrong: an input, a workflow, an address. */
export class InputError extends AppError {}
/** A weight can't be named, found, planned or trusted. */
export class WeightError extends AppError {}
/** Bytes could not be fetched, verified or written. */
export class DownloadError extends AppError {}
/** ComfyUI refused, failed, hung or died. */
export class EngineError extends AppError {}
/** A prediction or a wait was called off. */
export class CanceledError extends AppError {
  constructor(message = "Canceled", facts: ErrorFacts = {}) {
    super("CANCELED", message, facts);
  }
}

/** The text of anything thrown, without a stack trace. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

/** Node's `code` ("ENOENT", …) of a thrown system error, if it has one. */
export function systemCode(thrown: unknown): string | undefined {
  if (thrown instanceof Error && "code" in thrown && typeof thrown.code === "string") {
    return thrown.code;
  }
  return undefined;
}

/** True when a disk, or the part of it that this user may fill, is full. */
export function isDiskFull(thrown: unknown): boolean {
  const code = systemCode(thrown);
  return code === "ENOSPC" || code === "EDQUOT";
}

/** True for an abort of an `AbortSignal`, whoever raised it. */
export function isAbort(thrown: unknown): boolean {
  return (
    thrown instanceof CanceledError || (thrown instanceof Error && thrown.name === "AbortError")
  );
}
