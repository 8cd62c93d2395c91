/**
 * What a store holds: blobs named by their SHA-256, what is known of each, and which address led to which. A blob is
 * believed at the price of a stat; one whose stat has changed is read again, and set aside when it is not what its name
 * says.
 */

import { randomBytes } from "node:crypto";
import { readFileSync, renameSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { messageOf, systemCode } from "../platform/errors.ts";
import { SingleFlight } from "../platform/limit.ts";
import type { Logger } from "../platform/log.ts";
import { digestOf } from "./digest.ts";
import { isUnchanged, StatFacts, statFacts } from "./digests.ts";
import { blobNames, blobPath, metaPath, refPath, usedPath, writeSmall } from "./store-layout.ts";

const BlobMeta = z.object({
  v: z.literal(1),
  sha256: z.string(),
  size: z.number(),
  /** As the first that brought it called it: for people. */
  name: z.string(),
  category: z.string(),
  source: z.string(),
  etag: z.string().nullable(),
  /** Of the blob when it was last known to be good. */
  facts: StatFacts,
  verifiedAt: z.string(),
});
export type BlobMeta = z.output<typeof BlobMeta>;

const AddressRef = z.object({
  v: z.literal(1),
  /** Without credentials. */
  url: z.string(),
  sha256: z.string(),
  size: z.number(),
  etag: z.string().nullable(),
  lastModified: z.string().nullable(),
});
export type AddressRef = z.output<typeof AddressRef>;

export interface StoredBlob {
  readonly sha256: string;
  readonly size: number;
  /** By the store's clock, in milliseconds. */
  readonly usedMs: number;
}

export class StoreContent {
  readonly #root: string;
  readonly #writable: boolean;
  readonly #log: Logger;
  readonly #checks = new SingleFlight<boolean>();

  constructor(root: string, writable: boolean, log: Logger) {
    this.#root = root;
    this.#writable = writable;
    this.#log = log;
  }

  has(sha256: string): boolean {
    return statSync(blobPath(this.#root, sha256), { throwIfNoEntry: false }) !== undefined;
  }

  meta(sha256: string): BlobMeta | undefined {
    return readJson(metaPath(this.#root, sha256), BlobMeta);
  }

  ref(url: string): AddressRef | undefined {
    return readJson(refPath(this.#root, url), AddressRef);
  }

  setRef(ref: Omit<AddressRef, "v">): void {
    writeSmall(this.#root, refPath(this.#root, ref.url), JSON.stringify({ v: 1, ...ref }));
  }

  /** Notes a blob that was just published, or found to be good. */
  setMeta(meta: Omit<BlobMeta, "v" | "facts" | "verifiedAt">): void {
    const facts = statFacts(blobPath(this.#root, meta.sha256));
    if (facts !== undefined) {
      const document = { v: 1, ...meta, facts, verifiedAt: new Date().toISOString() };
      writeSmall(this.#root, metaPath(this.#root, meta.sha256), JSON.stringify(document));
    }
  }

  /** After a hard link was made: the same content, with one link more. */
  refresh(sha256: string): void {
    const meta = this.meta(sha256);
    if (meta !== undefined && this.#writable) {
      this.setMeta(meta);
    }
  }

  /** Now is when it was last used. */
  touch(sha256: string): void {
    if (!this.#writable) {
      return;
    }
    try {
      writeSmall(this.#root, usedPath(this.#root, sha256), "");
    } catch {
      // The order of eviction is not worth failing for.
    }
  }

  usedMs(sha256: string): number | undefined {
    return statSync(usedPath(this.#root, sha256), { throwIfNoEntry: false })?.mtimeMs;
  }

  /** What a stat says: it lies there as it was when it was last known to be good. */
  looksGood(sha256: string): boolean {
    const facts = statFacts(blobPath(this.#root, sha256));
    const meta = this.meta(sha256);
    return (
      facts !== undefined &&
      meta !== undefined &&
      meta.size === facts.size &&
      isUnchanged(meta.facts, facts)
    );
  }

  /** True when the blob is there and is what its name says; one that is not is set aside. */
  isGood(sha256: string, signal?: AbortSignal): Promise<boolean> {
    return this.#checks.run(sha256, () => this.#isGood(sha256, signal));
  }

  async #isGood(sha256: string, signal: AbortSignal | undefined): Promise<boolean> {
    const path = blobPath(this.#root, sha256);
    const facts = statFacts(path);
    if (facts === undefined) {
      return false;
    }
    if (this.looksGood(sha256)) {
      return true;
    }
    const meta = this.meta(sha256);
    let actual: string;
    try {
      actual = await digestOf(path, signal);
    } catch (error) {
      if (systemCode(error) === "ENOENT") {
        return false;
      }
      throw error;
    }
    if (actual !== sha256) {
      this.#setAside(sha256, actual);
      return false;
    }
    if (this.#writable) {
      const { size } = facts;
      const known = { name: "unknown", category: "", source: "", etag: null, ...meta };
      try {
        this.setMeta({ ...known, sha256, size });
      } catch (error) {
        // On a full disk it is read again next time, which is no reason to fail now.
        this.#log.debug(`A stored weight's record can't be written: ${messageOf(error)}`);
      }
    }
    return true;
  }

  #setAside(sha256: string, actual: string): void {
    const name = `${sha256}-${randomBytes(4).toString("hex")}`;
    this.#log.warn(
      `A stored weight was altered on the disk: ${this.meta(sha256)?.name ?? sha256} has the SHA-256 ${actual} now. It is set aside, and fetched again when it is needed`,
      { sha256 },
    );
    if (this.#writable) {
      try {
        renameSync(blobPath(this.#root, sha256), join(this.#root, "quarantine", name));
      } catch {
        // Another process did it a moment ago.
      }
    }
  }

  list(): StoredBlob[] {
    return blobNames(this.#root).flatMap((sha256) => {
      const stat = statSync(blobPath(this.#root, sha256), { throwIfNoEntry: false });
      return stat === undefined
        ? []
        : [{ sha256, size: stat.size, usedMs: this.usedMs(sha256) ?? stat.mtimeMs }];
    });
  }
}

function readJson<T>(path: string, schema: z.ZodType<T>): T | undefined {
  try {
    const parsed = schema.safeParse(JSON.parse(readFileSync(path, "utf8")));
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}
