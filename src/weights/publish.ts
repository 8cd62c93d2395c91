/**
 * Makes a verified file visible: flushed, then given its name in one step, then the folder flushed. Takes nothing
 * that `verify` did not make, and never replaces a file that is not ours.
 */
import { chmodSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { UnpackedFile } from "../platform/archive.ts";
import { AppError, DownloadError } from "../platform/errors.ts";
import {
  copyFileBytes,
  entryAt,
  fileAt,
  fileError,
  makeFolder,
  renameWithoutReplacing,
  syncFile,
  syncFolder,
} from "../platform/files.ts";
import { formatSize } from "../platform/size.ts";
import { digestOf } from "./digest.ts";
import { setAsideNames } from "./records.ts";
import type { VerifiedFile, VerifiedTree } from "./verify.ts";
import { isVerified, isVerifiedTree } from "./verify.ts";

export interface PublishOptions {
  /** What lies there already is a broken file of ours: it is set aside. */
  readonly replaceOurs?: boolean | undefined;
  /** Permissions of the file; readable by all and writable by us unless given. */
  readonly mode?: number | undefined;
}

/** Readable by all, as files that ComfyUI downloads itself are. */
const PUBLISHED_MODE = 0o644;

/**
 * Gives the file its name. What is there already and is the same file counts as success.
 * @throws DownloadError CONFLICT, NO_SPACE, IO_ERROR; ConfigError PATH_UNWRITABLE
 */
export async function publish(
  file: VerifiedFile,
  destination: string,
  options: PublishOptions = {},
): Promise<void> {
  if (!isVerified(file)) {
    throw new DownloadError("INTERNAL", `${destination} was to be published unverified`);
  }
  flush(file.path, options.mode);
  makeFolder(dirname(destination));
  if (!place(file.path, destination)) {
    if (await isSameFile(file, destination)) {
      return;
    }
    if (options.replaceOurs !== true) {
      throw conflict(destination, file.sizeBytes);
    }
    setAside(destination);
    if (!place(file.path, destination)) {
      throw conflict(destination, file.sizeBytes);
    }
  }
  syncFolder(dirname(destination));
}

function flush(path: string, mode = PUBLISHED_MODE): void {
  try {
    chmodSync(path, PUBLISHED_MODE);
    syncFile(path);
    if (mode !== PUBLISHED_MODE) {
      // Last: a mode that forbids writing would forbid opening the file for the flush.
      chmodSync(path, mode);
    }
  } catch (error) {
    throw fileError(error, path, "flush");
  }
}

/** False when something is there already. */
function place(from: string, to: string): boolean {
  try {
    return renameWithoutReplacing(from, to);
  } catch (error) {
    if (!(error instanceof AppError) || error.details["system"] !== "EXDEV") {
      throw error;
    }
  }
  // Two mounts, though it did not look so: the copy is flushed before it gets its name.
  const near = join(dirname(to), `.${basename(to)}.cog-new`);
  try {
    copyFileBytes(from, near);
    return renameWithoutReplacing(near, to);
  } catch (error) {
    throw fileError(error, to, "publish");
  } finally {
    rmSync(near, { force: true });
  }
}

async function isSameFile(file: VerifiedFile, destination: string): Promise<boolean> {
  const there = fileAt(destination);
  if (there === undefined || !there.isFile() || there.size !== file.sizeBytes) {
    return false;
  }
  const mine = file.sha256 ?? (await digestOf(file.path));
  return mine === (await digestOf(destination));
}

/** Says what lies in the way. */
export function conflict(destination: string, sizeBytes?: number): DownloadError {
  const there = entryAt(destination);
  const target = fileAt(destination);
  let what = "a file that we did not install";
  if (there?.isDirectory()) {
    what = "a folder";
  } else if (there?.isSymbolicLink() && target === undefined) {
    what = "a link to something that isn't there";
  } else if (target !== undefined) {
    what = `a file of ${formatSize(target.size)} that we did not install`;
  }
  const ours = sizeBytes === undefined ? "" : `; the one to install has ${formatSize(sizeBytes)}`;
  return new DownloadError("CONFLICT", `At ${destination} there is ${what}${ours}`, {
    hint: "It is left as it is. Move it away, or run `cog-comfyui weights repair` to replace it.",
    details: { path: destination, sizeBytes: target?.size },
  });
}

/** Renames a broken file out of the way; of earlier ones under this name none is kept. */
export function setAside(destination: string): string {
  for (const earlier of setAsideNames(destination)) {
    rmSync(earlier, { force: true });
  }
  const date = new Date().toISOString().slice(0, 19).replace(/[-:]/g, "");
  const aside = `${destination}.broken-${date}`;
  try {
    renameSync(destination, aside);
  } catch (error) {
    throw fileError(error, destination, "set aside");
  }
  return aside;
}

/** What became of a tree's files: published, or left out because something else lies there. */
export interface PublishedTree {
  /** Relative paths that lie there now as verified. */
  readonly published: readonly string[];
  /** Relative paths at which another file was left as it is. */
  readonly kept: readonly string[];
}

/** What to do with a file that lies where one of the tree belongs. */
export type Occupied = "keep" | "replace" | "set_aside";

/**
 * Publishes unpacked files below `destination`: a folder that isn't there yet in one step, into one that is there
 * file by file.
 */
export function publishTree(
  tree: VerifiedTree,
  destination: string,
  onOccupied: (path: string, file: UnpackedFile) => Occupied = () => "keep",
): PublishedTree {
  if (!isVerifiedTree(tree)) {
    throw new DownloadError("INTERNAL", `${destination} was to be published unverified`);
  }
  for (const file of tree.files) {
    flush(join(tree.root, file.path));
  }
  const result: TreeRun["result"] = { published: [], kept: [] };
  makeFolder(destination);
  publishChildren({ tree, destination, onOccupied, result }, "");
  syncFolder(destination);
  return result;
}

interface TreeRun {
  readonly tree: VerifiedTree;
  readonly destination: string;
  readonly onOccupied: (path: string, file: UnpackedFile) => Occupied;
  readonly result: { readonly published: string[]; readonly kept: string[] };
}

function publishChildren(run: TreeRun, folder: string): void {
  const here = join(run.tree.root, folder);
  for (const name of readdirSync(here)) {
    const path = folder === "" ? name : `${folder}/${name}`;
    const from = join(here, name);
    const to = join(run.destination, path);
    if (statSync(from).isDirectory()) {
      publishFolder(run, path, from, to);
    } else {
      publishOne(run, path, from, to);
    }
  }
}

function publishFolder(run: TreeRun, path: string, from: string, to: string): void {
  const there = fileAt(to);
  if (there === undefined && entryAt(to) === undefined && moveFolder(from, to)) {
    const below = `${path}/`;
    run.result.published.push(
      ...run.tree.files.map((file) => file.path).filter((one) => one.startsWith(below)),
    );
    syncFolder(dirname(to));
    return;
  }
  if (fileAt(to)?.isDirectory() === false) {
    throw conflict(to);
  }
  makeFolder(to);
  publishChildren(run, path);
  syncFolder(to);
}

/** False where a folder can't be moved as a whole: then its files go one by one. */
function moveFolder(from: string, to: string): boolean {
  makeFolder(dirname(to));
  try {
    return renameWithoutReplacing(from, to);
  } catch (error) {
    if (error instanceof AppError && error.details["system"] === "EXDEV") {
      return false;
    }
    throw error;
  }
}

function publishOne(run: TreeRun, path: string, from: string, to: string): void {
  if (place(from, to)) {
    run.result.published.push(path);
    return;
  }
  const file = run.tree.files.find((one) => one.path === path);
  const isFile = fileAt(to)?.isFile() === true;
  const verdict = file === undefined || !isFile ? "keep" : run.onOccupied(to, file);
  if (verdict === "replace") {
    replaceFile(from, to);
    run.result.published.push(path);
  } else if (verdict === "set_aside") {
    setAside(to);
    if (place(from, to)) {
      run.result.published.push(path);
    }
  } else {
    run.result.kept.push(path);
  }
}

function replaceFile(from: string, to: string): void {
  const near = join(dirname(to), `.${basename(to)}.cog-new`);
  try {
    copyOrMove(from, near);
    renameSync(near, to);
  } catch (error) {
    throw fileError(error, to, "replace");
  } finally {
    rmSync(near, { force: true });
  }
}

function copyOrMove(from: string, to: string): void {
  try {
    renameSync(from, to);
  } catch {
    copyFileBytes(from, to);
  }
}
