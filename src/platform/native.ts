/**
 * Two calls of the C library that `node:fs` lacks: flock and fallocate. Loaded on first use; where
 * the library can't be loaded, callers get `undefined` and do without.
 */
import { dlopen } from "bun:ffi";

const LOCK_EXCLUSIVE = 2;
const LOCK_NONBLOCKING = 4;
/** FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE */
const PUNCH_HOLE = 3;

interface Calls {
  flock(fd: number, operation: number): number;
  fallocate: ((fd: number, mode: number, offset: bigint, length: bigint) => number) | undefined;
}

let loaded: Calls | undefined | "absent";

function calls(): Calls | undefined {
  loaded ??= load() ?? "absent";
  return loaded === "absent" ? undefined : loaded;
}

function load(): Calls | undefined {
  const names =
    process.platform === "darwin"
      ? ["libSystem.B.dylib"]
      : ["libc.so.6", "libc.musl-x86_64.so.1", "libc.musl-aarch64.so.1"];
  for (const name of names) {
    try {
      const flock = { args: ["i32", "i32"], returns: "i32" } as const;
      if (process.platform === "darwin") {
        return { ...dlopen(name, { flock }).symbols, fallocate: undefined };
      }
      const fallocate = { args: ["i32", "i32", "i64", "i64"], returns: "i32" } as const;
      return dlopen(name, { flock, fallocate }).symbols;
    } catch {
      // Another C library may be there under another name.
    }
  }
  return undefined;
}

/**
 * Takes the exclusive lock of an open file without waiting. It goes when the file is closed, also by SIGKILL.
 * undefined where locks can't be had.
 */
export function tryLock(fd: number): boolean | undefined {
  const library = calls();
  return library === undefined
    ? undefined
    : library.flock(fd, LOCK_EXCLUSIVE | LOCK_NONBLOCKING) === 0;
}

/** Reserves disk blocks for a file of `bytes`; false when the file system can't or won't. */
export function reserve(fd: number, bytes: number): boolean {
  const fallocate = calls()?.fallocate;
  return fallocate !== undefined && fallocate(fd, 0, 0n, BigInt(bytes)) === 0;
}

/** Gives the disk blocks of a part of a file back; it reads as zeros from then on. False as for {@link reserve}. */
export function release(fd: number, start: number, bytes: number): boolean {
  const fallocate = calls()?.fallocate;
  return fallocate !== undefined && fallocate(fd, PUNCH_HOLE, BigInt(start), BigInt(bytes)) === 0;
}
