/** Prompts that wait, the one that runs, and the history of those that are over. */
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import type { Job, JobResult } from "./executor.ts";

/** ComfyUI's own limit; the oldest entry goes first. */
const MAX_HISTORY = 10_000;

export interface FinishedJob {
  readonly job: Job;
  readonly result: JobResult;
}

/** A prompt as `/queue` and the history list it. */
export function queueItem({ number, promptId, prompt, extraData, outputs }: Job): JsonValue {
  return [number, promptId, prompt, extraData, [...outputs]];
}

function historyEntry({ job, result }: FinishedJob): JsonObject {
  const { outputs, status, meta } = result;
  return { prompt: queueItem(job), outputs, status, meta };
}

export interface HistoryRange {
  readonly maxItems?: number | undefined;
  readonly offset?: number | undefined;
}

export class PromptQueue {
  readonly #onChange: () => void;
  #pending: Job[] = [];
  #running: Job | undefined;
  readonly #history = new Map<string, FinishedJob>();
  #wake: (() => void) | undefined;

  constructor(onChange: () => void) {
    this.#onChange = onChange;
  }

  get remaining(): number {
    return this.#pending.length + (this.#running === undefined ? 0 : 1);
  }

  get running(): Job | undefined {
    return this.#running;
  }

  /** In the order they will run. */
  get pending(): readonly Job[] {
    return this.#pending;
  }

  put(job: Job): void {
    const later = this.#pending.findIndex(({ number }) => number > job.number);
    this.#pending.splice(later === -1 ? this.#pending.length : later, 0, job);
    this.#onChange();
    this.#wake?.();
  }

  /** Waits for a prompt and marks it as running; undefined once the signal aborts. */
  async take(signal: AbortSignal): Promise<Job | undefined> {
    while (this.#pending.length === 0 && !signal.aborted) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        signal.addEventListener("abort", () => resolve(), { once: true });
      });
    }
    if (signal.aborted) {
      return undefined;
    }
    this.#running = this.#pending.shift();
    this.#onChange();
    return this.#running;
  }

  done(job: Job, result: JobResult): void {
    this.#history.set(job.promptId, { job, result });
    const oldest = this.#history.keys().next().value;
    if (this.#history.size > MAX_HISTORY && oldest !== undefined) {
      this.#history.delete(oldest);
    }
    this.#running = undefined;
    this.#onChange();
  }

  /** True when a waiting prompt was removed. */
  remove(promptId: string): boolean {
    const left = this.#pending.filter((job) => job.promptId !== promptId);
    const isRemoved = left.length < this.#pending.length;
    this.#pending = left;
    if (isRemoved) {
      this.#onChange();
    }
    return isRemoved;
  }

  clear(): void {
    this.#pending = [];
    this.#onChange();
  }

  finished(promptId: string): FinishedJob | undefined {
    return this.#history.get(promptId);
  }

  /** Oldest first. */
  allFinished(): readonly FinishedJob[] {
    return [...this.#history.values()];
  }

  history({ maxItems, offset }: HistoryRange = {}): JsonObject {
    const all = [...this.#history];
    const first = offset ?? (maxItems === undefined ? 0 : Math.max(0, all.length - maxItems));
    const part = maxItems === undefined ? all.slice(first) : all.slice(first, first + maxItems);
    return Object.fromEntries(part.map(([id, finished]) => [id, historyEntry(finished)]));
  }

  historyOf(promptId: string): JsonObject {
    const found = this.#history.get(promptId);
    return found === undefined ? {} : { [promptId]: historyEntry(found) };
  }

  forget(promptId: string): void {
    this.#history.delete(promptId);
  }

  forgetAll(): void {
    this.#history.clear();
  }
}
