/** Which weights a workflow needs: rules one by one, then the recorded truth. */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { extractWeights, weightNames } from "../../src/weights/extract.ts";
import { ImpliedTable } from "../../src/weights/implied.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import type { Graph, Workflow } from "../../src/workflow/graph.ts";
import { parseWorkflow } from "../../src/workflow/parse.ts";
import { casePath, describeCases } from "../support/shared.ts";

function workflow(graph: Graph, more: Partial<Workflow> = {}): Workflow {
  return {
    format: "api",
    graph,
    requiredWeights: [],
    ignoredWeights: [],
    models: [],
    exposed: [],
    subgraphs: {},
    notes: [],
    ...more,
  };
}

/** A graph of one node that is asked for. */
function only(classType: string, inputs: Graph[string]["inputs"]): Workflow {
  return workflow({ "1": { class_type: classType, inputs } });
}

const names = (flow: Workflow) => weightNames(extractWeights(flow));

describe("loaders", () => {
  test("name a file of the folder that they read", () => {
    expect(extractWeights(only("UNETLoader", { unet_name: "sub/a.safetensors" }))).toEqual([
      {
        name: "sub/a.safetensors",
        category: "diffusion_models",
        nodeId: "1",
        classType: "UNETLoader",
        input: "unet_name",
        reason: "loader",
        certain: true,
        hints: [],
      },
    ]);
  });

  test.each([
    ["DualCLIPLoader", "clip_name2", "text_encoders"],
    ["CheckpointLoader", "config_name", "configs"],
    ["UltralyticsDetectorProvider", "model_name", "ultralytics"],
    ["UnetLoaderGGUF", "unet_name", "unet_gguf"],
    ["LoRA Stacker", "lora_name_12", "loras"],
    ["UNETLoaderMultiGPU", "unet_name", "diffusion_models"],
    ["VAELoaderDisTorch2MultiGPU", "vae_name", "vae"],
  ])("%s.%s reads %s", (classType, input, category) => {
    const value = category === "configs" ? "v1.yaml" : "a.safetensors";
    const [ref] = extractWeights(only(classType, { [input]: value, lora_count: 20 }));
    expect(ref?.category).toBe(category);
  });

  test("that read several folders prefer the one whose files end so", () => {
    const [ref] = extractWeights(only("WanVideoModelLoader", { model: "a.gguf" }));
    expect(ref).toMatchObject({ category: "unet_gguf", otherCategories: ["diffusion_models"] });
  });

  test("tell a name without an ending too, since ComfyUI would refuse it", () => {
    expect(names(only("CheckpointLoaderSimple", { ckpt_name: "sd15" }))).toEqual(["sd15"]);
  });

  test.each(["None", "none", "", "[None]"])("need nothing for %j", (value) => {
    expect(names(only("LoraLoader", { lora_name: value }))).toEqual([]);
  });

  test("of packs need nothing for their own words", () => {
    expect(names(only("SAMLoader", { model_name: "ESAM" }))).toEqual([]);
    expect(names(only("Efficient Loader", { ckpt_name: "a.ckpt", vae_name: "Baked VAE" }))).toEqual(
      ["a.ckpt"],
    );
  });

  test("take a link for what it is", () => {
    expect(names(only("CheckpointLoaderSimple", { ckpt_name: ["2", 0] }))).toEqual([]);
  });

  test("VAELoader's built-in choices stand for files of vae_approx, or for none", () => {
    expect(names(only("VAELoader", { vae_name: "pixel_space" }))).toEqual([]);
    const refs = extractWeights(only("VAELoader", { vae_name: "taesdxl" }));
    expect(refs.map(({ category, accepts }) => [category, accepts])).toEqual([
      ["vae_approx", "^taesdxl_encoder\\."],
      ["vae_approx", "^taesdxl_decoder\\."],
    ]);
    expect(extractWeights(only("VAELoader", { vae_name: "taehv.safetensors" }))[0]?.category).toBe(
      "vae_approx",
    );
    expect(
      extractWeights(only("VAELoader", { vae_name: "taehv_v2.safetensors" }))[0]?.category,
    ).toBe("vae");
  });

  test("with rows of objects name the rows that are on", () => {
    const flow = only("Power Lora Loader (rgthree)", {
      lora_1: { on: true, lora: "a.safetensors", strength: 1 },
      lora_2: { on: false, lora: "b.safetensors", strength: 1 },
      lora_3: { on: true, lora: "None", strength: 1 },
    });
    expect(names(flow)).toEqual(["a.safetensors"]);
    const value = { content: "c.safetensors", image: null };
    expect(names(only("CheckpointLoader|pysssss", { ckpt_name: value }))).toEqual([
      "c.safetensors",
    ]);
  });

  test("that are stacks pass over rows beyond their count or switched off", () => {
    const rows = { lora_name_1: "a.safetensors", lora_name_2: "b.safetensors" };
    expect(names(only("LoRA Stacker", { ...rows, lora_count: 1 }))).toEqual(["a.safetensors"]);
    expect(names(only("CR LoRA Stack", { ...rows, switch_1: "Off", switch_2: "On" }))).toEqual([
      "b.safetensors",
    ]);
  });

  test("given an address need the file that lies there", () => {
    const url = "https://huggingface.co/o/r/resolve/main/a.safetensors";
    const [ref] = extractWeights(only("LoraLoader", { lora_name: url }));
    expect(ref).toMatchObject({ name: url, category: "loras", fromUrl: true, hints: [{ url }] });
  });
});

describe("nodes that no table knows", () => {
  test("are believed by the ending of a value, as a guess", () => {
    const [ref] = extractWeights(only("MyLoader", { ckpt_name: "a.GGUF", n: 3 }));
    expect(ref).toMatchObject({
      name: "a.GGUF",
      category: "checkpoints",
      reason: "extension",
      certain: false,
    });
  });

  test.each([
    ["prompt", "a photo called cat.safetensors"],
    ["text", "x.pt"],
    ["filename_prefix", "out.ckpt"],
    ["model", "two\nlines.safetensors"],
    ["model", "https://example.org/a.safetensors"],
    ["image", "picture.png"],
  ])("don't make a file of %s = %j", (input, value) => {
    expect(names(only("MyNode", { [input]: value }))).toEqual([]);
  });

  test("that write files name nothing that must be there", () => {
    expect(names(only("MySaveModel", { model_file: "out.safetensors" }))).toEqual([]);
  });

  test("of ComfyUI itself have text inputs that hold text", () => {
    const flow = only("PrimitiveString", { value: "a.safetensors" });
    expect(names(flow)).toEqual([]);
  });
});

describe("the running engine's lists", () => {
  const engine = NodeDefinitions.fromObjectInfo({
    Mine: {
      input: {
        required: {
          file: [["a.safetensors", "b.safetensors"], {}],
          note: ["STRING", {}],
        },
      },
      output: [],
      output_name: [],
      output_node: true,
    },
    CheckpointLoaderSimple: {
      input: { required: { ckpt_name: [["odd name"], {}] } },
      output: [],
      output_name: [],
      output_node: false,
    },
  });
  const extract = (flow: Workflow) => extractWeights(flow, { definitions: engine });

  test("make a name that isn't among them certainly missing", () => {
    expect(extract(only("Mine", { file: "c.safetensors" }))).toMatchObject([
      { name: "c.safetensors", reason: "object_info", certain: true },
    ]);
  });

  test("tell the folder of a class that no table knows, if one folder holds them all", () => {
    const held = (...categories: string[]) =>
      extractWeights(only("Mine", { file: "c.safetensors" }), {
        definitions: engine,
        categoriesHolding: () => categories,
      })[0]?.category;
    expect(held("sams")).toBe("sams");
    expect(held("sams", "vae")).toBeUndefined();
    expect(held()).toBeUndefined();
  });

  test("are believed where they have the name", () => {
    expect(extract(only("Mine", { file: "a.safetensors" }))).toMatchObject([{ listed: true }]);
  });

  test("tell text from a choice", () => {
    expect(extract(only("Mine", { note: "c.safetensors" }))).toEqual([]);
  });
});

describe("text", () => {
  test("names embeddings by token, never by chance", () => {
    const text =
      "embedding:one, (embedding:sub/two:1.2) myembedding:no, [embedding:three.pt] easynegative";
    const refs = extractWeights(only("CLIPTextEncode", { text }));
    expect(refs.map(({ name, category, certain }) => [name, category, certain])).toEqual([
      ["one", "embeddings", false],
      ["sub/two", "embeddings", false],
      ["three.pt", "embeddings", false],
    ]);
  });

  test("names LoRAs only where the node reads them", () => {
    const text = "a cat <lora:styles/ink:0.7> <lora:grain:1:0.5>";
    const refs = extractWeights(only("ImpactWildcardEncode", { populated_text: text }));
    expect(refs.map(({ name, category }) => [name, category])).toEqual([
      ["styles/ink", "loras"],
      ["grain", "loras"],
    ]);
    expect(names(only("CLIPTextEncode", { text }))).toEqual([]);
  });
});

describe("weights that no input names", () => {
  test("come from the table, with place and source", () => {
    const [ref] = extractWeights(only("HEDPreprocessor", {}));
    expect(ref).toMatchObject({
      name: "ControlNetHED.pth",
      path: "custom_nodes/comfyui_controlnet_aux/ckpts/lllyasviel/Annotators/ControlNetHED.pth",
      reason: "implied",
      certain: true,
    });
    expect(ref?.hints[0]?.trust).toBe("operator");
  });

  test("depend on one condition, and a linked condition tells nothing", () => {
    const needs = (input: Graph[string]["inputs"]) => names(only("RemBGSession+", input));
    expect(needs({ model: "u2net: general purpose" })).toEqual(["u2net.onnx"]);
    expect(needs({ model: ["2", 0] })).toEqual([]);
    expect(needs({})).toEqual([]);
  });

  test("of a model family are those of the checkpoint upstream", () => {
    const flow = (ckpt: string) =>
      workflow({
        "1": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: ckpt } },
        "2": {
          class_type: "IPAdapterUnifiedLoader",
          inputs: { preset: "PLUS (high strength)", model: ["1", 0] },
        },
      });
    expect(names(flow("juggernautXL_v9.safetensors"))).toContain(
      "ip-adapter-plus_sdxl_vit-h.safetensors",
    );
    expect(names(flow("juggernautXL_v9.safetensors"))).not.toContain(
      "ip-adapter-plus_sd15.safetensors",
    );
    const unsure = extractWeights(flow("my_merge.safetensors")).filter(
      (ref) => ref.oneOf !== undefined,
    );
    expect(unsure.map(({ oneOf }) => oneOf?.option)).toEqual(["sd15", "sdxl"]);
  });

  test("are one weight with an input that names the same file", () => {
    const flow = only("DWPreprocessor", { bbox_detector: "yolox_l.onnx", pose_estimator: "x" });
    expect(extractWeights(flow)).toMatchObject([
      { name: "yolox_l.onnx", input: "bbox_detector", reason: "implied", certain: true },
    ]);
    expect(
      names(only("UltralyticsDetectorProvider", { model_name: "bbox/hand_yolov8s.pt" })),
    ).toEqual(["bbox/hand_yolov8s.pt"]);
  });

  test("can be added by the user", () => {
    const mine = ImpliedTable.parse(
      {
        version: 1,
        weights: { "models/mine/a.onnx": { urls: ["https://example.org/a.onnx"] } },
        rows: [
          { class: "Mine", when: { mode: "fast" }, needs: ["models/mine/a.onnx"], source: "here" },
        ],
      },
      "mine.json",
    );
    const implied = ImpliedTable.builtIn().with(mine);
    const flow = only("Mine", { mode: "fast" });
    expect(weightNames(extractWeights(flow, { implied }))).toEqual(["a.onnx"]);
    expect(() =>
      ImpliedTable.parse({ version: 1, weights: {}, rows: [{ class: "A" }] }, "x.json"),
    ).toThrow(/x\.json is wrong\. rows\.0\.needs/);
  });
});

describe("order and reach", () => {
  const loader = (name: string) => ({
    class_type: "CheckpointLoaderSimple",
    inputs: { ckpt_name: name },
  });

  test("is integer ids ascending, then the others as written, then _meta, once each", () => {
    const flow = workflow(
      {
        b: loader("5"),
        "10": loader("2"),
        "57:3": loader("4"),
        "9": loader("1"),
        "100": loader("3"),
        a: loader("1"),
      },
      { requiredWeights: ["z.safetensors", "2"] },
    );
    expect(names(flow)).toEqual(["1", "2", "3", "5", "4", "z.safetensors"]);
  });

  test("counts only nodes that an output depends on", () => {
    const flow = workflow({
      "1": loader("used.ckpt"),
      "2": loader("unused.ckpt"),
      "3": { class_type: "VAEDecode", inputs: { vae: ["1", 2], samples: ["1", 0] } },
      "4": { class_type: "PreviewImage", inputs: { images: ["3", 0] } },
    });
    expect(names(flow)).toEqual(["used.ckpt"]);
  });

  test("survives loops, hostile keys and links to nowhere", () => {
    const graph: Graph = JSON.parse(
      `{"__proto__": {"class_type": "LoraLoader", "inputs": {"lora_name": "a.pt", "model": ["x", 0]}},
        "x": {"class_type": "constructor", "inputs": {"__proto__": "b.pt", "m": ["__proto__", 0]}},
        "y": {"class_type": "toString", "inputs": {"a": ["nowhere", 0], "b": ["x", 0]}}}`,
    );
    expect(names(workflow(graph))).toContain("a.pt");
  });

  test("is the same twice, and never throws", () => {
    const input = fc.oneof(
      fc.string(),
      fc.constantFrom("a.safetensors", "embedding:x", "<lora:y:1>", "https://h/a.pt"),
      fc.jsonValue(),
      fc.tuple(fc.constantFrom("1", "2", "x"), fc.nat(3)),
    );
    const node = fc.record({
      class_type: fc.constantFrom(
        "LoraLoader",
        "SaveImage",
        "Mine",
        "ImpactWildcardEncode",
        "__proto__",
      ),
      inputs: fc.dictionary(
        fc.constantFrom("lora_name", "text", "populated_text", "model", "a"),
        input,
      ),
    });
    const graphs = fc.dictionary(fc.constantFrom("1", "2", "x", "__proto__"), node);
    fc.assert(
      fc.property(graphs, (random) => {
        const graph: Graph = JSON.parse(JSON.stringify(random));
        const first = extractWeights(workflow(graph));
        expect(extractWeights(workflow(graph))).toEqual(first);
      }),
      { numRuns: 200 },
    );
  });
});

describe("sources in the workflow", () => {
  test("go to the weight of that name in that folder", () => {
    const url = "https://huggingface.co/o/r/resolve/main/a.safetensors";
    const hash = "A".repeat(64);
    const models = [
      { name: "a.safetensors", url, directory: "vae", hash, hashType: "SHA256" },
      { name: "a.safetensors", url: "https://other", directory: "loras" },
    ];
    const flow = { ...only("VAELoader", { vae_name: "sub/a.safetensors" }), models };
    expect(extractWeights(flow)[0]?.hints).toEqual([{ url, sha256: hash.toLowerCase() }]);
  });
});

/**
 * Where ours differs from what the original fetches, by rule. Each rule says which of the original's names aren't ours
 * (`theirs`), and which of ours aren't the original's (`ours`).
 */
interface Difference {
  readonly reason: string;
  readonly theirs?: (name: string, flow: Workflow, ours: readonly string[]) => boolean;
  readonly ours?: (name: string, flow: Workflow) => boolean;
}

const refOf = (flow: Workflow, name: string) =>
  extractWeights(flow).find((ref) => ref.name === name);
const classes = (flow: Workflow) => Object.values(flow.graph).map((node) => node.class_type);
const synonyms = new Map<string, string>();

const DIFFERENCES: readonly Difference[] = [
  {
    reason:
      "a folder or a file of a sub-folder goes by its own name, not by the original's archive",
    theirs: (name, _flow, ours) =>
      ours.includes(name.split("/").at(-1) ?? "") || ours.includes(name.split("--").at(-1) ?? ""),
    ours: (name, flow) => refOf(flow, name)?.folder !== undefined || name === "model.pth",
  },
  {
    reason: "names stay as the workflow spells them: synonyms are resolved later, against the disk",
    theirs: (name, _flow, ours) => ours.some((mine) => synonyms.get(mine) === name),
    ours: (name) => synonyms.has(name),
  },
  {
    reason:
      "the original fetches every variant that a node might use, we the one that its inputs and model ask for",
    theirs: (_name, flow) =>
      classes(flow).some((name) =>
        /^IPAdapterUnified|^AnyLineArtPreprocessor_aux|DepthAnything|Metric3D|DiffusionEdge|UltralyticsDetector/.test(
          name,
        ),
      ),
  },
  {
    reason: "nodes that no output depends on are never run",
    theirs: (name, flow) =>
      Object.entries(flow.graph).some(
        ([id, node]) =>
          Object.values(node.inputs).includes(name) &&
          !extractWeights(flow).some((ref) => ref.nodeId === id),
      ),
  },
  {
    reason: "newer versions of a pack read other files: both are told, either satisfies",
    ours: (name, flow) => refOf(flow, name)?.oneOf !== undefined,
  },
  {
    reason: "PuLID's helper downloads its face models itself; they are weights like any other",
    ours: (name, flow) =>
      /^(detection_Resnet50_Final|parsing_bisenet|parsing_parsenet)\.pth$/.test(name) &&
      classes(flow).some((classType) => classType.startsWith("ApplyPulid")),
  },
  {
    reason: "GroundingDINO reads a configuration beside its weights",
    ours: (name) => name.endsWith(".cfg.py"),
  },
  {
    reason: "an address in a loader's input is a weight with that source",
    ours: (name, flow) => refOf(flow, name)?.fromUrl === true,
  },
];

describeCases("expected_weights.json", () => {
  const cases: Record<string, { weights?: string[] }> = JSON.parse(
    readFileSync(casePath("expected_weights.json"), "utf8"),
  );
  const original: Record<string, unknown>[] = JSON.parse(
    readFileSync(casePath("synonyms_facts.json"), "utf8"),
  ).cog_comfyui;
  for (const { from, to } of original) {
    synonyms.set(String(from), String(to));
  }
  const recorded = Object.entries(cases).flatMap(([file, { weights }]) =>
    weights === undefined ? [] : [[file, weights] as const],
  );

  test.each(recorded)(
    "%s needs what the original fetches, but for reasoned differences",
    (file, weights) => {
      const flow = parseWorkflow(readFileSync(casePath(file), "utf8"));
      const ours = names(flow);
      const unexplained = {
        notOurs: weights
          .filter((name) => !ours.includes(name))
          .filter((name) => !DIFFERENCES.some((rule) => rule.theirs?.(name, flow, ours) === true)),
        notTheirs: ours
          .filter((name) => !weights.includes(name))
          .filter((name) => !DIFFERENCES.some((rule) => rule.ours?.(name, flow) === true)),
      };
      expect(unexplained).toEqual({ notOurs: [], notTheirs: [] });
    },
  );
});

describeCases("template_models.json", () => {
  interface Template {
    readonly server_missing: readonly {
      node_id: string;
      input: string;
      value: string;
      directory: string;
    }[];
    readonly expected_models: readonly {
      directory: string;
      name: string;
      url: string;
      active: boolean;
    }[];
  }
  const templates: Record<string, Template> = JSON.parse(
    readFileSync(casePath("template_models.json"), "utf8"),
  );
  const lines = (rows: readonly (readonly (string | undefined)[])[]) =>
    rows.map((row) => row.join(" | ")).sort();

  test("every official template needs exactly what the real server misses, with its folder", () => {
    const wrong = Object.entries(templates).flatMap(([name, template]) => {
      const flow = parseWorkflow(readFileSync(casePath("ui_to_api", "ui", `${name}.json`), "utf8"));
      const ours = lines(
        extractWeights(flow)
          .filter((ref) => ref.certain)
          .map((ref) => [ref.nodeId, ref.input, ref.name, ref.category]),
      );
      const theirs = lines(
        template.server_missing.map((row) => [row.node_id, row.input, row.value, row.directory]),
      );
      return Bun.deepEquals(ours, theirs) ? [] : [{ name, ours, theirs }];
    });
    expect(wrong).toEqual([]);
  });

  test("each model with metadata has its source", () => {
    const wrong = Object.entries(templates).flatMap(([name, template]) => {
      const flow = parseWorkflow(readFileSync(casePath("ui_to_api", "ui", `${name}.json`), "utf8"));
      const refs = extractWeights(flow);
      return template.expected_models
        .filter((model) => model.active)
        .filter((model) => {
          const named = refs.filter((ref) => ref.name.endsWith(model.name));
          return (
            named.length > 0 &&
            !named.some((ref) => ref.hints.some((hint) => hint.url === model.url))
          );
        })
        .map((model) => `${name}: ${model.name}`);
    });
    expect(wrong).toEqual([]);
  });
});

describeCases("ui_to_api", () => {
  test("all recorded prompts are read without an error", () => {
    for (const file of readdirSync(casePath("ui_to_api", "api"))) {
      const graph: Graph = JSON.parse(readFileSync(casePath("ui_to_api", "api", file), "utf8"));
      expect(() => extractWeights(workflow(graph))).not.toThrow();
    }
  });
});
