/**
 * The folder table: which folders ComfyUI and the well-known node packs read for each category, in search order, and
 * which file endings count there. Data only; `/internal/folder_paths` of a running engine overrules it.
 */

/** What ComfyUI takes for a PyTorch model, compared in lower case. */
export const MODEL_EXTENSIONS: ReadonlySet<string> = new Set([
  ".ckpt",
  ".pt",
  ".pt2",
  ".bin",
  ".pth",
  ".safetensors",
  ".pkl",
  ".sft",
]);

/** Endings by which a value is taken for a model file when no table knows its input. */
export const WEIGHT_EXTENSIONS: ReadonlySet<string> = new Set([
  ...MODEL_EXTENSIONS,
  ".gguf",
  ".onnx",
  ".torchscript",
  ".engine",
  ".patch",
  ".tflite",
]);

/** `any`: every file counts. `folder`: the entries are folders (diffusers). */
export type CategoryFiles = ReadonlySet<string> | "any" | "folder";

export interface CategoryRow {
  /** Folders under `models/`, in ComfyUI's search order. */
  readonly dirs: readonly string[];
  readonly files: CategoryFiles;
  /** Folder under the output folder that is searched last. */
  readonly output?: string;
  /** Of `dirs`, the one that receives downloads; the one called like the category, else the first. */
  readonly receives?: string;
}

function row(dirs: string, files: CategoryFiles = MODEL_EXTENSIONS): CategoryRow {
  return { dirs: dirs.split(" "), files };
}

const GGUF: ReadonlySet<string> = new Set([".gguf"]);
const ONNX: ReadonlySet<string> = new Set([".onnx"]);

/** ComfyUI's own categories (0.3.64 and 0.33.0), then those that node packs register differently than by their name. */
export const CATEGORIES: Readonly<Record<string, CategoryRow>> = {
  checkpoints: { ...row("checkpoints"), output: "checkpoints" },
  configs: row("configs", new Set([".yaml"])),
  loras: { ...row("loras"), output: "loras" },
  vae: { ...row("vae"), output: "vae" },
  text_encoders: { ...row("text_encoders clip"), output: "clip" },
  diffusion_models: { ...row("unet diffusion_models"), output: "diffusion_models" },
  clip_vision: row("clip_vision"),
  style_models: row("style_models"),
  embeddings: row("embeddings"),
  diffusers: row("diffusers", "folder"),
  vae_approx: row("vae_approx"),
  controlnet: row("controlnet t2i_adapter"),
  gligen: row("gligen"),
  upscale_models: row("upscale_models"),
  hypernetworks: row("hypernetworks"),
  photomaker: row("photomaker"),
  classifiers: row("classifiers", new Set([""])),
  model_patches: row("model_patches"),
  audio_encoders: row("audio_encoders"),
  latent_upscale_models: row("latent_upscale_models"),
  background_removal: row("background_removal"),
  frame_interpolation: row("frame_interpolation"),
  geometry_estimation: row("geometry_estimation"),
  optical_flow: row("optical_flow"),
  detection: row("detection"),
  // Node packs.
  unet_gguf: { ...row("unet diffusion_models", GGUF), receives: "diffusion_models" },
  clip_gguf: {
    ...row("text_encoders clip", new Set([...MODEL_EXTENSIONS, ".gguf"])),
    receives: "text_encoders",
  },
  ultralytics: row("ultralytics"),
  ultralytics_bbox: row("ultralytics/bbox"),
  ultralytics_segm: row("ultralytics/segm"),
  reswapper: row("reswapper", new Set([...MODEL_EXTENSIONS, ".onnx"])),
  insightface: row("insightface", ONNX),
  facerestore_models: row("facerestore_models", new Set([...MODEL_EXTENSIONS, ".onnx"])),
  xlabs_controlnets: row("xlabs/controlnets"),
  xlabs_ipadapters: row("xlabs/ipadapters"),
  xlabs_loras: row("xlabs/loras"),
  dynamicrafter_models: row("dynamicrafter_models checkpoints/dynamicrafter", "any"),
};

/** Legacy names that ComfyUI maps wherever a category is named. */
const ALIASES: Readonly<Record<string, string>> = {
  unet: "diffusion_models",
  clip: "text_encoders",
};

/** The category that ComfyUI understands under this name: `unet` is `diffusion_models`, `clip` is `text_encoders`. */
export function canonicalCategory(category: string): string {
  return Object.hasOwn(ALIASES, category) ? (ALIASES[category] ?? category) : category;
}

/** The row of a category; one that no table knows is a folder of its own name, where every file counts. */
export function categoryRow(category: string): CategoryRow {
  const name = canonicalCategory(category);
  return (Object.hasOwn(CATEGORIES, name) ? CATEGORIES[name] : undefined) ?? row(name, "any");
}

/** The ending with its dot, in lower case; empty when there is none. `.safetensors` alone has none. */
export function extensionOf(name: string): string {
  const base = name.slice(Math.max(name.lastIndexOf("/"), name.lastIndexOf("\\")) + 1);
  const dot = base.lastIndexOf(".");
  return dot <= 0 ? "" : base.slice(dot).toLowerCase();
}

/** True when the value ends like a model file. */
export function looksLikeWeight(value: string): boolean {
  return WEIGHT_EXTENSIONS.has(extensionOf(value));
}

/** True when a file of this name is listed in a category of these files. */
export function fileCounts(files: CategoryFiles, name: string): boolean {
  return files === "any" || (files !== "folder" && files.has(extensionOf(name)));
}
