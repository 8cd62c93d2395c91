/** What stands in the way of a run, apart from weights. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { PROJECT_ROOT } from "../../src/platform/project-root.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import type { Graph, NodePack } from "../../src/workflow/graph.ts";
import { packOfClass } from "../../src/workflow/node-packs.ts";
import type { EngineFacts, Obstacle as Found } from "../../src/workflow/obstacles.ts";
import { findObstacles, Obstacle, obstacleBlocks } from "../../src/workflow/obstacles.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";

/** An engine with a few classes, as `/object_info` tells them. */
const INFO = {
  EmptyImage: {
    input: { required: { width: ["INT", { min: 1, max: 100 }], height: ["INT", {}] } },
    output: ["IMAGE"],
    output_node: false,
  },
  SaveImage: {
    input: { required: { images: ["IMAGE"], filename_prefix: ["STRING", {}] } },
    output: [],
    output_node: true,
  },
  LoraLoader: {
    input: { required: { lora_name: [["a.safetensors"]], image: ["IMAGE"] } },
    output: ["IMAGE"],
    output_node: false,
  },
  RecraftTextToImageNode: {
    input: { required: {} },
    output: ["IMAGE"],
    output_node: false,
    api_node: true,
  },
};
const definitions = NodeDefinitions.fromObjectInfo(INFO);
const EMPTY = { class_type: "EmptyImage", inputs: { width: 8, height: 8 } };
const save = (from: string) => ({
  class_type: "SaveImage",
  inputs: { images: [from, 0], filename_prefix: "x" },
});

function obstacles(
  graph: Graph,
  options: {
    packs?: Record<string, NodePack>;
    engine?: Partial<EngineFacts>;
    isTable?: boolean;
    isWeight?: () => boolean;
  } = {},
): Found[] {
  const workflow = { ...parseWorkflow(JSON.stringify(graph)), packs: options.packs ?? {} };
  const found = findObstacles(workflow, {
    ...(options.isTable === true
      ? {}
      : { definitions, engine: { kind: "real", importFailures: [], ...options.engine } }),
    isWeight: options.isWeight,
  });
  // Whatever is found has the documented form.
  return found.map((one) => Obstacle.parse(one));
}

const graphWith = (classType: string): Graph => ({
  "1": { class_type: classType, inputs: {}, _meta: { title: "Mine" } },
  "2": save("1"),
});

describe("a class that is missing", () => {
  test("is told with its pack and commit and the row that adds it, out of the table", () => {
    expect(obstacles(graphWith("IPAdapterUnifiedLoader"))).toEqual([
      {
        kind: "unknown_class",
        blocks: true,
        type: "missing_node_type",
        classType: "IPAdapterUnifiedLoader",
        message:
          "the class IPAdapterUnifiedLoader of the node pack cubiq/ComfyUI_IPAdapter_plus is not installed",
        fix: 'add to custom_nodes.json: { "repo": "https://github.com/cubiq/ComfyUI_IPAdapter_plus", "commit": "a0f451a" }',
        nodes: [{ nodeId: "1", classType: "IPAdapterUnifiedLoader", title: "Mine" }],
        pack: {
          name: "cubiq/ComfyUI_IPAdapter_plus",
          repo: "https://github.com/cubiq/ComfyUI_IPAdapter_plus",
          commit: "a0f451a",
          toldBy: "table",
        },
        customNodesRow:
          '{ "repo": "https://github.com/cubiq/ComfyUI_IPAdapter_plus", "commit": "a0f451a" }',
      },
    ]);
  });

  test.each([
    [
      "its repository and commit",
      { auxId: "someone/their-nodes", version: "0123456789abcdef0123456789abcdef01234567" },
      '{ "repo": "https://github.com/someone/their-nodes", "commit": "0123456789abcdef0123456789abcdef01234567" }',
    ],
    [
      "the registry's id of a pack that the table has",
      { cnrId: "comfyui-kjnodes", version: "1.0.5" },
      '{ "repo": "https://github.com/kijai/ComfyUI-KJNodes", "commit": "6c996e1" }',
    ],
    [
      "a repository without a commit",
      { auxId: "someone/their-nodes" },
      '{ "repo": "https://github.com/someone/their-nodes", "commit": "<commit>" }',
    ],
  ])("is told as the file says: %s", (_what, pack: NodePack, row) => {
    const [found] = obstacles(graphWith("TheirNode"), { packs: { TheirNode: pack } });
    expect(found?.customNodesRow).toBe(row);
    expect(found?.pack?.toldBy).toBe("workflow");
  });

  test("of a pack that only the registry knows has the registry's page", () => {
    const [found] = obstacles(graphWith("X"), { packs: { X: { cnrId: "some-pack" } } });
    expect(found?.fix).toBe("install the pack https://registry.comfy.org/nodes/some-pack");
  });

  test("of no known pack is told with a near match, or with what did not load", () => {
    expect(obstacles(graphWith("EmptyImagee"))[0]?.message).toBe(
      "the class EmptyImagee is not installed (did you mean 'EmptyImage'?)",
    );
    const line = "Cannot import /x/custom_nodes/odd module for custom nodes: No module named 'y'";
    const engine = { importFailures: [{ folder: "odd", line }] };
    expect(obstacles(graphWith("Whatever"), { engine })[0]?.log).toBe(line);
  });

  test("whose pack did not load is told with ComfyUI's own line", () => {
    const line =
      "Cannot import /x/custom_nodes/comfyui_ipadapter_plus module for custom nodes: No module named 'insightface'";
    const engine = { importFailures: [{ folder: "comfyui_ipadapter_plus", line }] };
    const [found] = obstacles(graphWith("IPAdapterUnifiedLoader"), { engine });
    expect(found).toMatchObject({ kind: "import_failed", blocks: true, log: line });
    expect(obstacleBlocks(found === undefined ? [] : [found])[0]).toContain(`log       ${line}`);
  });

  test("is told once for all its nodes", () => {
    const graph = { ...graphWith("TheirNode"), "3": { class_type: "TheirNode", inputs: {} } };
    const [found, ...others] = obstacles(graph);
    expect(found?.nodes.map(({ nodeId }) => nodeId)).toEqual(["1", "3"]);
    expect(others).toEqual([]);
  });

  test("but is ComfyUI's own needs a real one, or another version", () => {
    const embedded = obstacles(graphWith("VAEDecode"), { engine: { kind: "embedded" } });
    expect(embedded[0]).toMatchObject({ kind: "not_in_embedded", blocks: true });
    expect(embedded[0]?.fix).toContain("COMFYUI_PATH");
    expect(obstacles(graphWith("VAEDecode"))[0]).toMatchObject({ kind: "not_in_version" });
  });

  test("of a pack is not to be had in the embedded engine", () => {
    const [found] = obstacles(graphWith("IPAdapterUnifiedLoader"), {
      engine: { kind: "embedded" },
    });
    expect(found?.fix).toStartWith("node packs need a real ComfyUI (COMFYUI_PATH or COMFYUI_URL)");
    expect(found?.fix).toContain('"commit": "a0f451a"');
  });
});

describe("a partner's node", () => {
  test("is told with the reason where they are switched off", () => {
    const [found] = obstacles(graphWith("IdeogramV3"));
    expect(found).toMatchObject({ kind: "partner_node", blocks: true });
    expect(found?.message).toContain("--disable-api-nodes");
  });

  test("that the engine has is told, but left to it", () => {
    expect(obstacles(graphWith("RecraftTextToImageNode"))).toMatchObject([
      { kind: "partner_node", blocks: false },
    ]);
  });
});

describe("what ComfyUI would refuse", () => {
  test("is told all at once, and blocks only where no node could say otherwise", () => {
    const graph: Graph = {
      "1": { class_type: "EmptyImage", inputs: { width: 101 } },
      "2": save("1"),
    };
    expect(obstacles(graph).map(({ type, blocks, fix }) => [type, blocks, fix])).toEqual([
      ["value_bigger_than_max", false, "correct width of node 1"],
      ["required_input_missing", true, "connect or set height of node 1"],
    ]);
  });

  test("leaves names of weights to the report of weights", () => {
    const graph: Graph = {
      "1": EMPTY,
      "2": { class_type: "LoraLoader", inputs: { image: ["1", 0], lora_name: "civitai:1" } },
      "3": save("2"),
    };
    expect(obstacles(graph).map(({ type }) => type)).toEqual(["value_not_in_list"]);
    expect(obstacles(graph, { isWeight: () => true })).toEqual([]);
  });

  test("is nothing for a workflow that runs", () => {
    expect(obstacles({ "1": EMPTY, "2": save("1") })).toEqual([]);
  });
});

describe("without an engine", () => {
  test("nothing blocks; classes, circles and missing outputs are told", () => {
    const graph: Graph = {
      "1": { class_type: "IPAdapterUnifiedLoader", inputs: {} },
      "2": { class_type: "EmptyImage", inputs: { width: -1 } },
      "3": save("2"),
      "4": { class_type: "IdeogramV3", inputs: {} },
    };
    expect(obstacles(graph, { isTable: true }).map(({ kind, blocks }) => [kind, blocks])).toEqual([
      ["unknown_class", false],
      ["partner_node", false],
    ]);
    expect(obstacles({ "1": EMPTY }, { isTable: true })).toMatchObject([
      { type: "prompt_no_outputs", blocks: false },
    ]);
  });
});

describe("the table of packs", () => {
  test("has every pack of custom_nodes.json, at the commit pinned there", () => {
    const read = (name: string) => JSON.parse(readFileSync(join(PROJECT_ROOT, name), "utf8"));
    const table: Record<string, { commit?: string }> = read("src/workflow/node-packs.json");
    const lists: Record<string, { repo: string; commit: string }[]> = read("custom_nodes.json");
    const pinned = Object.values(lists).flat();
    expect(pinned.length).toBeGreaterThan(60);
    for (const { repo, commit } of pinned) {
      expect(table[repo.replace("https://github.com/", "")]?.commit).toBe(commit);
    }
  });

  test.each([
    ["UnetLoaderGGUF", "city96/ComfyUI-GGUF"],
    ["Power Lora Loader (rgthree)", "rgthree/rgthree-comfy"],
    ["Anything At All (rgthree)", "rgthree/rgthree-comfy"],
    ["ttN pipeLoader_v2", "TinyTerra/ComfyUI_tinyterraNodes"],
    ["GroundingDinoModelLoader (segment anything)", "fofr/comfyui_segment_anything"],
    ["easy fullLoader", "yolain/ComfyUI-Easy-Use"],
  ])("knows that %s is of %s", (classType, pack) => {
    expect(packOfClass(classType, undefined)?.name).toBe(pack);
  });

  test("has no class of ComfyUI's own, and is not misled by names of prototypes", () => {
    expect(packOfClass("KSampler", undefined)).toBeUndefined();
    expect(packOfClass("__proto__", undefined)).toBeUndefined();
    expect(packOfClass("constructor", { cnrId: "__proto__" })?.name).toBe("__proto__");
  });
});
