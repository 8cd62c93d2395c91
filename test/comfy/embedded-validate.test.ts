/** What the embedded engine refuses before and while it runs, beyond what the recordings show. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import fc from "fast-check";
import { EngineFolders } from "../../src/comfy/embedded/folders.ts";
import { createRegistry } from "../../src/comfy/embedded/nodes/registry.ts";
import { PromptCrash, typesMatch, validatePrompt } from "../../src/comfy/embedded/validate.ts";
import type { Json, TestGraph } from "../support/embedded.ts";
import { promptOf, TestEngine } from "../support/embedded.ts";
import { safetensors } from "../support/safetensors.ts";

let engine: TestEngine;
let old: TestEngine;
beforeAll(() => {
  const models = {
    "models/checkpoints/sd.safetensors": safetensors({
      "model.diffusion_model.input_blocks.0.0.weight": [4],
    }),
    "models/checkpoints/old.ckpt": Buffer.from("PK\u0003\u0004zip"),
    "models/vae/kl.safetensors": safetensors({ "decoder.conv_in.weight": [1] }),
    "models/loras/l.safetensors": safetensors({ "x.lora_up.weight": [1] }),
    "models/clip_vision/v.safetensors": safetensors({ "foo.weight": [1] }),
    "models/upscale_models/esrgan.pth": Buffer.from("PK\u0003\u0004zip"),
    "models/upscale_models/empty.pth": "",
    "models/vae_approx/taesd_encoder.safetensors": "",
    "models/vae_approx/taesd_decoder.safetensors": "",
    "elsewhere/ck/far.safetensors": safetensors({ "double_blocks.0.x": [1] }),
  };
  engine = new TestEngine(
    {
      ...models,
      "paths.yaml": JSON.stringify({
        more: { base_path: "elsewhere", checkpoints: "ck", my_models: "mine" },
      }),
    },
    ["--extra-model-paths-config", "paths.yaml"],
  );
  old = new TestEngine(models, ["--compat", "0.3.64"]);
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
  await old[Symbol.asyncDispose]();
});

const IMAGE: TestGraph = { "1": ["EmptyImage", { width: 8, height: 8, batch_size: 1, color: 0 }] };

async function refused(prompt: Json, which = engine): Promise<Json> {
  const { status, body } = await which.post("/prompt", { prompt });
  expect(status).toBe(400);
  return body;
}

/** The errors of one node: type, details, and facts of the exception if there was one. */
async function errorsOf(graph: TestGraph, node: string): Promise<Json[]> {
  const body = await refused(promptOf(graph));
  return body.node_errors[node].errors.map(({ type, details }: Json) => [type, details]);
}

describe("links", () => {
  test.each([
    ["of one part", ["1"], "bad_linked_input", "images"],
    ["to a node that isn't there", ["99", 0], "exception_during_validation", "'99'"],
    ["by a number", [1, 0], "exception_during_validation", "1"],
    [
      "to an output that isn't there",
      ["1", 7],
      "exception_during_validation",
      "tuple index out of range",
    ],
  ])("%s", async (_what, images, type, details) => {
    const graph: TestGraph = { ...IMAGE, "2": ["SaveImage", { images, filename_prefix: "x" }] };
    expect(await errorsOf(graph, "2")).toEqual([[type, details]]);
  });

  test("to an output of another type", async () => {
    const graph: TestGraph = {
      "1": ["SolidMask", { value: 1, width: 8, height: 8 }],
      "2": ["PreviewImage", { images: ["1", 0] }],
    };
    expect(await errorsOf(graph, "2")).toEqual([
      ["return_type_mismatch", "images, received_type(MASK) mismatch input_type(IMAGE)"],
    ]);
  });

  test("that break deeper are told at the node they break", async () => {
    const graph: TestGraph = {
      "1": ["ImageInvert", { image: ["99", 0] }],
      "2": ["ImageInvert", { image: ["1", 0] }],
      "3": ["PreviewImage", { images: ["2", 0] }],
    };
    expect(await errorsOf(graph, "1")).toEqual([["exception_during_inner_validation", "'99'"]]);
  });

  test("in a circle", async () => {
    const graph: TestGraph = {
      "1": ["ImageInvert", { image: ["2", 0] }],
      "2": ["ImageInvert", { image: ["1", 0] }],
      "3": ["PreviewImage", { images: ["2", 0] }],
    };
    const body = await refused(promptOf(graph));
    expect(Object.keys(body.node_errors).sort()).toEqual(["1", "2"]);
    for (const { errors } of Object.values<Json>(body.node_errors)) {
      expect(errors).toHaveLength(1);
      expect(errors[0].type).toBe("dependency_cycle");
      expect(errors[0].extra_info.cycle_nodes.toSorted()).toEqual(["1", "2"]);
    }
    expect((await refused(promptOf(graph), old)).node_errors).toEqual({});
  });

  test.each([
    ["IMAGE", "IMAGE", true],
    ["IMAGE", "MASK", false],
    ["*", "MASK", true],
    ["INT", "FLOAT,INT", true],
    ["INT,STRING", "FLOAT, STRING", true],
    ["INT", "FLOAT,STRING", false],
  ])("%s into %s: %p", (received, wanted, isMatch) => {
    expect(typesMatch(received, wanted)).toBe(isMatch);
  });
});

describe("values", () => {
  const scale = (values: Readonly<Record<string, unknown>>): TestGraph => ({
    ...IMAGE,
    "2": ["ImageScaleBy", { image: ["1", 0], upscale_method: "area", scale_by: 1, ...values }],
    "3": ["PreviewImage", { images: ["2", 0] }],
  });

  test.each([
    ["a text that is no number", "x", "scale_by, x, could not convert string to float: 'x'"],
    [
      "nothing",
      null,
      "scale_by, None, float() argument must be a string or a real number, not 'NoneType'",
    ],
    [
      "an object",
      {},
      "scale_by, {}, float() argument must be a string or a real number, not 'dict'",
    ],
  ])("%s for a FLOAT", async (_what, scaleBy, details) => {
    expect(await errorsOf(scale({ scale_by: scaleBy }), "2")).toEqual([
      ["invalid_input_type", details],
    ]);
  });

  test("too big and too small", async () => {
    const bodies = [
      await refused(promptOf(scale({ scale_by: 9 }))),
      await refused(promptOf(scale({ scale_by: 0 }))),
    ];
    expect(bodies.map(({ node_errors }) => node_errors["2"].errors[0].message)).toEqual([
      "Value 9.0 bigger than max of 8.0",
      "Value 0.0 smaller than min of 0.01",
    ]);
  });

  test("casts are seen in the history: texts of anything, a false text that is true, a wrapped list", async () => {
    const entry = await engine.run({
      "1": ["PrimitiveBoolean", { value: "false" }],
      "2": ["PreviewAny", { source: ["1", 0] }],
      "3": ["PrimitiveString", { value: null }],
      "4": ["PreviewAny", { source: ["3", 0] }],
      "5": ["PreviewAny", { source: { __value__: [1, "a"] } }],
    });
    const { outputs, prompt } = entry;
    expect([outputs["2"].text, outputs["4"].text, outputs["5"].text]).toEqual([
      ["True"],
      ["None"],
      ['[\n    1,\n    "a"\n]'],
    ]);
    expect(prompt[2]["1"].inputs.value).toBe(true);
    expect(prompt[2]["5"].inputs.source).toEqual([1, "a"]);
  });

  test("inputs that the class doesn't have are ignored", async () => {
    const entry = await engine.run(scale({ nonsense: ["99", 0] }));
    expect(entry.status.status_str).toBe("success");
  });
});

describe("model files", () => {
  const shown = (className: string, inputs: Readonly<Record<string, unknown>>): TestGraph => ({
    "1": [className, inputs],
    "2": ["PreviewAny", { source: ["1", 0] }],
  });
  const failureOf = async (graph: TestGraph): Promise<Json> => {
    const [type, data] = (await engine.run(graph)).status.messages.at(-1);
    return type === "execution_error" ? [data.exception_type, data.exception_message] : type;
  };

  test.each([
    ["CheckpointLoaderSimple", { ckpt_name: "sd.safetensors" }],
    ["CheckpointLoaderSimple", { ckpt_name: "old.ckpt" }],
    ["CheckpointLoaderSimple", { ckpt_name: "far.safetensors" }],
    ["VAELoader", { vae_name: "kl.safetensors" }],
    ["VAELoader", { vae_name: "pixel_space" }],
    ["VAELoader", { vae_name: "taesd" }],
  ])("%s takes %p", async (className, inputs) => {
    expect(await failureOf(shown(className, inputs))).toBe("execution_success");
  });

  test("of another kind raise what the real loader raises", async () => {
    expect(await failureOf(shown("CLIPVisionLoader", { clip_name: "v.safetensors" }))).toEqual([
      "RuntimeError",
      "ERROR: clip vision file is invalid and does not contain a valid vision model.\n",
    ]);
    expect(await failureOf(shown("UpscaleModelLoader", { model_name: "empty.pth" }))).toEqual([
      "EOFError",
      "\n",
    ]);
  });

  test("of a LoRA with both strengths 0 are not opened", async () => {
    writeFileSync(engine.dir.join("models/loras/broken.safetensors"), "");
    const graph = (strength: number): TestGraph => ({
      "1": ["CheckpointLoaderSimple", { ckpt_name: "sd.safetensors" }],
      "2": [
        "LoraLoader",
        {
          model: ["1", 0],
          clip: ["1", 1],
          lora_name: "broken.safetensors",
          strength_model: strength,
          strength_clip: 0,
        },
      ],
      "3": ["PreviewAny", { source: ["2", 0] }],
    });
    expect(await failureOf(graph(0))).toBe("execution_success");
    expect((await failureOf(graph(1)))[0]).toBe("safetensors._safetensors_rust.SafetensorError");
  });

  test("are listed with those of the yaml file, categories of its own included", async () => {
    expect(await engine.get("/models/checkpoints")).toEqual([
      "far.safetensors",
      "old.ckpt",
      "sd.safetensors",
    ]);
    expect((await engine.get("/models")).at(-1)).toBe("my_models");
    const folders = await engine.get("/internal/folder_paths");
    expect(folders.checkpoints.map((path: string) => path.slice(engine.dir.path.length))).toEqual([
      "/models/checkpoints",
      "/elsewhere/ck",
      "/output/checkpoints",
    ]);
  });

  test.each([
    ["a sampler", 'Node "CLIPTextEncode" can\'t run here.', { clip: ["1", 1] }],
    ["a pickled upscaler", "esrgan.pth is a pickle", undefined],
  ])("that need a real ComfyUI (%s) say so, and how to get one", async (_what, beginning, more) => {
    const graph: TestGraph =
      more === undefined
        ? shown("UpscaleModelLoader", { model_name: "esrgan.pth" })
        : {
            "1": ["CheckpointLoaderSimple", { ckpt_name: "sd.safetensors" }],
            "2": ["CLIPTextEncode", { text: "a cat", ...more }],
            "3": ["PreviewAny", { source: ["2", 0] }],
          };
    const [type, message] = await failureOf(graph);
    expect(type).toBe("cog_comfyui.EmbeddedEngineError");
    expect(message).toStartWith(beginning);
    expect(message).toContain("COMFYUI_PATH");
  });
});

describe("arbitrary JSON", () => {
  const value = fc.oneof(
    fc.constantFrom<Json>("1", "2", "EmptyImage", null, true, -1, 1e99, [], {}),
    fc.tuple(
      fc.constantFrom<Json>("1", "2", "3", "9", 1, "__proto__"),
      fc.integer({ min: -3, max: 3 }),
    ),
    fc.array(fc.integer(), { maxLength: 3 }),
    fc.string(),
  );
  const inputName = fc.constantFrom(
    "image",
    "images",
    "width",
    "height",
    "color",
    "source",
    "value",
  );
  const className = fc.constantFrom<Json>(
    "EmptyImage",
    "ImageInvert",
    "PreviewAny",
    "PreviewImage",
    "LoadImage",
    7,
  );
  const node = fc.oneof(
    fc.record(
      { class_type: className, inputs: fc.dictionary(inputName, value) },
      { noNullPrototype: true },
    ),
    value,
  );
  const prompt = fc.dictionary(fc.constantFrom("1", "2", "3", "__proto__"), node, {
    noNullPrototype: true,
  });

  test("as a prompt is accepted, refused with a reason, or a crash that ComfyUI has too", () => {
    const folders = new EngineFolders({
      input: engine.dir.join("input"),
      output: engine.dir.join("output"),
      temp: engine.dir.join("temp"),
      modelsDir: engine.dir.join("models"),
      extraModelPaths: [],
    });
    fc.assert(
      fc.property(prompt, fc.constantFrom("0.33.0", "0.3.64"), (graph, compat) => {
        try {
          const verdict = validatePrompt(graph, {
            registry: createRegistry(compat),
            folders,
            compat,
          });
          expect(verdict.error === undefined).toBe(verdict.outputs.length > 0);
        } catch (error) {
          expect(error).toBeInstanceOf(PromptCrash);
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe("memory", () => {
  test("a picture that doesn't fit is refused instead of killing the process", async () => {
    const { status } = await engine.run({
      "1": ["EmptyImage", { width: 16_384, height: 16_384, batch_size: 4096, color: 1 }],
      "2": ["PreviewImage", { images: ["1", 0] }],
    });
    const { exception_type, exception_message } = status.messages.at(-1)[1];
    expect(exception_type).toBe("RuntimeError");
    expect(exception_message).toContain("can't allocate memory");
  });
});

describe("origins", () => {
  test.each([
    ["none", {}, 200],
    ["the page's own", { origin: "SELF" }, 200],
    ["another one", { origin: "http://evil.example" }, 403],
    ["another port", { origin: "http://127.0.0.1:1" }, 403],
    ["no address", { origin: "null" }, 403],
    ["cross-site", { "sec-fetch-site": "cross-site" }, 403],
    ["same-origin", { "sec-fetch-site": "same-origin" }, 200],
  ])("%s", async (_what, given, status) => {
    const headers = Object.fromEntries(
      Object.entries(given).map(([name, value]) => [name, value === "SELF" ? engine.url : value]),
    );
    expect((await engine.request("/prompt", { headers })).status).toBe(status);
  });
});

test("a body beyond the limit is refused", async () => {
  await using small = new TestEngine({}, ["--max-upload-size", "1"]);
  const { status } = await small.post("/prompt", "x".repeat(2 * 1024 ** 2));
  expect(status).toBe(413);
  expect((await small.get("/features")).max_upload_size).toBe(1024 ** 2);
});
