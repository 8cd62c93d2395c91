/**
 * One prediction as a state machine (cog_protocol.md §6): starting → processing → succeeded | failed | canceled. Every
 * mutator checks the state; a terminal state is final. Who wants to know (webhooks, streams) observes.
 */
import type { JsonObject, JsonValue } from "../platform/json.ts";
import type { StreamEvent, Subscription } from "./event-log.ts";
import { EventLog } from "./event-log.ts";
import { Metrics } from "./metrics.ts";
import type { MetricMode } from "./predictor.ts";

export type PredictionStatus = "starting" | "processing" | "succeeded" | "failed" | "canceled";

/** How a prediction ended. */
export type Outcome =
  | { readonly status: "succeeded"; readonly output: JsonValue }
  | { readonly status: "failed"; readonly error: string }
  | { readonly status: "canceled" };

export interface PredictionOptions {
  readonly id: string;
  /** The validated input as it may be shown: credentials masked. */
  readonly input: JsonValue;
  /** Events kept for late subscribers. */
  readonly historyCapacity: number;
  /** True when an event stream created it: without a reader left it is cancelled. */
  readonly isStreamed: boolean;
}

export type Observer = (event: StreamEvent, prediction: Prediction) => void;

/** Cog's limit for one line of a log. */
const MAX_LINE_CHARACTERS = 4 * 1024 * 1024;

export class Prediction {
  readonly id: string;
  readonly input: JsonValue;
  /** Settles once, with the terminal state reached. */
  readonly finished: Promise<Outcome>;
  readonly #settle: (outcome: Outcome) => void;
  readonly #abort = new AbortController();
  readonly #startedAt = performance.now();
  readonly #observers: Observer[] = [];
  readonly #events: EventLog;
  readonly #metrics = new Metrics();
  readonly #chunks: JsonValue[] = [];
  #logs = "";
  #status: PredictionStatus = "starting";
  #outcome: Outcome | undefined;
  #seconds: number | undefined;

  constructor(options: PredictionOptions) {
    this.id = options.id;
    this.input = options.input;
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    this.finished = promise;
    this.#settle = resolve;
    this.#events = new EventLog(options.historyCapacity, () => {
      if (options.isStreamed) {
        this.cancel();
      }
    });
  }

  get status(): PredictionStatus {
    return this.#status;
  }

  get isTerminal(): boolean {
    return this.#outcome !== undefined;
  }

  /** Aborts when the prediction is cancelled. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  get isCancelled(): boolean {
    return this.#abort.signal.aborted;
  }

  observe(observer: Observer): void {
    this.#observers.push(observer);
  }

  subscribe(): Subscription {
    return this.#events.subscribe();
  }

  /** starting → processing. */
  begin(): void {
    if (this.#status === "starting") {
      this.#status = "processing";
      this.#emit("start", { id: this.id, status: "processing" });
    }
  }

  appendLog(line: string, source: "stdout" | "stderr" = "stdout"): void {
    if (this.isTerminal) {
      return;
    }
    const whole =
      line.length > MAX_LINE_CHARACTERS
        ? `${line.slice(0, MAX_LINE_CHARACTERS)}… (line cut, ${line.length} characters)`
        : line;
    const text = whole.endsWith("\n") ? whole : `${whole}\n`;
    this.#logs += text;
    this.#emit("log", { data: text, source });
  }

  addChunk(chunk: JsonValue): void {
    if (!this.isTerminal) {
      const index = this.#chunks.push(chunk) - 1;
      this.#emit("output", { chunk, index });
    }
  }

  /** @throws InputError when name or type are against the rules */
  recordMetric(name: string, value: JsonValue, mode: MetricMode = "replace"): void {
    if (!this.isTerminal) {
      this.#metrics.record(name, value, mode);
      this.#emit("metric", { name, value, mode });
    }
  }

  /** Tells streams about progress; it changes nothing and is not part of any body. */
  progress(data: JsonObject): void {
    if (!this.isTerminal) {
      this.#emit("progress", data);
    }
  }

  /** Asks for the end; the state changes when the work has let go. */
  cancel(): void {
    if (!this.isTerminal) {
      this.#abort.abort();
    }
  }

  /** Reaches a terminal state; only the first call counts. */
  finish(outcome: Outcome): void {
    if (this.#outcome !== undefined) {
      return;
    }
    this.#outcome = outcome;
    this.#status = outcome.status;
    this.#seconds = this.#elapsed();
    this.#emit("completed", this.snapshot());
    this.#settle(outcome);
  }

  /** The state as webhooks, streams and a repeated PUT show it (§5.4). */
  snapshot(): JsonObject {
    const output = this.#shownOutput();
    return {
      id: this.id,
      status: this.#status,
      logs: this.#logs,
      metrics: this.#shownMetrics(),
      ...(this.#outcome?.status === "failed" ? { error: this.#outcome.error } : {}),
      ...(output === undefined ? {} : { output }),
    };
  }

  /** The answer of a synchronous request (§5.1): after a failure without logs and output, as Cog's. */
  result(): JsonObject {
    const outcome = this.#outcome;
    return {
      id: this.id,
      status: this.#status,
      logs: outcome?.status === "succeeded" ? this.#logs : "",
      metrics: this.#shownMetrics(),
      ...(outcome?.status === "failed" ? { error: outcome.error } : {}),
      ...(outcome?.status === "succeeded" ? { output: outcome.output } : {}),
    };
  }

  #shownOutput(): JsonValue | undefined {
    if (this.#outcome?.status === "succeeded") {
      return this.#outcome.output;
    }
    return this.#chunks.length === 0 ? undefined : [...this.#chunks];
  }

  #shownMetrics(): JsonObject {
    const metrics = this.#metrics.toJson();
    return this.#seconds === undefined ? metrics : { ...metrics, predict_time: this.#seconds };
  }

  #elapsed(): number {
    // Nanoseconds are what Cog prints, and more than the clock knows.
    return Math.round((performance.now() - this.#startedAt) * 1e6) / 1e9;
  }

  #emit(name: StreamEvent["name"], data: JsonObject): void {
    const event = { name, data };
    this.#events.add(event);
    for (const observer of this.#observers) {
      observer(event, this);
    }
  }
}
