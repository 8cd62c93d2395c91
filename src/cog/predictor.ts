/**
 * The port between the Cog protocol and a model: what `src/cog` knows of whoever runs the predictions. Our own
 * predictor (predict.ts) is one implementation, the small twin of the contract suite another.
 */
import type { z } from "zod";

/** How a metric changes what was recorded under its name before (cog_protocol.md §16). */
export type MetricMode = "replace" | "increment" | "append";

/** What a prediction may use while it runs. */
export interface PredictionContext {
  readonly id: string;
  /** Aborts when the prediction is cancelled or the client of a synchronous request leaves. */
  readonly signal: AbortSignal;
  /** The request's `context` member. */
  readonly context: Readonly<Record<string, string>>;
  /** Adds a line to the prediction's log. */
  log(line: string, source?: "stdout" | "stderr"): void;
  metric(name: string, value: unknown, mode?: MetricMode): void;
  /** Tells event streams how far it is; changes no body. Absent where nobody could listen. */
  progress?(state: Readonly<Record<string, string | number | boolean | null>>): void;
}

/** What setup may use. Lines logged here appear in `/health-check`'s setup log, not in the server's own log. */
export interface SetupContext {
  readonly signal: AbortSignal;
  log(line: string): void;
}

/** A file among the outputs: it becomes a data URL, or is sent to the upload URL. */
export class OutputFile {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }
}

/**
 * A model. `predict` resolves to its output, or yields its chunks; {@link OutputFile}s in it are turned into
 * addresses. Whatever it throws becomes the `error` text of a failed prediction.
 */
export interface CogModel {
  /**
   * A zod object whose keys, in order, are the inputs; see `src/cog/inputs.ts` for what its fields may be. It may
   * become another one in setup, never later.
   */
  readonly inputs: z.ZodObject;
  readonly trainingInputs?: z.ZodObject;
  /** Shape of the output document (OpenAPI fragment without its title), `{type: "array", items: {…uri}}` for files. */
  readonly output: Readonly<Record<string, unknown>>;
  readonly streaming: boolean;
  setup(context: SetupContext): Promise<void>;
  /** `input` has defaults filled in and file inputs fetched to local paths. */
  predict(
    input: Record<string, unknown>,
    context: PredictionContext,
  ): Promise<unknown> | AsyncIterable<unknown>;
  train?(input: Record<string, unknown>, context: PredictionContext): Promise<unknown>;
  /** False, or a throw, makes `/health-check` say UNHEALTHY with the reason. Must be quick. */
  healthcheck?(): Promise<boolean>;
  /** Lets go of everything; called once, at the end. */
  dispose(): Promise<void>;
}
