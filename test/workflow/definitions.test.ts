import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { ConfigError } from "../../src/platform/errors.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import { casePath, describeCases } from "../support/shared.ts";

describe("the committed table", () => {
  const core = NodeDefinitions.core();

  test("knows ComfyUI's own nodes with their inputs in order", () => {
    const sampler = core.get("KSampler");
    expect(sampler?.inputs.map(({ name }) => name)).toEqual([
      "model",
      "seed",
      "steps",
      "cfg",
      "sampler_name",
      "scheduler",
      "positive",
      "negative",
      "latent_image",
      "denoise",
    ]);
    expect(sampler?.inputs[1]).toEqual({
      name: "seed",
      type: "INT",
      required: true,
      default: 0,
      min: 0,
      max: 2 ** 64,
      control: true,
    });
    expect(sampler?.outputs).toEqual([{ name: "LATENT", type: "LATENT" }]);
    expect(core.input("KSampler", "scheduler")?.choices).toContain("karras");
  });

  test("tells outputs, partner nodes and unknown classes", () => {
    expect(
      ["SaveImage", "LoadImage", "Mystery", "constructor"].map((name) => core.isOutput(name)),
    ).toEqual([true, false, undefined, undefined]);
    expect(core.get("FluxProUltraImageNode")?.isApiNode).toBe(true);
    expect(core.has("__proto__")).toBe(false);
  });

  test("finds dotted inputs of dynamic combos and growing groups", () => {
    expect(core.input("ResizeImageMaskNode", "resize_type.multiplier")).toMatchObject({
      type: "FLOAT",
      max: 8,
    });
    expect(core.input("BatchImagesNode", "images.image3")).toMatchObject({ type: "IMAGE" });
    expect(core.input("ComfyMathExpression", "values.b")).toMatchObject({ name: "b" });
    expect(core.input("KSampler", "no.such")).toBeUndefined();
  });

  test("is small and holds no help texts", () => {
    const text = readFileSync(
      `${import.meta.dir}/../../src/workflow/core-definitions.json`,
      "utf8",
    );
    expect(text.length).toBeLessThan(600_000);
    expect(text).not.toContain('"tooltip"');
  });
});

describe("an engine's /object_info", () => {
  test("is read tolerantly", () => {
    const definitions = NodeDefinitions.fromObjectInfo({
      Good: {
        input: {
          required: { a: [["x", "y"], { default: "y", tooltip: "help" }], b: ["IMAGE"], broken: 3 },
          optional: { c: ["INT", { min: 1, max: 9, step: 2, forceInput: true }] },
        },
        input_order: { required: ["b", "a"] },
        output: ["IMAGE", ["p", "q"]],
        output_name: ["picture"],
        output_node: true,
        python_module: "custom_nodes.good",
      },
      Odd: "nonsense",
    });
    expect(definitions.get("Good")).toEqual({
      classType: "Good",
      displayName: "Good",
      inputs: [
        { name: "b", type: "IMAGE", required: true },
        { name: "a", type: "COMBO", required: true, choices: ["x", "y"], default: "y" },
        { name: "c", type: "INT", required: false, min: 1, max: 9, step: 2, forceInput: true },
      ],
      outputs: [
        { name: "picture", type: "IMAGE" },
        { name: "COMBO", type: "COMBO" },
      ],
      isOutput: true,
      isApiNode: false,
      pythonModule: "custom_nodes.good",
    });
    expect(definitions.get("Odd")).toBeUndefined();
    expect(definitions.source).toBe("engine");
  });

  test("that is none is refused", () => {
    expect(() => NodeDefinitions.fromObjectInfo([1])).toThrow(ConfigError);
  });
});

describeCases("object_info_core.json", () => {
  test("the committed table says what the /object_info it was made from says", () => {
    const info: unknown = JSON.parse(readFileSync(casePath("object_info_core.json"), "utf8"));
    const engine = NodeDefinitions.fromObjectInfo(info);
    const core = NodeDefinitions.core();
    expect(core.classes()).toEqual(engine.classes());
    for (const name of engine.classes()) {
      const {
        displayName: _page,
        pythonModule: _module,
        ...table
      } = core.get(name) ?? { displayName: "", pythonModule: "" };
      const {
        displayName: _server,
        pythonModule: _where,
        ...live
      } = engine.get(name) ?? { displayName: "", pythonModule: "" };
      expect({ name, ...table }).toEqual({ name, ...live });
    }
  });
});
