/**
 * Weights as image layers: tar files whose digest depends on nothing but names and bytes, one for each large weight,
 * the small ones together. Written as an OCI image layout, which needs no Docker, beside a Dockerfile that adds the same
 * files to another image.
 */
import { closeSync, fsyncSync, openSync, renameSync, rmSync } from "node:fs";
import { join, posix } from "node:path";
import type { TarMember } from "../platform/archive.ts";
import { packTar } from "../platform/archive.ts";
import { DownloadError } from "../platform/errors.ts";
import {
  fileBlocks,
  fileError,
  makeFolder,
  writeAtomically,
  writeFully,
} from "../platform/files.ts";
import { BAKED_FOLDER, BAKED_TIME_MS } from "./baked.ts";

/** A file to bake. */
export interface BakeFile {
  /** Below the models folder, with `/`. */
  readonly path: string;
  readonly file: string;
  readonly size: number;
  readonly sha256: string;
}

export interface BakedLayer {
  readonly digest: string;
  readonly size: number;
  readonly paths: readonly string[];
}

export interface BakeOptions {
  readonly out: string;
  /** The models folder in the image. */
  readonly prefix: string;
  readonly signal?: AbortSignal | undefined;
  readonly onLayer?: ((layer: BakedLayer) => void) | undefined;
}

/** From here on a weight is a layer of its own: pulled side by side, and kept when another one changes. */
const LARGE_BYTES = 64 * 2 ** 20;
/** Small weights share layers up to this size. */
const GROUP_BYTES = 512 * 2 ** 20;
const PLATFORMS = ["amd64", "arm64"] as const;
/** The name under which `docker load` knows the image. */
const DOCKER_TAG = "cog-comfyui-weights:latest";
const EPOCH = "1970-01-01T00:00:00Z";
const MEDIA = {
  layer: "application/vnd.oci.image.layer.v1.tar",
  config: "application/vnd.oci.image.config.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  index: "application/vnd.oci.image.index.v1+json",
} as const;

/** Which files share a layer. The order of the files does not matter. */
export function planLayers(files: readonly BakeFile[]): BakeFile[][] {
  const sorted = [...new Map(files.map((file) => [file.path, file])).values()].toSorted(
    (one, other) => (one.path < other.path ? -1 : 1),
  );
  const large = sorted.filter(({ size }) => size >= LARGE_BYTES).map((file) => [file]);
  const groups: BakeFile[][] = [];
  let bytes = 0;
  for (const file of sorted.filter(({ size }) => size < LARGE_BYTES)) {
    const group = groups.at(-1);
    if (group === undefined || bytes + file.size > GROUP_BYTES) {
      groups.push([file]);
      bytes = file.size;
    } else {
      group.push(file);
      bytes += file.size;
    }
  }
  return [...large, ...groups];
}

/** Writes the layers, the image layout and the Dockerfile. @throws DownloadError HASH_MISMATCH for an altered file */
export async function bake(
  files: readonly BakeFile[],
  options: BakeOptions,
): Promise<BakedLayer[]> {
  const layers: BakedLayer[] = [];
  makeFolder(join(options.out, "blobs/sha256"));
  for (const group of planLayers(files)) {
    const layer = await writeLayer(group, options);
    layers.push(layer);
    options.onLayer?.(layer);
  }
  writeImage(layers, options);
  writeAtomically(join(options.out, "Dockerfile"), dockerfile(layers, options.prefix));
  return layers;
}

async function writeLayer(files: readonly BakeFile[], options: BakeOptions): Promise<BakedLayer> {
  const draft = join(options.out, "blobs/sha256", `.new-${process.pid}`);
  const hasher = new Bun.CryptoHasher("sha256");
  let size = 0;
  try {
    const fd = openSync(draft, "w", 0o644);
    try {
      await packTar(members(files, options), (block) => {
        options.signal?.throwIfAborted();
        hasher.update(block);
        writeFully(fd, block, size);
        size += block.byteLength;
      });
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    const hex = hasher.digest("hex");
    renameSync(draft, join(options.out, "blobs/sha256", hex));
    return { digest: `sha256:${hex}`, size, paths: files.map(({ path }) => path) };
  } catch (error) {
    throw error instanceof Error && "syscall" in error ? fileError(error, draft, "write") : error;
  } finally {
    rmSync(draft, { force: true });
  }
}

/** Folders first, then the list, then the files; everything in one order. */
function members(files: readonly BakeFile[], { prefix }: BakeOptions): TarMember[] {
  const root = prefix.replace(/^\/+|\/+$/g, "");
  const list = JSON.stringify({
    v: 1,
    files: files.map(({ path, sha256, size }) => ({ path, sha256, size })),
  });
  const key = new Bun.CryptoHasher("sha256").update(list).digest("hex").slice(0, 16);
  const listPath = posix.join(root, BAKED_FOLDER, `${key}.json`);
  const paths = [listPath, ...files.map(({ path }) => posix.join(root, path))];
  const folders = [...new Set(paths.flatMap(parents))].toSorted();
  const modifiedMs = BAKED_TIME_MS;
  return [
    ...folders.map((path) => ({ path, sizeBytes: 0, modifiedMs })),
    {
      path: listPath,
      sizeBytes: Buffer.byteLength(list),
      modifiedMs,
      body: () => bytesOf(Buffer.from(list)),
    },
    ...files.map((file) => ({
      path: posix.join(root, file.path),
      sizeBytes: file.size,
      modifiedMs,
      body: () => checked(file),
    })),
  ];
}

function parents(path: string): string[] {
  const parts = path.split("/").slice(0, -1);
  return parts.map((_, depth) => parts.slice(0, depth + 1).join("/"));
}

async function* bytesOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(bytes);
}

/** The bytes of a file, compared on the way: a layer states its digests, and is believed. */
async function* checked(file: BakeFile): AsyncGenerator<Uint8Array> {
  const hasher = new Bun.CryptoHasher("sha256");
  for await (const block of fileBlocks(file.file, { end: file.size })) {
    hasher.update(block);
    yield block;
  }
  const actual = hasher.digest("hex");
  if (actual !== file.sha256) {
    throw new DownloadError(
      "HASH_MISMATCH",
      `${file.file} has the SHA-256 ${actual}, not ${file.sha256}`,
      {
        hint: "It was altered. Replace it with `cog-comfyui weights repair`, and bake again.",
        details: { expected: file.sha256, actual },
      },
    );
  }
}

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

/** One image for each processor architecture, of the same layers. */
function writeImage(layers: readonly BakedLayer[], options: BakeOptions): void {
  const { out } = options;
  const images = PLATFORMS.map((architecture) => writePlatform(layers, architecture, options));
  const index = writeBlob(out, MEDIA.index, {
    schemaVersion: 2,
    mediaType: MEDIA.index,
    manifests: images.map(({ manifest, architecture }) => ({
      ...manifest,
      platform: { architecture, os: "linux" },
    })),
  });
  const named = { ...index, annotations: { "org.opencontainers.image.ref.name": "latest" } };
  const top = { schemaVersion: 2, mediaType: MEDIA.index, manifests: [named] };
  writeAtomically(join(out, "oci-layout"), `${JSON.stringify({ imageLayoutVersion: "1.0.0" })}\n`);
  writeAtomically(join(out, "index.json"), `${JSON.stringify(top)}\n`);
  // What `docker load` reads, where Docker doesn't know image layouts.
  const forDocker = images.slice(0, 1).map(({ config }) => ({
    Config: blobName(config.digest),
    RepoTags: [DOCKER_TAG],
    Layers: layers.map(({ digest }) => blobName(digest)),
  }));
  writeAtomically(join(out, "manifest.json"), `${JSON.stringify(forDocker)}\n`);
}

interface PlatformImage {
  readonly architecture: string;
  readonly config: Descriptor;
  readonly manifest: Descriptor;
}

function writePlatform(
  layers: readonly BakedLayer[],
  architecture: string,
  { out, prefix }: BakeOptions,
): PlatformImage {
  const config = writeBlob(out, MEDIA.config, {
    created: EPOCH,
    architecture,
    os: "linux",
    config: { Labels: { "run.cog-comfyui.models": prefix } },
    rootfs: { type: "layers", diff_ids: layers.map(({ digest }) => digest) },
    history: layers.map(({ paths }) => ({
      created: EPOCH,
      created_by: `cog-comfyui weights bake: ${namesText(paths)}`,
    })),
  });
  const manifest = writeBlob(out, MEDIA.manifest, {
    schemaVersion: 2,
    mediaType: MEDIA.manifest,
    config,
    layers: layers.map(({ digest, size }) => ({ mediaType: MEDIA.layer, digest, size })),
  });
  return { architecture, config, manifest };
}

function namesText(paths: readonly string[]): string {
  const more = paths.length > 3 ? ` and ${paths.length - 3} more` : "";
  return `${paths.slice(0, 3).join(", ")}${more}`;
}

function blobName(digest: string): string {
  return `blobs/sha256/${digest.slice("sha256:".length)}`;
}

function writeBlob(out: string, mediaType: string, document: unknown): Descriptor {
  const text = JSON.stringify(document);
  const hex = new Bun.CryptoHasher("sha256").update(text).digest("hex");
  writeAtomically(join(out, "blobs/sha256", hex), text);
  return { mediaType, digest: `sha256:${hex}`, size: Buffer.byteLength(text) };
}

function dockerfile(layers: readonly BakedLayer[], prefix: string): string {
  const adds = layers.map(
    ({ digest, paths }) =>
      `# ${paths.join(", ").slice(0, 200)}\nADD blobs/sha256/${digest.slice("sha256:".length)} /`,
  );
  return `# Written by \`cog-comfyui weights bake\`. Two ways to the same files:
#
#   docker build --build-arg IMAGE=cog-comfyui-bun -t with-weights .     (in this folder)
#
# or, without Docker, this folder is an OCI image layout:
#
#   skopeo copy oci:.:latest docker://registry.example/weights        (or: tar -c . | docker load)
#
# The weights lie below ${prefix}; it must be among COMFYUI_MODELS_DIR, as it is in this project's image.
ARG IMAGE=cog-comfyui-bun
FROM \${IMAGE}
${adds.join("\n")}
`;
}
