/** The names in a category's folders, as ComfyUI lists them, with what it takes to notice that they changed. */

import type { BigIntStats, Dirent } from "node:fs";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { CategoryFiles } from "./categories.ts";
import { fileCounts } from "./categories.ts";

export interface Listing {
  /** Relative names, once each, sorted by code point. */
  readonly names: readonly string[];
  /** Every folder seen, with its modification time. */
  readonly dirs: ReadonlyMap<string, bigint>;
}

/** `stat` that answers undefined for whatever can't be opened (ENOENT, ENOTDIR, ELOOP, EACCES, …). */
export function statOf(path: string): BigIntStats | undefined {
  try {
    return statSync(path, { bigint: true, throwIfNoEntry: false });
  } catch {
    return undefined;
  }
}

function entriesOf(dir: string): Dirent[] {
  try {
    return readdirSync(dir, { withFileTypes: true });
  } catch {
    return [];
  }
}

function isFolder(dir: string, entry: Dirent): boolean {
  return (
    entry.isDirectory() ||
    (entry.isSymbolicLink() && statOf(join(dir, entry.name))?.isDirectory() === true)
  );
}

class Walk {
  readonly names = new Set<string>();
  readonly dirs = new Map<string, bigint>();
  readonly #files: CategoryFiles;

  constructor(files: CategoryFiles) {
    this.#files = files;
  }

  /** As ComfyUI: into links, over `.git`. Unlike it, a folder that contains itself is entered once. */
  enter(dir: string, prefix: string, ancestors: ReadonlySet<string>): void {
    const stat = statOf(dir);
    const identity = stat === undefined ? "" : `${stat.dev}:${stat.ino}`;
    if (stat === undefined || !stat.isDirectory() || ancestors.has(identity)) {
      return;
    }
    this.dirs.set(dir, stat.mtimeNs);
    const inside = new Set([...ancestors, identity]);
    for (const entry of entriesOf(dir)) {
      if (!isFolder(dir, entry)) {
        this.#take(entry.name, prefix);
      } else if (entry.name !== ".git") {
        this.enter(join(dir, entry.name), `${prefix}${entry.name}/`, inside);
      }
    }
  }

  #take(name: string, prefix: string): void {
    if (this.#files === "folder") {
      // A diffusers model is the folder that holds this file.
      if (name === "model_index.json" && prefix !== "") {
        this.names.add(prefix.slice(0, -1));
      }
    } else if (fileCounts(this.#files, name)) {
      this.names.add(`${prefix}${name}`);
    }
  }
}

/** Walks the folders. */
export function listFolders(roots: readonly string[], files: CategoryFiles): Listing {
  const walk = new Walk(files);
  for (const root of roots) {
    walk.enter(root, "", new Set());
  }
  const names = [...walk.names].sort((a, b) => (a < b ? -1 : Number(a > b)));
  return { names, dirs: walk.dirs };
}

/** False when a folder of the listing changed, went or appeared. */
export function isFresh(listing: Listing, roots: readonly string[]): boolean {
  for (const [dir, mtimeNs] of listing.dirs) {
    if (statOf(dir)?.mtimeNs !== mtimeNs) {
      return false;
    }
  }
  return roots.every((root) => listing.dirs.has(root) || statOf(root) === undefined);
}
