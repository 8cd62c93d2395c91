/** What `weights bake` writes, by the tools that read it: `docker build` with its Dockerfile, `docker load` of its layout. */
import { beforeAll, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { bake } from "../../src/weights/bake.ts";
import { tempDir } from "../support/temp-dir.ts";
import { safetensors, sha256 } from "../support/weights.ts";
import { buildImage, describeEngine, docker, IMAGE, must } from "./engine.ts";

const TAG = "cog-comfyui-test:layers";
const LARGE_BYTES = 65 * 2 ** 20;
const Layers = z.array(z.string());

describeEngine("baked layers", () => {
  beforeAll(buildImage, 600_000);

  test("are added by the Dockerfile, one layer each, and trusted at start without being read", async () => {
    using dir = tempDir();
    const files = [
      { path: "checkpoints/large.safetensors", body: safetensors(LARGE_BYTES) },
      { path: "vae/small.safetensors", body: safetensors(50_000) },
      { path: "loras/small.safetensors", body: safetensors(60_000) },
    ].map(({ path, body }) => {
      const file = dir.join("models", path);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, body);
      return { path, file, size: body.length, sha256: sha256(body) };
    });
    const out = dir.join("layers");
    const layers = await bake(files, { out, prefix: "/opt/models" });
    expect(layers).toHaveLength(2);
    await must(["docker", "build", "--build-arg", `IMAGE=${IMAGE}`, "--tag", TAG, out]);
    const layersOf = async (image: string): Promise<string[]> =>
      Layers.parse(
        JSON.parse(await docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", image)),
      );
    expect((await layersOf(TAG)).length - (await layersOf(IMAGE)).length).toBe(2);
    const listed = await docker(
      "run",
      "--rm",
      "--network",
      "none",
      TAG,
      "sh",
      "-c",
      "cd /opt/models && sha256sum checkpoints/large.safetensors vae/small.safetensors && stat -c %Y vae/small.safetensors",
    );
    expect(listed).toContain(files[0]?.sha256 ?? "");
    expect(listed).toContain(files[1]?.sha256 ?? "");
    expect(listed).toContain(String(Date.UTC(1980, 0, 1) / 1000));
    const verified = await docker(
      "run",
      "--rm",
      "--network",
      "none",
      TAG,
      "cog-comfyui",
      "weights",
      "verify",
    );
    expect(verified).toContain("3 checked, 0 broken");
    expect(verified).not.toContain("format only");
  }, 300_000);

  test("load as an image of their own, without a Dockerfile", async () => {
    using dir = tempDir();
    const body = safetensors(50_000);
    writeFileSync(dir.join("w.safetensors"), body);
    const out = dir.join("layers");
    const file = {
      path: "vae/w.safetensors",
      file: dir.join("w.safetensors"),
      size: body.length,
      sha256: sha256(body),
    };
    const [layer] = await bake([file], { out, prefix: "/opt/models" });
    await must(["tar", "-cf", dir.join("image.tar"), "-C", out, "."]);
    const loaded = await must(["docker", "load", "--input", join(dir.path, "image.tar")]);
    const image = /sha256:[0-9a-f]{64}|\S+:latest/.exec(loaded)?.[0] ?? "";
    const layers = Layers.parse(
      JSON.parse(await docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", image)),
    );
    expect(layers).toEqual([layer?.digest ?? ""]);
  }, 120_000);
});
