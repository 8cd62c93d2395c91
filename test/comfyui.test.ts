import { describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { ComfyUI } from "../comfyui.ts";
import { tinyUpscaler } from "../scripts/tiny-upscaler.ts";
import { WeightsDownloader } from "../weights_downloader.ts";
import {
  keptLog,
  rejection,
  testConfig,
  UPSCALER_2X,
  UPSCALER_4X,
  weightOrigin,
} from "./support/app.ts";
import type { TempDir } from "./support/temp-dir.ts";
import { tempDir } from "./support/temp-dir.ts";

const WORKFLOW = {
  "10": { class_type: "UpscaleModelLoader", inputs: { model_name: UPSCALER_4X } },
  "2": { class_type: "UpscaleModelLoader", inputs: { model_name: UPSCALER_2X } },
  "3": { class_type: "EmptyImage", inputs: { width: 8, height: 8, batch_size: 1, color: 255 } },
  "4": {
    class_type: "ImageUpscaleWithModel",
    inputs: { upscale_model: ["2", 0], image: ["3", 0] },
  },
  "5": {
    class_type: "ImageUpscaleWithModel",
    inputs: { upscale_model: ["10", 0], image: ["4", 0] },
  },
  "6": { class_type: "SaveImage", inputs: { images: ["5", 0], filename_prefix: "x" } },
};

function put(dir: TempDir, name: string, bytes: Uint8Array): void {
  mkdirSync(dir.join("models/upscale_models"), { recursive: true });
  writeFileSync(dir.join("models/upscale_models", name), bytes);
}

describe("ComfyUI without a running engine", () => {
  test("extract_required_weights names them as spelled, by node number, then _meta, once each", () => {
    using dir = tempDir();
    const comfyui = new ComfyUI({ config: testConfig(dir) });
    const meta = { _meta: { required_weights: ["extra.safetensors", UPSCALER_2X] }, ...WORKFLOW };
    const expected = [UPSCALER_2X, UPSCALER_4X, "extra.safetensors"];
    expect(comfyui.extract_required_weights(meta)).toEqual(expected);
    expect(comfyui.extract_required_weights(JSON.stringify(meta))).toEqual(expected);
  });

  test("validate_weights_exist answers [all_exist, missing]", () => {
    using dir = tempDir();
    const comfyui = new ComfyUI({ config: testConfig(dir) });
    put(dir, UPSCALER_2X, tinyUpscaler(2));
    expect(comfyui.validate_weights_exist(WORKFLOW)).toEqual([false, [UPSCALER_4X]]);
    expect(comfyui.weight_exists(UPSCALER_2X)).toBe(true);
    put(dir, UPSCALER_4X, tinyUpscaler(4));
    expect(comfyui.validate_weights_exist(WORKFLOW)).toEqual([true, []]);
  });

  test("validate_weights_exist skips everything when asked", () => {
    using dir = tempDir();
    const comfyui = new ComfyUI({ config: testConfig(dir) });
    expect(comfyui.validate_weights_exist(WORKFLOW, true)).toEqual([true, []]);
  });

  test.each([
    ["cut short", (bytes: Uint8Array) => bytes.subarray(0, bytes.length - 1)],
    ["an HTML page", () => new TextEncoder().encode("<!doctype html><html>login</html>")],
    [
      "a Git-LFS pointer",
      () =>
        new TextEncoder().encode(
          "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
        ),
    ],
    ["empty", () => new Uint8Array()],
  ])("a weight that is %s does not count as there", (_what, spoil) => {
    using dir = tempDir();
    const comfyui = new ComfyUI({ config: testConfig(dir) });
    put(dir, UPSCALER_2X, spoil(tinyUpscaler(2)));
    put(dir, UPSCALER_4X, tinyUpscaler(4));
    expect(comfyui.validate_weights_exist(WORKFLOW)).toEqual([false, [UPSCALER_2X]]);
  });

  test("handle_weights fails fast with one report of everything", async () => {
    using dir = tempDir();
    put(dir, "Tiny-Compact-2x.safetensors", tinyUpscaler(2));
    await using comfyui = new ComfyUI({ config: testConfig(dir) });
    const error = await rejection(comfyui.handle_weights(WORKFLOW));
    expect(error.code).toBe("WEIGHTS_MISSING");
    expect(error.message.split("\n")[0]).toBe(
      `Missing required weights: ${UPSCALER_2X}, ${UPSCALER_4X}`,
    );
    expect(error.message).toContain("Tiny-Compact-2x.safetensors");
    expect(error.message).toContain(dir.join("models/upscale_models"));
    expect(error.details).toMatchObject({
      missing: [
        {
          name: UPSCALER_2X,
          category: "upscale_models",
          nodes: [{ nodeId: "2", classType: "UpscaleModelLoader", input: "model_name" }],
        },
        { name: UPSCALER_4X },
      ],
    });
  });

  test("handle_weights fetches when asked, and says so in the log", async () => {
    await using source = weightOrigin();
    using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
    const config = testConfig(dir, { WEIGHTS_MANIFEST: dir.join("manifest.json") });
    const { log, lines } = keptLog();
    const weights = new WeightsDownloader({ config });
    await weights.load_manifest();
    await using comfyui = new ComfyUI({ config, weights });
    expect((await rejection(comfyui.handle_weights(WORKFLOW))).code).toBe("WEIGHTS_MISSING");
    expect(source.origin.requests).toBe(0);
    await comfyui.handle_weights(WORKFLOW, { downloadMissing: true, log });
    expect(comfyui.validate_weights_exist(WORKFLOW)).toEqual([true, []]);
    expect(lines.filter((line) => line.startsWith("Fetched and verified"))).toHaveLength(2);
  });

  test.each([
    ["fail", true, "WEIGHTS_MISSING"],
    ["fail", false, "WEIGHTS_MISSING"],
    ["per-request", false, "WEIGHTS_MISSING"],
    ["per-request", true, "fetched"],
    ["download", false, "fetched"],
  ])(
    "with WEIGHTS_POLICY=%s and download_missing_weights=%p it is %s",
    async (policy, asks, outcome) => {
      await using source = weightOrigin();
      using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
      const config = testConfig(dir, {
        WEIGHTS_MANIFEST: dir.join("manifest.json"),
        WEIGHTS_POLICY: policy,
      });
      const weights = new WeightsDownloader({ config });
      await weights.load_manifest();
      await using comfyui = new ComfyUI({ config, weights });
      const result = await comfyui.handle_weights(WORKFLOW, { downloadMissing: asks }).then(
        () => "fetched",
        (error) => error.code,
      );
      expect(result).toBe(outcome);
      if (policy === "fail" && asks) {
        const { hint } = await rejection(
          comfyui.handle_weights(WORKFLOW, { downloadMissing: true }),
        );
        expect(hint).toContain("WEIGHTS_POLICY=fail");
      }
    },
  );

  test("a separator of another system is given to ComfyUI as it lists the file", async () => {
    using dir = tempDir();
    mkdirSync(dir.join("models/upscale_models/sub"), { recursive: true });
    writeFileSync(dir.join("models/upscale_models/sub/a.safetensors"), tinyUpscaler(2));
    await using comfyui = new ComfyUI({ config: testConfig(dir) });
    const { log, lines } = keptLog();
    const handled = await comfyui.handle_weights(
      {
        "1": { class_type: "UpscaleModelLoader", inputs: { model_name: "sub\\a.safetensors" } },
        "2": { class_type: "LoadImage", inputs: { image: "x.png" } },
        "3": {
          class_type: "ImageUpscaleWithModel",
          inputs: { upscale_model: ["1", 0], image: ["2", 0] },
        },
        "4": { class_type: "SaveImage", inputs: { images: ["3", 0], filename_prefix: "x" } },
      },
      { log },
    );
    expect(handled.graph["1"]?.inputs["model_name"]).toBe("sub/a.safetensors");
    expect(lines.some((line) => line.includes("is given to ComfyUI as"))).toBe(true);
  });

  test("what needs an engine says that it was not started", async () => {
    using dir = tempDir();
    await using comfyui = new ComfyUI({ config: testConfig(dir) });
    expect(comfyui.is_server_running()).toBe(false);
    const workflow = await comfyui.load_workflow(WORKFLOW);
    expect((await rejection(comfyui.run_workflow(workflow))).code).toBe("ENGINE_UNAVAILABLE");
  });
});

describe("load_workflow", () => {
  test.each([
    ["not JSON at all", "{broken"],
    ["a list", "[1, 2]"],
    ["an empty object", "{}"],
    ["a node without class", '{"1": {"inputs": {}}}'],
    [
      "a link to a missing node",
      '{"1": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}}}',
    ],
    ["a number", "42"],
    ["an HTML page", "<!doctype html><html></html>"],
    ["a path", "/etc/passwd"],
  ])("answers %s with one sentence and a hint, no stack", async (_what, given) => {
    using dir = tempDir();
    await using comfyui = new ComfyUI({ config: testConfig(dir) });
    const { code, message } = await rejection(comfyui.load_workflow(given));
    expect(String(code)).toMatch(/^WORKFLOW_/);
    expect(message).not.toMatch(/\n\s+at /);
  });

  test("tells a URL that is 404, HTML, slow or inside from one another", async () => {
    using dir = tempDir();
    await using server = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: (request) =>
        request.url.endsWith("/html")
          ? new Response("<html>login</html>", { headers: { "content-type": "text/html" } })
          : new Response("", { status: 404 }),
    });
    await using open = new ComfyUI({ config: testConfig(dir, { ALLOW_PRIVATE_NETWORK: "1" }) });
    await using closed = new ComfyUI({ config: testConfig(dir) });
    expect((await rejection(open.load_workflow(`${server.url}missing`))).message).toContain(
      "answers 404",
    );
    expect((await rejection(open.load_workflow(`${server.url}html`))).message).toMatch(/HTML/i);
    expect(await rejection(closed.load_workflow(`${server.url}html`))).toMatchObject({
      code: "FETCH_REFUSED",
      hint: expect.stringContaining("ALLOW_PRIVATE_NETWORK"),
    });
  });

  test("reads text, a data URL, a wrapper and the guide's form to the same graph", async () => {
    using dir = tempDir();
    await using comfyui = new ComfyUI({ config: testConfig(dir) });
    const text = JSON.stringify(WORKFLOW);
    const forms = [
      text,
      `data:application/json;base64,${Buffer.from(text).toString("base64")}`,
      JSON.stringify({ prompt: WORKFLOW }),
      JSON.stringify({ _meta: { required_weights: [] }, nodes: WORKFLOW }),
      WORKFLOW,
    ];
    for (const form of forms) {
      const { graph } = await comfyui.load_workflow(form);
      expect(Object.keys(graph).sort()).toEqual(Object.keys(WORKFLOW).sort());
    }
  });
});
