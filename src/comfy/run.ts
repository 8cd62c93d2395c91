/**
 * Runs one workflow on an engine and settles exactly once. Events only say when to look; the history says what
 * happened. Lost, late, doubled or foreign events change nothing, and neither does a connection that breaks.
 */
import { CanceledError, EngineError, isAbort } from "../platform/errors.ts";
import type { JsonObject } from "../platform/json.ts";
import type { Logger } from "../platform/log.ts";
import { sleep, within } from "../platform/retry.ts";
import type { Graph } from "../workflow/graph.ts";
import type { CancelTimes } from "./cancel.ts";
import { cancelPrompt, DEFAULT_CANCEL_TIMES } from "./cancel.ts";
import type { Engine, EngineExit, RunProgress, RunResult } from "./engine.ts";
import { executionError, nodeLabel, partialRefusalError, refusalError } from "./errors.ts";
import type { ComfyEvent, EventTimes, PreviewEvent } from "./events.ts";
import { EventStream } from "./events.ts";
import type { Ending } from "./history.ts";
import { cachedNodesOf, executionTime, howItEnded } from "./history.ts";
import type { NodeOutputs } from "./outputs.ts";
import { readOutputs } from "./outputs.ts";
import { quote } from "./process.ts";
import { ProgressTracker } from "./progress.ts";
import type { ExecutionErrorFacts, HistoryEntry } from "./wire.ts";

export interface RunTimes {
  /** How long the event connection may take before we go on without it. */
  readonly greetTimeoutMs: number;
  /** Silence after which the history is asked. */
  readonly pollMs: number;
  /** Between two looks once the end was announced: ComfyUI says so before it writes the history. */
  readonly settleMs: number;
  /** How long an announced end may stay without a history. */
  readonly settleTimeoutMs: number;
  /** How long nobody may answer at all. Reading a huge model blocks ComfyUI's interpreter, minutes on a slow disk. */
  readonly unreachableTimeoutMs: number;
  /** A single look. */
  readonly lookTimeoutMs: number;
}

export const DEFAULT_RUN_TIMES: RunTimes = {
  greetTimeoutMs: 5000,
  pollMs: 2000,
  settleMs: 20,
  settleTimeoutMs: 2000,
  unreachableTimeoutMs: 10 * 60_000,
  lookTimeoutMs: 10_000,
};

/** Deadlines of the operator; none unless given. A process that dies is noticed without them. */
export interface RunDeadlines {
  readonly totalMs?: number | undefined;
  /** Without any event of the run. */
  readonly stallMs?: number | undefined;
}

export interface RunOptions {
  readonly log: Logger;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: RunProgress) => void) | undefined;
  readonly onPreview?: ((preview: PreviewEvent) => void) | undefined;
  /** The document the graph was made from: ComfyUI stores it in the pictures it saves. */
  readonly uiWorkflow?: JsonObject | undefined;
  readonly deadlines?: RunDeadlines | undefined;
  /** Every node runs again, whatever was computed before. */
  readonly resetCache?: boolean | undefined;
  readonly times?: Partial<RunTimes> | undefined;
  readonly eventTimes?: Partial<EventTimes> | undefined;
  readonly cancelTimes?: Partial<CancelTimes> | undefined;
}

/** Tries for what is not the workflow's fault: a foreign interrupt, a cache that was filled again, a death before the start. */
const MAX_TRIES = 3;

/**
 * Queues a graph, follows it to its end and says what it produced.
 * @throws EngineError PROMPT_REJECTED, NODE_FAILED, OUT_OF_MEMORY, ENGINE_DIED, ENGINE_TIMEOUT, ENGINE_UNAVAILABLE;
 *   CanceledError once ComfyUI confirmed that nothing of it runs any more
 */
export async function runWorkflow(
  engine: Engine,
  graph: Graph,
  options: RunOptions,
): Promise<RunResult> {
  const deadlines = options.deadlines ?? {};
  const endsAt = deadlines.totalMs === undefined ? Infinity : Date.now() + deadlines.totalMs;
  for (let attempt = 1; ; attempt += 1) {
    if (options.signal?.aborted) {
      throw new CanceledError("The run was called off before it was queued");
    }
    await readyBefore(endsAt, engine, options);
    using run = new Run(engine, graph, options, { endsAt, isLastTry: attempt >= MAX_TRIES });
    const outcome = await run.settle();
    if (typeof outcome === "object") {
      engine.noteSuccess();
      return outcome;
    }
    if (attempt >= MAX_TRIES) {
      throw new EngineError("ENGINE_PROTOCOL", `ComfyUI did not run the workflow: ${outcome}`);
    }
    options.log.info(`Running the workflow again: ${outcome}`);
  }
}

/** Waits for the engine, but not beyond the run's deadline. */
async function readyBefore(endsAt: number, engine: Engine, options: RunOptions): Promise<void> {
  if (endsAt === Infinity) {
    await engine.ready(options.signal);
    return;
  }
  const deadline = AbortSignal.timeout(Math.max(0, endsAt - Date.now()));
  const { signal } = options;
  try {
    await engine.ready(signal === undefined ? deadline : AbortSignal.any([signal, deadline]));
  } catch (error) {
    throw deadline.aborted && signal?.aborted !== true ? tookTooLong(options) : error;
  }
}

function tookTooLong({ deadlines }: RunOptions): EngineError {
  const seconds = Math.round((deadlines?.totalMs ?? 0) / 1000);
  return new EngineError("ENGINE_TIMEOUT", `The run took longer than ${seconds} s`, {
    hint: "Raise PREDICT_TIMEOUT, or make the workflow smaller.",
  });
}

/** Why an attempt that failed through no fault of the workflow is repeated. */
type TryAgain = string;

interface Attempt {
  readonly endsAt: number;
  /** Runs that go on beside this one fill the cache again: at last a result counts more than an empty cache. */
  readonly isLastTry: boolean;
}

class Run implements Disposable {
  readonly #promptId: string = crypto.randomUUID();
  readonly #engine: Engine;
  readonly #graph: Graph;
  readonly #options: RunOptions;
  readonly #times: RunTimes;
  readonly #endsAt: number;
  readonly #isLastTry: boolean;
  readonly #client: Engine["client"];
  readonly #log: Logger;
  readonly #progress: ProgressTracker;
  readonly #stream: EventStream;
  readonly #removeAbort: () => void;
  readonly #removeExit: () => void;
  /** Aborts when the engine's process has ended: nothing is left to be called off. */
  readonly #gone = new AbortController();

  /** Cuts a look short when something more important happened. */
  #attention = new AbortController();
  #wake: (() => void) | undefined;

  #death: EngineExit | undefined;
  #announced: Ending | undefined;
  #announcedAt = 0;
  /** Look at the history at the next turn. */
  #isLookDue = false;
  #lastEventAt = Date.now();
  #lastAnswerAt = Date.now();
  #lastLookAt = Date.now();
  #absentLooks = 0;
  readonly #outputs: Record<string, Readonly<Record<string, unknown>>> = {};
  #cachedNodes: readonly string[] | undefined;
  readonly #notes: string[] = [];

  constructor(engine: Engine, graph: Graph, options: RunOptions, attempt: Attempt) {
    this.#engine = engine;
    this.#graph = graph;
    this.#options = options;
    this.#times = { ...DEFAULT_RUN_TIMES, ...options.times };
    this.#endsAt = attempt.endsAt;
    this.#isLastTry = attempt.isLastTry;
    this.#client = engine.client;
    this.#log = options.log;
    this.#progress = new ProgressTracker(graph, options.onProgress ?? (() => undefined));
    this.#stream = new EventStream({
      url: engine.url,
      clientId: this.#promptId,
      onEvent: (event) => this.#see(event),
      onOpen: (isReconnect) => {
        if (isReconnect) {
          this.#lookNow();
        }
      },
      wantsPreviews: options.onPreview !== undefined,
      times: options.eventTimes,
      log: options.log,
    });
    const onAbort = (): void => {
      // What comes now is told over HTTP alone.
      this.#stream[Symbol.dispose]();
      this.#interruptWaiting();
    };
    options.signal?.addEventListener("abort", onAbort, { once: true });
    this.#removeAbort = () => options.signal?.removeEventListener("abort", onAbort);
    this.#removeExit = engine.onExit((exit) => {
      this.#death = exit;
      this.#gone.abort();
      this.#interruptWaiting();
    });
  }

  [Symbol.dispose](): void {
    this.#removeAbort();
    this.#removeExit();
    this.#stream[Symbol.dispose]();
    this.#attention.abort();
  }

  /** The result, or why it is worth another try. */
  async settle(): Promise<RunResult | TryAgain> {
    await this.#stream.greeted(this.#times.greetTimeoutMs);
    if (this.#options.resetCache === true) {
      await this.#client.free({ unloadModels: false, freeMemory: true }, this.#options.signal);
    }
    const again = await this.#submit();
    if (again !== undefined) {
      return again;
    }
    const entry = await this.#follow();
    if (typeof entry === "string") {
      return entry;
    }
    return await this.#conclude(entry);
  }

  async #submit(): Promise<TryAgain | undefined> {
    if (this.#options.signal?.aborted) {
      throw new CanceledError("The run was called off before it was queued");
    }
    const { uiWorkflow, onPreview } = this.#options;
    const submission = {
      prompt: this.#graph,
      promptId: this.#promptId,
      clientId: this.#promptId,
      extraData: {
        ...(uiWorkflow === undefined ? {} : { extra_pnginfo: { workflow: uiWorkflow } }),
        ...(onPreview === undefined ? {} : { preview_method: "auto" }),
      },
    };
    let answer: Awaited<ReturnType<Engine["client"]["submit"]>>;
    this.#log.debug("Queueing the workflow", { prompt_id: this.#promptId });
    using patience = this.#patience();
    try {
      answer = await this.#client.submit(submission, patience.signal);
    } catch (error) {
      if (patience.signal.aborted) {
        throw await this.#notTaken();
      }
      return await this.#afterFailedSubmit(error);
    }
    if (!answer.accepted) {
      throw refusalError(this.#graph, answer.refusal);
    }
    if (Object.keys(answer.reply.node_errors).length > 0) {
      await this.#callOff("it was accepted only in part");
      throw partialRefusalError(this.#graph, answer.reply.node_errors);
    }
    return undefined;
  }

  /**
   * A request that is cut may still be taken, and nobody would call it off: a cancel does not cut it at once, but an
   * engine that has stopped answering must not hold it for ever.
   */
  #patience(): Disposable & { readonly signal: AbortSignal } {
    const cut = new AbortController();
    const timers: ReturnType<typeof setTimeout>[] = [];
    const cutAfter = (ms: number): void => {
      timers.push(setTimeout(() => cut.abort(), ms));
    };
    const { signal, deadlines, cancelTimes } = this.#options;
    const onAbort = (): void =>
      cutAfter(cancelTimes?.confirmTimeoutMs ?? DEFAULT_CANCEL_TIMES.confirmTimeoutMs);
    if (signal?.aborted) {
      onAbort();
    } else {
      signal?.addEventListener("abort", onAbort, { once: true });
    }
    if (deadlines?.stallMs !== undefined) {
      cutAfter(deadlines.stallMs);
    }
    if (this.#endsAt !== Infinity) {
      cutAfter(Math.max(0, this.#endsAt - Date.now()));
    }
    return {
      signal: cut.signal,
      [Symbol.dispose]: () => {
        signal?.removeEventListener("abort", onAbort);
        for (const timer of timers) {
          clearTimeout(timer);
        }
      },
    };
  }

  /** The engine did not even answer whether it takes the workflow: what it does later, it does to nobody. */
  async #notTaken(): Promise<Error> {
    if (this.#engine.kind === "remote") {
      await this.#callOff("it was not taken in time");
    } else {
      await this.#engine.recycle("it did not answer whether it takes a workflow");
    }
    return this.#options.signal?.aborted
      ? new CanceledError("The run was cancelled")
      : new EngineError(
          "ENGINE_TIMEOUT",
          `ComfyUI did not take the workflow in time.${quote(this.#engine.lastLog())}`,
          { retryable: true },
        );
  }

  /** The prompt may have been taken although its answer was lost. */
  async #afterFailedSubmit(error: unknown): Promise<TryAgain | undefined> {
    if (!(error instanceof EngineError) || error.code !== "ENGINE_UNAVAILABLE") {
      throw error;
    }
    if (this.#engine.kind !== "remote") {
      // A refused connection is often noticed before the death behind it.
      await within(this.#engine.exited, this.#times.settleTimeoutMs);
    }
    if (this.#death !== undefined) {
      return `the engine had ended before it took the workflow (${this.#death.reason})`;
    }
    for (let look = 1; (await this.#look()) === "unknown"; look += 1) {
      if (look > 1) {
        // A connection that was kept open may have been closed at the other end in that very moment.
        return "the request got lost on its way to ComfyUI";
      }
      // What was sent may still be on its way into the queue.
      await sleep(this.#times.pollMs, this.#options.signal).catch(() => undefined);
    }
    this.#isLookDue = true;
    return undefined;
  }

  /** Waits for the end. @returns the history; undefined when only events tell how it ended */
  async #follow(): Promise<HistoryEntry | TryAgain | undefined> {
    this.#lastEventAt = Date.now();
    this.#lastAnswerAt = Date.now();
    for (;;) {
      await this.#throwIfOver();
      if (this.#hasStaleCache()) {
        await this.#callOff("nodes came from the cache");
        return "nodes came from the cache, which was to be empty";
      }
      if (this.#isLookDue || Date.now() >= this.#nextLookAt()) {
        const look = await this.#look();
        if (typeof look === "object") {
          return look;
        }
        if (look === "unknown" && this.#absentLooks > 1) {
          return this.#goneWithoutHistory();
        }
      }
      await this.#wait();
    }
  }

  /** Everything that ends a run from our side. */
  async #throwIfOver(): Promise<void> {
    if (this.#options.signal?.aborted) {
      await this.#callOff("it was cancelled");
      throw new CanceledError("The run was cancelled");
    }
    if (this.#death !== undefined) {
      throw diedError(this.#death, this.#engine.lastLog());
    }
    const now = Date.now();
    if (now >= this.#endsAt) {
      await this.#callOff("it took too long");
      throw tookTooLong(this.#options);
    }
    const stallMs = this.#options.deadlines?.stallMs;
    if (stallMs !== undefined && now - this.#lastEventAt >= stallMs) {
      await this.#callOff("nothing was heard of it");
      throw new EngineError(
        "ENGINE_TIMEOUT",
        `Nothing was heard of the run for ${Math.round(stallMs / 1000)} s.${quote(this.#engine.lastLog())}`,
        { hint: "Raise STALL_TIMEOUT if a node may be silent for longer." },
      );
    }
    if (now - this.#lastAnswerAt >= this.#times.unreachableTimeoutMs) {
      await this.#engine.recycle("it does not answer any more");
      throw new EngineError(
        "ENGINE_UNAVAILABLE",
        `ComfyUI has not answered for ${Math.round(this.#times.unreachableTimeoutMs / 1000)} s.${quote(this.#engine.lastLog())}`,
        { retryable: true },
      );
    }
  }

  #nextLookAt(): number {
    if (this.#announced !== undefined) {
      return 0;
    }
    return Math.max(this.#lastEventAt, this.#lastLookAt) + this.#times.pollMs;
  }

  /** Asks the history, and where it knows nothing the queue. */
  async #look(): Promise<HistoryEntry | "listed" | "unknown" | "no-answer"> {
    this.#isLookDue = false;
    const { signal } = this.#attention;
    this.#lastLookAt = Date.now();
    try {
      const entry = await this.#client.history(this.#promptId, signal, this.#times.lookTimeoutMs);
      this.#lastAnswerAt = Date.now();
      if (entry !== undefined) {
        return entry;
      }
      if (this.#announced !== undefined) {
        return this.#afterAnnouncement();
      }
      if (await this.#isListed(signal)) {
        this.#absentLooks = 0;
        return "listed";
      }
      // It may have ended between the two questions; ComfyUI moves it from one list to the other in one step.
      const late = await this.#client.history(this.#promptId, signal, this.#times.lookTimeoutMs);
      this.#absentLooks += 1;
      return late ?? "unknown";
    } catch (error) {
      if (error instanceof EngineError || isAbort(error)) {
        return "no-answer";
      }
      throw error;
    }
  }

  async #isListed(signal: AbortSignal): Promise<boolean> {
    const queue = await this.#client.queue(signal, this.#times.lookTimeoutMs);
    const waits = queue.queue_pending.includes(this.#promptId);
    if (waits) {
      // Others are before it: silence is no stall.
      this.#lastEventAt = Date.now();
    }
    return waits || queue.queue_running.includes(this.#promptId);
  }

  #afterAnnouncement(): "listed" | "unknown" {
    if (Date.now() - this.#announcedAt < this.#times.settleTimeoutMs) {
      return "listed";
    }
    this.#absentLooks = 2;
    return "unknown";
  }

  /** Neither queued nor in the history: its events decide, if there were any. */
  #goneWithoutHistory(): undefined {
    if (this.#announced === undefined) {
      throw new EngineError(
        "ENGINE_PROTOCOL",
        "The prompt vanished from ComfyUI's queue without a result: somebody deleted it, or ComfyUI was restarted",
        { retryable: true },
      );
    }
    return undefined;
  }

  async #wait(): Promise<void> {
    const stallAt = this.#lastEventAt + (this.#options.deadlines?.stallMs ?? Infinity);
    const until = Math.min(
      this.#announced === undefined ? this.#nextLookAt() : Date.now() + this.#times.settleMs,
      this.#endsAt,
      stallAt,
    );
    if (this.#isLookDue || this.#attention.signal.aborted) {
      this.#attention = new AbortController();
      // A look that fails at once must not spin.
      await Bun.sleep(1);
      return;
    }
    let timer: ReturnType<typeof setTimeout> | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      timer = setTimeout(resolve, Math.max(1, until - Date.now()));
    });
    clearTimeout(timer);
    this.#wake = undefined;
  }

  #interruptWaiting(): void {
    this.#attention.abort();
    this.#wake?.();
  }

  #lookNow(): void {
    this.#isLookDue = true;
    this.#wake?.();
  }

  #see(event: ComfyEvent): void {
    if (event.type === "preview") {
      if (event.promptId === undefined || event.promptId === this.#promptId) {
        this.#lastEventAt = Date.now();
        this.#options.onPreview?.(event);
      }
      return;
    }
    if (event.type === "text" || event.type === "status") {
      return;
    }
    if (event.data.prompt_id !== this.#promptId) {
      // Another prompt's, or the greeting of a socket that came back.
      return;
    }
    this.#lastEventAt = Date.now();
    this.#progress.see(event);
    switch (event.type) {
      case "execution_cached":
        this.#cachedNodes = event.data.nodes;
        if (this.#hasStaleCache()) {
          this.#interruptWaiting();
        }
        return;
      case "executed":
        this.#outputs[event.data.node] = event.data.output ?? {};
        return;
      case "execution_error":
        this.#seeError(event.data);
        return;
      case "execution_success":
        this.#announce("success");
        return;
      case "execution_interrupted":
        this.#announce("interrupted");
        return;
      case "executing":
        if (event.data.node === null || event.data.node === undefined) {
          this.#lookNow();
        }
        return;
      default:
        return;
    }
  }

  #seeError(facts: ExecutionErrorFacts): void {
    if (facts.exception_type === "ExecutionBlocked") {
      // Only this branch ends; the run goes on, and the history will not mention it.
      const label = nodeLabel(this.#graph, facts.node_id, facts.node_type);
      this.#notes.push(`${label} was blocked: ${facts.exception_message.trim()}`);
      return;
    }
    this.#announce(facts);
  }

  #announce(how: Ending): void {
    this.#announced = how;
    this.#announcedAt = Date.now();
    this.#lookNow();
  }

  #hasStaleCache(): boolean {
    return (
      this.#options.resetCache === true && !this.#isLastTry && (this.#cachedNodes?.length ?? 0) > 0
    );
  }

  /** Takes the prompt back, or ends an engine that doesn't let go of it. */
  async #callOff(why: string): Promise<void> {
    const confirmed = await cancelPrompt(this.#client, this.#promptId, {
      ...this.#options.cancelTimes,
      gone: this.#gone.signal,
    });
    if (!confirmed && this.#death === undefined) {
      this.#log.warn(`ComfyUI did not let go of a run (${why})`);
      await this.#engine.recycle(`it did not let go of a run (${why})`);
    }
  }

  async #conclude(entry: HistoryEntry | undefined): Promise<RunResult | TryAgain> {
    const how = entry === undefined ? this.#announced : howItEnded(entry);
    this.#forget();
    if (typeof how === "object") {
      throw await this.#failure(how);
    }
    if (how === "interrupted") {
      if (this.#options.signal?.aborted) {
        throw new CanceledError("The run was cancelled");
      }
      if (this.#engine.kind !== "remote") {
        return "it was interrupted, and not by its own cancellation";
      }
      throw new EngineError("ENGINE_PROTOCOL", "The run was interrupted from outside", {
        retryable: true,
      });
    }
    const outputs: NodeOutputs = { ...this.#outputs, ...entry?.outputs };
    const cached = cachedNodesOf(entry) ?? this.#cachedNodes ?? [];
    if (this.#options.resetCache === true && cached.length > 0) {
      this.#log.warn(`Nodes came from the cache although it was reset: ${cached.join(", ")}`);
    }
    return {
      promptId: this.#promptId,
      ...readOutputs(this.#graph, outputs, entry?.meta),
      cachedNodes: cached,
      executionMs: executionTime(entry),
      notes: this.#notes,
    };
  }

  async #failure(facts: ExecutionErrorFacts): Promise<EngineError> {
    const error = executionError(this.#graph, facts);
    if (error.code === "OUT_OF_MEMORY") {
      // The next run starts with free memory. That this fails too must not hide the error.
      await this.#client.free({ unloadModels: true, freeMemory: true }).catch(() => undefined);
    }
    return error;
  }

  /** The history of our own engine is nobody else's: entries would pile up. */
  #forget(): void {
    if (this.#engine.kind !== "remote") {
      void this.#client.deleteHistory([this.#promptId]).catch(() => undefined);
    }
  }
}

function diedError(exit: EngineExit, log: readonly string[]): EngineError {
  return new EngineError("ENGINE_DIED", `${exit.reason} while the workflow ran.${quote(log)}`, {
    details: { code: exit.code, signal: exit.signal },
    hint: "It is being started again; a run that needs less memory, or another node, may help.",
    retryable: true,
  });
}
