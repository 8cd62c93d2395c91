/** Opens a model file as a loader of ComfyUI would: finds it, checks its header, and raises what the real one raises. */
import { closeSync, openSync, readSync } from "node:fs";
import { extname } from "node:path";
import type { EngineFolders } from "./folders.ts";
import { NodeError } from "./node-error.ts";
import type { SafetensorsHeader } from "./safetensors.ts";
import { readSafetensorsHeader } from "./safetensors.ts";

export interface ModelFile {
  readonly path: string;
  /** Undefined for a pickle: its tensors can't be listed without running it. */
  readonly header: SafetensorsHeader | undefined;
}

const SAFETENSORS = new Set([".safetensors", ".sft"]);

function firstBytes(path: string, count: number): Uint8Array {
  const fd = openSync(path, "r");
  try {
    const bytes = new Uint8Array(count);
    return bytes.subarray(0, readSync(fd, bytes, 0, count, 0));
  } finally {
    closeSync(fd);
  }
}

/** What PyTorch says of a pickle that names something beside tensors, or of no pickle at all. */
function unpicklable(operand: number): NodeError {
  return new NodeError(
    "_pickle.UnpicklingError",
    [
      "Weights only load failed. In PyTorch 2.6, we changed the default value of the `weights_only` argument in `torch.load` from `False` to `True`. Re-running `torch.load` with `weights_only` set to `False` will likely succeed, but it can result in arbitrary code execution. Do it only if you got the file from a trusted source.",
      "Please file an issue with the following so that we can make `weights_only=True` compatible with your use case: WeightsUnpickler error: ",
      "",
      `Unsupported operand ${operand}`,
      "",
      "Check the documentation of torch.load to learn more about types accepted by default with weights_only https://pytorch.org/docs/stable/generated/torch.load.html.",
    ].join("\n"),
  );
}

const PICKLE = 0x80;
/** What `torch.save` wrote before it wrote zip files. */
const PICKLE_PROTOCOL = 2;
/** The operation a newer pickle begins with. */
const FRAME = 149;

function checkPickle(path: string): void {
  const [first, second] = firstBytes(path, 4);
  if (first === undefined) {
    throw new NodeError("EOFError", "");
  }
  const isZip = first === 0x50 && second === 0x4b;
  if (!isZip && first !== PICKLE) {
    throw unpicklable(first);
  }
  if (first === PICKLE && second !== undefined && second > PICKLE_PROTOCOL) {
    throw unpicklable(FRAME);
  }
}

/** @throws NodeError as ComfyUI's loaders for a file that isn't there or can't be read. */
export function openModelFile(folders: EngineFolders, category: string, name: string): ModelFile {
  const path = folders.models.locate(category, name);
  if (path === undefined) {
    throw new NodeError(
      "FileNotFoundError",
      `Model in folder '${category}' with filename '${name}' not found.`,
    );
  }
  if (SAFETENSORS.has(extname(path).toLowerCase())) {
    return { path, header: readSafetensorsHeader(path) };
  }
  checkPickle(path);
  return { path, header: undefined };
}
