/** File systems of a few bytes, for what happens when they are full. */
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from "node:fs";
import { tempDir } from "./temp-dir.ts";

let answer: boolean | undefined;

/** Whether this process may mount a file system: root may, but not in every container. */
export function canMount(): boolean {
  answer ??= tryMount();
  return answer;
}

function tryMount(): boolean {
  if (process.platform !== "linux" || process.getuid?.() !== 0) {
    return false;
  }
  using dir = tempDir();
  const mounted = Bun.spawnSync(["mount", "-t", "tmpfs", "tmpfs", dir.path]).success;
  return mounted && Bun.spawnSync(["umount", "-l", dir.path]).success;
}

export interface SmallDisk extends Disposable {
  readonly path: string;
}

/** A new file system of so many bytes at `path`; gone when the `using` scope ends. */
export function smallDisk(path: string, bytes: number): SmallDisk {
  mkdirSync(path, { recursive: true });
  const size = `size=${Math.ceil(bytes)}`;
  if (!Bun.spawnSync(["mount", "-t", "tmpfs", "-o", size, "tmpfs", path]).success) {
    throw new Error(`a file system can't be mounted at ${path}`);
  }
  return { path, [Symbol.dispose]: () => void Bun.spawnSync(["umount", "-l", path]) };
}

/** Takes all the room there is, until the file is removed. */
export function fillDisk(file: string): void {
  rmSync(file, { force: true });
  const fd = openSync(file, "w");
  try {
    for (;;) {
      writeSync(fd, Buffer.alloc(4096));
    }
  } catch {
    // It is full.
  } finally {
    closeSync(fd);
  }
}
