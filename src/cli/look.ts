/**
 * What `workflow …` and `weights check` share: a workflow read with its values set, judged by what a running ComfyUI
 * knows where there is one (`COMFYUI_URL`, `--engine`), else by the committed tables.
 */
import { writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { ConfigError, EngineError, messageOf } from "../platform/errors.ts";
import { makeFolder } from "../platform/files.ts";
import type { Workflow } from "../workflow/graph.ts";
import { applyOverrides, readSetting } from "../workflow/overrides.ts";
import type { Invocation, OptionSpec, Terminal } from "./command.ts";
import type { CliServices, PredictorPort } from "./services.ts";
import { fromCaller, readyWeights } from "./targets.ts";

export const ENGINE_OPTION: Readonly<Record<string, OptionSpec>> = {
  engine: {
    type: "boolean",
    help: "start the configured engine and judge by what it knows (a COMFYUI_URL is always asked)",
  },
};

export const SET_OPTION: Readonly<Record<string, OptionSpec>> = {
  set: {
    type: "string",
    multiple: true,
    value: "name=value",
    help: "set a value first, as the input `overrides` does: --set 4.ckpt_name=x.safetensors",
  },
};

export const OUTPUT_OPTION: Readonly<Record<string, OptionSpec>> = {
  output: { type: "string", short: "o", value: "FILE", help: "write it there" },
};

export interface Looked {
  readonly predictor: PredictorPort;
  readonly workflow: Workflow;
}

/** Reads the workflow that the first word names. `isStrict`: it is to run, so every value needs its name. */
export async function lookAt(
  { words: [word = ""], flag, texts }: Pick<Invocation, "words" | "flag" | "texts">,
  services: CliServices,
  { err, isStrict = false }: Pick<Terminal, "err"> & { readonly isStrict?: boolean },
): Promise<Looked> {
  const predictor = await readyWeights(services);
  await askEngine(predictor, services, { err, isWanted: flag("engine") });
  const { comfyui } = predictor;
  const workflow = await comfyui.load_workflow(fromCaller(word), {
    trust: "operator",
    signal: services.signal,
    allowUnnamed: !isStrict,
  });
  const values = Object.fromEntries(texts("set").map(readSetting));
  const { definitions } = comfyui;
  const { graph } = applyOverrides(workflow, values, { definitions });
  return { predictor, workflow: { ...workflow, graph } };
}

/** An engine that was asked for must answer; one that is only configured may be down. */
async function askEngine(
  { comfyui }: PredictorPort,
  { config, signal }: CliServices,
  { err, isWanted }: { readonly err: Terminal["err"]; readonly isWanted: boolean },
): Promise<void> {
  const isRemote = config.COMFYUI_URL !== undefined && config.COMFYUI_ENGINE !== "embedded";
  if (!isWanted && !isRemote) {
    return;
  }
  try {
    await comfyui.start_server(signal);
  } catch (error) {
    if (isWanted || !(error instanceof EngineError)) {
      throw error;
    }
    err(`Judged without an engine, by the tables of this program: ${messageOf(error)}\n`);
  }
}

/** Writes a document where `-o` says, else to standard output. @returns the path written */
export function deliver(
  text: string,
  target: string | undefined,
  { out, err }: Pick<Terminal, "out" | "err">,
): string | undefined {
  if (target === undefined) {
    out(text);
    return undefined;
  }
  const path = resolve(target);
  try {
    makeFolder(dirname(path));
    writeFileSync(path, text);
  } catch (cause) {
    throw new ConfigError("PATH_UNWRITABLE", `${path} can't be written: ${messageOf(cause)}`, {
      cause,
      hint: "Name a writable file with -o.",
    });
  }
  err(`Written to ${path}\n`);
  return path;
}
