/** The whole program in a temp folder: settings with the embedded engine, models of its own, an origin to fetch from. */

import type { Origin, OriginFile } from "../../scripts/demo-origin.ts";
import { originFile, serveOrigin } from "../../scripts/demo-origin.ts";
import { tinyUpscaler } from "../../scripts/tiny-upscaler.ts";
import type { Config } from "../../src/platform/env.ts";
import { parseEnv } from "../../src/platform/env.ts";
import type { Logger } from "../../src/platform/log.ts";
import { createLogger } from "../../src/platform/log.ts";
import type { TempDir } from "./temp-dir.ts";

export const UPSCALER_2X = "tiny-compact-2x.safetensors";
export const UPSCALER_4X = "tiny-compact-4x.safetensors";

/** Settings that touch nothing outside of `dir`. */
export function testConfig(dir: TempDir, env: Readonly<Record<string, string>> = {}): Config {
  return parseEnv({
    COMFYUI_ENGINE: "embedded",
    COMFYUI_MODELS_DIR: dir.join("models"),
    WORK_DIR: dir.join("work"),
    WEIGHTS_MIN_FREE_BYTES: "1MB",
    PATH: process.env["PATH"] ?? "",
    HOME: dir.path,
    ...env,
  });
}

/** A log that is kept. */
export function keptLog(): { readonly log: Logger; readonly lines: string[] } {
  const lines: string[] = [];
  const log = createLogger({ level: "debug", format: "plain", write: (line) => lines.push(line) });
  return { log, lines };
}

export interface WeightOrigin extends AsyncDisposable {
  readonly origin: Origin;
  readonly files: readonly OriginFile[];
  /** The manifest of what it serves, as a document. */
  readonly manifest: Readonly<Record<string, unknown>>;
}

/** An origin that serves the two tiny upscalers, and the manifest that names them. */
export function weightOrigin(extra: Readonly<Record<string, unknown>> = {}): WeightOrigin {
  const files = [
    originFile(UPSCALER_2X, tinyUpscaler(2)),
    originFile(UPSCALER_4X, tinyUpscaler(4)),
  ];
  const origin = serveOrigin(files);
  const manifest = {
    version: 2,
    weights: files.map(({ name, bytes, sha256 }) => ({
      name,
      category: "upscale_models",
      urls: [origin.urlOf(name)],
      size: bytes.length,
      sha256,
    })),
    kits: { tiny: [UPSCALER_2X] },
    ...extra,
  };
  return { origin, files, manifest, [Symbol.asyncDispose]: () => origin[Symbol.asyncDispose]() };
}

/** `code` and `message` of what a promise is rejected with; fails the test when it isn't. */
export async function rejection(
  promise: Promise<unknown>,
): Promise<{ code: unknown; message: string; hint: unknown; details: unknown }> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof Error) {
      const own = error as Error & { code?: unknown; hint?: unknown; details?: unknown };
      return { code: own.code, message: error.message, hint: own.hint, details: own.details };
    }
    throw error;
  }
  throw new Error("it was not rejected");
}
