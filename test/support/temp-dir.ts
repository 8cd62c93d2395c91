/** A disposable folder with a tree of files in it. */
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { removeTree } from "../../src/platform/files.ts";

export type Tree = Readonly<Record<string, string | Uint8Array>>;

export interface TempDir extends Disposable {
  readonly path: string;
  /** Absolute path of something in it. */
  join(...parts: string[]): string;
}

/** Makes a temp folder holding `tree` (relative path → content); gone when the `using` scope ends. */
export function tempDir(tree: Tree = {}): TempDir {
  const path = mkdtempSync(join(tmpdir(), "cog-comfyui-test-"));
  for (const [name, content] of Object.entries(tree)) {
    mkdirSync(dirname(join(path, name)), { recursive: true });
    writeFileSync(join(path, name), content);
  }
  return {
    path,
    join: (...parts) => join(path, ...parts),
    [Symbol.dispose]: () => removeTree(path),
  };
}
