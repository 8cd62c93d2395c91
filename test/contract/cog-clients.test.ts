/**
 * Clients that people use, against our server: the `replicate` package pointed at it, plain fetch, curl, a reader of
 * event streams. What can't be pointed at a Cog server is said where it is left out.
 */
import { describe, expect, test } from "bun:test";
import Replicate, { validateWebhook } from "replicate";
import { Receiver } from "../support/cog-receiver.ts";
import { GRAPH } from "../support/cog-requests.ts";
import { startTwin } from "../support/cog-server.ts";

const INPUT = { workflow_json: GRAPH, output_format: "png" };
const VERSION = "0".repeat(64);

describe("the replicate package", () => {
  test("runs the model and gives its output", async () => {
    await using twin = await startTwin();
    const client = new Replicate({ auth: "token", baseUrl: twin.url, useFileOutput: false });
    const output = await client.run(`owner/model:${VERSION}`, { input: INPUT });
    expect(output).toEqual([expect.stringMatching(/^data:image\/png;base64,/)]);
  });

  test("hands outputs over as files", async () => {
    await using twin = await startTwin();
    const client = new Replicate({ auth: "token", baseUrl: twin.url });
    const output = await client.run(`owner/model:${VERSION}`, { input: INPUT });
    const [file] = Array.isArray(output) ? output : [];
    const bytes = new Uint8Array(await (await file.blob()).arrayBuffer());
    expect([...bytes.subarray(0, 4)]).toEqual([0x89, 0x50, 0x4e, 0x47]);
  });

  test("creates with a webhook and gets the terminal state there, signed as it expects", async () => {
    using receiver = new Receiver();
    const secret = `whsec_${Buffer.from("0123456789abcdef01234567").toString("base64")}`;
    await using twin = await startTwin({ env: { WEBHOOK_SIGNING_SECRET: secret } });
    const client = new Replicate({ auth: "token", baseUrl: twin.url });
    await client.predictions.create({
      version: VERSION,
      input: INPUT,
      webhook: `${receiver.origin}/hook/a`,
      webhook_events_filter: ["completed"],
    });
    await receiver.until(() => receiver.hooks.length === 1);
    const [call] = receiver.hooks;
    expect(JSON.parse(call?.body ?? "")).toMatchObject({ status: "succeeded" });
    const isValid = await validateWebhook({
      id: call?.headers["webhook-id"] ?? "",
      timestamp: call?.headers["webhook-timestamp"] ?? "",
      signature: call?.headers["webhook-signature"] ?? "",
      body: call?.body ?? "",
      secret,
    });
    expect(isValid).toBe(true);
  });

  test("cancels; what it can't do here is ask for a prediction later, as Cog has no such route", async () => {
    const started = Promise.withResolvers<string>();
    await using twin = await startTwin({
      during: async ({ id, signal }) => {
        started.resolve(id);
        await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
      },
    });
    const client = new Replicate({ auth: "token", baseUrl: twin.url });
    const creating = client.predictions.create({ version: VERSION, input: INPUT });
    const id = await started.promise;
    // The package reads a prediction out of the answer; Cog's is `{}`.
    expect(await client.predictions.cancel(id)).toEqual(expect.anything());
    expect((await creating).status).toBe("canceled");
    await expect(client.predictions.get(id)).rejects.toThrow("405");
  });
});

/** Events of a stream as a browser's parser would deliver them. (EventSource itself only sends GET, which is 405.) */
async function* events(response: Response): AsyncGenerator<{ event: string; data: unknown }> {
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    text += decoder.decode(chunk, { stream: true });
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const fields = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const field = (name: string): string =>
        fields.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2) ?? "";
      if (field("data") !== "") {
        yield { event: field("event"), data: JSON.parse(field("data")) };
      }
    }
  }
}

test("a reader of event streams follows a prediction to its end", async () => {
  await using twin = await startTwin({ streaming: true });
  const response = await fetch(`${twin.url}/predictions/streamed`, {
    method: "PUT",
    body: JSON.stringify({ input: INPUT }),
    headers: { "content-type": "application/json", accept: "text/event-stream" },
  });
  const seen = await Array.fromAsync(events(response));
  expect(seen.map(({ event }) => event)).toEqual([
    "start",
    "log",
    "log",
    "output",
    "log",
    "completed",
  ]);
  expect(seen.at(-1)?.data).toMatchObject({ id: "streamed", status: "succeeded" });
});

const curl = Bun.which("curl");

async function runCurl(...args: string[]): Promise<string> {
  const child = Bun.spawn([curl ?? "curl", "-s", ...args], { stdio: ["ignore", "pipe", "ignore"] });
  return await new Response(child.stdout).text();
}

function describeCurl(): void {
  test("as the docs of Cog show it", async () => {
    await using twin = await startTwin();
    const body = JSON.stringify({ input: INPUT });
    const answer = await runCurl(
      "-X",
      "POST",
      "-H",
      "Content-Type: application/json",
      "-d",
      body,
      `${twin.url}/predictions`,
    );
    expect(JSON.parse(answer)).toMatchObject({ status: "succeeded" });
  });

  test("with -d alone is told which type is expected", async () => {
    await using twin = await startTwin();
    const answer = await runCurl("-w", "%{http_code}", "-d", "{}", `${twin.url}/predictions`);
    expect(answer).toBe("Expected request with `Content-Type: application/json`415");
  });

  test("with -I gets the length of what GET would send", async () => {
    await using twin = await startTwin();
    const head = await runCurl("-I", `${twin.url}/openapi.json`);
    const whole = await runCurl(`${twin.url}/openapi.json`);
    expect(head).toContain(`content-length: ${Buffer.byteLength(whole)}`);
  });

  test("with -N sees events as they come", async () => {
    await using twin = await startTwin({ streaming: true });
    const body = JSON.stringify({ input: INPUT });
    const text = await runCurl(
      "-N",
      "-H",
      "Content-Type: application/json",
      "-H",
      "Accept: text/event-stream",
      "-d",
      body,
      `${twin.url}/predictions`,
    );
    expect(text).toStartWith("event: start\n");
    expect(text).toEndWith("\n\n");
  });
}

if (curl === null) {
  test.skip("curl: skipped, it is not installed here", () => undefined);
} else {
  describe("curl", describeCurl);
}
