/**
 * A node that names weights failed: are they to blame? Each is read and compared with what is known of it; only one whose
 * size, hash or header disagrees is called broken, so that nobody deletes a healthy file because of a full GPU.
 */
import { basename } from "node:path";
import { formatSize } from "../platform/size.ts";
import type { Validation } from "./refs.ts";
import type { PresentWeights, VerifiedPresent } from "./verify-present.ts";
import { verifyPresent } from "./verify-present.ts";

export interface Suspect extends VerifiedPresent {
  readonly sizeBytes: number;
}

/** The weights of one node, each verified. */
export async function examineNode(
  nodeId: string,
  validation: Validation,
  weights: PresentWeights,
  signal: AbortSignal,
): Promise<Suspect[]> {
  const own = validation.present.filter(({ ref }) => ref.nodeId === nodeId);
  const suspects: Suspect[] = [];
  for (const { ref, file, sizeBytes, listedAs } of own) {
    const name = listedAs ?? ref.name;
    const words = [ref.category === undefined ? name : `${ref.category}/${name}`];
    for await (const verdict of verifyPresent(weights, words, signal)) {
      if (verdict.file === file) {
        suspects.push({ ...verdict, sizeBytes });
      }
    }
  }
  return suspects;
}

/** What was found, as sentences for the end of the error. */
export function describeSuspects(suspects: readonly Suspect[]): string {
  return suspects
    .map(({ name, category, problem, by, sizeBytes }) => {
      if (problem !== null) {
        return `Its weight ${name} is broken: ${problem}. Run \`bin/cog-comfyui weights repair ${category}/${name}\`.`;
      }
      const checked =
        by === "sha256" ? "its SHA-256 is right" : "its format is right, no SHA-256 is known";
      return `Its weight ${basename(name)} (${formatSize(sizeBytes)}) is whole: ${checked}.`;
    })
    .join(" ");
}
