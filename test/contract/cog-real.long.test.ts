/**
 * The same suites against Cog's own server from PyPI: what we hold our server to must be what the real one does. It is
 * skipped, with the reason, where the real one can't be had.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import type { ReferenceOptions } from "../../scripts/cog-reference.ts";
import {
  ANSWERS,
  playOnReference,
  prepareReference,
  referenceHome,
  STORY_ANSWERS,
  startReference,
} from "../../scripts/cog-reference.ts";
import type { Child } from "../support/cog-child.ts";
import { factsOf } from "../support/cog-facts.ts";
import { oddAnswers } from "../support/cog-odd.ts";
import type { Run, Scenario } from "../support/cog-scenario.ts";
import { needsOf, play, receiverFor, scenarios } from "../support/cog-scenario.ts";
import { STORIES } from "../support/cog-stories.ts";
import { describeCases } from "../support/shared.ts";

async function whyNot(): Promise<string | undefined> {
  try {
    await prepareReference();
    return undefined;
  } catch (error) {
    return String(error).split("\n")[0] ?? "unknown";
  }
}

const missing = await whyNot();

/** After 80 ms a slot was back every time (cog_protocol.md §6). */
const PAUSE_MS = 20;

/** Scenarios that change or end their server, or need an address in its environment. */
const ALONE = /^(stop\.|setup|starting|upload\.)/;

if (missing === undefined) {
  describe("Cog's own server", () => {
    const shared = new Map<string, Promise<Child>>();

    afterAll(async () => {
      for (const child of shared.values()) {
        await (await child)[Symbol.asyncDispose]();
      }
    });

    function sharedServer(options: ReferenceOptions): Promise<Child> {
      const key = JSON.stringify(options);
      const child = shared.get(key) ?? startReference(options);
      shared.set(key, child);
      return child;
    }

    function optionsFor(scenario: Scenario, origin: string): ReferenceOptions {
      const needs = needsOf(scenario);
      const flags = needs.uploads ? ["--upload-url", `${origin}/up/77x/`] : [];
      const isPatient = scenario.name === "stop.await-explicit";
      const predictors = { 1: "Predictor", 2: "AsyncPredictor" } as const;
      return {
        flags: isPatient ? ["--await-explicit-shutdown", "1"] : flags,
        predictor: needs.streaming ? "StreamingPredictor" : predictors[needs.slots === 2 ? 2 : 1],
        wait: needs.setup === undefined || needs.setup === "fails",
        env: {
          COG_MAX_CONCURRENCY: String(needs.slots),
          ...(needs.setup === undefined ? {} : { TWIN_SETUP_URL: `${origin}/setup` }),
          ...(needs.setup === "times-out" ? { COG_SETUP_TIMEOUT: "1" } : {}),
          ...(needs.webhookToken === undefined ? {} : { WEBHOOK_AUTH_TOKEN: needs.webhookToken }),
        },
      };
    }

    async function runOn(scenario: Scenario): Promise<Run> {
      using receiver = receiverFor(scenario);
      const options = optionsFor(scenario, receiver.origin);
      if (!ALONE.test(scenario.name)) {
        const { port } = await sharedServer(options);
        return await play(scenario, { port, pauseMs: PAUSE_MS }, receiver);
      }
      await using child = await startReference(options);
      const isEnding = /^(stop\.|setup-failed\.shutdown)/.test(scenario.name);
      return await play(scenario, isEnding ? child : { port: child.port }, receiver);
    }

    test("is the real one, not the shadow package of this checkout", async () => {
      expect(await referenceHome()).toMatch(/\.tools\/cog-[\d.]+\/lib\/.*\/coglet\//);
    });

    test("answers odd requests as recorded", async () => {
      const recorded: unknown = JSON.parse(readFileSync(ANSWERS, "utf8"));
      await using server = await startReference();
      expect(await oddAnswers(server.port)).toEqual(recorded as Record<string, unknown>);
    }, 120_000);

    const recorded: Record<string, unknown> = JSON.parse(readFileSync(STORY_ANSWERS, "utf8"));
    test.each(STORIES.map((story) => [story.name, story] as const))(
      "story: %s",
      async (name, story) => {
        expect(await playOnReference(story)).toEqual(recorded[name]);
      },
      30_000,
    );

    describeCases("cog_transcripts", () => {
      test.each(scenarios().map((scenario) => [scenario.name, scenario] as const))(
        "%s",
        async (_name, scenario) => {
          expect(factsOf(await runOn(scenario), scenario)).toEqual(scenario.normalised);
        },
        30_000,
      );
    });
  });
} else {
  test.skip(`Cog's own server: skipped, it can't be installed here (${missing})`, () => undefined);
}
