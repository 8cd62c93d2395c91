import { beforeAll, expect, test } from "bun:test";
import { chmodSync, mkdirSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import {
  buildImage,
  describeEngine,
  docker,
  IMAGE,
  must,
  run,
  trialCopy,
  until,
} from "./engine.ts";

const Layers = z.array(z.string());

/** A safetensors file of one tensor: enough to be recognised, and different for each seed. */
function weight(seed: number, sizeBytes: number): Uint8Array {
  const header = JSON.stringify({
    tensor: { dtype: "U8", shape: [sizeBytes], data_offsets: [0, sizeBytes] },
  });
  const bytes = new Uint8Array(8 + header.length + sizeBytes).fill(seed);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
  bytes.set(new TextEncoder().encode(header), 8);
  return bytes;
}

const WORKFLOW = JSON.stringify({
  "1": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "baked/one.safetensors" } },
  "2": { class_type: "VAELoader", inputs: { vae_name: "two.safetensors" } },
  "3": { class_type: "VAEDecode", inputs: { samples: ["1", 0], vae: ["2", 0] } },
  "4": { class_type: "SaveImage", inputs: { images: ["3", 0], filename_prefix: "x" } },
});

const MANIFEST = JSON.stringify({
  version: 2,
  weights: [
    {
      name: "baked/one.safetensors",
      category: "checkpoints",
      urls: ["file:///project/sources/one.safetensors"],
    },
    { name: "two.safetensors", category: "vae", urls: ["file:///project/sources/two.safetensors"] },
  ],
});

/** A clone with the same weights in it, made at another time by somebody with another umask; its last layers. */
async function bake(tag: string, mode: number, when: Date): Promise<string[]> {
  using project = await trialCopy();
  const at = (name: string): string => join(project.path, name);
  mkdirSync(at("sources"));
  writeFileSync(at("workflow.json"), WORKFLOW);
  writeFileSync(at("manifest.json"), MANIFEST);
  writeFileSync(at("sources/one.safetensors"), weight(1, 3_000_000));
  writeFileSync(at("sources/two.safetensors"), weight(2, 50_000));
  for (const name of ["one", "two"]) {
    chmodSync(at(`sources/${name}.safetensors`), mode);
    utimesSync(at(`sources/${name}.safetensors`), when, when);
  }
  const given = [`IMAGE=${IMAGE}`, "WEIGHTS=workflow.json", "MANIFEST=manifest.json"];
  await must(
    [
      "docker",
      "build",
      "--no-cache",
      "--tag",
      tag,
      "--file",
      "docs/deploy/Dockerfile.weights",
      ...given.flatMap((argument) => ["--build-arg", argument]),
      ".",
    ],
    { cwd: project.path },
  );
  const layersOf = async (image: string): Promise<string[]> =>
    Layers.parse(
      JSON.parse(await docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", image)),
    );
  const base = await layersOf(IMAGE);
  return (await layersOf(tag)).slice(base.length);
}

describeEngine("weights baked into an image", () => {
  beforeAll(buildImage, 600_000);

  test("two clones give the same layer, whatever their folder, times and umask", async () => {
    const one = await bake("cog-comfyui-test:baked", 0o644, new Date(1_000_000_000_000));
    const other = await bake("cog-comfyui-test:baked-again", 0o600, new Date(1_700_000_000_000));
    expect(one).toHaveLength(1);
    expect(other).toEqual(one);
  });

  test("are found by a container without network, before READY and in a check", async () => {
    const image = "cog-comfyui-test:baked";
    const workflow = `PRELOAD_WORKFLOW=${WORKFLOW.replaceAll(" ", "")}`;
    const id = await docker(
      "run",
      "-d",
      "--network",
      "none",
      "--read-only",
      "--tmpfs",
      "/tmp",
      "--env",
      workflow,
      image,
    );
    try {
      const status = await until("setup", async () => {
        const { out } = await run(["docker", "exec", id, "cog-comfyui-health"]);
        return ["READY", "SETUP_FAILED"].find((word) => out.includes(word));
      });
      expect(status).toBe("READY");
      const listed = await docker("exec", id, "find", "/opt/models", "-type", "f");
      expect(listed.split("\n").sort()).toEqual([
        "/opt/models/checkpoints/baked/one.safetensors",
        "/opt/models/vae/two.safetensors",
      ]);
    } finally {
      await docker("rm", "--force", id);
    }
  });
});
