import { describe, expect, test } from "bun:test";
import { InputError } from "../../src/platform/errors.ts";
import type { JsonObject } from "../../src/platform/json.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import { applyOverrides, readOverrides, readSetting } from "../../src/workflow/overrides.ts";

const workflow = {
  graph: {
    "1": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "a.safetensors" } },
    "3": {
      class_type: "KSampler",
      inputs: { seed: 1, steps: 20, sampler_name: "euler", model: ["1", 0] as [string, number] },
      _meta: { title: "Sampler v1.5" },
    },
    "6": { class_type: "CLIPTextEncode", inputs: { text: "a dog" }, _meta: { title: "Positive" } },
    "7": { class_type: "CLIPTextEncode", inputs: { text: "" }, _meta: { title: "Negative" } },
    "57:3": { class_type: "ImageScaleBy", inputs: { scale_by: 2 }, _meta: { title: "Scale" } },
    "57:12:3": { class_type: "ImageScaleBy", inputs: { scale_by: 3 }, _meta: { title: "Scale" } },
    "8": { class_type: "SaveVideo", inputs: { format: "auto" } },
    "9": { class_type: "ResizeImageMaskNode", inputs: { "resize_type.width": 64, flag: true } },
    "10": { class_type: "Unknown", inputs: { any: "x", wire: ["3", 0] as [string, number] } },
    "11": { class_type: "LoadImage", inputs: { image: "a.png" } },
    "12": { class_type: "PrimitiveBoolean", inputs: { value: true } },
  },
  subgraphs: { "57:3": ["Upscale"], "57:12:3": ["Upscale", "Fine"] },
};

function set(overrides: JsonObject): Record<string, unknown> {
  const { applied } = applyOverrides(workflow, overrides);
  return Object.fromEntries(
    applied.map(({ nodeId, input, after }) => [`${nodeId}.${input}`, after]),
  );
}

function problem(overrides: JsonObject): string {
  try {
    applyOverrides(workflow, overrides);
  } catch (thrown) {
    if (thrown instanceof InputError) {
      return thrown.message;
    }
    throw thrown;
  }
  throw new Error("it was accepted");
}

describe("applyOverrides", () => {
  test.each<[string, JsonObject, Record<string, unknown>]>([
    ["an id", { "6.text": "a cat" }, { "6.text": "a cat" }],
    ["a title", { "Positive.text": "a cat" }, { "6.text": "a cat" }],
    ["a title with a dot", { "Sampler v1.5.steps": 5 }, { "3.steps": 5 }],
    ["a class", { "KSampler.seed": 18446744073709551615n }, { "3.seed": 18446744073709551615n }],
    ["the id of an inner node", { "57:3.scale_by": 4 }, { "57:3.scale_by": 4 }],
    ["a path to a nested node", { "Upscale/Fine/Scale.scale_by": 4 }, { "57:12:3.scale_by": 4 }],
    ["a path that skips a level", { "Fine/ImageScaleBy.scale_by": 4 }, { "57:12:3.scale_by": 4 }],
    ["a path of ids", { "57/12/3.scale_by": 4 }, { "57:12:3.scale_by": 4 }],
    ["an input with a dot", { "9.resize_type.width": 128 }, { "9.resize_type.width": 128 }],
    ["an input the node only declares", { "3.denoise": 0.5 }, { "3.denoise": 0.5 }],
    ["a number as text", { "3.steps": "12" }, { "3.steps": 12 }],
    ["a truth value as text", { "12.value": "False" }, { "12.value": false }],
    ["a number where text is wanted", { "6.text": 7 }, { "6.text": "7" }],
    [
      "a weight that isn't there yet",
      { "1.ckpt_name": "new.safetensors" },
      { "1.ckpt_name": "new.safetensors" },
    ],
    ["a file of a combo that lists none", { "11.image": "cat.png" }, { "11.image": "cat.png" }],
    ["a value of an unknown class", { "10.any": [1, 2] }, { "10.any": { __value__: [1, 2] } }],
  ])("sets by %s", (_name, overrides, applied) => {
    expect(set(overrides)).toEqual(applied);
  });

  test("changes a copy", () => {
    const before = structuredClone(workflow);
    const { graph } = applyOverrides(workflow, { "6.text": "a cat", "3.denoise": 0.5 });
    expect(graph["6"]?.inputs).toEqual({ text: "a cat" });
    expect(graph["3"]?.inputs).toEqual({ ...workflow.graph["3"].inputs, denoise: 0.5 });
    expect(workflow).toEqual(before);
  });

  test.each<[string, JsonObject, string]>([
    [
      "an unknown node",
      { "KSampeler.seed": 1 },
      "no node has this id, title or class (did you mean 'KSampler'?)",
    ],
    ["an unknown input", { "3.stepz": 1 }, "node '3' has no input 'stepz' (did you mean 'steps'?)"],
    [
      "an ambiguous class",
      { "CLIPTextEncode.text": "x" },
      "several nodes are meant: '6' and '7'; use an id",
    ],
    [
      "an ambiguous title",
      { "Scale.scale_by": 1 },
      "several nodes are meant: '57:3' and '57:12:3'; use an id",
    ],
    [
      "a name without a dot",
      { text: "x" },
      "the name lacks a dot between node and input, as in 6.text",
    ],
    ["a connection", { "3.model": "x" }, "it is a connection, wired to node 1, not a value"],
    [
      "a connection of an unknown class",
      { "10.wire": 1 },
      "it is a connection, wired to node 3, not a value",
    ],
    ["a wrong kind", { "3.steps": "many" }, "'many' is not a whole number"],
    ["a broken number", { "3.steps": 1.5 }, "'1.5' is not a whole number"],
    ["a number out of range", { "3.steps": 0 }, "'0' is outside of 1 … 10000"],
    [
      "a wrong choice",
      { "3.sampler_name": "eular" },
      "'eular' is not among its choices (did you mean 'euler'",
    ],
    ["a list where text is wanted", { "6.text": ["1", 0] }, '["1",0] is no text'],
    ["no truth value", { "12.value": "perhaps" }, "'perhaps' is neither true nor false"],
  ])("refuses %s", (_name, overrides, message) => {
    expect(problem(overrides)).toContain(message);
  });

  test("tells every problem at once", () => {
    expect(problem({ "99.x": 1, "6.txt": "x", "3.steps": 5 })).toMatch(/99\.x: .*; 6\.txt: /);
  });

  test("checks against the engine's own definitions", () => {
    const definitions = NodeDefinitions.fromObjectInfo({
      Unknown: { input: { required: { any: ["INT", { max: 3 }] } } },
    });
    expect(() => applyOverrides(workflow, { "10.any": 4 }, { definitions })).toThrow(
      /outside of -∞ … 3/,
    );
  });
});

describe("readOverrides", () => {
  test("reads JSON text, and nothing from nothing", () => {
    expect(readOverrides(' {"3.seed": 18446744073709551615} ')).toEqual({
      "3.seed": 18446744073709551615n,
    });
    expect(readOverrides("  ")).toEqual({});
  });

  test.each(["[1]", "{", "7", "null"])("refuses %s", (text) => {
    expect(() => readOverrides(text)).toThrow(InputError);
  });
});

test("readSetting takes JSON where it reads as JSON, else text", () => {
  expect(["6.text=a cat", "3.seed=7", "a.b==x", "6.text=", '6.text="7"'].map(readSetting)).toEqual([
    ["6.text", "a cat"],
    ["3.seed", 7],
    ["a.b", "=x"],
    ["6.text", ""],
    ["6.text", "7"],
  ]);
  expect(() => readSetting("novalue")).toThrow(InputError);
});
