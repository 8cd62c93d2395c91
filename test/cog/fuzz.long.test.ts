/** Ten thousand requests as nobody would send them, to a server that streams and to one that does not. */
import { expect, test } from "bun:test";
import { fuzz } from "../support/cog-fuzz-run.ts";

test.each([true, false])(
  "10 000 requests leave the server READY, no 5xx, no slot lost (streaming: %p)",
  async (streaming) => {
    const verdict = await fuzz(5_000, streaming);
    expect(verdict).toMatchObject({
      serverErrors: [],
      unhandled: [],
      health: "READY",
      freeSlots: 4,
    });
    expect(verdict.answered).toBeGreaterThan(4_500);
  },
  240_000,
);
