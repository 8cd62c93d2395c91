/**
 * The folder of a shared store: what lies where in it, by which mark it is known as ours, and its own clock. A folder
 * that holds anything else is refused, since a store removes files.
 */
import { createHash, randomBytes } from "node:crypto";
import {
  accessSync,
  constants,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { ConfigError, systemCode } from "../platform/errors.ts";
import { fileError, fileSystemNow, isInside } from "../platform/files.ts";
import { PARTIAL_FOLDER, partialKey } from "./journal.ts";

const MARKER = "VERSION";
const MARKER_TEXT = "cog-comfyui-bun weights store 1\n";
/** Tells backup programs to leave the folder out (https://bford.info/cachedir/). */
const CACHEDIR_TAG = "CACHEDIR.TAG";
const CACHEDIR_TEXT =
  "Signature: 8a477f597d28d172789f06886806bc55\n# Weights of cog-comfyui-bun; all of it can be fetched again.\n";
/** What a fresh volume may hold. */
const HARMLESS = new Set(["lost+found", ".snapshot", ".zfs"]);

const FOLDERS = [
  "blobs/sha256",
  "meta/sha256",
  "refs",
  "links",
  "leases",
  "evicting",
  "quarantine",
  "trash",
  "tmp",
  PARTIAL_FOLDER,
] as const;

export interface StoreLayout {
  readonly root: string;
  /** False where nothing can be written: the store is read, and nothing is added. */
  readonly writable: boolean;
}

/**
 * Opens a store, making it where there is none.
 * @throws ConfigError CONFIG_INVALID for a folder that is not ours, PATH_UNWRITABLE
 */
export function openLayout(path: string, modelsDirs: readonly string[]): StoreLayout {
  const root = resolve(path);
  refuseModels(root, modelsDirs);
  const marker = markerOf(root);
  if (marker === undefined) {
    requireEmpty(root);
    createMarker(root);
  } else if (marker !== MARKER_TEXT) {
    throw refusal(root, `its ${MARKER} file is not one of ours`);
  }
  const writable = canWrite(root);
  if (writable) {
    makeFolders(root);
  }
  return { root, writable };
}

/** True while the folder is still the store that was opened. */
export function isStore(root: string): boolean {
  return markerOf(root) === MARKER_TEXT;
}

/** Makes what is missing: somebody may have deleted the whole folder while it was in use. */
export function remake(root: string): void {
  if (!isStore(root)) {
    // A sign of life that was written in the middle of the deletion is no stranger's file.
    requireEmpty(
      root,
      new Set([...HARMLESS, ...FOLDERS.map((folder) => folder.split("/")[0] ?? "")]),
    );
    createMarker(root);
    makeFolders(root);
  }
}

function makeFolders(root: string): void {
  for (const folder of FOLDERS) {
    mkdirSync(join(root, folder), { recursive: true });
  }
}

function markerOf(root: string): string | undefined {
  try {
    return readFileSync(join(root, MARKER), "utf8");
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(systemCode(error) ?? "")) {
      return undefined;
    }
    throw fileError(error, root, "read the store");
  }
}

function refuseModels(root: string, modelsDirs: readonly string[]): void {
  const real = realOf(root);
  for (const dir of modelsDirs.map(realOf)) {
    if (dir === real || isInside(dir, real) || isInside(real, dir)) {
      throw refusal(root, `it is, holds or lies in the models folder ${dir}`);
    }
  }
}

function realOf(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return dirname(path) === path ? path : join(realOf(dirname(path)), basename(path));
  }
}

function requireEmpty(root: string, harmless: ReadonlySet<string> = HARMLESS): void {
  let names: string[];
  try {
    names = readdirSync(root);
  } catch (error) {
    if (systemCode(error) === "ENOENT") {
      return;
    }
    throw fileError(error, root, "read the store");
  }
  const foreign = names.filter(
    (name) => !harmless.has(name) && !name.startsWith(`.${MARKER}.`) && name !== CACHEDIR_TAG,
  );
  // Another process may have made the store between the two looks.
  if (foreign.length > 0 && markerOf(root) === undefined) {
    const shown = foreign.slice(0, 5).join(", ");
    throw refusal(root, `it holds files that no store put there (${shown})`);
  }
}

function refusal(root: string, why: string): ConfigError {
  return new ConfigError("CONFIG_INVALID", `${root} can't be the shared store: ${why}`, {
    hint: "Point WEIGHTS_CACHE_DIR at a folder of its own, empty or made by this program: a store removes files.",
    details: { path: root },
  });
}

function createMarker(root: string): void {
  try {
    mkdirSync(root, { recursive: true });
    writeFileSync(join(root, CACHEDIR_TAG), CACHEDIR_TEXT);
    // Whole at once: another process never reads half a mark.
    const draft = join(root, `.${MARKER}.${randomBytes(4).toString("hex")}`);
    writeFileSync(draft, MARKER_TEXT);
    renameSync(draft, join(root, MARKER));
  } catch (error) {
    throw fileError(error, root, "make a store in");
  }
}

function canWrite(root: string): boolean {
  const probe = join(root, `.${MARKER}.${randomBytes(4).toString("hex")}`);
  try {
    accessSync(root, constants.W_OK | constants.X_OK);
    writeFileSync(probe, "");
    return true;
  } catch {
    return false;
  } finally {
    rmSync(probe, { force: true });
  }
}

export function blobPath(root: string, sha256: string): string {
  return join(root, "blobs/sha256", sha256.slice(0, 2), sha256);
}

export function metaPath(root: string, sha256: string): string {
  return join(root, "meta/sha256", sha256.slice(0, 2), `${sha256}.json`);
}

/** Its time of change is when the blob was last used. */
export function usedPath(root: string, sha256: string): string {
  return join(root, "meta/sha256", sha256.slice(0, 2), `${sha256}.used`);
}

export function refPath(root: string, address: string): string {
  const key = createHash("sha256").update(address).digest("hex");
  return join(root, "refs", `${key}.json`);
}

export function linksFolder(root: string, sha256: string): string {
  return join(root, "links", sha256);
}

/** Says that there is, or was about to be, a link to a blob at `path`. */
export function linkRecordPath(root: string, sha256: string, path: string): string {
  return join(linksFolder(root, sha256), `${partialKey(path)}.json`);
}

/** Every blob that lies in the store. */
export function blobNames(root: string): string[] {
  const home = join(root, "blobs/sha256");
  return entriesOf(home).flatMap((shard) =>
    entriesOf(join(home, shard)).filter((name) => /^[0-9a-f]{64}$/.test(name)),
  );
}

/** Names in a folder; none where there is no such folder. */
export function entriesOf(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(systemCode(error) ?? "")) {
      return [];
    }
    throw fileError(error, path, "read");
  }
}

/**
 * The time by the store's own file system: what leases and uses are measured in, since the clocks of two machines may
 * be a day apart.
 */
export function storeNow(root: string): number {
  return fileSystemNow(join(root, "tmp"));
}

/**
 * Replaces a small file in one step. Not flushed: what is written so is believed only together with the file it tells
 * of, and costs a reading when it is lost.
 */
export function writeSmall(root: string, path: string, content: string): void {
  const draft = join(root, "tmp", randomBytes(8).toString("hex"));
  try {
    writeFileSync(draft, content);
  } catch (error) {
    // A full disk leaves an empty one.
    rmSync(draft, { force: true });
    throw error;
  }
  try {
    renameSync(draft, path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") {
      rmSync(draft, { force: true });
      throw error;
    }
    mkdirSync(dirname(path), { recursive: true });
    renameSync(draft, path);
  }
}

/** Gives a file back its name unless that is taken; true when it has it. */
export function restore(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    rmSync(from, { force: true });
    return true;
  } catch (error) {
    if (systemCode(error) === "EEXIST") {
      rmSync(from, { force: true });
      return true;
    }
    if (systemCode(error) === "ENOENT") {
      return false;
    }
  }
  try {
    renameSync(from, to);
    return true;
  } catch {
    return false;
  }
}
