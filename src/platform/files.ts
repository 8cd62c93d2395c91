/**
 * Files and folders: joining names safely under a root, writing so that a crash leaves the old or the new state,
 * free space per file system, and system errors told in words. Nothing here knows what a file is for.
 */

import { randomUUID } from "node:crypto";
import type { Stats } from "node:fs";
import {
  closeSync,
  existsSync,
  fchmodSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  unlinkSync,
  write,
  writeFileSync,
  writeSync,
} from "node:fs";
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from "node:path";
import {
  AppError,
  ConfigError,
  DownloadError,
  InputError,
  isAbort,
  isDiskFull,
  messageOf,
  systemCode,
} from "./errors.ts";
import { formatSize } from "./size.ts";

/** Blocks of 1 MiB and more cost 2–4 times as much as these on Linux (downloader.md B.3). */
export const WRITE_BLOCK_BYTES = 256 * 1024;
const READ_BLOCK_BYTES = 256 * 1024;
const COPY_BLOCK_BYTES = 1024 * 1024;
/** The unit of `blocks` in stat(2), whatever the file system's own is. */
const STAT_BLOCK_BYTES = 512;

/**
 * `name` under `root`, as an absolute path.
 * @throws InputError when it would leave the root, is absolute, empty, or holds a NUL.
 */
export function joinInside(root: string, name: string): string {
  const path = resolve(root, name);
  if (name === "" || name.includes("\0") || isAbsolute(name) || !isInside(root, path)) {
    throw new InputError("INPUT_INVALID", `"${name}" is not a path inside ${root}`);
  }
  return path;
}

/** True when `path` lies below `root` (the root itself does not count). No link is followed. */
export function isInside(root: string, path: string): boolean {
  const way = relative(resolve(root), resolve(path));
  return way !== "" && way !== ".." && !way.startsWith(`..${sep}`) && !isAbsolute(way);
}

/** Tries again when another process removed, or made, a part of the path in the middle of it. */
const FOLDER_ATTEMPTS = 5;

/** Creates a folder and its parents. @throws ConfigError PATH_UNWRITABLE naming it */
export function makeFolder(path: string): void {
  for (let attempt = 1; ; attempt += 1) {
    try {
      mkdirSync(path, { recursive: true });
      return;
    } catch (cause) {
      const raced = ["EEXIST", "ENOENT"].includes(systemCode(cause) ?? "");
      if (!raced || attempt >= FOLDER_ATTEMPTS || entryAt(path)?.isFile() === true) {
        throw fileError(cause, path, "create the folder");
      }
    }
  }
}

/** Replaces a file in one step: readers see the old content or the new one, also after a crash. */
export function writeAtomically(path: string, content: string | Uint8Array): void {
  makeFolder(dirname(path));
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID().slice(0, 8)}.tmp`);
  try {
    const fd = openSync(temporary, "wx", 0o644);
    try {
      writeFully(fd, typeof content === "string" ? Buffer.from(content) : content, 0);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
    syncFolder(dirname(path));
  } catch (cause) {
    rmSync(temporary, { force: true });
    throw fileError(cause, path, "write");
  }
}

/** Like {@link writeAtomically}, but not flushed: for what may be lost in a power cut, and is then found out anew. */
export function writeQuickly(path: string, content: string): void {
  makeFolder(dirname(path));
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID().slice(0, 8)}.tmp`);
  try {
    writeFileSync(temporary, content);
    renameSync(temporary, path);
  } catch (cause) {
    rmSync(temporary, { force: true });
    throw fileError(cause, path, "write");
  }
}

/** Writes every byte at `position`; one `write` may legally take fewer. */
export function writeFully(fd: number, bytes: Uint8Array, position: number): void {
  let done = 0;
  while (done < bytes.byteLength) {
    const length = Math.min(bytes.byteLength - done, WRITE_BLOCK_BYTES);
    done += writeSync(fd, bytes, done, length, position + done);
  }
}

/**
 * {@link writeFully} on another thread: a disk that is busy for seconds must not hold up everything else this process
 * does. `bytes` must stay as they are until it is done.
 */
export async function writeAway(fd: number, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const length = Math.min(bytes.byteLength - done, WRITE_BLOCK_BYTES);
    const from = done;
    done += await new Promise<number>((resolve, reject) => {
      write(fd, bytes, from, length, position + from, (error, written) => {
        if (error === null) {
          resolve(written);
        } else {
          reject(error);
        }
      });
    });
  }
}

/** Fills `into` from `position`; returns fewer bytes only at the end of the file. */
export function readFully(fd: number, into: Uint8Array, position: number): number {
  let done = 0;
  while (done < into.byteLength) {
    const read = readSync(fd, into, done, into.byteLength - done, position + done);
    if (read === 0) {
      break;
    }
    done += read;
  }
  return done;
}

export interface BlockRange {
  readonly start?: number | undefined;
  /** The first byte that is not wanted. */
  readonly end?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * A file's bytes in blocks, each a fresh buffer. It is opened when the first is asked for, and closed when no more are: a
 * request that is called off before its body was read leaves nothing open, and no error that nobody hears.
 * @throws AppError when it can't be opened or read
 */
export async function* fileBlocks(
  path: string,
  { start = 0, end = Infinity, signal }: BlockRange = {},
): AsyncGenerator<Uint8Array> {
  let fd: number | undefined;
  try {
    fd = openSync(path, "r");
    for (let position = start; position < end; ) {
      signal?.throwIfAborted();
      const block = Buffer.allocUnsafe(Math.min(READ_BLOCK_BYTES, end - position));
      const length = readFully(fd, block, position);
      if (length === 0) {
        return;
      }
      position += length;
      yield block.subarray(0, length);
      // Lets the server answer while a large file is read from the page cache.
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  } catch (error) {
    throw isAbort(error) ? error : fileError(error, path, "read");
  } finally {
    if (fd !== undefined) {
      closeSync(fd);
    }
  }
}

/** Flushes a folder's entries, so that a rename in it survives a power loss. */
export function syncFolder(path: string): void {
  let fd: number | undefined;
  try {
    fd = openSync(path, "r");
    fsyncSync(fd);
  } catch {
    // Some network file systems refuse fsync on a folder; they commit a rename by themselves.
  } finally {
    if (fd !== undefined) {
      closeSync(fd);
    }
  }
}

/** Flushes a file's bytes. */
export function syncFile(path: string): void {
  const fd = openSync(path, "r+");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * Removes a file, or a folder and what is in it; nothing there is fine. In one pass: on network file systems a file that is
 * open somewhere keeps a name in its folder, and both stay. (Bun's recursive `rmSync` goes round for ever there.)
 */
export function removeTree(path: string): void {
  const entry = entryAt(path);
  if (entry === undefined) {
    return;
  }
  try {
    if (!entry.isDirectory()) {
      unlinkSync(path);
      return;
    }
    for (const name of readdirSync(path)) {
      removeTree(join(path, name));
    }
    rmdirSync(path);
  } catch (error) {
    if (!["ENOENT", "ENOTEMPTY", "EEXIST", "EBUSY"].includes(systemCode(error) ?? "")) {
      throw error;
    }
  }
}

/** What lies at `path`, links not followed; undefined when nothing does. */
export function entryAt(path: string): Stats | undefined {
  return lstatSync(path, { throwIfNoEntry: false });
}

/** The file `path` leads to, links followed; undefined when there is none. */
export function fileAt(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    // A path through a file (`a.bin/b`) or a loop of links leads nowhere.
    if (["ENOTDIR", "ELOOP"].includes(systemCode(error) ?? "")) {
      return undefined;
    }
    throw fileError(error, path, "look at");
  }
}

/** What a file takes on the disk by now: its holes don't count, space set aside for it does. 0 where there is none. */
export function allocatedBytes(path: string): number {
  return (fileAt(path)?.blocks ?? 0) * STAT_BLOCK_BYTES;
}

/** The nearest folder above `path` (or `path` itself) that exists. */
export function existingAncestor(path: string): string {
  let at = resolve(path);
  while (!existsSync(at) && dirname(at) !== at) {
    at = dirname(at);
  }
  return at;
}

/** True when both paths are, or would be, on one file system: a rename or a link between them is possible. */
export function onSameDevice(one: string, other: string): boolean {
  return statSync(existingAncestor(one)).dev === statSync(existingAncestor(other)).dev;
}

export interface FreeSpace {
  /** Identifies the file system within this boot. */
  readonly device: number;
  readonly freeBytes: number;
  readonly totalBytes: number;
  /** `f_type` of statfs(2). */
  readonly type: number;
}

/** The time by a folder's own file system: the clocks of two machines that share it may be a day apart. */
export function fileSystemNow(folder: string): number {
  const probe = join(folder, `.now-${randomUUID()}`);
  try {
    writeFileSync(probe, "");
    return statSync(probe).mtimeMs;
  } finally {
    rmSync(probe, { force: true });
  }
}

/** Space on the file system that holds, or would hold, `path`. */
export function freeSpace(path: string): FreeSpace {
  const at = existingAncestor(path);
  const { bavail, blocks, bsize, type } = statfsSync(at);
  return {
    device: statSync(at).dev,
    freeBytes: bavail * bsize,
    totalBytes: blocks * bsize,
    type,
  };
}

/**
 * Gives `from` the name `to` in one step, unless `to` exists. Linking is the one way that both is atomic and
 * refuses to replace; where the file system has no hard links, a look and a rename must do.
 * @returns false when something is there already; `from` is then untouched.
 */
export function renameWithoutReplacing(from: string, to: string): boolean {
  if (!statSync(from).isDirectory()) {
    try {
      linkSync(from, to);
      unlinkSync(from);
      return true;
    } catch (error) {
      const code = systemCode(error);
      if (code === "EEXIST") {
        return false;
      }
      if (!["EPERM", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EMLINK", "EXDEV"].includes(code ?? "")) {
        throw fileError(error, to, "publish");
      }
    }
  }
  if (entryAt(to) !== undefined) {
    return false;
  }
  try {
    renameSync(from, to);
    return true;
  } catch (error) {
    if (["EEXIST", "ENOTEMPTY"].includes(systemCode(error) ?? "")) {
      return false;
    }
    throw fileError(error, to, "publish");
  }
}

/** Copies bytes through a bounded buffer; `seen` gets each block (for a digest). The copy is flushed. */
export function copyFileBytes(
  from: string,
  to: string,
  seen?: (block: Uint8Array) => void,
): number {
  const source = openSync(from, "r");
  try {
    const target = openSync(to, "w", 0o600);
    try {
      const block = Buffer.allocUnsafe(COPY_BLOCK_BYTES);
      let position = 0;
      for (;;) {
        const length = readFully(source, block, position);
        if (length === 0) {
          break;
        }
        const part = block.subarray(0, length);
        writeFully(target, part, position);
        seen?.(part);
        position += length;
      }
      fchmodSync(target, 0o644);
      fsyncSync(target);
      return position;
    } finally {
      closeSync(target);
    }
  } finally {
    closeSync(source);
  }
}

/** Tells a system error in words: which file, what was tried, what to do. An {@link AppError} passes through. */
export function fileError(error: unknown, path: string, doing: string): AppError {
  if (error instanceof AppError) {
    return error;
  }
  if (isDiskFull(error)) {
    return noSpace(path, undefined, error);
  }
  const code = systemCode(error);
  if (code === "EACCES" || code === "EPERM" || code === "EROFS") {
    const why = code === "EROFS" ? "the file system is read-only" : "permission denied";
    return new ConfigError("PATH_UNWRITABLE", `Can't ${doing} ${path}: ${why}`, {
      cause: error,
      hint: "Make the folder writable for this process, or point COMFYUI_MODELS_DIR at one that is.",
      details: { path },
    });
  }
  const words: Readonly<Record<string, string>> = {
    ENAMETOOLONG: "the name is too long for this file system",
    EMFILE: "too many files are open",
    ENOTDIR: "a part of the path is a file, not a folder",
    EISDIR: "a folder is in the way",
    EIO: "the disk reports an error",
  };
  const why = words[code ?? ""] ?? messageOf(error);
  return new DownloadError("IO_ERROR", `Can't ${doing} ${path}: ${why}`, {
    cause: error,
    details: { path, system: code },
  });
}

/** The disk is full, with need and have. */
export function noSpace(path: string, needBytes: number | undefined, cause?: unknown): AppError {
  let freeBytes: number | undefined;
  try {
    freeBytes = freeSpace(path).freeBytes;
  } catch {
    // The error is about space; that the space can't be asked for must not hide it.
  }
  const have = freeBytes === undefined ? "" : `, ${formatSize(freeBytes)} are free`;
  const need = needBytes === undefined ? "" : `: ${formatSize(needBytes)} are needed`;
  return new DownloadError("NO_SPACE", `The disk of ${dirname(path)} is full${need}${have}`, {
    cause,
    hint: "Free space there; what was downloaded so far is kept and goes on from where it stopped.",
    details: { path, needBytes, freeBytes },
  });
}
