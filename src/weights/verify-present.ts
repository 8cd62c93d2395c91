/** Every byte of the weights that are there against the SHA-256 that lock file, manifest or installation knows of them. */
import type { ModelFolders } from "../models/folders.ts";
import { messageOf } from "../platform/errors.ts";
import type { DigestBook } from "./digests.ts";
import type { LockFile } from "./lock.ts";
import type { Manifest } from "./manifest.ts";
import { verifyFile } from "./verify.ts";

export interface VerifiedPresent {
  readonly category: string;
  readonly name: string;
  readonly file: string;
  /** `sha256`: every byte compared; `format`: no hash is known, size and header were looked at. */
  readonly by: "sha256" | "format";
  readonly problem: string | null;
}

export interface PresentWeights {
  readonly folders: ModelFolders;
  readonly manifest: Manifest;
  readonly lock: LockFile | undefined;
  readonly digests: DigestBook;
}

/** Categories whose files are no weights. */
const NO_WEIGHTS = new Set(["custom_nodes", "configs", "datasets"]);

/** The weights that lie there; all, or those named `NAME` or `CATEGORY/NAME`. */
export function presentWeights(
  folders: ModelFolders,
  words: readonly string[] = [],
): { readonly category: string; readonly name: string; readonly file: string }[] {
  return folders
    .categories()
    .filter((category) => !NO_WEIGHTS.has(category))
    .flatMap((category) =>
      folders.list(category).flatMap((name) => {
        const file = folders.locate(category, name);
        const isWanted =
          words.length === 0 || words.includes(`${category}/${name}`) || words.includes(name);
        return file === undefined || !isWanted ? [] : [{ category, name, file }];
      }),
    );
}

/** Checks one after the other: each is read from the disk as fast as that goes. */
export async function* verifyPresent(
  weights: PresentWeights,
  words: readonly string[],
  signal: AbortSignal,
): AsyncGenerator<VerifiedPresent> {
  for (const weight of presentWeights(weights.folders, words)) {
    yield await verifyOne(weights, weight, signal);
  }
}

async function verifyOne(
  { manifest, lock, digests }: PresentWeights,
  weight: { readonly category: string; readonly name: string; readonly file: string },
  signal: AbortSignal,
): Promise<VerifiedPresent> {
  const row = manifest.find(weight.name, weight.category)[0];
  const locked = lock?.find(weight.name, weight.category);
  const sha256 = locked?.sha256 ?? row?.sha256 ?? digests.expected(weight.file);
  const by = sha256 === undefined ? "format" : "sha256";
  try {
    const sizeBytes = locked?.size ?? row?.size;
    await verifyFile(weight.file, { name: weight.name, sizeBytes, sha256 }, signal);
    return { ...weight, by, problem: null };
  } catch (error) {
    signal.throwIfAborted();
    return { ...weight, by, problem: messageOf(error) };
  }
}
