/**
 * What the rest of the program knows of a ComfyUI, whoever provides it: a child process of the real one, a
 * server elsewhere, or our embedded engine. All three speak ComfyUI's own HTTP and WebSocket API.
 */

/** Folders that we and the engine both see. */
export interface EngineDirs {
  readonly input: string;
  readonly output: string;
  readonly temp: string;
}

export interface Engine extends AsyncDisposable {
  readonly kind: "real" | "remote" | "embedded";
  /** Base address without a trailing slash, e.g. `http://127.0.0.1:43121`. */
  readonly url: string;
  /** Undefined for an engine elsewhere: files travel over its API. */
  readonly dirs: EngineDirs | undefined;
  /** Settles when the process ends; never for an engine elsewhere. */
  readonly exited: Promise<EngineExit>;
  /** The last lines it logged, oldest first (at most 200). */
  lastLog(): readonly string[];
}

export interface EngineExit {
  readonly code: number | null;
  readonly signal: string | null;
  /** One sentence for people: exit code, signal, out of memory. */
  readonly reason: string;
}

/** A file that a run reported in its history. */
export interface ReportedFile {
  readonly nodeId: string;
  /** Key of the node's UI output: `images`, `audio`, `gifs`, … */
  readonly key: string;
  readonly filename: string;
  readonly subfolder: string;
  readonly type: "output" | "temp" | "input";
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
