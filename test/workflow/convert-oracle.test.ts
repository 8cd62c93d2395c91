/**
 * The recorded truth of ComfyUI's own page: for every UI file, the prompt it posts. Equal means node keys, classes,
 * inputs and titles. What differs is listed here with its reason, and nothing else may.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import type { JsonObject, JsonValue } from "../../src/platform/json.ts";
import { isJsonObject, parseJson } from "../../src/platform/json.ts";
import { convertUi } from "../../src/workflow/convert.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";
import { readWidgets } from "../../src/workflow/widgets.ts";
import { casePath, describeCases } from "../support/shared.ts";

/** Files where we mean to differ from the page. */
const WANTED_DIFFERENCES: Readonly<Record<string, string>> = {
  "templates_graphic_design_recomposer.json":
    "the page miscounts the slots of a primitive's target and sends a model name as aspect ratio, which the server refuses; the saved value is kept",
};

/** A graph as it would travel: what JSON can't tell apart (0 and -0) is the same. */
function plain(graph: unknown): unknown {
  return JSON.parse(JSON.stringify(graph));
}

describeCases("ui_to_api", () => {
  const files = readdirSync(casePath("ui_to_api", "ui")).sort();
  const definitions = NodeDefinitions.core();
  const results = files.map((file) => {
    const ui = parseJson(readFileSync(casePath("ui_to_api", "ui", file), "utf8"));
    const api: unknown = JSON.parse(readFileSync(casePath("ui_to_api", "api", file), "utf8"));
    const graph = isJsonObject(ui) ? convertUi(ui, definitions).graph : {};
    return { file, graph: plain(graph), api };
  });
  const same = results.filter(({ graph, api }) => Bun.deepEquals(graph, api, true)).length;

  test(`converts as the page does: ${same}/${results.length} recorded files equal`, () => {
    expect(results.length).toBeGreaterThan(0);
    for (const { file, graph, api } of results) {
      if (WANTED_DIFFERENCES[file] === undefined) {
        expect({ file, graph }).toEqual({ file, graph: api });
      }
    }
  });

  test("differs only where it means to", () => {
    const different = results.filter(({ graph, api }) => !Bun.deepEquals(graph, api, true));
    expect(different.map(({ file }) => file)).toEqual(Object.keys(WANTED_DIFFERENCES));
  });

  test("gives the same for a file parsed from its text, and the same twice", () => {
    for (const file of files.filter((name) => name.length % 7 === 0)) {
      const text = readFileSync(casePath("ui_to_api", "ui", file), "utf8");
      const api: unknown = JSON.parse(readFileSync(casePath("ui_to_api", "api", file), "utf8"));
      if (WANTED_DIFFERENCES[file] !== undefined || Object.keys(api ?? {}).length === 0) {
        continue;
      }
      const first = parseWorkflow(text);
      expect({ file, graph: plain(first.graph) }).toEqual({ file, graph: api });
      expect(JSON.stringify(parseWorkflow(text).graph)).toBe(JSON.stringify(first.graph));
    }
  });

  /** Ways in which the same file may be spelled: by page version, by template tool, by hand. */
  const spellings: [string, (scope: JsonObject) => void][] = [
    [
      "links as objects",
      (scope) => {
        scope["links"] = listOf(scope, "links").map((row) =>
          Array.isArray(row) ? asObject(row) : row,
        );
      },
    ],
    [
      "every widget among the inputs",
      (scope) => {
        for (const node of listOf(scope, "nodes").filter(isJsonObject)) {
          node["inputs"] = [...listOf(node, "inputs"), ...widgetInputs(node)];
        }
      },
    ],
    [
      "no unlinked inputs",
      (scope) => {
        for (const node of listOf(scope, "nodes").filter(isJsonObject)) {
          const isLinked = (input: JsonValue) =>
            isJsonObject(input) && typeof input["link"] === "number";
          const isInstance = definitions.get(String(node["type"])) === undefined;
          node["inputs"] = listOf(node, "inputs").filter((input) => isInstance || isLinked(input));
        }
      },
    ],
  ];

  function listOf(holder: JsonObject, key: string): JsonValue[] {
    const value = holder[key];
    return Array.isArray(value) ? value : [];
  }

  function asObject([
    id = 0,
    origin = 0,
    slot = 0,
    target = 0,
    targetSlot = 0,
  ]: JsonValue[]): JsonObject {
    return { id, origin_id: origin, origin_slot: slot, target_id: target, target_slot: targetSlot };
  }

  function widgetInputs(node: JsonObject): JsonObject[] {
    const definition = definitions.get(String(node["type"]));
    const values = listOf(node, "widgets_values");
    const present = new Set(
      listOf(node, "inputs").map((input) => isJsonObject(input) && input["name"]),
    );
    return (definition === undefined ? [] : readWidgets(definition, values, () => undefined))
      .filter(({ name }) => !present.has(name))
      .map(({ name }) => ({ name, type: "*", widget: { name }, link: null }));
  }

  test.each(spellings)("converts a file with %s as it converts the file", (_name, spell) => {
    for (const { file, graph } of results) {
      const document = parseJson(readFileSync(casePath("ui_to_api", "ui", file), "utf8"));
      const root = isJsonObject(document) ? document : {};
      const inner = isJsonObject(root["definitions"])
        ? listOf(root["definitions"], "subgraphs")
        : [];
      for (const scope of [root, ...inner.filter(isJsonObject)]) {
        spell(scope);
      }
      expect({ file, graph: plain(convertUi(root, definitions).graph) }).toEqual({ file, graph });
    }
  });

  test("finds the models that the templates name, with their folders", () => {
    const facts: unknown = JSON.parse(readFileSync(casePath("template_models.json"), "utf8"));
    const templates = isJsonObject(facts) ? facts : {};
    let checked = 0;
    for (const file of files) {
      const name = file.replace(/\.json$/, "");
      const entry = templates[name];
      const metadata = isJsonObject(entry) ? entry["metadata"] : undefined;
      if (!Array.isArray(metadata)) {
        continue;
      }
      const wanted = metadata
        .filter(isJsonObject)
        .map((row) => `${row["directory"]}/${row["name"]}`);
      const { models } = parseWorkflow(readFileSync(casePath("ui_to_api", "ui", file)));
      const found = models.map((hint) => `${hint.directory}/${hint.name}`);
      expect({ file, models: [...new Set(found)].sort() }).toEqual({
        file,
        models: [...new Set(wanted)].sort(),
      });
      checked += 1;
    }
    expect(checked).toBeGreaterThan(50);
  });
});

describeCases("workflows_api", () => {
  test.each(readdirSync(casePath("workflows_api")))("reads workflows_api/%s", (file) => {
    const bytes = readFileSync(casePath("workflows_api", file));
    const raw: unknown = JSON.parse(bytes.toString("utf8"));
    const workflow = parseWorkflow(bytes);
    if (isJsonObject(raw) && !Object.hasOwn(raw, "nodes")) {
      const nodes = Object.entries(raw).filter(
        ([, node]) => isJsonObject(node) && "class_type" in node,
      );
      expect(Object.keys(workflow.graph)).toEqual(nodes.map(([id]) => id));
    }
    expect(Object.keys(workflow.graph).length).toBeGreaterThan(0);
  });
});

describeCases("workflows_ui", () => {
  test.each(readdirSync(casePath("workflows_ui")))(
    "converts workflows_ui/%s, or names every node that it can't",
    (file) => {
      const bytes = readFileSync(casePath("workflows_ui", file));
      try {
        expect(Object.keys(parseWorkflow(bytes).graph).length).toBeGreaterThan(0);
      } catch (thrown) {
        expect(thrown).toMatchObject({
          code: "WORKFLOW_INVALID",
          message: expect.stringContaining("can't be named without their node pack"),
          details: { unknown_nodes: expect.any(Array) },
        });
      }
    },
  );
});
