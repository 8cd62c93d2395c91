/**
 * From what a user gives as a workflow — JSON text, an address, a data URL, for the operator also a path — to the text or
 * the bytes of it. What these say is the workflow room's business.
 */
import { readFile } from "node:fs/promises";
import { DownloadError, InputError, isAbort, messageOf, systemCode } from "../platform/errors.ts";
import type { HttpClient } from "../platform/http.ts";
import { redactUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";

export interface WorkflowSourceOptions {
  readonly http: HttpClient;
  /** Paths are for what the operator gives; a client's text is never a path. */
  readonly allowPaths: boolean;
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
  readonly maxBytes?: number | undefined;
}

/** A picture with a workflow in it may have some megabytes; a graph never has more. */
export const MAX_WORKFLOW_BYTES = 64 * 2 ** 20;
const DEFAULT_TIMEOUT_MS = 30_000;

/**
 * Reads the given workflow.
 * @throws InputError FETCH_FAILED, FETCH_REFUSED for an address, WORKFLOW_UNREADABLE for a path
 */
export async function readWorkflowSource(
  given: string,
  options: WorkflowSourceOptions,
): Promise<string | Uint8Array> {
  const text = given.trim();
  if (/^https?:\/\//i.test(text)) {
    return await fetchWorkflow(text, options);
  }
  if (/^data:/i.test(text)) {
    return await readDataUrl(text);
  }
  if (options.allowPaths && !/^[[{]/.test(text) && text !== "") {
    return await readPath(text);
  }
  return given;
}

async function fetchWorkflow(url: string, options: WorkflowSourceOptions): Promise<Uint8Array> {
  const maxBytes = options.maxBytes ?? MAX_WORKFLOW_BYTES;
  const deadline = AbortSignal.timeout(options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
  const signal =
    options.signal === undefined ? deadline : AbortSignal.any([options.signal, deadline]);
  try {
    const response = await options.http.request(url, { signal });
    if (response.status !== 200) {
      await response.discard();
      throw new InputError(
        "FETCH_FAILED",
        `The workflow's address ${redactUrl(url)} answers ${response.status}`,
        {
          hint: "Open the address yourself: it must answer with the workflow's JSON, without a login.",
        },
      );
    }
    return await response.bytes(maxBytes);
  } catch (error) {
    throw explain(error, url, { deadline, signal: options.signal, maxBytes });
  }
}

function explain(
  error: unknown,
  url: string,
  ending: {
    readonly deadline: AbortSignal;
    readonly signal: AbortSignal | undefined;
    readonly maxBytes: number;
  },
): unknown {
  const where = `The workflow's address ${redactUrl(url)}`;
  if (ending.signal?.aborted !== true && (ending.deadline.aborted || isTimeout(error))) {
    return new InputError("FETCH_FAILED", `${where} did not answer in time`, { cause: error });
  }
  if (error instanceof DownloadError && error.code === "TOO_LARGE") {
    return new InputError(
      "FETCH_FAILED",
      `${where} sends more than ${formatSize(ending.maxBytes)}, which no workflow has`,
      { cause: error },
    );
  }
  if (error instanceof DownloadError && !isAbort(error)) {
    return new InputError("FETCH_FAILED", messageOf(error), { cause: error });
  }
  return error;
}

function isTimeout(error: unknown): boolean {
  return error instanceof DownloadError
    ? error.code === "STALLED"
    : error instanceof Error && error.name === "TimeoutError";
}

async function readDataUrl(url: string): Promise<Uint8Array> {
  try {
    return await (await fetch(url)).bytes();
  } catch (cause) {
    throw new InputError("WORKFLOW_UNREADABLE", "The workflow's data URL can't be decoded", {
      cause,
      hint: "Write data:application/json;base64,<the file in base64>.",
    });
  }
}

async function readPath(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    const reason =
      { ENOENT: "is not there", EISDIR: "is a folder", EACCES: "may not be read" }[
        systemCode(cause) ?? ""
      ] ?? `can't be read: ${messageOf(cause)}`;
    throw new InputError("WORKFLOW_UNREADABLE", `The workflow ${path} ${reason}`, {
      cause,
      hint: "Give the path or the address of a workflow saved by ComfyUI.",
    });
  }
}

/** The uploaded file as a workflow, for a request whose `workflow_json` is the word `input_file`. */
export async function readUploadedWorkflow(path: string | undefined): Promise<Uint8Array> {
  if (path === undefined) {
    throw new InputError(
      "INPUT_INVALID",
      "workflow_json says input_file, but no input_file was sent",
      { hint: "Send the workflow as input_file, or put its JSON or address into workflow_json." },
    );
  }
  return await readPath(path);
}
