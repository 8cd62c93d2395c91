/** ComfyUI's HTTP API, one method per call. Every call has a deadline; every answer is parsed before it is trusted. */
import { createWriteStream, openSync, rmSync, statSync } from "node:fs";
import { posix } from "node:path";
import { pipeline } from "node:stream/promises";
import type { z } from "zod";
import { EngineError, isAbort, messageOf } from "../platform/errors.ts";
import { fileBlocks } from "../platform/files.ts";
import type { HttpBody, HttpClient, HttpResponse } from "../platform/http.ts";
import { stringifyJson } from "../platform/json.ts";
import { redactUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import type { FetchFileLimits, ReportedFile } from "../workflow/engine-files.ts";
import type { Graph } from "../workflow/graph.ts";
import type { HistoryEntry, PromptRefusal as Refusal, PromptReply as Reply } from "./wire.ts";
import {
  FolderPaths,
  History,
  LogRecords,
  PromptRefusal,
  PromptReply,
  parseWireJson,
  QueueState,
  SystemStats,
  UploadReply,
} from "./wire.ts";

/** A reply may wait for the interpreter: a model that is being read blocks it for seconds. */
const DEFAULT_TIMEOUT_MS = 30_000;
/** Validation lists every model folder it knows; on a network file system that takes a while. */
const SUBMIT_TIMEOUT_MS = 120_000;
/** History holds a failed node's inputs as text, whole tensors among them. */
const MAX_ANSWER_BYTES = 256 * 2 ** 20;

/** What is asked of ComfyUI. */
export interface Submission {
  readonly prompt: Graph;
  readonly promptId: string;
  readonly clientId: string;
  readonly extraData?: Readonly<Record<string, unknown>> | undefined;
}

/** Accepted (perhaps only in part: look at `node_errors`), or refused. */
export type SubmitAnswer =
  | { readonly accepted: true; readonly reply: Reply }
  | { readonly accepted: false; readonly refusal: Refusal };

interface Call {
  readonly method?: string;
  readonly body?: HttpBody;
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number;
}

export class ComfyClient {
  readonly url: string;
  readonly #http: HttpClient;

  constructor(options: { readonly url: string; readonly http: HttpClient }) {
    this.url = options.url.replace(/\/+$/, "");
    this.#http = options.http;
  }

  async systemStats(
    signal?: AbortSignal,
    timeoutMs: number = DEFAULT_TIMEOUT_MS,
  ): Promise<SystemStats> {
    return await this.#json("/system_stats", SystemStats, { signal, timeoutMs });
  }

  /** The graph's answer, whether it was taken or not. */
  async submit(submission: Submission, signal?: AbortSignal): Promise<SubmitAnswer> {
    const response = await this.#call("/prompt", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: stringifyJson({
        prompt: submission.prompt,
        prompt_id: submission.promptId,
        client_id: submission.clientId,
        extra_data: submission.extraData ?? {},
      }),
      signal,
      timeoutMs: SUBMIT_TIMEOUT_MS,
    });
    const text = await response.text(MAX_ANSWER_BYTES);
    const body = readJson(text);
    const reply = response.status === 200 ? PromptReply.safeParse(body) : undefined;
    if (reply?.success) {
      return { accepted: true, reply: reply.data };
    }
    const refusal = PromptRefusal.safeParse(body);
    if (response.status === 400 && refusal.success) {
      return { accepted: false, refusal: refusal.data };
    }
    throw unexpected("/prompt", response.status, text);
  }

  async queue(signal?: AbortSignal, timeoutMs?: number): Promise<QueueState> {
    return await this.#json("/queue", QueueState, { signal, ...timeout(timeoutMs) });
  }

  /** The entry of a finished prompt; undefined while it has not finished, or is unknown. */
  async history(
    promptId: string,
    signal?: AbortSignal,
    timeoutMs?: number,
  ): Promise<HistoryEntry | undefined> {
    const path = `/history/${encodeURIComponent(promptId)}`;
    const found = await this.#json(path, History, { signal, ...timeout(timeoutMs) });
    return found[promptId];
  }

  /** Takes prompts that wait out of the queue. Unknown ids and running ones are no error. */
  async deleteQueued(ids: readonly string[], signal?: AbortSignal): Promise<void> {
    await this.#post("/queue", { delete: ids }, signal);
  }

  /** Stops a prompt if it is running; no other one. */
  async interrupt(promptId: string, signal?: AbortSignal): Promise<void> {
    await this.#post("/interrupt", { prompt_id: promptId }, signal);
  }

  /** Forgets finished prompts: the list otherwise grows to ten thousand entries. */
  async deleteHistory(ids: readonly string[], signal?: AbortSignal): Promise<void> {
    await this.#post("/history", { delete: ids }, signal);
  }

  async free(
    what: { readonly unloadModels: boolean; readonly freeMemory: boolean },
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#post(
      "/free",
      { unload_models: what.unloadModels, free_memory: what.freeMemory },
      signal,
    );
  }

  /** `GET /object_info`, as it comes. */
  async objectInfo(signal?: AbortSignal): Promise<unknown> {
    return await this.#unknown("/object_info", signal);
  }

  /** `GET /internal/folder_paths`: where the engine looks for models, by category. */
  async folderPaths(signal?: AbortSignal): Promise<FolderPaths> {
    return await this.#json("/internal/folder_paths", FolderPaths, {
      signal,
      timeoutMs: SUBMIT_TIMEOUT_MS,
    });
  }

  /** The lines of its log that it still has, oldest first. */
  async logLines(signal?: AbortSignal): Promise<string[]> {
    const { entries } = await this.#json("/internal/logs/raw", LogRecords, { signal });
    return entries
      .map(({ m }) => m)
      .join("")
      .split(/[\r\n]+/);
  }

  /** Sends a file into the input folder. @returns the name a loader takes */
  async upload(localPath: string, name: string, signal?: AbortSignal): Promise<string> {
    const boundary = `----cog-comfyui-${crypto.randomUUID()}`;
    const folder = posix.dirname(name);
    const head = Buffer.from(
      [
        ...field(boundary, "type", "input"),
        ...field(boundary, "subfolder", folder === "." ? "" : folder),
        ...field(boundary, "overwrite", "true"),
        `--${boundary}`,
        `content-disposition: form-data; name="image"; filename="${posix.basename(name).replaceAll('"', "%22")}"`,
        "content-type: application/octet-stream",
        "",
        "",
      ].join("\r\n"),
    );
    const foot = Buffer.from(`\r\n--${boundary}--\r\n`);
    const size = head.length + statSync(localPath).size + foot.length;
    const response = await this.#call("/upload/image", {
      method: "POST",
      headers: {
        "content-type": `multipart/form-data; boundary=${boundary}`,
        "content-length": String(size),
      },
      body: concat(head, fileBlocks(localPath), foot),
      signal,
      timeoutMs: SUBMIT_TIMEOUT_MS,
    });
    const text = await response.text(MAX_ANSWER_BYTES);
    if (response.status === 413) {
      throw new EngineError("ENGINE_PROTOCOL", `ComfyUI takes no file as large as ${name}`, {
        hint: "Start it with a higher --max-upload-size (MB).",
      });
    }
    const reply = UploadReply.safeParse(response.status === 200 ? readJson(text) : undefined);
    if (!reply.success) {
      throw unexpected("/upload/image", response.status, text);
    }
    return posix.join(reply.data.subfolder, reply.data.name);
  }

  /**
   * Copies a file of the engine to `target`.
   * @throws EngineError OUTPUT_MISSING when it has none of that name, OUTPUT_TOO_LARGE
   */
  async download(
    file: ReportedFile,
    target: string,
    { maxBytes, signal }: FetchFileLimits = {},
  ): Promise<void> {
    const query = new URLSearchParams({
      filename: file.filename,
      subfolder: file.subfolder,
      type: file.type,
    });
    const response = await this.#call(`/view?${query}`, { signal });
    if (response.status !== 200) {
      await response.discard();
      throw new EngineError(
        "OUTPUT_MISSING",
        `ComfyUI reported ${file.filename} (node ${file.nodeId}), but answers ${response.status} when asked for it`,
      );
    }
    try {
      // Opened here: a stream opens its file later, maybe after it was removed for a body that is too long.
      const sink = createWriteStream(target, { fd: openSync(target, "w") });
      await pipeline(response.body, upTo(maxBytes, file), sink);
    } catch (error) {
      await response.discard();
      rmSync(target, { force: true });
      throw error;
    }
  }

  async #post(path: string, body: unknown, signal: AbortSignal | undefined): Promise<void> {
    const response = await this.#call(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: stringifyJson(body),
      signal,
    });
    const text = await response.text(MAX_ANSWER_BYTES);
    if (response.status !== 200) {
      throw unexpected(path, response.status, text);
    }
  }

  async #unknown(path: string, signal: AbortSignal | undefined): Promise<unknown> {
    const response = await this.#call(path, { signal, timeoutMs: SUBMIT_TIMEOUT_MS });
    const text = await response.text(MAX_ANSWER_BYTES);
    const body = readJson(text);
    if (response.status !== 200 || body === undefined) {
      throw unexpected(path, response.status, text);
    }
    return body;
  }

  async #json<T>(path: string, schema: z.ZodType<T>, call: Call): Promise<T> {
    const response = await this.#call(path, call);
    const text = await response.text(MAX_ANSWER_BYTES);
    const parsed = schema.safeParse(response.status === 200 ? readJson(text) : undefined);
    if (!parsed.success) {
      throw unexpected(path, response.status, text);
    }
    return parsed.data;
  }

  async #call(path: string, call: Call): Promise<HttpResponse> {
    const timeoutMs = call.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    try {
      return await this.#http.request(`${this.url}${path}`, {
        method: call.method ?? "GET",
        headers: call.headers,
        body: call.body,
        signal: call.signal,
        headersTimeoutMs: timeoutMs,
        bodyTimeoutMs: timeoutMs,
        maxRedirects: 0,
      });
    } catch (error) {
      throw isAbort(error) ? error : unreachable(this.url, error);
    }
  }
}

function timeout(timeoutMs: number | undefined): { timeoutMs?: number } {
  return timeoutMs === undefined ? {} : { timeoutMs };
}

function readJson(text: string): unknown {
  try {
    return parseWireJson(text);
  } catch {
    // The caller says what it expected and quotes what came.
    return undefined;
  }
}

function field(boundary: string, name: string, value: string): string[] {
  return [`--${boundary}`, `content-disposition: form-data; name="${name}"`, "", value];
}

async function* concat(
  head: Uint8Array,
  body: AsyncIterable<Uint8Array>,
  foot: Uint8Array,
): AsyncGenerator<Uint8Array> {
  yield head;
  yield* body;
  yield foot;
}

/** As much of a strange answer as helps to recognise who sent it. */
const QUOTED_CHARACTERS = 300;

function unexpected(path: string, status: number, text: string): EngineError {
  const said = text.trim().slice(0, QUOTED_CHARACTERS);
  return new EngineError(
    "ENGINE_PROTOCOL",
    `ComfyUI answered ${path} with status ${status}, which was not expected${said === "" ? "" : `: ${said}`}`,
    { details: { path, status } },
  );
}

/** Nobody answers at the engine's address. */
export function unreachable(url: string, cause: unknown): EngineError {
  return cause instanceof EngineError
    ? cause
    : new EngineError(
        "ENGINE_UNAVAILABLE",
        `ComfyUI does not answer at ${redactUrl(url)}: ${messageOf(cause)}`,
        { cause, retryable: true },
      );
}

/** Passes bytes on until there are too many of them. */
function upTo(maxBytes: number | undefined, { filename, nodeId }: ReportedFile) {
  return async function* (body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    let bytes = 0;
    for await (const chunk of body) {
      bytes += chunk.byteLength;
      if (maxBytes !== undefined && bytes > maxBytes) {
        throw new EngineError(
          "OUTPUT_TOO_LARGE",
          `${filename} (node ${nodeId}) is larger than the ${formatSize(maxBytes)} that are left for it`,
        );
      }
      yield chunk;
    }
  };
}
