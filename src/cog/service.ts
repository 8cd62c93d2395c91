/**
 * The single owner of predictions, capacity, setup and health. Knows the model's port and no HTTP: it can be driven by
 * a server, by a command line or by a test. Every promise it makes about slots is kept in one place, `#execute`.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { AppError, ConfigError, InputError, isAbort, messageOf } from "../platform/errors.ts";
import type { HttpClient } from "../platform/http.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { Logger } from "../platform/log.ts";
import { sleep } from "../platform/retry.ts";
import type { WebhookEvent } from "./envelope.ts";
import { DEFAULT_HISTORY } from "./event-log.ts";
import { UserHealthcheck } from "./healthcheck.ts";
import { inputSchema, openApiDocument, schemasOf, secretNames } from "./openapi.ts";
import type { Outcome } from "./prediction.ts";
import { Prediction } from "./prediction.ts";
import type { CogModel } from "./predictor.ts";
import type { RunKind, RunPorts, RunRequest } from "./run.ts";
import { masked, runModel } from "./run.ts";
import { SetupRecord } from "./setup.ts";
import type { Slot } from "./slots.ts";
import { Slots } from "./slots.ts";
import {
  SECRET_MASK,
  validateInput,
  withInjectedNulls,
  withoutUnknown,
  wrongDefaults,
} from "./validate.ts";
import type { WebhookSender } from "./webhook.ts";

/** The version of Cog's server whose protocol this is: what health, index, schema and webhooks say. */
export const COG_VERSION = "0.23.1";

export type HealthStatus = "STARTING" | "READY" | "BUSY" | "SETUP_FAILED" | "UNHEALTHY";

export interface ServiceOptions {
  readonly model: CogModel;
  readonly logger: Logger;
  /** For addresses that clients give: file inputs. */
  readonly clientHttp: HttpClient;
  /** For addresses that the operator gave: uploads. */
  readonly operatorHttp: HttpClient;
  readonly webhooks: WebhookSender;
  readonly tempDir: string;
  readonly slots?: number | undefined;
  readonly uploadUrl?: string | undefined;
  readonly uploadTimeoutMs?: number | undefined;
  readonly maxFileBytes?: number | undefined;
  readonly userAgent?: string | undefined;
  readonly setupTimeoutMs?: number | undefined;
  readonly historyCapacity?: number | undefined;
  readonly healthcheckTimeoutMs?: number | undefined;
  /** Written on a health check while ready, for probes that look at files; none unless given. */
  readonly readinessFile?: string | undefined;
}

/** A request to run the model. */
export interface Creation {
  readonly kind: RunKind;
  readonly id: string | undefined;
  readonly input: JsonValue;
  /** The input with every number as it was spelt, for messages; `input` unless given. */
  readonly exactInput?: (() => JsonValue) | undefined;
  readonly context?: Readonly<Record<string, string>> | undefined;
  readonly webhook?: string | undefined;
  readonly webhookEvents?: readonly WebhookEvent[] | undefined;
  readonly trace?: Readonly<Record<string, string>> | undefined;
  readonly isStreamed?: boolean | undefined;
  /** An id that is in flight is joined, not started again (PUT). */
  readonly isIdempotent?: boolean | undefined;
}

/** What came of a {@link Creation}. */
export interface Created {
  readonly prediction: Prediction;
  /** False when an equal request was quicker and this one joined it. */
  readonly isNew: boolean;
}

const NOT_READY =
  "Setup has not finished yet. Wait until it has finished, or GET /health-check for status.";
const AT_CAPACITY = "At capacity - all prediction slots busy";
const NO_STREAMING =
  "This model does not support streaming responses. Add @cog.streaming to predict() to enable SSE.";
/** After the grace is over: how long cancelled predictions may take to let go. */
const CANCEL_WAIT_MS = 5_000;

export class Service {
  readonly #options: ServiceOptions;
  readonly #slots: Slots;
  readonly #setup = new SetupRecord();
  readonly #stop = new AbortController();
  readonly #byId = new Map<string, Prediction>();
  readonly #running = new Set<Promise<void>>();
  readonly #healthcheck: UserHealthcheck;
  #document: JsonObject | undefined;
  #isDraining = false;
  #setupRun: Promise<void> = Promise.resolve();
  #lastIdNs = 0n;

  constructor(options: ServiceOptions) {
    this.#options = options;
    this.#slots = new Slots(options.slots ?? 1);
    this.#healthcheck = new UserHealthcheck(options.model, options.healthcheckTimeoutMs);
  }

  /** The OpenAPI document; undefined until setup has succeeded. */
  get document(): JsonObject | undefined {
    return this.#document;
  }

  get supportsStreaming(): boolean {
    return this.#document !== undefined && this.#options.model.streaming;
  }

  get isReady(): boolean {
    return this.#setup.status === "succeeded" && !this.#isDraining;
  }

  get freeSlots(): number {
    return this.#slots.free;
  }

  /** Begins setup in the background; how it went is in the health. */
  start(): void {
    this.#setupRun = this.#runSetup();
  }

  /** Waits for the end of setup, whichever. */
  async settled(): Promise<void> {
    await this.#setupRun;
  }

  /** The status alone, without the model's own check. */
  status(): HealthStatus {
    if (this.#setup.status !== "succeeded") {
      return this.#setup.status === "failed" ? "SETUP_FAILED" : "STARTING";
    }
    return this.#slots.free === 0 ? "BUSY" : "READY";
  }

  /** What `/health-check` answers, members in Cog's order. */
  async health(): Promise<JsonObject> {
    const status = this.status();
    const isUp = status === "READY" || status === "BUSY";
    const problem = isUp ? await this.#healthcheck.run() : undefined;
    if (isUp) {
      await this.#writeReadinessFile();
    }
    return {
      // The model's check may have taken a while: say what holds now.
      status: problem === undefined ? this.status() : "UNHEALTHY",
      setup: this.#setup.toJson(),
      version: { coglet: COG_VERSION, python_sdk: COG_VERSION },
      ...(problem === undefined ? {} : { user_healthcheck_error: problem }),
    };
  }

  find(id: string): Prediction | undefined {
    return this.#byId.get(id);
  }

  /** Asks a prediction in flight to end. @returns false when the id is not in flight */
  cancel(id: string): boolean {
    const prediction = this.#byId.get(id);
    prediction?.cancel();
    return prediction !== undefined;
  }

  /** @throws AppError STREAM_UNSUPPORTED */
  requireStreaming(): void {
    if (!this.supportsStreaming) {
      throw new AppError("STREAM_UNSUPPORTED", NO_STREAMING);
    }
  }

  /**
   * Starts a prediction, or refuses in Cog's order: streaming, input, readiness, webhook address, capacity.
   * @throws AppError STREAM_UNSUPPORTED, INPUT_INVALID, NOT_READY, WEBHOOK_REFUSED, AT_CAPACITY
   */
  async create(creation: Creation): Promise<Created> {
    if (creation.isStreamed === true) {
      this.requireStreaming();
    }
    const document = this.#document;
    const schema = document === undefined ? {} : inputSchema(document, creation.kind);
    const input = document === undefined ? {} : this.#validated(creation, schema, document);
    if (document === undefined || !this.isReady) {
      throw new AppError("NOT_READY", NOT_READY);
    }
    if (creation.webhook !== undefined && this.#slots.free > 0) {
      await this.#options.webhooks.checkAddress(creation.webhook);
    }
    // The address was looked up meanwhile: an equal request may have been quicker.
    const running = creation.isIdempotent === true ? this.#byId.get(creation.id ?? "") : undefined;
    if (running !== undefined) {
      return { prediction: running, isNew: false };
    }
    const slot = this.#slots.take();
    if (slot === undefined) {
      throw new AppError("AT_CAPACITY", AT_CAPACITY);
    }
    const prediction = this.#register(creation, input, schema);
    const run = this.#execute(prediction, slot, {
      request: this.#request(creation, input, schema),
      ports: this.#ports(document, schema),
    });
    this.#running.add(run);
    void run.finally(() => this.#running.delete(run));
    return { prediction, isNew: true };
  }

  /**
   * Lets running predictions finish, the asynchronous ones too, at most `graceMs`; then cancels them. Their last
   * webhooks get `webhookGraceMs` more. No new prediction is accepted from here on.
   */
  async drain(graceMs: number, webhookGraceMs: number): Promise<void> {
    this.#isDraining = true;
    this.#stop.abort();
    await atMost(this.#allRuns(), graceMs);
    this.cancelAll();
    await atMost(this.#allRuns(), CANCEL_WAIT_MS);
    await this.#options.webhooks.drain(webhookGraceMs);
  }

  /** Cancels everything that runs. */
  cancelAll(): void {
    for (const prediction of this.#byId.values()) {
      prediction.cancel();
    }
  }

  /** Lets the model go; call after {@link drain}. */
  async dispose(): Promise<void> {
    this.#stop.abort();
    await atMost(this.#setupRun, CANCEL_WAIT_MS);
    await this.#options.model.dispose();
  }

  async #allRuns(): Promise<void> {
    await Promise.allSettled([...this.#running]);
  }

  async #runSetup(): Promise<void> {
    const { model, logger, setupTimeoutMs } = this.#options;
    const timeout = setupTimeoutMs === undefined ? [] : [AbortSignal.timeout(setupTimeoutMs)];
    const signal = AbortSignal.any([this.#stop.signal, ...timeout]);
    const log = (line: string): void => this.#setup.add("coglet::setup", line);
    try {
      const inputs = model.inputs;
      const early = checkedDocument(model);
      await raceAbort(model.setup({ signal, log }), signal);
      // A model may learn its inputs in setup.
      const document = model.inputs === inputs ? early : checkedDocument(model);
      this.#setup.add("coglet", "Server ready");
      // One tick: whoever sees READY also sees the schema and the setup's end.
      this.#document = document;
      this.#setup.finish("succeeded");
      logger.info("Server ready");
    } catch (error) {
      const isLate = timeout.some((one) => one.aborted);
      const reason = isLate ? `Setup did not finish within ${setupTimeoutMs} ms` : textOf(error);
      this.#setup.add("coglet", reason);
      this.#setup.finish("failed");
      if (!this.#stop.signal.aborted) {
        logger.error(`Setup failed: ${reason}`, { stack: stackOf(error) });
      }
    }
  }

  #validated(creation: Creation, schema: JsonObject, document: JsonObject): JsonObject {
    const { input, dropped } = withoutUnknown(creation.input, schema);
    if (dropped.length > 0) {
      this.#options.logger.warn(`Unknown inputs are ignored: ${dropped.slice(0, 20).join(", ")}`);
    }
    const problems = validateInput(input, schema, document);
    if (problems.length > 0 || !isJsonObject(input)) {
      const exact = withoutUnknown(creation.exactInput?.() ?? creation.input, schema).input;
      throw new InputError("INPUT_INVALID", "The input is not valid", {
        details: { detail: validateInput(exact, schema, document) },
      });
    }
    return withInjectedNulls(input, schema);
  }

  #register(creation: Creation, input: JsonObject, schema: JsonObject): Prediction {
    const secrets = secretNames(schema);
    const shown = Object.entries(input).map(([name, value]): [string, JsonValue] => [
      name,
      secrets.has(name) && value !== "" ? SECRET_MASK : value,
    ]);
    const prediction = new Prediction({
      id: creation.id ?? this.#newId(),
      input: Object.fromEntries(shown),
      historyCapacity: this.#options.historyCapacity ?? DEFAULT_HISTORY,
      isStreamed: creation.isStreamed ?? false,
    });
    if (creation.webhook !== undefined) {
      this.#options.webhooks.attach(prediction, {
        url: creation.webhook,
        events: creation.webhookEvents ?? ["start", "output", "logs", "completed"],
        trace: creation.trace ?? {},
      });
    }
    this.#byId.set(prediction.id, prediction);
    return prediction;
  }

  #request(creation: Creation, input: JsonObject, schema: JsonObject): RunRequest {
    return {
      kind: creation.kind,
      input,
      context: creation.context ?? {},
      secrets: [...secretNames(schema)]
        .map((name) => input[name])
        .filter((value) => typeof value === "string"),
    };
  }

  #ports(document: JsonObject, schema: JsonObject): RunPorts {
    const { model, clientHttp, operatorHttp, tempDir, maxFileBytes, userAgent } = this.#options;
    const { uploadUrl, uploadTimeoutMs } = this.#options;
    return {
      model,
      document,
      schema,
      files: { http: clientHttp, tempDir, maxFileBytes, userAgent },
      outputs: { http: operatorHttp, uploadUrl, uploadTimeoutMs },
    };
  }

  /** Runs to the end. The slot is free and the id forgotten before anybody is told. */
  async #execute(
    prediction: Prediction,
    slot: Slot,
    job: { readonly request: RunRequest; readonly ports: RunPorts },
  ): Promise<void> {
    const { logger } = this.#options;
    let outcome: Outcome = { status: "canceled" };
    try {
      prediction.begin();
      logger.info("Prediction started", { prediction_id: prediction.id });
      const output = await runModel(prediction, job.request, job.ports);
      outcome = { status: "succeeded", output };
    } catch (error) {
      outcome = { status: "failed", error: masked(textOf(error), job.request.secrets) };
      this.#logFailure(prediction, error, job.request.secrets);
    } finally {
      slot[Symbol.dispose]();
      if (this.#byId.get(prediction.id) === prediction) {
        this.#byId.delete(prediction.id);
      }
    }
    prediction.finish(prediction.isCancelled ? { status: "canceled" } : outcome);
    logger.info(`Prediction ${prediction.status}`, { prediction_id: prediction.id });
  }

  #logFailure(prediction: Prediction, error: unknown, secrets: readonly string[]): void {
    if (prediction.isCancelled || isAbort(error)) {
      return;
    }
    // A stack is for bugs; our own errors say what happened in words.
    const stack = error instanceof AppError ? undefined : stackOf(error);
    this.#options.logger.error(masked(textOf(error), secrets), {
      prediction_id: prediction.id,
      stack: stack === undefined ? undefined : masked(stack, secrets),
    });
  }

  /** `pred_` and the time in nanoseconds, in hexadecimal; unique within the process. */
  #newId(): string {
    const now = BigInt(Math.floor((performance.timeOrigin + performance.now()) * 1e3)) * 1000n;
    this.#lastIdNs = now > this.#lastIdNs ? now : this.#lastIdNs + 1n;
    return `pred_${this.#lastIdNs.toString(16)}`;
  }

  async #writeReadinessFile(): Promise<void> {
    const path = this.#options.readinessFile;
    if (path === undefined) {
      return;
    }
    try {
      await mkdir(dirname(path), { recursive: true });
      await writeFile(path, "", { flag: "a" });
    } catch (error) {
      this.#options.logger.warn(`The readiness file can't be written: ${messageOf(error)}`);
    }
  }
}

/** True when the document describes trainings. */
export function hasTrainings(document: JsonObject | undefined): boolean {
  return document !== undefined && "TrainingInput" in schemasOf(document);
}

/** @throws ConfigError when an input's default violates its own limits */
function checkedDocument(model: CogModel): JsonObject {
  const document = openApiDocument(model, COG_VERSION);
  const wrong = wrongDefaults(document);
  if (wrong.length > 0) {
    throw new ConfigError(
      "CONFIG_INVALID",
      `Defaults of inputs are not valid: ${wrong.join("; ")}`,
    );
  }
  return document;
}

function textOf(error: unknown): string {
  return error instanceof AppError ? error.describe() : messageOf(error);
}

function stackOf(error: unknown): string | undefined {
  return error instanceof Error ? error.stack : undefined;
}

/** Waits for `work`, but no longer than `ms`. */
async function atMost(work: Promise<unknown>, ms: number): Promise<void> {
  const timer = new AbortController();
  try {
    await Promise.race([work, sleep(Math.min(ms, 2 ** 31 - 1), timer.signal)]);
  } finally {
    timer.abort();
  }
}

/** `work`, or a rejection as soon as `signal` aborts, for a model that does not listen. */
async function raceAbort(work: Promise<void>, signal: AbortSignal): Promise<void> {
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => reject(new AppError("CANCELED", "Setup was called off"));
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
