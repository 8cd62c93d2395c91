/**
 * Files on their way into and out of an engine: the shapes that both the room that drives ComfyUI and the room that
 * handles media speak of. Types only.
 */

/** Folders that we and the engine both see. */
export interface EngineDirs {
  readonly input: string;
  readonly output: string;
  readonly temp: string;
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

export interface FetchFileLimits {
  readonly maxBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** How files reach an engine: through folders we share, or through its API. */
export interface EngineFiles {
  /** Undefined for an engine elsewhere: files travel by the two methods below. */
  readonly dirs: EngineDirs | undefined;
  /** Sends a local file into the engine's input folder; resolves to the name a loader takes. */
  putInput(localPath: string, name: string, signal?: AbortSignal): Promise<string>;
  /** Copies a file of the engine to a local path, `maxBytes` of it at the most. */
  fetchFile(file: ReportedFile, target: string, limits?: FetchFileLimits): Promise<void>;
}
