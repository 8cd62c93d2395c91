/** `workflow explain`, `convert`, `expose` and `weights check` as a person calls them. */
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { PredictInput, Predictor } from "../../predict.ts";
import { runCommand } from "../../src/cli/command.ts";
import { COMMANDS } from "../../src/cli/commands.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { PROJECT_ROOT } from "../../src/platform/project-root.ts";
import { CheckDocument } from "../../src/weights/check-document.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";
import { testConfig } from "../support/app.ts";
import { comfyStub } from "../support/comfy-stub.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";

const RESIZE = join(PROJECT_ROOT, "examples/api_workflows/resize.json");

async function cli(
  dir: TempDir,
  argv: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<{ code: number; out: string; err: string }> {
  const config = testConfig(dir, env);
  await using predictor = new Predictor({ config });
  const written = { out: "", err: "" };
  const code = await runCommand(argv, COMMANDS, {
    services: {
      config,
      log: silentLogger,
      inputs: PredictInput,
      signal: new AbortController().signal,
      predictor: () => predictor,
      serve: () => Promise.resolve(0),
    },
    terminal: {
      out: (text) => {
        written.out += text;
      },
      err: (text) => {
        written.err += text;
      },
      isInteractive: false,
    },
  });
  return { code, ...written };
}

/** A graph of a pack's node that the file of an editor doesn't name the widgets of. */
const UNNAMED = JSON.stringify({
  nodes: [
    {
      id: 1,
      type: "TheirLoader",
      inputs: [],
      outputs: [{ name: "IMAGE", type: "IMAGE", links: [1] }],
      properties: { aux_id: "someone/their-nodes", ver: "0123456789abcdef" },
      widgets_values: ["a", 7],
    },
    {
      id: 2,
      type: "SaveImage",
      inputs: [{ name: "images", type: "IMAGE", link: 1 }],
      outputs: [],
      properties: {},
      widgets_values: ["x"],
    },
  ],
  links: [[1, 1, 0, 2, 0, "IMAGE"]],
  version: 0.4,
});

describe("workflow explain", () => {
  test("says what it is and what can be set", async () => {
    using dir = tempDir();
    const { code, out } = await cli(dir, [
      "workflow",
      "explain",
      RESIZE,
      "--set",
      "ImageScale.width=99",
    ]);
    expect(code).toBe(0);
    expect(out).toContain("2.width = 99");
    expect(out).toContain("Weights: none");
  });

  test("looks at a file whose nodes nobody knows, and tells the pack, the commit and the row that adds it", async () => {
    using dir = tempDir({ "w.json": UNNAMED });
    const { code, out } = await cli(dir, ["workflow", "explain", dir.join("w.json")]);
    expect(code).toBe(0);
    expect(out).toContain("Values without names: node 1 (TheirLoader of someone/their-nodes)");
    expect(out).toContain(
      'add to custom_nodes.json: { "repo": "https://github.com/someone/their-nodes", "commit": "0123456789abcdef" }',
    );
    const json = await cli(dir, ["workflow", "explain", dir.join("w.json"), "--json"]);
    expect(JSON.parse(json.out)).toMatchObject({
      unnamed: [{ nodeId: "1", classType: "TheirLoader" }],
      obstacles: [{ kind: "unknown_class", blocks: false }],
      weights: [],
    });
  });

  test("tells what the embedded engine can't run, and how to get the real one", async () => {
    using dir = tempDir({
      "w.json": JSON.stringify({
        "1": { class_type: "LoadAudio", inputs: { audio: "a.wav" } },
        "2": { class_type: "PreviewAny", inputs: { source: ["1", 0] } },
      }),
    });
    const { out } = await cli(dir, ["workflow", "explain", dir.join("w.json"), "--engine"]);
    expect(out).toContain("LoadAudio is not in the embedded engine");
    expect(out).toContain("set COMFYUI_PATH to the folder of a ComfyUI");
  });
});

describe("weights check", () => {
  const graph = (width: number) =>
    JSON.stringify({
      "1": { class_type: "EmptyImage", inputs: { width, height: 8 } },
      "2": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "x" } },
      "3": { class_type: "Mystery", inputs: {} },
    });

  test("asks the ComfyUI of COMFYUI_URL, and ends with 1 when it can't run though no weight is missing", async () => {
    await using stub = comfyStub();
    using dir = tempDir({ "w.json": graph(8) });
    const env = { COMFYUI_ENGINE: "auto", COMFYUI_URL: stub.url };
    const { code, out } = await cli(dir, ["weights", "check", dir.join("w.json")], env);
    expect(code).toBe(1);
    expect(out).toContain("ComfyUI would refuse it:\n\nthe class Mystery is not installed");
    const json = await cli(dir, ["weights", "check", dir.join("w.json"), "--json"], env);
    expect(CheckDocument.parse(JSON.parse(json.out))).toMatchObject({
      ok: false,
      obstacles: [{ kind: "unknown_class", blocks: true, classType: "Mystery" }],
    });
    stub.info = { Mystery: { input: {}, output: [] } };
    expect((await cli(dir, ["weights", "check", dir.join("w.json")], env)).code).toBe(0);
  });

  test("goes on with the tables when that ComfyUI is down, and says so", async () => {
    using dir = tempDir({ "w.json": graph(8) });
    const env = { COMFYUI_ENGINE: "auto", COMFYUI_URL: "http://127.0.0.1:9" };
    const { code, out, err } = await cli(dir, ["weights", "check", dir.join("w.json")], env);
    expect(code).toBe(0);
    expect(err).toContain("Judged without an engine");
    expect(out).toContain("Worth knowing");
    const wanted = await cli(dir, ["weights", "check", dir.join("w.json"), "--engine"], env);
    expect([wanted.code, wanted.err]).toEqual([1, expect.stringContaining("COMFYUI_URL")]);
  });

  test("checks the weight that --set names", async () => {
    using dir = tempDir();
    const file = join(PROJECT_ROOT, "examples/api_workflows/upscale.json");
    const set = ["--set", "UpscaleModelLoader.model_name=mine.safetensors"];
    const { code, out } = await cli(dir, ["weights", "check", file, ...set]);
    expect(code).toBe(3);
    expect(out).toContain("Missing required weights: mine.safetensors");
  });
});

describe("workflow convert", () => {
  test("writes the prompt of a file of the editor where -o says", async () => {
    using dir = tempDir();
    const file = join(PROJECT_ROOT, "examples/ui_workflows/upscale.json");
    const target = dir.join("deep/api.json");
    const { code, out } = await cli(dir, ["workflow", "convert", file, "-o", target, "--json"]);
    expect([code, JSON.parse(out)]).toEqual([0, { written: target, notes: expect.any(Array) }]);
    const graph = JSON.parse(readFileSync(target, "utf8"));
    expect(graph["2"]).toMatchObject({ class_type: "UpscaleModelLoader" });
    const printed = await cli(dir, ["workflow", "convert", file, "--json"]);
    expect(JSON.parse(printed.out)).toEqual(graph);
  });

  test("refuses values without names, which can't run", async () => {
    using dir = tempDir({ "w.json": UNNAMED });
    const target = dir.join("api.json");
    const { code } = await cli(dir, ["workflow", "convert", dir.join("w.json"), "-o", target]);
    expect([code, existsSync(target)]).toEqual([1, false]);
  });
});

describe("workflow expose", () => {
  test("writes the whole file with the table, which is then read from it; digits and all else survive", async () => {
    using dir = tempDir({
      "w.json": `{"extra": 1, "prompt": {
        "1": {"class_type": "KSampler", "inputs": {"seed": 18446744073709551615, "steps": 4}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}}`,
    });
    const target = dir.join("api.json");
    const { code } = await cli(dir, ["workflow", "expose", dir.join("w.json"), "-o", target]);
    expect(code).toBe(0);
    const text = readFileSync(target, "utf8");
    expect(text).toContain("18446744073709551615");
    expect(text).toContain('"extra": 1');
    expect(parseWorkflow(text).exposed).toMatchObject([
      { name: "seed", node: "1", input: "seed" },
      { name: "steps", node: "1", input: "steps" },
    ]);
  });

  test("keeps what App Mode chose, in the editor's own file", async () => {
    using dir = tempDir();
    const file = join(PROJECT_ROOT, "examples/ui_workflows/app_mode.json");
    const { out } = await cli(dir, ["workflow", "expose", file]);
    const { _meta, ...rest } = JSON.parse(out);
    expect(_meta.inputs.map(({ name }: { name: string }) => name)).toEqual([
      "image",
      "width",
      "upscale_method",
    ]);
    expect(rest).toEqual(JSON.parse(readFileSync(file, "utf8")));
  });
});

describe("predict", () => {
  const empty = JSON.stringify({
    "1": { class_type: "EmptyImage", inputs: { width: 8, height: 8, batch_size: 1, color: 0 } },
    "2": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "x" } },
  });

  test("--set goes before what -i overrides says of the same value", async () => {
    using dir = tempDir({ "w.json": empty });
    const words = [
      "predict",
      "-i",
      `workflow_json=@${dir.join("w.json")}`,
      "-i",
      "output_format=png",
    ];
    const set = ["-i", 'overrides={"1.width": 9, "1.height": 10}', "--set", "EmptyImage.width=11"];
    const wrong = await cli(dir, [...words, "--set", "1.widht=4", "-o", dir.join("a.png")]);
    expect(wrong.err).toContain("1.widht: node '1' has no input 'widht' (did you mean 'width'?)");
    const { code } = await cli(dir, [...words, ...set, "-o", dir.join("a.png")]);
    expect(code).toBe(0);
    const bytes = readFileSync(dir.join("a.0.png"));
    expect([bytes.readUInt32BE(16), bytes.readUInt32BE(20)]).toEqual([11, 10]);
  });

  test("takes the named inputs of WORKFLOW, and nothing else", async () => {
    using dir = tempDir();
    const env = { WORKFLOW: join(PROJECT_ROOT, "examples/api_workflows/named_inputs.json") };
    const photo = join(PROJECT_ROOT, "examples/photo.png");
    const words = ["predict", "-i", `photo=@${photo}`, "-i", "width=32", "-i", "output_format=png"];
    const { code } = await cli(dir, [...words, "-o", dir.join("b.png")], env);
    expect([code, readFileSync(dir.join("b.0.png")).readUInt32BE(16)]).toEqual([0, 32]);
    for (const more of [
      ["-i", "workflow_json={}"],
      ["--set", "2.width=3"],
    ]) {
      expect((await cli(dir, [...words, ...more, "-o", dir.join("c.png")], env)).code).toBe(2);
    }
  });
});
