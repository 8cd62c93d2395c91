/**
 * The preloaded weights on their way: which are there, which arrive, which failed. Brings them all in the background, or
 * one at its first use; whoever needs one waits for that one and for no other.
 */
import { AppError, isAbort, messageOf } from "../platform/errors.ts";
import { Limiter } from "../platform/limit.ts";
import type { Logger } from "../platform/log.ts";
import type { InstallOptions } from "./install.ts";
import { jobKey, presentFile } from "./plan.ts";
import type { InstalledWeight, InstallJob } from "./plan-types.ts";

export type ArrivalState = "pending" | "loading" | "present" | "failed";

/** One preloaded weight, as `GET /weights` and `/readyz` show it. */
export interface Arrival {
  readonly name: string;
  readonly category: string;
  readonly state: ArrivalState;
  readonly doneBytes?: number;
  readonly totalBytes?: number;
  readonly error?: string;
}

interface Entry {
  readonly job: InstallJob;
  state: ArrivalState;
  doneBytes: number;
  totalBytes: number | undefined;
  error: string | undefined;
}

export interface ArrivalOptions {
  readonly install: (
    jobs: readonly InstallJob[],
    options: InstallOptions,
  ) => Promise<InstalledWeight[]>;
  /** Called for each weight that is there now. */
  readonly onPresent: (file: string) => void;
  readonly log: Logger;
}

/** Fewer than the installer's lanes, so that a weight that a request waits for finds one free. */
const AT_ONCE = 2;

export class Arrivals implements AsyncDisposable {
  readonly #options: ArrivalOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #ending = new AbortController();
  /** Steps whose weights nobody knows beforehand: the operator's archives. */
  readonly #steps = new Set<Promise<void>>();
  #background: Promise<void> | undefined;

  constructor(options: ArrivalOptions) {
    this.#options = options;
  }

  /** Adds weights to the set. What lies there already counts as arrived. */
  expect(jobs: readonly InstallJob[]): void {
    for (const job of jobs) {
      const key = jobKey(job);
      if (!this.#entries.has(key)) {
        const entry: Entry = {
          job,
          state: "pending",
          doneBytes: 0,
          totalBytes: job.sizeBytes,
          error: undefined,
        };
        this.#entries.set(key, entry);
        const file = presentFile(job);
        if (file !== undefined) {
          this.#arrived(entry, file);
        }
      }
    }
  }

  /** They were installed by a step of setup. */
  arrived(jobs: readonly InstallJob[], installed: readonly InstalledWeight[]): void {
    this.expect(jobs);
    for (const { name, category, file } of installed) {
      for (const entry of this.#entries.values()) {
        if (entry.job.name === name && entry.job.category === category) {
          this.#arrived(entry, file);
        }
      }
    }
  }

  list(): Arrival[] {
    return [...this.#entries.values()].map(({ job, state, doneBytes, totalBytes, error }) => ({
      name: job.name,
      category: job.category,
      state,
      ...(state === "loading" ? { doneBytes } : {}),
      ...(totalBytes === undefined ? {} : { totalBytes }),
      ...(error === undefined ? {} : { error }),
    }));
  }

  /** True when nothing is outstanding. */
  get isComplete(): boolean {
    return (
      this.#steps.size === 0 &&
      [...this.#entries.values()].every(({ state }) => state === "present")
    );
  }

  /** Those of the jobs that belong to the set and are not there. */
  outstanding(jobs: readonly InstallJob[]): InstallJob[] {
    return jobs.flatMap((job) => {
      const entry = this.#entries.get(jobKey(job));
      return entry === undefined || entry.state === "present" ? [] : [entry.job];
    });
  }

  get hasSteps(): boolean {
    return this.#steps.size > 0;
  }

  /** Runs a step of preloading in the background; its failure is logged, and told by what is missing. */
  step(title: string, work: (signal: AbortSignal) => Promise<void>): void {
    const running = work(this.#ending.signal).catch((error: unknown) => {
      if (!this.#ending.signal.aborted) {
        this.#options.log.error(`${title} failed: ${textOf(error)}`);
      }
    });
    const step = running.finally(() => this.#steps.delete(step));
    this.#steps.add(step);
  }

  /** Waits for every step that runs. */
  async settled(): Promise<void> {
    await Promise.all(this.#steps);
  }

  /** Brings everything that is outstanding, some at a time. Failures are logged and kept; others go on. */
  start(): void {
    const limiter = new Limiter(AT_ONCE);
    const before = this.#background ?? Promise.resolve();
    this.#background = before.then(async () => {
      const waiting = [...this.#entries.values()].filter(({ state }) => state === "pending");
      await Promise.all(
        waiting.map((entry) =>
          limiter.run(async () => {
            if (entry.state === "pending") {
              await this.#bring(entry, { signal: this.#ending.signal }).catch(() => undefined);
            }
          }),
        ),
      );
    });
  }

  /** Everything that {@link start} began. */
  async background(): Promise<void> {
    await this.#background;
  }

  /** Brings these and no others, now. @throws DownloadError of the first that fails */
  async bring(jobs: readonly InstallJob[], options: InstallOptions = {}): Promise<void> {
    await Promise.all(
      jobs.map(async (job) => {
        const entry = this.#entries.get(jobKey(job));
        if (entry !== undefined && entry.state !== "present") {
          await this.#bring(entry, options);
        }
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ending.abort();
    await Promise.all([this.#background, ...this.#steps]);
  }

  async #bring(entry: Entry, options: InstallOptions): Promise<void> {
    entry.state = "loading";
    entry.error = undefined;
    try {
      const [installed] = await this.#options.install([entry.job], {
        ...options,
        onProgress: (progress) => {
          if (progress.phase === "downloading") {
            entry.doneBytes = progress.doneBytes;
            entry.totalBytes = progress.totalBytes ?? entry.totalBytes;
          }
          options.onProgress?.(progress);
        },
      });
      if (installed !== undefined) {
        this.#arrived(entry, installed.file);
      }
    } catch (error) {
      this.#failed(entry, error);
      throw error;
    }
  }

  #failed(entry: Entry, error: unknown): void {
    if (entry.state !== "loading") {
      return;
    }
    if (isAbort(error)) {
      entry.state = "pending";
      return;
    }
    entry.state = "failed";
    entry.error = messageOf(error);
    this.#options.log.error(`Preloading ${entry.job.name} failed: ${textOf(error)}`);
  }

  #arrived(entry: Entry, file: string): void {
    if (entry.state !== "present") {
      entry.state = "present";
      entry.error = undefined;
      this.#options.onPresent(file);
    }
  }
}

function textOf(error: unknown): string {
  return error instanceof AppError ? error.describe() : messageOf(error);
}
