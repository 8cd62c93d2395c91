/**
 * Keeps an engine of ours running: when its process dies it is started again, after a pause that grows. After three
 * deaths without a success in between it is unhealthy and no longer started by itself, only when a run asks for it.
 */
import { CanceledError, EngineError, messageOf } from "../platform/errors.ts";
import type { HttpClient } from "../platform/http.ts";
import type { Logger } from "../platform/log.ts";
import type { RetryPolicy } from "../platform/retry.ts";
import { retryDelay, sleep } from "../platform/retry.ts";
import type { EngineDirs, FetchFileLimits, ReportedFile } from "../workflow/engine-files.ts";
import { ComfyClient } from "./client.ts";
import type { Engine, EngineExit } from "./engine.ts";
import type { EngineProcess, ProcessOptions } from "./process.ts";
import { removeFolders, startProcess } from "./process.ts";
import { noteProcess } from "./work-folder.ts";

/** `attempts`: deaths in a row after which it is given up. */
export const DEFAULT_RESTART_POLICY: RetryPolicy = {
  attempts: 3,
  firstDelayMs: 500,
  maxDelayMs: 30_000,
};

export interface SupervisorOptions {
  readonly process: ProcessOptions;
  /** Private folder of the engine; removed at the end. */
  readonly root: string;
  readonly http: HttpClient;
  readonly log: Logger;
  readonly restart?: Partial<RetryPolicy> | undefined;
  readonly kind: "real" | "embedded";
}

export class SupervisedEngine implements Engine {
  readonly kind: "real" | "embedded";
  readonly #options: SupervisorOptions;
  readonly #policy: RetryPolicy;
  readonly #log: Logger;
  readonly #closing = new AbortController();
  readonly #listeners = new Set<(exit: EngineExit) => void>();
  #process: EngineProcess;
  #client: ComfyClient;
  #isUp = true;
  #deaths = 0;
  #unhealthy: string | undefined;
  #starting: Promise<void> | undefined;

  private constructor(options: SupervisorOptions, first: EngineProcess) {
    this.#options = options;
    this.#policy = { ...DEFAULT_RESTART_POLICY, ...options.restart };
    this.#log = options.log;
    this.kind = options.kind;
    this.#process = first;
    this.#client = new ComfyClient({ url: first.url, http: options.http });
    this.#attend(first);
  }

  /** Starts the engine for the first time. @throws EngineError ENGINE_UNAVAILABLE, CanceledError */
  static async start(options: SupervisorOptions): Promise<SupervisedEngine> {
    const first = await startProcess(options.process);
    noteProcess(options.root, first.pid);
    return new SupervisedEngine(options, first);
  }

  get url(): string {
    return this.#process.url;
  }

  get client(): ComfyClient {
    return this.#client;
  }

  get dirs(): EngineDirs {
    return this.#options.process.folders.dirs;
  }

  get exited(): Promise<EngineExit> {
    return this.#process.exited;
  }

  get unhealthy(): string | undefined {
    return this.#unhealthy;
  }

  /** Process id of the engine that runs now. */
  get pid(): number {
    return this.#process.pid;
  }

  onExit(listener: (exit: EngineExit) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  lastLog(): readonly string[] {
    return this.#process.lastLog();
  }

  async ready(signal?: AbortSignal): Promise<void> {
    if (this.#isUp) {
      return;
    }
    if (this.#closing.signal.aborted) {
      throw new EngineError("ENGINE_UNAVAILABLE", "ComfyUI is being stopped");
    }
    // Nobody restarts what was given up, until somebody needs it.
    this.#starting ??= this.#startAgain();
    await abortable(this.#starting, signal);
  }

  noteSuccess(): void {
    this.#deaths = 0;
    this.#unhealthy = undefined;
  }

  async recycle(reason: string): Promise<void> {
    this.#log.warn(`ComfyUI is ended by force: ${reason}`);
    await this.#process.kill(`ComfyUI was ended: ${reason}`);
  }

  async putInput(localPath: string, name: string, signal?: AbortSignal): Promise<string> {
    return await this.#client.upload(localPath, name, signal);
  }

  async fetchFile(file: ReportedFile, target: string, limits?: FetchFileLimits): Promise<void> {
    await this.#client.download(file, target, limits);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#starting?.catch(() => undefined);
    await this.#process.stop();
    await this.#options.http.close();
    removeFolders(this.#options.root);
  }

  #attend(running: EngineProcess): void {
    void running.exited.then((exit) => {
      this.#isUp = false;
      for (const listener of [...this.#listeners]) {
        listener(exit);
      }
      if (!this.#closing.signal.aborted) {
        this.#afterDeath(exit.reason);
      }
    });
  }

  #afterDeath(reason: string): void {
    this.#countDeath(reason);
    this.#log.error(`${reason} (death ${this.#deaths} in a row)`);
    if (this.#unhealthy === undefined) {
      this.#starting = this.#restart();
      // Whoever waits for it sees the failure; nobody may.
      this.#starting.catch(() => undefined);
    }
  }

  #countDeath(reason: string): void {
    this.#deaths += 1;
    if (this.#deaths >= this.#policy.attempts) {
      this.#unhealthy = `ComfyUI died ${this.#deaths} times in a row without finishing a workflow. The last time: ${reason}`;
    }
  }

  /** Starts it again with pauses, until it is up or unhealthy. */
  async #restart(): Promise<void> {
    try {
      for (;;) {
        await sleep(retryDelay(this.#policy, this.#deaths), this.#closing.signal);
        try {
          await this.#launch();
          return;
        } catch (error) {
          this.#throwIfClosing();
          this.#countDeath(messageOf(error));
          this.#log.error(`ComfyUI could not be started again: ${messageOf(error)}`);
          if (this.#unhealthy !== undefined) {
            throw error;
          }
        }
      }
    } finally {
      this.#starting = undefined;
    }
  }

  /** One try, at the request of a run. */
  async #startAgain(): Promise<void> {
    try {
      await this.#launch();
    } finally {
      this.#starting = undefined;
    }
  }

  async #launch(): Promise<void> {
    const started = await startProcess({
      ...this.#options.process,
      signal: this.#closing.signal,
    });
    this.#process = started;
    this.#client = new ComfyClient({ url: started.url, http: this.#options.http });
    this.#isUp = true;
    noteProcess(this.#options.root, started.pid);
    this.#log.info(`ComfyUI is up again at ${started.url}`);
    this.#attend(started);
  }

  #throwIfClosing(): void {
    if (this.#closing.signal.aborted) {
      throw new CanceledError("ComfyUI is being stopped");
    }
  }
}

/** Waits for `job`, but not beyond the signal. The job goes on. */
async function abortable(job: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) {
    await job;
    return;
  }
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => reject(new CanceledError("Waiting for ComfyUI was called off"));
  if (signal.aborted) {
    onAbort();
  }
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([job, promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
