/** Puts a blob at its place in a models folder: hard link, reflink, symbolic link or copy, the first that works. */
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  constants,
  copyFileSync,
  linkSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { systemCode } from "../platform/errors.ts";
import {
  copyFileBytes,
  entryAt,
  fileAt,
  fileError,
  makeFolder,
  renameWithoutReplacing,
} from "../platform/files.ts";

export const LINK_METHODS = ["hard link", "reflink", "symbolic link", "copy"] as const;
export type LinkMethod = (typeof LINK_METHODS)[number];

/** The methods to try, by what the operator asks for. */
export function methodsFor(mode: "link" | "copy"): readonly LinkMethod[] {
  return mode === "link" ? LINK_METHODS : ["copy"];
}

export interface LinkRequest {
  readonly blob: string;
  readonly destination: string;
  readonly methods: readonly LinkMethod[];
  /** What lies there is ours: it makes way in the same step. */
  readonly replace: boolean;
  /** Gets every block of a copy, for its digest. */
  readonly seen?: ((block: Uint8Array) => void) | undefined;
}

/**
 * @returns how it was done; `taken` when something else lies there, `gone` when the blob does not
 * @throws ConfigError PATH_UNWRITABLE; DownloadError NO_SPACE, IO_ERROR
 */
export function linkBlob(request: LinkRequest): LinkMethod | "taken" | "gone" {
  const { blob, destination, methods, replace } = request;
  makeFolder(dirname(destination));
  // A link that leads nowhere is no file of anybody's.
  const replaces = replace || isDangling(destination);
  if (entryAt(destination) !== undefined && !replaces) {
    return "taken";
  }
  let last: unknown;
  for (const method of methods) {
    const draft = join(
      dirname(destination),
      `.${basename(destination)}.${randomBytes(4).toString("hex")}.cog-new`,
    );
    try {
      make(method, request, draft);
      return settle(draft, destination, replaces) ? method : "taken";
    } catch (error) {
      if (statSync(blob, { throwIfNoEntry: false }) === undefined) {
        return "gone";
      }
      last = error;
    } finally {
      rmSync(draft, { force: true });
    }
  }
  throw fileError(last, destination, "put a stored weight at");
}

function make(method: LinkMethod, { blob, seen }: LinkRequest, draft: string): void {
  switch (method) {
    case "hard link":
      linkSync(blob, draft);
      break;
    case "reflink":
      copyFileSync(blob, draft, constants.COPYFILE_FICLONE_FORCE);
      chmodSync(draft, 0o644);
      break;
    case "symbolic link":
      symlinkSync(blob, draft);
      // Some file systems make a link that they then can't follow.
      statSync(draft);
      break;
    case "copy":
      copyFileBytes(blob, draft, seen);
      break;
  }
}

/** The draft gets its name; a symbolic link can't be hard-linked everywhere, so it is renamed. */
function settle(draft: string, destination: string, replaces: boolean): boolean {
  if (replaces) {
    renameSync(draft, destination);
    return true;
  }
  if (entryAt(draft)?.isSymbolicLink() === true) {
    return renameLink(draft, destination);
  }
  return renameWithoutReplacing(draft, destination);
}

function renameLink(draft: string, destination: string): boolean {
  try {
    symlinkSync(readlinkSync(draft), destination);
    return true;
  } catch (error) {
    if (systemCode(error) === "EEXIST") {
      return false;
    }
    throw error;
  }
}

export function isDangling(path: string): boolean {
  return entryAt(path)?.isSymbolicLink() === true && fileAt(path) === undefined;
}

/** True when a path is a link to this very blob: by its target, or by being the same file. */
export function leadsTo(path: string, blob: string): boolean {
  const entry = entryAt(path);
  if (entry === undefined) {
    return false;
  }
  if (entry.isSymbolicLink()) {
    const target = targetOf(path);
    return target !== undefined && resolve(dirname(path), target) === resolve(blob);
  }
  const there = statSync(blob, { throwIfNoEntry: false });
  return there !== undefined && there.ino === entry.ino && there.dev === entry.dev;
}

/** undefined when another process has removed or replaced the link since it was looked at. */
function targetOf(link: string): string | undefined {
  try {
    return readlinkSync(link);
  } catch (error) {
    if (["ENOENT", "EINVAL"].includes(systemCode(error) ?? "")) {
      return undefined;
    }
    throw error;
  }
}

/** Removes a link to a blob, and nothing else. True when it was there. */
export function removeLink(path: string, blob: string): boolean {
  if (!leadsTo(path, blob)) {
    return false;
  }
  try {
    unlinkSync(path);
    return true;
  } catch {
    return false;
  }
}
