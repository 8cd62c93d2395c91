/** Where a destination's partial file lives: on its own file system, and out of sight of ComfyUI's file lists. */
import { dirname, join } from "node:path";
import { isInside, onSameDevice } from "../platform/files.ts";
import { PARTIAL_FOLDER } from "./journal.ts";

/**
 * The `.cog-partial` folder for a destination. `roots`: the models folders, the receiving one first. Where none of them
 * is on the destination's file system (a category folder with a mount of its own), it lies beside the file.
 */
export function partialRootFor(destination: string, roots: readonly string[]): string {
  const folder = dirname(destination);
  const around = roots.filter((root) => isInside(root, destination));
  const root = [...around, ...roots].find((candidate) => onSameDevice(candidate, folder));
  return join(root ?? folder, PARTIAL_FOLDER);
}
