#!/usr/bin/env bun
/**
 * The model's public contract: its inputs, and the `Predictor` whose `setup` and `predict` read as what happens. Also the
 * composition root and the entry of everything: without a command it is the Cog server, with one the command line.
 */
import { z } from "zod";
import type { GivenWorkflow } from "./comfyui.ts";
import { ComfyUI } from "./comfyui.ts";
import { runMain } from "./src/cli/main.ts";
import { describedInputs } from "./src/cog/described-inputs.ts";
import {
  boolInput,
  choiceInput,
  fileInput,
  intInput,
  secretInput,
  stringInput,
} from "./src/cog/inputs.ts";
import type { CogModel } from "./src/cog/predictor.ts";
import { OutputFile } from "./src/cog/predictor.ts";
import { progressLine, runState } from "./src/comfy/progress-line.ts";
import type { PlacedInputs } from "./src/media/inputs.ts";
import { optimiseOutputs } from "./src/media/optimise.ts";
import { OutputStore } from "./src/media/output-store.ts";
import type { ServedWorkflow } from "./src/media/served.ts";
import { readUploadedWorkflow } from "./src/media/workflow-source.ts";
import type { Config } from "./src/platform/env.ts";
import { fromOperator, readConfig } from "./src/platform/env.ts";
import { EngineError } from "./src/platform/errors.ts";
import { HttpClient } from "./src/platform/http.ts";
import type { Logger } from "./src/platform/log.ts";
import { silentLogger, teeLogger } from "./src/platform/log.ts";
import { sleep } from "./src/platform/retry.ts";
import type { WeightsRequest } from "./src/weights/gate.ts";
import { describePlan, planInstall } from "./src/weights/plan.ts";
import type { InstallJob } from "./src/weights/plan-types.ts";
import { downloadState, progressLines } from "./src/weights/progress.ts";
import { weightsMissing } from "./src/weights/report.ts";
import { proxyOf } from "./src/weights/settings.ts";
import type { Workflow } from "./src/workflow/graph.ts";
import { refusedBeforehand } from "./src/workflow/obstacles.ts";
import { parseWorkflow } from "./src/workflow/parse.ts";
import { WeightsDownloader } from "./weights_downloader.ts";

/** The inputs of a prediction. The first nine are fixed: the original's seven, then the two of the weight check. */
export const PredictInput = z.object({
  workflow_json: stringInput({
    description:
      "Your ComfyUI workflow: JSON text or a URL to it, in API or UI format, or the word input_file when the uploaded file is the workflow. Empty: the preloaded workflow, else an example.",
    default: "",
  }),
  input_file: fileInput({
    description:
      "An image, a video, a sound, or a tar or zip of several: files that the workflow loads.",
  }),
  return_temp_files: boolInput({
    description: "Also return temporary files, such as previews. Useful for debugging.",
    default: false,
  }),
  output_format: choiceInput(["webp", "jpg", "png"], {
    description: "Format of the output images.",
    default: "webp",
  }),
  output_quality: intInput({
    description:
      "Quality of the output images, from 0 to 100. 100 is best, 0 is lowest. PNG loses nothing at any quality.",
    default: 95,
    min: 0,
    max: 100,
  }),
  randomise_seeds: boolInput({
    description: "Give every seed (seed, noise_seed, rand_seed) a random value.",
    default: true,
  }),
  force_reset_cache: boolInput({
    description: "Make every node run again, whatever ComfyUI remembers of earlier runs.",
    default: false,
  }),
  skip_weight_check: boolInput({
    description:
      "Not recommended: run without checking that the weights are there. ComfyUI then fails on its own, later.",
    default: false,
  }),
  download_missing_weights: boolInput({
    description:
      "Download missing weights during this prediction instead of failing at once. Refused where the operator forbids it.",
    default: false,
  }),
  overrides: stringInput({
    description:
      'Values to set in the workflow, as a JSON object: {"6.text": "a cat", "KSampler.seed": 7}, by node id, title or class.',
    default: "",
  }),
  hf_api_token: secretInput({
    description: "Hugging Face token, used for the downloads of this prediction only.",
  }),
  civitai_api_token: secretInput({
    description: "Civitai token, used for the downloads of this prediction only.",
  }),
});
export type PredictInput = z.output<typeof PredictInput>;

/** What stays of them where one workflow is served (`WORKFLOW`): clients send values for it, never graphs. */
const Switches = PredictInput.omit({ workflow_json: true, input_file: true, overrides: true });
type Switches = z.output<typeof Switches>;

/** The inputs of a served workflow: its named ones, then the switches. */
export function servedInputs(served: ServedWorkflow): z.ZodObject {
  const taken = Object.keys(Switches.shape);
  return z.object({ ...describedInputs(served.inputs, taken), ...Switches.shape });
}

/** What a caller may hand over beside the input. */
export interface RunContext {
  readonly signal?: AbortSignal | undefined;
  /** Gets every line that belongs to this run. */
  readonly log?: ((line: string) => void) | undefined;
  /** Gets progress as data: of the run by node, of downloads by weight. */
  readonly progress?: ((state: Record<string, string | number | null>) => void) | undefined;
}

/** What every step of a run gets. */
interface Run {
  readonly signal: AbortSignal | undefined;
  readonly log: Logger;
}

/** A request understood: what runs, and with what. */
interface Asked {
  readonly wanted: Switches;
  readonly workflow: Workflow;
  /** Inputs that the client set itself. */
  readonly set: readonly { readonly nodeId: string; readonly input: string }[];
  readonly inputFile?: string | undefined;
  /** Further local files, which the graph names by their paths. */
  readonly files?: readonly string[];
}

/** Weights that belong together, and what they are for. */
interface PreloadSet {
  readonly title: string;
  readonly jobs: readonly InstallJob[];
}

/** Runs when no workflow is given and none is preloaded: needs no weight and no input. */
const EXAMPLE_WORKFLOW = "examples/api_workflows/blend.json";
/** Reading the tables blocks for some 50 ms; whoever polls since the start is answered first. */
const WARM_UP_DELAY_MS = 20;
/** The `workflow_json` that means "the uploaded file is the workflow". */
const WORKFLOW_IS_INPUT_FILE = "input_file";

export class Predictor implements AsyncDisposable {
  readonly config: Config;
  readonly weights: WeightsDownloader;
  readonly comfyui: ComfyUI;
  readonly #log: Logger;
  #booting: Promise<void> | undefined;
  #served: { readonly workflow: ServedWorkflow; readonly inputs: z.ZodObject } | undefined;

  /** With no argument it takes its settings from the environment. */
  constructor(options: { readonly config?: Config; readonly log?: Logger } = {}) {
    this.config = options.config ?? readConfig();
    this.#log = options.log ?? silentLogger;
    this.weights = new WeightsDownloader({ config: this.config, log: this.#log });
    this.comfyui = new ComfyUI({ config: this.config, log: this.#log, weights: this.weights });
  }

  /** What a prediction takes: from setup on, where `WORKFLOW` is served, that one's named inputs. */
  get inputs(): z.ZodObject {
    return this.#served?.inputs ?? PredictInput;
  }

  /** The workflow of `WORKFLOW`, once setup has read it. */
  get servedWorkflow(): Workflow | undefined {
    return this.#served?.workflow.workflow;
  }

  /**
   * Once, before the first prediction: everything common is fetched and verified while ComfyUI boots. A step that fails
   * ends setup with its reason.
   */
  async setup(weights?: string, context: RunContext = {}): Promise<void> {
    const ending = new AbortController();
    const signals = [ending.signal, ...(context.signal === undefined ? [] : [context.signal])];
    const signal = AbortSignal.any(signals);
    const log = teeLogger(this.#log, context.log);
    const started = performance.now();
    const booting = this.comfyui.start_server(signal).then(() => {
      const seconds = ((performance.now() - started) / 1000).toFixed(1);
      log.info(`ComfyUI (${this.comfyui.engineKind}) answers after ${seconds} s`);
    });
    this.#booting = booting;
    try {
      // The tables are read while ComfyUI boots, after the first health check has had its answer.
      const warming = sleep(WARM_UP_DELAY_MS, signal).then(() => this.comfyui.warm_up());
      await Promise.all([this.preload(weights, { ...context, signal }), booting, warming]);
      await this.serveWorkflow({ ...context, signal });
      await this.runWarmUp({ ...context, signal });
    } catch (error) {
      ending.abort();
      await booting.catch(() => undefined);
      throw error;
    }
  }

  /** The weights part of setup, in the guide's order: user weights, base kit, workflows. */
  async preload(weights?: string, context: RunContext = {}): Promise<void> {
    const { config } = this;
    const userWeights = weights ?? config.COG_WEIGHTS;
    await this.weights.load_manifest(context.signal);
    this.weights.pin_lock();
    if (config.PRELOAD_MODE === "background" && userWeights !== undefined) {
      // What the archives hold, kits included, is known only when they are unpacked.
      this.weights.arrivals.step("Preloading", async (signal) => {
        await this.handle_user_weights(userWeights, { signal });
        await this.preloadKnown({ signal });
      });
      return;
    }
    await this.handle_user_weights(userWeights, context);
    await this.preloadKnown(context);
  }

  /** Runs one workflow. @returns absolute paths of the output files, in node and batch order */
  async predict(
    input: Partial<PredictInput> | Readonly<Record<string, unknown>>,
    context: RunContext = {},
  ): Promise<string[]> {
    const run = { signal: context.signal, log: teeLogger(this.#log, context.log) };
    const asked = await this.understand(input, run);
    const { wanted } = asked;
    using held = this.weights.holds("prediction");
    const checked = await this.comfyui.handle_weights(asked.workflow, {
      ...weightsRequest(wanted),
      ...run,
      hold: held.add,
      onProgress: (progress) => context.progress?.(downloadState(progress)),
    });
    const workflow = this.setSeeds(checked, asked, run.log);
    using placed = await this.handle_input_file(workflow, asked.inputFile, context, asked.files);
    const result = await this.comfyui.run_workflow(
      { ...workflow, graph: placed.graph },
      {
        ...run,
        // As in the original, fixed seeds run everything again; temporary files exist only after a real run.
        resetCache: wanted.force_reset_cache || !wanted.randomise_seeds || wanted.return_temp_files,
        onProgress: (progress) => {
          run.log.info(progressLine(progress));
          context.progress?.(runState(progress));
        },
      },
    );
    const files = await this.comfyui.get_files(result, {
      ...run,
      returnTempFiles: wanted.return_temp_files,
    });
    const { output_format: format, output_quality: quality } = wanted;
    return await optimiseOutputs(files, { ...run, format, quality });
  }

  /** Unpacks the operator's own weights (URL or path of a tar); without one there is nothing to do. */
  async handle_user_weights(weights: string | undefined, context: RunContext = {}): Promise<void> {
    if (weights === undefined || weights.trim() === "") {
      return;
    }
    const log = teeLogger(this.#log, context.log);
    const { signal } = context;
    const { files, kept, unplaced } = await this.weights.install_user_weights(weights, { signal });
    log.info(`User weights: ${files.length} file${files.length === 1 ? "" : "s"} in place`);
    for (const path of kept) {
      log.warn(`User weights: ${path} was there already with other content and was left alone`);
    }
    for (const path of unplaced) {
      log.warn(`User weights: ${path} lies in no model folder of the archive and was left out`);
    }
  }

  /** Fetches the weights of a kit. @throws WeightError KIT_UNKNOWN naming the known kits */
  async preload_base_kit(kitName: string, context: RunContext = {}): Promise<void> {
    await this.install([this.kitSet(kitName)], context);
  }

  /**
   * Fetches the weights of a workflow: path, URL, JSON text or object.
   * @throws WeightError WEIGHTS_MISSING when no source is known for one of them
   */
  async preload_workflow_weights(
    workflowJson: GivenWorkflow,
    context: RunContext = {},
  ): Promise<void> {
    await this.install([await this.workflowSet(workflowJson, context)], context);
  }

  /** Brings the input file, and addresses in the workflow, to ComfyUI. Dispose the result after the run. */
  async handle_input_file(
    workflow: Workflow,
    inputFile: string | undefined,
    context: RunContext = {},
    files: readonly string[] = [],
  ): Promise<PlacedInputs> {
    return await this.comfyui.handle_inputs(workflow, {
      inputFile,
      files,
      signal: context.signal,
      log: teeLogger(this.#log, context.log),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.comfyui[Symbol.asyncDispose]();
  }

  /** Which workflow is to run, with the client's values in it. */
  private async understand(input: Readonly<Record<string, unknown>>, run: Run): Promise<Asked> {
    if (this.#served !== undefined) {
      const { workflow, files, set } = this.#served.workflow.fill(input);
      return { wanted: Switches.parse(input), workflow, files, set };
    }
    const wanted = PredictInput.parse(input);
    const loaded = await this.loadWorkflow(wanted, run);
    const { workflow, applied } = this.comfyui.apply_overrides(loaded, wanted.overrides);
    return { wanted, workflow, set: applied, inputFile: workflowInput(wanted) };
  }

  /** Reads `WORKFLOW` and makes its named inputs those of a prediction, as the running engine knows them. */
  private async serveWorkflow(context: RunContext): Promise<void> {
    const { WORKFLOW: given } = this.config;
    if (given === undefined) {
      return;
    }
    const { signal } = context;
    const options = { trust: "operator", signal } as const;
    // Choices among weights: some have just been installed.
    await this.comfyui.refresh_definitions(signal);
    const workflow = await this.comfyui.load_workflow(fromOperator(given), options);
    const obstacles = this.comfyui.find_obstacles(workflow);
    if (obstacles.some(({ blocks }) => blocks)) {
      throw refusedBeforehand(obstacles);
    }
    const served = this.comfyui.serve_workflow(workflow);
    this.#served = { workflow: served, inputs: servedInputs(served) };
    const log = teeLogger(this.#log, context.log);
    const names = served.inputs.map(({ name }) => name).join(", ");
    if (names === "") {
      log.warn(
        `${given} names no inputs: only the switches can be set. Let \`cog-comfyui workflow expose\` write some.`,
      );
    }
    log.info(`Serving ${given}${names === "" ? "" : ` with the inputs ${names}`}`);
  }

  private async loadWorkflow(wanted: PredictInput, { signal, log }: Run): Promise<Workflow> {
    if (wanted.workflow_json === WORKFLOW_IS_INPUT_FILE) {
      return parseWorkflow(await readUploadedWorkflow(wanted.input_file), {
        definitions: this.comfyui.definitions,
      });
    }
    if (wanted.workflow_json.trim() !== "") {
      return await this.comfyui.load_workflow(wanted.workflow_json, { signal });
    }
    const standing = this.config.PRELOAD_WORKFLOW[0] ?? EXAMPLE_WORKFLOW;
    log.info(`No workflow_json was given: running ${standing}`);
    const path = fromOperator(standing);
    return await this.comfyui.load_workflow(path, { trust: "operator", signal });
  }

  /** Runs `WARMUP_WORKFLOW` once, so that the first request meets loaded models. */
  private async runWarmUp(context: RunContext): Promise<void> {
    const { WARMUP_WORKFLOW: given } = this.config;
    if (given === undefined) {
      return;
    }
    const log = teeLogger(this.#log, context.log);
    const options = { trust: "operator", signal: context.signal } as const;
    const loaded = await this.comfyui.load_workflow(fromOperator(given), options);
    const workflow = await this.comfyui.handle_weights(loaded, { signal: context.signal, log });
    const result = await this.comfyui.run_workflow(workflow, { signal: context.signal, log });
    this.comfyui.cleanup(await this.comfyui.get_files(result, { returnTempFiles: true, log }));
    log.info(`Warmed up with ${given} in ${result.executionMs ?? "?"} ms`);
  }

  /** Random seeds where they are wanted, but never in place of one that the caller set. */
  private setSeeds(workflow: Workflow, { wanted, set }: Asked, log: Logger): Workflow {
    if (!wanted.randomise_seeds) {
      return workflow;
    }
    const { workflow: seeded, used } = this.comfyui.randomise_seeds(workflow, set);
    for (const { nodeId, input, seed } of used) {
      log.info(`Random seed: node ${nodeId} ${input}=${seed}`);
    }
    return seeded;
  }

  private kitSet(kitName: string): PreloadSet {
    return { title: `Kit ${kitName}`, jobs: this.weights.kit_jobs(kitName) };
  }

  /** @throws WeightError WEIGHTS_MISSING when no source is known for one of its weights */
  private async workflowSet(workflowJson: GivenWorkflow, context: RunContext): Promise<PreloadSet> {
    const { signal } = context;
    const given = typeof workflowJson === "string" ? fromOperator(workflowJson) : workflowJson;
    const options = { trust: "operator", signal } as const;
    const looked = await this.comfyui.load_workflow(given, { ...options, allowUnnamed: true });
    if (looked.unnamed !== undefined) {
      // Only the engine knows the names of their values.
      await this.#booting;
    }
    const workflow =
      looked.unnamed === undefined ? looked : await this.comfyui.load_workflow(given, options);
    const validation = this.comfyui.check_weights(workflow, "operator");
    const sources = validation.missing.map((one) => this.weights.resolve(one, "operator"));
    if (sources.some(({ kind }) => kind !== "jobs")) {
      throw weightsMissing(validation, this.weights.manifest);
    }
    const missing = sources.flatMap((source) => (source.kind === "jobs" ? source.jobs : []));
    // What is there is held against the lock file too; nothing is asked of any source for it.
    const jobs = [...missing, ...this.weights.locked_jobs(validation.present)];
    for (const { file } of validation.present) {
      this.weights.pin([file], "preloaded");
    }
    const name = typeof workflowJson === "string" ? workflowJson : "workflow";
    return { title: `Preloading ${name.length > 200 ? "workflow" : name}`, jobs };
  }

  /** Kits and workflows as one plan: waited for, on their way, or only noted, as `PRELOAD_MODE` says. */
  private async preloadKnown(context: RunContext): Promise<void> {
    const { BASE_MODEL_KIT, PRELOAD_WORKFLOW, WORKFLOW, PRELOAD_MODE } = this.config;
    const workflows = WORKFLOW === undefined ? PRELOAD_WORKFLOW : [WORKFLOW, ...PRELOAD_WORKFLOW];
    const sets = BASE_MODEL_KIT.map((kit) => this.kitSet(kit));
    for (const workflow of workflows) {
      sets.push(await this.workflowSet(workflow, context));
    }
    await this.install(sets, context);
    if (PRELOAD_MODE === "background") {
      this.weights.arrivals.start();
    }
  }

  /** Brings sets of weights, all at once: what two of them need is fetched once. */
  private async install(sets: readonly PreloadSet[], context: RunContext): Promise<void> {
    const log = teeLogger(this.#log, context.log);
    const { arrivals } = this.weights;
    const jobs = sets.flatMap((set) => set.jobs);
    if (this.config.PRELOAD_MODE !== "wait") {
      arrivals.expect(jobs);
      const when = this.config.PRELOAD_MODE === "lazy" ? "at their first use" : "in the background";
      for (const { title, jobs: own } of sets) {
        const count = arrivals.outstanding(own).length;
        log.info(`${title}: ${own.length - count} there, ${count} arrive ${when}`);
      }
      return;
    }
    const plan = await planInstall(jobs, { roots: this.config.modelsDirs });
    if (plan.jobs.length > 0) {
      log.info(`Before the first request:\n${describePlan(plan)}`);
    }
    const installed = await this.weights.install(jobs, {
      signal: context.signal,
      onProgress: progressLines((line) => log.info(line)),
    });
    arrivals.arrived(jobs, installed);
    for (const { title, jobs: own } of sets) {
      const names = new Set(own.map(({ name }) => name));
      const mine = installed.filter(({ name }) => names.has(name));
      const fetched = mine.filter((weight) => weight.fetched).length;
      log.info(
        mine.length === 0
          ? `${title}: everything is there`
          : `${title}: ${fetched} fetched and verified, ${mine.length - fetched} were there`,
      );
    }
  }
}

/** The predictor as the Cog protocol sees it: a list of files, removed once they are on their way. */
export function cogModel(predictor: Predictor): CogModel {
  const { config } = predictor;
  const http = new HttpClient({ proxy: proxyOf(config) });
  const store =
    config.OUTPUT_STORE_URL === undefined
      ? undefined
      : new OutputStore({ url: config.OUTPUT_STORE_URL, env: config.env, http });
  return {
    get inputs() {
      return predictor.inputs;
    },
    output: { type: "array", items: { type: "string", format: "uri" } },
    streaming: config.PREDICTION_STREAMING,
    setup: ({ signal, log }) => predictor.setup(undefined, { signal, log }),
    predict: async function* (input, { signal, log, progress }) {
      const files = await predictor.predict(input, { signal, log, progress });
      try {
        yield* store === undefined
          ? files.map((file) => new OutputFile(file))
          : await store.put(files, crypto.randomUUID(), signal);
      } finally {
        predictor.comfyui.cleanup(files);
      }
    },
    healthcheck: () => {
      const { unhealthy } = predictor.comfyui;
      if (unhealthy !== undefined) {
        throw new EngineError("ENGINE_UNAVAILABLE", unhealthy);
      }
      return Promise.resolve(true);
    },
    dispose: async () => {
      await predictor[Symbol.asyncDispose]();
      await http.close();
    },
  };
}

function weightsRequest(wanted: Switches): WeightsRequest {
  return {
    skipCheck: wanted.skip_weight_check,
    downloadMissing: wanted.download_missing_weights,
    tokens: { huggingFace: wanted.hf_api_token, civitai: wanted.civitai_api_token },
  };
}

/** The uploaded file, unless it was the workflow itself. */
function workflowInput(wanted: PredictInput): string | undefined {
  return wanted.workflow_json === WORKFLOW_IS_INPUT_FILE ? undefined : wanted.input_file;
}

if (import.meta.main) {
  // No `await` here: what the image compiles can't have one outside of functions.
  void runMain(process.argv.slice(2), {
    inputs: PredictInput,
    makePredictor: (config, log) => new Predictor({ config, log }),
    makeModel: cogModel,
  }).then((code) => {
    process.exitCode = code;
  });
}
