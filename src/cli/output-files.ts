/**
 * Where `predict -o` writes, as the `cog` CLI does (pkg/cli/predict.go): one file per output, `NAME.0.ext`, `NAME.1.ext`;
 * a folder takes them as `output.N.ext`; without `-o` they go into the current folder.
 */
import { accessSync, constants, copyFileSync, mkdirSync, statSync } from "node:fs";
import { dirname, extname, join, resolve } from "node:path";
import { ConfigError } from "../platform/errors.ts";

const DEFAULT_NAME = "output";

/** True for an existing folder, and for a path that is spelled like one (`out/`). */
function isFolder(path: string): boolean {
  if (path.endsWith("/")) {
    return true;
  }
  try {
    return statSync(path).isDirectory();
  } catch {
    // Not there, or behind a file: what can't be written is told by ensureWritable.
    return false;
  }
}

/** The path before the counter, without extension, and the extension the user insists on. */
export function outputStem(given: string | undefined): {
  readonly stem: string;
  readonly extension: string;
} {
  const target = given ?? DEFAULT_NAME;
  if (given === undefined && isFolder(target)) {
    throw new ConfigError(
      "PATH_UNWRITABLE",
      `The default output name "${DEFAULT_NAME}" is a folder here`,
      {
        hint: "Name a file or a folder with -o.",
      },
    );
  }
  const path = isFolder(target) ? join(target, DEFAULT_NAME) : target;
  const extension = extname(path);
  return { stem: resolve(extension === "" ? path : path.slice(0, -extension.length)), extension };
}

/**
 * Says now, before anything is computed, that a result could not be written later.
 * @throws ConfigError PATH_UNWRITABLE
 */
export function ensureWritable(given: string | undefined): void {
  const folder = dirname(outputStem(given).stem);
  try {
    mkdirSync(folder, { recursive: true });
    accessSync(folder, constants.W_OK);
  } catch (cause) {
    throw new ConfigError("PATH_UNWRITABLE", `The output folder ${folder} is not writable`, {
      cause,
      hint: "Name a writable place with -o.",
    });
  }
}

/** Copies the outputs to where the user wants them; returns the paths written, in order. */
export function writeOutputs(files: readonly string[], given: string | undefined): string[] {
  const { stem, extension } = outputStem(given);
  return files.map((file, index) => {
    const target = `${stem}.${index}${extension === "" ? extname(file) : extension}`;
    copyFileSync(file, target);
    return target;
  });
}
