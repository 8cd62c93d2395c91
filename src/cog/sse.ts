/** Server-sent events on the wire (cog_protocol.md §10.2): a pull-driven body, so that a slow reader costs no memory. */
import { CanceledError } from "../platform/errors.ts";
import type { StreamEvent, Subscription } from "./event-log.ts";
import { writeJson } from "./json-writer.ts";

/** Silence after which a comment shows that the connection lives. */
export const KEEP_ALIVE_MS = 15_000;
/**
 * Bun sends status and headers with the first bytes of a body. Where no event is at hand, the comment comes at once
 * instead, so that a client knows that its request was accepted.
 */
const FIRST_WAIT_MS = 5;
const KEEP_ALIVE = ": keep-alive\n\n";

/** True when an Accept header asks for events, by Cog's rule: a part equals the type up to its `;`, case and all. */
export function wantsEvents(accept: string | null): boolean {
  return (accept ?? "")
    .split(",")
    .some((part) => part.trim().split(";")[0] === "text/event-stream");
}

function render(event: StreamEvent): string {
  return `event: ${event.name}\ndata: ${writeJson(event.data)}\n\n`;
}

export interface EventStreamOptions {
  readonly keepAliveMs?: number | undefined;
  /** A reader that takes nothing for so long is given up: it must not hold its events for ever. */
  readonly stalledMs?: number | undefined;
}

const STALLED_MS = 120_000;

/** The body of an event stream; ends after the last event, leaves the subscription when the client goes. */
export function eventStream(
  subscription: Subscription,
  options: EventStreamOptions = {},
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const keepAliveMs = options.keepAliveMs ?? KEEP_ALIVE_MS;
  let waitMs = Math.min(FIRST_WAIT_MS, keepAliveMs);
  let watchdog: ReturnType<typeof setTimeout> | undefined;
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller): Promise<void> {
        clearTimeout(watchdog);
        const event = await subscription.next(waitMs);
        waitMs = keepAliveMs;
        if (event === undefined) {
          controller.close();
          return;
        }
        controller.enqueue(encoder.encode(event === "nothing" ? KEEP_ALIVE : render(event)));
        // The next pull comes when the client has taken this; comments see to it that there is always something to take.
        watchdog = setTimeout(() => {
          subscription.close();
          controller.error(new CanceledError("The client does not read its event stream"));
        }, options.stalledMs ?? STALLED_MS);
      },
      cancel(): void {
        clearTimeout(watchdog);
        subscription.close();
      },
    },
    { highWaterMark: 0 },
  );
}
