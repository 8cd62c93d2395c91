/**
 * The files that a run reported, as local paths in node and batch order. A reported file that isn't there is an error,
 * and so is a result without any file: nothing is lost in silence.
 */
import { existsSync, realpathSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { EngineError } from "../platform/errors.ts";
import { isInside, makeFolder, removeTree } from "../platform/files.ts";
import type { Logger } from "../platform/log.ts";
import { formatSize } from "../platform/size.ts";
import type { EngineDirs, EngineFiles, ReportedFile } from "../workflow/engine-files.ts";

/** What a run reported; the part of its result that matters here. */
export interface ReportedResult {
  readonly files: readonly ReportedFile[];
  readonly texts: readonly { readonly nodeId: string; readonly text: string }[];
}

export interface CollectOptions {
  /** Also previews and other temporary files. */
  readonly returnTempFiles: boolean;
  /** Folder for what has to be fetched or written: files of an engine elsewhere, texts. */
  readonly folder: string;
  /** What the files may add up to. */
  readonly maxBytes?: number | undefined;
  readonly log: Logger;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Absolute paths of the run's output files.
 * @throws EngineError OUTPUT_MISSING with the reason when a reported file is missing, or when there is none at all;
 *   OUTPUT_TOO_LARGE, with the files removed
 */
export async function collectOutputs(
  engine: EngineFiles,
  result: ReportedResult,
  options: CollectOptions,
): Promise<string[]> {
  const wanted = result.files.filter(
    ({ type }) => type === "output" || (type === "temp" && options.returnTempFiles),
  );
  const paths: string[] = [];
  const limit = options.maxBytes ?? Number.POSITIVE_INFINITY;
  let bytes = 0;
  for (const file of wanted) {
    options.signal?.throwIfAborted();
    const path =
      engine.dirs === undefined
        ? await fetched(engine, file, { ...options, maxBytes: limit - bytes }, paths.length)
        : localPath(engine.dirs, file);
    paths.push(path);
    bytes += statSync(path).size;
  }
  if (bytes > limit) {
    for (const path of paths) {
      rmSync(path, { force: true });
    }
    throw new EngineError(
      "OUTPUT_TOO_LARGE",
      `The run made ${paths.length} file(s) of ${formatSize(bytes)} together; a prediction may return ${formatSize(limit)}`,
      { hint: "Make fewer or smaller files, or raise OUTPUT_MAX_BYTES." },
    );
  }
  if (paths.length === 0 && result.texts.length > 0) {
    return writeTexts(result.texts, options.folder);
  }
  if (paths.length === 0) {
    throw noOutput(result);
  }
  return paths;
}

function localPath(dirs: EngineDirs, file: ReportedFile): string {
  const root = dirs[file.type];
  const path = join(root, file.subfolder, file.filename);
  if (!existsSync(path)) {
    throw new EngineError(
      "OUTPUT_MISSING",
      `ComfyUI reported ${describe(file)}, but it isn't there`,
      { hint: "Another run or a custom node removed it; run the workflow again." },
    );
  }
  // A link, or a name with dots, must not hand out other files of this machine.
  if (!isInside(realpathSync(root), realpathSync(path)) || !statSync(path).isFile()) {
    throw new EngineError(
      "OUTPUT_UNREADABLE",
      `ComfyUI reported ${describe(file)}, which is no file inside its ${file.type} folder`,
    );
  }
  return path;
}

async function fetched(
  engine: EngineFiles,
  file: ReportedFile,
  { folder, maxBytes, signal }: CollectOptions,
  index: number,
): Promise<string> {
  makeFolder(folder);
  // Two sub-folders may hold the same name.
  const target = join(folder, String(index).padStart(3, "0"), basename(file.filename));
  makeFolder(join(target, ".."));
  try {
    await engine.fetchFile(file, target, { maxBytes, signal });
  } catch (error) {
    // Those fetched before it are copies: nobody will ask for them now.
    removeTree(folder);
    throw error;
  }
  return target;
}

function describe({ nodeId, subfolder, filename }: ReportedFile): string {
  return `${subfolder === "" ? "" : `${subfolder}/`}${filename} (node ${nodeId})`;
}

/** A workflow whose only result is text still has a result. */
function writeTexts(texts: ReportedResult["texts"], folder: string): string[] {
  makeFolder(folder);
  return texts.map(({ nodeId, text }, index) => {
    const name = `text_${nodeId.replace(/[^A-Za-z0-9_-]/g, "_")}_${String(index + 1).padStart(5, "0")}.txt`;
    const path = join(folder, name);
    writeFileSync(path, text);
    return path;
  });
}

function noOutput({ files }: ReportedResult): EngineError {
  const temporary = files.filter(({ type }) => type === "temp");
  if (temporary.length > 0) {
    const nodes = [...new Set(temporary.map(({ nodeId }) => nodeId))].join(", ");
    return new EngineError(
      "OUTPUT_MISSING",
      `The workflow only made ${temporary.length} temporary file(s) (node ${nodes}), which are not returned`,
      { hint: "Set return_temp_files, or end the workflow in a save node such as SaveImage." },
    );
  }
  return new EngineError("OUTPUT_MISSING", "The workflow ran, but no node reported a file", {
    hint: "End it in a node that saves, such as SaveImage. Nodes that save models report nothing.",
  });
}
