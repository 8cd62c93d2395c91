import { describe, expect, test } from "bun:test";
import { decideDownload } from "../../src/weights/policy.ts";
import type { PresentWeight, WeightRef } from "../../src/weights/refs.ts";
import { respellWeights } from "../../src/weights/respell.ts";

describe("decideDownload", () => {
  test.each([
    ["per-request", false, "fail"],
    ["per-request", true, "download"],
    ["fail", false, "fail"],
    ["fail", true, "fail"],
    ["download", false, "download"],
    ["download", true, "download"],
  ] as const)("%s, asked %p: %s", (policy, asks, action) => {
    expect(decideDownload(policy, asks).action).toBe(action);
  });

  test("says which variable refused a request that asked", () => {
    expect(decideDownload("fail", true)).toMatchObject({
      why: expect.stringContaining("WEIGHTS_POLICY=fail"),
    });
  });
});

describe("respellWeights", () => {
  const ref = (name: string, nodeId: string, input: string): WeightRef => ({
    name,
    category: "loras",
    nodeId,
    classType: "X",
    input,
    reason: "loader",
    certain: true,
    hints: [],
  });
  const present = (
    name: string,
    listedAs: string,
    nodeId: string,
    input: string,
  ): PresentWeight => ({
    ref: ref(name, nodeId, input),
    file: "/x",
    sizeBytes: 1,
    listedAs,
  });

  test("changes the input that named the weight, a row of an object input, and nothing else", () => {
    const graph = {
      "1": {
        class_type: "LoraLoader",
        inputs: { lora_name: "a\\b.safetensors", text: "a\\b.safetensors" },
      },
      "2": {
        class_type: "Power",
        inputs: { lora_1: { on: true, lora: "old.safetensors", strength: 1 } },
      },
      "3": { class_type: "Other", inputs: { x: 1 } },
    };
    const { graph: changed, respelled } = respellWeights(graph, [
      present("a\\b.safetensors", "a/b.safetensors", "1", "lora_name"),
      present("old.safetensors", "new.safetensors", "2", "lora_1"),
    ]);
    expect(changed).toEqual({
      "1": {
        class_type: "LoraLoader",
        inputs: { lora_name: "a/b.safetensors", text: "a\\b.safetensors" },
      },
      "2": {
        class_type: "Power",
        inputs: { lora_1: { on: true, lora: "new.safetensors", strength: 1 } },
      },
      "3": graph["3"],
    });
    expect(respelled).toHaveLength(2);
    expect(graph["1"].inputs.lora_name).toBe("a\\b.safetensors");
  });

  test("hands back the very graph when nothing is to change", () => {
    const graph = { "1": { class_type: "X", inputs: {} } };
    expect(respellWeights(graph, []).graph).toBe(graph);
  });
});
