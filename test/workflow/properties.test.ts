/** What holds for any input at all: typed errors only, nothing invented, always the same order. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { InputError } from "../../src/platform/errors.ts";
import { isJsonObject, parseJson } from "../../src/platform/json.ts";
import { convertUi } from "../../src/workflow/convert.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import { randomiseSeeds } from "../../src/workflow/edits.ts";
import { explainWorkflow } from "../../src/workflow/explain.ts";
import { linkOf } from "../../src/workflow/graph.ts";
import { applyOverrides } from "../../src/workflow/overrides.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";
import { reachableNodes } from "../../src/workflow/walk.ts";
import { mp4, png, textChunk, webm } from "./media-fixtures.ts";

const core = NodeDefinitions.core();
const fixed = { random: () => 0, now: () => new Date(0) };

/** Runs `work`; an `InputError` is an answer, anything else fails the property. */
function answer<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (thrown) {
    if (thrown instanceof InputError) {
      expect(thrown.message.length).toBeLessThan(5000);
      return undefined;
    }
    throw thrown;
  }
}

const key = fc.constantFrom(
  "__proto__",
  "constructor",
  "nodes",
  "links",
  "prompt",
  "workflow",
  "_meta",
  "1",
  "2",
  "id",
  "type",
  "inputs",
  "class_type",
  "widgets_values",
  "mode",
);
const document = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    fc.constantFrom(
      null,
      true,
      0,
      1,
      2,
      -10,
      -20,
      4,
      "1",
      "KSampler",
      "SaveImage",
      "Reroute",
      "PrimitiveNode",
    ),
    fc.array(tie("value"), { maxLength: 4 }),
    fc.dictionary(key, tie("value"), { maxKeys: 5 }),
  ),
})).value;

const classes = fc.constantFrom(
  "LoadImage",
  "SaveImage",
  "KSampler",
  "CLIPTextEncode",
  "Reroute",
  "PrimitiveNode",
  "Note",
  "ImageInvert",
  "sub",
  "other",
  "GetNode",
  "SetNode",
  "ResizeImageMaskNode",
  "Mystery",
  "workflow>g",
);
const inputNames = fc.constantFrom("images", "image", "text", "model", "seed", "", "x");

/** A scope with links that may be dangling, circular or doubled. */
const scope = fc.record({
  nodes: fc.uniqueArray(
    fc.record({
      id: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom("a", "1")),
      type: classes,
      mode: fc.constantFrom(0, 0, 0, 2, 4),
      inputs: fc.array(
        fc.record({
          name: inputNames,
          type: fc.constantFrom("IMAGE", "*", "INT", "STRING"),
          link: fc.oneof(fc.integer({ min: 0, max: 6 }), fc.constant(null)),
          widget: fc.constantFrom(undefined, { name: "seed" }, { name: "text" }),
        }),
        { maxLength: 3 },
      ),
      outputs: fc.array(fc.record({ name: inputNames, type: fc.constantFrom("IMAGE", "*") }), {
        maxLength: 2,
      }),
      widgets_values: fc.oneof(
        fc.array(fc.constantFrom("a", 1, "fixed", null, [1]), { maxLength: 4 }),
        fc.constant({ seed: 1 }),
      ),
      properties: fc.constantFrom(
        {},
        {
          proxyWidgets: [
            ["1", "text"],
            ["-1", "x"],
            [3, "seed"],
          ],
        },
      ),
    }),
    { maxLength: 7, selector: ({ id }) => String(id) },
  ),
  links: fc.array(
    fc.tuple(
      fc.integer({ min: 0, max: 6 }),
      fc.integer({ min: -10, max: 9 }),
      fc.integer({ min: 0, max: 2 }),
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 0, max: 2 }),
    ),
    { maxLength: 7 },
  ),
});
const subgraph = fc.tuple(scope, fc.constantFrom("sub", "other")).map(([inner, id]) => ({
  ...inner,
  id,
  name: id,
  inputs: [{ name: "x", type: "INT", linkIds: [1, 2] }],
  outputs: [{ name: "y", type: "IMAGE", linkIds: [3] }],
}));
const uiDocument = fc
  .tuple(scope, fc.uniqueArray(subgraph, { maxLength: 2, selector: ({ id }) => id }), scope)
  .map(([root, subgraphs, group]) => ({
    ...root,
    last_node_id: 9,
    definitions: { subgraphs },
    extra: {
      groupNodes: { g: { ...group, external: [[0, 0]] } },
      ue_links: [{ upstream: 1, downstream: 2, controller: 3, type: "IMAGE" }],
    },
  }));
const asJson = (value: unknown) => parseJson(JSON.stringify(value));

describe("parseWorkflow", () => {
  test("answers any text with a workflow or a typed error", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => void answer(() => parseWorkflow(text))),
    );
  });

  test("answers any JSON with a workflow or a typed error", () => {
    fc.assert(
      fc.property(fc.json(), (text) => void answer(() => parseWorkflow(text))),
      { numRuns: 300 },
    );
    fc.assert(
      fc.property(document, (value) => void answer(() => parseWorkflow(JSON.stringify(value)))),
      { numRuns: 1000 },
    );
  });

  test("answers any bytes, and any damage to a picture, with a workflow or a typed error", () => {
    const whole = [
      png(textChunk("prompt", '{"1":{"class_type":"A","inputs":{}}}'), textChunk("workflow", "{}")),
      mp4({ prompt: '{"1":{"class_type":"A","inputs":{}}}' }),
      webm({ PROMPT: '{"1":{"class_type":"A","inputs":{}}}' }),
    ];
    fc.assert(fc.property(fc.uint8Array(), (bytes) => void answer(() => parseWorkflow(bytes))));
    const damage = fc.array(fc.tuple(fc.nat(200), fc.nat(255)), { maxLength: 6 });
    fc.assert(
      fc.property(fc.constantFrom(...whole), damage, fc.nat(300), (media, changes, length) => {
        const bytes = Uint8Array.from(media.subarray(0, length));
        for (const [at, byte] of changes) {
          bytes[at] = byte;
        }
        answer(() => parseWorkflow(bytes));
      }),
      { numRuns: 500 },
    );
  });

  test("gives graphs whose every needed link has a node, and that explain and edit without fault", () => {
    fc.assert(
      fc.property(document, (value) => {
        const workflow = answer(() => parseWorkflow(JSON.stringify(value)));
        if (workflow !== undefined) {
          const needed = reachableNodes(workflow.graph, (name) => core.isOutput(name));
          for (const id of needed) {
            for (const input of Object.values(workflow.graph[id]?.inputs ?? {})) {
              expect(Object.keys(workflow.graph)).toContain(linkOf(input)?.nodeId ?? id);
            }
          }
          answer(() => explainWorkflow(workflow));
          answer(() => applyOverrides(workflow, { "1.text": "x", "KSampler.seed": 1 }));
          randomiseSeeds(workflow.graph);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe("convertUi", () => {
  /** Ids of the file's own nodes, as the last part of any id in the prompt. */
  const idsOf = (value: unknown, found: Set<string> = new Set()): Set<string> => {
    if (Array.isArray(value)) {
      for (const item of value) {
        idsOf(item, found);
      }
    } else if (isJsonObject(value)) {
      if ("type" in value && "id" in value) {
        found.add(String(value["type"]));
      }
      idsOf(Object.values(value), found);
    }
    return found;
  };

  test("never invents a node, never leaves a link to a node that isn't there", () => {
    let converted = 0;
    fc.assert(
      fc.property(uiDocument, (value) => {
        const json = asJson(value);
        const graph = isJsonObject(json)
          ? answer(() => convertUi(json, core, fixed).graph)
          : undefined;
        for (const [id, node] of Object.entries(graph ?? {})) {
          expect([...idsOf(value), "KSampler"]).toContain(node.class_type);
          expect(id).toMatch(/^[\da-z]+(:[\da-z]+)*$/);
          for (const input of Object.values(node.inputs)) {
            expect(Object.keys(graph ?? {})).toContain(linkOf(input)?.nodeId ?? id);
          }
        }
        converted += Object.keys(graph ?? {}).length;
      }),
      { numRuns: 1500 },
    );
    expect(converted).toBeGreaterThan(200);
  });

  test("gives the same graph in the same order, whatever the order of the links", () => {
    fc.assert(
      fc.property(uiDocument, (value) => {
        const distinct = [...new Map(value.links.map((row) => [row[0], row])).values()];
        const turned = asJson({ ...value, links: [...distinct].reverse() });
        const straight = asJson({ ...value, links: distinct });
        const [one, other] = [straight, turned].map((json) =>
          isJsonObject(json)
            ? answer(() => JSON.stringify(convertUi(json, core, fixed).graph))
            : undefined,
        );
        expect(one).toBe(other as string);
      }),
      { numRuns: 300 },
    );
  });
});
