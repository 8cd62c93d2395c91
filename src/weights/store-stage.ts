/**
 * Copies of stored weights on the local disk, and their budget: where the store is far away, a weight is staged before
 * its first use, and the one that was longest unused makes way for the next.
 */
import { readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { DownloadError } from "../platform/errors.ts";
import { entryAt, freeSpace, makeFolder, writeAtomically } from "../platform/files.ts";
import type { Logger } from "../platform/log.ts";
import { formatSize } from "../platform/size.ts";
import { PARTIAL_FOLDER, partialKey } from "./journal.ts";
import { entriesOf } from "./store-layout.ts";

const CopyRecord = z.object({
  v: z.literal(1),
  path: z.string(),
  sha256: z.string(),
  size: z.number(),
  /** Another inode is another file, put there by somebody else. */
  inode: z.number(),
});
type CopyRecord = z.output<typeof CopyRecord>;

export interface LocalCopiesOptions {
  /** The receiving models folder. */
  readonly modelsRoot: string;
  readonly maxBytes?: number | undefined;
  readonly minFreeBytes?: number | undefined;
  /** Why a file must stay, by whom; none: it may go. */
  readonly pinsOf: (path: string) => readonly string[];
  readonly log: Logger;
}

export class LocalCopies {
  readonly #options: LocalCopiesOptions;

  constructor(options: LocalCopiesOptions) {
    this.#options = options;
  }

  /** @throws DownloadError NO_SPACE naming the copies that are pinned */
  async makeRoom(bytes: number, destination: string): Promise<void> {
    await Promise.resolve();
    const copies = this.#list();
    const total = copies.reduce((sum, { record }) => sum + record.size, 0);
    const { maxBytes } = this.#options;
    const { freeBytes, totalBytes } = freeSpace(destination);
    const minFree = this.#options.minFreeBytes ?? Math.min(10e9, totalBytes * 0.1);
    let excess = Math.max(
      maxBytes === undefined ? 0 : total + bytes - maxBytes,
      bytes + minFree - freeBytes,
    );
    const free = copies.filter(({ record }) => this.#options.pinsOf(record.path).length === 0);
    for (const { record, file } of free.toSorted((one, other) => one.usedMs - other.usedMs)) {
      if (excess <= 0) {
        return;
      }
      if (record.path !== destination) {
        rmSync(record.path, { force: true });
        rmSync(file, { force: true });
        excess -= record.size;
        this.#options.log.info(`Removed the local copy of ${record.path}`, {
          size: formatSize(record.size),
        });
      }
    }
    if (excess > 0) {
      throw this.#noRoom(bytes, destination);
    }
  }

  add(path: string, sha256: string, size: number): void {
    const inode = entryAt(path)?.ino ?? 0;
    const record: CopyRecord = { v: 1, path, sha256, size, inode };
    makeFolder(this.#folder);
    writeAtomically(this.#file(path), JSON.stringify(record));
  }

  /** It is used now. */
  touch(path: string): void {
    const record = this.#read(this.#file(path));
    if (record !== undefined) {
      writeAtomically(this.#file(path), JSON.stringify(record));
    }
  }

  get #folder(): string {
    return join(this.#options.modelsRoot, PARTIAL_FOLDER, "staged");
  }

  #file(path: string): string {
    return join(this.#folder, `${partialKey(path)}.json`);
  }

  #read(file: string): CopyRecord | undefined {
    try {
      const parsed = CopyRecord.safeParse(JSON.parse(readFileSync(file, "utf8")));
      return parsed.success ? parsed.data : undefined;
    } catch {
      return undefined;
    }
  }

  #list(): { record: CopyRecord; file: string; usedMs: number }[] {
    return entriesOf(this.#folder).flatMap((name) => {
      const file = join(this.#folder, name);
      const record = this.#read(file);
      const stat = statSync(file, { throwIfNoEntry: false });
      return record === undefined ||
        stat === undefined ||
        entryAt(record.path)?.ino !== record.inode
        ? []
        : [{ record, file, usedMs: stat.mtimeMs }];
    });
  }

  #noRoom(bytes: number, destination: string): DownloadError {
    const pinned = this.#list().flatMap(({ record }) => {
      const pins = this.#options.pinsOf(record.path);
      return pins.length === 0 ? [] : [{ path: record.path, size: record.size, pins }];
    });
    const lines = pinned.map(
      ({ path, size, pins }) => `\n- ${path}, ${formatSize(size)}: ${pins.join("; ")}`,
    );
    return new DownloadError(
      "NO_SPACE",
      `The local disk has no room for a copy of ${destination} (${formatSize(bytes)})${this.#options.maxBytes === undefined ? "" : `, of which it may hold ${formatSize(this.#options.maxBytes)}`}.${lines.join("")}`,
      {
        hint: "Raise WEIGHTS_LOCAL_MAX_BYTES, free space, or set WEIGHTS_CACHE_MODE=link.",
        details: { needBytes: bytes, pinned },
      },
    );
  }
}
