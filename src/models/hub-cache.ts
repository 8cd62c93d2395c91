/**
 * Files of ours in Hugging Face's cache: its library, offline, finds a file only through `refs/main`, which says what
 * the branch stands for. Written after such a file is installed, never changed where it is there.
 */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

const SNAPSHOT = /^(.*\/hub\/models--[^/]+)\/snapshots\/([\w-]+)(\/|$)/;

/** Makes an installed file known to the library; does nothing for files elsewhere. */
export function completeHubCache(file: string): void {
  const [, repository, revision] = SNAPSHOT.exec(file) ?? [];
  if (repository === undefined || revision === undefined) {
    return;
  }
  const ref = join(repository, "refs", "main");
  if (!existsSync(ref)) {
    mkdirSync(dirname(ref), { recursive: true });
    writeFileSync(ref, revision);
  }
}
