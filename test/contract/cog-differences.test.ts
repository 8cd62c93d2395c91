/**
 * Where our server is meant to differ from Cog's own: one list, the same as in docs/cog-differences.md, each entry shown
 * on a running server. Whatever is not here must be equal (cog.test.ts, cog-odd.test.ts, cog-stories.test.ts).
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { secretInput } from "../../src/cog/inputs.ts";
import type { CogModel } from "../../src/cog/predictor.ts";
import { OutputFile } from "../../src/cog/predictor.ts";
import { serveCog } from "../../src/cog/serve.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { startChild } from "../support/cog-child.ts";
import { Receiver } from "../support/cog-receiver.ts";
import { GRAPH } from "../support/cog-requests.ts";
import type { TestServerOptions } from "../support/cog-server.ts";
import { startTwin } from "../support/cog-server.ts";
import { rawExchange } from "../support/raw-http.ts";

const GOOD = { workflow_json: GRAPH, output_format: "png" };
const DOCS = readFileSync(join(import.meta.dir, "../../docs/cog-differences.md"), "utf8");

function post(url: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${url}/predictions`, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json", ...headers },
  });
}

async function startModel(model: Partial<CogModel>) {
  const server = await serveCog({
    model: {
      inputs: z.object({}),
      output: { type: "array", items: { type: "string", format: "uri" } },
      streaming: false,
      setup: () => Promise.resolve(),
      predict: () => Promise.resolve([]),
      dispose: () => Promise.resolve(),
      ...model,
    },
    config: parseEnv({ PORT: "0" }),
    logger: silentLogger,
    flags: { host: "127.0.0.1" },
    handleSignals: false,
    timings: { shutdownGraceMs: 0, webhookGraceMs: 0 },
  });
  await server.service.settled();
  return { url: server.url, [Symbol.asyncDispose]: async () => void (await server.stop()) };
}

/** A prediction that runs until it is cancelled. */
const forever: TestServerOptions["during"] = async ({ signal }) => {
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
  signal.throwIfAborted();
};

/** By the words of docs/cog-differences.md. */
const DIFFERENCES: Readonly<Record<string, () => Promise<void>>> = {
  "Errors begin with their own sentence": async () => {
    await using model = await startModel({
      predict: () => Promise.reject(new Error("No such node")),
    });
    expect(await (await post(model.url, { input: {} })).json()).toMatchObject({
      error: "No such node",
    });
  },
  "Secrets are masked": async () => {
    const started = Promise.withResolvers<void>();
    await using model = await startModel({
      inputs: z.object({ token: secretInput({}) }),
      predict: (_input, { signal }) => {
        started.resolve();
        return new Promise((_, reject) => signal.addEventListener("abort", reject));
      },
    });
    const put = (): Promise<Response> =>
      fetch(`${model.url}/predictions/x`, {
        method: "PUT",
        body: '{"input":{"token":"hunter2"}}',
        headers: { "content-type": "application/json", prefer: "respond-async" },
      });
    await put();
    await started.promise;
    expect(await (await put()).json()).toMatchObject({ input: { token: "**********" } });
  },
  "Webhooks that point inwards are refused": async () => {
    await using twin = await startTwin({ env: { WEBHOOK_ALLOW_PRIVATE: "0" } });
    expect((await post(twin.url, { input: GOOD, webhook: "http://127.0.0.1/" })).status).toBe(422);
  },
  "Local paths as file inputs are refused": async () => {
    await using twin = await startTwin();
    const answer = await post(twin.url, { input: { ...GOOD, input_file: "/etc/hostname" } });
    expect(await answer.json()).toMatchObject({
      status: "failed",
      error: expect.stringContaining("neither an http(s) address nor a data URL"),
    });
  },
  "The setup log can be read while setup runs, and after it failed": async () => {
    await using twin = await startTwin({ wait: false, setup: () => new Promise(() => undefined) });
    const health = await (await fetch(`${twin.url}/health-check`)).json();
    expect(health).toMatchObject({ status: "STARTING", setup: { logs: expect.any(String) } });
  },
  "READY, schema and the end of setup appear together": async () => {
    await using twin = await startTwin({ wait: false });
    for (;;) {
      const health = await (await fetch(`${twin.url}/health-check`)).json();
      const schema = await fetch(`${twin.url}/openapi.json`);
      if (z.looseObject({ status: z.string() }).parse(health).status === "READY") {
        expect(health).toMatchObject({ setup: { status: "succeeded" } });
        expect(schema.status).toBe(200);
        return;
      }
    }
  },
  "A slot is free before its answer is sent": async () => {
    await using twin = await startTwin();
    for (let n = 0; n < 20; n += 1) {
      expect((await post(twin.url, { input: GOOD })).status).toBe(200);
    }
  },
  "No id loses a slot or becomes a path": async () => {
    await using twin = await startTwin();
    await post(twin.url, { id: "x".repeat(400), input: GOOD });
    await post(twin.url, { id: "a\u0000/../b", input: GOOD });
    expect(twin.server.service.status()).toBe("READY");
  },
  "A cancelled download ends at once": async () => {
    using receiver = new Receiver();
    await using twin = await startTwin();
    const path = "/slow/x/a.png";
    const answer = post(twin.url, {
      id: "c",
      input: { ...GOOD, input_file: receiver.origin + path },
    });
    await receiver.asked(path);
    await fetch(`${twin.url}/predictions/c/cancel`, { method: "POST" });
    expect(await (await answer).json()).toMatchObject({ status: "canceled" });
  },
  "Outputs that can't be read fail the prediction": async () => {
    await using model = await startModel({
      predict: () => Promise.resolve([new OutputFile("/nowhere/a.png")]),
    });
    expect(await (await post(model.url, { input: {} })).json()).toMatchObject({ status: "failed" });
  },
  "Asynchronous predictions are drained when the server stops": async () => {
    using receiver = new Receiver();
    await using twin = await startTwin({
      during: forever,
      serve: { timings: { shutdownGraceMs: 10 } },
    });
    await post(
      twin.url,
      { input: GOOD, webhook: `${receiver.origin}/hook/a`, webhook_events_filter: ["completed"] },
      { prefer: "respond-async" },
    );
    await twin.server.stop();
    expect(receiver.hooks.length).toBe(1);
  },
  "Health names no git revision, build time or Python": async () => {
    await using twin = await startTwin();
    const health = await (await fetch(`${twin.url}/health-check`)).json();
    expect(health).toMatchObject({ version: { coglet: "0.23.1", python_sdk: "0.23.1" } });
    expect(
      Object.keys(z.looseObject({ version: z.looseObject({}) }).parse(health).version),
    ).toEqual(["coglet", "python_sdk"]);
  },
  "HTTP/1.0 is answered as HTTP/1.1": async () => {
    await using twin = await startTwin();
    const answer = await rawExchange(twin.server.port, "GET / HTTP/1.0\r\n\r\n").answer;
    expect([answer?.version, answer?.status]).toEqual(["HTTP/1.1", 200]);
  },
  "A stream with nothing to tell yet begins with a comment": async () => {
    await using twin = await startTwin({
      streaming: true,
      during: forever,
      env: { COG_STREAM_HISTORY_CAPACITY: "0" },
    });
    const response = await post(twin.url, { input: GOOD }, { accept: "text/event-stream" });
    const first = await response.body?.getReader().read();
    expect(new TextDecoder().decode(first?.value)).toBe(": keep-alive\n\n");
  },
  "After SIGINT the exit code is 130": async () => {
    await using child = await startChild([]);
    process.kill(child.pid, "SIGINT");
    expect(await child.exited).toEqual({ code: 130, signal: null });
  },
  "Repeated header lines are read as one": async () => {
    await using twin = await startTwin();
    const body = JSON.stringify({ input: GOOD });
    const head =
      "POST /predictions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json";
    const twice = "prefer: respond-async\r\nprefer: wait=5";
    const text = `${head}\r\n${twice}\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    expect((await rawExchange(twin.server.port, text).answer)?.status).toBe(200);
  },
};

describe("wanted differences from Cog", () => {
  test.each(Object.entries(DIFFERENCES))("%s", async (_name, shows) => {
    await shows();
  });

  test("are the ones that docs/cog-differences.md lists", () => {
    const listed = [...DOCS.matchAll(/^- \*\*(.+?)\.\*\*/gm)].map((match) => match[1] ?? "");
    expect(listed.sort()).toEqual(Object.keys(DIFFERENCES).sort());
  });
});
