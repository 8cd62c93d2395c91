/** The server as a whole: what only shows when service, routes and process work together. */
import { describe, expect, test } from "bun:test";
import { connect } from "node:net";
import { Hono } from "hono";
import { z } from "zod";
import type { AppEnv } from "../../src/cog/app.ts";
import { parseServerFlags } from "../../src/cog/flags.ts";
import { secretInput } from "../../src/cog/inputs.ts";
import type { CogModel, PredictionContext } from "../../src/cog/predictor.ts";
import { serveCog } from "../../src/cog/serve.ts";
import type { Service } from "../../src/cog/service.ts";
import { cogSettings } from "../../src/cog/settings.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { createLogger, silentLogger } from "../../src/platform/log.ts";
import { startChild } from "../support/cog-child.ts";
import { Receiver } from "../support/cog-receiver.ts";
import { GRAPH } from "../support/cog-requests.ts";
import { healthStatus } from "../support/cog-scenario.ts";
import type { TestServerOptions } from "../support/cog-server.ts";
import { startTwin } from "../support/cog-server.ts";
import { Twin } from "../support/cog-twin.ts";
import { tempDir } from "../support/temp-dir.ts";

const INPUT = { workflow_json: GRAPH, output_format: "png" };

/** What the assertions read out of bodies; whole bodies are compared as they are. */
const Body = z.looseObject({
  status: z.string().optional(),
  error: z.string().optional(),
  setup: z.looseObject({ logs: z.string().optional() }).optional(),
  detail: z.array(z.looseObject({ msg: z.string() })).optional(),
});

async function jsonOf(response: Response): Promise<z.output<typeof Body>> {
  return Body.parse(await response.json());
}

function post(url: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(url, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json", ...headers },
  });
}

/** A twin whose predictions wait until told, or until they are cancelled. */
async function startHeld(options: TestServerOptions = {}) {
  const started = Promise.withResolvers<PredictionContext>();
  const released = Promise.withResolvers<void>();
  const twin = await startTwin({
    ...options,
    during: async (context) => {
      started.resolve(context);
      const left = new Promise<void>((resolve) =>
        context.signal.addEventListener("abort", () => resolve()),
      );
      await Promise.race([released.promise, left]);
      context.signal.throwIfAborted();
    },
  });
  return {
    ...twin,
    started: started.promise,
    release: released.resolve,
    [Symbol.asyncDispose]: twin[Symbol.asyncDispose],
  };
}

describe("setup", () => {
  test("shows its log while it runs, and READY, schema and result in one moment", async () => {
    const gate = Promise.withResolvers<void>();
    await using twin = await startTwin({
      wait: false,
      setup: async ({ log }) => {
        log("Fetching the weights");
        await gate.promise;
      },
    });
    const before = await jsonOf(await fetch(`${twin.url}/health-check`));
    expect(before).toMatchObject({
      status: "STARTING",
      setup: {
        status: "starting",
        logs: "[coglet::setup] Loading the model\n[coglet::setup] Fetching the weights",
      },
    });
    expect((await fetch(`${twin.url}/openapi.json`)).status).toBe(503);
    gate.resolve();
    await twin.server.service.settled();
    const after = await jsonOf(await fetch(`${twin.url}/health-check`));
    expect(after).toMatchObject({
      status: "READY",
      setup: { status: "succeeded", completed_at: expect.stringMatching(/\+00:00$/) },
    });
    expect((await fetch(`${twin.url}/openapi.json`)).status).toBe(200);
  });

  test("that fails keeps the process up to say why, log included", async () => {
    await using twin = await startTwin({
      setup: ({ log }) => {
        log("Fetching the weights");
        return Promise.reject(new Error("the disk is full"));
      },
    });
    const health = await jsonOf(await fetch(`${twin.url}/health-check`));
    expect(health).toMatchObject({ status: "SETUP_FAILED", setup: { status: "failed" } });
    expect(health.setup?.logs).toContain("Fetching the weights");
    expect(health.setup?.logs).toEndWith("the disk is full");
  });
});

describe("health", () => {
  test.each([
    [() => Promise.resolve(false), "Healthcheck failed: user-defined healthcheck returned False"],
    [() => Promise.reject(new Error("gone")), "Healthcheck failed: gone"],
    [
      () => new Promise<boolean>(() => undefined),
      "Healthcheck failed: user-defined healthcheck timed out after 0.0 seconds",
    ],
  ])("is UNHEALTHY with the reason, and predictions go on", async (healthcheck, reason) => {
    await using twin = await startTwin({
      healthcheck,
      serve: { timings: { healthcheckTimeoutMs: 30 } },
    });
    expect(await jsonOf(await fetch(`${twin.url}/health-check`))).toMatchObject({
      status: "UNHEALTHY",
      user_healthcheck_error: reason,
    });
    expect((await post(`${twin.url}/predictions`, { input: INPUT })).status).toBe(200);
  });

  test("writes the readiness file under Kubernetes, once ready", async () => {
    using folder = tempDir();
    const path = folder.join("run", "ready");
    await using twin = await startTwin({
      env: { KUBERNETES_SERVICE_HOST: "10.0.0.1" },
      serve: { readinessFile: path },
    });
    expect(await Bun.file(path).exists()).toBe(false);
    await fetch(`${twin.url}/health-check`);
    expect(await Bun.file(path).exists()).toBe(true);
  });
});

describe("a prediction", () => {
  test("frees its slot before it is answered", async () => {
    await using twin = await startTwin();
    for (let n = 0; n < 100; n += 1) {
      const response = await post(`${twin.url}/predictions`, { input: INPUT });
      const health = await jsonOf(await fetch(`${twin.url}/health-check`));
      expect([response.status, health.status]).toEqual([200, "READY"]);
    }
  });

  test("that fails says so in its own words, without a stack or a prefix", async () => {
    await using twin = await startTwin();
    const graph = '{"4":{"class_type":"Loader","inputs":{"ckpt_name":"x.safetensors"}}}';
    const body = await jsonOf(
      await post(`${twin.url}/predictions`, { input: { workflow_json: graph } }),
    );
    expect(body.error).toBe(
      "1 weight is missing\n  node 4 Loader ckpt_name: x.safetensors\n  not found in models/checkpoints",
    );
  });

  test("is cancelled when the client of a synchronous request leaves", async () => {
    await using held = await startHeld();
    const leaving = new AbortController();
    const request = fetch(`${held.url}/predictions`, {
      method: "POST",
      body: JSON.stringify({ input: INPUT }),
      headers: { "content-type": "application/json" },
      signal: leaving.signal,
    }).catch(() => undefined);
    const context = await held.started;
    leaving.abort();
    await request;
    await new Promise<void>((resolve) => {
      if (context.signal.aborted) {
        resolve();
      }
      context.signal.addEventListener("abort", () => resolve());
    });
    expect(context.signal.aborted).toBe(true);
  });

  test("with an id that no file system takes is answered, and the slot comes back", async () => {
    await using twin = await startTwin();
    for (const id of ["x".repeat(3_000), "a\u0000b", "../../etc", "."]) {
      const response = await post(`${twin.url}/predictions`, { id, input: INPUT });
      expect(await response.json()).toMatchObject({ id, status: "succeeded" });
    }
    expect(twin.server.service.status()).toBe("READY");
  });

  test("that two clients PUT at the same time runs once, however long its webhook's name takes", async () => {
    let runs = 0;
    const gate = Promise.withResolvers<void>();
    await using twin = await startTwin({
      env: { COG_MAX_CONCURRENCY: "4" },
      during: () => {
        runs += 1;
        return gate.promise;
      },
    });
    const put = (): Promise<Response> =>
      fetch(`${twin.url}/predictions/once`, {
        method: "PUT",
        body: JSON.stringify({
          input: INPUT,
          webhook: "http://localhost:1/",
          webhook_events_filter: [],
        }),
        headers: { "content-type": "application/json" },
      });
    const both = [put(), put()];
    expect((await Promise.race(both)).status).toBe(202);
    gate.resolve();
    expect((await Promise.all(both)).map(({ status }) => status).sort()).toEqual([200, 202]);
    expect(runs).toBe(1);
  });

  test("is refused with 422 when its webhook points inwards, naming the variable", async () => {
    await using twin = await startTwin({ env: { WEBHOOK_ALLOW_PRIVATE: "0" } });
    const response = await post(`${twin.url}/predictions`, {
      input: INPUT,
      webhook: "http://127.0.0.1:1/hook",
    });
    expect(response.status).toBe(422);
    const problem = (await jsonOf(response)).detail?.[0];
    expect(problem).toMatchObject({ loc: ["body", "webhook"], type: "value_error" });
    expect(problem?.msg).toContain("WEBHOOK_ALLOW_PRIVATE");
    expect(twin.server.service.freeSlots).toBe(1);
  });

  test("shows its secrets nowhere: not in the echo, the logs, the error or the server's log", async () => {
    const lines: string[] = [];
    const gate = Promise.withResolvers<void>();
    const model: CogModel = {
      inputs: z.object({ token: secretInput({}) }),
      output: { type: "string" },
      streaming: false,
      setup: () => Promise.resolve(),
      predict: async ({ token }, context) => {
        context.log(`using ${token}`);
        await gate.promise;
        throw new Error(`rejected ${token}`);
      },
      dispose: () => Promise.resolve(),
    };
    const server = await serveCog({
      model,
      config: parseEnv({ PORT: "0" }),
      logger: createLogger({ write: (line) => lines.push(line) }),
      flags: { host: "127.0.0.1" },
      handleSignals: false,
    });
    await server.service.settled();
    const body = JSON.stringify({ input: { token: "hunter2-hunter2" } });
    const put = (): Promise<Response> =>
      fetch(`${server.url}/predictions/s`, {
        method: "PUT",
        body,
        headers: { "content-type": "application/json" },
      });
    const answer = put();
    while (server.service.find("s") === undefined) {
      await Bun.sleep(1);
    }
    const echo = await jsonOf(await put());
    gate.resolve();
    const result = await jsonOf(await answer);
    await server.stop();
    expect(echo).toMatchObject({ input: { token: "**********" }, logs: "using **********\n" });
    expect(result.error).toBe("rejected **********");
    expect(JSON.stringify([echo, result, lines])).not.toContain("hunter2");
  });
});

describe("streams", () => {
  test("tell progress under a name of their own, and the body is Cog's", async () => {
    await using twin = await startTwin({
      streaming: true,
      during: (context) => {
        context.progress?.({ node: "3", value: 1, max: 20 });
        context.metric("timing.load", 0.5);
        return Promise.resolve();
      },
    });
    const response = await post(
      `${twin.url}/predictions`,
      { input: INPUT },
      { accept: "text/event-stream" },
    );
    const text = await response.text();
    expect(text).toContain('event: progress\ndata: {"max":20,"node":"3","value":1}\n\n');
    expect(text).toContain(
      'event: metric\ndata: {"mode":"replace","name":"timing.load","value":0.5}\n\n',
    );
    expect(text).toMatch(
      /event: completed\ndata: \{"id":"pred_[0-9a-f]+","logs":.*"timing":\{"load":0.5\}.*\}\n\n$/,
    );
  });

  test("say that they live when nothing happens", async () => {
    await using held = await startHeld({
      streaming: true,
      serve: { timings: { streams: { keepAliveMs: 10 } } },
    });
    const response = await post(
      `${held.url}/predictions`,
      { input: INPUT },
      { accept: "text/event-stream" },
    );
    let text = "";
    for await (const chunk of response.body ?? []) {
      text += new TextDecoder().decode(chunk);
      if (text.includes(": keep-alive\n\n")) {
        held.release();
      }
    }
    expect(text).toContain(": keep-alive\n\n");
    expect(text).toContain('"status":"succeeded"');
  });

  test("that created a prediction cancel it by leaving; its slot is free again", async () => {
    await using held = await startHeld({ streaming: true });
    const leaving = new AbortController();
    const response = await fetch(`${held.url}/predictions`, {
      method: "POST",
      body: JSON.stringify({ input: INPUT }),
      headers: { "content-type": "application/json", accept: "text/event-stream" },
      signal: leaving.signal,
    });
    expect(response.status).toBe(200);
    const context = await held.started;
    leaving.abort();
    while (held.server.service.status() !== "READY") {
      await Bun.sleep(1);
    }
    expect(context.signal.aborted).toBe(true);
  });

  test("that nobody reads hold neither the run nor its slot", async () => {
    await using twin = await startTwin({
      streaming: true,
      during: async (context) => {
        for (let n = 0; n < 5_000; n += 1) {
          context.log("x".repeat(2_000));
        }
        await Bun.sleep(1);
      },
    });
    const body = JSON.stringify({ input: INPUT });
    const socket = connect(twin.server.port, "127.0.0.1");
    socket.pause();
    socket.write(
      `POST /predictions HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    await twin.server.service.settled();
    const next = await post(`${twin.url}/predictions`, { input: INPUT }).then(async (response) => {
      let answer = response;
      while (answer.status === 409) {
        await Bun.sleep(5);
        answer = await post(`${twin.url}/predictions`, { input: INPUT });
      }
      return answer.status;
    });
    expect(next).toBe(200);
    socket.destroy();
  });
});

test("a stream whose creator takes nothing is given up, and what it created is cancelled", async () => {
  const cancelled = Promise.withResolvers<void>();
  await using twin = await startTwin({
    streaming: true,
    serve: { timings: { streams: { stalledMs: 100 } } },
    during: async ({ progress, signal }) => {
      while (!signal.aborted) {
        progress?.({ picture: "x".repeat(500_000) });
        await Bun.sleep(5);
      }
      cancelled.resolve();
    },
  });
  const body = JSON.stringify({ input: INPUT });
  const socket = connect(twin.server.port, "127.0.0.1");
  socket.pause();
  socket.write(
    `POST /predictions HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  await cancelled.promise;
  socket.destroy();
}, 20_000);

describe("bodies", () => {
  test("over 100 MiB are 413, by their length or by their bytes, and the server goes on", async () => {
    await using twin = await startTwin();
    const chunk = new Uint8Array(1024 * 1024).fill(0x20);
    const chunked = new ReadableStream<Uint8Array>({
      pull(controller) {
        controller.enqueue(chunk);
      },
    });
    const response = await fetch(`${twin.url}/predictions`, {
      method: "POST",
      body: chunked,
      headers: { "content-type": "application/json" },
    });
    expect([response.status, await response.text()]).toEqual([
      413,
      "Failed to buffer the request body: length limit exceeded",
    ]);
    expect(await healthStatus(twin.server.port)).toBe("READY");
  }, 20_000);

  test("that break off are no internal error", async () => {
    const lines: string[] = [];
    await using twin = await startTwin({
      serve: { logger: createLogger({ level: "error", write: (line) => lines.push(line) }) },
    });
    for (const framing of ["content-length: 1000", "transfer-encoding: chunked"]) {
      const socket = connect(twin.server.port, "127.0.0.1");
      socket.on("error", () => undefined);
      await new Promise<void>((resolve) => {
        socket.write(
          `POST /predictions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${framing}\r\n\r\n5\r\n{"id"`,
          () => resolve(),
        );
      });
      await healthStatus(twin.server.port);
      socket.destroy();
      expect((await post(`${twin.url}/predictions`, { input: INPUT })).status).toBe(200);
    }
    expect(lines).toEqual([]);
  });

  test("that come a byte at a time hold no slot", async () => {
    await using twin = await startTwin();
    const socket = connect(twin.server.port, "127.0.0.1");
    socket.write(
      "POST /predictions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
    );
    expect((await post(`${twin.url}/predictions`, { input: INPUT })).status).toBe(200);
    socket.destroy();
    expect(await healthStatus(twin.server.port)).toBe("READY");
  });
});

function livez(service: Service): Hono<AppEnv> {
  const routes = new Hono<AppEnv>();
  routes.get("/livez", (c) => c.text(service.status()));
  return routes;
}

describe("routes", () => {
  test("from outside come before Cog's own and get the service", async () => {
    await using twin = await startTwin({
      serve: {
        routes: (service): Hono<AppEnv>[] => [livez(service)],
      },
    });
    expect(await (await fetch(`${twin.url}/livez`)).text()).toBe("READY");
    expect((await fetch(`${twin.url}/nothing`)).status).toBe(404);
  });

  test("need a bearer token where the operator lists some, health excepted", async () => {
    await using twin = await startTwin({ env: { API_TOKEN: "first-token second-token" } });
    const ask = async (path: string, authorization?: string): Promise<number> =>
      (
        await fetch(
          twin.url + path,
          authorization === undefined ? {} : { headers: { authorization } },
        )
      ).status;
    expect(await ask("/")).toBe(401);
    expect(await ask("/", "Bearer wrong")).toBe(401);
    expect(await ask("/", "Basic first-token")).toBe(401);
    expect(await ask("/", "Bearer first-token")).toBe(200);
    expect(await ask("/", "bearer second-token")).toBe(200);
    expect(await ask("/health-check")).toBe(200);
    expect(await ask("/nothing")).toBe(401);
    const refused = await fetch(`${twin.url}/predictions`, { method: "POST" });
    expect([refused.headers.get("www-authenticate"), Object.keys(await jsonOf(refused))]).toEqual([
      "Bearer",
      ["error"],
    ]);
  });
});

describe("the process", () => {
  test("says in one sentence that its port is in use", async () => {
    await using twin = await startTwin();
    const second = serveCog({
      model: new Twin(),
      config: parseEnv({ PORT: String(twin.server.port) }),
      logger: silentLogger,
      flags: { host: "127.0.0.1" },
      handleSignals: false,
    });
    await expect(second).rejects.toMatchObject({
      code: "PORT_IN_USE",
      message: `Port ${twin.server.port} on 127.0.0.1 is in use`,
    });
  });

  test("lets asynchronous predictions finish when it is stopped, and delivers their last webhook", async () => {
    using receiver = new Receiver();
    await using held = await startHeld();
    const response = await post(
      `${held.url}/predictions`,
      { input: INPUT, webhook: `${receiver.origin}/hook/a`, webhook_events_filter: ["completed"] },
      { prefer: "respond-async" },
    );
    expect(response.status).toBe(202);
    await held.started;
    const stopped = held.server.stop();
    held.release();
    expect(await stopped).toBe(0);
    expect(JSON.parse(receiver.hooks[0]?.body ?? "{}")).toMatchObject({ status: "succeeded" });
  });

  test("cancels what is still running when the grace is over", async () => {
    using receiver = new Receiver();
    await using held = await startHeld({ serve: { timings: { shutdownGraceMs: 20 } } });
    await post(
      `${held.url}/predictions`,
      { input: INPUT, webhook: `${receiver.origin}/hook/a`, webhook_events_filter: ["completed"] },
      { prefer: "respond-async" },
    );
    await held.started;
    expect(await held.server.stop()).toBe(0);
    expect(JSON.parse(receiver.hooks[0]?.body ?? "{}")).toMatchObject({ status: "canceled" });
  });

  test("exits with 130 after SIGINT and 0 after SIGTERM, during setup too", async () => {
    await using interrupted = await startChild([]);
    process.kill(interrupted.pid, "SIGINT");
    expect(await interrupted.exited).toEqual({ code: 130, signal: null });
    using receiver = new Receiver({ setup: "held" });
    await using starting = await startChild(
      [],
      { TWIN_SETUP_URL: `${receiver.origin}/setup` },
      { wait: false },
    );
    starting.signal?.("SIGTERM");
    expect(await starting.exited).toEqual({ code: 0, signal: null });
  });
});

test("a fault that nothing caught is logged with its place, and ends neither the prediction nor the server", async () => {
  using dir = tempDir();
  const log = Bun.file(dir.join("log"));
  await using faulty = await startChild([], {}, { main: "fault-main.ts", log });
  for (const fault of ["throw", "reject"]) {
    const url = `http://127.0.0.1:${faulty.port}/predictions`;
    const answer = await jsonOf(await post(url, { input: { fault } }));
    expect(answer).toMatchObject({ status: "succeeded", output: ["done"] });
  }
  expect(await healthStatus(faulty.port)).toBe("READY");
  const lines = (await log.text()).split("\n").filter((line) => line.includes("nothing caught"));
  expect(lines).toHaveLength(2);
  expect(lines[0]).toContain("thrown at nobody");
  expect(lines[1]).toContain("rejected unheard");
  expect(lines.join()).toContain("fault-main.ts");
});

describe("flags and variables", () => {
  test("are those of Cog's server", () => {
    expect(
      parseServerFlags([
        "--host",
        "127.0.0.1",
        "--upload-url",
        "http://u/",
        "--await-explicit-shutdown",
        "false",
        "--threads",
        "3",
        "--x-mode",
        "train",
      ]),
    ).toEqual({
      host: "127.0.0.1",
      uploadUrl: "http://u/",
      awaitExplicitShutdown: true,
      mode: "train",
      version: false,
    });
    expect(parseServerFlags(["-v"])).toMatchObject({ version: true, host: "0.0.0.0" });
    for (const wrong of [["--port", "1"], ["--host", "localhost"], ["--x-mode", "x"], ["extra"]]) {
      expect(() => parseServerFlags(wrong)).toThrow();
    }
  });

  test("that are garbage become their default, with a warning", () => {
    const lines: string[] = [];
    const logger = createLogger({ write: (line) => lines.push(line), format: "plain" });
    const env = parseEnv({
      COG_MAX_CONCURRENCY: "many",
      COG_SETUP_TIMEOUT: "0",
      COG_THROTTLE_RESPONSE_INTERVAL: "-1",
      COG_STREAM_HISTORY_CAPACITY: "1.5",
    });
    expect(cogSettings(env, logger)).toEqual({
      slots: 1,
      setupTimeoutMs: undefined,
      throttleMs: 500,
      historyCapacity: 1024,
    });
    expect(lines.length).toBe(4);
    const good = parseEnv({
      COG_MAX_CONCURRENCY: "3",
      COG_SETUP_TIMEOUT: "2",
      COG_THROTTLE_RESPONSE_INTERVAL: "0.1",
      COG_STREAM_HISTORY_CAPACITY: "0",
    });
    expect(cogSettings(good, logger)).toEqual({
      slots: 3,
      setupTimeoutMs: 2000,
      throttleMs: 100,
      historyCapacity: 0,
    });
  });
});
