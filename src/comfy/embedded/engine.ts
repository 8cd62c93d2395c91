/** The embedded engine without its HTTP: folders, nodes, queue, and the loop that runs prompts one at a time. */
import { messageOf } from "../../platform/errors.ts";
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";
import type { Logger } from "../../platform/log.ts";
import type { CacheMode } from "./cache.ts";
import { ResultCache } from "./cache.ts";
import { Executor } from "./executor.ts";
import type { EngineFolders } from "./folders.ts";
import type { Compat } from "./nodes/definition.ts";
import type { NodeRegistry } from "./nodes/registry.ts";
import { createRegistry } from "./nodes/registry.ts";
import { PromptQueue } from "./queue.ts";
import { SocketHub } from "./sockets.ts";
import type { PromptError } from "./validate.ts";
import { validatePrompt } from "./validate.ts";

export interface EngineSettings {
  readonly folders: EngineFolders;
  readonly compat: Compat;
  readonly cache: CacheMode;
  readonly withoutMetadata: boolean;
  readonly maxUploadBytes: number;
  readonly log: Logger;
}

/** The answer to `POST /prompt`. */
export type Submission =
  | { readonly accepted: true; readonly body: JsonObject }
  | { readonly accepted: false; readonly body: JsonObject };

const CANONICAL_UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Secrets of paid nodes, which no list may show. */
const SENSITIVE = ["auth_token_comfy_org", "api_key_comfy_org"];

function refusal(error: PromptError, nodeErrors: JsonObject = {}): Submission {
  return { accepted: false, body: { error: { ...error }, node_errors: nodeErrors } };
}

function simpleError(type: string, message: string, details = message): PromptError {
  return { type, message, details, extra_info: {} };
}

export class EmbeddedEngine {
  readonly settings: EngineSettings;
  readonly registry: NodeRegistry;
  readonly queue: PromptQueue;
  readonly hub: SocketHub;
  readonly #cache: ResultCache;
  readonly #executor: Executor;
  readonly #stopping = new AbortController();
  readonly #loop: Promise<void>;
  #counter = 0;
  #freeMemory = false;

  constructor(settings: EngineSettings) {
    const { folders, compat, log, withoutMetadata } = settings;
    this.settings = settings;
    this.registry = createRegistry(compat);
    this.#cache = new ResultCache(settings.cache);
    this.queue = new PromptQueue(() => this.hub.send("status", this.hub.status(), undefined));
    this.hub = new SocketHub({
      features: this.features(),
      queueRemaining: () => this.queue.remaining,
      current: () => this.#executor.current(),
    });
    this.#executor = new Executor({
      registry: this.registry,
      folders,
      compat,
      cache: this.#cache,
      events: this.hub,
      log,
      withoutMetadata,
    });
    this.#loop = this.#work();
  }

  features(): JsonObject {
    const { compat, maxUploadBytes } = this.settings;
    const base = { supports_preview_metadata: true, max_upload_size: maxUploadBytes };
    return compat === "0.3.64"
      ? base
      : {
          supports_preview_metadata: true,
          supports_model_type_tags: true,
          max_upload_size: maxUploadBytes,
          extension: { manager: { supports_v4: true } },
          node_replacements: true,
          assets: false,
        };
  }

  /** Validates and queues. @throws PromptCrash where ComfyUI answers 500. */
  submit(body: JsonObject): Submission {
    const { compat, folders, log } = this.settings;
    log.info("got prompt");
    const { prompt, prompt_id: givenId } = body;
    const number = this.#numberFor(body);
    if (prompt === undefined) {
      return refusal(simpleError("no_prompt", "No prompt provided"));
    }
    if (!isJsonObject(prompt)) {
      throw new TypeError("the prompt is no object");
    }
    const promptId = typeof givenId === "string" ? givenId : crypto.randomUUID();
    const isOddId =
      givenId !== undefined && (typeof givenId !== "string" || !CANONICAL_UUID.test(givenId));
    if (isOddId && compat === "0.33.0") {
      return refusal(
        simpleError(
          "invalid_prompt_id",
          "prompt_id must be a valid UUID",
          "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one",
        ),
      );
    }
    const verdict = validatePrompt(prompt, {
      registry: this.registry,
      folders,
      compat,
      targets: targetsOf(body["partial_execution_targets"]),
    });
    if (verdict.error !== undefined) {
      log.warn(`invalid prompt: ${verdict.error.message}: ${verdict.error.details}`);
      return refusal(verdict.error, verdict.nodeErrors);
    }
    const extraData = this.#extraData(body);
    this.queue.put({ number, promptId, prompt, extraData, outputs: verdict.outputs });
    return {
      accepted: true,
      body: { prompt_id: promptId, number, node_errors: verdict.nodeErrors },
    };
  }

  /** Whatever runs, or only this prompt. */
  interrupt(promptId?: string): boolean {
    const isMeant =
      this.queue.running !== undefined &&
      (promptId === undefined || this.queue.running.promptId === promptId);
    if (isMeant) {
      this.#executor.interrupt();
    }
    return isMeant;
  }

  /** Forgets cached results: at once, or after the running prompt. */
  free(): void {
    if (this.queue.running === undefined) {
      this.#forget();
    } else {
      this.#freeMemory = true;
    }
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.interrupt();
    this.hub.closeAll();
    await this.#loop;
  }

  #forget(): void {
    this.#cache.clear();
    // Somebody needs the memory now, not at the next collection.
    Bun.gc(true);
  }

  #numberFor(body: JsonObject): number {
    const { number, front } = body;
    if (number !== undefined) {
      return Number(number);
    }
    const counted = this.#counter;
    this.#counter += 1;
    return front === true && counted !== 0 ? -counted : counted;
  }

  #extraData(body: JsonObject): JsonObject {
    const { extra_data: given, client_id: clientId } = body;
    const extra = isJsonObject(given) ? given : {};
    const isNew = this.settings.compat === "0.33.0";
    return {
      ...Object.fromEntries(
        Object.entries(extra).filter(([name]) => !(isNew && SENSITIVE.includes(name))),
      ),
      ...(clientId === undefined ? {} : { client_id: clientId }),
      ...(isNew ? { create_time: Date.now() } : {}),
    };
  }

  async #work(): Promise<void> {
    const { log } = this.settings;
    for (
      let job = await this.queue.take(this.#stopping.signal);
      job !== undefined;
      job = await this.queue.take(this.#stopping.signal)
    ) {
      const started = performance.now();
      const result = await this.#executor.execute(job).catch((error: unknown) => {
        // The executor tells of failures itself: this is a fault of ours, and must not end the loop.
        log.error(`!!! the run broke: ${messageOf(error)}`);
        const status = { status_str: "error", completed: false, messages: [] };
        return { outputs: {}, meta: {}, status };
      });
      this.queue.done(job, result);
      const clientId = job.extraData["client_id"];
      if (typeof clientId === "string") {
        this.hub.send("executing", { node: null, prompt_id: job.promptId }, clientId);
      }
      log.info(`Prompt executed in ${((performance.now() - started) / 1000).toFixed(2)} seconds`);
      if (this.#freeMemory) {
        this.#freeMemory = false;
        this.#forget();
      }
    }
  }
}

function targetsOf(value: JsonValue | undefined): readonly string[] | undefined {
  return Array.isArray(value)
    ? value.filter((target): target is string => typeof target === "string")
    : undefined;
}
