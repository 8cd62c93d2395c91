/** The report: what people read, and the same as data. */
import { describe, expect, test } from "bun:test";
import { ModelFolders } from "../../src/models/folders.ts";
import { CheckReport, checkReport, checkTable } from "../../src/weights/check-table.ts";
import { extractWeights } from "../../src/weights/extract.ts";
import { Manifest } from "../../src/weights/manifest.ts";
import type { Validation, WeightRef } from "../../src/weights/refs.ts";
import {
  MissingReport,
  missingReport,
  missingText,
  weightsMissing,
} from "../../src/weights/report.ts";
import { resolveWeight } from "../../src/weights/resolve.ts";
import { validateWeights } from "../../src/weights/validate.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { safetensors } from "../support/safetensors.ts";
import type { Tree } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";

const manifest = Manifest.parse(
  {
    version: 2,
    weights: [
      {
        name: "base.safetensors",
        category: "checkpoints",
        urls: ["https://hub/base.safetensors"],
        size: 6_900_000_000,
        license: "OpenRAIL",
      },
      {
        name: "style.safetensors",
        category: "loras",
        urls: ["https://huggingface.co/owner/repo/resolve/main/style.safetensors"],
        size: 100_000_000,
        nonCommercial: true,
        gated: true,
      },
    ],
    kits: { starter: ["base.safetensors"] },
  },
  "test",
);

interface Checked {
  readonly refs: readonly WeightRef[];
  readonly validation: Validation;
  readonly root: string;
}

function check(graph: Graph, tree: Tree = {}): Checked {
  using dir = tempDir(tree);
  const folders = ModelFolders.fromDirs({ modelsDirs: [dir.path] });
  const refs = extractWeights({
    format: "api",
    graph,
    requiredWeights: [],
    ignoredWeights: [],
    models: [],
    exposed: [],
    subgraphs: { "7:2": ["Upscaling"] },
    notes: [],
  });
  const resolve = (missing: Parameters<typeof resolveWeight>[0]) =>
    resolveWeight(missing, { manifest, folders, allowedHosts: ["huggingface.co"] });
  return {
    refs,
    validation: validateWeights(refs, folders, { manifest, resolve }),
    root: dir.path,
  };
}

const graph: Graph = {
  "4": {
    class_type: "CheckpointLoaderSimple",
    inputs: { ckpt_name: "base.safetensors" },
    _meta: { title: "The base" },
  },
  "5": { class_type: "LoraLoader", inputs: { lora_name: "style.safetensors", model: ["4", 0] } },
  "6": { class_type: "VAELoader", inputs: { vae_name: "odd.safetensors" } },
  "7:2": { class_type: "UpscaleModelLoader", inputs: { model_name: "4x-ultrasharp.pth" } },
  "8": { class_type: "CLIPTextEncode", inputs: { text: "embedding:neg", clip: ["5", 1] } },
};
const tree: Tree = {
  "vae/odd.safetensors": "<html>",
  "upscale_models/4x-UltraSharp.pth": new Uint8Array([0x80, 2]),
};

describe("the text", () => {
  test("begins as promised, tells every weight with the fix first, and ends with what brings them all", () => {
    const { validation, root } = check(graph, tree);
    const text = missingText(validation, { workflow: "my flow.json", manifest });
    expect(text.replaceAll(root, "MODELS")).toMatchInlineSnapshot(`
      "Missing required weights: base.safetensors, style.safetensors, odd.safetensors, 4x-ultrasharp.pth

      base.safetensors
        fix       bin/cog-comfyui weights pull checkpoints/base.safetensors
        node      4 "The base": CheckpointLoaderSimple, input ckpt_name
        searched  MODELS/checkpoints
        source    https://hub/base.safetensors · 6.9 GB · licence OpenRAIL

      style.safetensors
        fix       accept the licence at https://huggingface.co/owner/repo and set HF_TOKEN, then bin/cog-comfyui weights pull loras/style.safetensors
        node      5: LoraLoader, input lora_name
        searched  MODELS/loras
        source    https://huggingface.co/owner/repo/resolve/main/style.safetensors · 100 MB · NON-COMMERCIAL USE ONLY · gated

      odd.safetensors  the file is a web page, not a weight: the download was answered with HTML
        fix       replace MODELS/vae/odd.safetensors by a whole file
        node      6: VAELoader, input vae_name
        file      MODELS/vae/odd.safetensors

      4x-ultrasharp.pth
        fix       set model_name of node 7:2 to "4x-UltraSharp.pth"
        maybe     did you mean upscale_models/4x-UltraSharp.pth? (same name in other case)
        node      7:2 in Upscaling: UpscaleModelLoader, input model_name
        searched  MODELS/upscale_models

      Perhaps missing too (nothing proves that they are needed):

      neg
        fix       put the file into MODELS/embeddings, or add a row with its address to the manifest in WEIGHTS_MANIFEST
        node      8: CLIPTextEncode, input text
        searched  MODELS/embeddings

      What has a source (2 files, 7.0 GB):
        bin/cog-comfyui weights pull "my flow.json"  gets them now, on this machine
        download_missing_weights=true                gets them with this request
        PRELOAD_WORKFLOW="my flow.json"              gets them at every start
        BASE_MODEL_KIT=starter                       has base.safetensors"
    `);
  });

  test("is the message of an error that carries the same as data", () => {
    const { validation } = check(graph, tree);
    const error = weightsMissing(validation, manifest, { why: "Ask for the download." });
    expect(error.code).toBe("WEIGHTS_MISSING");
    expect(error.message.split("\n")[0]).toBe(
      "Missing required weights: base.safetensors, style.safetensors, odd.safetensors, 4x-ultrasharp.pth",
    );
    expect(error.hint).toBe("Ask for the download.");
    expect(error.details).toEqual(missingReport(validation, { manifest }));
  });

  test("never shows a token of an address", () => {
    const url = "https://huggingface.co/a.safetensors?token=secret-value";
    const { validation } = check({
      "1": { class_type: "LoraLoader", inputs: { lora_name: url } },
    });
    const everything = missingText(validation) + JSON.stringify(missingReport(validation));
    expect(everything).not.toContain("secret-value");
    expect(everything).toContain("https://huggingface.co/a.safetensors?token=***");
  });

  test("offers no download by request where the policy forbids it", () => {
    const { validation } = check(graph, tree);
    expect(missingText(validation, { canRequestDownload: false })).not.toContain(
      "download_missing_weights",
    );
  });

  test("tells who must act when a request's own address is refused", () => {
    const { validation } = check({
      "1": {
        class_type: "LoraLoader",
        inputs: { lora_name: "https://evil.example/a.safetensors" },
      },
    });
    expect(missingText(validation)).toContain(
      "fix       have the operator install it, since evil.example is not among the hosts",
    );
    expect(missingReport(validation).commands).toEqual([]);
  });
});

describe("the data", () => {
  test("has the documented form", () => {
    const report = missingReport(check(graph, tree).validation, { manifest });
    expect(MissingReport.strict().parse(report)).toEqual(report);
    expect(report.download).toEqual({
      bytes: 7_000_000_000,
      files: 2,
      unsized: [],
      gated: ["style.safetensors"],
      withoutSource: ["odd.safetensors", "4x-ultrasharp.pth"],
    });
    expect(report.missing[2]).toMatchObject({ state: "broken", defect: "html" });
  });

  test("says so when nothing is missing", () => {
    const report = missingReport(check({}).validation);
    expect(report).toMatchObject({
      message: "All required weights are there",
      missing: [],
      commands: [],
    });
  });
});

describe("the table of weights check", () => {
  test("has a line for every weight, and the sums", () => {
    const { refs, validation, root } = check(
      { ...graph, "9": { class_type: "CLIPLoader", inputs: { clip_name: "c.safetensors" } } },
      { ...tree, "clip/c.safetensors": safetensors({ w: [50] }) },
    );
    const report = checkReport(refs, validation);
    expect(CheckReport.strict().parse(report)).toEqual(report);
    expect(checkTable(report).replaceAll(root, "MODELS")).toMatchInlineSnapshot(`
      "state    weight             folder          size    node                                source
      MISSING  base.safetensors   checkpoints     6.9 GB  4 CheckpointLoaderSimple.ckpt_name  https://hub/base.safetensors
      MISSING  style.safetensors  loras           100 MB  5 LoraLoader.lora_name              https://huggingface.co/owner/repo/resolve/main/style.safetensors · gated · non-commercial
      BROKEN   odd.safetensors    vae             ?       6 VAELoader.vae_name                no source known
      perhaps  neg                embeddings      ?       8 CLIPTextEncode.text               no source known
      ok       c.safetensors      text_encoders   165 B   9 CLIPLoader.clip_name
      MISSING  4x-ultrasharp.pth  upscale_models  ?       7:2 UpscaleModelLoader.model_name   no source known

      4 of 6 weights are missing. To download: 7.0 GB.
      Gated: style.safetensors"
    `);
  });
});
