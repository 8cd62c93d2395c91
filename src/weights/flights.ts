/**
 * One run per key, however many wait for it: all see its progress, and it is called off when the last of them has
 * lost interest, not before.
 */
import { CanceledError } from "../platform/errors.ts";
import { untilAborted } from "../platform/retry.ts";

const CALLED_OFF = "The download was called off";

interface Flight<T, P> {
  readonly controller: AbortController;
  readonly result: Promise<T>;
  readonly listeners: Set<(progress: P) => void>;
  waiters: number;
}

export interface Boarding<P> {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: P) => void) | undefined;
}

export class SharedFlights<T, P> {
  readonly #flights = new Map<string, Flight<T, P>>();

  /** Joins the run for `key`, or starts it. @throws CanceledError when this caller's own signal aborts */
  async board(
    key: string,
    passenger: Boarding<P>,
    job: (signal: AbortSignal, report: (progress: P) => void) => Promise<T>,
  ): Promise<T> {
    if (passenger.signal?.aborted) {
      throw new CanceledError(CALLED_OFF);
    }
    const flight = this.#flights.get(key) ?? this.#start(key, job);
    flight.waiters += 1;
    if (passenger.onProgress !== undefined) {
      flight.listeners.add(passenger.onProgress);
    }
    try {
      return await untilAborted(flight.result, passenger.signal, CALLED_OFF);
    } finally {
      flight.waiters -= 1;
      if (passenger.onProgress !== undefined) {
        flight.listeners.delete(passenger.onProgress);
      }
      if (flight.waiters === 0) {
        flight.controller.abort();
        // Whoever wants the same again starts anew, after this one has let go of its files.
        await flight.result.catch(() => undefined);
      }
    }
  }

  #start(
    key: string,
    job: (signal: AbortSignal, report: (progress: P) => void) => Promise<T>,
  ): Flight<T, P> {
    const controller = new AbortController();
    const listeners = new Set<(progress: P) => void>();
    const report = (progress: P): void => {
      for (const listener of listeners) {
        listener(progress);
      }
    };
    // A turn later, so that whoever started it hears its first words too.
    const started = Promise.resolve().then(() => job(controller.signal, report));
    const result = started.finally(() => {
      if (this.#flights.get(key)?.controller === controller) {
        this.#flights.delete(key);
      }
    });
    result.catch(() => undefined);
    const flight = { controller, result, listeners, waiters: 0 };
    this.#flights.set(key, flight);
    // A flight that was called off takes nobody new on board.
    controller.signal.addEventListener("abort", () => {
      if (this.#flights.get(key) === flight) {
        this.#flights.delete(key);
      }
    });
    return flight;
  }
}
