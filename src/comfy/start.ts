/** Chooses the engine (`COMFYUI_ENGINE`, `COMFYUI_URL`, `COMFYUI_PATH`) and starts it. */
import type { Config } from "../platform/env.ts";
import { fromProject } from "../platform/env.ts";
import { EngineError } from "../platform/errors.ts";
import { HttpClient } from "../platform/http.ts";
import type { Logger } from "../platform/log.ts";
import type { RetryPolicy } from "../platform/retry.ts";
import { childEnv } from "./child-env.ts";
import type { Engine } from "./engine.ts";
import type { Installation } from "./launch.ts";
import { embeddedInstallation, probeFlags, realInstallation } from "./launch.ts";
import type { ProcessTimes } from "./process.ts";
import { prepareFolders, removeFolders } from "./process.ts";
import { RemoteEngine } from "./remote.ts";
import { SupervisedEngine } from "./supervisor.ts";
import { makeWorkFolder, sweepWorkFolders } from "./work-folder.ts";

export interface StartEngineOptions {
  readonly config: Config;
  readonly log: Logger;
  /** Folders the engine reads models from; those of the configuration unless given. */
  readonly modelsDirs?: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly times?: Partial<ProcessTimes> | undefined;
  readonly restart?: Partial<RetryPolicy> | undefined;
}

/** Which engine the configuration asks for. */
export type EngineChoice =
  | { readonly kind: "remote"; readonly url: string }
  | { readonly kind: "real"; readonly path: string }
  | { readonly kind: "embedded"; readonly isFallback: boolean };

/** @throws EngineError ENGINE_UNAVAILABLE when `real` is asked for and no place is given */
export function chooseEngine(config: Config): EngineChoice {
  if (config.COMFYUI_ENGINE === "embedded") {
    return { kind: "embedded", isFallback: false };
  }
  if (config.COMFYUI_URL !== undefined) {
    return { kind: "remote", url: config.COMFYUI_URL };
  }
  if (config.COMFYUI_PATH !== undefined) {
    return { kind: "real", path: config.COMFYUI_PATH };
  }
  if (config.COMFYUI_ENGINE === "real") {
    throw new EngineError(
      "ENGINE_UNAVAILABLE",
      "COMFYUI_ENGINE=real, but neither COMFYUI_PATH nor COMFYUI_URL says where ComfyUI is",
      {
        hint: "Set COMFYUI_PATH to the folder of a ComfyUI, COMFYUI_URL to one that runs, or COMFYUI_ENGINE=embedded.",
      },
    );
  }
  return { kind: "embedded", isFallback: true };
}

/**
 * Starts (or connects to) the engine and resolves when it answers.
 * @throws EngineError ENGINE_UNAVAILABLE saying what to set; ConfigError; CanceledError
 */
export async function startEngine(options: StartEngineOptions): Promise<Engine> {
  const { config, log, signal } = options;
  const choice = chooseEngine(config);
  if (choice.kind === "remote") {
    return await RemoteEngine.connect(choice.url, new HttpClient(), signal);
  }
  if (choice.kind === "embedded") {
    announceEmbedded(log, choice.isFallback);
    return await startOwn(options, embeddedInstallation());
  }
  return await startOwn(options, realInstallation(choice.path, config.COMFYUI_PYTHON));
}

function announceEmbedded(log: Logger, isFallback: boolean): void {
  log.info(
    "Engine: embedded. It runs ComfyUI's weight-free image nodes and small upscale networks, no diffusion model.",
  );
  if (isFallback) {
    log.info("Set COMFYUI_PATH to the folder of a ComfyUI to run everything.");
  }
}

async function startOwn(options: StartEngineOptions, installation: Installation): Promise<Engine> {
  const { config, log } = options;
  const env = childEnv(config.env, {
    offline: config.COMFYUI_OFFLINE,
    pass: config.COMFYUI_ENV_PASS,
  });
  const swept = sweepWorkFolders(config.workDir);
  if (swept > 0) {
    log.info(`Removed what ${swept} killed process(es) had left in ${config.workDir}`);
  }
  const flags = installation.kind === "real" ? await probeFlags(installation, env) : undefined;
  const root = makeWorkFolder(config.workDir);
  const http = new HttpClient();
  const startTimeoutMs =
    config.COMFYUI_START_TIMEOUT === undefined
      ? {}
      : { startTimeoutMs: config.COMFYUI_START_TIMEOUT * 1000 };
  try {
    return await SupervisedEngine.start({
      kind: installation.kind,
      root,
      http,
      log,
      restart: options.restart,
      process: {
        installation,
        flags,
        folders: prepareFolders(
          root,
          options.modelsDirs ?? config.modelsDirs,
          config.COMFYUI_EXTRA_MODEL_PATHS.map(fromProject),
        ),
        userArguments: config.COMFYUI_ARGS,
        env,
        http,
        log,
        times: { ...startTimeoutMs, ...options.times },
        signal: options.signal,
      },
    });
  } catch (error) {
    await http.close();
    removeFolders(root);
    throw error;
  }
}
