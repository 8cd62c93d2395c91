/** Is it there: lookup as ComfyUI's, integrity, near matches, choices, silence where it was asked for. */
import { describe, expect, test } from "bun:test";
import { symlinkSync, writeFileSync } from "node:fs";
import { ModelFolders } from "../../src/models/folders.ts";
import { Manifest } from "../../src/weights/manifest.ts";
import { editDistance } from "../../src/weights/near.ts";
import type { Validation, WeightRef } from "../../src/weights/refs.ts";
import { addressName } from "../../src/weights/request-source.ts";
import { namedRef } from "../../src/weights/resolve.ts";
import type { ValidateOptions } from "../../src/weights/validate.ts";
import { validateWeights } from "../../src/weights/validate.ts";
import { safetensors } from "../support/safetensors.ts";
import type { Tree } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";

const GOOD = safetensors({ w: [4] });

function ref(name: string, category?: string, more: Partial<WeightRef> = {}): WeightRef {
  return {
    ...namedRef(name),
    category,
    nodeId: "1",
    classType: "X",
    input: "i",
    reason: "loader",
    ...more,
  };
}

function validate(
  tree: Tree,
  refs: readonly WeightRef[],
  options: ValidateOptions = {},
): Validation {
  using dir = tempDir(tree);
  return validateWeights(refs, ModelFolders.fromDirs({ modelsDirs: [dir.path] }), options);
}

/** State of one reference: `present`, or why it isn't. */
function state(tree: Tree, wanted: WeightRef, options: ValidateOptions = {}): string {
  const { present, missing, warnings, ignored, listed } = validate(tree, [wanted], options);
  const [blocked] = [...missing, ...warnings];
  return (
    blocked?.defect ??
    blocked?.state ??
    (present.length > 0 ? `present ${present[0]?.listedAs ?? ""}`.trim() : undefined) ??
    (ignored.length > 0 ? "ignored" : undefined) ??
    (listed === undefined ? "nothing" : "listed")
  );
}

describe("a weight", () => {
  test("is present where ComfyUI would open it", () => {
    expect(state({ "unet/a.safetensors": GOOD }, ref("a.safetensors", "diffusion_models"))).toBe(
      "present",
    );
    expect(state({ "clip/a.safetensors": GOOD }, ref("a.safetensors", "text_encoders"))).toBe(
      "present",
    );
  });

  test("in the wrong folder is missing, and the report says where it lies", () => {
    const { missing } = validate({ "checkpoints/a.safetensors": GOOD }, [
      ref("a.safetensors", "diffusion_models"),
    ]);
    expect(missing).toMatchObject([
      {
        state: "missing",
        near: [{ name: "a.safetensors", category: "checkpoints", why: "other_folder" }],
      },
    ]);
    expect(missing[0]?.searched.map((path) => path.split("/").at(-1))).toEqual([
      "unet",
      "diffusion_models",
    ]);
  });

  test.each<[string, string | Uint8Array]>([
    ["empty", ""],
    ["html", "<html>"],
    ["lfs_pointer", "version https://git-lfs.github.com/spec/v1\n"],
    ["truncated", GOOD.subarray(0, -1)],
  ])("that is %s is broken", (defect, content) => {
    expect(state({ "vae/a.safetensors": content }, ref("a.safetensors", "vae"))).toBe(defect);
  });

  test("behind a link to nowhere is broken", () => {
    using dir = tempDir({ "vae/keep": "" });
    symlinkSync(dir.join("gone"), dir.join("vae/a.safetensors"));
    const folders = ModelFolders.fromDirs({ modelsDirs: [dir.path] });
    expect(validateWeights([ref("a.safetensors", "vae")], folders).missing).toMatchObject([
      { state: "broken", defect: "dangling_link", file: dir.join("vae/a.safetensors") },
    ]);
  });

  test("of another size than the manifest's is its owner's business when its format is whole in itself", () => {
    const manifest = Manifest.parse(
      {
        version: 2,
        weights: ["a.safetensors", "b.ckpt"].map((name) => ({
          name,
          category: "checkpoints",
          urls: ["https://h/x"],
          size: 999,
        })),
      },
      "test",
    );
    const pickle = new Uint8Array([0x80, 2, 1, 2, 3]);
    expect(
      state({ "checkpoints/a.safetensors": GOOD }, ref("a.safetensors", "checkpoints"), {
        manifest,
      }),
    ).toBe("present");
    expect(
      state({ "checkpoints/b.ckpt": pickle }, ref("b.ckpt", "checkpoints"), { manifest }),
    ).toBe("truncated");
    expect(state({ "checkpoints/b.ckpt": pickle }, ref("b.ckpt", "checkpoints"))).toBe("present");
  });

  test("must have the size that the lock file pins", () => {
    const lockedSize = () => GOOD.length + 1;
    expect(state({ "vae/a.safetensors": GOOD }, ref("a.safetensors", "vae"), { lockedSize })).toBe(
      "wrong_size",
    );
  });

  test("that is a folder holds its files, each whole", () => {
    const faces = ref("faces", "insightface", {
      path: "models/insightface/models/faces",
      folder: { files: ["a.onnx"] },
    });
    const path = "insightface/models/faces/a.onnx";
    expect(state({ [path]: new Uint8Array([8, 7]) }, faces)).toBe("present");
    expect(state({ [path]: "<html>" }, faces)).toBe("incomplete_folder");
    expect(state({ "insightface/models/faces/other": "" }, faces)).toBe("incomplete_folder");
    expect(state({}, faces)).toBe("missing");
  });

  test("of which nothing tells the folder may lie in any", () => {
    const loose = ref("a.safetensors", undefined, { reason: "meta" });
    expect(state({ "loras/a.safetensors": GOOD }, loose)).toBe("present");
    expect(state({ "loras/x/b.safetensors": GOOD }, ref("loras/x/b.safetensors"))).toBe("present");
    expect(state({ "vae/b.safetensors": GOOD }, ref("loras/b.safetensors"))).toBe("missing");
    const rows = ["checkpoints", "diffusion_models"].map((category) => ({
      name: "a.safetensors",
      category,
      urls: ["https://h/x"],
    }));
    const manifest = Manifest.parse({ version: 2, weights: rows }, "test");
    expect(state({ "unet/a.safetensors": GOOD }, loose, { manifest })).toBe("present");
    expect(state({ "loras/a.safetensors": GOOD }, loose, { manifest })).toBe("present");
  });

  test("is found by any name that the node accepts", () => {
    const wanted = ref("CLIP-ViT-H.safetensors", "clip_vision", {
      path: "models/clip_vision/CLIP-ViT-H.safetensors",
      accepts: "(ViT.H|sd15.*model)\\.safetensors",
    });
    expect(state({ "clip_vision/sd15/model.safetensors": GOOD }, wanted)).toBe("present");
    const embedding = ref("neg", "embeddings", {
      reason: "embedding",
      accepts: "(^|/)neg(\\.(safetensors|pt|bin))?$",
      certain: false,
    });
    expect(state({ "embeddings/sub/neg.safetensors": GOOD }, embedding)).toBe("present");
    expect(state({ "embeddings/negative.safetensors": GOOD }, embedding)).toBe("missing");
  });

  test("that the engine lists is never reported missing", () => {
    expect(state({}, ref("odd", "vae", { listed: true }))).toBe("listed");
  });

  test("can be silenced by name, last part or pattern", () => {
    const wanted = ref("sub/a.safetensors", "vae");
    for (const ignore of ["sub/a.safetensors", "a.safetensors", "sub/*", "*.safetensors"]) {
      expect(state({}, wanted, { ignore: [ignore] })).toBe("ignored");
    }
    expect(state({}, wanted, { ignore: ["a", "b*"] })).toBe("missing");
  });
});

describe("spelling", () => {
  const manifest = Manifest.parse(
    {
      version: 2,
      weights: [{ name: "new.safetensors", category: "vae", urls: ["https://h/x"] }],
      synonyms: { "old.sft": "new.safetensors" },
    },
    "test",
  );

  test("of another system is rewritten to the listed name", () => {
    expect(state({ "loras/sub/a.safetensors": GOOD }, ref("sub\\a.safetensors", "loras"))).toBe(
      "present sub/a.safetensors",
    );
  });

  test("by a synonym is rewritten, unless the very name is there", () => {
    const wanted = ref("old.sft", "vae");
    expect(state({ "vae/new.safetensors": GOOD }, wanted, { manifest })).toBe(
      "present new.safetensors",
    );
    expect(state({ "vae/new.safetensors": GOOD, "vae/old.sft": GOOD }, wanted, { manifest })).toBe(
      "present",
    );
  });

  test("as an address finds what was fetched from that very address", () => {
    const url = "https://h/a.safetensors";
    const wanted = ref(url, "loras", { fromUrl: true, hints: [{ url }] });
    const place = addressName(url, "a.safetensors");
    expect(state({ [`loras/${place}`]: GOOD }, wanted)).toBe(`present ${place}`);
    expect(state({ "loras/a.safetensors": GOOD }, wanted)).toBe("missing");
  });
});

describe("near matches", () => {
  const near = (tree: Tree, name: string, more: { manifest?: Manifest } = {}) =>
    validate(tree, [ref(name, "loras")], more).missing[0]?.near.map(
      (match) => `${match.why} ${match.category}/${match.name}`,
    );

  test.each<[string, string, string]>([
    ["case", "Detail.safetensors", "detail.safetensors"],
    ["separator", "add_detail.safetensors", "add-detail.safetensors"],
    ["extension", "detail.pt", "detail.safetensors"],
    ["subfolder", "detail.safetensors", "sdxl/detail.safetensors"],
    ["spelling", "detial_tweaker.safetensors", "detail_tweaker.safetensors"],
  ])("by %s", (why, wanted, there) => {
    expect(near({ [`loras/${there}`]: GOOD }, wanted)).toEqual([`${why} loras/${there}`]);
  });

  test("are none for names that have little in common", () => {
    expect(near({ "loras/portrait.safetensors": GOOD }, "landscape.safetensors")).toEqual([]);
  });

  test("are at most three, the surest first", () => {
    const tree = Object.fromEntries(
      ["x/a.pt", "y/a.pt", "A.pt", "z/a.pt"].map((name) => [
        `loras/${name}`,
        new Uint8Array([0x80, 2]),
      ]),
    );
    expect(near(tree, "a.pt")?.length).toBe(3);
    expect(near(tree, "a.pt")?.[0]).toBe("case loras/A.pt");
  });

  test("come from the manifest when the disk has none", () => {
    const manifest = Manifest.parse(
      {
        version: 2,
        weights: [{ name: "detail_tweaker.safetensors", category: "loras", urls: ["https://h/x"] }],
      },
      "test",
    );
    expect(near({}, "detail_tweker.safetensors", { manifest })).toEqual([
      "spelling loras/detail_tweaker.safetensors",
    ]);
  });

  test.each([
    ["", "", 3, 0],
    ["abc", "abd", 3, 1],
    ["abc", "ca", 3, 3],
    ["kitten", "sitting", 9, 3],
    ["abcdef", "uvwxyz", 2, 3],
  ])("count %j to %j within %d as %d edits", (a, b, limit, edits) => {
    expect(editDistance(a, b, limit)).toBe(edits);
  });
});

describe("many references", () => {
  test("to one file are one entry that names them all", () => {
    const { missing } = validate({}, [
      ref("a.pt", "vae"),
      ref("b.pt", "vae"),
      ref("a.pt", "vae", { nodeId: "9" }),
    ]);
    expect(
      missing.map((entry) => [
        entry.ref.name,
        (entry.uses ?? [entry.ref]).map(({ nodeId }) => nodeId),
      ]),
    ).toEqual([
      ["a.pt", ["1", "9"]],
      ["b.pt", ["1"]],
    ]);
  });

  test("that are guesses are warnings", () => {
    const { missing, warnings } = validate({}, [ref("a.pt", "vae", { certain: false })]);
    expect([missing.length, warnings.length]).toEqual([0, 1]);
  });

  test("of a choice need one option; without any the preferred one is missed", () => {
    const choice = (name: string, option: string, preferred: boolean) =>
      ref(name, "ipadapter", { oneOf: { group: "g", option, preferred } });
    const refs = [
      choice("old1", "old", false),
      choice("old2", "old", false),
      choice("new1", "new", true),
    ];
    const missed = (tree: Tree) => validate(tree, refs).missing.map((entry) => entry.ref.name);
    expect(missed({})).toEqual(["new1"]);
    expect(missed({ "ipadapter/old1": "x", "ipadapter/old2": "x" })).toEqual([]);
    expect(missed({ "ipadapter/old1": "x" })).toEqual(["new1"]);
    expect(missed({ "ipadapter/new1": "x" })).toEqual([]);
  });

  test("see a file that appeared since", () => {
    using dir = tempDir();
    const folders = ModelFolders.fromDirs({ modelsDirs: [dir.path] });
    const wanted = [ref("a.pt", "my_models")];
    expect(validateWeights(wanted, folders).missing).toHaveLength(1);
    using again = tempDir({ "my_models/a.pt": new Uint8Array([0x80, 2]) });
    writeFileSync(again.join("x"), "");
    expect(
      validateWeights(wanted, ModelFolders.fromDirs({ modelsDirs: [again.path] })).missing,
    ).toHaveLength(0);
  });
});
