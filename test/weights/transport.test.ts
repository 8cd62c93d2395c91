import { describe, expect, test } from "bun:test";
import { createServer } from "node:net";
import { join } from "node:path";
import { AppError } from "../../src/platform/errors.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import { Credentials } from "../../src/weights/credentials.ts";
import { contentRange, expiryOf } from "../../src/weights/probe.ts";
import type { Transport } from "../../src/weights/transport.ts";
import { FetchTransport, GuardedTransport, Road } from "../../src/weights/transport.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, WeightServer } from "../support/weight-server.ts";
import { job, quickInstaller, safetensors, sha256, sha256File } from "../support/weights.ts";

async function failureOf(run: Promise<unknown>): Promise<AppError> {
  try {
    await run;
  } catch (error) {
    if (error instanceof AppError) {
      return error;
    }
    throw error;
  }
  throw new Error("it did not fail");
}

function road(transport: Transport, guard = AddressGuard.open): Road {
  return new Road({
    direct: transport,
    guarded: transport,
    guard,
    credentials: new Credentials({ operator: { huggingFace: "hf_token" } }),
    headersTimeoutMs: 1000,
  });
}

/** A transport that answers from a table, for addresses that can't be had on loopback. */
function table(
  answers: Readonly<Record<string, { status: number; location?: string }>>,
): Transport & { asked: [string, string | undefined][] } {
  const asked: [string, string | undefined][] = [];
  return {
    asked,
    get({ url, headers }) {
      asked.push([url, headers["authorization"]]);
      const { status, location } = answers[url] ?? { status: 404 };
      return Promise.resolve({
        status,
        headers: new Headers(location === undefined ? {} : { location }),
        body: new Response("").body ?? new ReadableStream(),
        discard: () => Promise.resolve(),
      });
    },
  };
}

const operator = { trust: "operator" as const, signal: new AbortController().signal };

describe("the road", () => {
  test("D22: never goes from https down to http", async () => {
    const transport = table({
      "https://a.example/f": { status: 302, location: "http://a.example/f" },
    });
    const error = await failureOf(road(transport).get({ ...operator, url: "https://a.example/f" }));
    expect(error.message).toContain("plain http");
    expect(transport.asked).toHaveLength(1);
  });

  test("D23: gives the token to the Hub, not to its storage, and again when it comes back", async () => {
    const transport = table({
      "https://huggingface.co/a": { status: 302, location: "https://cdn.example/b" },
      "https://cdn.example/b": { status: 307, location: "https://huggingface.co/c" },
      "https://huggingface.co/c": { status: 200 },
    });
    await road(transport).get({ ...operator, url: "https://huggingface.co/a" });
    expect(transport.asked).toEqual([
      ["https://huggingface.co/a", "Bearer hf_token"],
      ["https://cdn.example/b", undefined],
      ["https://huggingface.co/c", "Bearer hf_token"],
    ]);
  });

  test("drops user and password that a redirect brings", async () => {
    const transport = table({
      "https://a.example/f": { status: 302, location: "https://u:p@b.example/g" },
      "https://b.example/g": { status: 200 },
    });
    const answer = await road(transport).get({ ...operator, url: "https://a.example/f" });
    expect(answer.url).toBe("https://b.example/g");
  });

  test("takes a request nowhere inside, also by a redirect", async () => {
    using server = await WeightServer.start();
    server.on("/go", (_request, reply) => reply.redirect(`http://127.0.0.2:${server.port}/in`));
    const guard = new AddressGuard(["127.0.0.1"]);
    const transport = new GuardedTransport(guard);
    const attempt = road(transport, guard).get({
      ...operator,
      trust: "request",
      url: server.url("/go"),
    });
    expect((await failureOf(attempt)).code).toBe("FETCH_REFUSED");
    expect(server.requests.map((request) => request.path)).toEqual(["/go"]);
    await transport.close();
  });
});

describe("proxies", () => {
  test("are used for what is not loopback, named ones excepted", async () => {
    const targets: string[] = [];
    const proxy = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.once("data", (data) => {
        targets.push(String(data).split(" ")[1] ?? "");
        socket.end("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
      });
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    const address = proxy.address();
    const url = `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`;
    const transport = new FetchTransport({ http: url, https: url, no: "direct.example" });
    const { signal } = new AbortController();
    const answer = await transport.get({
      url: "http://weights.example/a.bin",
      headers: {},
      signal,
    });
    await answer.discard();
    expect(targets).toEqual(["http://weights.example/a.bin"]);
    await transport
      .get({ url: "http://direct.example.invalid/a", headers: {}, signal })
      .catch(() => undefined);
    proxy.close();
  });

  test("D29: one that wants a sign-in says where to put it", async () => {
    using server = await WeightServer.start();
    server.on("/w", (_request, reply) => reply.send(407));
    using dir = tempDir();
    await using installer = quickInstaller(dir.path);
    const error = await failureOf(installer.install([job(dir.join("w.bin"), server.url("/w"))]));
    expect(error.code).toBe("NETWORK");
    expect(error.hint).toContain("HTTPS_PROXY");
  });
});

test("D29: a certificate that nobody vouches for is told as such and not asked again", async () => {
  if (Bun.which("openssl") === null) {
    return;
  }
  using dir = tempDir();
  const made = Bun.spawnSync([
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
    "-subj",
    "/CN=localhost",
    "-keyout",
    dir.join("key"),
    "-out",
    dir.join("cert"),
  ]);
  expect(made.exitCode).toBe(0);
  let asked = 0;
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    tls: { key: Bun.file(dir.join("key")), cert: Bun.file(dir.join("cert")) },
    fetch: () => {
      asked += 1;
      return new Response("x");
    },
  });
  await using installer = quickInstaller(dir.path);
  const error = await failureOf(
    installer.install([job(dir.join("w.bin"), `https://127.0.0.1:${server.port}/w.bin`)]),
  );
  expect(error.code).toBe("NETWORK");
  expect(error.message).toContain("certificate");
  expect(asked).toBe(0);
  await server.stop(true);
});

describe("what answers say", () => {
  test.each([
    ["bytes 0-99/1234", { start: 0, end: 99, sizeBytes: 1234 }],
    ["bytes 5-9/*", { start: 5, end: 9, sizeBytes: undefined }],
    ["bytes */0", { start: -1, end: -1, sizeBytes: 0 }],
    [
      "Bytes 4294967296-4294967299/4294967300",
      { start: 2 ** 32, end: 2 ** 32 + 3, sizeBytes: 2 ** 32 + 4 },
    ],
  ])("Content-Range %s", (text, expected) => {
    expect(contentRange(new Headers({ "content-range": text }))).toEqual(expected);
  });

  test.each(["", "bytes", "items 0-1/2", "bytes 1-2/x", "bytes a-b/3"])(
    "Content-Range %p is none",
    (text) => {
      expect(contentRange(new Headers({ "content-range": text }))).toBeUndefined();
    },
  );

  test("the end of a signature's life is read from the address", () => {
    const at = Date.UTC(2026, 0, 2, 3, 4, 5) + 3600_000;
    expect(expiryOf("https://s/x?X-Amz-Date=20260102T030405Z&X-Amz-Expires=3600")).toBe(at);
    expect(expiryOf("https://s/x?X-Goog-Date=20260102T030405Z&X-Goog-Expires=3600")).toBe(at);
    expect(expiryOf("https://s/x?Expires=1767326645")).toBe(1_767_326_645_000);
    expect(expiryOf("https://s/x")).toBeUndefined();
  });
});

test("a signature about to run out is renewed before it does", async () => {
  using server = await WeightServer.start();
  using storage = await WeightServer.start();
  using dir = tempDir();
  const body = safetensors(400_000);
  let signatures = 0;
  server.on("/go", (_request, reply) => {
    signatures += 1;
    const seconds = signatures === 1 ? 2 : 3600;
    const date = new Date().toISOString().replace(/[-:]|\.\d+/g, "");
    return reply.redirect(`${storage.url("/w")}?X-Amz-Date=${date}&X-Amz-Expires=${seconds}`);
  });
  storage.on("/w", file(body));
  await using installer = quickInstaller(dir.path, { tuning: { renewBeforeMs: 60_000 } });
  const destination = join(dir.path, "w.safetensors");
  await installer.install([job(destination, server.url("/go"))]);
  expect(sha256File(destination)).toBe(sha256(body));
  expect(signatures).toBe(2);
  expect(storage.fetches("/w").every(({ query }) => query.get("X-Amz-Expires") === "3600")).toBe(
    true,
  );
});
