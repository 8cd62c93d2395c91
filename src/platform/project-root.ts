/** Where the program lies. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";

/**
 * The folder of package.json: what relative paths in variables are relative to. Looked for upwards, since in the image
 * this module is part of the compiled `predict.ts` (Dockerfile).
 */
export const PROJECT_ROOT = folderWith("package.json", dirname(import.meta.path));

function folderWith(name: string, from: string): string {
  const above = dirname(from);
  return above === from || existsSync(join(from, name)) ? from : folderWith(name, above);
}
