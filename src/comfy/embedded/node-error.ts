/** What a node throws: an exception as ComfyUI would name it, and the stop that an interrupt causes. */
import type { ErrorFacts } from "../../platform/errors.ts";
import { CanceledError, EngineError } from "../../platform/errors.ts";

/** A failure inside a node; `exceptionType` is the Python name that clients of ComfyUI classify by. */
export class NodeError extends EngineError {
  readonly exceptionType: string;

  constructor(exceptionType: string, message: string, facts: ErrorFacts = {}) {
    super(
      exceptionType.endsWith("OutOfMemoryError") ? "OUT_OF_MEMORY" : "NODE_FAILED",
      message,
      facts,
    );
    this.exceptionType = exceptionType;
  }
}

/** Raised inside a running node once its prompt is interrupted. */
export class NodeInterrupted extends CanceledError {}

/** The exception of everything that only a real ComfyUI can compute. */
export const UNSUPPORTED_EXCEPTION = "cog_comfyui.EmbeddedEngineError";

/** What a node raises that the embedded engine knows but can't compute. */
export function needsRealComfy(what: string): NodeError {
  const hint =
    "Install ComfyUI and set COMFYUI_PATH to its folder (or COMFYUI_URL to a running one), then run again.";
  return new NodeError(
    UNSUPPORTED_EXCEPTION,
    `${what} The embedded engine has no diffusion models: it runs image nodes and RealESRGAN-Compact upscalers. ${hint}`,
    { hint },
  );
}
