import { afterAll, describe, expect, test } from "bun:test";
import { createServer } from "node:net";
import { AppError } from "../../src/platform/errors.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import { HttpClient, proxyFor } from "../../src/platform/http.ts";

const client = new HttpClient();
afterAll(() => client.close());

function serve(handler: (request: Request) => Response | Promise<Response>) {
  return Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: handler });
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return "ok";
  } catch (error) {
    return error instanceof AppError ? error.code : String(error);
  }
}

describe("HttpClient", () => {
  test("hands back any status with its headers and body", async () => {
    await using server = serve(
      () => new Response("gone", { status: 410, headers: { "x-a": "b" } }),
    );
    const response = await client.request(`${server.url}x`);
    expect([response.status, response.headers.get("x-a"), await response.text(100)]).toEqual([
      410,
      "b",
      "gone",
    ]);
  });

  test("keeps credentials on the same origin and drops them on another", async () => {
    const seen: Record<string, string | null> = {};
    await using cdn = serve((request) => {
      seen["cdn"] = request.headers.get("authorization");
      seen["cdn-key"] = request.headers.get("x-api-key");
      return new Response("bytes");
    });
    await using hub = serve((request) => {
      const { pathname } = new URL(request.url);
      seen[pathname] = request.headers.get("authorization");
      return Response.redirect(pathname === "/a" ? "/b" : `${cdn.url}c`, 302);
    });
    const response = await client.request(`${hub.url}a`, {
      headers: { Authorization: "Bearer secret", "X-Api-Key": "k" },
      secretHeaders: ["x-api-key"],
    });
    await response.discard();
    expect(seen).toEqual({
      "/a": "Bearer secret",
      "/b": "Bearer secret",
      cdn: null,
      "cdn-key": null,
    });
  });

  test("turns a redirected POST into a GET on 302 and repeats it on 307", async () => {
    const seen: string[] = [];
    await using server = serve(async (request) => {
      const { pathname } = new URL(request.url);
      seen.push(`${request.method} ${pathname} ${await request.text()}`);
      if (pathname === "/end") {
        return new Response();
      }
      return new Response(null, {
        status: Number(pathname.slice(1)),
        headers: { location: "/end" },
      });
    });
    for (const status of [302, 307]) {
      await client.request(`${server.url}${status}`, { method: "POST", body: "x" });
    }
    expect(seen).toEqual(["POST /302 x", "GET /end ", "POST /307 x", "POST /end x"]);
  });

  test("checks every hop of a redirect", async () => {
    await using inside = serve(() => new Response("secret"));
    await using outside = serve(() => Response.redirect(inside.url.href));
    const guarded = new HttpClient({ guard: new AddressGuard(["localhost"]) });
    const url = `http://localhost:${outside.port}/`;
    expect(await codeOf(guarded.request(url))).toBe("FETCH_REFUSED");
    await guarded.close();
  });

  test("gives up on a loop of redirects", async () => {
    await using server = serve((request) => Response.redirect(request.url));
    expect(await codeOf(client.request(server.url.href))).toBe("NETWORK");
  });

  test("reports a peer that accepts and then says nothing as stalled", async () => {
    const silent = createServer(() => undefined);
    await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
    const address = silent.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    expect(
      await codeOf(client.request(`http://127.0.0.1:${port}/`, { headersTimeoutMs: 50 })),
    ).toBe("STALLED");
    silent.close();
  });

  test("reports a body that stops as stalled", async () => {
    await using server = serve(
      () => new Response(new ReadableStream({ start: (controller) => controller.enqueue("abc") })),
    );
    const response = await client.request(server.url.href, { bodyTimeoutMs: 50 });
    expect(await codeOf(response.bytes(100))).toBe("STALLED");
  });

  test("stops reading at the limit", async () => {
    await using server = serve(() => new Response("x".repeat(5000)));
    const response = await client.request(server.url.href);
    expect(await codeOf(response.bytes(1000))).toBe("TOO_LARGE");
  });

  test("ends at once when the signal aborts", async () => {
    await using server = serve(() => new Promise<Response>(() => undefined));
    const controller = new AbortController();
    const pending = codeOf(client.request(server.url.href, { signal: controller.signal }));
    controller.abort();
    expect(await pending).toBe("CANCELED");
  });

  test("says that a refused connection can't be reached, without the query's secrets", async () => {
    const closed = serve(() => new Response());
    const url = `${closed.url}x?token=abcdefgh`;
    closed.stop(true);
    const error = await client.request(url).catch((caught) => caught);
    expect(error.code).toBe("NETWORK");
    expect(error.message).not.toContain("abcdefgh");
  });

  test("connects to the addresses that the guard checked", async () => {
    await using server = serve(() => new Response("there"));
    const guarded = new HttpClient({ guard: new AddressGuard(["localhost"]) });
    const response = await guarded.request(`http://localhost:${server.port}/`);
    expect(await response.text(10)).toBe("there");
    await guarded.close();
  });
});

describe("proxyFor", () => {
  const proxy = { http: "http://p:1", https: "http://p:2", no: "internal.example,.corp, 10.0.0.1" };
  test.each([
    ["https://huggingface.co/x", "http://p:2"],
    ["http://huggingface.co/x", "http://p:1"],
    ["https://internal.example/x", undefined],
    ["https://a.internal.example/x", undefined],
    ["https://a.corp/x", undefined],
    ["http://127.0.0.1:9/x", undefined],
    ["http://10.0.0.1/x", undefined],
  ])("takes %s through %s", (url, expected) => {
    expect(proxyFor(new URL(url), proxy)).toBe(expected);
  });
});
