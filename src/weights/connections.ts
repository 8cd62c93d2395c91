/** The connections all downloads share: how many at once in all and per origin, and when an origin asked for rest. */
import { CanceledError } from "../platform/errors.ts";
import { sleep } from "../platform/retry.ts";

export interface ConnectionLimits {
  readonly total: number;
  readonly perOrigin: number;
}

interface OriginState {
  active: number;
  limit: number;
  /** On the clock that never jumps. */
  pausedUntilMs: number;
}

interface Waiter {
  readonly origin: string;
  readonly grant: () => void;
}

/** A place for one connection; given back when the `using` scope ends. */
export interface ConnectionPermit extends Disposable {
  readonly origin: string;
}

export class ConnectionBudget {
  readonly #limits: ConnectionLimits;
  readonly #origins = new Map<string, OriginState>();
  #active = 0;
  #waiting: Waiter[] = [];

  constructor(limits: ConnectionLimits) {
    this.#limits = limits;
  }

  /** Waits for a place, and for the end of a pause the origin asked for. @throws CanceledError */
  async acquire(url: string, signal: AbortSignal): Promise<ConnectionPermit> {
    const { origin } = new URL(url);
    await this.#rest(origin, signal);
    if (!this.#hasRoom(origin)) {
      await this.#queue(origin, signal);
    } else {
      this.#enter(origin);
    }
    let released = false;
    return {
      origin,
      [Symbol.dispose]: () => {
        if (!released) {
          released = true;
          this.#leave(origin);
        }
      },
    };
  }

  /** The origin said "too much": nobody asks it again before `ms` have passed, and then with half as many. */
  pause(url: string, ms: number): void {
    const state = this.#state(new URL(url).origin);
    state.pausedUntilMs = Math.max(state.pausedUntilMs, performance.now() + ms);
    state.limit = Math.max(1, Math.floor(Math.min(state.limit, Math.max(state.active, 2)) / 2));
  }

  /** One more connection again, after things went well for a while. */
  recover(url: string): void {
    const state = this.#state(new URL(url).origin);
    state.limit = Math.min(this.#limits.perOrigin, state.limit + 1);
  }

  async #rest(origin: string, signal: AbortSignal): Promise<void> {
    for (;;) {
      const waitMs = this.#state(origin).pausedUntilMs - performance.now();
      if (waitMs <= 0) {
        return;
      }
      try {
        await sleep(waitMs, signal);
      } catch (cause) {
        throw new CanceledError("The download was called off", { cause });
      }
    }
  }

  async #queue(origin: string, signal: AbortSignal): Promise<void> {
    if (signal.aborted) {
      throw new CanceledError("The download was called off");
    }
    return await new Promise((resolve, reject) => {
      const waiter: Waiter = {
        origin,
        grant: () => {
          signal.removeEventListener("abort", cancel);
          this.#enter(origin);
          resolve();
        },
      };
      const cancel = (): void => {
        this.#waiting = this.#waiting.filter((other) => other !== waiter);
        reject(new CanceledError("The download was called off"));
      };
      signal.addEventListener("abort", cancel, { once: true });
      this.#waiting.push(waiter);
    });
  }

  #leave(origin: string): void {
    this.#active -= 1;
    this.#state(origin).active -= 1;
    const next = this.#waiting.findIndex((waiter) => this.#hasRoom(waiter.origin));
    if (next !== -1) {
      this.#waiting.splice(next, 1)[0]?.grant();
    }
  }

  #enter(origin: string): void {
    this.#active += 1;
    this.#state(origin).active += 1;
  }

  #hasRoom(origin: string): boolean {
    const state = this.#state(origin);
    return this.#active < this.#limits.total && state.active < state.limit;
  }

  #state(origin: string): OriginState {
    let state = this.#origins.get(origin);
    if (state === undefined) {
      state = { active: 0, limit: this.#limits.perOrigin, pausedUntilMs: 0 };
      this.#origins.set(origin, state);
    }
    return state;
  }
}
