/** Where a weight comes from: the chain, and what a request may bring along. */
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { ModelFolders } from "../../src/models/folders.ts";
import { Manifest } from "../../src/weights/manifest.ts";
import type { WeightRef } from "../../src/weights/refs.ts";
import { nameOfAddress } from "../../src/weights/request-source.ts";
import type { ResolveOptions } from "../../src/weights/resolve.ts";
import { kitJobs, namedRef, resolveJobs, resolveWeight } from "../../src/weights/resolve.ts";

const folders = ModelFolders.fromDirs({ modelsDirs: ["/nowhere/models"] });
const SHA = "a".repeat(64);
const manifest = Manifest.parse(
  {
    version: 2,
    weights: [
      {
        name: "a.safetensors",
        category: "vae",
        urls: ["https://one/a", "https://two/a"],
        size: 5,
        sha256: SHA,
        license: "MIT",
      },
      { name: "b.pth", category: "upscale_models", urls: ["https://one/b.pth.tar"], size: 6 },
      {
        name: "c.safetensors",
        category: "loras",
        urls: ["https://one/c"],
        mirrors: ["https://two/c.tar"],
        size: 7,
        sha256: SHA,
        gated: true,
      },
      {
        name: "models/faces",
        category: "insightface",
        urls: ["https://one/faces.tar"],
        folder: true,
      },
      {
        name: "hed.pth",
        category: "custom_nodes",
        path: "custom_nodes/aux/hed.pth",
        urls: ["https://one/hed"],
      },
      { name: "g.gguf", category: "diffusion_models", urls: ["https://one/g.gguf"] },
      { name: "neg.pt", category: "embeddings", urls: ["https://one/neg.pt"] },
    ],
    kits: { small: ["a.safetensors", "b.pth"] },
    synonyms: { "old.sft": "a.safetensors" },
  },
  "test",
);
const options: ResolveOptions = { manifest, folders };

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

describe("the chain", () => {
  test("takes a manifest's row with all its addresses, each vouched for by the operator", () => {
    expect(resolveWeight(ref("a.safetensors", "vae"), options)).toEqual({
      kind: "jobs",
      jobs: [
        {
          name: "a.safetensors",
          category: "vae",
          destination: "/nowhere/models/vae/a.safetensors",
          sources: [
            { url: "https://one/a", trust: "operator" },
            { url: "https://two/a", trust: "operator" },
          ],
          sizeBytes: 5,
          sha256: SHA,
          license: "MIT",
        },
      ],
      known: {
        name: "a.safetensors",
        source: "https://one/a",
        origin: "manifest",
        sizeBytes: 5,
        license: "MIT",
      },
    });
  });

  test("asks the lock file first", () => {
    const locked = () => ({
      name: "a.safetensors",
      category: "vae",
      url: "https://pinned/a",
      sizeBytes: 9,
      sha256: "b".repeat(64),
    });
    expect(resolveWeight(ref("a.safetensors", "vae"), { ...options, locked })).toMatchObject({
      jobs: [{ sources: [{ url: "https://pinned/a" }], sizeBytes: 9, sha256: "b".repeat(64) }],
      known: { origin: "lock" },
    });
  });

  test("follows a synonym, and installs under the name that stands for it", () => {
    expect(resolveWeight(ref("old.sft", "vae"), options)).toMatchObject({
      jobs: [{ destination: "/nowhere/models/vae/a.safetensors" }],
      known: { origin: "synonym", name: "a.safetensors" },
    });
  });

  test("never takes a row of another folder for the one that is read", () => {
    expect(resolveWeight(ref("a.safetensors", "checkpoints"), options)).toEqual({
      kind: "unknown",
    });
  });

  test("puts a known file into the sub-folder that the workflow names", () => {
    expect(resolveJobs(ref("SDXL/a.safetensors", "vae"), options)).toMatchObject([
      { destination: "/nowhere/models/vae/SDXL/a.safetensors", sha256: SHA },
    ]);
  });

  test("reads the separators of another system", () => {
    expect(resolveJobs(ref("SDXL\\a.safetensors", "vae"), options)[0]?.destination).toBe(
      "/nowhere/models/vae/SDXL/a.safetensors",
    );
  });

  test.each([
    ["a.safetensors", "/nowhere/models/vae/a.safetensors"],
    ["vae/a.safetensors", "/nowhere/models/vae/a.safetensors"],
    ["insightface/models/faces", "/nowhere/models/insightface/models"],
    ["hed.pth", "/nowhere/custom_nodes/aux/hed.pth"],
  ])("finds %s by a person's word", (name, destination) => {
    expect(resolveJobs(name, options)[0]?.destination).toBe(destination);
  });

  test("knows a GGUF file by the folder it shares, an embedding without its ending", () => {
    expect(resolveJobs(ref("g.gguf", "unet_gguf"), options)).toHaveLength(1);
    const embedding = ref("neg", "embeddings", { reason: "embedding", accepts: "neg" });
    expect(resolveJobs(embedding, options)[0]?.destination).toBe(
      "/nowhere/models/embeddings/neg.pt",
    );
  });

  test("unpacks archives into the folder where the weight then lies", () => {
    expect(resolveJobs(ref("b.pth", "upscale_models"), options)).toMatchObject([
      {
        destination: "/nowhere/models/upscale_models",
        unpack: "tar",
        member: "b.pth",
        sizeBytes: 6,
      },
    ]);
    expect(
      resolveJobs(
        ref("faces", "insightface", { path: "models/insightface/models/faces" }),
        options,
      ),
    ).toMatchObject([
      { destination: "/nowhere/models/insightface/models", unpack: "tar", member: "faces" },
    ]);
  });

  test("demands the hash of what it is known for, not of mirrors", () => {
    const [job] = resolveJobs(ref("c.safetensors", "loras"), { ...options, hasToken: () => true });
    expect(job?.sha256).toBeUndefined();
    expect(job?.sources).toEqual([
      { url: "https://one/c", trust: "operator", sha256: SHA },
      { url: "https://two/c.tar", trust: "operator" },
    ]);
  });

  test("tries what needs no token first, unless there is one", () => {
    const [job] = resolveJobs(ref("c.safetensors", "loras"), options);
    expect(job?.sources.map(({ url }) => url)).toEqual(["https://two/c.tar", "https://one/c"]);
    expect(job?.gated).toBeUndefined();
  });

  test("replaces a broken file where it lies", () => {
    const broken = {
      ref: ref("a.safetensors", "vae"),
      state: "broken" as const,
      file: "/nowhere/models/vae/linked/a.safetensors",
      searched: [],
      near: [],
    };
    expect(resolveJobs(broken, options)[0]?.destination).toBe(broken.file);
  });

  test("uses the table of implied weights as the operator's word", () => {
    const implied = ref("x.pth", undefined, {
      path: "custom_nodes/pack/x.pth",
      reason: "implied",
      hints: [{ url: "https://hub/x.pth", trust: "operator", sha256: SHA }],
    });
    expect(resolveJobs(implied, options)).toMatchObject([
      {
        destination: "/nowhere/custom_nodes/pack/x.pth",
        sources: [{ url: "https://hub/x.pth", trust: "operator", sha256: SHA }],
      },
    ]);
  });

  test("says that a whole repository can't be fetched", () => {
    const folder = ref("repo", undefined, {
      path: "hf-cache:owner/repo",
      folder: { files: [] },
      hints: [{ url: "hf://owner/repo", trust: "operator" }],
    });
    expect(resolveWeight(folder, options)).toMatchObject({
      kind: "refused",
      known: { source: "hf://owner/repo" },
    });
  });
});

describe("kits", () => {
  test("are jobs, and none for none", () => {
    expect(kitJobs("small", options).map(({ name }) => name)).toEqual(["a.safetensors", "b.pth"]);
    expect(kitJobs("none", options)).toEqual([]);
    expect(() => kitJobs("big", options)).toThrow('"big" is no kit. Known: small, none');
  });

  test("of the built-in manifest need no token: what is gated has a mirror that is not", () => {
    for (const kit of ["sd15", "sdxl", "flux"]) {
      const jobs = kitJobs(kit, { manifest: Manifest.builtIn(), folders });
      expect(jobs.filter((job) => job.gated === true)).toEqual([]);
    }
  });
});

describe("a request's own addresses", () => {
  const url = "https://huggingface.co/o/r/resolve/main/style.safetensors";
  const digest = createHash("sha256").update(url).digest("hex");
  const asInput = (address: string, category = "loras") =>
    ref(address, category, { fromUrl: true, hints: [{ url: address }] });

  test("are fetched with no one's tokens into a name-space of their own", () => {
    expect(resolveJobs(asInput(url), options)).toEqual([
      {
        name: "style.safetensors",
        category: "loras",
        destination: `/nowhere/models/loras/_url/${digest}/style.safetensors`,
        sources: [{ url, trust: "request" }],
      },
    ]);
  });

  test("of the workflow's metadata can't take a known name either", () => {
    const hinted = ref("mine.safetensors", "loras", { hints: [{ url, sha256: SHA }] });
    expect(resolveJobs(hinted, options)).toMatchObject([
      {
        destination: `/nowhere/models/loras/_url/${digest}/mine.safetensors`,
        sources: [{ url, trust: "request", sha256: SHA }],
      },
    ]);
  });

  test("never overrule a manifest", () => {
    const hinted = ref("a.safetensors", "vae", { hints: [{ url }] });
    expect(resolveJobs(hinted, options)[0]?.sources.map((source) => source.trust)).toEqual([
      "operator",
      "operator",
    ]);
  });

  test("that the operator gives take the name as it is", () => {
    const hinted = ref("mine.safetensors", "loras", { hints: [{ url }] });
    expect(resolveJobs(hinted, { ...options, workflowTrust: "operator" })).toMatchObject([
      { destination: "/nowhere/models/loras/mine.safetensors", sources: [{ trust: "operator" }] },
    ]);
  });

  test.each([
    ["plain http", "http://huggingface.co/a.safetensors", "loras", "neither an https:// nor"],
    ["s3", "s3://bucket/a.safetensors", "loras", "neither an https:// nor"],
    ["a file", "file:///etc/a.safetensors", "loras", "neither an https:// nor"],
    ["a pickle", "https://huggingface.co/a.ckpt", "loras", "no .safetensors or .gguf file"],
    ["no file at all", "https://huggingface.co/", "loras", "no .safetensors or .gguf file"],
    [
      "a pickle behind a query",
      "https://huggingface.co/a.pt?x=.safetensors",
      "loras",
      "no .safetensors or .gguf",
    ],
    [
      "code's folder",
      "https://huggingface.co/a.safetensors",
      "custom_nodes",
      "nothing into custom_nodes",
    ],
    ["settings' folder", "https://huggingface.co/a.safetensors", "configs", "nothing into configs"],
    [
      "a folder that nobody reads",
      "https://huggingface.co/a.safetensors",
      "made_up",
      "no registered model folder",
    ],
    [
      "a host that isn't allowed",
      "https://evil.example/a.safetensors",
      "loras",
      "evil.example is not among the hosts",
    ],
    [
      "a host that only looks allowed",
      "https://huggingface.co.evil.example/a.safetensors",
      "loras",
      "is not among the hosts",
    ],
  ])("are refused for %s", (_, address, category, reason) => {
    const resolution = resolveWeight(asInput(address, category), {
      ...options,
      allowedHosts: ["huggingface.co"],
    });
    expect(resolution).toMatchObject({ kind: "refused" });
    expect(resolution.kind === "refused" ? resolution.reason : "").toContain(reason);
  });

  test("whose metadata names a pickle are refused though the address ends well", () => {
    const hinted = ref("mine.ckpt", "checkpoints", { hints: [{ url }] });
    expect(resolveWeight(hinted, options)).toMatchObject({ kind: "refused" });
  });

  test.each([
    ["https://h/a%2F..%2Fb.safetensors", "a_.._b.safetensors"],
    ["https://h/x/My%20LoRA%20(v2).safetensors?download=true", "My LoRA (v2).safetensors"],
    ["https://civitai.com/api/download/models/12345?type=Model", "civitai-12345.safetensors"],
    ["https://civitai.com/models/9/name?modelVersionId=77", "civitai-77.safetensors"],
    ["https://h/..%00.safetensors", "_.safetensors"],
    ["hf://o/r/sub/a.gguf", "a.gguf"],
  ])("give %s the harmless name %s", (address, name) => {
    expect(nameOfAddress(address)).toBe(name);
  });
});
