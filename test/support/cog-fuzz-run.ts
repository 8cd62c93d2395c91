/** Fuzzes a server and says what it looked like afterwards. */
import fc from "fast-check";
import { fuzzRequest, sendFuzz } from "./cog-fuzz.ts";
import { untilNot } from "./cog-scenario.ts";
import { startTwin } from "./cog-server.ts";

export interface FuzzVerdict {
  readonly serverErrors: readonly unknown[];
  readonly unhandled: readonly unknown[];
  readonly health: string;
  readonly freeSlots: number;
  readonly answered: number;
}

/** Sends `count` requests, a few at a time. */
export async function fuzz(count: number, streaming: boolean): Promise<FuzzVerdict> {
  const unhandled: unknown[] = [];
  const onUnhandled = (reason: unknown): void => void unhandled.push(String(reason));
  process.on("unhandledRejection", onUnhandled);
  process.on("uncaughtException", onUnhandled);
  const serverErrors: unknown[] = [];
  let answered = 0;
  await using twin = await startTwin({
    streaming,
    env: { COG_MAX_CONCURRENCY: "4" },
    serve: { timings: { webhookRetryDelaysMs: [1], shutdownGraceMs: 200, webhookGraceMs: 50 } },
  });
  const { port } = twin.server;
  try {
    await fc.assert(
      fc.asyncProperty(fc.array(fuzzRequest, { minLength: 4, maxLength: 4 }), async (requests) => {
        await Promise.all(
          requests.map(async (request) => {
            const status = await sendFuzz(port, request);
            answered += status > 0 ? 1 : 0;
            if (status >= 500) {
              serverErrors.push({ status, request });
            }
          }),
        );
      }),
      { numRuns: Math.ceil(count / 4) },
    );
    const health = await untilNot(port, "BUSY");
    while (twin.server.service.freeSlots < 4) {
      await Bun.sleep(5);
    }
    return { serverErrors, unhandled, health, freeSlots: twin.server.service.freeSlots, answered };
  } finally {
    process.off("unhandledRejection", onUnhandled);
    process.off("uncaughtException", onUnhandled);
  }
}
