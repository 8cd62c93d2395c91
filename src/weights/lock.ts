/**
 * `weights.lock.json`: which version of every weight this deployment runs with. Read, looked up, and written so that two
 * runs over the same weights give the same text, and a change of one weight a diff of one row.
 */
import { existsSync, readFileSync } from "node:fs";
import { z } from "zod";
import { canonicalCategory } from "../models/categories.ts";
import { messageOf, WeightError } from "../platform/errors.ts";
import { writeAtomically } from "../platform/files.ts";
import type { LockedWeight } from "./resolve.ts";

const RelativePath = z
  .string()
  .min(1)
  .max(1024)
  .refine((path) => !/^\/|^[A-Za-z]:|\\|(^|\/)\.{0,2}(\/|$)|\p{Cc}/u.test(path), {
    message: "must be a relative path with forward slashes, without . or ..",
  });

export const LockRow = z.strictObject({
  name: RelativePath.describe("Name as loaders spell it, relative to the category's folder"),
  category: RelativePath,
  url: z
    .string()
    .min(1)
    .describe("Address of this very version, the revision in it where the host has any"),
  from: z
    .string()
    .describe("Address it was locked from, where that follows a moving revision")
    .exactOptional(),
  revision: z.string().describe("Commit that `from` stood at").exactOptional(),
  size: z
    .int()
    .nonnegative()
    .describe("Bytes of the file, never of an archive around it")
    .exactOptional(),
  sha256: z
    .string()
    .regex(/^[0-9a-f]{64}$/, "must be 64 lower-case hexadecimal digits")
    .describe("Of the file, never of an archive around it")
    .exactOptional(),
  etag: z.string().describe("What the source said of its version").exactOptional(),
  license: z.string().exactOptional(),
  locked: z.iso.datetime().describe("When this version was locked"),
});

export const LockDocument = z.strictObject({
  version: z.literal(1),
  weights: z.array(LockRow),
});

export type LockRow = z.infer<typeof LockRow>;

/** The rows of a lock file. Immutable. */
export class LockFile {
  readonly path: string;
  readonly rows: readonly LockRow[];
  readonly #byKey: ReadonlyMap<string, LockRow>;

  constructor(path: string, rows: readonly LockRow[]) {
    this.path = path;
    this.rows = rows.toSorted(byPlace);
    this.#byKey = new Map(this.rows.map((row) => [rowKey(row.category, row.name), row]));
  }

  /** @throws WeightError MANIFEST_INVALID for a file that is there and can't be read as a lock file */
  static read(path: string): LockFile {
    let text: string;
    try {
      text = readFileSync(path, "utf8");
    } catch (cause) {
      throw invalid(path, `it can't be read: ${messageOf(cause)}`, cause);
    }
    return LockFile.parse(text, path);
  }

  /** Like {@link read}; an absent file is an empty one. */
  static readIfThere(path: string): LockFile {
    return existsSync(path) ? LockFile.read(path) : new LockFile(path, []);
  }

  static parse(text: string, path: string): LockFile {
    let document: unknown;
    try {
      document = JSON.parse(text);
    } catch (cause) {
      throw invalid(path, `it is not JSON: ${messageOf(cause)}`, cause);
    }
    const parsed = LockDocument.safeParse(document);
    if (!parsed.success) {
      const problems = parsed.error.issues.map(
        (issue) => `${issue.path.map(String).join(".")}: ${issue.message}`,
      );
      throw invalid(path, problems.slice(0, 20).join("; "), parsed.error);
    }
    const seen = new Set<string>();
    for (const { category, name } of parsed.data.weights) {
      const key = rowKey(category, name);
      if (seen.has(key)) {
        throw invalid(path, `${category}/${name} stands in it twice`);
      }
      seen.add(key);
    }
    return new LockFile(path, parsed.data.weights);
  }

  /** The row of a weight: by category and name, by `category/name`, or by a name that only one row has. */
  find(name: string, category: string | undefined): LockRow | undefined {
    const spelled = name.replaceAll("\\", "/");
    if (category !== undefined) {
      return this.#byKey.get(rowKey(category, spelled));
    }
    const [folder = "", ...rest] = spelled.split("/");
    const placed = rest.length > 0 ? this.#byKey.get(rowKey(folder, rest.join("/"))) : undefined;
    const named = this.rows.filter((row) => row.name === spelled);
    return placed ?? (named.length === 1 ? named[0] : undefined);
  }

  /** What resolving needs of a row. */
  locked(name: string, category: string | undefined): LockedWeight | undefined {
    const row = this.find(name, category);
    return row === undefined
      ? undefined
      : {
          name: row.name,
          category: row.category,
          url: row.url,
          ...(row.size === undefined ? {} : { sizeBytes: row.size }),
          ...(row.sha256 === undefined ? {} : { sha256: row.sha256 }),
        };
  }

  /** These rows in place of those of the same weights. A row that says nothing new keeps its date. */
  with(rows: readonly LockRow[]): LockFile {
    const merged = new Map(this.#byKey);
    for (const row of rows) {
      const key = rowKey(row.category, row.name);
      const known = merged.get(key);
      merged.set(key, known !== undefined && saysTheSame(known, row) ? known : row);
    }
    return new LockFile(this.path, [...merged.values()]);
  }

  /** Sorted, one field a line: what belongs under version control. */
  toText(): string {
    return `${JSON.stringify({ version: 1, weights: this.rows.map(inOrder) }, undefined, 2)}\n`;
  }

  write(): void {
    writeAtomically(this.path, this.toText());
  }
}

function rowKey(category: string, name: string): string {
  return `${canonicalCategory(category)}/${name}`;
}

/** By code point: the same on every machine, whatever its language. */
function byPlace(one: LockRow, other: LockRow): number {
  const [a, b] = [rowKey(one.category, one.name), rowKey(other.category, other.name)];
  if (a === b) {
    return 0;
  }
  return a < b ? -1 : 1;
}

function inOrder(row: LockRow): LockRow {
  const { name, category, url, from, revision, size, sha256, etag, license, locked } = row;
  return {
    name,
    category,
    url,
    ...(from === undefined ? {} : { from }),
    ...(revision === undefined ? {} : { revision }),
    ...(size === undefined ? {} : { size }),
    ...(sha256 === undefined ? {} : { sha256 }),
    ...(etag === undefined ? {} : { etag }),
    ...(license === undefined ? {} : { license }),
    locked,
  };
}

function saysTheSame(known: LockRow, row: LockRow): boolean {
  return JSON.stringify(inOrder({ ...known, locked: row.locked })) === JSON.stringify(inOrder(row));
}

function invalid(path: string, why: string, cause?: unknown): WeightError {
  return new WeightError("MANIFEST_INVALID", `${path} is no lock file: ${why}`, {
    cause,
    hint: "Write it anew with `cog-comfyui weights lock`, or take it from version control.",
  });
}
