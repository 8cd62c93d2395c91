/**
 * Places everything a workflow loads: the client's input file or archive, and addresses in loader inputs. The graph that
 * comes back names them as the engine sees them; files that are missing are all named at once.
 */
import { existsSync, statSync } from "node:fs";
import { basename, join, posix } from "node:path";
import { unpackArchive } from "../platform/archive.ts";
import { AppError, CanceledError, InputError, messageOf } from "../platform/errors.ts";
import { isInside, joinInside, removeTree } from "../platform/files.ts";
import type { HttpClient } from "../platform/http.ts";
import { Limiter } from "../platform/limit.ts";
import type { Logger } from "../platform/log.ts";
import { redactUrl } from "../platform/redact.ts";
import type { NodeDefinitions } from "../workflow/definitions.ts";
import { replaceInputs } from "../workflow/edits.ts";
import type { EngineDirs } from "../workflow/engine-files.ts";
import type { Graph, GraphNode } from "../workflow/graph.ts";
import { reachableNodes, walkInputs } from "../workflow/walk.ts";
import type { FetchedMedia, FetchLimits } from "./fetch-media.ts";
import { fetchMedia, isAddress, mediaName } from "./fetch-media.ts";
import type { LoaderInput } from "./loader-inputs.ts";
import { loaderInput, parseAnnotation } from "./loader-inputs.ts";
import type { InputShelf, ShelvedFile } from "./shelf.ts";
import { sniffFile } from "./sniff.ts";

export interface PlaceInputsOptions {
  readonly shelf: InputShelf;
  /** Fetches what a client names: with the guard that its addresses need. */
  readonly http: HttpClient;
  readonly log: Logger;
  readonly signal?: AbortSignal | undefined;
  /** `input_file`: a picture, a video, a sound, or an archive of such. */
  readonly inputFile?: string | undefined;
  /** Further files, which the graph names by these very paths. */
  readonly files?: readonly string[] | undefined;
  /** What the engine declares; without it the table of well-known loaders counts alone. */
  readonly definitions?: NodeDefinitions | undefined;
  readonly limits?: Partial<FetchLimits> | undefined;
  /** Unpacked size of an archive. */
  readonly maxArchiveBytes?: number | undefined;
}

/** The graph as it can be queued. Dispose it when the run is over: the files go then. */
export interface PlacedInputs extends Disposable {
  readonly graph: Graph;
  /** Names as the engine takes them. */
  readonly names: readonly string[];
}

/** Four at a time use the line well and no host badly. */
const PARALLEL_FETCHES = 4;
/** What one request may unpack: above any set of frames, far below a disk. */
const DEFAULT_MAX_ARCHIVE_BYTES = 20 * 2 ** 30;
const MAX_ARCHIVE_ENTRIES = 50_000;
/** Names listed in a message; the details hold more. */
const NAMED_FILES = 12;
/** The original calls a single input file `input.<ending>`. */
const INPUT_STEM = "input";

interface Use {
  readonly nodeId: string;
  readonly node: GraphNode;
  readonly input: string;
  readonly value: string;
  readonly loader: LoaderInput;
}

/**
 * Fetches, unpacks and places, then rewrites the graph.
 * @throws InputError INPUT_INVALID naming every missing file, FETCH_FAILED, FETCH_REFUSED; DownloadError ARCHIVE_UNSAFE;
 *   CanceledError
 */
export async function placeInputs(
  graph: Graph,
  options: PlaceInputsOptions,
): Promise<PlacedInputs> {
  const placing = new Placing(graph, options);
  try {
    return await placing.run();
  } catch (error) {
    placing[Symbol.dispose]();
    throw options.signal?.aborted ? new CanceledError("Placing inputs was called off") : error;
  } finally {
    placing.clearScratch();
  }
}

class Placing implements Disposable {
  readonly #graph: Graph;
  readonly #options: PlaceInputsOptions;
  readonly #keys: string[] = [];
  /** What a value of the graph becomes: addresses, names of the input file or of an archive's members. */
  readonly #placed = new Map<string, string>();
  /** Folders of an archive, by their name in it. */
  readonly #folders = new Map<string, string>();
  #scratch: string | undefined;
  #single: string | undefined;

  constructor(graph: Graph, options: PlaceInputsOptions) {
    this.#graph = graph;
    this.#options = options;
  }

  async run(): Promise<PlacedInputs> {
    const uses = this.#uses();
    await this.#takeInputFile();
    for (const path of this.#options.files ?? []) {
      await this.#takeFile(path);
    }
    await this.#takeAddresses(uses);
    this.#refuseMissing(uses);
    return {
      graph: this.#rewritten(),
      names: [...new Set(this.#placed.values())],
      [Symbol.dispose]: () => this[Symbol.dispose](),
    };
  }

  [Symbol.dispose](): void {
    for (const key of this.#keys.splice(0)) {
      this.#options.shelf.release(key);
    }
  }

  clearScratch(): void {
    if (this.#scratch !== undefined) {
      removeTree(this.#scratch);
    }
  }

  /** Loader inputs of nodes that an output needs: ComfyUI looks at no others. */
  #uses(): Use[] {
    const { definitions } = this.#options;
    const needed = reachableNodes(this.#graph, (classType) => definitions?.isOutput(classType));
    return [...walkInputs(this.#graph, needed)].flatMap(({ nodeId, node, input, value }) => {
      const loader = loaderInput(node.class_type, input, definitions);
      return loader === undefined || typeof value !== "string"
        ? []
        : [{ nodeId, node, input, value, loader }];
    });
  }

  async #takeInputFile(): Promise<void> {
    const { inputFile } = this.#options;
    if (inputFile === undefined) {
      return;
    }
    const sniffed = readable(inputFile, "input_file");
    const sha256 = await digest(inputFile);
    if (sniffed.kind === "archive") {
      await this.#takeArchive(inputFile, sha256);
      return;
    }
    const ending = mediaName(basename(inputFile), sniffed).split(".").slice(1).join(".");
    const name = `${INPUT_STEM}.${ending}`;
    await this.#take(sha256, [{ path: inputFile, name }]);
    this.#single = name;
    this.#options.log.info(`input_file is used as ${name}`);
  }

  async #takeFile(path: string): Promise<void> {
    const name = mediaName(basename(path), readable(path, basename(path)));
    await this.#take(await digest(path), [{ path, name }], path);
  }

  async #takeArchive(archive: string, sha256: string): Promise<void> {
    const root = join(this.#scratchFolder(), "archive");
    const files = await unpackArchive(archive, root, {
      label: "input_file",
      signal: this.#options.signal,
      limits: {
        maxEntries: MAX_ARCHIVE_ENTRIES,
        maxTotalBytes: this.#options.maxArchiveBytes ?? DEFAULT_MAX_ARCHIVE_BYTES,
      },
    });
    const key = await this.#take(
      sha256,
      files.map(({ path }) => ({ path: joinInside(root, path), name: path })),
    );
    for (const { path } of files) {
      for (let at = posix.dirname(path); at !== "."; at = posix.dirname(at)) {
        this.#folders.set(at, posix.join(key, at));
      }
    }
    this.#options.log.info(`input_file was unpacked: ${files.length} files`);
  }

  async #takeAddresses(uses: readonly Use[]): Promise<void> {
    const addresses = new Map<string, Use>();
    for (const use of uses.filter(({ value }) => isAddress(value))) {
      addresses.set(use.value, addresses.get(use.value) ?? use);
    }
    const limiter = new Limiter(PARALLEL_FETCHES);
    const results = await Promise.allSettled(
      [...addresses].map(([url, use]) =>
        limiter.run(async () => {
          const fetched = await this.#fetch(url);
          await this.#take(fetched.sha256, [{ path: fetched.path, name: fetched.name }], url);
          return use;
        }),
      ),
    );
    const failures = results.flatMap((result, index) => {
      const use = [...addresses.values()][index];
      return result.status === "rejected" && use !== undefined
        ? [{ use, reason: result.reason }]
        : [];
    });
    if (failures.length > 0) {
      throw fetchFailure(failures);
    }
  }

  async #fetch(url: string): Promise<FetchedMedia> {
    const { http, limits, signal } = this.#options;
    this.#options.log.info(`Fetching ${redactUrl(url)}`);
    return await fetchMedia(url, { http, folder: this.#scratchFolder(), limits, signal });
  }

  /** Shelves files; `as`: the value of the graph that a single file stands for. */
  async #take(sha256: string, files: readonly ShelvedFile[], as?: string): Promise<string> {
    const { shelf, signal } = this.#options;
    const { key, names } = await shelf.take(sha256, files, signal);
    this.#keys.push(key);
    for (const [name, placed] of names) {
      this.#placed.set(as ?? name, placed);
    }
    return key;
  }

  #scratchFolder(): string {
    this.#scratch ??= this.#options.shelf.makeScratch();
    return this.#scratch;
  }

  #rewritten(): Graph {
    return replaceInputs(this.#graph, ({ node, input, value }) => {
      const loader = loaderInput(node.class_type, input, this.#options.definitions);
      if (loader === undefined || typeof value !== "string") {
        return value;
      }
      return this.#valueFor(value, loader) ?? value;
    });
  }

  /** The value that loads what was placed for `value`; undefined when nothing was. */
  #valueFor(value: string, loader: LoaderInput): string | undefined {
    const found = this.#find(value, loader);
    if (found === undefined || loader.form === "name" || loader.form === "folder") {
      // A loader that reads the output folder by itself must be told otherwise.
      return found !== undefined && loader.root !== "input" ? `${found} [input]` : found;
    }
    const { dirs } = this.#options.shelf.engine;
    return dirs === undefined ? posix.join("input", found) : join(dirs.input, found);
  }

  #find(value: string, { form }: LoaderInput): string | undefined {
    if (isAddress(value) || this.#options.files?.includes(value) === true) {
      return this.#placed.get(value);
    }
    const { name, root } = parseAnnotation(value);
    if (root !== undefined && root !== "input") {
      return undefined;
    }
    const plain = posix.normalize(name.replaceAll("\\", "/")).replace(/^\.\/|\/$/g, "");
    if (form === "folder" || form === "folder-path") {
      return this.#folders.get(plain);
    }
    const exact = this.#placed.get(plain);
    if (exact !== undefined || this.#single === undefined) {
      return exact;
    }
    // A workflow written for input.png is given a JPEG: it is the input file all the same.
    return plain.replace(/\.[A-Za-z0-9.]+$/, "") === INPUT_STEM
      ? this.#placed.get(this.#single)
      : undefined;
  }

  #refuseMissing(uses: readonly Use[]): void {
    const { dirs } = this.#options.shelf.engine;
    if (dirs === undefined) {
      // The engine elsewhere knows its own files, and says what it lacks.
      return;
    }
    const missing = uses.filter(
      (use) =>
        !isOptional(use) && this.#find(use.value, use.loader) === undefined && !isThere(use, dirs),
    );
    if (missing.length === 0) {
      return;
    }
    const lines = missing.map(
      ({ nodeId, node, input, value }) =>
        `node ${nodeId} "${node._meta?.title ?? node.class_type}" (${node.class_type}) loads ${input} = "${value}"`,
    );
    throw new InputError(
      "INPUT_INVALID",
      `${missing.length === 1 ? "An input file is" : `${missing.length} input files are`} missing: ${lines.join("; ")}.${this.#given()}`,
      {
        hint: "Send it as input_file (a single file is called input.<ending>, an archive keeps its names), or put a URL in its place.",
        details: {
          missing: missing.map(({ nodeId, node, input, value }) => ({
            nodeId,
            classType: node.class_type,
            title: node._meta?.title,
            input,
            value,
          })),
        },
      },
    );
  }

  /** What the client did send, for the message. */
  #given(): string {
    const others = this.#options.files ?? [];
    const names = [...this.#placed.keys()].filter(
      (name) => !isAddress(name) && !others.includes(name),
    );
    if (names.length === 0) {
      return this.#options.inputFile === undefined ? " No input_file was given." : "";
    }
    const named = names.slice(0, NAMED_FILES).join(", ");
    const rest = names.length - NAMED_FILES;
    return ` input_file gave ${named}${rest > 0 ? ` and ${rest} more` : ""}.`;
  }
}

function readable(path: string, label: string): ReturnType<typeof sniffFile> {
  if (!existsSync(path)) {
    throw new InputError("INPUT_INVALID", `${label} is not there: ${path}`);
  }
  const sniffed = sniffFile(path);
  if (sniffed.kind === "empty" || sniffed.kind === "html") {
    throw new InputError(
      "INPUT_INVALID",
      `${label} is ${sniffed.kind === "empty" ? "empty" : "a web page, not a media file"}`,
    );
  }
  return sniffed;
}

async function digest(file: string): Promise<string> {
  const hasher = new Bun.CryptoHasher("sha256");
  for await (const chunk of Bun.file(file).stream()) {
    hasher.update(chunk);
  }
  return hasher.digest("hex");
}

/** Loaders have words for "nothing", and paths of the file system are the node's own affair. */
function isOptional({ value, loader }: Use): boolean {
  return (
    value === "" ||
    value === "none" ||
    value === "None" ||
    ((loader.form === "path" || loader.form === "folder-path") && !isAddress(value))
  );
}

/** True when the engine finds the value by itself. @throws InputError for a name that leads out of its folder */
function isThere({ nodeId, node, input, value, loader }: Use, dirs: EngineDirs): boolean {
  const { name, root } = parseAnnotation(value);
  const base = dirs[root ?? loader.root];
  if (!isInside(base, join(base, name)) || name.startsWith("/") || name.includes("\0")) {
    throw new InputError(
      "INPUT_INVALID",
      `Node ${nodeId} (${node.class_type}): ${input} = "${value}" leads out of ComfyUI's ${root ?? loader.root} folder`,
      { hint: "Name a file below it, or put a URL there." },
    );
  }
  const stats = statSync(join(base, name), { throwIfNoEntry: false });
  return loader.form === "folder" ? stats?.isDirectory() === true : stats?.isFile() === true;
}

function fetchFailure(failures: readonly { use: Use; reason: unknown }[]): unknown {
  const [first] = failures;
  if (first !== undefined && failures.length === 1) {
    return first.reason;
  }
  const own = failures.map(({ reason }) => reason).filter((reason) => reason instanceof AppError);
  const lines = failures.map(
    ({ use, reason }) => `node ${use.nodeId} (${use.input}): ${messageOf(reason)}`,
  );
  return new InputError(
    own[0]?.code ?? "FETCH_FAILED",
    `${failures.length} input files could not be fetched. ${lines.join("; ")}`,
    { cause: first?.reason, hint: own[0]?.hint },
  );
}
