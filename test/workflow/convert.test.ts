/** The page's rules, one by one, on files made for them. */
import { describe, expect, test } from "bun:test";
import { InputError } from "../../src/platform/errors.ts";
import type { JsonObject, JsonValue } from "../../src/platform/json.ts";
import { convertUi } from "../../src/workflow/convert.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { applyOverrides } from "../../src/workflow/overrides.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";

const core = NodeDefinitions.core();

interface NodeSpec {
  readonly id: number | string;
  readonly type: string;
  readonly [member: string]: JsonValue | undefined;
}

/** A UI document; links are `[from, slot, to, input name]`, and the inputs they need are added. */
function ui(
  nodes: readonly NodeSpec[],
  links: readonly (readonly [number, number, number, string, string?])[] = [],
  extra: JsonObject = {},
): JsonObject {
  const built = nodes.map((node) => ({
    ...node,
    inputs: [...((node["inputs"] ?? []) as JsonObject[])],
  }));
  const rows = links.map(([from, slot, to, name, type = "*"], index) => {
    const target = built.find(({ id }) => id === to);
    const known = target?.inputs.find((input) => input["name"] === name);
    if (known === undefined) {
      target?.inputs.push({ name, type, link: index + 1 });
    } else {
      known["link"] = index + 1;
    }
    return [index + 1, from, slot, to, 0, type];
  });
  return JSON.parse(JSON.stringify({ nodes: built, links: rows, ...extra }));
}

function convert(document: JsonObject, options = {}): Graph {
  return convertUi(document, core, options).graph;
}

/** The inputs of each node, which is what most rules are about. */
function inputsOf(graph: Graph): Record<string, unknown> {
  return Object.fromEntries(Object.entries(graph).map(([id, node]) => [id, node.inputs]));
}

const load = { id: 1, type: "LoadImage", widgets_values: ["a.png", "image"] };
const preview = { id: 9, type: "PreviewImage" };

describe("widgets", () => {
  test("take their names from the class, skip control words, and fall back to defaults", () => {
    const sampler = { id: 3, type: "KSampler", widgets_values: [42, "randomize", 30] };
    expect(inputsOf(convert(ui([sampler])))["3"]).toEqual({
      seed: 42,
      steps: 30,
      cfg: 8,
      sampler_name: "euler",
      scheduler: "simple",
      denoise: 1,
    });
  });

  test("stored as an object are read by name", () => {
    const node = {
      id: 3,
      type: "EmptyImage",
      widgets_values: { width: 7, color: 1, videopreview: {} },
    };
    expect(inputsOf(convert(ui([node])))["3"]).toEqual({
      width: 7,
      height: 512,
      batch_size: 1,
      color: 1,
    });
  });

  test("of a dynamic combo follow the chosen option", () => {
    const node = {
      id: 3,
      type: "ResizeImageMaskNode",
      widgets_values: ["scale by multiplier", 2.5, "area"],
    };
    expect(inputsOf(convert(ui([node])))["3"]).toEqual({
      resize_type: "scale by multiplier",
      "resize_type.multiplier": 2.5,
      scale_method: "area",
    });
  });

  test("hold integers as the page's JavaScript has them", () => {
    const node = { id: 3, type: "PrimitiveInt", widgets_values: [18446744073709551615n, "fixed"] };
    const graph = convertUi({ nodes: [node as unknown as JsonObject], links: [] }, core).graph;
    expect(inputsOf(graph)["3"]).toEqual({ value: 18446744073709552000 });
  });

  test("that hold a list are wrapped, so that no server takes them for a link", () => {
    const node = { id: 3, type: "CreateBoundingBoxes", widgets_values: [8, 8, ["1", 0]] };
    expect(inputsOf(convert(ui([node])))["3"]).toMatchObject({
      editor_state: { __value__: ["1", 0] },
    });
  });
});

describe("texts", () => {
  test("lose comments, and one of every choice is taken", () => {
    const text = "a {red|blue} cat // note\n/* b */ \\{x\\} {one} {a|{b|c}} {open|end";
    const node = { id: 3, type: "CLIPTextEncode", widgets_values: [text] };
    const last = { random: () => 0.99 };
    expect(inputsOf(convert(ui([node]), last))["3"]).toEqual({
      text: "a blue cat \n {x} one c end",
    });
  });

  test("with an unclosed comment stay as they are", () => {
    const node = { id: 3, type: "CLIPTextEncode", widgets_values: ["a /* b"] };
    expect(inputsOf(convert(ui([node])))["3"]).toEqual({ text: "a /* b" });
  });

  test("of file names get date and values, and keep what the server fills in", () => {
    const nodes = [
      { id: 2, type: "EmptyImage", title: "Blank", widgets_values: [640, 480] },
      {
        id: 3,
        type: "SaveImage",
        widgets_values: ["%date:yyyy-MM-dd_hhmmss%/%Blank.width%_%width%_%No.a%"],
      },
    ];
    const now = () => new Date(2026, 0, 2, 3, 4, 5);
    expect(inputsOf(convert(ui(nodes, [[2, 0, 3, "images"]]), { now }))["3"]).toEqual({
      filename_prefix: "2026-01-02_030405/640_%width%_%No.a%",
      images: ["2", 0],
    });
  });
});

describe("nodes that exist on the page only", () => {
  test("Set and Get nodes carry a link by name, also out of a subgraph's surroundings", () => {
    const document = ui(
      [
        load,
        { id: 2, type: "SetNode", widgets_values: ["picture"] },
        {
          id: 3,
          type: "GetNode",
          widgets_values: ["picture"],
          outputs: [{ name: "IMAGE", type: "IMAGE" }],
        },
        preview,
        { id: 4, type: "inner" },
      ],
      [
        [1, 0, 2, "IMAGE"],
        [3, 0, 9, "images", "IMAGE"],
      ],
      {
        definitions: {
          subgraphs: [
            {
              id: "inner",
              name: "Inner",
              nodes: [
                { id: 20, type: "GetNode", widgets_values: ["picture"] },
                {
                  id: 21,
                  type: "PreviewImage",
                  inputs: [{ name: "images", type: "IMAGE", link: 1 }],
                },
              ],
              links: [{ id: 1, origin_id: 20, origin_slot: 0, target_id: 21, target_slot: 0 }],
            },
          ],
        },
      },
    );
    const converted = convertUi(document, core);
    expect(inputsOf(converted.graph)).toEqual({
      "1": { image: "a.png" },
      "9": { images: ["1", 0] },
      "4:21": { images: ["1", 0] },
    });
    expect(converted.subgraphs).toEqual({ "4:21": ["Inner"] });
  });

  test("a loop of reroutes leaves the input out", () => {
    const document = ui(
      [{ id: 1, type: "Reroute" }, { id: 2, type: "Reroute" }, preview],
      [
        [1, 0, 2, ""],
        [2, 0, 1, ""],
        [1, 0, 9, "images"],
      ],
    );
    expect(inputsOf(convert(document))).toEqual({ "9": {} });
  });

  test("links of Use Everywhere are read from the file, where the input is free and the sender is on", () => {
    const everywhere = { id: 5, type: "Anything Everywhere", mode: 0 };
    const link = {
      upstream: 1,
      upstream_slot: 0,
      downstream: 9,
      downstream_slot: 0,
      controller: 5,
      type: "IMAGE",
    };
    const free = { ...preview, inputs: [{ name: "images", type: "IMAGE", link: null }] };
    const nodes = [load, everywhere, free];
    const wired = ui(nodes, [[1, 0, 5, "anything"]], { extra: { ue_links: [link] } });
    expect(inputsOf(convert(wired))).toEqual({
      "1": { image: "a.png" },
      "9": { images: ["1", 0] },
    });
    const muted = ui([load, { ...everywhere, mode: 2 }, free], [], { extra: { ue_links: [link] } });
    expect(inputsOf(convert(muted))["9"]).toEqual({});
  });
});

describe("group nodes", () => {
  const groupNodes = {
    "My group": {
      nodes: [
        {
          index: 0,
          type: "CLIPTextEncode",
          title: "Positive",
          inputs: [{ name: "clip", type: "CLIP", link: 77 }],
          outputs: [{ name: "CONDITIONING", type: "CONDITIONING" }],
          widgets_values: ["old"],
        },
        {
          index: 1,
          type: "KSampler",
          inputs: [
            { name: "model", type: "MODEL", link: null },
            { name: "positive", type: "CONDITIONING", link: 78 },
            { name: "negative", type: "CONDITIONING", link: null },
            { name: "latent_image", type: "LATENT", link: null },
            { name: "steps", type: "INT", widget: { name: "steps" }, link: null },
          ],
          outputs: [{ name: "LATENT", type: "LATENT" }],
          widgets_values: [1, "fixed", 20, 8, "euler", "normal", 1],
        },
      ],
      links: [
        [0, 0, 1, 1, 5, "CONDITIONING"],
        [null, 0, 0, 0, 4, "CLIP"],
      ],
      external: [[0, 0, "CONDITIONING"]],
    },
  };

  test.each(["workflow>My group", "workflow/My group"])("%s unfolds under ids by place", (type) => {
    const document = ui(
      [
        { id: 1, type: "CheckpointLoaderSimple", widgets_values: ["a.ckpt"] },
        { id: 2, type: "PrimitiveInt", widgets_values: [12] },
        {
          id: 7,
          type,
          outputs: [{ name: "CONDITIONING" }, { name: "LATENT" }],
          widgets_values: ["new", 5, "fixed", 7.5, "euler", "normal", 0.5],
        },
        { id: 8, type: "VAEDecode" },
        { id: 10, type: "ConditioningZeroOut" },
      ],
      [
        [1, 0, 7, "model"],
        [1, 1, 7, "clip"],
        [10, 0, 7, "negative"],
        [2, 0, 7, "steps"],
        [7, 1, 8, "samples"],
        [7, 0, 10, "conditioning"],
      ],
      { extra: { groupNodes } },
    );
    expect(inputsOf(convert(document))).toMatchObject({
      "7:0": { text: "new", clip: ["1", 1] },
      "7:1": {
        seed: 5,
        steps: ["2", 0],
        cfg: 7.5,
        denoise: 0.5,
        model: ["1", 0],
        positive: ["7:0", 0],
        negative: ["10", 0],
      },
      "8": { samples: ["7:1", 0] },
      "10": { conditioning: ["7:0", 0] },
    });
  });
});

describe("subgraphs", () => {
  const inner = (id: string, nodes: JsonObject[], more: JsonObject = {}) => ({
    id,
    name: id,
    inputs: [{ name: "text", type: "STRING", linkIds: [1] }],
    outputs: [],
    links: [
      { id: 1, origin_id: -10, origin_slot: 0, target_id: nodes[0]?.["id"] ?? 0, target_slot: 0 },
    ],
    nodes,
    ...more,
  });
  const prompt = {
    id: 20,
    type: "CLIPTextEncode",
    inputs: [{ name: "text", type: "STRING", widget: { name: "text" }, link: 1 }],
    widgets_values: ["saved"],
  };

  test("used twice keep their values apart", () => {
    const document = ui(
      [
        { id: 1, type: "s", widgets_values: ["one"] },
        { id: 2, type: "s", widgets_values: ["two"] },
        { id: 3, type: "s" },
      ],
      [],
      { definitions: { subgraphs: [inner("s", [prompt])] } },
    );
    expect(inputsOf(convert(document))).toEqual({
      "1:20": { text: "one" },
      "2:20": { text: "two" },
      "3:20": { text: "saved" },
    });
  });

  test("show widgets that can be set by the subgraph's own name or id", () => {
    const nodes = [
      { id: 1, type: "s", title: "Ask" },
      { id: 2, type: "s", properties: { proxyWidgets: [["20", "text"]] } },
    ];
    const workflow = parseWorkflow(
      ui(nodes, [], { definitions: { subgraphs: [inner("s", [prompt])] } }),
    );
    expect(workflow.shown).toEqual([
      { node: "1", title: "Ask", widget: "text", places: [{ node: "1:20", input: "text" }] },
      { node: "2", title: "s", widget: "text", places: [{ node: "2:20", input: "text" }] },
    ]);
    const { graph } = applyOverrides(workflow, { "Ask.text": "one", "2.text": "two" });
    expect(inputsOf(graph)).toEqual({ "1:20": { text: "one" }, "2:20": { text: "two" } });
    expect(() => applyOverrides(workflow, { "Aks.text": "x" })).toThrow(/did you mean 'Ask'/);
  });

  test("that contain themselves are refused by name", () => {
    const document = ui([{ id: 1, type: "s" }], [], {
      definitions: { subgraphs: [inner("s", [{ id: 2, type: "s" }])] },
    });
    expect(() => convert(document)).toThrow(
      new InputError("WORKFLOW_INVALID", "The subgraph 's' contains itself."),
    );
  });

  test("that multiply are refused", () => {
    const subgraphs = Array.from({ length: 40 }, (_none, index) =>
      inner(
        `s${index}`,
        [1, 2].map((id) => ({
          id,
          type: index < 39 ? `s${index + 1}` : "PreviewImage",
          inputs: [{ name: "text", link: 1 }],
        })),
      ),
    );
    const document = ui([{ id: 1, type: "s0" }], [], { definitions: { subgraphs } });
    expect(() => convert(document)).toThrow(/nodes; at most/);
  });

  test("chosen for App Mode show the inner values they stand for", () => {
    const document = ui([{ id: 1, type: "s", title: "Ask" }, load], [], {
      definitions: { subgraphs: [inner("s", [prompt])] },
      extra: {
        linearData: {
          inputs: [
            ["1", "image"],
            [1, "text"],
            ["20", "text"],
            ["7", "none"],
          ],
          outputs: [],
        },
      },
    });
    const [first, ...rest] = document["nodes"] as JsonObject[];
    const renumbered = {
      ...document,
      nodes: [...rest.map((node) => ({ ...node, id: 5 })), first ?? {}],
    };
    expect(convertUi(renumbered, core).exposed).toEqual([
      { name: "ask_text", node: "1:20", input: "text" },
      { name: "cliptextencode_text", node: "1:20", input: "text" },
    ]);
  });
});

describe("classes nobody knows", () => {
  const named = (name: string, type: string) => ({ name, type, widget: { name }, link: null });

  test("are converted where the file names the widgets", () => {
    const nodes = [
      {
        id: 1,
        type: "Mystery",
        inputs: [
          { name: "image", type: "IMAGE", link: null },
          named("seed", "INT"),
          named("mode", "COMBO"),
        ],
        outputs: [{ name: "IMAGE", type: "IMAGE" }],
        widgets_values: [7, "randomize", "fast"],
      },
      {
        id: 2,
        type: "Newer",
        widgets_values: [1, "fixed"],
        widgets_values_named: { a: 1, control_after_generate: "fixed" },
      },
      { id: 3, type: "Objects", widgets_values: { frame_rate: 8, videopreview: {} } },
    ];
    const links = [
      [1, 0, 2, "x"],
      [2, 0, 3, "y"],
    ] as const;
    expect(inputsOf(convert(ui(nodes, links)))).toEqual({
      "1": { seed: 7, mode: "fast" },
      "2": { a: 1, x: ["1", 0] },
      "3": { frame_rate: 8, y: ["2", 0] },
    });
  });

  test("are named in one error with their packs where it doesn't", () => {
    const nodes = [
      { id: 1, type: "A", widgets_values: [1], properties: { aux_id: "me/pack-a", ver: "abc" } },
      { id: 2, type: "B", widgets_values: ["x"], properties: { cnr_id: "pack-b" } },
      { id: 3, type: "C", inputs: [named("n", "INT")], widgets_values: ["no number"] },
      { id: 4, type: "D", mode: 4, widgets_values: [1] },
    ];
    const links = [
      [1, 0, 2, "x"],
      [2, 0, 3, "y"],
    ] as const;
    expect(() => convert(ui(nodes, links))).toThrow(
      expect.objectContaining({
        message:
          "The workflow has nodes whose values can't be named without their node pack: 'A', 'B' and 'C' (from me/pack-a, pack-b).",
        details: {
          unknown_nodes: [
            { nodeId: "1", classType: "A", pack: "me/pack-a", version: "abc" },
            { nodeId: "2", classType: "B", pack: "pack-b", version: undefined },
            { nodeId: "3", classType: "C", pack: undefined, version: undefined },
          ],
        },
      }),
    );
  });

  test("keep their values under numbers where the caller only looks", () => {
    const nodes = [
      { id: 1, type: "A", widgets_values: ["a.safetensors", 2], outputs: [{ type: "IMAGE" }] },
      preview,
    ];
    const document = ui(nodes, [[1, 0, 9, "images"]]);
    const workflow = parseWorkflow(document, { allowUnnamed: true });
    expect(inputsOf(workflow.graph)["1"]).toEqual({ widget_0: "a.safetensors", widget_1: 2 });
    expect(workflow.unnamed).toEqual([
      { nodeId: "1", classType: "A", pack: undefined, version: undefined },
    ]);
    expect(() => parseWorkflow(document)).toThrow(InputError);
  });

  test("are left out with a note where they are wired to nothing", () => {
    const converted = convertUi(
      ui([load, { id: 5, type: "Sticky Label", widgets_values: ["hi"] }]),
      core,
    );
    expect(Object.keys(converted.graph)).toEqual(["1"]);
    expect(converted.notes).toEqual([
      "Node 5 is left out: it is wired to nothing, and its class 'Sticky Label' is unknown.",
    ]);
  });

  test("that the running engine knows are converted by its definitions", () => {
    const engine = NodeDefinitions.fromObjectInfo({
      Mine: {
        input: { required: { strength: ["FLOAT", { default: 1 }], name: [["a", "b"]] } },
        output: [],
      },
    });
    const document = ui([{ id: 3, type: "Mine", widgets_values: [0.5] }, load]);
    expect(inputsOf(convertUi(document, engine).graph)).toEqual({
      "1": { image: "a.png" },
      "3": { strength: 0.5, name: "a" },
    });
  });
});

describe("what is switched off", () => {
  test("is left out and counted", () => {
    const nodes = [
      load,
      {
        id: 2,
        type: "ImageInvert",
        mode: 4,
        inputs: [{ name: "image", type: "IMAGE" }],
        outputs: [{ type: "IMAGE" }],
      },
      { ...preview, mode: 0 },
      { id: 10, type: "PreviewImage", mode: 2 },
    ];
    const converted = convertUi(
      ui(nodes, [
        [1, 0, 2, "image", "IMAGE"],
        [2, 0, 9, "images", "IMAGE"],
      ]),
      core,
    );
    expect(inputsOf(converted.graph)).toEqual({
      "1": { image: "a.png" },
      "9": { images: ["1", 0] },
    });
    expect(converted.notes).toEqual(["1 muted node is left out.", "1 bypassed node is left out."]);
  });
});

describe("files made to hurt end soon", () => {
  const consumers = (from: number, count: number, origin: number): NodeSpec[] =>
    Array.from({ length: count }, (_none, index) => ({
      id: from + index,
      type: "PreviewImage",
      inputs: [{ name: "images", type: "IMAGE", link: origin }],
    }));

  test("many readers of one long chain of reroutes", () => {
    const length = 8000;
    const chain = Array.from({ length }, (_none, id) => ({
      id: id + 1,
      type: "Reroute",
      inputs: [{ name: "", type: "*", link: id }],
    }));
    const nodes = [{ ...load, id: 99_999 }, ...chain, ...consumers(10_000, 8000, length)];
    const links = Array.from({ length: length + 1 }, (_none, id) => [
      id,
      id || 99_999,
      0,
      0,
      0,
      "*",
    ]);
    const graph = convert({ nodes: JSON.parse(JSON.stringify(nodes)), links });
    expect(graph["17999"]?.inputs["images"]).toEqual(["99999", 0]);
  });

  test("many readers of a bypassed node with many inputs", () => {
    const many = Array.from({ length: 900 }, (_none, index) => ({ name: `n${index}`, type: "X" }));
    const nodes = [
      { id: 1, type: "ImageInvert", mode: 4, inputs: many },
      ...consumers(10, 3000, 1),
    ];
    const graph = convert({
      nodes: JSON.parse(JSON.stringify(nodes)),
      links: [[1, 1, 0, 10, 0, "IMAGE"]],
    });
    expect(Object.keys(graph)).toHaveLength(3000);
  });

  test("a node with more inputs than any node has", () => {
    const many = Array.from({ length: 1001 }, (_none, index) => ({ name: `n${index}`, type: "X" }));
    expect(() =>
      convert({ nodes: [{ id: 1, type: "ImageInvert", inputs: many }], links: [] }),
    ).toThrow("The workflow has a node with 1001 inputs in the graph: '1'.");
  });

  test.each([
    ["of choices", "{a|".repeat(7e6)],
    ["of comments", "/*".repeat(4e5)],
    ["of open brackets", "{".repeat(9e5)],
    ["of percent signs", "%".repeat(9e5)],
  ])("megabytes %s in widgets", (_name, text) => {
    const nodes = [
      { id: 1, type: "CLIPTextEncode", widgets_values: [text] },
      { id: 2, type: "SaveImage", widgets_values: [text] },
    ];
    expect(Object.keys(convert({ nodes, links: [] }))).toEqual(["1", "2"]);
  });

  test("thousands of variables, set in the order opposite to their use", () => {
    const count = 3000;
    const variables = Array.from({ length: count }, (_none, index) => [
      { id: index, type: "GetNode", widgets_values: [`v${index}`] },
      {
        id: 10_000 + index,
        type: "SetNode",
        widgets_values: [`v${count - 1 - index}`],
        inputs: [{ name: "a", type: "*", link: 1 }],
      },
      ...consumers(20_000 + index, 1, 2 + index),
    ]).flat();
    const links = [
      [1, 99_999, 0, 0, 0],
      ...variables.keys().map((index) => [2 + index, index, 0, 0, 0]),
    ];
    const nodes = [{ ...load, id: 99_999 }, ...variables];
    const graph = convert({ nodes: JSON.parse(JSON.stringify(nodes)), links });
    expect(graph["22999"]?.inputs["images"]).toEqual(["99999", 0]);
  });
});
