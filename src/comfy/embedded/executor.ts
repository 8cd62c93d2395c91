/** Runs one prompt: node after node, with ComfyUI's messages in ComfyUI's order. */
import { isAbort, messageOf, systemCode } from "../../platform/errors.ts";
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";
import type { Logger } from "../../platform/log.ts";
import { linkOf } from "../../workflow/graph.ts";
import type { CachedResult, ResultCache } from "./cache.ts";
import { signaturesOf } from "./cache.ts";
import type { EventSink } from "./events.ts";
import type { EngineFolders } from "./folders.ts";
import { NodeInputs } from "./inputs.ts";
import { NodeError, NodeInterrupted } from "./node-error.ts";
import type { Compat, NodeContext, NodeDefinition } from "./nodes/definition.ts";
import { inputsOf, randomLetters } from "./nodes/definition.ts";
import type { NodeRegistry } from "./nodes/registry.ts";
import { originsOf, Schedule } from "./schedule.ts";
import type { NodeValue } from "./values.ts";
import { describeValue, isPlain } from "./values.ts";

/** A prompt that was accepted. */
export interface Job {
  readonly number: number;
  readonly promptId: string;
  readonly prompt: JsonObject;
  readonly extraData: JsonObject;
  readonly outputs: readonly string[];
}

export interface JobResult {
  readonly outputs: JsonObject;
  readonly meta: JsonObject;
  readonly status: JsonObject;
}

export interface ExecutorOptions {
  readonly registry: NodeRegistry;
  readonly folders: EngineFolders;
  readonly compat: Compat;
  readonly cache: ResultCache;
  readonly events: EventSink;
  readonly log: Logger;
  /** `--disable-metadata`. */
  readonly withoutMetadata: boolean;
}

/** A long node lets requests be answered at least this often. */
const SLICE_MS = 15;

interface NodeProgress {
  value: number;
  max: number;
  state: "running" | "finished";
}

/** What one run knows; made anew for each prompt. */
class Run {
  readonly job: Job;
  readonly clientId: string | undefined;
  readonly outputs: JsonObject = {};
  readonly meta: JsonObject = {};
  readonly executed: string[] = [];
  isInterrupted = false;
  lastNode: string | undefined;
  readonly #options: ExecutorOptions;
  readonly #messages: JsonValue[] = [];
  readonly #progress = new Map<string, NodeProgress>();
  readonly #tempSuffixes: Map<string, string>;
  #sliceStart = performance.now();

  constructor(job: Job, options: ExecutorOptions, tempSuffixes: Map<string, string>) {
    this.job = job;
    this.#options = options;
    this.#tempSuffixes = tempSuffixes;
    const { client_id: clientId } = job.extraData;
    this.clientId = typeof clientId === "string" ? clientId : undefined;
  }

  /** A message that the history keeps too. */
  message(type: string, data: JsonObject, toAll = false): void {
    const full = { ...data, timestamp: Date.now() };
    this.#messages.push([type, full]);
    if (this.clientId !== undefined || toAll) {
      this.#options.events.send(type, full, this.clientId);
    }
  }

  /** To the client that sent the prompt, if it said who it is. */
  tell(type: string, data: JsonObject): void {
    if (this.clientId !== undefined) {
      this.#options.events.send(type, data, this.clientId);
    }
  }

  start(id: string): void {
    this.#progress.set(id, { value: 0, max: 1, state: "running" });
    this.#sendProgress();
  }

  finish(id: string): void {
    const { max } = this.#progress.get(id) ?? { max: 1 };
    this.#progress.set(id, { value: max, max, state: "finished" });
    this.#sendProgress();
  }

  advance(id: string, step: { value: number; max: number }, png?: Uint8Array): void {
    const { events } = this.#options;
    this.#progress.set(id, { ...step, state: "running" });
    this.#sendProgress();
    const node = { nodeId: id, promptId: this.job.promptId };
    const isEarly = events.wantsMetadata(this.clientId);
    if (png !== undefined && isEarly) {
      events.preview(png, node, this.clientId);
    }
    events.send("progress", { ...step, prompt_id: this.job.promptId, node: id }, this.clientId);
    if (png !== undefined && !isEarly) {
      events.preview(png, node, this.clientId);
    }
  }

  keepUi(id: string, ui: JsonObject): void {
    this.outputs[id] = ui;
    this.meta[id] = { node_id: id, display_node: id, parent_node: null, real_node_id: id };
  }

  breathe(): Promise<void> | undefined {
    if (performance.now() - this.#sliceStart < SLICE_MS && !this.isInterrupted) {
      return undefined;
    }
    return this.#yield();
  }

  context(id: string, className: string): NodeContext {
    const { events, folders, compat, withoutMetadata } = this.#options;
    const extra = this.job.extraData["extra_pnginfo"];
    return {
      nodeId: id,
      folders,
      compat,
      metadata: withoutMetadata
        ? undefined
        : { prompt: this.job.prompt, extra: isJsonObject(extra) ? extra : {} },
      breathe: () => this.breathe(),
      progress: (value, max, png) => this.advance(id, { value, max }, png),
      showText: (text) => events.text(id, text, this.clientId),
      tempSuffix: () => this.#tempSuffix(`${id} ${className}`),
    };
  }

  result(isDone: boolean): JobResult {
    return {
      outputs: this.outputs,
      meta: this.meta,
      status: {
        status_str: isDone ? "success" : "error",
        completed: isDone,
        messages: this.#messages,
      },
    };
  }

  #tempSuffix(key: string): string {
    const letters = this.#tempSuffixes.get(key) ?? randomLetters();
    this.#tempSuffixes.set(key, letters);
    return letters;
  }

  #sendProgress(): void {
    const { promptId } = this.job;
    const nodes = Object.fromEntries(
      [...this.#progress].map(([id, progress]) => [
        id,
        {
          ...progress,
          node_id: id,
          prompt_id: promptId,
          display_node_id: id,
          parent_node_id: null,
          real_node_id: id,
        },
      ]),
    );
    this.#options.events.send("progress_state", { prompt_id: promptId, nodes }, this.clientId);
  }

  async #yield(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#sliceStart = performance.now();
    if (this.isInterrupted) {
      throw new NodeInterrupted();
    }
  }
}

/** Values that later nodes of the run still need; each goes once its last reader has run. */
class LiveValues {
  readonly #values = new Map<string, readonly NodeValue[]>();
  readonly #readers = new Map<string, number>();
  readonly #prompt: JsonObject;

  constructor(prompt: JsonObject) {
    this.#prompt = prompt;
  }

  expect(reader: string): void {
    for (const origin of originsOf(this.#prompt, reader)) {
      this.#readers.set(origin, (this.#readers.get(origin) ?? 0) + 1);
    }
  }

  set(id: string, outputs: readonly NodeValue[]): void {
    if ((this.#readers.get(id) ?? 0) > 0) {
      this.#values.set(id, outputs);
    }
  }

  get(id: string, slot: number): NodeValue {
    return this.#values.get(id)?.at(slot) ?? null;
  }

  release(reader: string): void {
    for (const origin of originsOf(this.#prompt, reader)) {
      const left = (this.#readers.get(origin) ?? 1) - 1;
      this.#readers.set(origin, left);
      if (left === 0) {
        this.#values.delete(origin);
      }
    }
  }
}

export class Executor {
  readonly #options: ExecutorOptions;
  readonly #tempSuffixes = new Map<string, string>();
  #run: Run | undefined;

  constructor(options: ExecutorOptions) {
    this.#options = options;
  }

  /** The client of the running prompt and the node it is at, for a client that comes back. */
  current(): { clientId: string | undefined; nodeId: string | undefined } {
    return { clientId: this.#run?.clientId, nodeId: this.#run?.lastNode };
  }

  /** Stops the running prompt at the next chance; without one, nothing. */
  interrupt(): void {
    if (this.#run !== undefined) {
      this.#run.isInterrupted = true;
    }
  }

  /** Never rejects: whatever happens is told by messages and by the status. */
  async execute(job: Job): Promise<JobResult> {
    const run = new Run(job, this.#options, this.#tempSuffixes);
    this.#run = run;
    try {
      return run.result(await this.#nodes(run));
    } finally {
      run.lastNode = undefined;
      this.#run = undefined;
    }
  }

  async #nodes(run: Run): Promise<boolean> {
    const { cache, registry, folders } = this.#options;
    const { prompt, promptId, outputs } = run.job;
    run.message("execution_start", { prompt_id: promptId });
    const signatures = await signaturesOf({ prompt, registry, folders });
    cache.begin(new Set(signatures.values()));
    const cached = new Map<string, CachedResult>();
    for (const [id, signature] of signatures) {
      const result = cache.get(signature);
      if (result !== undefined) {
        cached.set(id, result);
      }
    }
    run.message("execution_cached", { nodes: [...cached.keys()], prompt_id: promptId });
    const live = new LiveValues(prompt);
    const schedule = new Schedule(
      {
        prompt,
        isOutput: (id) => this.#definition(run, id)?.isOutput === true,
        isCached: (id) => cached.has(id),
      },
      outputs,
    );
    schedule.each((id) => live.expect(id));
    for (const [id, result] of cached) {
      live.set(id, result.outputs);
    }
    for (let id = schedule.next(); id !== undefined; id = schedule.next()) {
      const known = cached.get(id);
      if (known !== undefined) {
        this.#showCached(run, id, known);
      } else if (!(await this.#node(run, id, { live, signature: signatures.get(id) ?? "" }))) {
        return false;
      }
      live.release(id);
      schedule.done(id);
    }
    run.message("execution_success", { prompt_id: promptId });
    return true;
  }

  #definition(run: Run, id: string): NodeDefinition | undefined {
    const node = run.job.prompt[id];
    return isJsonObject(node) ? this.#options.registry.get(String(node["class_type"])) : undefined;
  }

  #showCached(run: Run, id: string, { ui }: CachedResult): void {
    run.tell("executed", {
      node: id,
      display_node: id,
      output: ui ?? null,
      prompt_id: run.job.promptId,
    });
    if (ui !== undefined) {
      run.keepUi(id, ui);
    }
    run.finish(id);
  }

  async #node(run: Run, id: string, at: { live: LiveValues; signature: string }): Promise<boolean> {
    const definition = this.#definition(run, id);
    const { promptId } = run.job;
    run.start(id);
    run.lastNode = id;
    run.tell("executing", { node: id, display_node: id, prompt_id: promptId });
    const values = this.#values(run, id, at.live);
    try {
      if (run.isInterrupted) {
        throw new NodeInterrupted();
      }
      await run.breathe();
      const outcome = await definition?.run(
        new NodeInputs(values, this.#originTypes(run, id)),
        run.context(id, definition.className),
      );
      const result = { outputs: outcome?.outputs ?? [], ui: outcome?.ui };
      this.#options.cache.set(at.signature, result);
      at.live.set(id, result.outputs);
      if (result.ui !== undefined) {
        run.keepUi(id, result.ui);
        run.tell("executed", {
          node: id,
          display_node: id,
          output: result.ui,
          prompt_id: promptId,
        });
      }
      run.finish(id);
      run.executed.push(id);
      return true;
    } catch (error) {
      this.#failed(run, id, { error, values });
      return false;
    }
  }

  #values(run: Run, id: string, live: LiveValues): ReadonlyMap<string, NodeValue> {
    const node = run.job.prompt[id];
    const inputs = isJsonObject(node) && isJsonObject(node["inputs"]) ? node["inputs"] : {};
    const definition = this.#definition(run, id);
    const known = definition === undefined ? {} : inputsOf(definition);
    return new Map(
      Object.entries(inputs)
        .filter(([name]) => Object.hasOwn(known, name))
        .map(([name, value]): [string, NodeValue] => {
          const link = linkOf(value);
          return [name, link === undefined ? value : live.get(link.nodeId, link.slot)];
        }),
    );
  }

  #originTypes(run: Run, id: string): ReadonlyMap<string, string> {
    const node = run.job.prompt[id];
    const inputs = isJsonObject(node) && isJsonObject(node["inputs"]) ? node["inputs"] : {};
    return new Map(
      Object.entries(inputs).flatMap(([name, value]) => {
        const link = linkOf(value);
        const origin = link === undefined ? undefined : this.#definition(run, link.nodeId);
        const type = origin?.outputs.at(link?.slot ?? 0)?.type;
        return type === undefined ? [] : [[name, type] as const];
      }),
    );
  }

  #failed(
    run: Run,
    id: string,
    { error, values }: { error: unknown; values: ReadonlyMap<string, NodeValue> },
  ): void {
    const { promptId, prompt } = run.job;
    const base = {
      prompt_id: promptId,
      node_id: id,
      node_type: this.#definition(run, id)?.className ?? "",
      executed: run.executed,
    };
    if (isAbort(error)) {
      this.#options.log.info("Processing interrupted");
      run.message("execution_interrupted", base, true);
      return;
    }
    const { type, message } = pythonError(error);
    this.#options.log.error(`!!! Exception during processing !!! ${message}`);
    run.message("execution_error", {
      ...base,
      exception_message: `${message}\n`,
      exception_type: type,
      traceback: [`  File "embedded/${base.node_type}", in run\n`],
      current_inputs: Object.fromEntries(
        [...values].map(([name, value]) => [name, [shown(value)]]),
      ),
      current_outputs: Object.keys(prompt),
    });
  }
}

function shown(value: NodeValue): JsonValue {
  return isPlain(value) ? value : (describeValue(value) ?? null);
}

/** How Python would call what was thrown. */
function pythonError(error: unknown): { type: string; message: string } {
  if (error instanceof NodeError) {
    return { type: error.exceptionType, message: error.message };
  }
  const type = systemCode(error) === undefined ? "RuntimeError" : "OSError";
  return { type, message: messageOf(error) };
}
