/** A real ComfyUI for the long tests: COMFYUI_PATH (a source tree) and COMFYUI_PYTHON (a Python with its requirements). */
import { test } from "bun:test";

export interface RealComfy {
  readonly path: string;
  readonly python: string;
  /** The variables that start it. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Importing torch on a slow machine, twice in a test that restarts. */
export const REAL_START_TIMEOUT_MS = 180_000;

/** Registers tests that need one, or one skipped test that says what is missing. */
export function describeReal(what: string, register: (real: RealComfy) => void): void {
  const path = process.env["COMFYUI_PATH"];
  const python = process.env["COMFYUI_PYTHON"];
  if (path === undefined || python === undefined) {
    test.skip(`${what}: skipped, COMFYUI_PATH and COMFYUI_PYTHON are not both set`, () =>
      undefined);
    return;
  }
  register({
    path,
    python,
    env: {
      PATH: process.env["PATH"],
      HOME: process.env["HOME"],
      COMFYUI_PATH: path,
      COMFYUI_PYTHON: python,
      COMFYUI_ENGINE: "real",
      COMFYUI_ARGS: process.env["COMFYUI_ARGS"] ?? "--cpu --preview-method latent2rgb",
    },
  });
}
