/**
 * The SHA-256 of files, remembered for as long as a file's inode, length and times stay as they are: what was hashed
 * once, or verified when it was installed, is not read again. A memory that is lost costs a reading, nothing else.
 */
import type { BigIntStats } from "node:fs";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { writeQuickly } from "../platform/files.ts";
import { bakedDigests } from "./baked.ts";
import { digestOf } from "./digest.ts";
import { PARTIAL_FOLDER, partialKey } from "./journal.ts";
import { partialRootFor } from "./placing.ts";

/** What tells one content of a file from another at the price of a stat. */
export const StatFacts = z.object({
  ino: z.string(),
  size: z.number(),
  mtimeNs: z.string(),
  ctimeNs: z.string(),
  nlink: z.number(),
});
export type StatFacts = z.output<typeof StatFacts>;

const DigestRecord = z.object({
  v: z.literal(1),
  path: z.string(),
  sha256: z.string(),
  facts: StatFacts,
});

/** The facts of the file that a path leads to; undefined when there is none. */
export function statFacts(path: string): StatFacts | undefined {
  let stat: BigIntStats | undefined;
  try {
    stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  } catch {
    return undefined;
  }
  return stat === undefined || !stat.isFile()
    ? undefined
    : {
        ino: stat.ino.toString(),
        size: Number(stat.size),
        mtimeNs: stat.mtimeNs.toString(),
        ctimeNs: stat.ctimeNs.toString(),
        nlink: Number(stat.nlink),
      };
}

/**
 * True when nothing was written between two looks. A hard link made or removed changes the inode's change time too:
 * where the number of links differs, that alone says nothing about the content.
 */
export function isUnchanged(known: StatFacts, now: StatFacts): boolean {
  return (
    known.ino === now.ino &&
    known.size === now.size &&
    known.mtimeNs === now.mtimeNs &&
    (known.ctimeNs === now.ctimeNs || known.nlink !== now.nlink)
  );
}

/** Digests of the files below some models folders. */
export class DigestBook {
  readonly #roots: readonly string[];
  #baked: ReadonlyMap<string, string> | undefined;
  /** A store that knows a file as a link to one of its blobs: links of others change the inode's times. */
  vouch: ((path: string, sha256: string) => boolean) | undefined;
  readonly #memo = new Map<string, { readonly sha256: string; readonly facts: StatFacts }>();

  constructor(modelsRoots: readonly string[]) {
    this.#roots = modelsRoots;
  }

  /** What is known without reading the file. */
  known(path: string): string | undefined {
    const facts = statFacts(path);
    // Layers of an image don't change; a file that was written to since is not in the list any more.
    this.#baked ??= bakedDigests(this.#roots);
    const baked = facts === undefined ? undefined : this.#baked.get(path);
    if (baked !== undefined) {
      return baked;
    }
    const entry = facts === undefined ? undefined : (this.#memo.get(path) ?? this.#recall(path));
    if (entry === undefined || facts === undefined) {
      return undefined;
    }
    if (!isUnchanged(entry.facts, facts)) {
      if (this.vouch?.(path, entry.sha256) !== true) {
        return undefined;
      }
      this.note(path, entry.sha256);
    }
    if (!this.#memo.has(path)) {
      this.#memo.set(path, entry);
    }
    return entry.sha256;
  }

  /** What the very file had when it was noted, whether or not it was written to since. */
  expected(path: string): string | undefined {
    const known = this.known(path);
    if (known !== undefined) {
      return known;
    }
    const entry = this.#memo.get(path) ?? this.#recall(path);
    return entry !== undefined && entry.facts.ino === statFacts(path)?.ino
      ? entry.sha256
      : undefined;
  }

  /** Reads the file unless its digest is known. */
  async of(path: string, signal?: AbortSignal): Promise<string> {
    const known = this.known(path);
    if (known !== undefined) {
      return known;
    }
    const before = statFacts(path);
    const sha256 = await digestOf(path, signal);
    const after = statFacts(path);
    if (before !== undefined && after !== undefined && isUnchanged(before, after)) {
      this.note(path, sha256);
    }
    return sha256;
  }

  /** Remembers what was computed elsewhere, a moment ago, of the file as it lies there now. */
  note(path: string, sha256: string): void {
    const facts = statFacts(path);
    if (facts === undefined) {
      return;
    }
    this.#memo.set(path, { sha256, facts });
    try {
      writeQuickly(this.#file(path), JSON.stringify({ v: 1, path, sha256, facts }));
    } catch {
      // A models folder that can't be written is still good for reading; the digest is computed again next time.
    }
  }

  /** Every file that was ever noted below these models folders, as it was then. */
  noted(): { readonly path: string; readonly sha256: string }[] {
    return this.#roots.flatMap((root) => {
      const folder = join(root, PARTIAL_FOLDER, DIGEST_FOLDER);
      return namesIn(folder).flatMap((name) => {
        const record = readRecord(join(folder, name));
        return record === undefined ? [] : [record];
      });
    });
  }

  #file(path: string): string {
    return join(partialRootFor(path, this.#roots), DIGEST_FOLDER, `${partialKey(path)}.json`);
  }

  #recall(path: string): { sha256: string; facts: StatFacts } | undefined {
    const record = readRecord(this.#file(path));
    return record?.path === path ? record : undefined;
  }
}

const DIGEST_FOLDER = "digests";

function readRecord(file: string): z.output<typeof DigestRecord> | undefined {
  try {
    const parsed = DigestRecord.safeParse(JSON.parse(readFileSync(file, "utf8")));
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
