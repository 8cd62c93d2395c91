/** When to try again: a pure delay, and the loop around it with an injectable sleep. */
import { setTimeout as sleepFor } from "node:timers/promises";
import { CanceledError } from "./errors.ts";

export interface RetryPolicy {
  /** Tries in all, the first included. */
  readonly attempts: number;
  readonly firstDelayMs: number;
  readonly maxDelayMs: number;
}

/** Longest `Retry-After` that is obeyed: an absurd one must not park a download for days. */
export const MAX_RETRY_AFTER_MS = 120_000;

/** Milliseconds a `Retry-After` header asks for (seconds or an HTTP date); undefined if it says nothing usable. */
export function retryAfterMs(
  header: string | null | undefined,
  now: number = Date.now(),
): number | undefined {
  if (header === null || header === undefined || header.trim() === "") {
    return undefined;
  }
  const seconds = Number(header);
  const wait = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - now;
  return Number.isFinite(wait) && wait >= 0 ? Math.min(wait, MAX_RETRY_AFTER_MS) : undefined;
}

/** Delay before retry `attempt` (1 = the first retry): exponential, with full jitter over its upper half. */
export function retryDelay(
  policy: RetryPolicy,
  attempt: number,
  random: () => number = Math.random,
): number {
  const ceiling = Math.min(policy.maxDelayMs, policy.firstDelayMs * 2 ** (attempt - 1));
  return ceiling / 2 + (ceiling / 2) * random();
}

/** Sleeps, or rejects at once when `signal` aborts. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  await sleepFor(ms, undefined, signal === undefined ? {} : { signal });
}

/**
 * Waits for `work`, but no longer than `ms`; says whether it was in time. Its timer is gone afterwards: one that is left
 * behind holds the process for as long as it runs.
 */
export async function within(work: Promise<unknown>, ms: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<false>();
  const timer = setTimeout(() => resolve(false), ms);
  try {
    return await Promise.race([work.then(() => true as const), promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits for `work` unless `signal` aborts before. The work goes on. @throws CanceledError with `message` */
export async function untilAborted<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  message?: string,
): Promise<T> {
  if (signal?.aborted) {
    throw new CanceledError(message);
  }
  const { promise, reject } = Promise.withResolvers<never>();
  const cancel = (): void => reject(new CanceledError(message));
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

export interface RetryOptions {
  readonly policy: RetryPolicy;
  readonly signal?: AbortSignal | undefined;
  /** Decides whether this error is worth another try; may name the delay (a server's Retry-After). */
  readonly shouldRetry: (error: unknown, attempt: number) => boolean | { readonly delayMs: number };
  readonly sleep?: ((ms: number, signal?: AbortSignal) => Promise<void>) | undefined;
}

/** Runs `job` until it succeeds, is not worth retrying, or the tries are used up; then throws the last error. */
export async function withRetries<T>(
  job: (attempt: number) => Promise<T>,
  options: RetryOptions,
): Promise<T> {
  const wait = options.sleep ?? sleep;
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await job(attempt);
    } catch (error) {
      const verdict =
        attempt >= options.policy.attempts ? false : options.shouldRetry(error, attempt);
      if (verdict === false) {
        throw error;
      }
      await wait(
        typeof verdict === "object" ? verdict.delayMs : retryDelay(options.policy, attempt),
        options.signal,
      );
    }
  }
}
