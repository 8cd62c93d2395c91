import { afterAll, describe, expect, test } from "bun:test";
import { readWorkflowSource } from "../../src/media/workflow-source.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { rejection } from "../support/app.ts";
import { tempDir } from "../support/temp-dir.ts";

const http = new HttpClient();
afterAll(() => http.close());

function text(given: string | Uint8Array): string {
  return typeof given === "string" ? given : new TextDecoder().decode(given);
}

describe("readWorkflowSource", () => {
  const client = { http, allowPaths: false };

  test("hands text on as it is, and decodes data URLs in both encodings", async () => {
    expect(await readWorkflowSource(' {"a": 1}', client)).toBe(' {"a": 1}');
    expect(
      text(await readWorkflowSource("data:application/json;base64,eyJhIjoxfQ==", client)),
    ).toBe('{"a":1}');
    expect(text(await readWorkflowSource("data:application/json,%7B%22a%22%3A1%7D", client))).toBe(
      '{"a":1}',
    );
  });

  test("reads a path only where the operator gives it", async () => {
    using dir = tempDir({ "w.json": "{}" });
    expect(await readWorkflowSource(dir.join("w.json"), client)).toBe(dir.join("w.json"));
    expect(text(await readWorkflowSource(dir.join("w.json"), { http, allowPaths: true }))).toBe(
      "{}",
    );
    const missing = await rejection(
      readWorkflowSource(dir.join("x.json"), { http, allowPaths: true }),
    );
    expect(missing).toMatchObject({
      code: "WORKFLOW_UNREADABLE",
      message: expect.stringContaining("is not there"),
    });
    const folder = await rejection(readWorkflowSource(dir.path, { http, allowPaths: true }));
    expect(folder.message).toContain("is a folder");
  });

  test("follows an address, and says when it answers with an error, too much, or nothing in time", async () => {
    await using server = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: (request) => {
        const { pathname } = new URL(request.url);
        if (pathname === "/slow") {
          return new Promise<Response>(() => undefined);
        }
        return pathname === "/large"
          ? new Response("x".repeat(2000))
          : new Response(pathname === "/ok" ? "{}" : "", {
              status: pathname === "/ok" ? 200 : 403,
            });
      },
    });
    const at = (path: string) =>
      readWorkflowSource(`${server.url}${path}`, { ...client, timeoutMs: 100, maxBytes: 1000 });
    expect(text(await at("ok"))).toBe("{}");
    const [refused, large, slow] = await Promise.all(
      ["denied", "large", "slow"].map((path) => rejection(at(path))),
    );
    expect(refused).toMatchObject({
      code: "FETCH_FAILED",
      message: expect.stringContaining("answers 403"),
    });
    expect(large).toMatchObject({
      code: "FETCH_FAILED",
      message: expect.stringContaining("more than 1.0 kB"),
    });
    expect(slow).toMatchObject({
      code: "FETCH_FAILED",
      message: expect.stringContaining("did not answer in time"),
    });
  });

  test("checks a client's address", async () => {
    const guarded = new HttpClient({ guard: new AddressGuard([]) });
    const refused = await rejection(
      readWorkflowSource("http://127.0.0.1:1/w.json", { http: guarded, allowPaths: false }),
    );
    expect(refused.code).toBe("FETCH_REFUSED");
    await guarded.close();
  });

  test("ends when it is called off", async () => {
    await using server = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: () => new Promise<Response>(() => undefined),
    });
    const ending = new AbortController();
    const pending = rejection(
      readWorkflowSource(server.url.href, { ...client, signal: ending.signal }),
    );
    ending.abort();
    expect((await pending).code).toBe("CANCELED");
  });
});
