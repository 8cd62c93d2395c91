/**
 * Work on weights that outlives the request that asked for it: pulls and verifications with an id, a state that can be
 * asked for and watched, and an end that can be brought about.
 */
import { randomUUID } from "node:crypto";
import { AppError, isAbort } from "../platform/errors.ts";
import type { InstallProgress } from "./plan-types.ts";

export type TaskState = "running" | "succeeded" | "failed" | "canceled";

export interface TaskView {
  readonly id: string;
  readonly kind: "pull" | "verify";
  readonly state: TaskState;
  readonly startedAt: string;
  readonly finishedAt: string | null;
  readonly progress: readonly InstallProgress[];
  readonly result: unknown;
  readonly error: unknown;
}

export interface TaskContext {
  readonly signal: AbortSignal;
  readonly onProgress: (progress: InstallProgress) => void;
}

/** Finished ones are remembered, oldest forgotten first. */
const REMEMBERED = 100;

class Task {
  readonly id = randomUUID();
  readonly kind: TaskView["kind"];
  readonly controller = new AbortController();
  readonly done: Promise<void>;
  readonly #startedAt = new Date().toISOString();
  readonly #progress = new Map<string, InstallProgress>();
  #state: TaskState = "running";
  #finishedAt: string | null = null;
  #result: unknown = null;
  #error: unknown = null;
  #changed = Promise.withResolvers<void>();

  constructor(kind: TaskView["kind"], work: (context: TaskContext) => Promise<unknown>) {
    this.kind = kind;
    this.done = this.#run(work);
  }

  async #run(work: (context: TaskContext) => Promise<unknown>): Promise<void> {
    try {
      this.#result = await work({
        signal: this.controller.signal,
        onProgress: (progress) => {
          this.#progress.set(progress.name, progress);
          this.#notify();
        },
      });
      this.#state = "succeeded";
    } catch (error) {
      const isCanceled = this.controller.signal.aborted || isAbort(error);
      this.#state = isCanceled ? "canceled" : "failed";
      this.#error =
        error instanceof AppError
          ? error.toJSON()
          : { code: "INTERNAL", message: "internal error" };
    } finally {
      this.#finishedAt = new Date().toISOString();
      this.#notify();
    }
  }

  /** Settles at the next change. */
  get changed(): Promise<void> {
    return this.#changed.promise;
  }

  view(): TaskView {
    return {
      id: this.id,
      kind: this.kind,
      state: this.#state,
      startedAt: this.#startedAt,
      finishedAt: this.#finishedAt,
      progress: [...this.#progress.values()],
      result: this.#result,
      error: this.#error,
    };
  }

  #notify(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
  }
}

export class Tasks implements AsyncDisposable {
  readonly #tasks = new Map<string, Task>();

  start(kind: TaskView["kind"], work: (context: TaskContext) => Promise<unknown>): TaskView {
    const task = new Task(kind, work);
    this.#tasks.set(task.id, task);
    for (const [id, old] of this.#tasks) {
      if (this.#tasks.size > REMEMBERED && old.view().state !== "running") {
        this.#tasks.delete(id);
      }
    }
    return task.view();
  }

  get(id: string): TaskView | undefined {
    return this.#tasks.get(id)?.view();
  }

  list(): TaskView[] {
    return [...this.#tasks.values()].map((task) => task.view());
  }

  /** Calls it off; false when there is no such task. One that is over stays as it is. */
  cancel(id: string): boolean {
    const task = this.#tasks.get(id);
    task?.controller.abort();
    return task !== undefined;
  }

  /** The state now and after every change, until it is over. */
  async *watch(id: string): AsyncGenerator<TaskView> {
    for (let task = this.#tasks.get(id); task !== undefined; task = this.#tasks.get(id)) {
      const { changed } = task;
      const view = task.view();
      yield view;
      if (view.state !== "running") {
        return;
      }
      await changed;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const task of this.#tasks.values()) {
      task.controller.abort();
    }
    await Promise.all([...this.#tasks.values()].map(({ done }) => done));
  }
}
