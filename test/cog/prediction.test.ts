/** The state machine of a prediction, its events for streams, slots and metrics. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { StreamEvent } from "../../src/cog/event-log.ts";
import { EventLog, MAX_QUEUED_EVENTS, MAX_SUBSCRIBERS } from "../../src/cog/event-log.ts";
import { Metrics } from "../../src/cog/metrics.ts";
import type { Outcome } from "../../src/cog/prediction.ts";
import { Prediction } from "../../src/cog/prediction.ts";
import { Slots } from "../../src/cog/slots.ts";

function make(options: { historyCapacity?: number; isStreamed?: boolean } = {}): Prediction {
  return new Prediction({
    id: "p",
    input: { a: 1 },
    historyCapacity: options.historyCapacity ?? 1024,
    isStreamed: options.isStreamed ?? false,
  });
}

const OUTCOMES: readonly Outcome[] = [
  { status: "succeeded", output: ["x"] },
  { status: "failed", error: "no" },
  { status: "canceled" },
];

describe("a prediction", () => {
  test("never leaves a terminal state, whatever is called in whatever order", () => {
    const step = fc.constantFrom("begin", "log", "chunk", "metric", "cancel", "progress", 0, 1, 2);
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
        const prediction = make();
        let ended: string | undefined;
        let completed = 0;
        prediction.observe(({ name }) => {
          completed += name === "completed" ? 1 : 0;
        });
        for (const action of steps) {
          const outcome = typeof action === "number" ? OUTCOMES[action] : undefined;
          if (outcome !== undefined) {
            prediction.finish(outcome);
            ended ??= outcome.status;
          } else if (action === "begin") {
            prediction.begin();
          } else if (action === "log") {
            prediction.appendLog("line");
          } else if (action === "chunk") {
            prediction.addChunk("c");
          } else if (action === "metric") {
            prediction.recordMetric("m", 1);
          } else if (action === "progress") {
            prediction.progress({ at: 1 });
          } else {
            prediction.cancel();
          }
          if (ended !== undefined) {
            expect(prediction.status as string).toBe(ended);
          }
        }
        expect(completed).toBe(ended === undefined ? 0 : 1);
      }),
    );
  });

  test("changes nothing after its end: body, logs and time stay", async () => {
    const prediction = make();
    prediction.begin();
    prediction.appendLog("one");
    prediction.finish({ status: "succeeded", output: ["x"] });
    const before = prediction.snapshot();
    prediction.appendLog("two");
    prediction.addChunk("y");
    await Bun.sleep(2);
    expect(prediction.snapshot()).toEqual(before);
  });

  test("shows chunks so far as a list while it runs and after a failure", () => {
    const prediction = make();
    prediction.begin();
    expect(prediction.snapshot()).toEqual({ id: "p", status: "processing", logs: "", metrics: {} });
    prediction.addChunk("a");
    expect(prediction.snapshot()["output"]).toEqual(["a"]);
    prediction.finish({ status: "failed", error: "no" });
    expect(prediction.snapshot()).toMatchObject({ output: ["a"], error: "no", status: "failed" });
    expect(prediction.result()).toEqual({
      id: "p",
      status: "failed",
      error: "no",
      logs: "",
      metrics: { predict_time: expect.any(Number) },
    });
  });

  test("gives a succeeded one its logs and its output, null included", () => {
    const prediction = make();
    prediction.appendLog("no newline");
    prediction.appendLog("with\n", "stderr");
    prediction.finish({ status: "succeeded", output: null });
    expect(prediction.result()).toMatchObject({ output: null, logs: "no newline\nwith\n" });
  });

  test("that a stream created is cancelled when its last reader leaves, one by JSON is not", () => {
    const streamed = make({ isStreamed: true });
    const [one, other] = [streamed.subscribe(), streamed.subscribe()];
    one.close();
    expect(streamed.isCancelled).toBe(false);
    other.close();
    expect(streamed.isCancelled).toBe(true);
    const json = make();
    json.subscribe().close();
    expect(json.isCancelled).toBe(false);
  });
});

function event(n: number): StreamEvent {
  return { name: "log", data: { n } };
}
const LAST: StreamEvent = { name: "completed", data: {} };

async function drain(log: EventLog): Promise<unknown[]> {
  const subscription = log.subscribe();
  const seen: unknown[] = [];
  for (;;) {
    const next = await subscription.next(50);
    if (next === undefined || next === "nothing") {
      return seen;
    }
    const shown = { log: next.data["n"], error: next.data, completed: next.name };
    seen.push(next.name in shown ? shown[next.name as keyof typeof shown] : next.name);
  }
}

describe("the events of a prediction", () => {
  test("are replayed in order, then followed live", async () => {
    const log = new EventLog(10, () => undefined);
    log.add(event(1));
    log.add(event(2));
    const reading = drain(log);
    log.add(event(3));
    log.add(LAST);
    expect(await reading).toEqual([1, 2, 3, "completed"]);
  });

  test("that the ring dropped leave a late reader one error with their number", async () => {
    const log = new EventLog(2, () => undefined);
    for (let n = 0; n < 5; n += 1) {
      log.add(event(n));
    }
    expect(await drain(log)).toEqual([
      { error: "SSE stream replay truncated; events were dropped", skipped: 3 },
    ]);
  });

  test("without history count nothing as dropped", async () => {
    const log = new EventLog(0, () => undefined);
    log.add(event(1));
    const reading = drain(log);
    log.add(LAST);
    expect(await reading).toEqual(["completed"]);
  });

  test("wait for a slow reader up to a limit, then it is told and closed", async () => {
    let left = 0;
    const log = new EventLog(0, () => {
      left += 1;
    });
    const subscription = log.subscribe();
    for (let n = 0; n <= MAX_QUEUED_EVENTS; n += 1) {
      log.add(event(n));
    }
    expect(await subscription.next(50)).toEqual({
      name: "error",
      data: { error: "SSE stream lagged; events were dropped", skipped: MAX_QUEUED_EVENTS + 1 },
    });
    expect(await subscription.next(50)).toBeUndefined();
    expect(left).toBe(1);
  });

  test("have a limit of readers", () => {
    const log = new EventLog(0, () => undefined);
    for (let n = 0; n < MAX_SUBSCRIBERS; n += 1) {
      log.subscribe();
    }
    expect(() => log.subscribe()).toThrow("Too many stream subscribers");
  });

  test("wake a waiting reader when it is closed", async () => {
    const subscription = new EventLog(0, () => undefined).subscribe();
    const waiting = subscription.next(60_000);
    subscription.close();
    expect(await waiting).toBeUndefined();
  });
});

test("slots are lent while there are any; giving one back twice counts once", () => {
  const slots = new Slots(2);
  const one = slots.take();
  const two = slots.take();
  expect(slots.take()).toBeUndefined();
  one?.[Symbol.dispose]();
  one?.[Symbol.dispose]();
  expect(slots.free).toBe(1);
  two?.[Symbol.dispose]();
  expect(slots.free).toBe(2);
});

describe("metrics", () => {
  test("nest by dots, increment from nothing, append to lists and scalars, delete by null", () => {
    const metrics = new Metrics();
    metrics.record("timing.preprocess", 0.1, "replace");
    metrics.record("timing.total", 1, "increment");
    metrics.record("timing.total", 2, "increment");
    metrics.record("images", 1, "replace");
    metrics.record("images", 2, "append");
    metrics.record("gone", "x", "replace");
    metrics.record("gone", null, "replace");
    metrics.record("gone", 1, "replace");
    expect(metrics.toJson()).toEqual({
      timing: { preprocess: 0.1, total: 3 },
      images: [1, 2],
      gone: 1,
    });
  });

  test.each([
    ["_a", "must start with a letter"],
    ["a.1b", "must start with a letter"],
    ["a__b", "must not contain consecutive underscores"],
    ["a_", "must end with a letter or digit"],
    [".a", "must not start with a dot"],
    ["a..b", "empty segments"],
    ["a.", "empty segments"],
    ["a.b.c.d.e", "at most 4 dot-separated segments"],
    ["a".repeat(129), "128 characters"],
    ["predict_time", "reserved"],
    ["cog.x", "cog."],
    ["a.__proto__", "must start with a letter"],
  ])("refuse the name %s", (name, reason) => {
    expect(() => new Metrics().record(name, 1, "replace")).toThrow(reason);
  });

  test("keep their first type", () => {
    const metrics = new Metrics();
    metrics.record("a", 1, "replace");
    expect(() => metrics.record("a", "x", "replace")).toThrow("delete it first");
    expect(() => metrics.record("a.b", 1, "replace")).toThrow("holds a value already");
  });
});
