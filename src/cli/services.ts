/**
 * What commands need of the program, as the composition root hands it over: the ports of the three root classes. The
 * command line knows these shapes, never the root files.
 */
import type { z } from "zod";
import type { CogModel } from "../cog/predictor.ts";
import type { ModelFolders } from "../models/folders.ts";
import type { Config } from "../platform/env.ts";
import type { Logger } from "../platform/log.ts";
import type { Arrivals } from "../weights/arrivals.ts";
import type { DigestBook } from "../weights/digests.ts";
import type { InstallOptions } from "../weights/install.ts";
import type { LockFile, LockRow } from "../weights/lock.ts";
import type { OutdatedRow } from "../weights/lock-make.ts";
import type { Manifest } from "../weights/manifest.ts";
import type { Pins } from "../weights/pins.ts";
import type { InstallPlan } from "../weights/plan.ts";
import type { InstalledWeight, InstallJob, Trust } from "../weights/plan-types.ts";
import type { MissingWeight, Validation, WeightRef } from "../weights/refs.ts";
import type { Resolution } from "../weights/resolve.ts";
import type { WeightStore } from "../weights/store.ts";
import type { Tasks } from "../weights/tasks.ts";
import type { NodeDefinitions } from "../workflow/definitions.ts";
import type { Workflow } from "../workflow/graph.ts";
import type { Obstacle } from "../workflow/obstacles.ts";

export interface WeightsPort {
  readonly manifest: Manifest;
  readonly folders: ModelFolders;
  load_manifest(signal?: AbortSignal): Promise<void>;
  validate(
    refs: readonly WeightRef[],
    options?: { readonly ignore?: readonly string[]; readonly trust?: Trust },
  ): Validation;
  resolve(wanted: MissingWeight | WeightRef | string, trust: Trust): Resolution;
  kit_jobs(kit: string): InstallJob[];
  jobs_for(wanted: MissingWeight | WeightRef | string, trust: Trust): readonly InstallJob[];
  /** The shared store, where one is configured. */
  readonly store: WeightStore | undefined;
  readonly lock: LockFile | undefined;
  readonly digests: DigestBook;
  readonly arrivals: Arrivals;
  readonly pins: Pins;
  readonly tasks: Tasks;
  used_at(file: string): Date | undefined;
  remove(category: string, name: string): { readonly file: string; readonly freed: boolean };
  pin_lock(): void;
  use_lock(lock: LockFile): void;
  lock_rows(
    jobs: readonly InstallJob[],
    options?: { readonly signal?: AbortSignal | undefined; readonly afresh?: boolean },
  ): Promise<LockRow[]>;
  unlocked_job(row: LockRow): InstallJob;
  outdated(lock: LockFile, signal?: AbortSignal): Promise<OutdatedRow[]>;
  plan(jobs: readonly InstallJob[], options?: InstallOptions): Promise<InstallPlan>;
  install(jobs: readonly InstallJob[], options?: InstallOptions): Promise<InstalledWeight[]>;
}

export interface ComfyPort {
  /** Why the engine is unhealthy; undefined while all is well. */
  readonly unhealthy: string | undefined;
  readonly definitions: NodeDefinitions;
  load_workflow(
    given: string,
    options?: {
      readonly trust?: Trust;
      readonly signal?: AbortSignal | undefined;
      /** For looking, not for running. */
      readonly allowUnnamed?: boolean;
    },
  ): Promise<Workflow>;
  start_server(signal?: AbortSignal): Promise<void>;
  find_weights(workflow: Workflow): WeightRef[];
  check_weights(workflow: Workflow, trust?: Trust): Validation;
  find_obstacles(workflow: Workflow, refs?: WeightRef[]): Obstacle[];
  cleanup(paths: readonly string[]): void;
}

export interface PredictorPort extends AsyncDisposable {
  readonly config: Config;
  readonly weights: WeightsPort;
  readonly comfyui: ComfyPort;
  /** What a prediction takes; another one from setup on where a workflow is served. */
  readonly inputs: z.ZodObject;
  readonly servedWorkflow: Workflow | undefined;
  setup(weights?: string, context?: RunPort): Promise<void>;
  predict(input: Record<string, unknown>, context?: RunPort): Promise<string[]>;
}

export interface RunPort {
  readonly signal?: AbortSignal | undefined;
  readonly log?: ((line: string) => void) | undefined;
}

/** How the composition root makes things; nothing is made before a command needs it. */
export interface Composition<P extends PredictorPort> {
  /** The model's inputs, for `predict -i`. */
  readonly inputs: z.ZodObject;
  makePredictor(config: Config, log: Logger): P;
  makeModel(predictor: P): CogModel;
}

/** What a command gets. */
export interface CliServices {
  readonly config: Config;
  readonly log: Logger;
  readonly inputs: z.ZodObject;
  /** Aborts on Ctrl-C. */
  readonly signal: AbortSignal;
  /** Not set up: for commands that only look, it is never started. */
  predictor(): PredictorPort;
  /** Serves until it is stopped; the exit code. */
  serve(argv: readonly string[]): Promise<number>;
}
