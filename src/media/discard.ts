/** Takes a run's files away once nobody needs them, and the folders that become empty, so that disks don't fill. */
import { rmdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { isInside } from "../platform/files.ts";
import type { EngineDirs, ReportedFile } from "../workflow/engine-files.ts";

/** Removes files, then every folder above them that is empty now, up to but not including the roots. */
export function discardFiles(paths: readonly string[], roots: readonly string[]): void {
  for (const path of paths) {
    rmSync(path, { force: true });
    removeEmptyParents(path, roots);
  }
}

/** Removes what a run reported as temporary, but for what is returned. */
export function discardTemporary(
  reported: readonly ReportedFile[],
  dirs: EngineDirs,
  returned: readonly string[],
): void {
  const paths = reported
    .filter(({ type }) => type === "temp")
    .map((file) => join(dirs.temp, file.subfolder, file.filename))
    .filter((path) => isInside(dirs.temp, path) && !returned.includes(path));
  discardFiles(paths, [dirs.temp]);
}

function removeEmptyParents(path: string, roots: readonly string[]): void {
  const root = roots.find((candidate) => isInside(candidate, path));
  for (
    let at = dirname(path);
    root !== undefined && at !== root && isInside(root, at);
    at = dirname(at)
  ) {
    try {
      rmdirSync(at);
    } catch {
      // Not empty: another file of the run is still there.
      return;
    }
  }
}
