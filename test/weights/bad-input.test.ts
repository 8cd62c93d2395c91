/** Workflows made to hurt, through everything that looks at one: typed errors, bounded time, stable answers. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { ModelFolders } from "../../src/models/folders.ts";
import { InputError } from "../../src/platform/errors.ts";
import { parseJson, stringifyJson } from "../../src/platform/json.ts";
import { extractWeights } from "../../src/weights/extract.ts";
import type { Validation } from "../../src/weights/refs.ts";
import { missingText } from "../../src/weights/report.ts";
import { respellWeights } from "../../src/weights/respell.ts";
import { validateWeights } from "../../src/weights/validate.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import { explainWorkflow } from "../../src/workflow/explain.ts";
import type { Graph, Workflow } from "../../src/workflow/graph.ts";
import { findObstacles, obstacleSections } from "../../src/workflow/obstacles.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";

/** An engine that has one class, so that nearly everything is in the way. */
const definitions = NodeDefinitions.fromObjectInfo({
  PreviewAny: { input: { required: { source: ["*"] } }, output: [], output_node: true },
});
const folders = ModelFolders.fromDirs({ modelsDirs: ["/nonexistent/models"] });

/** Everything `weights check` and `workflow explain` do with a workflow. */
function lookAt(workflow: Workflow): { text: string; validation: Validation } {
  explainWorkflow(workflow, { definitions });
  const refs = extractWeights(workflow, { definitions });
  const validation = validateWeights(refs, folders);
  const engine = { kind: "real", importFailures: [] } as const;
  const obstacles = findObstacles(workflow, { definitions, engine });
  findObstacles(workflow);
  return {
    text: missingText(validation, { obstacles }) + obstacleSections(obstacles).join(""),
    validation,
  };
}

const manyNodes = (count: number, node: (index: number) => unknown) =>
  JSON.stringify(
    Object.fromEntries(Array.from({ length: count }, (_none, index) => [index, node(index)])),
  );

describe("size", () => {
  test("a hundred thousand nodes are refused in one sentence", () => {
    const text = manyNodes(100_000, () => ({ class_type: "A", inputs: {} }));
    expect(() => parseWorkflow(text)).toThrow("has 100000 nodes; at most 20000 are read");
  });

  test.each([
    [
      "a chain",
      (index: number) => ({
        class_type: "ImageInvert",
        inputs: index === 0 ? {} : { image: [String(index - 1), 0] },
      }),
    ],
    [
      "classes nobody has",
      (index: number) => ({
        class_type: `SomeClassWithALongName${index}`,
        inputs: {},
      }),
    ],
    [
      "weights nobody has",
      (index: number) => ({
        class_type: "LoraLoader",
        inputs: { lora_name: `some-lora-with-a-long-name-${index}.safetensors` },
      }),
    ],
  ])("as many as are read are looked at: %s", (_what, node) => {
    const { text } = lookAt(parseWorkflow(manyNodes(20_000, node)));
    expect(text.length).toBeGreaterThan(100);
  });

  test("twenty megabytes of values are looked at", () => {
    const words = "embedding:a <lora:b:1> ".repeat(90_000);
    const inputs = { populated_text: words, wildcard_text: words, seed: 1, text: words.repeat(8) };
    const graph = { "1": { class_type: "ImpactWildcardEncode", inputs } };
    const { validation } = lookAt(parseWorkflow(JSON.stringify(graph)));
    expect(validation.warnings.map(({ ref }) => ref.name).sort()).toEqual(["a", "b"]);
  });
});

const value = fc.oneof(
  fc.string(),
  fc.constantFrom(
    "a.safetensors",
    "embedding:x",
    "<lora:y:1>",
    "https://h/a.pt",
    "sub\\b.safetensors",
    "__proto__",
  ),
  fc.jsonValue(),
  fc.tuple(fc.constantFrom("1", "2", "x"), fc.integer({ min: -2, max: 3 })),
);
const node = fc.record({
  class_type: fc.constantFrom(
    "LoraLoader",
    "CheckpointLoaderSimple",
    "SaveImage",
    "KSampler",
    "PreviewAny",
    "Mine",
    "IPAdapterUnifiedLoader",
    "__proto__",
    "constructor",
  ),
  inputs: fc.dictionary(
    fc.constantFrom(
      "lora_name",
      "ckpt_name",
      "text",
      "model",
      "seed",
      "steps",
      "source",
      "__proto__",
    ),
    value,
  ),
});
const graphs = fc.dictionary(fc.constantFrom("1", "2", "x", "57:3", "__proto__"), node, {
  minKeys: 1,
});

/** The workflow, or nothing where it is refused in words. */
function read(graph: unknown): Workflow | undefined {
  try {
    return parseWorkflow(stringifyJson(graph));
  } catch (error) {
    expect(error).toBeInstanceOf(InputError);
    return undefined;
  }
}

describe("any graph", () => {
  test("is explained, extracted and judged without a fault", () => {
    let looked = 0;
    fc.assert(
      fc.property(graphs, (graph) => {
        const workflow = read(graph);
        if (workflow !== undefined) {
          looked += 1;
          expect(lookAt(workflow).text).toBeString();
        }
      }),
      { numRuns: 500 },
    );
    expect(looked).toBeGreaterThan(50);
  });

  test("gives the same weights again: read twice, written and read, its names respelt, its keys in another order", () => {
    fc.assert(
      fc.property(graphs, (graph) => {
        const workflow = read(graph);
        if (workflow === undefined) {
          return;
        }
        const keys = (of: Workflow) =>
          extractWeights(of).map(({ nodeId, input, name }) =>
            JSON.stringify([nodeId, input, name]),
          );
        const first = keys(workflow);
        expect(keys(workflow)).toEqual(first);
        const written: unknown = parseJson(stringifyJson(workflow.graph));
        expect(keys(read(written) ?? workflow)).toEqual(first);
        const { graph: respelt } = respellWeights(workflow.graph, []);
        expect(keys({ ...workflow, graph: respelt })).toEqual(first);
        const turned: Graph = Object.fromEntries(Object.entries(workflow.graph).reverse());
        expect(keys({ ...workflow, graph: turned }).sort()).toEqual(first.toSorted());
      }),
      { numRuns: 300 },
    );
  });

  test("has no obstacle that is in none of its nodes", () => {
    fc.assert(
      fc.property(graphs, (graph) => {
        const workflow = read(graph);
        for (const { nodes } of workflow === undefined
          ? []
          : findObstacles(workflow, { definitions })) {
          for (const { nodeId, classType } of nodes) {
            expect(workflow?.graph[nodeId]?.class_type).toBe(classType);
          }
        }
      }),
      { numRuns: 200 },
    );
  });
});
