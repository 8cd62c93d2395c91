/** Queue, interrupt, cache, history and sockets of the embedded engine. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { samplePicture } from "../../scripts/picture.ts";
import type { TestGraph } from "../support/embedded.ts";
import { promptOf, TestEngine } from "../support/embedded.ts";

let engine: TestEngine;
beforeAll(() => {
  engine = new TestEngine();
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
});

let color = 0;

/** A graph that no cache knows, of some ten milliseconds. */
function quick(prefix = "q"): TestGraph {
  color += 1;
  return {
    "1": ["EmptyImage", { width: 16, height: 16, batch_size: 1, color }],
    "2": ["ImageInvert", { image: ["1", 0] }],
    "3": ["SaveImage", { images: ["2", 0], filename_prefix: prefix }],
  };
}

/** A graph of many seconds. */
function slow(): TestGraph {
  color += 1;
  const scale = (from: string, size: number) =>
    [
      "ImageScale",
      { image: [from, 0], upscale_method: "lanczos", width: size, height: size, crop: "disabled" },
    ] as const;
  const chain = Array.from({ length: 40 }, (_, index) => [
    String(10 + index),
    scale(index === 0 ? "1" : String(9 + index), index % 2 === 0 ? 1800 : 600),
  ]);
  return {
    "1": ["EmptyImage", { width: 600, height: 600, batch_size: 1, color }],
    ...Object.fromEntries(chain),
    "99": ["SaveImage", { images: ["49", 0], filename_prefix: "slow" }],
  };
}

async function queue(
  graph: TestGraph,
  more: Readonly<Record<string, unknown>> = {},
): Promise<string> {
  const { status, body } = await engine.post("/prompt", { prompt: promptOf(graph), ...more });
  expect(status).toBe(200);
  return body.prompt_id;
}

describe("interrupt", () => {
  test("by id stops a long node, tells the client, and stands in the history", async () => {
    const listener = await engine.listen();
    const id = await queue(slow(), { client_id: listener.id });
    await listener.find("executing", ({ node, prompt_id }) => prompt_id === id && node === "10");
    expect((await engine.post("/interrupt", { prompt_id: crypto.randomUUID() })).status).toBe(200);
    expect((await engine.get("/queue")).queue_running[0][1]).toBe(id);
    expect((await engine.post("/interrupt", { prompt_id: id })).status).toBe(200);
    await listener.ended(id);
    const types = listener.messages.map(({ type }) => type);
    expect(types.slice(-3)).toEqual(["execution_interrupted", "status", "executing"]);
    const { status, outputs } = await engine.finished(id);
    expect([status.status_str, status.completed, outputs]).toEqual(["error", false, {}]);
    const [type, data] = status.messages.at(-1);
    expect(type).toBe("execution_interrupted");
    expect(data).toMatchObject({ prompt_id: id, node_type: "ImageScale" });
    expect(data.executed).toContain("1");
    expect((await engine.get(`/api/jobs/${id}`)).status).toBe("cancelled");
    listener.close();
  });

  test("without a body stops whatever runs, and nothing later", async () => {
    const listener = await engine.listen();
    const id = await queue(slow(), { client_id: listener.id });
    await listener.find("executing", ({ prompt_id }) => prompt_id === id);
    expect((await engine.post("/interrupt", "")).status).toBe(200);
    await listener.ended(id);
    expect((await engine.post("/interrupt", "")).status).toBe(200);
    const next = await engine.run(quick());
    expect(next.status.status_str).toBe("success");
    listener.close();
  });

  test("leaves waiting prompts alone; they are deleted from the queue, without a trace", async () => {
    const listener = await engine.listen();
    const running = await queue(slow(), { client_id: listener.id });
    const first = await queue(quick());
    const front = await queue(quick(), { front: true });
    await listener.find("executing", ({ prompt_id }) => prompt_id === running);
    const pending = async () =>
      (await engine.get("/queue")).queue_pending.map((item: unknown[]) => item[1]);
    expect(await pending()).toEqual([front, first]);
    expect(await engine.get("/prompt")).toEqual({ exec_info: { queue_remaining: 3 } });
    await engine.post("/interrupt", { prompt_id: first });
    await engine.post("/queue", { delete: [first, "no-such-id"] });
    expect(await pending()).toEqual([front]);
    const jobs = await engine.get("/api/jobs?status=pending,in_progress");
    expect(jobs.jobs.map(({ id, status }: { id: string; status: string }) => [id, status])).toEqual(
      [
        [front, "pending"],
        [running, "in_progress"],
      ],
    );
    const cancel = (id: string) => engine.post(`/api/jobs/${id}/cancel`, {});
    expect((await cancel(running)).body).toEqual({ cancelled: true });
    expect((await cancel(crypto.randomUUID())).body).toEqual({ cancelled: false });
    expect((await engine.finished(front)).status.completed).toBe(true);
    expect(await engine.get(`/history/${first}`)).toEqual({});
    listener.close();
  });

  test("the server answers while a long node runs", async () => {
    const id = await queue(slow());
    const answers: string[] = [];
    for (let asked = 0; asked < 5; asked++) {
      answers.push((await engine.get("/queue")).queue_running[0]?.[1]);
    }
    expect(answers).toEqual([id, id, id, id, id]);
    await engine.post("/interrupt", { prompt_id: id });
    await engine.finished(id);
  });
});

describe("cache", () => {
  test("knows a node by what it computes, not by its id", async () => {
    const listener = await engine.listen();
    await engine.run(quick("ids"));
    const renamed = {
      a: ["EmptyImage", { width: 16, height: 16, batch_size: 1, color }],
      b: ["ImageInvert", { image: ["a", 0] }],
      c: ["SaveImage", { images: ["b", 0], filename_prefix: "ids" }],
    } as const;
    const id = crypto.randomUUID();
    await engine.run(renamed, { client_id: listener.id, prompt_id: id });
    await listener.ended(id);
    const cached = listener.messages.find(({ type }) => type === "execution_cached");
    expect(cached?.data.nodes).toEqual(["a", "b", "c"]);
    listener.close();
  });

  test("sees that a picture changed under its name", async () => {
    const path = engine.dir.join("input", "same.png");
    const graph: TestGraph = {
      "1": ["LoadImage", { image: "same.png" }],
      "2": ["SaveImage", { images: ["1", 0], filename_prefix: "changed" }],
    };
    writeFileSync(path, await samplePicture(8, 8));
    const names = async () => (await engine.run(graph)).outputs["2"].images[0].filename;
    expect(await names()).toBe("changed_00001_.png");
    expect(await names()).toBe("changed_00001_.png");
    writeFileSync(path, await samplePicture(9, 8));
    expect(await names()).toBe("changed_00002_.png");
    rmSync(path);
  });

  test("is emptied by /free", async () => {
    const graph = quick("free");
    await engine.run(graph);
    await engine.post("/free", { unload_models: true, free_memory: true });
    const again = await engine.run(graph);
    expect(again.status.messages[1][1].nodes).toEqual([]);
  });

  test.each([
    ["--cache-none", []],
    ["--cache-classic", []],
    ["--cache-lru=50", ["1", "2", "3"]],
  ])("%s", async (flag, kept) => {
    await using other = new TestEngine({}, [flag]);
    const [first, second] = [quick("a"), quick("b")];
    await other.run(first);
    await other.run(second);
    const again = await other.run(first);
    expect(again.status.messages[1][1].nodes).toEqual(kept);
  });
});

describe("sockets", () => {
  test("a prompt without a client id is followed by progress only, by everyone", async () => {
    const listener = await engine.listen();
    const entry = await engine.run(quick());
    const id = entry.prompt[1];
    const seen = listener.messages
      .filter(({ data }) => data.prompt_id === id)
      .map(({ type }) => type);
    expect(new Set(seen)).toEqual(new Set(["progress_state"]));
    listener.close();
  });

  test("a socket that comes back while its prompt runs is told the node, without a prompt id", async () => {
    const first = await engine.listen();
    const id = await queue(slow(), { client_id: first.id });
    await first.find("executing", ({ node }) => node === "10");
    const second = await engine.listen(first.id);
    const told = await second.find("executing");
    expect(Object.keys(told.data)).toEqual(["node"]);
    await engine.post("/interrupt", { prompt_id: id });
    await second.ended(id);
    first.close();
    second.close();
  });

  test("once either socket of an id closes, the id is deaf", async () => {
    const first = await engine.listen();
    const second = await engine.listen(first.id);
    first.close();
    await new Promise((resolve) => first.socket.addEventListener("close", resolve));
    const before = second.messages.length;
    await engine.run(quick(), { client_id: second.id });
    expect(second.messages.length).toBe(before);
    second.close();
  });

  test("only the first text can be feature flags", async () => {
    const listener = await engine.listen();
    listener.socket.send("no JSON");
    listener.socket.send(JSON.stringify({ type: "feature_flags", data: {} }));
    await engine.run(quick(), { client_id: listener.id });
    expect(listener.messages.some(({ type }) => type === "feature_flags")).toBe(false);
    listener.close();
  });

  test("GetImageSize sends a TEXT frame", async () => {
    const listener = await engine.listen();
    const id = crypto.randomUUID();
    await engine.run(
      {
        "1": ["EmptyImage", { width: 7, height: 5, batch_size: 2, color: 3 }],
        size: ["GetImageSize", { image: ["1", 0] }],
        "3": ["PreviewAny", { source: ["size", 0] }],
      },
      { client_id: listener.id, prompt_id: id },
    );
    await listener.ended(id);
    expect(Buffer.from(listener.frames[0]!).toString("latin1")).toBe(
      "\0\0\0\u0003\0\0\0\u0004sizewidth: 7, height: 5\n batch size: 2",
    );
    listener.close();
  });
});

describe("history", () => {
  test("keeps integers beyond 2^53 digit for digit", async () => {
    const text = JSON.stringify({
      prompt: promptOf({ ...quick(), "8": ["RandomNoise", { noise_seed: 0 }] }),
    }).replace('"noise_seed":0', '"noise_seed":18446744073709551615');
    const { body } = await engine.post("/prompt", text);
    await engine.finished(body.prompt_id);
    const raw = await (await engine.request(`/history/${body.prompt_id}`)).text();
    expect(raw).toContain('"noise_seed":18446744073709551615');
  });

  test("secrets of paid nodes are in no list", async () => {
    const entry = await engine.run(quick(), {
      extra_data: { api_key_comfy_org: "secret", extra_pnginfo: { workflow: { id: 1 } } },
    });
    expect(entry.prompt[3]).toEqual({
      extra_pnginfo: { workflow: { id: 1 } },
      create_time: expect.any(Number),
    });
  });
});
