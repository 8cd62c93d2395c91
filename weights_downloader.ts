/**
 * `WeightsDownloader`: which weights are known, whether they are there, where they come from, and bringing them. It holds
 * the manifest, the models folders and the installer; the work is done in `src/weights` and `src/models`.
 */
import { join } from "node:path";
import { ModelFolders } from "./src/models/folders.ts";
import { completeHubCache } from "./src/models/hub-cache.ts";
import type { Config } from "./src/platform/env.ts";
import { fromProject, readConfig } from "./src/platform/env.ts";
import { WeightError } from "./src/platform/errors.ts";
import { isInside } from "./src/platform/files.ts";
import { AddressGuard } from "./src/platform/guard.ts";
import { HttpClient } from "./src/platform/http.ts";
import type { Logger } from "./src/platform/log.ts";
import { silentLogger } from "./src/platform/log.ts";
import { PROJECT_ROOT } from "./src/platform/project-root.ts";
import { Arrivals } from "./src/weights/arrivals.ts";
import type { Surroundings } from "./src/weights/bring.ts";
import { bringWeights, linkStored, removeWeight } from "./src/weights/bring.ts";
import type { Credentials } from "./src/weights/credentials.ts";
import { DigestBook } from "./src/weights/digests.ts";
import type { InstallOptions } from "./src/weights/install.ts";
import { Installer } from "./src/weights/install.ts";
import type { LockRow } from "./src/weights/lock.ts";
import { LockFile } from "./src/weights/lock.ts";
import type { OutdatedRow, SourceLook } from "./src/weights/lock-make.ts";
import { lockRows, outdatedRows } from "./src/weights/lock-make.ts";
import { Manifest } from "./src/weights/manifest.ts";
import { Pins } from "./src/weights/pins.ts";
import type { InstallPlan } from "./src/weights/plan.ts";
import type { InstalledWeight, InstallJob, Trust } from "./src/weights/plan-types.ts";
import type { MissingWeight, PresentWeight, Validation, WeightRef } from "./src/weights/refs.ts";
import type { Resolution, ResolveOptions } from "./src/weights/resolve.ts";
import { kitJobs, namedRef, resolveWeight } from "./src/weights/resolve.ts";
import {
  credentialsOf,
  folderSources,
  proxyOf,
  readManifest,
  s3Of,
} from "./src/weights/settings.ts";
import { WeightStore } from "./src/weights/store.ts";
import { LocalCopies } from "./src/weights/store-stage.ts";
import { Tasks } from "./src/weights/tasks.ts";
import type { UserWeights } from "./src/weights/user-weights.ts";
import { installUserWeights } from "./src/weights/user-weights.ts";
import { validateWeights } from "./src/weights/validate.ts";

export interface WeightsDownloaderOptions {
  readonly config?: Config | undefined;
  readonly log?: Logger | undefined;
}

export class WeightsDownloader implements AsyncDisposable {
  readonly config: Config;
  readonly #log: Logger;
  readonly #installer: Installer;
  readonly #credentials: Credentials;
  readonly #http: HttpClient;
  readonly digests: DigestBook;
  readonly pins = new Pins();
  /** Pulls and verifications that were asked for over HTTP. */
  readonly tasks = new Tasks();
  /** The preloaded set, and what of it is there. */
  readonly arrivals: Arrivals;
  readonly #usedAt = new Map<string, Date>();
  #lock: LockFile | undefined;
  #store: WeightStore | undefined;
  #manifest: Manifest | undefined;
  #folders: ModelFolders;

  /** With no argument it takes its settings from the environment. */
  constructor(options: WeightsDownloaderOptions = {}) {
    this.config = options.config ?? readConfig();
    this.#log = options.log ?? silentLogger;
    this.#credentials = credentialsOf(this.config);
    this.#http = new HttpClient({ proxy: proxyOf(this.config) });
    this.#folders = ModelFolders.fromDirs(folderSources(this.config));
    this.digests = new DigestBook(this.config.modelsDirs);
    this.#installer = this.makeInstaller();
    this.arrivals = new Arrivals({
      install: (jobs, more) => this.install(jobs, more),
      // For as long as this process lives.
      onPresent: (file) => void this.pin([file], "preloaded"),
      log: this.#log,
    });
  }

  /** The lock file, where there is one. @throws WeightError MANIFEST_INVALID */
  get lock(): LockFile | undefined {
    const { lockPath } = this.config;
    this.#lock ??= lockPath === undefined ? undefined : LockFile.read(lockPath);
    return this.#lock;
  }

  /** The shared store, where one is configured; opened at its first use. @throws ConfigError for a folder that is not one */
  get store(): WeightStore | undefined {
    const { WEIGHTS_CACHE_DIR: dir } = this.config;
    if (dir !== undefined && this.#store === undefined) {
      this.#store = this.openStore(fromProject(dir));
      this.digests.vouch = (path, sha) => this.#store?.vouches(path, sha) === true;
      this.#store.adopt(this.digests.noted());
    }
    return this.#store;
  }

  /** From now until the result is disposed no process removes these files, nor the blobs behind them. */
  pin(files: readonly string[], reason: string): Disposable {
    const pins = this.pins.pin(files, reason);
    const shas = files.map((file) => this.digests.known(file)).filter((sha) => sha !== undefined);
    const stored = this.store?.pin(shas, reason);
    this.store?.touch(shas);
    for (const file of files) {
      this.#usedAt.set(file, new Date());
    }
    return {
      [Symbol.dispose]: () => {
        pins[Symbol.dispose]();
        stored?.[Symbol.dispose]();
      },
    };
  }

  /**
   * Takes a weight out of the models folder; what of it is in the shared store goes too, unless others need it.
   * @throws WeightError NOT_FOUND, CONFLICT saying who needs it, DOWNLOAD_REFUSED outside of the models folders
   */
  remove(category: string, name: string): { readonly file: string; readonly freed: boolean } {
    const file = this.#folders.locate(category, name);
    if (file === undefined) {
      throw new WeightError("NOT_FOUND", `There is no ${category}/${name}`);
    }
    const pins = this.pins.reasons(file);
    if (pins.length > 0) {
      throw new WeightError("CONFLICT", `${category}/${name} is needed: ${pins.join(", ")}`, {
        hint: "Wait until it is not, or take it out of what is preloaded.",
        details: { pins },
      });
    }
    const roots = this.config.modelsDirs;
    if (!roots.some((root) => isInside(root, file))) {
      throw new WeightError("CONFLICT", `${file} lies outside of the models folders`);
    }
    return {
      file,
      freed: removeWeight(file, { modelsRoots: roots, digests: this.digests, store: this.store }),
    };
  }

  /** Files to hold for a while, added as they become known; all are let go together. */
  holds(reason: string): Disposable & { readonly add: (files: readonly string[]) => void } {
    const held: Disposable[] = [];
    return {
      add: (files) => held.push(this.pin(files, reason)),
      [Symbol.dispose]: () => {
        for (const hold of held.splice(0)) {
          hold[Symbol.dispose]();
        }
      },
    };
  }

  /** What the lock file pins stays in the store for as long as this process lives. */
  pin_lock(): void {
    const shas = (this.lock?.rows ?? []).map(({ sha256 }) => sha256);
    this.store?.pin(
      shas.filter((sha) => sha !== undefined),
      "lock file",
    );
  }

  /** When this process last used a file. */
  used_at(file: string): Date | undefined {
    const sha = this.digests.known(file);
    return this.#usedAt.get(file) ?? (sha === undefined ? undefined : this.store?.usedAt(sha));
  }

  /** This lock file instead of the configured one: that need not be there yet when one is written. */
  use_lock(lock: LockFile): void {
    this.#lock = lock;
  }

  /** The built-in manifest, with the operator's merged over it once they are loaded. */
  get manifest(): Manifest {
    this.#manifest ??= Manifest.builtIn();
    return this.#manifest;
  }

  get folders(): ModelFolders {
    return this.#folders;
  }

  /** Merges `WEIGHTS_MANIFEST` (path or URL) over the built-in manifest. @throws WeightError MANIFEST_INVALID */
  async load_manifest(signal?: AbortSignal): Promise<void> {
    const { WEIGHTS_MANIFEST: source } = this.config;
    if (source !== undefined) {
      this.add_manifest(await readManifest(source, this.#http, signal));
    }
  }

  /** Merges a further manifest over what is known. */
  add_manifest(manifest: Manifest): void {
    this.#manifest = this.manifest.with(manifest);
  }

  /** From now on folders are what the running engine says (`/internal/folder_paths`). */
  use_engine_folders(answer: Readonly<Record<string, readonly string[]>>): void {
    this.#folders = ModelFolders.fromEngine(answer, folderSources(this.config));
  }

  /** True when a weight of this name (`name`, or `category/name`) is there and whole. */
  weight_exists(name: string): boolean {
    return this.validate([namedRef(name)]).present.length > 0;
  }

  /** Looks every reference up on the disk; no network. */
  validate(
    refs: readonly WeightRef[],
    options: { ignore?: readonly string[]; trust?: Trust } = {},
  ): Validation {
    return validateWeights(refs, this.#folders, {
      manifest: this.manifest,
      ignore: [...this.config.WEIGHTS_IGNORE, ...(options.ignore ?? [])],
      lockedSize: (name, category) => this.lock?.find(name, category)?.size,
      resolve: (missing) => this.resolve(missing, options.trust ?? "request"),
    });
  }

  /** Where a weight can be had: lock file, manifests, synonyms, the workflow's own word within its bounds. */
  resolve(wanted: MissingWeight | WeightRef | string, trust: Trust): Resolution {
    return resolveWeight(wanted, this.resolveOptions(trust));
  }

  /** What installs a kit. @throws WeightError KIT_UNKNOWN naming the known ones */
  kit_jobs(kit: string): InstallJob[] {
    return kitJobs(kit, this.resolveOptions("operator"));
  }

  /**
   * Brings weights by name. What is there already is left alone.
   * @throws WeightError WEIGHT_UNKNOWN for a name that nothing knows; DownloadError
   */
  async download_weights(
    names: string | readonly string[],
    options: InstallOptions = {},
  ): Promise<InstalledWeight[]> {
    const jobs = [names].flat().flatMap((name) => this.jobs_for(name, "operator"));
    return await this.install(jobs, options);
  }

  /** The jobs that bring a weight. @throws WeightError WEIGHT_UNKNOWN, DOWNLOAD_REFUSED */
  jobs_for(wanted: MissingWeight | WeightRef | string, trust: Trust): readonly InstallJob[] {
    const resolution = this.resolve(wanted, trust);
    if (resolution.kind === "jobs") {
      return resolution.jobs;
    }
    const name = nameOf(wanted);
    if (resolution.kind === "refused") {
      throw new WeightError("DOWNLOAD_REFUSED", `${name} can't be fetched: ${resolution.reason}`);
    }
    throw new WeightError("WEIGHT_UNKNOWN", `No source is known for ${name}`, {
      hint: "Add it with its address to a manifest (WEIGHTS_MANIFEST), or put the file into the models folder.",
      details: { name },
    });
  }

  /** The jobs that hold weights against the lock file; none for weights that it does not pin. */
  locked_jobs(present: readonly PresentWeight[]): InstallJob[] {
    return present
      .filter(({ ref }) => this.lock?.find(ref.name, ref.category) !== undefined)
      .flatMap(({ ref }) => this.jobs_for(ref, "operator"));
  }

  /** What installing these jobs would do; asks every source once for its size. */
  async plan(jobs: readonly InstallJob[], options: InstallOptions = {}): Promise<InstallPlan> {
    return await this.#installer.plan(jobs, options);
  }

  /** Plans, fetches, verifies and publishes. */
  async install(
    jobs: readonly InstallJob[],
    options: InstallOptions = {},
  ): Promise<InstalledWeight[]> {
    if (jobs.length === 0) {
      return [];
    }
    const installed = await bringWeights(jobs, this.surroundings(), options);
    for (const { file } of installed) {
      completeHubCache(file);
    }
    return installed;
  }

  /**
   * Links weights that another process has brought into the shared store. No source is asked, so no policy forbids it.
   * True when any came.
   */
  async link_stored(missing: readonly MissingWeight[], signal?: AbortSignal): Promise<boolean> {
    if (this.store === undefined) {
      return false;
    }
    const jobs = missing.flatMap((one) => {
      const found = this.resolve(one, "request");
      return found.kind === "jobs" ? found.jobs : [];
    });
    return await linkStored(jobs, this.surroundings(), { signal });
  }

  /** Rows for a lock file: what sources (and files, unless `afresh`) say of these jobs. @throws WeightError LOCK_DRIFT */
  async lock_rows(
    jobs: readonly InstallJob[],
    options: { readonly signal?: AbortSignal | undefined; readonly afresh?: boolean } = {},
  ): Promise<LockRow[]> {
    const { signal, afresh } = options;
    return await lockRows(jobs, {
      look: (job) => this.look(job, signal),
      digest: afresh === true ? undefined : (path) => this.digests.of(path, signal),
    });
  }

  /** What brings the newest version of a locked weight: the manifest's word, else the address it was locked from. */
  unlocked_job(row: LockRow): InstallJob {
    const ref = { ...namedRef(row.name), category: row.category };
    const resolution = resolveWeight(ref, {
      ...this.resolveOptions("operator"),
      locked: undefined,
    });
    const [job] = resolution.kind === "jobs" ? resolution.jobs : [];
    const sources = [{ url: row.from ?? row.url, trust: "operator" as const }];
    const destination = join(this.#folders.destinationFor(row.category), row.name);
    return job ?? { name: row.name, category: row.category, destination, sources };
  }

  /** The rows of a lock file beside what their sources serve today; nothing is downloaded. */
  async outdated(lock: LockFile, signal?: AbortSignal): Promise<OutdatedRow[]> {
    return await outdatedRows(lock, ({ name, category }, url) => {
      const sources = [{ url, trust: "operator" as const }];
      return this.look({ name, category, destination: name, sources }, signal);
    });
  }

  /** Unpacks the operator's own archives, and merges the manifests they hold. */
  async install_user_weights(source: string, options: InstallOptions = {}): Promise<UserWeights> {
    const unpacked = await installUserWeights(source, {
      installer: this.#installer,
      modelsRoot: this.receivingRoot(),
      minFreeBytes: this.config.WEIGHTS_MIN_FREE_BYTES,
      base: PROJECT_ROOT,
      signal: options.signal,
      onProgress: options.onProgress,
      log: this.#log,
    });
    for (const { source: where, content } of unpacked.manifests) {
      this.add_manifest(Manifest.parse(content, `weights.json of ${where}`));
    }
    return unpacked;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.arrivals[Symbol.asyncDispose](), this.tasks[Symbol.asyncDispose]()]);
    await Promise.all([this.#installer.close(), this.#http.close()]);
    this.#store?.[Symbol.dispose]();
  }

  private openStore(root: string): WeightStore {
    const { config } = this;
    const minFreeBytes = config.WEIGHTS_MIN_FREE_BYTES;
    const copies = new LocalCopies({
      modelsRoot: this.receivingRoot(),
      maxBytes: config.WEIGHTS_LOCAL_MAX_BYTES,
      minFreeBytes,
      pinsOf: (path) => this.pins.reasons(path),
      log: this.#log,
    });
    return new WeightStore({
      root,
      modelsRoots: config.modelsDirs,
      digests: this.digests,
      log: this.#log,
      mode: config.WEIGHTS_CACHE_MODE,
      maxBytes: config.WEIGHTS_CACHE_MAX_BYTES,
      minFreeBytes,
      copies,
    });
  }

  private async look(job: InstallJob, signal: AbortSignal | undefined): Promise<SourceLook> {
    const [source, found] = await this.#installer.look(job, { signal });
    const { sizeBytes, etag, sha256, commit } = found;
    return { source, sizeBytes, etag, sha256, commit };
  }

  private surroundings(): Surroundings {
    return {
      installer: this.#installer,
      folders: this.#folders,
      modelsRoots: this.config.modelsDirs,
      digests: this.digests,
      lock: this.lock,
      store: this.store,
    };
  }

  private receivingRoot(): string {
    return this.config.modelsDirs[0] ?? join(PROJECT_ROOT, "models");
  }

  private resolveOptions(trust: Trust): ResolveOptions {
    return {
      manifest: this.manifest,
      folders: this.#folders,
      locked: (name, category) => this.lock?.locked(name, category),
      workflowTrust: trust,
      allowedHosts: this.allowedHosts(),
      hasToken: (url) =>
        /^https?:/.test(url) &&
        Object.keys(this.#credentials.headersFor(url, "operator")).length > 0,
    };
  }

  private allowedHosts(): string[] {
    return [...this.manifest.hosts(), ...this.config.WEIGHTS_ALLOWED_HOSTS];
  }

  private makeInstaller(): Installer {
    const { config } = this;
    return new Installer({
      modelsRoots: config.modelsDirs,
      credentials: this.#credentials,
      guard: new AddressGuard(config.ALLOW_PRIVATE_NETWORK),
      proxy: proxyOf(config),
      s3: s3Of(config),
      minFreeBytes: config.WEIGHTS_MIN_FREE_BYTES,
      log: this.#log,
      ...(config.WEIGHTS_CACHE_DIR === undefined ? {} : { store: () => this.store }),
    });
  }
}

function nameOf(wanted: MissingWeight | WeightRef | string): string {
  if (typeof wanted === "string") {
    return wanted;
  }
  return "ref" in wanted ? wanted.ref.name : wanted.name;
}
