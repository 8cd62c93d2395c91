/** A workflow as an API of its own, and a workflow in words. */
import { describe, expect, test } from "bun:test";
import { explainWorkflow } from "../../src/workflow/explain.ts";
import {
  applyNamedInputs,
  namedInputs,
  proposeInputs,
  withExposed,
} from "../../src/workflow/expose.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";

const document = {
  _meta: {
    inputs: [
      { name: "photo", node: "1", input: "image", description: "Your picture" },
      { name: "width", node: "2", input: "width" },
      { name: "method", node: "2", input: "upscale_method" },
      { name: "extra", node: "4", input: "note" },
    ],
  },
  "1": { class_type: "LoadImage", inputs: { image: "cat.png" } },
  "2": {
    class_type: "ImageScale",
    inputs: { image: ["1", 0], upscale_method: "lanczos", width: 512, height: 0, crop: "disabled" },
    _meta: { title: "Resize" },
  },
  "3": { class_type: "SaveImage", inputs: { images: ["4", 0], filename_prefix: "out" } },
  "4": { class_type: "Stamp", inputs: { image: ["2", 0], note: "mine" } },
  "5": { class_type: "EmptyImage", inputs: { width: 8, height: 8, batch_size: 1, color: 0 } },
};

describe("named inputs", () => {
  test("have kind, range, choices and default from the node definitions", () => {
    expect(namedInputs(parseWorkflow(document))).toEqual([
      {
        name: "photo",
        description: "Your picture",
        places: [{ node: "1", input: "image" }],
        kind: "file",
        default: "cat.png",
        accepts: "image",
      },
      {
        name: "width",
        description: undefined,
        places: [{ node: "2", input: "width" }],
        kind: "integer",
        default: 512,
        min: 0,
        max: 16384,
        step: 1,
      },
      {
        name: "method",
        description: undefined,
        places: [{ node: "2", input: "upscale_method" }],
        kind: "choice",
        default: "lanczos",
        choices: ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"],
      },
      {
        name: "extra",
        description: undefined,
        places: [{ node: "4", input: "note" }],
        kind: "string",
        default: "mine",
      },
    ]);
  });

  test("set values in a copy, checked", () => {
    const workflow = parseWorkflow(document);
    const graph = applyNamedInputs(workflow, { width: "640", photo: "dog.png" });
    expect(graph["2"]?.inputs["width"]).toBe(640);
    expect(graph["1"]?.inputs["image"]).toBe("dog.png");
    expect(workflow.graph["2"]?.inputs["width"]).toBe(512);
    expect(() => applyNamedInputs(workflow, { method: "lancos", width: -1 })).toThrow(
      "Inputs don't fit: width: '-1' is outside of 0 … 16384; method: 'lancos' is not among its choices (did you mean 'lanczos'?).",
    );
  });

  test("that fit no node are told all at once", () => {
    const inputs = [
      { name: "a", node: "77", input: "x" },
      { name: "b", node: "2", input: "widht" },
      { name: "c", node: "2", input: "image" },
    ];
    expect(() => namedInputs(parseWorkflow({ ...document, _meta: { inputs } }))).toThrow(
      "The workflow's named inputs don't fit its nodes: a: there is no node 77; b: node 2 (ImageScale) has no input 'widht' (did you mean 'width'?); c: 'image' of node 2 is a connection, not a value.",
    );
  });

  test("are proposed for a workflow without any: files, and what is likely to change, of nodes that run", () => {
    expect(proposeInputs(parseWorkflow({ ...document, _meta: {} }))).toEqual([
      { name: "image", node: "1", input: "image" },
      { name: "width", node: "2", input: "width" },
      { name: "height", node: "2", input: "height" },
    ]);
  });

  test("written into a file are read back from it", () => {
    const workflow = parseWorkflow({ ...document, _meta: { required_weights: ["a.pt"] } });
    const rows = proposeInputs(workflow).map((row) => ({
      ...row,
      description: "",
      also: [{ node: "5", input: "width" }],
    }));
    const written = withExposed({ ...document, _meta: { required_weights: ["a.pt"] } }, rows);
    expect(parseWorkflow(JSON.stringify(written))).toMatchObject({
      graph: workflow.graph,
      requiredWeights: ["a.pt"],
      exposed: rows,
    });
  });

  test("get names that tell several of a kind apart", () => {
    const encode = (text: string, title: string) => ({
      class_type: "CLIPTextEncode",
      inputs: { text },
      _meta: { title },
    });
    const graph = {
      "1": encode("a", "Positive Prompt"),
      "2": encode("b", "Positive Prompt"),
      "3": encode("c", "否定"),
    };
    expect(proposeInputs(parseWorkflow(graph)).map(({ name }) => name)).toEqual([
      "positive_prompt_text",
      "positive_prompt_text_2",
      "text",
    ]);
  });
});

describe("explainWorkflow", () => {
  test("says what runs, what can be set, what is read and made", () => {
    const explanation = explainWorkflow(parseWorkflow(document));
    expect(explanation).toMatchObject({
      format: "api",
      nodeCount: 5,
      unneeded: ["5"],
      outputs: [{ nodeId: "3", classType: "SaveImage", title: "SaveImage" }],
      notes: [],
    });
    expect(
      explanation.classes.map(({ classType, count, isKnown }) => [classType, count, isKnown]),
    ).toEqual([
      ["LoadImage", 1, true],
      ["ImageScale", 1, true],
      ["SaveImage", 1, true],
      ["Stamp", 1, false],
    ]);
    expect(explanation.settable.map(({ name, kind }) => `${name}: ${kind}`)).toEqual([
      "1.image: file",
      "2.upscale_method: choice",
      "2.width: integer",
      "2.height: integer",
      "2.crop: choice",
      "3.filename_prefix: string",
      "4.note: string",
    ]);
    expect(explanation.settable[2]).toEqual({
      name: "2.width",
      nodeId: "2",
      title: "Resize",
      classType: "ImageScale",
      input: "width",
      kind: "integer",
      value: 512,
      default: 512,
      min: 0,
      max: 16384,
    });
    expect(explanation.files.map(({ name }) => name)).toEqual(["1.image"]);
    expect(explanation.named.map(({ name }) => name)).toEqual([
      "photo",
      "width",
      "method",
      "extra",
    ]);
  });

  test("names the pack of a class where the file does", () => {
    const node = {
      id: 1,
      type: "Mystery",
      properties: { aux_id: "me/pack" },
      outputs: [{ type: "IMAGE" }],
    };
    const save = { id: 2, type: "SaveImage", inputs: [{ name: "images", type: "IMAGE", link: 1 }] };
    const workflow = parseWorkflow({ nodes: [node, save], links: [[1, 1, 0, 2, 0, "IMAGE"]] });
    expect(explainWorkflow(workflow).classes[0]).toEqual({
      classType: "Mystery",
      displayName: "Mystery",
      count: 1,
      isKnown: false,
      isApiNode: false,
      pack: { auxId: "me/pack" },
    });
  });
});
