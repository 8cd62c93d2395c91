/**
 * Calls a prompt off, by its id alone, and makes sure of it: the promise resolves when ComfyUI has neither queued nor
 * running what was cancelled, so that nothing of it can reach the next prompt.
 */
import { EngineError, isAbort } from "../platform/errors.ts";
import { sleep } from "../platform/retry.ts";
import type { ComfyClient } from "./client.ts";

export interface CancelTimes {
  /** How often ComfyUI is asked again. */
  readonly pollMs: number;
  /** A model that is being loaded can't be interrupted; beyond this the process is no longer waited for. */
  readonly confirmTimeoutMs: number;
}

export const DEFAULT_CANCEL_TIMES: CancelTimes = { pollMs: 100, confirmTimeoutMs: 60_000 };

export type CancelOptions = Partial<CancelTimes> & {
  /** Aborts when the engine has ended: nothing is left to be called off. */
  readonly gone?: AbortSignal;
};

/** A request within a cancel; shorter than the whole, so that a frozen engine is noticed. */
const REQUEST_TIMEOUT_MS = 10_000;

/**
 * Resolves to true when ComfyUI confirmed that the prompt neither waits nor runs; false when it did not in time.
 * Interrupts are by id, so that asking again can hit no other prompt: one sent while the prompt is only just
 * starting is forgotten by ComfyUI, which clears the flag at the start of each.
 */
export async function cancelPrompt(
  client: ComfyClient,
  promptId: string,
  options: CancelOptions = {},
): Promise<boolean> {
  const { pollMs, confirmTimeoutMs, gone } = { ...DEFAULT_CANCEL_TIMES, ...options };
  const late = AbortSignal.timeout(confirmTimeoutMs);
  const deadline = gone === undefined ? late : AbortSignal.any([late, gone]);
  while (!deadline.aborted) {
    try {
      await client.deleteQueued([promptId], deadline);
      const before = await client.queue(deadline, REQUEST_TIMEOUT_MS);
      if (!isListed(before, promptId)) {
        return true;
      }
      await client.interrupt(promptId, deadline);
    } catch (error) {
      if (!(error instanceof EngineError) && !isAbort(error) && !isTimeout(error)) {
        throw error;
      }
      // Not answering is what the deadline is for.
    }
    await sleep(Math.min(pollMs, confirmTimeoutMs), deadline).catch(() => undefined);
  }
  return gone?.aborted === true;
}

function isTimeout(error: unknown): boolean {
  return error instanceof Error && error.name === "TimeoutError";
}

function isListed(
  queue: { readonly queue_running: readonly string[]; readonly queue_pending: readonly string[] },
  promptId: string,
): boolean {
  return queue.queue_running.includes(promptId) || queue.queue_pending.includes(promptId);
}
