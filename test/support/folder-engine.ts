/** The file side of an engine that shares folders with us, without any engine behind it. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { EngineDirs, EngineFiles } from "../../src/workflow/engine-files.ts";

export interface FolderEngine extends EngineFiles {
  readonly dirs: EngineDirs;
}

export function folderEngine(root: string): FolderEngine {
  const dirs = {
    input: join(root, "input"),
    output: join(root, "output"),
    temp: join(root, "temp"),
  };
  for (const dir of Object.values(dirs)) {
    mkdirSync(dir, { recursive: true });
  }
  const unused = (): Promise<never> => Promise.reject(new Error("files are shared here"));
  return { dirs, putInput: unused, fetchFile: unused };
}
