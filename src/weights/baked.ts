/** Weights that came with the image: found at start, and trusted by the digest that their layer states of them. */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { entriesOf } from "./store-layout.ts";

/** Below the models folder of the image: one list per layer, so that layers need not know one another. */
export const BAKED_FOLDER = ".baked";
/** The time of change of every baked file. One with another was written to since. */
export const BAKED_TIME_MS = Date.UTC(1980, 0, 1);

export const BakedList = z.object({
  v: z.literal(1),
  files: z.array(z.object({ path: z.string(), sha256: z.string(), size: z.number() })),
});
export type BakedList = z.output<typeof BakedList>;

/** Absolute path → SHA-256 of every baked file that is as it was baked. */
export function bakedDigests(modelsDirs: readonly string[]): ReadonlyMap<string, string> {
  const digests = new Map<string, string>();
  for (const dir of modelsDirs) {
    for (const name of entriesOf(join(dir, BAKED_FOLDER))) {
      for (const { path, sha256, size } of readList(join(dir, BAKED_FOLDER, name))) {
        const file = join(dir, path);
        const stat = statSync(file, { throwIfNoEntry: false });
        if (stat?.size === size && stat.mtimeMs === BAKED_TIME_MS) {
          digests.set(file, sha256);
        }
      }
    }
  }
  return digests;
}

function readList(path: string): BakedList["files"] {
  try {
    const parsed = BakedList.safeParse(JSON.parse(readFileSync(path, "utf8")));
    return parsed.success ? parsed.data.files : [];
  } catch {
    return [];
  }
}
