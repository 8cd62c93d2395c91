/** Node packs that ComfyUI found but could not load, read from its log: its API only shows that classes are missing. */
import type { ImportFailure } from "../workflow/obstacles.ts";
import { withoutAnsi } from "./log-ring.ts";

/** The reason, as it is logged when the import fails. */
const CANNOT_IMPORT = /Cannot import (.+?) module for custom nodes:/;
/** The list at the end of the start: a pack's folder, or a file of ComfyUI's own `comfy_extras`. */
const IMPORT_FAILED = /\(?IMPORT FAILED\)?: (.+?)\s*$/;
/** Longer reasons are whole tracebacks. */
const MAX_LINE_LENGTH = 500;

/** Reads log lines, oldest first; one entry for every pack, with its reason where the log still has it. */
export function importFailures(lines: readonly string[]): ImportFailure[] {
  const found = new Map<string, string>();
  for (const raw of lines) {
    const line = withoutAnsi(raw).trim().slice(0, MAX_LINE_LENGTH);
    const reason = CANNOT_IMPORT.exec(line)?.[1];
    const listed = IMPORT_FAILED.exec(line)?.[1];
    if (reason !== undefined) {
      found.set(folderOf(reason), line);
    } else if (listed !== undefined && !found.has(folderOf(listed))) {
      found.set(folderOf(listed), line);
    }
  }
  return [...found].map(([folder, line]) => ({ folder, line }));
}

function folderOf(path: string): string {
  return (
    path
      .replace(/[/\\]+$/, "")
      .split(/[/\\]/)
      .at(-1) ?? path
  );
}
