import { describe, expect, test } from "bun:test";
import type { FreeAfter } from "../../src/comfy/memory.ts";
import { MemoryPolicy } from "../../src/comfy/memory.ts";
import { RemoteEngine } from "../../src/comfy/remote.ts";
import { HttpClient } from "../../src/platform/http.ts";
import type { Graph } from "../../src/workflow/graph.ts";

function loads(name: string): Graph {
  return { "1": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: name } } };
}

/** Runs three predictions under a policy, and says before or after which of them memory was freed. */
async function freed(mode: FreeAfter, models: readonly string[]): Promise<string[]> {
  const events: string[] = [];
  let now = "";
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      if (new URL(request.url).pathname === "/free") {
        expect(await request.json()).toEqual({ unload_models: true, free_memory: true });
        events.push(now);
        return new Response(null);
      }
      return Response.json({ system: {} });
    },
  });
  await using engine = await RemoteEngine.connect(
    `http://127.0.0.1:${server.port}`,
    new HttpClient(),
  );
  const policy = new MemoryPolicy(mode);
  for (const [index, model] of models.entries()) {
    const graph = model === "" ? {} : loads(model);
    now = `before ${index}`;
    await policy.before(engine, graph);
    now = `after ${index}`;
    await policy.after(engine);
  }
  await server.stop(true);
  return events;
}

describe("the memory policy", () => {
  test.each([
    ["never", ["a", "b", "a"], []],
    ["prediction", ["a", "a"], ["after 0", "after 1"]],
    ["model-change", ["a", "a", "b", "", "b", "a"], ["before 2", "before 5"]],
  ] as const)("%s frees when it should", async (mode, models, expected) => {
    expect(await freed(mode, models)).toEqual([...expected]);
  });
});
