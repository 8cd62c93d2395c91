import { describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { OutputStore } from "../../src/media/output-store.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { tempDir } from "../support/temp-dir.ts";

const KEYS = {
  AWS_ACCESS_KEY_ID: "AKIATESTTESTTEST",
  AWS_SECRET_ACCESS_KEY: "secret-key-of-the-test",
};

interface Received {
  readonly path: string;
  readonly type: string | null;
  readonly body: string;
}

function bucket(answers: readonly number[] = []) {
  const received: Received[] = [];
  let count = 0;
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      const { pathname, searchParams } = new URL(request.url);
      const status = answers[count] ?? 200;
      count += 1;
      received.push({
        path: pathname,
        type: request.headers.get("content-type"),
        body: await request.text(),
      });
      expect(searchParams.get("X-Amz-Signature")).toMatch(/^[0-9a-f]{64}$/);
      return new Response(status === 200 ? null : "<Error><Code>SlowDown</Code></Error>", {
        status,
      });
    },
  });
  const http = new HttpClient();
  return {
    received,
    get count() {
      return count;
    },
    store: (url = "s3://results/daily/") =>
      new OutputStore({
        url,
        env: { ...KEYS, AWS_ENDPOINT_URL: `http://127.0.0.1:${server.port}` },
        http,
        retryDelayMs: 1,
      }),
    async [Symbol.asyncDispose]() {
      await http.close();
      await server.stop(true);
    },
  };
}

describe("the output store", () => {
  test("takes files in order under names that don't meet, and answers signed addresses", async () => {
    using dir = tempDir({ "a/x.png": "\x89PNG\r\n\x1a\n", "b/x.png": "two", "c d.mp4": "three" });
    await using at = bucket();
    const urls = await at
      .store()
      .put([dir.join("a/x.png"), dir.join("b/x.png"), dir.join("c d.mp4")], "run-1");
    expect(urls.map((url) => new URL(url).pathname)).toEqual([
      "/results/daily/run-1/000-x.png",
      "/results/daily/run-1/001-x.png",
      "/results/daily/run-1/002-c_d.mp4",
    ]);
    expect(urls.every((url) => url.includes("X-Amz-Expires=86400"))).toBe(true);
    expect(urls.join()).not.toContain(KEYS.AWS_SECRET_ACCESS_KEY);
    expect(at.received.toSorted((one, other) => one.path.localeCompare(other.path))).toEqual([
      {
        path: "/results/daily/run-1/000-x.png",
        type: "application/octet-stream",
        body: "\x89PNG\r\n\x1a\n",
      },
      { path: "/results/daily/run-1/001-x.png", type: "text/plain", body: "two" },
      { path: "/results/daily/run-1/002-c_d.mp4", type: "text/plain", body: "three" },
    ]);
  });

  test("tries again when the bucket is busy, and not when it refuses", async () => {
    using dir = tempDir({ "a.txt": "a" });
    await using busy = bucket([503, 500]);
    expect(await busy.store().put([dir.join("a.txt")], "r")).toHaveLength(1);
    expect(busy.count).toBe(3);
    await using closed = bucket([403]);
    await expect(closed.store().put([dir.join("a.txt")], "r")).rejects.toMatchObject({
      code: "AUTH_FORBIDDEN",
      message: expect.stringContaining("bucket results refused daily/r/000-a.txt: 403 SlowDown"),
    });
    expect(closed.count).toBe(1);
  });

  test("is called off by its signal", async () => {
    using dir = tempDir({ "a.txt": "a" });
    await using at = bucket();
    const job = at.store().put([dir.join("a.txt")], "r", AbortSignal.abort());
    await expect(job).rejects.toMatchObject({ code: "CANCELED" });
    // The outputs of a request that was called off go at once: nothing may still be about to read them.
    rmSync(dir.path, { recursive: true });
    await Bun.sleep(30);
  });

  test.each(["https://bucket/x", "s3://", "s3://UPPER/x"])("refuses %s as its address", (url) => {
    const make = () => new OutputStore({ url, env: KEYS, http: new HttpClient() });
    expect(make).toThrow("OUTPUT_STORE_URL");
  });

  test("says when credentials are missing", () => {
    const make = () => new OutputStore({ url: "s3://bucket", env: {}, http: new HttpClient() });
    expect(make).toThrow("no credentials");
  });
});
