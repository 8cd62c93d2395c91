/** Every form in which a workflow may come, and everything that is none. */
import { describe, expect, test } from "bun:test";
import { gzipSync } from "node:zlib";
import type { AppError } from "../../src/platform/errors.ts";
import { InputError } from "../../src/platform/errors.ts";
import type { JsonObject } from "../../src/platform/json.ts";
import { stringifyJson } from "../../src/platform/json.ts";
import { MAX_NODES } from "../../src/workflow/limits.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";
import {
  box,
  compressedChunk,
  exif,
  internationalChunk,
  jpeg,
  mp4,
  png,
  pngChunk,
  textChunk,
  webm,
  webp,
} from "./media-fixtures.ts";

const GRAPH = {
  "1": { class_type: "LoadImage", inputs: { image: "cat.png" } },
  "2": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "out" } },
};
const UI = {
  last_node_id: 2,
  last_link_id: 1,
  version: 0.4,
  nodes: [
    {
      id: 1,
      type: "LoadImage",
      mode: 0,
      outputs: [{ name: "IMAGE", type: "IMAGE", links: [1] }],
      widgets_values: ["cat.png", "image"],
      properties: {
        models: [
          { name: "a.safetensors", url: "https://example.org/a.safetensors", directory: "vae" },
        ],
      },
    },
    {
      id: 2,
      type: "SaveImage",
      mode: 0,
      inputs: [{ name: "images", type: "IMAGE", link: 1 }],
      widgets_values: ["out"],
    },
  ],
  links: [[1, 1, 0, 2, 0, "IMAGE"]],
};
const TITLED = {
  "1": { ...GRAPH["1"], _meta: { title: "Load Image" } },
  "2": { ...GRAPH["2"], _meta: { title: "Save Image" } },
};
const { last_node_id: _node, last_link_id: _link, version: _version, ...bareUi } = UI;
const objectLinks = {
  ...bareUi,
  version: 1,
  state: { lastNodeId: 2 },
  links: [{ id: 1, origin_id: 1, origin_slot: 0, target_id: 2, target_slot: 0, type: "IMAGE" }],
};
const text = JSON.stringify(GRAPH);
const base64 = (bytes: Uint8Array | string) => Buffer.from(bytes).toString("base64");

function refusal(source: string | Uint8Array | JsonObject): AppError {
  try {
    parseWorkflow(source);
  } catch (thrown) {
    if (thrown instanceof InputError) {
      return thrown;
    }
    throw thrown;
  }
  throw new Error("it was accepted");
}

describe("formats of API graphs", () => {
  const cases: [string, string | Uint8Array | JsonObject, string][] = [
    ["API JSON", text, "api"],
    ["API JSON as bytes", Buffer.from(text), "api"],
    ["an object", structuredClone(GRAPH), "api"],
    ["a byte order mark", `\uFEFF${text}`, "api"],
    ["UTF-16", Buffer.from(`\uFEFF${text}`, "utf16le"), "api"],
    ["gzip", gzipSync(text), "api"],
    ["a data URL", `data:application/json;base64,${base64(text)}`, "api"],
    ["a data URL without base64", `data:application/json,${encodeURIComponent(text)}`, "api"],
    [
      "a data URL of a PNG",
      `data:image/png;base64,${base64(png(textChunk("prompt", text)))}`,
      "api",
    ],
    ["JSON within a JSON string", JSON.stringify(text), "api"],
    ["a prompt request", JSON.stringify({ prompt: GRAPH, client_id: "x" }), "wrapped"],
    ["a prompt as text", JSON.stringify({ prompt: text }), "wrapped"],
    ["a serverless job", JSON.stringify({ input: { workflow: GRAPH } }), "wrapped"],
    ["a workflow wrapper", JSON.stringify({ workflow: GRAPH }), "wrapped"],
    ["a prediction", JSON.stringify({ input: { workflow_json: text } }), "wrapped"],
    ["a history entry", JSON.stringify({ prompt: [3, "id", GRAPH, {}, ["2"]] }), "wrapped"],
    ["what graphToPrompt returns", JSON.stringify({ output: GRAPH, workflow: UI }), "wrapped"],
    ["the guide's form", JSON.stringify({ _meta: {}, nodes: GRAPH }), "guide"],
    [
      "the guide's form as a list",
      JSON.stringify({
        nodes: Object.entries(GRAPH).map(([id, node]) => ({ id: Number(id), ...node })),
      }),
      "guide",
    ],
    ["a remark beside the nodes", JSON.stringify({ _comment: "mine", ...GRAPH }), "api"],
    ["a PNG", png(textChunk("prompt", text)), "api"],
    ["a PNG with compressed text", png(compressedChunk("prompt", text)), "api"],
    ["a PNG with international text", png(internationalChunk("prompt", text, false)), "api"],
    ["a PNG with packed international text", png(internationalChunk("prompt", text, true)), "api"],
    ["a WebP", webp(exif({ prompt: text })), "api"],
    ["a WebP in the other byte order", webp(exif({ prompt: text }, false)), "api"],
    [
      "a WebP whose EXIF has its usual header",
      webp(Buffer.concat([Buffer.from("Exif\0\0"), exif({ Prompt: text })])),
      "api",
    ],
    ["a JPEG", jpeg(exif({ prompt: text })), "api"],
    ["an MP4", mp4({ prompt: text }), "api"],
    ["a WebM", webm({ ENCODER: "x", PROMPT: text }), "api"],
    [
      "an MP4 whose comment holds both",
      mp4({ comment: JSON.stringify({ prompt: text, workflow: UI }) }),
      "api",
    ],
    ["Python's NaN", text.replace('"out"', '"NaN", "is_changed": [NaN]'), "api"],
  ];
  test.each(cases)("reads %s", (_name, source, format) => {
    const workflow = parseWorkflow(source);
    expect(workflow.format).toBe(format as "api");
    expect(Object.keys(workflow.graph)).toEqual(["1", "2"]);
    expect(workflow.graph["2"]?.inputs["images"]).toEqual(["1", 0]);
  });

  test("keeps integers beyond 2^53 digit for digit", () => {
    const seed = '{"3":{"class_type":"KSampler","inputs":{"seed":18446744073709551615}}}';
    expect(stringifyJson(parseWorkflow(seed).graph)).toBe(seed);
  });

  test("never touches the object it is given", () => {
    const given = {
      "1": { class_type: "A", inputs: {} },
      "2": { class_type: "A", inputs: { b: [1, 0] } },
    };
    const before = structuredClone(given);
    expect(parseWorkflow(given).graph["2"]?.inputs["b"]).toEqual(["1", 0]);
    expect(given).toEqual(before);
  });

  test("mends links whose node id is a number, and says so", () => {
    const workflow = parseWorkflow({
      ...GRAPH,
      "2": { class_type: "SaveImage", inputs: { images: [1, 0] } },
    });
    expect(workflow.graph["2"]?.inputs["images"]).toEqual(["1", 0]);
    expect(workflow.notes).toEqual(["Node 2: links with a number as node id were read as text."]);
  });
});

describe("formats of UI files", () => {
  const cases: [string, string | Uint8Array | JsonObject][] = [
    ["the 0.4 form", JSON.stringify(UI)],
    ["the form without the three classic keys", JSON.stringify(bareUi)],
    ["links as objects", JSON.stringify(objectLinks)],
    ["an object", structuredClone(UI)],
    ["a wrapper", JSON.stringify({ workflow: UI })],
    ["a PNG", png(textChunk("workflow", JSON.stringify(UI)))],
    [
      "a PNG whose prompt is damaged",
      png(textChunk("prompt", "{"), textChunk("workflow", JSON.stringify(UI))),
    ],
    ["a WebP", webp(exif({ workflow: JSON.stringify(UI) }))],
    ["an MP4", mp4({ workflow: JSON.stringify(UI) })],
  ];
  test.each(cases)("converts %s", (_name, source) => {
    const workflow = parseWorkflow(source);
    expect(workflow).toMatchObject({ format: "ui", graph: TITLED, subgraphs: {}, notes: [] });
    expect(workflow.ui).toBeDefined();
    expect(workflow.models).toEqual([
      { name: "a.safetensors", url: "https://example.org/a.safetensors", directory: "vae" },
    ]);
  });

  test("runs the prompt of a picture that holds both, and keeps what the UI file knows", () => {
    const both = png(textChunk("prompt", text), textChunk("workflow", JSON.stringify(UI)));
    const workflow = parseWorkflow(both);
    expect(workflow.graph).toEqual(GRAPH);
    expect(workflow.ui).toEqual(UI);
    expect(workflow.models.map(({ name }) => name)).toEqual(["a.safetensors"]);
  });

  test("takes the last of several workflows in one picture, and says so", () => {
    const other = JSON.stringify({ "1": { class_type: "Other", inputs: {} } });
    const three = png(
      textChunk("prompt", other),
      textChunk("prompt", "{}"),
      textChunk("prompt", text),
    );
    const workflow = parseWorkflow(three);
    expect(workflow.graph).toEqual(GRAPH);
    expect(workflow.notes).toEqual([
      'The PNG picture holds 3 different texts "prompt"; the last one is used.',
    ]);
  });
});

describe("what stands beside the nodes", () => {
  const meta = {
    required_weights: ["a.safetensors", "b.safetensors", "a.safetensors"],
    ignored_weights: "c.ckpt",
    inputs: [{ name: "photo", node: 1, input: "image", description: "Your picture" }],
    models: [
      {
        name: "d.pt",
        url: "https://example.org/d.pt",
        directory: "loras",
        hash: "ab",
        hash_type: "SHA256",
      },
    ],
  };
  test.each([
    ["API nodes", { _meta: meta, ...GRAPH }],
    ["the guide's form", { _meta: meta, nodes: GRAPH }],
    ["a wrapper", { _meta: meta, prompt: GRAPH }],
    ["a wrapped document", { input: { workflow: { _meta: meta, ...GRAPH } } }],
    ["a UI file", { _meta: meta, ...UI }],
  ])("is read from %s", (_name, document) => {
    expect(parseWorkflow(JSON.stringify(document))).toMatchObject({
      requiredWeights: ["a.safetensors", "b.safetensors"],
      ignoredWeights: ["c.ckpt"],
      exposed: [{ name: "photo", node: "1", input: "image", description: "Your picture" }],
      models: expect.arrayContaining([
        {
          name: "d.pt",
          url: "https://example.org/d.pt",
          directory: "loras",
          hash: "ab",
          hashType: "SHA256",
        },
      ]),
    });
  });

  test.each([
    [{ _meta: 3 }, "The workflow's _meta is not an object."],
    [
      { _meta: { required_weights: [3] } },
      "The workflow's _meta.required_weights is not a list of file names.",
    ],
    [
      { _meta: { inputs: {} } },
      'The workflow\'s _meta.inputs is not a list of {"name", "node", "input"}.',
    ],
    [
      { _meta: { inputs: [{ name: "a", node: "1" }] } },
      'The workflow\'s _meta.inputs[0] is not an object with "name", "node" and "input".',
    ],
  ])("is refused when malformed: %j", (extra, message) => {
    expect(refusal({ ...extra, ...GRAPH }).message).toBe(message);
  });

  test("names the node packs of a UI file", () => {
    const document = structuredClone(UI);
    Object.assign(document.nodes[0]?.properties ?? {}, { cnr_id: "comfyui-pack", ver: "abc" });
    expect(parseWorkflow(document).packs).toEqual({
      LoadImage: { cnrId: "comfyui-pack", version: "abc" },
    });
  });
});

describe("what is no workflow is described", () => {
  const deep = 10_000;
  const cases: [string, string | Uint8Array | JsonObject, RegExp, string][] = [
    ["nothing", "", /empty text/, "WORKFLOW_UNREADABLE"],
    ["white space", " \n ", /empty text/, "WORKFLOW_UNREADABLE"],
    ["a web page", "<!DOCTYPE html><html>", /an HTML page/, "WORKFLOW_UNREADABLE"],
    ["an address", "https://example.org/a.json", /an address/, "WORKFLOW_UNREADABLE"],
    ["a path", "./workflows/a.json", /the name of a file/, "WORKFLOW_UNREADABLE"],
    [
      "an LFS pointer",
      "version https://git-lfs.github.com/spec/v1\noid",
      /Git LFS pointer/,
      "WORKFLOW_UNREADABLE",
    ],
    ["prose", "a cat on a mat", /not JSON/, "WORKFLOW_UNREADABLE"],
    ["a list", "[1, 2]", /a list of 2 items/, "WORKFLOW_INVALID"],
    ["an empty list", "[]", /an empty list/, "WORKFLOW_INVALID"],
    ["an empty object", "{}", /an empty object/, "WORKFLOW_INVALID"],
    ["null", "null", /null/, "WORKFLOW_INVALID"],
    ["a number", "3", /a bare number/, "WORKFLOW_INVALID"],
    ["one node", JSON.stringify(GRAPH["1"]), /a single node/, "WORKFLOW_INVALID"],
    ["other JSON", '{"a": 1, "b": 2}', /an object with the keys 'a' and 'b'/, "WORKFLOW_INVALID"],
    [
      "node definitions",
      '{"A": {"input": {}, "output_node": true}}',
      /\/object_info/,
      "WORKFLOW_INVALID",
    ],
    ["an API description", '{"openapi": "3", "paths": {}}', /OpenAPI/, "WORKFLOW_INVALID"],
    [
      "a cut-off file",
      '{"1": {"class_type": "A"',
      /cut off at line 1, column 25: 2 brackets/,
      "WORKFLOW_UNREADABLE",
    ],
    [
      "a cut-off text",
      '{"1": {"class_type": "A',
      /a text and 2 brackets are still open/,
      "WORKFLOW_UNREADABLE",
    ],
    [
      "a trailing comma",
      '{"a": 1,\n}',
      /a comma before a closing bracket near line 1, column 8/,
      "WORKFLOW_UNREADABLE",
    ],
    ["single quotes", "{'a': 1}", /single quotes/, "WORKFLOW_UNREADABLE"],
    ["Python", '{"a": True}', /a Python value/, "WORKFLOW_UNREADABLE"],
    ["a comment", '{\n// mine\n"a": 1}', /a comment/, "WORKFLOW_UNREADABLE"],
    ["a depth bomb", `${"[".repeat(1e6)}`, /more than 200 levels/, "WORKFLOW_INVALID"],
    [
      "a closed depth bomb",
      `{"1":${"[".repeat(deep)}${"]".repeat(deep)}}`,
      /more than 200 levels/,
      "WORKFLOW_INVALID",
    ],
    ["a nested string bomb", nestedStrings(9), /looks like/, "WORKFLOW_INVALID"],
    [
      "a node without class",
      '{"7": {"inputs": {}}}',
      /a node without class_type: '7'/,
      "WORKFLOW_INVALID",
    ],
    [
      "a mixed graph",
      JSON.stringify({ ...GRAPH, "7": { inputs: {} }, x: 3 }),
      /without class_type: '7'; something that is no node under the key 'x'/,
      "WORKFLOW_INVALID",
    ],
    [
      "a number as class",
      '{"1":{"class_type":"A","inputs":{}},"2":{"class_type":4}}',
      /class_type is no text: '2'/,
      "WORKFLOW_INVALID",
    ],
    [
      "a list as inputs",
      '{"1":{"class_type":"A","inputs":[]}}',
      /inputs are no object: '1'/,
      "WORKFLOW_INVALID",
    ],
    [
      "a link to nowhere",
      '{"3":{"class_type":"SaveImage","inputs":{"images":["99",0]}}}',
      /a link from node 3 \(images\) to missing node 99/,
      "WORKFLOW_INVALID",
    ],
    [
      "a circle",
      '{"a":{"class_type":"X","inputs":{"i":["b",0]}},"b":{"class_type":"X","inputs":{"i":["a",0]}}}',
      /a cycle: b → a → b/,
      "WORKFLOW_INVALID",
    ],
    [
      "a node that reads itself",
      '{"a":{"class_type":"X","inputs":{"i":["a",0]}}}',
      /a cycle: a → a/,
      "WORKFLOW_INVALID",
    ],
    [
      "two nodes of one id in a list",
      '{"nodes":[{"id":1,"class_type":"A"},{"id":1,"class_type":"A"}]}',
      /two nodes with the id '1'/,
      "WORKFLOW_INVALID",
    ],
    [
      "two nodes of one id in a UI file",
      JSON.stringify({ ...UI, nodes: [UI.nodes[0], UI.nodes[0]] }),
      /two nodes with the id '1' in the graph/,
      "WORKFLOW_INVALID",
    ],
    [
      "a UI file without nodes",
      '{"nodes": [], "links": []}',
      /no node that can run/,
      "WORKFLOW_INVALID",
    ],
    [
      "notes only",
      '{"nodes": [{"id": 1, "type": "Note"}], "links": []}',
      /no node that can run/,
      "WORKFLOW_INVALID",
    ],
    [
      "a node without type in a UI file",
      JSON.stringify({ ...UI, nodes: [{ id: 4 }, UI.nodes[1]] }),
      /no node, at place 1/,
      "WORKFLOW_INVALID",
    ],
    [
      "too many nodes",
      JSON.stringify(
        Object.fromEntries(Array.from({ length: MAX_NODES + 1 }, (_, id) => [id, GRAPH["1"]])),
      ),
      /20001 nodes; at most 20000/,
      "WORKFLOW_INVALID",
    ],
    [
      "too many UI nodes",
      JSON.stringify({
        nodes: Array.from({ length: MAX_NODES + 1 }, (_, id) => ({ id, type: "Note" })),
        links: [],
      }),
      /20001 nodes/,
      "WORKFLOW_INVALID",
    ],
    ["a huge text", " ".repeat(68e6), /68.0 MB; at most/, "WORKFLOW_INVALID"],
    [
      "damaged gzip",
      gzipSync(text).subarray(0, 30),
      /gzip file that is damaged/,
      "WORKFLOW_UNREADABLE",
    ],
    ["a gzip bomb", gzipSync(Buffer.alloc(68e6)), /at most/, "WORKFLOW_INVALID"],
    ["a zip", Buffer.from("504b030400000000", "hex"), /a zip archive/, "WORKFLOW_UNREADABLE"],
    ["bytes", Buffer.from([1, 0, 2, 0xff]), /a binary file/, "WORKFLOW_UNREADABLE"],
    ["wrong UTF-8", Buffer.from([0x7b, 0xff, 0x7d]), /a binary file/, "WORKFLOW_UNREADABLE"],
    [
      "a picture without a workflow",
      png(),
      /PNG picture holds no ComfyUI workflow/,
      "WORKFLOW_INVALID",
    ],
    [
      "a picture of another program",
      png(textChunk("parameters", "a cat")),
      /parameters of another program/,
      "WORKFLOW_INVALID",
    ],
    [
      "a picture cut off",
      png(textChunk("prompt", text)).subarray(0, 60),
      /PNG picture is cut off/,
      "WORKFLOW_UNREADABLE",
    ],
    [
      "a picture with a wrong length",
      Buffer.concat([png().subarray(0, 33), pngChunk("tEXt", Buffer.alloc(4)).fill(0xff, 0, 4)]),
      /PNG picture is cut off/,
      "WORKFLOW_UNREADABLE",
    ],
    [
      "a picture whose text is broken",
      png(textChunk("prompt", "{")),
      /cut off at line 1/,
      "WORKFLOW_UNREADABLE",
    ],
    [
      "a picture with an exploding chunk",
      png(compressedChunk("prompt", "0".repeat(68e6))),
      /no ComfyUI workflow/,
      "WORKFLOW_INVALID",
    ],
    [
      "a WebP with nonsense as EXIF",
      webp(Buffer.from("II*\0\xff\xff\xff\xff", "latin1")),
      /WebP picture holds no/,
      "WORKFLOW_INVALID",
    ],
    [
      "a video without metadata",
      Buffer.concat([box("ftyp"), box("moov")]),
      /MP4 video holds no/,
      "WORKFLOW_INVALID",
    ],
    [
      "a data URL that is empty",
      "data:application/json;base64,",
      /data URL without content/,
      "WORKFLOW_UNREADABLE",
    ],
    ["a data URL with wrong escapes", "data:,%E0%A4%A", /can't be decoded/, "WORKFLOW_UNREADABLE"],
  ];
  test.each(cases)("%s", (_name, source, message, code) => {
    const error = refusal(source);
    expect({ message: error.message, code: error.code }).toEqual({
      message: expect.stringMatching(message),
      code: code as "WORKFLOW_INVALID",
    });
    expect(error.hint).toMatch(/^[A-Z].*\.$/);
    expect(error.message.length).toBeLessThan(1200);
  });

  test("an object that contains itself ends in an error", () => {
    const circle: JsonObject = {};
    circle["a"] = circle;
    expect(refusal(circle).message).toMatch(/more than 200 levels/);
  });
});

function nestedStrings(layers: number): string {
  let inner = text;
  for (let layer = 0; layer < layers; layer += 1) {
    inner = JSON.stringify(layer % 2 === 0 ? inner : { prompt: inner });
  }
  return inner;
}

describe("keys that programs trip over", () => {
  test("are ordinary names", () => {
    const hostile =
      '{"__proto__":{"class_type":"LoadImage","inputs":{"__proto__":"x","image":"a.png"}},' +
      '"constructor":{"class_type":"SaveImage","inputs":{"images":["__proto__",0]}}}';
    const { graph } = parseWorkflow(hostile);
    expect(Object.keys(graph)).toEqual(["__proto__", "constructor"]);
    expect(Object.getPrototypeOf(graph)).toBe(Object.prototype);
    expect(JSON.stringify(graph)).toBe(hostile);
    expect(({} as Record<string, unknown>)["class_type"]).toBeUndefined();
  });

  test("are no nodes that a link could mean", () => {
    expect(
      refusal('{"1":{"class_type":"SaveImage","inputs":{"images":["toString",0]}}}').message,
    ).toMatch(/missing node toString/);
  });
});

describe("links that nothing running needs", () => {
  test("may lead nowhere, with a note", () => {
    const workflow = parseWorkflow({
      ...GRAPH,
      "5": { class_type: "ImageInvert", inputs: { image: ["99", 0] } },
    });
    expect(workflow.notes).toEqual([
      "Nothing that runs needs it: a link from node 5 (image) to missing node 99.",
    ]);
  });
});
