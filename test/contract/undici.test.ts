/**
 * Under Bun `import … from "undici"` is a stub that ignores timeouts and dispatchers (oven-sh/bun#36098). We import
 * `undici/index.js`; this suite fails on the day that stops being the real package.
 */
import { expect, test } from "bun:test";
import { Agent, request } from "undici/index.js";
import { HttpClient } from "../../src/platform/http.ts";

test("undici/index.js is the installed package: its agent dispatches and its timeouts fire", async () => {
  await using server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: () => new Promise<Response>(() => undefined),
  });
  expect(typeof Agent.prototype.dispatch).toBe("function");
  const code = await request(server.url.href, { headersTimeout: 50 }).catch((error) => error.code);
  expect(code).toBe("UND_ERR_HEADERS_TIMEOUT");
});

test("a custom look-up decides where a connection goes", async () => {
  await using server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: () => new Response("pinned"),
  });
  const agent = new Agent({
    connect: {
      lookup: (_host, _options, done) => done(null, [{ address: "127.0.0.1", family: 4 }]),
    },
  });
  const { body } = await request(`http://no-such-host.invalid:${server.port}/`, {
    dispatcher: agent,
  });
  expect(await body.text()).toBe("pinned");
  await agent.close();
});

test("our client is built on it: a silent server is told by its timeout", async () => {
  await using server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: () => new Promise<Response>(() => undefined),
  });
  const client = new HttpClient();
  const code = await client
    .request(server.url.href, { headersTimeoutMs: 50 })
    .catch((error) => error.code);
  await client.close();
  expect(code).toBe("STALLED");
});
