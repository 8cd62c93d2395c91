/**
 * Stories of more than one request: ours tells the same as Cog's own server did (cog-stories.json, written by
 * scripts/cog-reference.ts).
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Limiter } from "../../src/platform/limit.ts";
import { STORIES } from "../support/cog-stories.ts";
import { playOnOurs } from "../support/cog-story-run.ts";

const recorded: Record<string, unknown> = JSON.parse(
  readFileSync(join(import.meta.dir, "cog-stories.json"), "utf8"),
);
const PARALLEL = 8;

describe("stories", () => {
  const ours = new Map<string, unknown>();

  beforeAll(async () => {
    const limiter = new Limiter(PARALLEL);
    await Promise.all(
      STORIES.map((story) =>
        limiter.run(async () => ours.set(story.name, await playOnOurs(story))),
      ),
    );
  }, 60_000);

  test("have names of their own, and each has a recorded ending", () => {
    expect(Object.keys(recorded).sort()).toEqual(STORIES.map(({ name }) => name).sort());
  });

  test.each(STORIES.map(({ name }) => name))("%s", (name) => {
    expect(ours.get(name)).toEqual(recorded[name]);
  });
});
