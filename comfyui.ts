/**
 * `ComfyUI`: one ComfyUI and everything a workflow needs of it, method for method the original's `comfyui.py`. Each
 * method says what happens; how is in `src/workflow`, `src/weights`, `src/media` and `src/comfy`.
 */
import { join } from "node:path";
import type { Engine, RunProgress, RunResult } from "./src/comfy/engine.ts";
import { importFailures } from "./src/comfy/import-failures.ts";
import { MemoryPolicy } from "./src/comfy/memory.ts";
import { prefixOutputs } from "./src/comfy/prefix.ts";
import { runWorkflow } from "./src/comfy/run.ts";
import { startEngine } from "./src/comfy/start.ts";
import { discardFiles, discardTemporary } from "./src/media/discard.ts";
import type { PlacedInputs } from "./src/media/inputs.ts";
import { placeInputs } from "./src/media/inputs.ts";
import { collectOutputs } from "./src/media/outputs.ts";
import { ServedWorkflow } from "./src/media/served.ts";
import { InputShelf } from "./src/media/shelf.ts";
import { readWorkflowSource } from "./src/media/workflow-source.ts";
import type { Config } from "./src/platform/env.ts";
import { readConfig } from "./src/platform/env.ts";
import { EngineError } from "./src/platform/errors.ts";
import { removeTree } from "./src/platform/files.ts";
import { AddressGuard } from "./src/platform/guard.ts";
import { HttpClient } from "./src/platform/http.ts";
import type { JsonObject } from "./src/platform/json.ts";
import type { Logger } from "./src/platform/log.ts";
import { silentLogger } from "./src/platform/log.ts";
import { extractWeights, weightNames } from "./src/weights/extract.ts";
import type { WeightsRequest } from "./src/weights/gate.ts";
import { WeightGate } from "./src/weights/gate.ts";
import type { Trust } from "./src/weights/plan-types.ts";
import type { Validation, WeightRef } from "./src/weights/refs.ts";
import { proxyOf } from "./src/weights/settings.ts";
import { describeSuspects, examineNode } from "./src/weights/suspects.ts";
import { NodeDefinitions } from "./src/workflow/definitions.ts";
import type { UsedSeed } from "./src/workflow/edits.ts";
import { randomiseSeeds } from "./src/workflow/edits.ts";
import type { Workflow } from "./src/workflow/graph.ts";
import type { ImportFailure, Obstacle } from "./src/workflow/obstacles.ts";
import { findObstacles } from "./src/workflow/obstacles.ts";
import type { AppliedOverride } from "./src/workflow/overrides.ts";
import { applyOverrides, readOverrides } from "./src/workflow/overrides.ts";
import { parseWorkflow } from "./src/workflow/parse.ts";
import { WeightsDownloader } from "./weights_downloader.ts";

export interface ComfyUIOptions {
  readonly config?: Config | undefined;
  readonly log?: Logger | undefined;
  readonly weights?: WeightsDownloader | undefined;
}

/** A workflow as callers may give it: read already, an object, or text. */
export type GivenWorkflow = Workflow | JsonObject | string;

/** What one run needs beside its workflow. */
export interface RunRequest {
  readonly signal?: AbortSignal | undefined;
  readonly log?: Logger | undefined;
  readonly onProgress?: ((progress: RunProgress) => void) | undefined;
  readonly resetCache?: boolean;
}

export class ComfyUI implements AsyncDisposable {
  readonly config: Config;
  readonly weights: WeightsDownloader;
  readonly #log: Logger;
  /** For what a client names. */
  readonly #clientHttp: HttpClient;
  /** For what the operator names. */
  readonly #operatorHttp: HttpClient;
  readonly #memory: MemoryPolicy;
  readonly #gate: WeightGate;
  #engine: Engine | undefined;
  #shelf: InputShelf | undefined;
  #definitions: NodeDefinitions | undefined;
  #importFailures: readonly ImportFailure[] = [];
  /** Address of the engine that told the definitions: another one after a restart. */
  #toldBy: string | undefined;

  /** With no argument it takes its settings from the environment. */
  constructor(options: ComfyUIOptions = {}) {
    this.config = options.config ?? readConfig();
    this.#log = options.log ?? silentLogger;
    this.weights =
      options.weights ?? new WeightsDownloader({ config: this.config, log: this.#log });
    this.#memory = new MemoryPolicy(this.config.COMFYUI_FREE_AFTER);
    this.#gate = new WeightGate({
      weights: this.weights,
      policy: this.config.WEIGHTS_POLICY,
      maxBytes: this.config.WEIGHTS_REQUEST_MAX_BYTES,
      log: this.#log,
      check: (workflow) => this.check_weights(workflow),
      obstacles: (workflow, signal) => this.obstaclesNow(workflow, signal),
    });
    const proxy = proxyOf(this.config);
    this.#clientHttp = new HttpClient({
      guard: new AddressGuard(this.config.ALLOW_PRIVATE_NETWORK),
      proxy,
    });
    this.#operatorHttp = new HttpClient({ proxy });
  }

  /** The engine's classes once it runs, ComfyUI's own from the committed table until then. */
  get definitions(): NodeDefinitions {
    return this.#definitions ?? NodeDefinitions.core();
  }

  /** Why the engine is unhealthy; undefined while all is well. */
  get unhealthy(): string | undefined {
    return this.#engine?.unhealthy;
  }

  get engineKind(): Engine["kind"] | undefined {
    return this.#engine?.kind;
  }

  /** Starts the engine, or connects to one elsewhere, and learns what it knows. @throws EngineError */
  async start_server(signal?: AbortSignal): Promise<void> {
    const engine = await startEngine({
      config: this.config,
      log: this.#log.child("comfyui"),
      signal,
    });
    this.#engine = engine;
    this.#shelf = new InputShelf(engine);
    await this.learn(engine, signal);
  }

  /** Asks the running engine again what it knows: files that were installed meanwhile are among its choices then. */
  async refresh_definitions(signal?: AbortSignal): Promise<void> {
    await this.learn(this.requireEngine(), signal);
  }

  /** Reads the tables that every request needs, so that the first one does not pay for them. */
  warm_up(): void {
    const nothing: Workflow = parseWorkflow({ "1": { class_type: "SaveImage", inputs: {} } });
    this.check_weights({ ...nothing, requiredWeights: ["warm-up.safetensors"] });
  }

  is_server_running(): boolean {
    return this.#engine !== undefined && this.#engine.unhealthy === undefined;
  }

  /**
   * Reads a workflow in any form: text, URL, data URL, object; a path only where the operator gives it.
   * @throws InputError WORKFLOW_INVALID, WORKFLOW_UNREADABLE, FETCH_FAILED, FETCH_REFUSED
   */
  async load_workflow(
    given: GivenWorkflow,
    options: { trust?: Trust; signal?: AbortSignal | undefined; allowUnnamed?: boolean } = {},
  ): Promise<Workflow> {
    if (isWorkflow(given)) {
      return given;
    }
    const { allowUnnamed } = options;
    const isOperator = options.trust === "operator";
    const source =
      typeof given === "string"
        ? await readWorkflowSource(given, {
            http: isOperator ? this.#operatorHttp : this.#clientHttp,
            allowPaths: isOperator,
            signal: options.signal,
          })
        : given;
    return parseWorkflow(source, { definitions: this.#definitions, allowUnnamed });
  }

  /** The weights a workflow needs: as it spells them, in node order, once each. */
  extract_required_weights(workflow: GivenWorkflow): string[] {
    return weightNames(this.find_weights(asWorkflow(workflow)));
  }

  /** The same with node, input, folder and reason. */
  find_weights(workflow: Workflow): WeightRef[] {
    return extractWeights(workflow, {
      definitions: this.#definitions,
      categoriesHolding: (choices) => this.weights.folders.categoriesHolding(choices),
    });
  }

  /** `[all_exist, missing]` for a workflow. Local: no network, a stat per file, integrity included. */
  validate_weights_exist(workflow: GivenWorkflow, skipCheck = false): [boolean, string[]] {
    if (skipCheck) {
      return [true, []];
    }
    const { missing } = this.check_weights(asWorkflow(workflow));
    return [missing.length === 0, missing.map(({ ref }) => ref.name)];
  }

  /** The same as a full report: what is there, missing, broken, uncertain, ignored. */
  check_weights(workflow: Workflow, trust: Trust = "request"): Validation {
    return this.weights.validate(this.find_weights(workflow), {
      ignore: workflow.ignoredWeights,
      trust,
    });
  }

  /**
   * What stands in the way of a run beside weights: classes that aren't there with their packs, what ComfyUI would
   * refuse, nodes that call paid services. Before an engine runs, only what its file tells; nothing of it blocks.
   */
  find_obstacles(workflow: Workflow, refs = this.find_weights(workflow)): Obstacle[] {
    const named = new Set(refs.map(({ nodeId, input }) => `${nodeId}\n${input}`));
    return findObstacles(workflow, {
      definitions: this.#definitions,
      engine: this.#engine && { kind: this.#engine.kind, importFailures: this.#importFailures },
      isWeight: (nodeId, input) => named.has(`${nodeId}\n${input}`),
    });
  }

  /** A workflow as an API of its own: its named inputs, as the running engine knows them. */
  serve_workflow(workflow: Workflow): ServedWorkflow {
    return new ServedWorkflow(workflow, {
      definitions: this.#definitions,
      dirs: this.#engine?.dirs,
    });
  }

  weight_exists(name: string): boolean {
    return this.weights.weight_exists(name);
  }

  /**
   * Makes sure that everything is there, and spells names as the engine lists them. Downloads only where the operator's
   * policy and the request say so.
   * @throws WeightError WEIGHTS_MISSING with one report of everything that is missing, and of what ComfyUI would refuse;
   *   EngineError PROMPT_REJECTED with the latter alone
   */
  async handle_weights(given: GivenWorkflow, request: WeightsRequest = {}): Promise<Workflow> {
    return await this.#gate.pass(asWorkflow(given), request);
  }

  /** Brings input files to the engine and rewrites the graph. Dispose what it returns when the run is over. */
  async handle_inputs(
    workflow: Workflow,
    options: {
      inputFile?: string | undefined;
      /** Further local files, which the graph names by their paths. */
      files?: readonly string[] | undefined;
      signal?: AbortSignal | undefined;
      log?: Logger | undefined;
    } = {},
  ): Promise<PlacedInputs> {
    return await placeInputs(workflow.graph, {
      shelf: this.requireShelf(),
      http: this.#clientHttp,
      log: options.log ?? this.#log,
      signal: options.signal,
      inputFile: options.inputFile,
      files: options.files,
      definitions: this.#definitions,
    });
  }

  /** Queues the workflow and waits for its end. @throws EngineError with node, class and reason; CanceledError */
  async run_workflow(workflow: Workflow, request: RunRequest = {}): Promise<RunResult> {
    const { PREDICT_TIMEOUT: total, STALL_TIMEOUT: stall } = this.config;
    const graph = prefixOutputs(workflow.graph, crypto.randomUUID());
    const engine = this.requireEngine();
    await this.#memory.before(engine, graph, request.signal);
    try {
      return await runWorkflow(engine, graph, {
        log: request.log ?? this.#log,
        signal: request.signal,
        onProgress: request.onProgress,
        uiWorkflow: workflow.ui,
        resetCache: request.resetCache,
        deadlines: {
          totalMs: total === undefined ? undefined : total * 1000,
          stallMs: stall === undefined ? undefined : stall * 1000,
        },
      });
    } catch (error) {
      throw await this.withSuspects(error, workflow, request.signal);
    } finally {
      await this.#memory.after(engine);
    }
  }

  /** Sets values without editing JSON (`{"6.text": "a cat"}`). @throws InputError naming what can't be set */
  apply_overrides(
    workflow: Workflow,
    overrides: string,
  ): { workflow: Workflow; applied: readonly AppliedOverride[] } {
    const { graph, applied } = applyOverrides(workflow, readOverrides(overrides), {
      definitions: this.#definitions,
    });
    return { workflow: { ...workflow, graph }, applied };
  }

  /** New seeds for every seed that is a number, but for those in `keep`; says which were set. */
  randomise_seeds(
    workflow: Workflow,
    keep: readonly { readonly nodeId: string; readonly input: string }[] = [],
  ): { workflow: Workflow; used: UsedSeed[] } {
    const { graph, used } = randomiseSeeds(workflow.graph, {
      keep: (nodeId, input) => keep.some((one) => one.nodeId === nodeId && one.input === input),
    });
    return { workflow: { ...workflow, graph }, used };
  }

  /** Forgets computed results, so that every node runs again. */
  async reset_execution_cache(signal?: AbortSignal): Promise<void> {
    await this.requireEngine().client.free({ unloadModels: false, freeMemory: true }, signal);
  }

  /** The files this run reported, in node and batch order. @throws EngineError OUTPUT_MISSING, OUTPUT_TOO_LARGE */
  async get_files(
    result: RunResult,
    options: {
      returnTempFiles?: boolean;
      signal?: AbortSignal | undefined;
      log?: Logger | undefined;
    },
  ): Promise<string[]> {
    const engine = this.requireEngine();
    const files = await collectOutputs(engine, result, {
      folder: join(this.ownOutputs(), result.promptId),
      returnTempFiles: options.returnTempFiles === true,
      maxBytes: this.config.OUTPUT_MAX_BYTES,
      log: options.log ?? this.#log,
      signal: options.signal,
    });
    if (engine.dirs !== undefined) {
      discardTemporary(result.files, engine.dirs, files);
    }
    return files;
  }

  /** Removes output files that are no longer needed, with their folders. */
  cleanup(paths: readonly string[]): void {
    const dirs = this.#engine?.dirs;
    discardFiles(paths, [
      this.ownOutputs(),
      ...(dirs === undefined ? [] : [dirs.output, dirs.temp]),
    ]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#engine?.[Symbol.asyncDispose]();
    this.#engine = undefined;
    removeTree(this.ownOutputs());
    await Promise.all([
      this.weights[Symbol.asyncDispose](),
      this.#clientHttp.close(),
      this.#operatorHttp.close(),
    ]);
  }

  /** Learns what the engine knows: its classes, its folders, the packs that it could not load. */
  private async learn(engine: Engine, signal: AbortSignal | undefined): Promise<void> {
    const toldBy = engine.url;
    const [objectInfo, folders, logLines] = await Promise.all([
      engine.client.objectInfo(signal),
      engine.client.folderPaths(signal),
      // Only to tell more: an engine that keeps its log to itself is no reason to fail.
      engine.client.logLines(signal).catch(() => []),
    ]);
    this.#definitions = NodeDefinitions.fromObjectInfo(objectInfo);
    this.#importFailures = importFailures([...engine.lastLog(), ...logLines]);
    this.#toldBy = toldBy;
    this.weights.use_engine_folders(folders);
  }

  /** Nothing blocks on old news: an engine that may have been started anew meanwhile is asked again first. */
  private async obstaclesNow(
    workflow: Workflow,
    signal: AbortSignal | undefined,
  ): Promise<readonly Obstacle[]> {
    const obstacles = this.find_obstacles(workflow);
    const engine = this.#engine;
    const isStale = engine?.kind === "remote" || engine?.url !== this.#toldBy;
    if (engine === undefined || !isStale || !obstacles.some(({ blocks }) => blocks)) {
      return obstacles;
    }
    await this.learn(engine, signal);
    return this.find_obstacles(workflow);
  }

  /** A node that failed while it loaded weights: says of each whether it is whole. Other errors pass as they are. */
  private async withSuspects(
    error: unknown,
    workflow: Workflow,
    signal = new AbortController().signal,
  ): Promise<unknown> {
    const nodeId = error instanceof EngineError ? error.details["nodeId"] : undefined;
    if (
      !(error instanceof EngineError) ||
      error.code !== "NODE_FAILED" ||
      typeof nodeId !== "string"
    ) {
      return error;
    }
    const suspects = await examineNode(nodeId, this.check_weights(workflow), this.weights, signal);
    if (suspects.length === 0) {
      return error;
    }
    return new EngineError(error.code, `${error.message}\n${describeSuspects(suspects)}`, {
      hint: error.hint,
      details: { ...error.details, weights: suspects },
      cause: error,
    });
  }

  /** Where files go that come from an engine elsewhere, and texts. */
  private ownOutputs(): string {
    return join(this.config.workDir, `cog-comfyui-out-${process.pid}`);
  }

  private requireEngine(): Engine {
    if (this.#engine === undefined) {
      throw new EngineError("ENGINE_UNAVAILABLE", "ComfyUI has not been started", {
        hint: "Call start_server() first.",
      });
    }
    return this.#engine;
  }

  private requireShelf(): InputShelf {
    this.requireEngine();
    this.#shelf ??= new InputShelf(this.requireEngine());
    return this.#shelf;
  }
}

function isWorkflow(given: GivenWorkflow): given is Workflow {
  return (
    typeof given === "object" && "graph" in given && "requiredWeights" in given && "notes" in given
  );
}

function asWorkflow(given: GivenWorkflow): Workflow {
  return isWorkflow(given) ? given : parseWorkflow(given);
}
