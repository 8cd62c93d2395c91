/** Routes that tell about the engine: versions, node classes, model lists, folders. */
import { readdirSync, statSync } from "node:fs";
import { extname, join, relative } from "node:path";
import { categoryRow } from "../../models/categories.ts";
import type { JsonObject } from "../../platform/json.ts";
import type { EmbeddedEngine } from "./engine.ts";
import type { EngineFolders, FileArea } from "./folders.ts";
import { memoryLeft, memoryLimit } from "./memory.ts";
import { nodeInfo } from "./nodes/registry.ts";
import { bare, crash, json } from "./replies.ts";
import { readSafetensorsHeader } from "./safetensors.ts";

/** `GET /system_stats`. `argv` is echoed, by which a launcher knows its child. */
export function systemStats(engine: EmbeddedEngine, argv: readonly string[]): Response {
  const { compat } = engine.settings;
  const isNew = compat === "0.33.0";
  const [total, free] = [memoryLimit(), memoryLeft()];
  const newOs = process.platform === "darwin" ? "darwin" : process.platform;
  return json({
    system: {
      os: isNew ? newOs : "posix",
      ram_total: total,
      ram_free: free,
      comfyui_version: compat,
      required_frontend_version: isNew ? "1.49.6" : "1.27.10",
      installed_templates_version: null,
      required_templates_version: null,
      ...(isNew ? { comfy_package_versions: [] } : {}),
      python_version: `none: embedded engine of cog-comfyui, Bun ${Bun.version}`,
      pytorch_version: "none",
      embedded_python: false,
      ...(isNew ? { deploy_environment: "cog-comfyui-embedded" } : {}),
      argv: [...argv],
    },
    devices: [
      {
        name: "cpu",
        type: "cpu",
        index: null,
        vram_total: total,
        vram_free: free,
        torch_vram_total: total,
        torch_vram_free: free,
      },
    ],
  });
}

/** `GET /object_info` and `GET /object_info/{class}`. */
export function objectInfo(engine: EmbeddedEngine, className?: string): Response {
  const { folders, compat } = engine.settings;
  const nodes =
    className === undefined
      ? [...engine.registry.values()]
      : [engine.registry.get(className)].filter((node) => node !== undefined);
  return json(
    Object.fromEntries(nodes.map((node) => [node.className, nodeInfo(node, folders, compat)])),
  );
}

/** `GET /models/{folder}`: names of a category; 404 for aliases and unknown ones. */
export function modelNames(folders: EngineFolders, category: string): Response {
  return folders.categories().includes(category) ? json(namesOf(folders, category)) : bare(404);
}

function namesOf(folders: EngineFolders, category: string): readonly string[] {
  if (category !== "custom_nodes" && category !== "datasets") {
    return folders.models.list(category);
  }
  return folders.pathsFor(category).flatMap((dir) => filesBelow(dir));
}

/** Files below a folder as relative names, sorted. */
function filesBelow(dir: string): string[] {
  try {
    return readdirSync(dir, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => relative(dir, join(entry.parentPath, entry.name)))
      .sort();
  } catch {
    return [];
  }
}

export function embeddingNames(folders: EngineFolders): Response {
  return json(
    folders.models
      .list("embeddings")
      .map((name) => name.slice(0, name.length - extname(name).length)),
  );
}

export function folderPaths(folders: EngineFolders): Response {
  return json(
    Object.fromEntries(folders.categories().map((name) => [name, [...folders.pathsFor(name)]])),
  );
}

function extensionsOf(category: string): string[] {
  const { files } = categoryRow(category);
  if (files === "folder") {
    return ["folder"];
  }
  return files === "any" ? [] : [...files].sort();
}

export function experimentModels(folders: EngineFolders, isNew: boolean): Response {
  return json(
    folders
      .categories()
      .filter((name) => name !== "configs" && name !== "custom_nodes")
      .map((name) => ({
        name,
        folders: [...folders.pathsFor(name)],
        ...(isNew ? { extensions: extensionsOf(name) } : {}),
      })),
  );
}

export function experimentModelFiles(folders: EngineFolders, category: string): Response {
  if (!folders.categories().includes(category)) {
    return bare(404);
  }
  const names = folders.models.list(category);
  return json(
    folders.pathsFor(category).flatMap((dir, pathIndex) =>
      names.flatMap((name): JsonObject[] => {
        const stat = statSync(join(dir, name), { throwIfNoEntry: false });
        const isHidden = name.split("/").some((part) => part.startsWith("."));
        return stat === undefined || isHidden
          ? []
          : [
              {
                name,
                pathIndex,
                modified: stat.mtimeMs / 1000,
                created: stat.ctimeMs / 1000,
                size: stat.size,
              },
            ];
      }),
    ),
  );
}

const MAX_METADATA_HEADER = 1024 ** 2;

/** `GET /view_metadata/{folder}`: the `__metadata__` of a safetensors file. */
export function viewMetadata(folders: EngineFolders, category: string, filename: string): Response {
  const path = filename.endsWith(".safetensors")
    ? folders.models.locate(category, filename)
    : undefined;
  if (path === undefined) {
    return bare(404);
  }
  try {
    const { metadata, dataStart } = readSafetensorsHeader(path);
    return metadata === undefined || dataStart > MAX_METADATA_HEADER ? bare(404) : json(metadata);
  } catch (error) {
    // A prefix that is too long (an HTML page) counts as no metadata; JSON that breaks is an exception.
    return error instanceof Error && /invalid JSON|invalid UTF-8/.test(error.message)
      ? crash()
      : bare(404);
  }
}

/** `GET /internal/files/{area}`: newest first. */
export function internalFiles(folders: EngineFolders, area: FileArea, isNew: boolean): Response {
  const root = folders.area(area);
  const names = filesAtTop(root).map((name) => ({
    name,
    at: statSync(join(root, name), { throwIfNoEntry: false })?.mtimeMs ?? 0,
  }));
  names.sort((a, b) => b.at - a.at);
  return json(names.map(({ name }) => (isNew ? `${name} [${area}]` : name)));
}

function filesAtTop(root: string): string[] {
  try {
    return readdirSync(root, { withFileTypes: true })
      .filter((entry) => entry.isFile() && !entry.name.startsWith("."))
      .map((entry) => entry.name);
  } catch {
    return [];
  }
}
