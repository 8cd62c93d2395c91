/** Manifests: the schema and its errors, merging, the original's form, and that the built-in one is right. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { AppError } from "../../src/platform/errors.ts";
import { PROJECT_ROOT } from "../../src/platform/project-root.ts";
import { ImpliedTable } from "../../src/weights/implied.ts";
import type { ManifestWeight } from "../../src/weights/manifest.ts";
import { Manifest, manifestSchemaText, weightPath } from "../../src/weights/manifest.ts";
import { casePath, describeCases } from "../support/shared.ts";

const row = (more: Partial<ManifestWeight> = {}): ManifestWeight => ({
  name: "a.safetensors",
  category: "checkpoints",
  urls: ["https://example.org/a.safetensors"],
  ...more,
});
const manifest = (...weights: ManifestWeight[]) => Manifest.parse({ version: 2, weights }, "test");

function problem(document: unknown): string {
  try {
    Manifest.parse(document, "mine.json");
  } catch (error) {
    return error instanceof AppError ? `${error.code}: ${error.message}` : String(error);
  }
  return "none";
}

describe("the schema", () => {
  test("takes the documented form", () => {
    const document = {
      version: 2,
      weights: [
        {
          name: "sub/a.safetensors",
          category: "checkpoints",
          urls: ["https://example.org/a", "hf://owner/repo/a.safetensors"],
          size: 123,
          sha256: "A".repeat(64),
          license: "MIT",
          gated: false,
        },
      ],
      kits: { mine: ["sub/a.safetensors"] },
      synonyms: { old: "sub/a.safetensors" },
    };
    const read = Manifest.parse(document, "test");
    expect(read.kit("mine").map(({ name }) => name)).toEqual(["sub/a.safetensors"]);
    expect(read.find("sub/a.safetensors")[0]?.sha256).toBe("a".repeat(64));
    expect(read.synonym("old")).toBe("sub/a.safetensors");
  });

  const bad: readonly (readonly [string, object, string])[] = [
    [
      "a wrong hash",
      { sha256: "abc" },
      "weights[0] (a.safetensors).sha256: must be 64 hexadecimal digits",
    ],
    ["a size of zero", { size: 0 }, "weights[0] (a.safetensors).size: "],
    [
      "a field that isn't known",
      { sha265: "x" },
      'weights[0] (a.safetensors): Unrecognized key: "sha265"',
    ],
    ["no address", { urls: [] }, "weights[0] (a.safetensors).urls: "],
    [
      "an address of no known scheme",
      { urls: ["ftp://x/y"] },
      "weights[0] (a.safetensors).urls.0: must be an https://",
    ],
    [
      "a name that leaves its folder",
      { name: "../a.pt" },
      "weights[0] (../a.pt).name: must be a relative path",
    ],
    ["an absolute name", { name: "/a.pt" }, "weights[0] (/a.pt).name: must be a relative path"],
    [
      "a category that leaves models",
      { category: "../x" },
      "weights[0] (a.safetensors).category: must not hold ..",
    ],
    [
      "a path that leaves ComfyUI",
      { path: "models/../../x" },
      "weights[0] (a.safetensors).path: must be a relative path",
    ],
  ];
  test.each(bad)("names row and field of %s", (_, more, message) => {
    const document = { version: 2, weights: [{ ...row(), ...more }] };
    expect(problem(document)).toStartWith("MANIFEST_INVALID: mine.json is no manifest. ");
    expect(problem(document)).toContain(message);
  });

  test("tells every wrong row at once", () => {
    const document = {
      version: 2,
      weights: [{ ...row(), size: -1 }, row(), { ...row(), urls: "x" }],
    };
    expect(problem(document)).toContain("weights[0]");
    expect(problem(document)).toContain("weights[2] (a.safetensors).urls");
  });

  test.each([
    ["null", null],
    ["a list", []],
    ["text", "hello"],
    ["another version", { version: 3 }],
    ["a workflow", { "1": { class_type: "x" } }],
  ])("refuses %s", (_, document) => {
    expect(problem(document)).toStartWith("MANIFEST_INVALID: mine.json is no manifest");
  });

  test("says so when the text is no JSON", () => {
    expect(() => Manifest.parseText("<html>", "https://h/m.json")).toThrow(
      "https://h/m.json is no manifest. it is not JSON",
    );
  });

  test("never throws anything but its own error", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (document) => {
        expect(problem(document)).toMatch(/^(MANIFEST_INVALID|none)/);
      }),
      { numRuns: 300 },
    );
  });
});

describe("the original's form", () => {
  const read = Manifest.parse(
    {
      CHECKPOINTS: ["a.ckpt", "a.ckpt"],
      CLIP: ["b.pt", "clip-vit-large-patch14"],
      UNET: ["c.sft"],
      BIREFNET: ["d.pth"],
    },
    "theirs.json",
  );

  test("becomes archives at the original's address", () => {
    expect(read.weights.map((weight) => [weightPath(weight), weight.urls[0]])).toEqual([
      [
        "models/checkpoints/a.ckpt",
        "https://weights.replicate.delivery/default/comfy-ui/checkpoints/a.ckpt.tar",
      ],
      [
        "models/text_encoders/b.pt",
        "https://weights.replicate.delivery/default/comfy-ui/clip/b.pt.tar",
      ],
      [
        "models/clip/clip-vit-large-patch14",
        "https://weights.replicate.delivery/default/comfy-ui/clip/clip-vit-large-patch14.tar",
      ],
      [
        "models/diffusion_models/c.sft",
        "https://weights.replicate.delivery/default/comfy-ui/unet/c.sft.tar",
      ],
      [
        "models/BiRefNet/d.pth",
        "https://weights.replicate.delivery/default/comfy-ui/BiRefNet/d.pth.tar",
      ],
    ]);
  });

  test("adds names and overrules nothing", () => {
    const merged = manifest(row({ name: "a.ckpt", size: 5 })).with(read);
    expect(merged.find("a.ckpt")).toMatchObject([{ size: 5 }]);
    expect(merged.find("d.pth")).toHaveLength(1);
  });
});

describe("merging", () => {
  test("replaces the row of the same place, adds others, kits and synonyms", () => {
    const first = Manifest.parse(
      {
        version: 2,
        weights: [row(), row({ category: "vae" })],
        kits: { k: ["a.safetensors"] },
        synonyms: { x: "y" },
      },
      "first",
    );
    const second = Manifest.parse(
      { version: 2, weights: [row({ size: 9 }), row({ name: "b.pt" })], synonyms: { x: "z" } },
      "second",
    );
    const merged = first.with(second);
    expect(merged.weights.map(({ name, category, size }) => [name, category, size])).toEqual([
      ["a.safetensors", "checkpoints", 9],
      ["a.safetensors", "vae", undefined],
      ["b.pt", "checkpoints", undefined],
    ]);
    expect(merged.synonym("x")).toBe("z");
    expect([...merged.kits.keys()]).toEqual(["k"]);
  });

  test("twice with the same manifest changes nothing", () => {
    const mine = manifest(row({ size: 1 }), row({ name: "b.pt" }));
    const once = Manifest.builtIn().with(mine);
    expect(once.with(mine).weights).toEqual(once.weights);
  });
});

describe("lookup", () => {
  test("knows categories by their aliases", () => {
    const known = manifest(row({ category: "clip" }));
    expect(known.find("a.safetensors", "text_encoders")).toHaveLength(1);
    expect(known.find("a.safetensors", "vae")).toHaveLength(0);
  });

  test("names the known kits for one that isn't", () => {
    expect(() => Manifest.builtIn().kit("sd99")).toThrow(
      /^"sd99" is no kit\. Known: sd15, sdxl, flux, /,
    );
  });
});

describe("the built-in manifest", () => {
  const builtIn = Manifest.builtIn();

  test("has a schema for editors that is up to date", () => {
    expect(readFileSync(join(PROJECT_ROOT, "weights.schema.json"), "utf8")).toBe(
      manifestSchemaText(),
    );
  });

  test("has one row for one place, and no hash for an archive", () => {
    expect(new Set(builtIn.weights.map(weightPath)).size).toBe(builtIn.weights.length);
    const hashed = builtIn.weights.filter((weight) => weight.sha256 !== undefined);
    expect(hashed.flatMap(({ urls }) => urls).filter((url) => url.endsWith(".tar"))).toEqual([]);
  });

  test.each([
    ["sd15", 4_599_787_494],
    ["sdxl", 13_014_060_264],
    ["flux", 34_172_222_116],
  ])("has kit %s of %d bytes, every weight with size and hash", (kit, bytes) => {
    const rows = builtIn.kit(kit);
    expect(rows.every(({ sha256 }) => sha256 !== undefined)).toBe(true);
    expect(rows.reduce((sum, { size }) => sum + (size ?? Number.NaN), 0)).toBe(bytes);
  });

  test("has every kit's weights hashed, and sized where the size is known", () => {
    for (const kit of builtIn.kits.keys()) {
      expect(builtIn.kit(kit).filter(({ sha256 }) => sha256 === undefined)).toEqual([]);
    }
  });

  test("has synonyms that lead to a row", () => {
    const lost = [...builtIn.synonyms].filter(([, name]) => builtIn.find(name).length === 0);
    expect(lost).toEqual([]);
  });

  test("marks what the original forgot among the non-commercial ones", () => {
    const marked = (name: string) =>
      builtIn.find(name).every(({ nonCommercial }) => nonCommercial === true);
    expect(marked("models/antelopev2")).toBe(true);
    expect(marked("flux1-dev.safetensors")).toBe(true);
    expect(marked("sd_xl_base_1.0.safetensors")).toBe(false);
  });

  test("agrees with the table of implied weights on every place they share", () => {
    const implied = ImpliedTable.builtIn();
    const conflicts = [...implied.paths()].filter((path) => {
      const [known, facts] = [builtIn.at(path), implied.facts(path)];
      return (
        known?.sha256 !== undefined && facts?.sha256 !== undefined && known.sha256 !== facts.sha256
      );
    });
    expect(conflicts).toEqual([]);
  });
});

describeCases("cog_comfyui_weights_map.json", () => {
  test("every weight of the original is there, in its place, with its address", () => {
    const map: Record<string, unknown> = JSON.parse(
      readFileSync(casePath("cog_comfyui_weights_map.json"), "utf8"),
    );
    const places: { key: string; dest: string; url: string }[] = Object.entries(map).flatMap(
      ([key, entry]) => [entry].flat().map((place) => ({ key, ...Object(place) })),
    );
    const builtIn = Manifest.builtIn();
    const folders: Record<string, string> = {
      xlabs_controlnets: "xlabs/controlnets",
      xlabs_ipadapters: "xlabs/ipadapters",
    };
    const lost = places.filter(({ key, dest, url }) => {
      const wanted = `${dest.replace(/^ComfyUI\//, "").replace(/\/$/, "")}/${key}`;
      return !builtIn.find(key).some((weight) => {
        const place =
          weight.path ?? `models/${folders[weight.category] ?? weight.category}/${weight.name}`;
        return place === wanted && [...weight.urls, ...(weight.mirrors ?? [])].includes(url);
      });
    });
    expect(places).toHaveLength(969);
    expect(lost).toEqual([]);
  });
});

describeCases("model_facts.json", () => {
  test("a hash stands only for addresses that a source states it for, and never where sources disagree", () => {
    const facts: Record<string, unknown>[] = JSON.parse(
      readFileSync(casePath("model_facts.json"), "utf8"),
    );
    const kits: Record<string, { files: Record<string, unknown>[] }> = JSON.parse(
      readFileSync(casePath("kits_facts.json"), "utf8"),
    );
    const stated = new Set(
      [
        ...facts.map((fact) => [fact["sha256"], fact["sha256_for"]]),
        ...Object.values(kits).flatMap((kit) =>
          kit.files.map((file) => [file["sha256"], file["urls"]]),
        ),
      ].flatMap(([hash, urls]) => (Array.isArray(urls) ? urls.map((url) => `${hash} ${url}`) : [])),
    );
    const wrong = Manifest.builtIn()
      .weights.filter((weight) => weight.sha256 !== undefined)
      .flatMap((weight) => weight.urls.map((url) => `${weight.sha256} ${url}`))
      .filter((pair) => !stated.has(pair));
    expect(wrong).toEqual([]);
    const conflicting = facts
      .filter((fact) => fact["conflicts"] !== undefined)
      .flatMap((fact) => Manifest.builtIn().find(String(fact["name"]), String(fact["category"])));
    expect(conflicting.filter(({ sha256 }) => sha256 !== undefined)).toEqual([]);
  });
});
