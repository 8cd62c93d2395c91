/** A few hundred requests as nobody would send them; ten thousand are in fuzz.long.test.ts. */
import { expect, test } from "bun:test";
import { fuzz } from "../support/cog-fuzz-run.ts";

test("any body, header, path, id and method leaves the server READY, no 5xx, no slot lost", async () => {
  const verdict = await fuzz(600, true);
  expect(verdict).toMatchObject({ serverErrors: [], unhandled: [], health: "READY", freeSlots: 4 });
  expect(verdict.answered).toBeGreaterThan(500);
}, 60_000);
