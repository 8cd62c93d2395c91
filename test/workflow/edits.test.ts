import { describe, expect, test } from "bun:test";
import { randomiseSeeds, replaceInputs } from "../../src/workflow/edits.ts";
import type { Graph } from "../../src/workflow/graph.ts";

const graph: Graph = {
  "1": { class_type: "KSampler", inputs: { seed: 5, steps: 20 } },
  "2": { class_type: "RandomNoise", inputs: { noise_seed: 18446744073709551615n } },
  "3": { class_type: "Other", inputs: { rand_seed: 1, seed: ["1", 0], noise_seed: "7" } },
  "4": { class_type: "Partner", inputs: { "model.seed": 3 } },
};

describe("randomiseSeeds", () => {
  test("gives every number seed a new one below 2^31, and leaves links and texts", () => {
    const before = structuredClone(graph);
    const { graph: changed, used } = randomiseSeeds(graph, { random: () => 0.5 });
    expect(used).toEqual([
      { nodeId: "1", input: "seed", seed: 2 ** 30 },
      { nodeId: "2", input: "noise_seed", seed: 2 ** 30 },
      { nodeId: "3", input: "rand_seed", seed: 2 ** 30 },
      { nodeId: "4", input: "model.seed", seed: 2 ** 30 },
    ]);
    expect(changed["3"]?.inputs).toEqual({ rand_seed: 2 ** 30, seed: ["1", 0], noise_seed: "7" });
    expect(graph).toEqual(before);
  });

  test("keeps what somebody set on purpose", () => {
    const { graph: changed } = randomiseSeeds(graph, { keep: (nodeId) => nodeId === "1" });
    expect(changed["1"]).toEqual(graph["1"]);
  });

  test("stays within the range at both ends", () => {
    const seeds = [0, 1 - Number.EPSILON].map(
      (value) => randomiseSeeds(graph, { random: () => value }).used[0]?.seed,
    );
    expect(seeds).toEqual([0, 2 ** 31 - 1]);
  });
});

test("replaceInputs copies what changes and shares what doesn't", () => {
  const changed = replaceInputs(graph, ({ input, value }) => (input === "steps" ? 30 : value));
  expect(changed["1"]?.inputs).toEqual({ seed: 5, steps: 30 });
  expect(changed["2"]).toBe(graph["2"] as never);
  expect(graph["1"]?.inputs["steps"]).toBe(20);
});
