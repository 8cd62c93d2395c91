/** Folders and lookup: what ComfyUI would open for a name, and what it would list. */
import { describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { extraPathsText, parseExtraPaths } from "../../src/models/extra-paths.ts";
import { ModelFolders } from "../../src/models/folders.ts";
import { completeHubCache } from "../../src/models/hub-cache.ts";
import { tempDir } from "../support/temp-dir.ts";

function folders(models: string): ModelFolders {
  return ModelFolders.fromDirs({ modelsDirs: [models] });
}

describe("folders of a category", () => {
  test("come in ComfyUI's order, the old name first and the output folder last", () => {
    const found = ModelFolders.fromDirs({ modelsDirs: ["/m"], outputDir: "/out" });
    expect(found.pathsFor("diffusion_models")).toEqual([
      "/m/unet",
      "/m/diffusion_models",
      "/out/diffusion_models",
    ]);
    expect(found.pathsFor("text_encoders")).toEqual(["/m/text_encoders", "/m/clip", "/out/clip"]);
    expect(found.pathsFor("controlnet")).toEqual(["/m/controlnet", "/m/t2i_adapter"]);
    expect(found.pathsFor("checkpoints")).toEqual(["/m/checkpoints", "/out/checkpoints"]);
  });

  test("answer to the legacy aliases", () => {
    const found = folders("/m");
    expect(found.pathsFor("unet")).toEqual(found.pathsFor("diffusion_models"));
    expect(found.canonical("clip")).toBe("text_encoders");
    expect(found.canonical("constructor")).toBe("constructor");
  });

  test("of several models folders are all searched, the first one first", () => {
    const found = ModelFolders.fromDirs({ modelsDirs: ["/a", "/b"] });
    expect(found.pathsFor("vae")).toEqual(["/a/vae", "/b/vae"]);
  });

  test("that nobody registers lie under their own name", () => {
    expect(folders("/m").pathsFor("my_models")).toEqual(["/m/my_models"]);
    expect(folders("/m").isRegistered("my_models")).toBe(false);
  });

  test("are what a running engine says they are", () => {
    const found = ModelFolders.fromEngine(
      { vae: ["/elsewhere/vae"], ultralytics_bbox: ["/elsewhere/yolo"] },
      { modelsDirs: ["/m"] },
    );
    expect(found.pathsFor("vae")).toEqual(["/elsewhere/vae"]);
    expect(found.isRegistered("ultralytics_bbox")).toBe(true);
  });
});

describe("lookup", () => {
  test("takes the first folder that has the name", () => {
    using dir = tempDir({ "unet/a.safetensors": "1", "diffusion_models/a.safetensors": "2" });
    expect(folders(dir.path).locate("diffusion_models", "a.safetensors")).toBe(
      dir.join("unet/a.safetensors"),
    );
  });

  test("finds names in sub-folders, through links to files and to folders", () => {
    using dir = tempDir({ "loras/sub/a.safetensors": "1", "elsewhere/b.safetensors": "2" });
    symlinkSync(dir.join("elsewhere"), dir.join("loras/linked"));
    symlinkSync(dir.join("elsewhere/b.safetensors"), dir.join("loras/c.safetensors"));
    const found = folders(dir.path);
    expect(found.list("loras")).toEqual([
      "c.safetensors",
      "linked/b.safetensors",
      "sub/a.safetensors",
    ]);
    for (const name of found.list("loras")) {
      expect(found.locate("loras", name)).toBe(dir.join("loras", name));
    }
  });

  test.each([
    "../vae/a.safetensors",
    "sub/../a.safetensors",
    "./a.safetensors",
    "sub//a.safetensors",
    "/etc/passwd",
    "",
    "a.safetensors/",
    "a\0.safetensors",
  ])("refuses %j, which ComfyUI never lists", (name) => {
    using dir = tempDir({ "loras/a.safetensors": "1", "vae/a.safetensors": "1" });
    mkdirSync(dir.join("loras/sub"));
    expect(folders(dir.path).locate("loras", name)).toBeUndefined();
  });

  test("passes over files of other endings, and folders", () => {
    using dir = tempDir({ "vae/a.txt": "1", "vae/b.SAFETENSORS": "1", "vae/x.pt/inner": "1" });
    const found = folders(dir.path);
    expect(found.locate("vae", "a.txt")).toBeUndefined();
    expect(found.locate("vae", "x.pt")).toBeUndefined();
    expect(found.list("vae")).toEqual(["b.SAFETENSORS"]);
  });

  test("takes a folder with model_index.json for a diffusers model", () => {
    using dir = tempDir({ "diffusers/one/model_index.json": "{}", "diffusers/two/x": "" });
    const found = folders(dir.path);
    expect(found.list("diffusers")).toEqual(["one"]);
    expect(found.locate("diffusers", "one")).toBe(dir.join("diffusers/one"));
    expect(found.locate("diffusers", "two")).toBeUndefined();
  });

  test("tells a link that leads nowhere from a name that isn't there", () => {
    using dir = tempDir({ "vae/keep": "" });
    symlinkSync(dir.join("gone"), dir.join("vae/a.safetensors"));
    const found = folders(dir.path);
    expect(found.locate("vae", "a.safetensors")).toBeUndefined();
    expect(found.danglingLink("vae", "a.safetensors")).toBe(dir.join("vae/a.safetensors"));
    expect(found.danglingLink("vae", "b.safetensors")).toBeUndefined();
  });

  test("ends in a folder that contains itself", () => {
    using dir = tempDir({ "loras/a.safetensors": "1" });
    symlinkSync(dir.join("loras"), dir.join("loras/self"));
    expect(folders(dir.path).list("loras")).toEqual(["a.safetensors"]);
  });
});

describe("lists", () => {
  test("see a new file at once and walk again only then", () => {
    using dir = tempDir({ "loras/a.safetensors": "1" });
    const found = folders(dir.path);
    const first = found.list("loras");
    expect(found.list("loras")).toBe(first);
    writeFileSync(dir.join("loras/b.safetensors"), "2");
    utimesSync(dir.join("loras"), 1, 1);
    expect(found.list("loras")).toEqual(["a.safetensors", "b.safetensors"]);
  });

  test("see a category's folder appear", () => {
    using dir = tempDir();
    const found = folders(dir.path);
    expect(found.list("loras")).toEqual([]);
    mkdirSync(dir.join("loras"));
    writeFileSync(dir.join("loras/a.safetensors"), "1");
    expect(found.list("loras")).toEqual(["a.safetensors"]);
  });

  test("say which categories hold all of an input's choices", () => {
    using dir = tempDir({ "loras/a.pt": "", "loras/b.pt": "", "vae/a.pt": "" });
    const found = folders(dir.path);
    expect(found.categoriesHolding(["a.pt"])).toEqual(["loras", "vae"]);
    expect(found.categoriesHolding(["a.pt", "b.pt"])).toEqual(["loras"]);
    expect(found.categoriesHolding(["a.pt", "c.pt"])).toEqual([]);
    expect(found.categoriesHolding([])).toEqual([]);
  });

  test("are sorted by code point, over .git", () => {
    using dir = tempDir({
      "loras/b.pt": "",
      "loras/B.pt": "",
      "loras/.git/c.pt": "",
      "loras/.d.pt": "",
    });
    expect(folders(dir.path).list("loras")).toEqual([".d.pt", "B.pt", "b.pt"]);
  });
});

describe("destinations", () => {
  test("lie in the folder called like the category, not in the one searched first", () => {
    using dir = tempDir();
    const found = folders(dir.path);
    expect(found.destinationFor("diffusion_models")).toBe(dir.join("diffusion_models"));
    expect(found.destinationFor("clip")).toBe(dir.join("text_encoders"));
    expect(found.destinationFor("unet_gguf")).toBe(dir.join("diffusion_models"));
  });

  test("pass over a models folder that can't be written", () => {
    using dir = tempDir({ file: "" });
    const found = ModelFolders.fromDirs({ modelsDirs: [dir.join("file/models"), dir.join("ok")] });
    expect(found.destinationFor("vae")).toBe(dir.join("ok/vae"));
  });

  test("of paths outside of models/ are relative to ComfyUI's own folder", () => {
    const found = ModelFolders.fromDirs({
      modelsDirs: ["/data/models"],
      comfyDir: "/comfy",
      homeDir: "/home/u",
      hfHome: "/hf",
    });
    expect(found.destinationOf("custom_nodes/pack/ckpts/a.pth")).toBe(
      "/comfy/custom_nodes/pack/ckpts/a.pth",
    );
    expect(found.destinationOf("models/insightface/models/x")).toBe(
      "/data/models/insightface/models/x",
    );
    expect(found.destinationOf("home:.u2net/u2net.onnx")).toBe("/home/u/.u2net/u2net.onnx");
    expect(found.pathCandidates("hf-cache:owner/repo/a.pt")).toEqual([
      "/hf/hub/models--owner--repo/snapshots/main/a.pt",
    ]);
    expect(found.pathCandidates("custom_nodes/../../etc/passwd")).toEqual([]);
  });
});

describe("Hugging Face's cache", () => {
  test("is read at the revision that main stands for, and completed for a file of ours", () => {
    using dir = tempDir({ "hub/models--o--r/snapshots/abc/a.pt": "1" });
    const found = ModelFolders.fromDirs({ modelsDirs: ["/m"], hfHome: dir.path });
    const root = dir.join("hub/models--o--r");
    expect(found.findPath("hf-cache:o/r/a.pt")?.path).toBe(`${root}/snapshots/abc/a.pt`);
    expect(found.destinationOf("hf-cache:o/r/b.pt")).toBe(`${root}/snapshots/main/b.pt`);
    completeHubCache(`${root}/snapshots/abc/a.pt`);
    completeHubCache(`${root}/snapshots/other/a.pt`);
    completeHubCache("/m/vae/a.pt");
    expect(readFileSync(`${root}/refs/main`, "utf8")).toBe("abc");
    expect(found.destinationOf("hf-cache:o/r/b.pt")).toBe(`${root}/snapshots/abc/b.pt`);
  });
});

describe("extra_model_paths.yaml", () => {
  const parse = (text: string, env = {}) => parseExtraPaths(text, "/conf/extra.yaml", env);

  test("maps aliases, splits lines, resolves against base_path", () => {
    const text = "share:\n  base_path: /mnt\n  unet: one\n  loras: |\n    a\n    /abs/b\n";
    expect(parse(text)).toEqual([
      { category: "diffusion_models", path: "/mnt/one", first: false },
      { category: "loras", path: "/mnt/a", first: false },
      { category: "loras", path: "/abs/b", first: false },
    ]);
  });

  test("without base_path is relative to the file, with a relative one too", () => {
    expect(parse("g:\n  vae: x\n")[0]?.path).toBe("/conf/x");
    expect(parse("g:\n  base_path: ../up\n  vae: x\n")[0]?.path).toBe("/up/x");
  });

  test("expands variables of base_path and leaves unknown ones", () => {
    expect(parse("g:\n  base_path: $ROOT/m\n  vae: x\n", { ROOT: "/r" })[0]?.path).toBe("/r/m/x");
    expect(parse("g:\n  base_path: /$NOPE\n  vae: x\n")[0]?.path).toBe("/$NOPE/x");
  });

  test("passes over a null group and an empty document", () => {
    expect(parse("g:\n")).toEqual([]);
    expect(parse("")).toEqual([]);
  });

  test.each([
    ["a list of folders", "g:\n  vae: [a, b]\n", '"g.vae" is a list'],
    ["a group that is text", "g: hello\n", 'group "g"'],
    ["a document that is a list", "- a\n", "no groups"],
    ["text that is no YAML", "a: [", "no YAML"],
  ])("says what is wrong with %s", (_, text, message) => {
    expect(() => parse(text)).toThrow(message);
  });

  test("appends, puts is_default in front with the last line first, ignores repetitions", () => {
    using dir = tempDir({
      "a.yaml": "g:\n  loras: /x\n  vae: MODELS/vae\n",
      "b.yaml": "g:\n  is_default: true\n  loras: |\n    /one\n    /two\n    /x\n",
    });
    const found = ModelFolders.fromDirs({
      modelsDirs: [dir.join("MODELS")],
      extraModelPaths: [dir.join("a.yaml"), dir.join("b.yaml")],
    });
    expect(found.pathsFor("loras")).toEqual(["/x", "/two", "/one", dir.join("MODELS/loras")]);
    expect(found.pathsFor("vae")).toEqual([dir.join("MODELS/vae")]);
  });

  test("written by us gives ComfyUI our folders in our order", () => {
    using dir = tempDir({ "ours.yaml": extraPathsText(["/a", "/b"], true) });
    const found = ModelFolders.fromDirs({
      modelsDirs: [],
      extraModelPaths: [dir.join("ours.yaml")],
    });
    expect(found.pathsFor("diffusion_models")).toEqual(
      ["a", "b"].flatMap((root) => [join("/", root, "unet"), join("/", root, "diffusion_models")]),
    );
  });
});
