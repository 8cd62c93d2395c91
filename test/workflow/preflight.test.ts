/** What the real server says to a prompt, and what we say before it is asked. */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import type { JsonObject } from "../../src/platform/json.ts";
import { isJsonObject } from "../../src/platform/json.ts";
import { readApiGraph } from "../../src/workflow/api-graph.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { preflight } from "../../src/workflow/preflight.ts";
import { looksLikeFile } from "../../src/workflow/values.ts";
import { casePath, describeCases } from "../support/shared.ts";

const core = NodeDefinitions.core();

function read(...parts: string[]): JsonObject {
  const value: unknown = JSON.parse(readFileSync(casePath(...parts), "utf8"));
  return isJsonObject(value) ? value : {};
}

/** Findings as `id.input: type`, sorted; findings of the whole prompt as their type. */
function findings(graph: Graph, definitions: NodeDefinitions): string[] {
  return preflight(graph, definitions)
    .map(({ nodeId, input, type }) =>
      nodeId === undefined ? type : `${nodeId}.${input ?? ""}: ${type}`,
    )
    .sort();
}

describeCases("ui_to_api", () => {
  test("finds what the real server refuses in the recorded prompts, and nothing else", () => {
    const features = Object.entries(read("ui_to_api", "features.json"));
    expect(features.length).toBeGreaterThan(0);
    for (const [name, facts] of features) {
      const graph = readApiGraph(read("ui_to_api", "api", `${name}.json`), []);
      const errors =
        isJsonObject(facts) && Array.isArray(facts["server_errors"]) ? facts["server_errors"] : [];
      expect({ name, found: findings(graph, core) }).toEqual({
        name,
        found: errors.map(String).sort(),
      });
    }
  });
});

describeCases("comfy_transcripts", () => {
  /** The server's own findings, but for those about files and links to nodes that don't exist, which parsing refuses. */
  function recorded(errors: JsonObject): string[] {
    return Object.entries(errors)
      .flatMap(([id, node]) => {
        const list = isJsonObject(node) && Array.isArray(node["errors"]) ? node["errors"] : [];
        return list.filter(isJsonObject).map((error) => {
          const info = isJsonObject(error["extra_info"]) ? error["extra_info"] : {};
          return { id, type: String(error["type"]), input: String(info["input_name"] ?? ""), info };
        });
      })
      .filter(({ type, info }) => {
        const isFile =
          type === "value_not_in_list" && looksLikeFile(String(info["received_value"]));
        return !isFile && type !== "custom_validation_failed" && !type.startsWith("exception_");
      })
      .map(({ id, input, type }) => `${id}.${input}: ${type}`)
      .sort();
  }

  /** What we tell though that version runs into it: 0.3.64 doesn't check combos of the newer spelling. */
  const ToldAnyway = new Set(["0.3.64 2.blend_mode: value_not_in_list"]);

  const versions: [string, string][] = [
    ["0.33.0", "object_info_core.json"],
    ["0.3.64", "object_info_core_0.3.64.json"],
  ];
  test.each(versions)("agrees with the recorded answers of ComfyUI %s", (version, info) => {
    const definitions = NodeDefinitions.fromObjectInfo(read(info));
    let compared = 0;
    for (const file of readdirSync(casePath("comfy_transcripts", version))) {
      const steps = read("comfy_transcripts", version, file)["steps"];
      for (const step of Array.isArray(steps) ? steps.filter(isJsonObject) : []) {
        const request = step["request_json"];
        const prompt = isJsonObject(request) ? request["prompt"] : undefined;
        const answer = step["response_json"];
        if (step["path"] !== "/prompt" || !isJsonObject(prompt) || !isJsonObject(answer)) {
          continue;
        }
        const graph = graphOf(prompt);
        if (
          graph === undefined ||
          (isJsonObject(request) && request["partial_execution_targets"])
        ) {
          continue;
        }
        const errors = isJsonObject(answer["node_errors"]) ? answer["node_errors"] : {};
        const found = findings(graph, definitions).filter(
          (text) => text !== "prompt_no_outputs" && !ToldAnyway.has(`${version} ${text}`),
        );
        const unknown = found.filter((text) => text.endsWith("missing_node_type"));
        // The server stops at the first unknown class; where there is one, nothing else can be compared.
        if (unknown.length === 0) {
          expect({ file, found }).toEqual({ file, found: recorded(errors) });
        } else {
          expect({ file, status: step["status"] }).toEqual({ file, status: 400 });
        }
        compared += 1;
      }
    }
    expect(compared).toBeGreaterThan(20);
  });

  /** The graph of a prompt that both sides can read: the server fails on a node without inputs, we don't. */
  function graphOf(prompt: JsonObject): Graph | undefined {
    const isWhole = Object.values(prompt).every((node) => isJsonObject(node) && "inputs" in node);
    try {
      return isWhole ? readApiGraph(prompt, []) : undefined;
    } catch {
      return undefined;
    }
  }
});

describe("preflight", () => {
  test("tells everything at once, in words", () => {
    const graph: Graph = {
      "1": { class_type: "EmptyImagee", inputs: {}, _meta: { title: "Blank" } },
      "2": {
        class_type: "ImageScale",
        inputs: { image: ["4", 3], upscale_method: "lancos", width: "x", height: 99999 },
      },
      "3": { class_type: "SaveImage", inputs: { images: ["2", 0], filename_prefix: "a" } },
      "4": { class_type: "CLIPTextEncode", inputs: { text: "a", clip: ["5", 2] } },
      "5": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "a.safetensors" } },
      "6": { class_type: "PreviewImage", inputs: { images: ["9", 0] } },
    };
    expect(preflight(graph, core).map(({ nodeId, message }) => `${nodeId}: ${message}`)).toEqual([
      "1: the class 'EmptyImagee' is not installed (did you mean 'EmptyImage'?)",
      "2: image: node 4 has 1 output, not number 3",
      "2: upscale_method: 'lancos' is not among its choices (did you mean 'lanczos'?)",
      "2: width: 'x' is not a whole number",
      "2: height: '99999' is more than 16384",
      "2: crop: nothing is connected or set",
      "4: clip: node 5 gives VAE, wanted is CLIP",
      "6: images: the link leads nowhere",
    ]);
  });

  test("says that nothing is saved or shown", () => {
    expect(preflight({ "1": { class_type: "EmptyImage", inputs: {} } }, core)).toEqual([
      { type: "prompt_no_outputs", message: "no node saves or shows anything", isCertain: true },
    ]);
  });

  test("names a circle", () => {
    const graph: Graph = {
      a: { class_type: "ImageInvert", inputs: { image: ["b", 0] } },
      b: { class_type: "ImageInvert", inputs: { image: ["a", 0] } },
      c: { class_type: "PreviewImage", inputs: { images: ["a", 0] } },
    };
    expect(preflight(graph, core)).toEqual([
      {
        type: "dependency_cycle",
        message: "nodes read from each other in a circle: 'b' and 'a'",
        isCertain: true,
      },
    ]);
  });

  test("lets a circle be that no output needs, as the server does", () => {
    const graph: Graph = {
      a: { class_type: "ImageInvert", inputs: { image: ["b", 0] } },
      b: { class_type: "ImageInvert", inputs: { image: ["a", 0] } },
      c: { class_type: "EmptyImage", inputs: { width: 8, height: 8, batch_size: 1, color: 0 } },
      d: { class_type: "PreviewImage", inputs: { images: ["c", 0] } },
    };
    expect(preflight(graph, core)).toEqual([]);
  });

  test("is certain only of what the server refuses whatever a node says itself", () => {
    const graph: Graph = {
      "1": { class_type: "EmptyImage", inputs: { width: "x", height: 99999, color: 0 } },
      "2": {
        class_type: "ImageScale",
        inputs: {
          image: ["1", 1],
          upscale_method: "lancos",
          width: 1,
          height: 1,
          crop: "disabled",
        },
      },
      "3": { class_type: "PreviewImage", inputs: { images: ["2", 0] } },
    };
    const types = preflight(graph, core).map(({ type, isCertain }) => [type, isCertain]);
    expect(types).toEqual([
      ["invalid_input_type", true],
      ["value_bigger_than_max", false],
      ["required_input_missing", true],
      ["bad_linked_input", false],
      ["value_not_in_list", false],
    ]);
  });

  test.each([
    ["nan", "FLOAT"],
    ["-Infinity", "FLOAT"],
    ["1_0.5e1", "FLOAT"],
    [{ __value__: 3 }, "FLOAT"],
  ])("takes %j for a %s as Python does", (value) => {
    const graph: Graph = {
      "1": { class_type: "PrimitiveFloat", inputs: { value } },
      "2": { class_type: "PreviewAny", inputs: { source: ["1", 0] } },
    };
    expect(preflight(graph, core).filter(({ isCertain }) => isCertain)).toEqual([]);
  });
});
