import { describe, expect, test } from "bun:test";
import { startTwin } from "../support/cog-server.ts";

const CLI = { LOG_FORMAT: "console", COG_LOG_LEVEL: "warning", ORPHAN_TIMEOUT: "0.2" };
const CLI_CLIENT = { headers: { "user-agent": "Go-http-client/1.1" } };

describe("a server that the cog CLI forgot", () => {
  test("ends by itself once the CLI's polls have stopped", async () => {
    await using twin = await startTwin({ env: CLI });
    await fetch(`${twin.url}/health-check`, CLI_CLIENT);
    expect(await twin.server.finished).toBe(0);
  });

  test("ends although the image's own health check goes on asking", async () => {
    await using twin = await startTwin({ env: CLI });
    await fetch(`${twin.url}/health-check`, CLI_CLIENT);
    const asking = setInterval(() => {
      fetch(`${twin.url}/health-check`).catch(() => undefined);
    }, 20);
    expect(await twin.server.finished).toBe(0);
    clearInterval(asking);
  });

  test("ends after a failed setup too", async () => {
    await using twin = await startTwin({
      env: CLI,
      setup: () => Promise.reject(new Error("no weights")),
    });
    const health = await fetch(`${twin.url}/health-check`, CLI_CLIENT);
    expect(await health.text()).toContain("SETUP_FAILED");
    expect(await twin.server.finished).toBe(0);
  });

  test("stays while a request of the CLI is being answered", async () => {
    await using twin = await startTwin({ env: CLI, during: () => Bun.sleep(600) });
    await fetch(`${twin.url}/health-check`, CLI_CLIENT);
    const answer = await fetch(`${twin.url}/predictions`, {
      method: "POST",
      headers: { ...CLI_CLIENT.headers, "content-type": "application/json" },
      body: JSON.stringify({ input: { workflow_json: '{"1":{"class_type":"SaveImage"}}' } }),
    });
    expect(await answer.text()).toContain("succeeded");
    expect(await twin.server.finished).toBe(0);
  });

  test.each([
    ["without the CLI's variables", { ORPHAN_TIMEOUT: "0.01" }, CLI_CLIENT],
    ["when another client polls", { ...CLI, ORPHAN_TIMEOUT: "0.01" }, {}],
    ["with ORPHAN_TIMEOUT=0", { ...CLI, ORPHAN_TIMEOUT: "0" }, CLI_CLIENT],
  ])("is never assumed %s", async (_name, env, client) => {
    await using twin = await startTwin({ env });
    await fetch(`${twin.url}/health-check`, client);
    const first = await Promise.race([
      twin.server.finished.then(() => "ended"),
      Bun.sleep(100).then(() => "running"),
    ]);
    expect(first).toBe("running");
  });
});
