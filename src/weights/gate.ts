/**
 * The gate before every run (DESIGN §4): is all there, and if not, what is to be done? Waits for what is on its way,
 * fetches where policy and request say so, else fails with one report; hands on the workflow with names as ComfyUI lists
 * them. Nothing is fetched for a workflow that ComfyUI would refuse afterwards.
 */
import type { Logger } from "../platform/log.ts";
import { untilAborted } from "../platform/retry.ts";
import { formatSize } from "../platform/size.ts";
import type { Workflow } from "../workflow/graph.ts";
import type { Obstacle } from "../workflow/obstacles.ts";
import { obstacleLine, refusedBeforehand } from "../workflow/obstacles.ts";
import type { Arrivals } from "./arrivals.ts";
import type { Tokens } from "./credentials.ts";
import type { InstallOptions } from "./install.ts";
import type { Manifest } from "./manifest.ts";
import type { InstalledWeight, InstallJob, InstallProgress, Trust } from "./plan-types.ts";
import type { WeightsPolicy } from "./policy.ts";
import { decideDownload } from "./policy.ts";
import { progressLines } from "./progress.ts";
import type { MissingWeight, Validation } from "./refs.ts";
import { weightsMissing } from "./report.ts";
import type { Resolution } from "./resolve.ts";
import { respellWeights } from "./respell.ts";

/** What a request wants done about its weights. */
export interface WeightsRequest {
  readonly skipCheck?: boolean;
  readonly downloadMissing?: boolean;
  readonly tokens?: Tokens;
  readonly signal?: AbortSignal | undefined;
  readonly log?: Logger | undefined;
  readonly onProgress?: ((progress: InstallProgress) => void) | undefined;
  /** Told which files the run needs, before they are looked at for the last time. */
  readonly hold?: ((files: readonly string[]) => void) | undefined;
}

/** The weights that the gate watches over. */
export interface GateWeights {
  readonly manifest: Manifest;
  readonly arrivals: Arrivals;
  /** The shared store, where one is configured. */
  readonly store: object | undefined;
  resolve(wanted: MissingWeight, trust: Trust): Resolution;
  jobs_for(wanted: MissingWeight, trust: Trust): readonly InstallJob[];
  install(jobs: readonly InstallJob[], options: InstallOptions): Promise<InstalledWeight[]>;
  /** Links what the shared store holds already; true when something was linked. */
  link_stored(missing: readonly MissingWeight[], signal: AbortSignal | undefined): Promise<boolean>;
}

export interface GateOptions {
  readonly weights: GateWeights;
  readonly policy: WeightsPolicy;
  /** `WEIGHTS_REQUEST_MAX_BYTES`. */
  readonly maxBytes: number | undefined;
  readonly log: Logger;
  /** Looks at the disk; no network. */
  readonly check: (workflow: Workflow) => Validation;
  /** What ComfyUI would refuse. */
  readonly obstacles: (workflow: Workflow, signal?: AbortSignal) => Promise<readonly Obstacle[]>;
}

interface Look {
  readonly validation: Validation;
  readonly tookMs: number;
}

export class WeightGate {
  readonly #options: GateOptions;

  constructor(options: GateOptions) {
    this.#options = options;
  }

  /**
   * Lets a workflow through when everything is there.
   * @throws WeightError WEIGHTS_MISSING with one report of everything that is missing, and of what ComfyUI would refuse;
   *   EngineError PROMPT_REJECTED with the latter alone
   */
  async pass(workflow: Workflow, request: WeightsRequest): Promise<Workflow> {
    const log = request.log ?? this.#options.log;
    if (request.skipCheck === true) {
      log.warn(
        "skip_weight_check: no weight was checked and none will be fetched. ComfyUI may fail while it loads.",
      );
      return workflow;
    }
    const here = await this.#lookHere(workflow, request);
    const obstacles = await this.#options.obstacles(workflow, request.signal);
    const isComplete = here.validation.missing.length === 0;
    if (isComplete && obstacles.some(({ blocks }) => blocks)) {
      throw refusedBeforehand(obstacles);
    }
    const look = isComplete
      ? here
      : await this.#fetch(workflow, here.validation, { ...request, obstacles });
    if (this.#isEvicted(workflow, look.validation, request)) {
      return await this.pass(workflow, request);
    }
    tell(look, log);
    for (const obstacle of obstacles) {
      log.warn(`${obstacleLine(obstacle)}; going on`);
    }
    return respelled(workflow, look.validation, log);
  }

  #look(workflow: Workflow): Look {
    const started = performance.now();
    const validation = this.#options.check(workflow);
    return { validation, tookMs: performance.now() - started };
  }

  /** What is there without asking anybody: on disk, in the shared store, or about to arrive by itself. */
  async #lookHere(workflow: Workflow, request: WeightsRequest): Promise<Look> {
    const first = this.#look(workflow);
    const { missing } = first.validation;
    if (missing.length === 0) {
      return first;
    }
    const isLinked = await this.#options.weights.link_stored(missing, request.signal);
    const look = isLinked ? this.#look(workflow) : first;
    return (await this.#arriving(workflow, look.validation, request)) ?? look;
  }

  /** Between the look and the hold another process may have evicted a file; after the hold none can. */
  #isEvicted(workflow: Workflow, validation: Validation, { hold }: WeightsRequest): boolean {
    if (hold === undefined) {
      return false;
    }
    hold(validation.present.map(({ file }) => file));
    return (
      this.#options.weights.store !== undefined && this.#options.check(workflow).missing.length > 0
    );
  }

  /** Waits for exactly those preloaded weights that the workflow needs and that are not there yet. */
  async #arriving(
    workflow: Workflow,
    { missing }: Validation,
    request: WeightsRequest,
  ): Promise<Look | undefined> {
    const { weights, policy } = this.#options;
    const { arrivals } = weights;
    const wanted = (): InstallJob[] =>
      arrivals.outstanding(
        missing.flatMap((one) => {
          const found = weights.resolve(one, "operator");
          return found.kind === "jobs" ? found.jobs : [];
        }),
      );
    if (missing.length === 0 || (wanted().length === 0 && !arrivals.hasSteps)) {
      return undefined;
    }
    const log = request.log ?? this.#options.log;
    if (policy === "fail") {
      // Requests don't wait here; the weight comes all the same, for the next one.
      void arrivals.bring(wanted()).catch(() => undefined);
      return undefined;
    }
    if (wanted().length < missing.length && arrivals.hasSteps) {
      log.info("Waiting for the operator's own weights, which are on their way");
      request.signal?.throwIfAborted();
      await untilAborted(arrivals.settled(), request.signal);
    }
    const jobs = wanted();
    if (jobs.length > 0) {
      log.info(`Waiting for ${jobs.map(({ name }) => name).join(", ")}`);
      await arrivals.bring(jobs, {
        signal: request.signal,
        onProgress: progressTo(log, request),
      });
    }
    return this.#look(workflow);
  }

  async #fetch(
    workflow: Workflow,
    validation: Validation,
    request: WeightsRequest & { readonly obstacles: readonly Obstacle[] },
  ): Promise<Look> {
    const { weights, maxBytes } = this.#options;
    this.#requireFetchable(validation, request);
    const log = request.log ?? this.#options.log;
    const jobs = validation.missing.flatMap((missing) => weights.jobs_for(missing, "request"));
    const names = jobs.map(({ name }) => name).join(", ");
    log.info(`Fetching ${jobs.length} missing weight${jobs.length === 1 ? "" : "s"}: ${names}`);
    const installed = await weights.install(jobs, {
      signal: request.signal,
      onProgress: progressTo(log, request),
      requestTokens: request.tokens,
      maxBytes,
    });
    for (const { name, sizeBytes, source } of installed) {
      log.info(`Fetched and verified ${name} (${formatSize(sizeBytes)}) from ${source}`);
    }
    const after = this.#look(workflow);
    if (after.validation.missing.length > 0) {
      throw weightsMissing(after.validation, weights.manifest);
    }
    return after;
  }

  /** @throws WeightError WEIGHTS_MISSING, the report, unless everything missing can and may be fetched */
  #requireFetchable(
    validation: Validation,
    request: WeightsRequest & { readonly obstacles: readonly Obstacle[] },
  ): void {
    const { weights, policy } = this.#options;
    const decision = decideDownload(policy, request.downloadMissing === true);
    const hasAllSources = validation.missing.every(
      (missing) => weights.resolve(missing, "request").kind === "jobs",
    );
    const isRefused = request.obstacles.some(({ blocks }) => blocks);
    if (decision.action === "download" && hasAllSources && !isRefused) {
      return;
    }
    const why = hasAllSources && decision.action === "fail" ? decision.why : undefined;
    throw weightsMissing(validation, weights.manifest, {
      obstacles: request.obstacles,
      why: why === undefined ? undefined : `${why}${this.#onTheWay(validation)}`,
      canRequestDownload: policy !== "fail",
    });
  }

  /** What of the missing is arriving by itself, for a request that may not wait for it. */
  #onTheWay({ missing }: Validation): string {
    const names = new Set(missing.map(({ ref }) => ref.name));
    const coming = this.#options.weights.arrivals
      .list()
      .filter(({ name, state }) => state === "loading" && names.has(name))
      .map(({ name, doneBytes, totalBytes }) =>
        doneBytes === undefined || totalBytes === undefined
          ? name
          : `${name} (${formatSize(doneBytes)} of ${formatSize(totalBytes)})`,
      );
    return coming.length === 0 ? "" : ` On the way, so try again later: ${coming.join(", ")}.`;
  }
}

/** Progress for whoever asked, and as lines of the prediction's log. */
function progressTo(log: Logger, { onProgress }: WeightsRequest): (at: InstallProgress) => void {
  const lines = progressLines((line) => log.info(line));
  return (progress) => {
    lines(progress);
    onProgress?.(progress);
  };
}

function tell({ validation, tookMs }: Look, log: Logger): void {
  const count = validation.present.length;
  log.info(
    `${count} weight${count === 1 ? "" : "s"} checked in ${tookMs.toFixed(1)} ms, all there`,
  );
  for (const { ref, state } of validation.warnings) {
    log.warn(
      `${ref.name} is ${state}, as far as can be told (node ${ref.nodeId ?? "?"}, ${ref.reason}); going on`,
    );
  }
  for (const ref of validation.ignored) {
    log.info(`${ref.name} is not there and ignored, as asked`);
  }
}

function respelled(workflow: Workflow, validation: Validation, log: Logger): Workflow {
  const { graph, respelled: changes } = respellWeights(workflow.graph, validation.present);
  for (const { nodeId, from, to } of changes) {
    log.info(`Node ${nodeId}: "${from}" is given to ComfyUI as "${to}"`);
  }
  return { ...workflow, graph };
}
