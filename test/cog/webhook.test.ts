/** Webhooks: which go out, how often, how they are retried, signed, refused and drained. */
import { describe, expect, test } from "bun:test";
import { Webhook } from "standardwebhooks";
import type { WebhookEvent } from "../../src/cog/envelope.ts";
import { Prediction } from "../../src/cog/prediction.ts";
import type { WebhookOptions } from "../../src/cog/webhook.ts";
import { RETRY_DELAYS_MS, WebhookSender } from "../../src/cog/webhook.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { createLogger, silentLogger } from "../../src/platform/log.ts";
import { Receiver } from "../support/cog-receiver.ts";

const EVENTS: readonly WebhookEvent[] = ["start", "output", "logs", "completed"];

function sender(options: Partial<WebhookOptions> = {}): WebhookSender {
  return new WebhookSender({
    http: new HttpClient(),
    guard: AddressGuard.open,
    userAgent: "coglet/0.0.0",
    retryDelaysMs: [1, 1, 1],
    logger: silentLogger,
    ...options,
  });
}

function run(webhooks: WebhookSender, url: string, events = EVENTS): Prediction {
  const prediction = new Prediction({ id: "p", input: {}, historyCapacity: 0, isStreamed: false });
  webhooks.attach(prediction, { url, events, trace: { traceparent: "00-t" } });
  return prediction;
}

describe("webhooks", () => {
  test("drop logs that come too soon after any other, and never an output", async () => {
    using receiver = new Receiver();
    const prediction = run(sender({ throttleMs: 60_000 }), `${receiver.origin}/hook/a`);
    prediction.begin();
    prediction.appendLog("one");
    prediction.addChunk("a");
    prediction.addChunk("b");
    prediction.appendLog("two");
    prediction.finish({ status: "succeeded", output: ["a", "b"] });
    expect(await receiver.until(() => receiver.hooks.length >= 4)).toBe(true);
    const bodies = receiver.hooks.map(({ body }) => JSON.parse(body));
    expect(bodies.map(({ status }) => status).sort()).toEqual([
      "processing",
      "processing",
      "processing",
      "succeeded",
    ]);
    expect(bodies.find(({ status }) => status === "succeeded").logs).toBe("one\ntwo\n");
  });

  test("send logs when the interval is over, and a filtered event does not touch the clock", async () => {
    using receiver = new Receiver();
    const prediction = run(sender({ throttleMs: 0 }), `${receiver.origin}/hook/a`, ["logs"]);
    prediction.begin();
    prediction.appendLog("one");
    prediction.finish({ status: "canceled" });
    expect(await receiver.until(() => receiver.hooks.length === 1)).toBe(true);
    expect(JSON.parse(receiver.hooks[0]?.body ?? "")).toMatchObject({ logs: "one\n" });
  });

  test("carry type, agent, token and trace", async () => {
    using receiver = new Receiver();
    run(sender({ authToken: "sesame" }), `${receiver.origin}/hook/a?b=c%20d`).begin();
    await receiver.until(() => receiver.hooks.length === 1);
    expect(receiver.hooks[0]).toMatchObject({
      path: "/hook/a?b=c%20d",
      headers: {
        "content-type": "application/json",
        accept: "*/*",
        "user-agent": "coglet/0.0.0",
        authorization: "Bearer sesame",
        traceparent: "00-t",
      },
    });
  });

  test("that are last are tried as often as the schedule says, with one and the same body", async () => {
    using receiver = new Receiver({ hooks: new Map([["/hook/a", [{ status: 500 }]]]) });
    const webhooks = sender();
    run(webhooks, `${receiver.origin}/hook/a`, ["completed"]).finish({ status: "canceled" });
    await webhooks.drain(5_000);
    expect(receiver.hooks.length).toBe(4);
    expect(new Set(receiver.hooks.map(({ body }) => body)).size).toBe(1);
  });

  test("wait 0.2 s before the first retry and 102.4 s before the last, 12 times", () => {
    expect(RETRY_DELAYS_MS).toEqual([
      200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 102400, 102400, 102400,
    ]);
  });

  test.each([400, 401, 404, 408, 410, 501])("are not repeated after %d", async (status) => {
    using receiver = new Receiver({ hooks: new Map([["/hook/a", [{ status }]]]) });
    const webhooks = sender();
    run(webhooks, `${receiver.origin}/hook/a`, ["completed"]).finish({ status: "canceled" });
    await webhooks.drain(5_000);
    expect(receiver.hooks.length).toBe(1);
  });

  test.each([429, 500, 502, 503, 504])("are repeated after %d", async (status) => {
    using receiver = new Receiver({ hooks: new Map([["/hook/a", [{ status }, { status: 200 }]]]) });
    const webhooks = sender();
    run(webhooks, `${receiver.origin}/hook/a`, ["completed"]).finish({ status: "canceled" });
    await webhooks.drain(5_000);
    expect(receiver.hooks.length).toBe(2);
  });

  test("to a receiver that hangs are given up after their time and tried again", async () => {
    using receiver = new Receiver({ holdHooks: true });
    const lines: string[] = [];
    const webhooks = sender({
      deliveryTimeoutMs: 30,
      logger: createLogger({
        write: () => undefined,
        observe: ({ message }) => lines.push(message),
      }),
    });
    run(webhooks, `${receiver.origin}/hook/a`, ["completed"]).finish({ status: "canceled" });
    await webhooks.drain(5_000);
    expect(receiver.hooks.length).toBe(4);
    expect(lines.at(-1)).toContain("was not delivered");
    expect(lines.at(-1)).toContain("no answer within 0.03 s");
  });

  test("that wait for a retry are given up when the grace of a stop is over", async () => {
    const webhooks = sender({ retryDelaysMs: [60_000] });
    run(webhooks, "http://127.0.0.1:1/", ["completed"]).finish({ status: "canceled" });
    const startedAt = performance.now();
    await webhooks.drain(50);
    expect(performance.now() - startedAt).toBeLessThan(5_000);
  });

  test("are signed by the Standard Webhooks rules when there is a secret", async () => {
    using receiver = new Receiver();
    const signingSecret = `whsec_${Buffer.from("0123456789abcdef01234567").toString("base64")}`;
    run(sender({ signingSecret }), `${receiver.origin}/hook/a`).begin();
    await receiver.until(() => receiver.hooks.length === 1);
    const { body = "", headers = {} } = receiver.hooks[0] ?? {};
    expect(new Webhook(signingSecret).verify(body, { ...headers })).toMatchObject({ id: "p" });
    expect(() => new Webhook(signingSecret).verify(`${body} `, { ...headers })).toThrow();
  });

  test("that point inwards are refused when the prediction is created, naming the variable", async () => {
    const guard = new AddressGuard(["10.1.2.3"], { variable: "WEBHOOK_ALLOW_PRIVATE" });
    const webhooks = sender({ guard });
    for (const url of ["http://127.0.0.1/x", "http://[::1]:1/", "http://169.254.169.254/latest"]) {
      const refusal = webhooks.checkAddress(url).catch((error) => error);
      expect(await refusal).toMatchObject({ code: "WEBHOOK_REFUSED" });
    }
    const refusal = webhooks.checkAddress("http://127.0.0.1/x").catch((error) => error.message);
    expect(await refusal).toContain("WEBHOOK_ALLOW_PRIVATE");
    for (const url of ["http://10.1.2.3/", "not a url", "http://", "ftp://127.0.0.1/x"]) {
      await webhooks.checkAddress(url);
    }
  });

  test("that a redirect leads inwards are not followed", async () => {
    using inside = new Receiver();
    using receiver = new Receiver({
      hooks: new Map([["/hook/a", [{ status: 307, location: `${inside.origin}/hook/b` }]]]),
    });
    const port = new URL(receiver.origin).port;
    // The receiver is reached by a name that is allowed, what it points to is not.
    const guard = new AddressGuard(["localhost"]);
    const webhooks = sender({ guard, http: new HttpClient({ guard }) });
    run(webhooks, `http://localhost:${port}/hook/a`, ["completed"]).finish({ status: "canceled" });
    await webhooks.drain(5_000);
    expect([receiver.hooks.length, inside.hooks.length]).toEqual([1, 0]);
  });
});
