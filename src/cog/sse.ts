/** Server-sent events on the wire (cog_protocol.md §10.2): a pull-driven body, so that a slow reader costs no memory. */
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

/** The body of an event stream; ends after the last event, leaves the subscription when the client goes. */
export function eventStream(
  subscription: Subscription,
  keepAliveMs: number = KEEP_ALIVE_MS,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let waitMs = Math.min(FIRST_WAIT_MS, keepAliveMs);
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller): Promise<void> {
        const event = await subscription.next(waitMs);
        waitMs = keepAliveMs;
        if (event === undefined) {
          controller.close();
          return;
        }
        controller.enqueue(encoder.encode(event === "nothing" ? KEEP_ALIVE : render(event)));
      },
      cancel(): void {
        subscription.close();
      },
    },
    { highWaterMark: 0 },
  );
}
