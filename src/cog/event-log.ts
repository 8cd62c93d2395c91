/**
 * The events of one prediction, for event streams (cog_protocol.md §10.4): a ring that late subscribers replay, and a
 * bounded queue per subscriber. A reader that falls behind is told so and closed; it never holds memory or the run.
 */
import { AppError } from "../platform/errors.ts";
import type { JsonObject } from "../platform/json.ts";

export interface StreamEvent {
  readonly name: "start" | "log" | "output" | "metric" | "progress" | "completed" | "error";
  readonly data: JsonObject;
}

/** Events waiting for one subscriber before it counts as too slow. */
export const MAX_QUEUED_EVENTS = 1024;
/** Subscribers of one prediction. */
export const MAX_SUBSCRIBERS = 1024;
export const DEFAULT_HISTORY = 1024;

function isLast(event: StreamEvent): boolean {
  return event.name === "completed" || event.name === "error";
}

/** One reader of the events. */
export class Subscription {
  readonly #queue: StreamEvent[];
  readonly #left: () => void;
  #skipped = 0;
  #wake: (() => void) | undefined;
  #isDone = false;

  constructor(replay: readonly StreamEvent[], left: () => void) {
    this.#queue = [...replay];
    this.#left = left;
  }

  push(event: StreamEvent): void {
    if (this.#isDone) {
      return;
    }
    if (this.#skipped > 0 || this.#queue.length >= MAX_QUEUED_EVENTS) {
      this.#skipped += this.#queue.length + 1;
      this.#queue.length = 0;
    } else {
      this.#queue.push(event);
    }
    this.#wake?.();
  }

  /** The next event; undefined after the last one, or when `waitMs` passed without any. */
  async next(waitMs: number): Promise<StreamEvent | "nothing" | undefined> {
    if (this.#isDone) {
      return undefined;
    }
    if (this.#queue.length === 0 && this.#skipped === 0 && !(await this.#waited(waitMs))) {
      return this.#isDone ? undefined : "nothing";
    }
    const event = this.#take();
    if (event === undefined || isLast(event)) {
      this.close();
    }
    return event;
  }

  /** Leaves: nothing more is delivered. */
  close(): void {
    if (!this.#isDone) {
      this.#isDone = true;
      this.#queue.length = 0;
      this.#wake?.();
      this.#left();
    }
  }

  #take(): StreamEvent | undefined {
    if (this.#skipped > 0) {
      return {
        name: "error",
        data: { error: "SSE stream lagged; events were dropped", skipped: this.#skipped },
      };
    }
    return this.#queue.shift();
  }

  #waited(waitMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#wake?.(), waitMs);
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = undefined;
        resolve(this.#queue.length > 0 || this.#skipped > 0);
      };
    });
  }
}

export class EventLog {
  readonly #capacity: number;
  readonly #ring: StreamEvent[] = [];
  readonly #subscribers = new Set<Subscription>();
  readonly #onEmpty: () => void;
  #dropped = 0;

  /** `onEmpty` is called whenever the last subscriber leaves. */
  constructor(capacity: number, onEmpty: () => void) {
    this.#capacity = capacity;
    this.#onEmpty = onEmpty;
  }

  add(event: StreamEvent): void {
    if (this.#capacity > 0) {
      this.#ring.push(event);
      if (this.#ring.length > this.#capacity) {
        this.#ring.shift();
        this.#dropped += 1;
      }
    }
    for (const subscriber of this.#subscribers) {
      subscriber.push(event);
    }
  }

  /** Replays what happened and follows what happens. @throws AppError STREAM_CROWDED */
  subscribe(): Subscription {
    if (this.#subscribers.size >= MAX_SUBSCRIBERS) {
      throw new AppError("STREAM_CROWDED", "Too many stream subscribers");
    }
    const replay: StreamEvent[] =
      this.#dropped === 0
        ? this.#ring
        : [
            {
              name: "error",
              data: {
                error: "SSE stream replay truncated; events were dropped",
                skipped: this.#dropped,
              },
            },
          ];
    const subscription = new Subscription(replay, () => {
      this.#subscribers.delete(subscription);
      if (this.#subscribers.size === 0) {
        this.#onEmpty();
      }
    });
    this.#subscribers.add(subscription);
    return subscription;
  }
}
