/** Data between "these weights are missing" and "these files are installed". */

/** Who vouches for an address (DESIGN §4, Trust). */
export type Trust = "operator" | "request";

/** One place a weight can be fetched from. */
export interface WeightSource {
  /** As written: https, http, hf://, s3://, file://, a Civitai or a Hugging Face page. */
  readonly url: string;
  readonly trust: Trust;
  /** Known to hold for this very address. */
  readonly sha256?: string;
}

/** One file (or unpacked folder) to bring. */
export interface InstallJob {
  /** Name for people and logs, as the manifest or the workflow spells it. */
  readonly name: string;
  readonly category: string;
  /** Absolute path of the finished file; with `unpack`, the folder the archive is unpacked into. */
  readonly destination: string;
  /** Tried in order; never mixed within one file. */
  readonly sources: readonly WeightSource[];
  readonly sizeBytes?: number;
  /** Of the finished file, never of an archive around it. */
  readonly sha256?: string;
  /** The source is an archive. */
  readonly unpack?: "tar";
  /** With `unpack`: the path inside the archive (and below `destination`) of the file this job is about; the last
   * part of `name` unless given. */
  readonly member?: string;
  readonly license?: string;
  readonly gated?: boolean;
}

export interface Plan {
  readonly jobs: readonly InstallJob[];
  /** Sum of the known sizes still to fetch. */
  readonly totalBytes: number;
  /** Jobs whose size nobody knows before the first answer. */
  readonly unsized: readonly InstallJob[];
}

/** A file that now lies, verified, where ComfyUI reads it. */
export interface InstalledWeight {
  readonly name: string;
  readonly category: string;
  readonly file: string;
  readonly sizeBytes: number;
  readonly sha256: string | undefined;
  /** The address that served it, without credentials. */
  readonly source: string;
  /** Of the fetched bytes, for the lock file. */
  readonly etag?: string;
  /** The commit that a moving revision of a Hugging Face repository stood at. */
  readonly revision?: string;
  /** False when it was there already. */
  readonly fetched: boolean;
}

export interface InstallProgress {
  readonly name: string;
  readonly doneBytes: number;
  readonly totalBytes: number | undefined;
  readonly phase: "resolving" | "downloading" | "unpacking" | "verifying" | "done";
  /** Over the last seconds. */
  readonly bytesPerSecond?: number;
  readonly etaSeconds?: number;
}
