import { describe, expect, test } from "bun:test";
import { Limiter, SingleFlight } from "../../src/platform/limit.ts";
import { retryAfterMs, retryDelay, within, withRetries } from "../../src/platform/retry.ts";
import { formatSize, parseSize } from "../../src/platform/size.ts";

describe("Limiter", () => {
  test("never runs more than its limit, and frees the place of a job that throws", async () => {
    const limiter = new Limiter(2);
    let running = 0;
    let most = 0;
    const job = async (index: number): Promise<number> => {
      running += 1;
      most = Math.max(most, running);
      await Promise.resolve();
      running -= 1;
      if (index % 3 === 0) {
        throw new Error("fails");
      }
      return index;
    };
    const done = await Promise.allSettled(
      Array.from({ length: 20 }, (_, index) => limiter.run(() => job(index))),
    );
    expect(most).toBe(2);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(13);
  });
});

describe("SingleFlight", () => {
  test("joins callers of one key and starts anew once it has settled, also after a failure", async () => {
    const flights = new SingleFlight<number>();
    let runs = 0;
    const job = (): Promise<number> => {
      runs += 1;
      return runs === 1 ? Promise.reject(new Error("first")) : Promise.resolve(runs);
    };
    const both = await Promise.allSettled([flights.run("k", job), flights.run("k", job)]);
    expect(both.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(await flights.run("k", job)).toBe(2);
  });
});

describe("retries", () => {
  test("grow exponentially up to the ceiling, half of each delay random", () => {
    const policy = { attempts: 9, firstDelayMs: 100, maxDelayMs: 1000 };
    expect([1, 2, 3, 4, 5, 6].map((attempt) => retryDelay(policy, attempt, () => 1))).toEqual([
      100, 200, 400, 800, 1000, 1000,
    ]);
    expect(retryDelay(policy, 1, () => 0)).toBe(50);
  });

  test.each([
    ["3", 3000],
    ["0", 0],
    ["-5", undefined],
    ["1e9", 120_000],
    ["Tue, 24 Nov 2026 00:00:10 GMT", 10_000],
    ["soon", undefined],
    [null, undefined],
  ])("read Retry-After %p as %p ms", (header, expected) => {
    expect(retryAfterMs(header, Date.UTC(2026, 10, 24))).toBe(expected);
  });

  test("stop at the last attempt with its error, and wait as long as the server asks", async () => {
    const waits: number[] = [];
    const failing = withRetries((attempt) => Promise.reject(new Error(`try ${attempt}`)), {
      policy: { attempts: 3, firstDelayMs: 1, maxDelayMs: 1 },
      shouldRetry: () => ({ delayMs: 7 }),
      sleep: (ms) => {
        waits.push(ms);
        return Promise.resolve();
      },
    });
    await expect(failing).rejects.toThrow("try 3");
    expect(waits).toEqual([7, 7]);
  });
});

describe("sizes", () => {
  test.each([
    ["500GB", 500e9],
    ["1.5TiB", 1.5 * 2 ** 40],
    ["10", 10],
    ["3 kB", 3000],
    ["lots", undefined],
    ["-1", undefined],
  ])("parse %s", (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  test.each([
    [0, "0 B"],
    [4322, "4.3 kB"],
    [4_599_787_494, "4.6 GB"],
    [334_641_190, "335 MB"],
  ])("print %d as %s", (bytes, text) => {
    expect(formatSize(bytes)).toBe(text);
  });
});

describe("within", () => {
  test("says whether the work was in time, and passes its failure on", async () => {
    expect(await within(Promise.resolve(), 1000)).toBe(true);
    expect(await within(new Promise(() => undefined), 1)).toBe(false);
    await expect(within(Promise.reject(new Error("broken")), 1000)).rejects.toThrow("broken");
  });
});
