/** The folders of one engine: input, output and temp with their containment rules, and the models. */
import { existsSync, realpathSync } from "node:fs";
import { dirname, join, normalize, resolve } from "node:path";
import { readExtraPaths } from "../../models/extra-paths.ts";
import { ModelFolders } from "../../models/folders.ts";
import { isInside } from "../../platform/files.ts";

/** ComfyUI's own categories in the order of its `/models`; a category that a yaml file names comes after. */
const CORE_CATEGORIES: readonly string[] =
  "checkpoints configs loras vae text_encoders diffusion_models clip_vision style_models embeddings diffusers vae_approx controlnet gligen upscale_models latent_upscale_models custom_nodes datasets hypernetworks photomaker classifiers model_patches audio_encoders background_removal frame_interpolation geometry_estimation optical_flow detection".split(
    " ",
  );

/** Of these, what 0.3.64 doesn't have. */
const NEW_CATEGORIES: ReadonlySet<string> = new Set(
  "latent_upscale_models datasets background_removal frame_interpolation geometry_estimation optical_flow detection".split(
    " ",
  ),
);

export type FileArea = "input" | "output" | "temp";

export interface FolderOptions {
  readonly input: string;
  readonly output: string;
  readonly temp: string;
  readonly modelsDir: string;
  readonly extraModelPaths: readonly string[];
  /** True for the categories of 0.3.64. */
  readonly isOld?: boolean | undefined;
  /** For `$VARS` in the yaml files. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined;
}

/** True when `path` is `root` or lies in it. Both absolute and without `..`. */
export function isWithin(root: string, path: string): boolean {
  return resolve(root) === resolve(path) || isInside(root, path);
}

function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return resolve(path);
  }
}

export class EngineFolders {
  readonly models: ModelFolders;
  readonly #areas: Readonly<Record<FileArea, string>>;
  readonly #categories: readonly string[];

  constructor(options: FolderOptions) {
    this.#areas = {
      input: resolve(options.input),
      output: resolve(options.output),
      temp: resolve(options.temp),
    };
    this.models = ModelFolders.fromDirs({
      modelsDirs: [resolve(options.modelsDir)],
      outputDir: this.#areas.output,
      comfyDir: dirname(resolve(options.modelsDir)),
      extraModelPaths: options.extraModelPaths,
      env: options.env,
    });
    const extra = options.extraModelPaths.flatMap((file) =>
      readExtraPaths(file, options.env).map(({ category }) => category),
    );
    const core = CORE_CATEGORIES.filter((name) => !(options.isOld && NEW_CATEGORIES.has(name)));
    this.#categories = [...new Set([...core, ...extra])];
  }

  area(name: FileArea): string {
    return this.#areas[name];
  }

  /** Categories as `/models` lists them. */
  categories(): readonly string[] {
    return this.#categories;
  }

  /** Folders of a category in search order. */
  pathsFor(category: string): readonly string[] {
    return category === "custom_nodes" || category === "datasets"
      ? [join(this.models.comfyDir, category)]
      : this.models.pathsFor(category);
  }

  /**
   * The absolute path of an input file, `name [output]` and the like included; undefined for one that isn't there
   * or lies, links followed, outside its folder.
   */
  inputFile(annotated: string): string | undefined {
    const { name, area } = splitAnnotation(annotated);
    const root = this.#areas[area];
    const path = resolve(root, name);
    if (name.includes("\0") || !existsSync(path)) {
      return undefined;
    }
    return isWithin(realPath(root), realPath(path)) ? path : undefined;
  }

  /** Where a file of this area and subfolder lies; undefined when that escapes. */
  inArea(area: FileArea, subfolder: string, filename: string): string | undefined {
    const root = this.#areas[area];
    const path = resolve(root, normalize(subfolder), filename);
    return isWithin(root, path) ? path : undefined;
  }
}

/** The bracket at the end of a name chooses the folder; with it one character goes, which should be a blank. */
export function splitAnnotation(annotated: string): { name: string; area: FileArea } {
  const area = /\[(output|input|temp)\]$/.exec(annotated)?.[1];
  if (area === "output" || area === "input" || area === "temp") {
    return { name: annotated.slice(0, annotated.length - area.length - 3), area };
  }
  return { name: annotated, area: "input" };
}
