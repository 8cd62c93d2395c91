/** What ComfyUI would refuse, told by the whole program together with missing weights, and before anything is queued. */
import { describe, expect, test } from "bun:test";
import { ComfyUI } from "../comfyui.ts";
import { CheckDocument } from "../src/weights/check-document.ts";
import { MissingReport } from "../src/weights/report.ts";
import { keptLog, rejection, testConfig, UPSCALER_4X, weightOrigin } from "./support/app.ts";
import { comfyStub } from "./support/comfy-stub.ts";
import type { TempDir } from "./support/temp-dir.ts";
import { tempDir } from "./support/temp-dir.ts";

const EMPTY = { class_type: "EmptyImage", inputs: { width: 8, height: 8 } };
const SAVE = { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "x" } };
const UNKNOWN = { class_type: "IPAdapterUnifiedLoader", inputs: { preset: "x" } };
const LOADER = { class_type: "UpscaleModelLoader", inputs: { model_name: UPSCALER_4X } };
const SHOW = { class_type: "PreviewAny", inputs: { source: ["5", 0] } };
const RUNS = { "1": EMPTY, "2": SAVE };

async function connected(
  dir: TempDir,
  url: string,
  env: Readonly<Record<string, string>> = {},
): Promise<ComfyUI> {
  const config = testConfig(dir, { COMFYUI_ENGINE: "auto", COMFYUI_URL: url, ...env });
  const comfyui = new ComfyUI({ config });
  await comfyui.weights.load_manifest();
  await comfyui.start_server();
  return comfyui;
}

describe("handle_weights", () => {
  test("tells missing weights and what ComfyUI would refuse in one error, as text and as data", async () => {
    await using stub = comfyStub();
    using dir = tempDir();
    await using comfyui = await connected(dir, stub.url);
    const graph = {
      "1": { class_type: "EmptyImage", inputs: { width: 101 } },
      "2": SAVE,
      "3": UNKNOWN,
      "5": LOADER,
      "6": SHOW,
    };
    const error = await rejection(comfyui.handle_weights(graph));
    expect(error.code).toBe("WEIGHTS_MISSING");
    const text = error.message;
    expect(text.split("\n")[0]).toBe(`Missing required weights: ${UPSCALER_4X}`);
    expect(text).toContain("ComfyUI would refuse it for this too:");
    expect(text).toContain(
      "the class IPAdapterUnifiedLoader of the node pack cubiq/ComfyUI_IPAdapter_plus is not installed",
    );
    expect(text).toContain("height: nothing is connected or set");
    expect(text).toContain("width: '101' is more than 100");
    const { obstacles } = MissingReport.parse(error.details);
    expect(obstacles?.map(({ kind, blocks }) => [kind, blocks])).toEqual([
      ["unknown_class", true],
      ["refused", false],
      ["refused", true],
    ]);
  });

  test("fails before anything is queued when only classes are missing, with ComfyUI's own line", async () => {
    await using stub = comfyStub();
    stub.log =
      "x\nCannot import /c/custom_nodes/ComfyUI_IPAdapter_plus module for custom nodes: No module named 'insightface'\n";
    using dir = tempDir();
    await using comfyui = await connected(dir, stub.url);
    const error = await rejection(comfyui.handle_weights({ ...RUNS, "3": UNKNOWN }));
    expect(error.code).toBe("PROMPT_REJECTED");
    expect(error.message.split("\n")[0]).toBe(
      "ComfyUI would refuse the workflow: IPAdapterUnifiedLoader is missing because its node pack cubiq/ComfyUI_IPAdapter_plus is installed but did not load (node '3')",
    );
    expect(error.message).toContain("No module named 'insightface'");
  });

  test("fetches nothing for a workflow that ComfyUI would refuse afterwards", async () => {
    await using stub = comfyStub();
    await using source = weightOrigin();
    using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
    await using comfyui = await connected(dir, stub.url, {
      WEIGHTS_MANIFEST: dir.join("manifest.json"),
    });
    const graph = { ...RUNS, "3": UNKNOWN, "5": LOADER, "6": SHOW };
    const error = await rejection(comfyui.handle_weights(graph, { downloadMissing: true }));
    expect(error.code).toBe("WEIGHTS_MISSING");
    expect(source.origin.requests).toBe(0);
  });

  test("leaves to ComfyUI what a node may accept, and says so in the log", async () => {
    await using stub = comfyStub();
    using dir = tempDir();
    await using comfyui = await connected(dir, stub.url);
    const { log, lines } = keptLog();
    const graph = {
      "1": { class_type: "EmptyImage", inputs: { width: 101, height: 8 } },
      "2": SAVE,
    };
    await comfyui.handle_weights(graph, { log });
    expect(lines).toContain("warn: width: '101' is more than 100 (node '1'); going on");
  });

  test("asks an engine elsewhere again before it believes that a class is missing", async () => {
    await using stub = comfyStub();
    using dir = tempDir();
    await using comfyui = await connected(dir, stub.url);
    const graph = { ...RUNS, "3": UNKNOWN };
    expect((await rejection(comfyui.handle_weights(graph))).code).toBe("PROMPT_REJECTED");
    stub.info = { IPAdapterUnifiedLoader: { input: { required: {} }, output: [] } };
    await comfyui.handle_weights(graph);
    const { asked } = stub;
    await comfyui.handle_weights(graph);
    expect(stub.asked).toBe(asked);
  });

  test("believes a name that the engine lists, and checks nothing when that is asked", async () => {
    await using stub = comfyStub();
    using dir = tempDir();
    await using comfyui = await connected(dir, stub.url);
    const there = { class_type: "UpscaleModelLoader", inputs: { model_name: "there.safetensors" } };
    await comfyui.handle_weights({ "5": there, "6": SHOW });
    await comfyui.handle_weights({ "3": UNKNOWN, ...RUNS }, { skipCheck: true });
  });
});

test("the check as a document has the documented form", async () => {
  const { checkDocument } = await import("../src/weights/check-document.ts");
  await using stub = comfyStub();
  using dir = tempDir();
  await using comfyui = await connected(dir, stub.url);
  const workflow = await comfyui.load_workflow({ ...RUNS, "3": UNKNOWN, "5": LOADER, "6": SHOW });
  const refs = comfyui.find_weights(workflow);
  const validation = comfyui.check_weights(workflow);
  const obstacles = comfyui.find_obstacles(workflow, refs);
  const document = checkDocument(
    { refs, validation, obstacles },
    (ref) => comfyui.weights.resolve(ref, "request"),
    {},
  );
  expect(CheckDocument.parse(JSON.parse(JSON.stringify(document)))).toEqual(document);
  expect([document.ok, document.obstacles.length, document.weights.length]).toEqual([false, 1, 1]);
});
