/**
 * Whatever goes wrong, in whatever order: every run settles exactly once, with the right picture or an error that says
 * what happened, nothing is left in the queue, and the next run is untouched.
 */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { prefixOutputs } from "../../src/comfy/prefix.ts";
import { runWorkflow } from "../../src/comfy/run.ts";
import { startEngine } from "../../src/comfy/start.ts";
import type { SupervisedEngine } from "../../src/comfy/supervisor.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { AppError } from "../../src/platform/errors.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { pictureGraph, slowGraph } from "../support/graphs.ts";
import { tempDir } from "../support/temp-dir.ts";

const ROUNDS = 80;
/** The same faults in every run of this file; another number, other faults. */
const SEED = 20_261_124;

/** Numbers from 0 up to 1 that repeat (mulberry32). */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

type Fault = "none" | "kill" | "freeze" | "cancel" | "interrupt" | "clear";
const FAULTS: readonly Fault[] = ["none", "kill", "freeze", "cancel", "interrupt", "clear"];

/** What a run may answer when this happens to it; a run that was quicker than its fault succeeds. */
const ALLOWED: Readonly<Record<Fault, readonly string[]>> = {
  none: [],
  kill: ["ENGINE_DIED"],
  freeze: ["ENGINE_TIMEOUT", "ENGINE_DIED"],
  cancel: ["CANCELED"],
  interrupt: [],
  clear: ["ENGINE_PROTOCOL"],
};

function isSupervised(engine: object): engine is SupervisedEngine {
  return "pid" in engine;
}

describe("faults at random", () => {
  test(`${ROUNDS} rounds each settle once, and leave the next one alone`, async () => {
    using dir = tempDir();
    await using engine = await startEngine({
      config: parseEnv({
        PATH: process.env["PATH"],
        COMFYUI_ENGINE: "embedded",
        COMFYUI_MODELS_DIR: dir.join("models"),
        WORK_DIR: dir.join("work"),
      }),
      log: silentLogger,
      restart: { firstDelayMs: 1, maxDelayMs: 5 },
    });
    if (!isSupervised(engine)) {
      throw new Error("the embedded engine is a process");
    }
    const next = random(SEED);
    const counts: Record<string, number> = {};
    for (let round = 0; round < ROUNDS; round += 1) {
      const fault = FAULTS[Math.floor(next() * FAULTS.length)] ?? "none";
      const moment = Math.floor(next() * 6);
      const cancel = new AbortController();
      const strike = async (): Promise<void> => {
        if (fault === "cancel") {
          cancel.abort();
        } else if (fault === "kill" || fault === "freeze") {
          process.kill(engine.pid, fault === "kill" ? "SIGKILL" : "SIGSTOP");
        } else if (fault === "interrupt") {
          await fetch(`${engine.url}/interrupt`, { method: "POST", body: "{}" });
        } else if (fault === "clear") {
          await fetch(`${engine.url}/queue`, { method: "POST", body: '{"clear":true}' });
        }
      };
      let seen = 0;
      let struck: Promise<void> | undefined;
      const graph = prefixOutputs(slowGraph(6, 96, round), crypto.randomUUID());
      const outcome = await runWorkflow(engine, graph, {
        log: silentLogger,
        signal: cancel.signal,
        deadlines: { stallMs: 400 },
        times: { pollMs: 50, lookTimeoutMs: 200 },
        eventTimes: { reconnectDelayMs: 5 },
        cancelTimes: { pollMs: 5, confirmTimeoutMs: 300 },
        onProgress: () => {
          if (seen === moment) {
            struck = strike();
          }
          seen += 1;
        },
      }).catch((error: unknown) => error);
      await struck?.catch(() => undefined);
      if (outcome instanceof Error) {
        expect(outcome).toBeInstanceOf(AppError);
        const code = outcome instanceof AppError ? outcome.code : "?";
        expect([fault, ALLOWED[fault].includes(code), code]).toEqual([fault, true, code]);
        counts[`${fault} ${code}`] = (counts[`${fault} ${code}`] ?? 0) + 1;
      } else {
        expect(outcome).toMatchObject({ files: [{ type: "output" }] });
        counts[`${fault} done`] = (counts[`${fault} done`] ?? 0) + 1;
      }
      const after = await runWorkflow(
        engine,
        prefixOutputs(pictureGraph({ color: 1000 + round }), crypto.randomUUID()),
        {
          log: silentLogger,
          times: { pollMs: 50, lookTimeoutMs: 200 },
          cancelTimes: { pollMs: 5, confirmTimeoutMs: 300 },
          // A freeze that came when its run was over hits this one.
          deadlines: fault === "freeze" ? { stallMs: 400 } : {},
        },
      ).catch((error: unknown) => error);
      if (fault === "freeze" || fault === "kill") {
        await engine.ready();
        const isFine = !(after instanceof Error);
        expect(isFine || (after instanceof AppError && ALLOWED[fault].includes(after.code))).toBe(
          true,
        );
      } else {
        const [file] = Object(after).files ?? [];
        expect(file).toBeDefined();
        expect(existsSync(join(engine.dirs.output, file.subfolder, file.filename))).toBe(true);
      }
      const queue = await engine.client.queue();
      expect([...queue.queue_running, ...queue.queue_pending]).toEqual([]);
      expect(engine.unhealthy).toBeUndefined();
    }
    // Every fault must have hit some run, or this test shows nothing.
    expect(Object.keys(counts)).toEqual(
      expect.arrayContaining(["kill ENGINE_DIED", "freeze ENGINE_TIMEOUT", "cancel CANCELED"]),
    );
  }, 300_000);
});
