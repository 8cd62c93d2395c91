/**
 * One run of a model from validated input to JSON output: files fetched, defaults filled in, chunks turned into JSON in
 * their order. Knows one prediction and the model's port, nothing of slots, tables or HTTP.
 */
import { z } from "zod";
import { AppError, InputError } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { FileInputOptions } from "./file-inputs.ts";
import { prepareFiles } from "./file-inputs.ts";
import { schemasOf } from "./openapi.ts";
import type { Prediction } from "./prediction.ts";
import type { CogModel, PredictionContext } from "./predictor.ts";
import type { OutputOptions } from "./uploads.ts";
import { chunksOf, chunkToJson, emitChunks } from "./uploads.ts";
import { SECRET_MASK } from "./validate.ts";

export type RunKind = "prediction" | "training";

export interface RunRequest {
  readonly kind: RunKind;
  /** Validated, credentials in the clear. */
  readonly input: JsonObject;
  readonly context: Readonly<Record<string, string>>;
  /** Values to mask in logs and errors. */
  readonly secrets: readonly string[];
}

export interface RunPorts {
  readonly model: CogModel;
  readonly document: JsonObject;
  readonly schema: JsonObject;
  readonly files: FileInputOptions;
  readonly outputs: OutputOptions;
}

/** Begins every error that comes from preparing the input, as Cog's do. */
const INPUT_PREFIX = "Input validation error: ";
/** Shorter ones would mask ordinary words. */
const MIN_SECRET_LENGTH = 6;

/** Runs to the end. What it throws is the reason of the failure. */
export async function runModel(
  prediction: Prediction,
  request: RunRequest,
  ports: RunPorts,
): Promise<JsonValue> {
  const { signal } = prediction;
  using prepared = await namedAsInput(() =>
    prepareFiles(request.input, ports.schema, ports.files, signal),
  );
  const input = withDefaults(prepared.input, request.kind, ports.model);
  const convert = (chunk: unknown): Promise<JsonValue> =>
    chunkToJson(chunk, ports.outputs, prediction.id, signal);
  const chunks: JsonValue[] = [];
  const emit = (chunk: JsonValue): void => {
    chunks.push(chunk);
    prediction.addChunk(chunk);
  };
  const result = start(ports.model, request.kind, input, contextOf(prediction, request));
  if (isAsyncIterable(result)) {
    for await (const chunk of result) {
      emit(await convert(chunk));
    }
    return chunks;
  }
  const value = await result;
  await emitChunks(chunksOf(value), convert, emit);
  return isList(value, ports.document) ? chunks : (chunks[0] ?? null);
}

/** `text` without the credentials this request brought. */
export function masked(text: string, secrets: readonly string[]): string {
  return secrets
    .filter((secret) => secret.length >= MIN_SECRET_LENGTH)
    .reduce((clean, secret) => clean.replaceAll(secret, SECRET_MASK), text);
}

async function namedAsInput<T>(prepare: () => Promise<T>): Promise<T> {
  try {
    return await prepare();
  } catch (error) {
    if (error instanceof AppError && error.code !== "CANCELED") {
      throw new InputError("INPUT_INVALID", `${INPUT_PREFIX}${error.message}`, {
        cause: error,
        hint: error.hint,
      });
    }
    throw error;
  }
}

function withDefaults(input: JsonObject, kind: RunKind, model: CogModel): Record<string, unknown> {
  const schema = kind === "training" ? (model.trainingInputs ?? model.inputs) : model.inputs;
  const parsed = schema.safeParse(input);
  if (!parsed.success) {
    throw new InputError("INPUT_INVALID", `${INPUT_PREFIX}${z.prettifyError(parsed.error)}`);
  }
  return parsed.data;
}

function start(
  model: CogModel,
  kind: RunKind,
  input: Record<string, unknown>,
  context: PredictionContext,
): Promise<unknown> | AsyncIterable<unknown> {
  return kind === "training" && model.train !== undefined
    ? model.train(input, context)
    : model.predict(input, context);
}

function contextOf(prediction: Prediction, request: RunRequest): PredictionContext {
  return {
    id: prediction.id,
    signal: prediction.signal,
    context: request.context,
    log: (line, source) => prediction.appendLog(masked(line, request.secrets), source),
    metric: (name, value, mode) => prediction.recordMetric(name, metricValue(name, value), mode),
    progress: (state) => prediction.progress({ ...state }),
  };
}

function metricValue(name: string, value: unknown): JsonValue {
  if (value === undefined || (typeof value === "number" && !Number.isFinite(value))) {
    throw new InputError("INPUT_INVALID", `metric '${name}' can't be ${String(value)}`);
  }
  return JSON.parse(JSON.stringify(value)) as JsonValue;
}

function isAsyncIterable(value: unknown): value is AsyncIterable<unknown> {
  return typeof value === "object" && value !== null && Symbol.asyncIterator in value;
}

function isList(value: unknown, document: JsonObject): boolean {
  const output = schemasOf(document)["Output"];
  return Array.isArray(value) || (isJsonObject(output) && output["type"] === "array");
}
