/**
 * Requests with something odd about them: ours answers what Cog's own server answered (cog-answers.json, written by
 * scripts/cog-reference.ts), the text of every error included.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { oddAnswers } from "../support/cog-odd.ts";
import { oddRequests } from "../support/cog-requests.ts";
import type { TestServer } from "../support/cog-server.ts";
import { startTwin } from "../support/cog-server.ts";

const recorded: Record<string, unknown> = JSON.parse(
  readFileSync(join(import.meta.dir, "cog-answers.json"), "utf8"),
);
const names = oddRequests().map(({ name }) => name);

describe("odd requests", () => {
  let twin: TestServer;
  let ours: Record<string, unknown>;

  beforeAll(async () => {
    twin = await startTwin();
    ours = await oddAnswers(twin.server.port);
  }, 30_000);

  afterAll(() => twin[Symbol.asyncDispose]());

  test("have names of their own, and each has a recorded answer", () => {
    expect(new Set(names).size).toBe(names.length);
    expect(Object.keys(recorded).sort()).toEqual([...names].sort());
  });

  test.each(names)("%s", (name) => {
    expect(ours[name]).toEqual(recorded[name]);
  });
});
