/** Where a destination's partial file lives: on its own file system, and out of sight of ComfyUI's file lists. */
import { join } from "node:path";
import { existingAncestor, isInside, onSameDevice } from "../platform/files.ts";
import { PARTIAL_FOLDER } from "./journal.ts";

/** The `.cog-partial` folder for a destination. `roots`: the models folders, the receiving one first. */
export function partialRootFor(destination: string, roots: readonly string[]): string {
  const around = roots.filter((root) => isInside(root, destination));
  const root = [...around, ...roots].find((candidate) => onSameDevice(candidate, destination));
  return join(root ?? existingAncestor(destination), PARTIAL_FOLDER);
}
