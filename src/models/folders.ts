/**
 * Where models lie: the folders of every category in ComfyUI's search order, and names looked up in them exactly as
 * ComfyUI does. Built from folders and yaml files, or from what a running engine says. Reads the disk, writes nothing.
 */

import type { BigIntStats } from "node:fs";
import { accessSync, constants, lstatSync, readdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, join, resolve, sep } from "node:path";
import { CATEGORIES, canonicalCategory, categoryRow, fileCounts } from "./categories.ts";
import { readExtraPaths } from "./extra-paths.ts";
import type { Listing } from "./listing.ts";
import { isFresh, listFolders, statOf } from "./listing.ts";

export interface FolderSources {
  /** Models folders, all searched in this order; the first writable one receives. */
  readonly modelsDirs: readonly string[];
  /** ComfyUI's output folder: some categories are searched there too. */
  readonly outputDir?: string | undefined;
  /** ComfyUI's own folder, which paths such as `custom_nodes/…` are relative to; else the parent of the first models folder. */
  readonly comfyDir?: string | undefined;
  /** `extra_model_paths.yaml` files, read in this order. */
  readonly extraModelPaths?: readonly string[] | undefined;
  /** For `$VARS` in yaml files. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined;
  /** Where nodes keep files under the user's home (`~/.u2net`). */
  readonly homeDir?: string | undefined;
  /** `HF_HOME`: where nodes keep what they fetch through huggingface_hub. */
  readonly hfHome?: string | undefined;
}

/** A file or folder that exists, with the `stat` that found it. */
export interface FoundFile {
  readonly path: string;
  readonly stat: BigIntStats;
}

/** A name that ComfyUI could have listed: relative, without empty, `.` or `..` parts. */
function isListable(name: string): boolean {
  return (
    name !== "" &&
    !name.includes("\0") &&
    !name.startsWith("/") &&
    (sep === "\\" || !/^[A-Za-z]:[\\/]/.test(name)) &&
    !/(^|\/)\.{0,2}(\/|$)/.test(name)
  );
}

function isWritable(dir: string): boolean {
  for (let at = dir; ; at = dirname(at)) {
    try {
      accessSync(at, constants.W_OK | constants.X_OK);
      return true;
    } catch (error) {
      const missing = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!missing || dirname(at) === at) {
        return false;
      }
    }
  }
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
}

/** A one-word file, as the hub's cache keeps what a branch stands for. */
function textOf(path: string): string | undefined {
  try {
    const text = readFileSync(path, "utf8").trim();
    return /^[\w-]+$/.test(text) ? text : undefined;
  } catch {
    return undefined;
  }
}

function tableFolders(sources: FolderSources): Map<string, string[]> {
  const folders = new Map<string, string[]>();
  for (const [category, row] of Object.entries(CATEGORIES)) {
    folders.set(
      category,
      sources.modelsDirs.flatMap((dir) => row.dirs.map((name) => join(dir, name))),
    );
  }
  return folders;
}

function addExtra(folders: Map<string, string[]>, sources: FolderSources): void {
  for (const file of sources.extraModelPaths ?? []) {
    for (const { category, path, first } of readExtraPaths(file, sources.env)) {
      const paths = folders.get(category) ?? [];
      const known = paths.indexOf(path);
      if (first) {
        folders.set(category, [path, ...paths.filter((other) => other !== path)]);
      } else if (known === -1) {
        folders.set(category, [...paths, path]);
      }
    }
  }
}

function addOutput(folders: Map<string, string[]>, outputDir: string | undefined): void {
  for (const [category, row] of Object.entries(CATEGORIES)) {
    if (outputDir !== undefined && row.output !== undefined) {
      folders.set(category, [...(folders.get(category) ?? []), join(outputDir, row.output)]);
    }
  }
}

/** The models folders of one ComfyUI. Lookups never throw; a folder that isn't there is merely empty. */
export class ModelFolders {
  readonly modelsDirs: readonly string[];
  /** ComfyUI's own folder: what `custom_nodes/…` is relative to. */
  readonly comfyDir: string;
  readonly #folders: ReadonlyMap<string, readonly string[]>;
  readonly #outputDir: string | undefined;
  readonly #homeDir: string;
  readonly #hfHome: string;
  readonly #listings = new Map<string, Listing>();

  private constructor(sources: FolderSources, folders: ReadonlyMap<string, readonly string[]>) {
    this.modelsDirs = sources.modelsDirs.map((dir) => resolve(dir));
    this.comfyDir = resolve(sources.comfyDir ?? dirname(this.modelsDirs[0] ?? "models"));
    this.#folders = folders;
    this.#outputDir = sources.outputDir;
    this.#homeDir = sources.homeDir ?? homedir();
    this.#hfHome = sources.hfHome ?? join(this.#homeDir, ".cache/huggingface");
  }

  /** From folders and yaml files. @throws ConfigError for a yaml file that can't be used. */
  static fromDirs(sources: FolderSources): ModelFolders {
    const folders = tableFolders(sources);
    addExtra(folders, sources);
    addOutput(folders, sources.outputDir);
    return new ModelFolders(sources, folders);
  }

  /** From a running engine's `/internal/folder_paths`; `sources` still says where downloads go. */
  static fromEngine(
    live: Readonly<Record<string, readonly string[]>>,
    sources: FolderSources,
  ): ModelFolders {
    const folders = tableFolders(sources);
    for (const [category, paths] of Object.entries(live)) {
      folders.set(canonicalCategory(category), [...paths]);
    }
    return new ModelFolders(sources, folders);
  }

  canonical(category: string): string {
    return canonicalCategory(category);
  }

  /** Every category with folders of its own, ComfyUI's first. */
  categories(): readonly string[] {
    return [...this.#folders.keys()];
  }

  /** True for a category that ComfyUI or a known pack registers; others are mere folder names. */
  isRegistered(category: string): boolean {
    return this.#folders.has(canonicalCategory(category));
  }

  /** Folders searched for a category, in order. */
  pathsFor(category: string): readonly string[] {
    const name = canonicalCategory(category);
    return this.#folders.get(name) ?? this.modelsDirs.map((dir) => join(dir, name));
  }

  /** The folder that receives a category's downloads: of the first writable models folder. */
  destinationFor(category: string): string {
    const name = canonicalCategory(category);
    const row = categoryRow(name);
    const receives =
      row.receives ?? row.dirs.find((dir) => basename(dir) === name) ?? row.dirs[0] ?? name;
    const candidates = this.modelsDirs.map((dir) => join(dir, receives));
    const extra = this.pathsFor(name).filter(
      (path) => this.#outputDir === undefined || !path.startsWith(`${this.#outputDir}${sep}`),
    );
    return [...candidates, ...extra].find(isWritable) ?? candidates[0] ?? extra[0] ?? name;
  }

  /** The file (or diffusers folder) that ComfyUI would open for this name, with its stat. */
  find(category: string, name: string): FoundFile | undefined {
    if (!isListable(name)) {
      return undefined;
    }
    const row = categoryRow(category);
    if (row.files !== "folder" && !fileCounts(row.files, name)) {
      return undefined;
    }
    for (const dir of this.pathsFor(category)) {
      const path = `${dir}${sep}${name}`;
      const stat = statOf(path);
      if (row.files === "folder") {
        if (stat?.isDirectory() && statOf(join(path, "model_index.json")) !== undefined) {
          return { path, stat };
        }
      } else if (stat?.isFile() && this.#hasExactCase(category, name)) {
        return { path, stat };
      }
    }
    return undefined;
  }

  /** Absolute path of what {@link find} finds. */
  locate(category: string, name: string): string | undefined {
    return this.find(category, name)?.path;
  }

  /** A link of this name that leads nowhere: ComfyUI lists it and then fails to open it. */
  danglingLink(category: string, name: string): string | undefined {
    if (!isListable(name)) {
      return undefined;
    }
    for (const dir of this.pathsFor(category)) {
      const path = join(dir, name);
      try {
        if (lstatSync(path).isSymbolicLink() && statOf(path) === undefined) {
          return path;
        }
      } catch {
        // Not there, or no link: the next folder decides.
      }
    }
    return undefined;
  }

  /**
   * Places where a path relative to ComfyUI's root may lie: `models/…` in every models folder, `custom_nodes/…`,
   * `hf-cache:owner/repo[/file]` and `home:…`.
   */
  pathCandidates(path: string): readonly string[] {
    const home = /^home:(.*)$/.exec(path)?.[1];
    const hub = /^hf-cache:([^/]+)\/([^/]+)(?:\/(.*))?$/.exec(path);
    if (home !== undefined) {
      return isListable(home) ? [join(this.#homeDir, home)] : [];
    }
    if (hub !== null) {
      return this.#hubCandidates(`models--${hub[1]}--${hub[2]}`, hub[3]);
    }
    if (!isListable(path)) {
      return [];
    }
    const [top = "", category = "", ...rest] = path.split("/");
    if (top === "models" && rest.length > 0) {
      return this.pathsFor(category).map((dir) => join(dir, ...rest));
    }
    if (top === "models") {
      return this.modelsDirs.map((dir) => join(dir, category));
    }
    return [join(this.comfyDir, path)];
  }

  /** The first of {@link pathCandidates} that exists. */
  findPath(path: string): FoundFile | undefined {
    for (const candidate of this.pathCandidates(path)) {
      const stat = statOf(candidate);
      if (stat !== undefined) {
        return { path: candidate, stat };
      }
    }
    return undefined;
  }

  /** Where a file of this path relative to ComfyUI's root is to be put. */
  destinationOf(path: string): string {
    const [top = "", category = "", ...rest] = path.split("/");
    if (top === "models" && rest.length > 0) {
      return join(this.destinationFor(category), ...rest);
    }
    return this.pathCandidates(path)[0] ?? join(this.comfyDir, "models", basename(path));
  }

  /** Names in a category as ComfyUI lists them: relative, sorted by code point. Walks only when a folder changed. */
  list(category: string): readonly string[] {
    const name = canonicalCategory(category);
    const roots = this.pathsFor(name);
    const known = this.#listings.get(name);
    if (known !== undefined && isFresh(known, roots)) {
      return known.names;
    }
    const listing = listFolders(roots, categoryRow(name).files);
    this.#listings.set(name, listing);
    return listing.names;
  }

  /** On a disk that ignores case the file opens, but ComfyUI compares names with its list exactly. */
  #hasExactCase(category: string, name: string): boolean {
    return process.platform === "linux" || this.list(category).includes(name);
  }

  /** Categories that hold all of an input's choices: one of them is what the input lists. */
  categoriesHolding(choices: readonly string[]): readonly string[] {
    return choices.length === 0
      ? []
      : this.categories().filter((category) => {
          const names = new Set(this.list(category));
          return choices.every((choice) => names.has(choice));
        });
  }

  /** In every revision that was fetched, the one that `main` stands for first. */
  #hubCandidates(repository: string, file: string | undefined): string[] {
    if (file !== undefined && !isListable(file)) {
      return [];
    }
    const root = join(this.#hfHome, "hub", repository);
    const main = textOf(join(root, "refs", "main")) ?? "main";
    const revisions = new Set([main, ...namesIn(join(root, "snapshots"))]);
    return [...revisions].map((revision) => join(root, "snapshots", revision, file ?? ""));
  }
}
