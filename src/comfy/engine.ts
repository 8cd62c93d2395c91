/**
 * What the rest of the program knows of a ComfyUI, whoever provides it: a child process of the real one, a
 * server elsewhere, or our embedded engine. All three speak ComfyUI's own HTTP and WebSocket API.
 */
import type { EngineFiles, ReportedFile } from "../workflow/engine-files.ts";
import type { ComfyClient } from "./client.ts";

export type EngineKind = "real" | "remote" | "embedded";

export interface Engine extends EngineFiles, AsyncDisposable {
  readonly kind: EngineKind;
  /** Base address without a trailing slash, e.g. `http://127.0.0.1:43121`. Another one after a restart. */
  readonly url: string;
  /** Calls to it; another object after a restart. */
  readonly client: ComfyClient;
  /** Settles when the process that runs now ends; never for an engine elsewhere. Another promise after a restart. */
  readonly exited: Promise<EngineExit>;
  /** Calls `listener` when the process that runs now ends. @returns how to stop listening */
  onExit(listener: (exit: EngineExit) => void): () => void;
  /** The last lines it logged, oldest first (at most 200). */
  lastLog(): readonly string[];
  /**
   * Resolves when it answers: at once, or when a restart is through.
   * @throws EngineError ENGINE_UNAVAILABLE when it was given up, CanceledError
   */
  ready(signal?: AbortSignal): Promise<void>;
  /** Why it is unhealthy (it keeps dying); undefined while all is well. */
  readonly unhealthy: string | undefined;
  /** A run succeeded: earlier deaths are forgiven. */
  noteSuccess(): void;
  /** Ends a process that no longer obeys, so that a fresh one takes its place. Nothing for an engine elsewhere. */
  recycle(reason: string): Promise<void>;
}

export interface EngineExit {
  readonly code: number | null;
  readonly signal: string | null;
  /** One sentence for people: exit code, signal, out of memory. */
  readonly reason: string;
}

/** What a finished run produced, in node and batch order. */
export interface RunResult {
  readonly promptId: string;
  readonly files: readonly ReportedFile[];
  /** Texts that nodes reported (`ui.text`). */
  readonly texts: readonly { readonly nodeId: string; readonly text: string }[];
  /** Nodes whose result came from the cache. */
  readonly cachedNodes: readonly string[];
  /** Execution time by ComfyUI's own clock, in ms. */
  readonly executionMs: number | undefined;
  /** Things that went wrong without ending the run (a blocked branch). */
  readonly notes: readonly string[];
}

export interface RunProgress {
  readonly nodeId: string;
  readonly nodeTitle: string;
  readonly classType: string;
  /** Steps within the node, if it reports any. */
  readonly value?: number;
  readonly max?: number;
  /** Nodes finished so far, and nodes to run. */
  readonly finished: number;
  readonly total: number;
}
