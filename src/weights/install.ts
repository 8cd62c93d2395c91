/**
 * From jobs to files where ComfyUI reads them: plan, probe every source, then per file download → verify → publish,
 * one flight per destination, mirrors when a source fails. Nothing becomes visible that was not verified.
 */
import { linkSync, rmSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { inspect } from "../models/header.ts";
import type { UnpackedFile } from "../platform/archive.ts";
import {
  AppError,
  CanceledError,
  DownloadError,
  isAbort,
  systemCode,
  WeightError,
} from "../platform/errors.ts";
import { copyFileBytes, fileAt, fileError, makeFolder, removeTree } from "../platform/files.ts";
import { AddressGuard } from "../platform/guard.ts";
import type { ProxySettings } from "../platform/http.ts";
import { Limiter } from "../platform/limit.ts";
import type { Logger } from "../platform/log.ts";
import { silentLogger } from "../platform/log.ts";
import { bareUrl } from "../platform/redact.ts";
import { sleep, withRetries } from "../platform/retry.ts";
import { formatSize } from "../platform/size.ts";
import { ConnectionBudget } from "./connections.ts";
import { treePathIn } from "./content.ts";
import type { Tokens } from "./credentials.ts";
import { Credentials } from "./credentials.ts";
import { digestOf } from "./digest.ts";
import { download, identityOf, streamBody } from "./download.ts";
import { SharedFlights } from "./flights.ts";
import { Frontier } from "./frontier.ts";
import type { ObjectIdentity, PartialFolder } from "./journal.ts";
import { openPartial } from "./journal.ts";
import { partialRootFor } from "./placing.ts";
import type { InstallPlan, PlanFacts, PlanStep, SourceFacts } from "./plan.ts";
import {
  gatherFacts,
  isBlocked,
  jobKey,
  makePlan,
  memberName,
  presentFile,
  requireFits,
} from "./plan.ts";
import type { InstalledWeight, InstallJob, InstallProgress, WeightSource } from "./plan-types.ts";
import type { Representation } from "./probe.ts";
import { probe } from "./probe.ts";
import { ProgressReporter } from "./progress.ts";
import type { Occupied } from "./publish.ts";
import { conflict, publish, publishTree } from "./publish.ts";
import { isOurs, remember } from "./records.ts";
import type { S3Settings, SourceSettings } from "./sources.ts";
import { addressOf, looksLikeArchive, pinned, sourceLabel } from "./sources.ts";
import type { StorePort } from "./store-port.ts";
import type { Transport } from "./transport.ts";
import { FetchTransport, GuardedTransport, Road } from "./transport.ts";
import type { Tuning } from "./tuning.ts";
import { DEFAULT_TUNING } from "./tuning.ts";
import {
  contentText,
  memberExpectation,
  sweepTree,
  unpackBehind,
  unpackStream,
  wantedMember,
} from "./unpack.ts";
import { verify, verifyTree } from "./verify.ts";

export interface InstallerOptions {
  /** The models folders, the receiving one first: partial files live in them. */
  readonly modelsRoots: readonly string[];
  readonly credentials?: Credentials | undefined;
  /** For addresses that a request gives. The operator's own go unchecked. */
  readonly guard?: AddressGuard | undefined;
  readonly proxy?: ProxySettings | undefined;
  readonly s3?: S3Settings | undefined;
  /** Host patterns for addresses that a request gives; undefined lets every public host through. */
  readonly allowedHosts?: readonly string[] | undefined;
  readonly minFreeBytes?: number | undefined;
  readonly log?: Logger | undefined;
  readonly tuning?: Partial<Tuning> | undefined;
  /** The data plane of the operator's addresses; Bun's fetch unless given. */
  readonly transport?: Transport | undefined;
  /** Serves what other processes have brought, and takes what this one brings. */
  readonly store?: (() => StorePort | undefined) | undefined;
}

export interface InstallOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: InstallProgress) => void) | undefined;
  /** Tokens of this request only. */
  readonly requestTokens?: Tokens | undefined;
  /** `WEIGHTS_REQUEST_MAX_BYTES`, where a request asks. */
  readonly maxBytes?: number | undefined;
  /** Replace broken files even where we did not install them. */
  readonly repair?: boolean | undefined;
}

export interface RawRequest {
  readonly name: string;
  readonly source: WeightSource;
  /** The `.cog-partial` folder it grows in. */
  readonly root: string;
  readonly isKnown: (identity: ObjectIdentity) => boolean;
}

/** A downloaded file that was not published. */
export interface RawFile {
  readonly path: string;
  readonly sizeBytes: number;
  readonly identity: ObjectIdentity;
  /** Call when done with it. */
  remove(): void;
}

/** What a job needs while it is in flight. */
interface Run {
  readonly job: InstallJob;
  readonly road: Road;
  readonly probes: ReadonlyMap<WeightSource, Representation>;
  readonly signal: AbortSignal;
  readonly progress: ProgressReporter;
  readonly repair: boolean;
  /** An archive for which there is no room beside its content. */
  readonly streamed: boolean;
}

interface Probed {
  readonly sources: ReadonlyMap<InstallJob, ReadonlyMap<WeightSource, Representation>>;
  readonly facts: ReadonlyMap<InstallJob, SourceFacts>;
}

const PROBES_AT_ONCE = 16;
/** From here on, whoever waits for another's download looks more often: it may be over any moment. */
const NEAR_END_SHARE = 0.9;
const FIRST_POLL_MS = 10;
/** No file system has this number. */
const NO_DEVICE = -1;
/** A host that can't be reached is told soon; one that says "later" is waited for as any range would. */
const UNREACHABLE_ATTEMPTS = 3;
/** Formats whose loading runs no code of the author's: all that a request's own address may bring. */
const SAFE_ENDINGS = new Set([".safetensors", ".sft", ".gguf"]);
/** With these the next mirror would fare no better. */
const FINAL_CODES = new Set([
  "NO_SPACE",
  "CANCELED",
  "CONFLICT",
  "PATH_UNWRITABLE",
  "IO_ERROR",
  "DEADLINE",
]);
/** With these the bytes on disk are worth nothing. */
const WORTHLESS_CODES = new Set([
  "HASH_MISMATCH",
  "SIZE_MISMATCH",
  "FORMAT_INVALID",
  "SOURCE_CHANGED",
  "ARCHIVE_UNSAFE",
  "ARCHIVE_TRUNCATED",
]);

export class Installer {
  readonly #options: InstallerOptions;
  readonly #tuning: Tuning;
  readonly #road: Road;
  readonly #guarded: GuardedTransport;
  readonly #budget: ConnectionBudget;
  readonly #large: Limiter;
  readonly #small: Limiter;
  readonly #log: Logger;
  readonly #flights = new SharedFlights<InstalledWeight, InstallProgress>();

  constructor(options: InstallerOptions) {
    this.#options = options;
    this.#tuning = { ...DEFAULT_TUNING, ...options.tuning };
    this.#log = (options.log ?? silentLogger).child("weights");
    const guard = options.guard ?? new AddressGuard([]);
    this.#guarded = new GuardedTransport(guard, options.proxy, this.#tuning.stallTimeoutMs * 2);
    this.#road = new Road({
      direct: options.transport ?? new FetchTransport(options.proxy),
      guarded: this.#guarded,
      guard,
      credentials: options.credentials ?? new Credentials(),
      headersTimeoutMs: this.#tuning.headersTimeoutMs,
    });
    this.#budget = new ConnectionBudget({
      total: this.#tuning.connectionsTotal,
      perOrigin: this.#tuning.connectionsPerOrigin,
    });
    this.#large = new Limiter(this.#tuning.filesAtOnce);
    this.#small = new Limiter(this.#tuning.smallFilesAtOnce);
  }

  get #store(): StorePort | undefined {
    return this.#options.store?.();
  }

  async close(): Promise<void> {
    await this.#guarded.close();
  }

  /**
   * The plan with the sizes that the sources themselves state. Asks every source of a missing weight once.
   * @throws DownloadError naming every weight that no source gives
   */
  async plan(jobs: readonly InstallJob[], options: InstallOptions = {}): Promise<InstallPlan> {
    const { plan } = await this.#prepare(jobs, options);
    return plan;
  }

  /** What a job's first source that answers says of itself. One small request. @throws DownloadError */
  async look(
    job: InstallJob,
    options: InstallOptions = {},
  ): Promise<[WeightSource, Representation]> {
    requireTrustworthy(job);
    return await this.#probeJob(job, this.#roadFor(options), options.signal);
  }

  /**
   * Brings every job's file. What is there already and whole is left alone.
   * @throws WeightError, DownloadError of the first failure; nothing unverified is ever visible
   */
  async install(
    jobs: readonly InstallJob[],
    options: InstallOptions = {},
  ): Promise<InstalledWeight[]> {
    const { plan, probed } = await this.#prepare(jobs, options);
    requireFits(plan);
    const results = new Map<InstallJob, Promise<InstalledWeight>>();
    const ending = new AbortController();
    const cancel = (): void => ending.abort();
    options.signal?.addEventListener("abort", cancel, { once: true });
    try {
      for (const step of largestFirst(plan.steps)) {
        const result = this.#step(step, { ...options, signal: ending.signal }, probed, results);
        // One failure ends the others of this call; their bytes so far are kept.
        result.catch(cancel);
        results.set(step.job, result);
      }
      return await allOf(plan.steps, results);
    } finally {
      options.signal?.removeEventListener("abort", cancel);
    }
  }

  async #prepare(
    jobs: readonly InstallJob[],
    options: InstallOptions,
  ): Promise<{ plan: InstallPlan; probed: Probed }> {
    for (const job of jobs) {
      requireTrustworthy(job);
    }
    const limits = { minFreeBytes: this.#options.minFreeBytes, maxBytes: options.maxBytes };
    const first = makePlan(jobs, this.#facts(jobs), limits);
    const fetched = first.steps.filter((step) => step.action === "fetch").map((step) => step.job);
    if (options.repair !== true) {
      this.#requireUnblocked(fetched);
    }
    const probed = await this.#probeAll(fetched, options);
    return { plan: makePlan(jobs, this.#facts(jobs, probed.facts), limits), probed };
  }

  /** What goes through the store takes no room in the models folder; the store sees to its own. */
  #facts(jobs: readonly InstallJob[], sources?: ReadonlyMap<InstallJob, SourceFacts>): PlanFacts {
    const facts = gatherFacts(jobs, this.#options.modelsRoots, sources);
    const destinations = new Map(facts.destinations);
    for (const job of jobs.filter((one) => this.#store?.handles(one) === true)) {
      const known = destinations.get(jobKey(job));
      if (known !== undefined) {
        destinations.set(jobKey(job), { ...known, device: NO_DEVICE });
      }
    }
    return { ...facts, destinations };
  }

  #requireUnblocked(jobs: readonly InstallJob[]): void {
    for (const job of jobs) {
      const path = jobKey(job);
      if (isBlocked(job) && !isOurs(this.#partialRoot(job), path)) {
        throw conflict(path, job.sizeBytes);
      }
    }
  }

  #partialRoot(job: InstallJob): string {
    return partialRootFor(jobKey(job), this.#options.modelsRoots);
  }

  /**
   * Downloads one file and leaves it where it grew, for a caller that unpacks it. `isKnown` is asked with what the
   * server says of the file; true means: don't fetch it.
   */
  async fetchRaw(request: RawRequest, options: InstallOptions = {}): Promise<RawFile | undefined> {
    const { name, source, root, isKnown } = request;
    const raw: InstallJob = {
      name,
      category: "",
      destination: join(root, name),
      sources: [source],
    };
    const road = this.#roadFor(options);
    const signal = options.signal ?? new AbortController().signal;
    const found = await this.#probe(raw, source, road, signal);
    const identity = identityOf(found, statedSha256(source));
    if (isKnown(identity)) {
      return undefined;
    }
    const report = options.onProgress ?? (() => undefined);
    const progress = new ProgressReporter(name, this.#tuning.progressIntervalMs, report);
    const run = {
      job: raw,
      road,
      probes: new Map(),
      signal,
      progress,
      repair: false,
      streamed: false,
    };
    const folder = await this.#openFolder(run, found, false);
    if (!("content" in folder)) {
      throw new DownloadError("CONFLICT", `${folder.file} is in the way of a download`);
    }
    progress.phase("downloading", found.sizeBytes);
    try {
      const context = this.#downloadContext(run, found, new Frontier(), signal);
      const { path, sizeBytes } = await download(found, folder, {
        ...context,
        digest: false,
        lasting: false,
      });
      return { path, sizeBytes, identity, remove: () => folder.remove() };
    } catch (error) {
      folder[Symbol.dispose]();
      throw error;
    }
  }

  // --- probing -------------------------------------------------------------------------------------------------

  async #probeAll(jobs: readonly InstallJob[], options: InstallOptions): Promise<Probed> {
    const limiter = new Limiter(PROBES_AT_ONCE);
    const road = this.#roadFor(options);
    const failures: AppError[] = [];
    const sources = new Map<InstallJob, Map<WeightSource, Representation>>();
    const facts = new Map<InstallJob, SourceFacts>();
    await Promise.all(
      jobs.map((job) =>
        limiter.run(async () => {
          try {
            const [source, found] = await this.#probeJob(job, road, options.signal);
            sources.set(job, new Map([[source, found]]));
            facts.set(job, { sizeBytes: found.sizeBytes });
          } catch (error) {
            if (isAbort(error) || !(error instanceof AppError)) {
              throw error;
            }
            failures.push(error);
          }
        }),
      ),
    );
    if (failures.length > 0) {
      throw combined(failures, "weights can't be downloaded");
    }
    return { sources, facts };
  }

  /** The first source that answers, in the order given. */
  async #probeJob(
    job: InstallJob,
    road: Road,
    signal: AbortSignal | undefined,
  ): Promise<[WeightSource, Representation]> {
    if (job.sources.length === 0) {
      throw new WeightError("WEIGHT_UNKNOWN", `${job.name} has no source`, {
        hint: "Add it with its address to a manifest (WEIGHTS_MANIFEST).",
      });
    }
    const failures: AppError[] = [];
    for (const source of job.sources) {
      try {
        return [source, await this.#probe(job, source, road, signal)];
      } catch (error) {
        if (isAbort(error) || !(error instanceof AppError)) {
          throw error;
        }
        failures.push(error);
      }
    }
    throw named(job, combined(failures, "sources all refuse"));
  }

  async #probe(
    job: InstallJob,
    source: WeightSource,
    road: Road,
    signal: AbortSignal | undefined,
  ): Promise<Representation> {
    const address = addressOf(source, this.#sourceSettings(road));
    const { firstRetryDelayMs, maxRetryDelayMs, headersTimeoutMs } = this.#tuning;
    const found = await withRetries(
      () =>
        probe(address, road, {
          signal: signal ?? new AbortController().signal,
          stallTimeoutMs: headersTimeoutMs,
        }),
      {
        policy: {
          attempts: this.#tuning.attempts,
          firstDelayMs: firstRetryDelayMs,
          maxDelayMs: maxRetryDelayMs,
        },
        signal,
        shouldRetry: (error, attempt) =>
          (attempt < UNREACHABLE_ATTEMPTS || isTold(error)) && retryVerdict(error),
      },
    );
    requireAgreement(job, source, found);
    return found;
  }

  #sourceSettings(road: Road): SourceSettings {
    const { s3, allowedHosts } = this.#options;
    return { credentials: road.credentials, s3, allowedHosts };
  }

  #roadFor(options: InstallOptions): Road {
    return options.requestTokens === undefined
      ? this.#road
      : this.#road.with(this.#road.credentials.withRequest(options.requestTokens));
  }

  // --- one step of the plan ------------------------------------------------------------------------------------

  async #step(
    step: PlanStep,
    options: InstallOptions,
    probed: Probed,
    results: ReadonlyMap<InstallJob, Promise<InstalledWeight>>,
  ): Promise<InstalledWeight> {
    const { job } = step;
    if (step.action === "present") {
      return presentWeight(job, step.file ?? jobKey(job));
    }
    const twin = step.from === undefined ? undefined : results.get(step.from);
    return await this.#flights.board(
      jobKey(job),
      { signal: options.signal, onProgress: options.onProgress },
      async (signal, report) => {
        const progress = new ProgressReporter(job.name, this.#tuning.progressIntervalMs, report);
        if (step.action === "copy" && twin !== undefined) {
          return await this.#copyOf(job, await twin);
        }
        const probes = probed.sources.get(job) ?? new Map();
        const road = this.#roadFor(options);
        const repair = options.repair === true;
        const lane = isSmall(step, this.#tuning) ? this.#small : this.#large;
        return await lane.run(() =>
          this.#fetch({ job, road, probes, signal, progress, repair, streamed: step.isStreamed }),
        );
      },
    );
  }

  /** The same bytes under a second name: a hard link where that is possible. */
  async #copyOf(job: InstallJob, twin: InstalledWeight): Promise<InstalledWeight> {
    const root = this.#partialRoot(job);
    const stored = await this.#served(job);
    if (stored !== undefined) {
      return stored;
    }
    makeFolder(root);
    const copy = join(root, `copy-${process.pid}-${basename(job.destination)}`);
    rmSync(copy, { force: true });
    try {
      linkSync(twin.file, copy);
    } catch {
      copyFileBytes(twin.file, copy);
    }
    try {
      const file = { path: copy, sizeBytes: twin.sizeBytes, sha256: twin.sha256 };
      const verified = await verify(file, expectationOf(job));
      await publish(verified, job.destination, {
        replaceOurs: isOurs(root, job.destination),
      });
      return this.#installed(job, job.destination, verified, twin.source);
    } finally {
      rmSync(copy, { force: true });
    }
  }

  /** Tries the sources one after the other; a wrong hash gets one more try from nothing. */
  async #fetch(run: Run): Promise<InstalledWeight> {
    const { job, signal } = run;
    const failures: AppError[] = [];
    const queue = job.sources.map((source) => ({ source, again: true }));
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      try {
        return await this.#fromSource(run, next.source, !next.again);
      } catch (error) {
        const failure = surmountable(job, error, signal);
        this.#log.warn(`${job.name}: ${failure.message}`, { source: sourceLabel(next.source) });
        failures.push(failure);
        if (next.again && failure.code === "SOURCE_CHANGED") {
          queue.unshift({ source: next.source, again: false });
        } else if (next.again && isWrongBytes(failure)) {
          // A mirror first; the same source again only after the others.
          queue.push({ source: next.source, again: false });
        }
      }
    }
    throw named(job, hashVerdict(failures) ?? combined(failures, "sources all fail"));
  }

  async #fromSource(run: Run, source: WeightSource, afresh: boolean): Promise<InstalledWeight> {
    const { job, road, signal, progress } = run;
    progress.phase("resolving");
    const known = afresh ? undefined : run.probes.get(source);
    const found = known ?? (await this.#probe(job, source, road, signal));
    const opened = await this.#openFolder(run, found, afresh);
    if (!("content" in opened)) {
      return opened;
    }
    let keep = true;
    try {
      using _room = await this.#roomFor(job, found, opened.path);
      progress.phase("downloading", found.sizeBytes);
      this.#log.info(`Downloading ${job.name}`, {
        source: bareUrl(sourceLabel(source)),
        size: found.sizeBytes === undefined ? "unknown" : formatSize(found.sizeBytes),
        resumed:
          opened.done.size > 0 ? formatSize(opened.done.size * opened.chunkBytes) : undefined,
      });
      const isArchive = job.unpack !== undefined || looksLikeArchive(source);
      const brought = await this.#bring(run, found, opened, isArchive);
      const result = isArchive ? await this.#keepMember(run, found, brought) : brought;
      keep = false;
      progress.phase("done");
      return {
        ...result,
        ...(found.etag === undefined ? {} : { etag: found.etag }),
        ...(found.commit === undefined ? {} : { revision: found.commit }),
      };
    } catch (error) {
      keep = !(error instanceof AppError && WORTHLESS_CODES.has(error.code));
      throw error;
    } finally {
      if (keep) {
        opened[Symbol.dispose]();
      } else {
        opened.remove();
      }
    }
  }

  /** Our own folder; or the finished weight, when another process was at it and has brought it meanwhile. */
  async #openFolder(
    run: Run,
    found: Representation,
    fresh: boolean,
  ): Promise<PartialFolder | InstalledWeight> {
    const { job, signal } = run;
    const { busyPollMs, busyPatienceMs, chunkBytes } = this.#tuning;
    const identity = identityOf(found, statedSha256(found.address.source));
    const growth = this.#store?.growth(job, identity);
    const request = {
      root: growth?.root ?? this.#partialRoot(job),
      name: job.name,
      destination: growth?.key ?? jobKey(job),
      identity,
      chunkBytes,
      fresh,
    };
    let seenBytes = -1;
    let seenAtMs = performance.now();
    let polls = 0;
    for (;;) {
      const alone = performance.now() - seenAtMs > busyPatienceMs;
      const opened = await openPartial({ ...request, alone });
      // Whoever had it may have published and let go since we looked.
      const there = await this.#finished(run);
      if (there !== undefined) {
        if (!("busy" in opened)) {
          opened.remove();
        }
        return there;
      }
      if (!("busy" in opened)) {
        return opened;
      }
      run.progress.bytes(opened.doneBytes);
      if (opened.doneBytes !== seenBytes) {
        seenBytes = opened.doneBytes;
        seenAtMs = performance.now();
      }
      const isNearEnd = opened.doneBytes >= NEAR_END_SHARE * (found.sizeBytes ?? Infinity);
      // Many who begin at one moment yield to each other; that must not cost them a whole pause.
      const pauseMs = Math.min(busyPollMs, FIRST_POLL_MS * 2 ** polls);
      polls += 1;
      await sleep((isNearEnd ? busyPollMs / 4 : pauseMs) * (0.5 + Math.random()), signal);
    }
  }

  /** What another process has brought meanwhile, into this models folder or into the store. */
  async #finished({ job, repair, signal }: Run): Promise<InstalledWeight | undefined> {
    const there = presentFile(job);
    return there === undefined
      ? await this.#served(job, { repair, signal })
      : presentWeight(job, there);
  }

  async #served(
    job: InstallJob,
    options: { readonly repair?: boolean; readonly signal?: AbortSignal } = {},
  ): Promise<InstalledWeight | undefined> {
    const { repair, signal } = options;
    return await this.#store?.serve(job, {
      replace: this.#mayReplace(job, repair),
      signal,
    });
  }

  #mayReplace(job: InstallJob, repair: boolean | undefined): boolean {
    return repair === true || isOurs(this.#partialRoot(job), jobKey(job));
  }

  async #roomFor(
    job: InstallJob,
    found: Representation,
    folder: string,
  ): Promise<Disposable | undefined> {
    const store = this.#store;
    const growth = store?.growth(job, identityOf(found, statedSha256(found.address.source)));
    return growth === undefined ? undefined : await store?.reserve(job, folder, found.sizeBytes);
  }

  /** A weight out of an archive goes into the store too, so that no other process unpacks it again. */
  async #keepMember(
    { job }: Run,
    found: Representation,
    installed: InstalledWeight,
  ): Promise<InstalledWeight> {
    const { source } = found.address;
    const identity = identityOf(found, statedSha256(source));
    await this.#store?.keep(installed, job, { source, identity });
    return installed;
  }

  #downloadContext(run: Run, found: Representation, frontier: Frontier, signal: AbortSignal) {
    const { source } = found.address;
    return {
      road: run.road,
      budget: this.#budget,
      tuning: this.#tuning,
      signal,
      frontier,
      readdress: () => pinned(addressOf(source, this.#sourceSettings(run.road)), found.commit),
      onBytes: (bytes: number) => run.progress.bytes(bytes),
    };
  }

  async #bring(
    run: Run,
    found: Representation,
    folder: PartialFolder,
    isArchive: boolean,
  ): Promise<InstalledWeight> {
    const { source } = found.address;
    if (!isArchive) {
      return await this.#bringFile(run, source, found, folder);
    }
    return run.streamed && found.address.kind === "http"
      ? await this.#streamArchive(run, source, found, folder)
      : await this.#bringArchive(run, source, found, folder);
  }

  /** Unpacks what comes without keeping it; a fault means from the start, some times. */
  async #streamArchive(
    run: Run,
    source: WeightSource,
    found: Representation,
    folder: PartialFolder,
  ): Promise<InstalledWeight> {
    const { attempts, firstRetryDelayMs, maxRetryDelayMs } = this.#tuning;
    const treePath = treePathIn(folder.path);
    const wanted = statedSha256(source) ?? found.sha256;
    const context = this.#downloadContext(run, found, new Frontier(), run.signal);
    try {
      const files = await withRetries(
        async () => {
          const hasher = new Bun.CryptoHasher("sha256");
          const unpacked = await unpackStream({
            body: streamBody(found, context),
            treePath,
            label: run.job.name,
            sizeBytes: found.sizeBytes,
            reserveBytes: this.#options.minFreeBytes ?? 0,
            digest: run.job.sha256 !== undefined,
            signal: run.signal,
            see: (chunk) => void hasher.update(chunk),
          });
          requireDigest(run.job, hasher.digest("hex"), wanted);
          return unpacked;
        },
        {
          policy: { attempts, firstDelayMs: firstRetryDelayMs, maxDelayMs: maxRetryDelayMs },
          signal: run.signal,
          shouldRetry: retryVerdict,
        },
      );
      return await this.#publishArchive(run, source, treePath, files);
    } finally {
      removeTree(treePath);
    }
  }

  async #bringFile(
    run: Run,
    source: WeightSource,
    found: Representation,
    folder: PartialFolder,
  ): Promise<InstalledWeight> {
    const { job, signal, progress } = run;
    const context = this.#downloadContext(run, found, new Frontier(), signal);
    const partial = await download(found, folder, { ...context, digest: true, lasting: true });
    progress.phase("verifying");
    const expected = expectationOf(job, source, found);
    const verified = await verify(partial, expected, signal);
    const destination = jobKey(job);
    const replaceOurs = this.#mayReplace(job, run.repair);
    const store = this.#store;
    const identity = identityOf(found, statedSha256(source));
    if (store?.growth(job, identity) !== undefined) {
      return await store.take(
        verified,
        job,
        { source, identity },
        { replace: replaceOurs, signal },
      );
    }
    await publish(verified, destination, { replaceOurs });
    return this.#installed(job, destination, verified, bareUrl(sourceLabel(source)));
  }

  async #bringArchive(
    run: Run,
    source: WeightSource,
    found: Representation,
    folder: PartialFolder,
  ): Promise<InstalledWeight> {
    const { job, progress } = run;
    const treePath = treePathIn(folder.path);
    const ending = new AbortController();
    const cancel = (): void => ending.abort();
    run.signal.addEventListener("abort", cancel, { once: true });
    const frontier = new Frontier();
    const sha256 = statedSha256(source) ?? found.sha256;
    const context = this.#downloadContext(run, found, frontier, ending.signal);
    const downloading = download(found, folder, {
      ...context,
      digest: sha256 !== undefined,
      lasting: false,
    });
    const unpackJob = {
      folder,
      frontier,
      label: job.name,
      sizeBytes: found.sizeBytes,
      reserveBytes: this.#options.minFreeBytes ?? 0,
      digest: job.sha256 !== undefined,
      signal: ending.signal,
    };
    const unpacking = unpackBehind(unpackJob);
    // What was made of bytes that turned out wrong says nothing of the archive.
    unpacking.catch(() => frontier.isTainted || cancel());
    try {
      // The download's own error says more than the follower's, which is the same or "called off".
      const [downloaded, unpacked] = await Promise.allSettled([downloading, unpacking]);
      if (downloaded.status === "rejected" && !isAbort(downloaded.reason)) {
        throw downloaded.reason;
      }
      if (unpacked.status === "rejected" && !frontier.isTainted) {
        throw unpacked.reason;
      }
      if (downloaded.status === "rejected") {
        throw downloaded.reason;
      }
      requireDigest(job, downloaded.value.sha256, sha256);
      progress.phase("unpacking");
      const files =
        unpacked.status === "rejected" || frontier.isTainted
          ? await unpackBehind({ ...unpackJob, frontier: Frontier.of(downloaded.value.sizeBytes) })
          : unpacked.value;
      return await this.#publishArchive(run, source, treePath, files);
    } finally {
      run.signal.removeEventListener("abort", cancel);
      sweepTree(folder);
    }
  }

  async #publishArchive(
    run: Run,
    source: WeightSource,
    treePath: string,
    files: readonly UnpackedFile[],
  ): Promise<InstalledWeight> {
    const { job } = run;
    const root = this.#partialRoot(job);
    const member = wantedMember(files, { member: memberName(job), name: job.name });
    const from = bareUrl(sourceLabel(source));
    const folderName = `${memberName(job)}/`;
    const isFolder = files.some((file) => file.path.startsWith(folderName));
    const isElsewhere = member !== undefined && !isFolder && member.path !== memberName(job);
    if (job.unpack === undefined || isElsewhere) {
      if (member === undefined) {
        throw missingMember(job, files);
      }
      return await this.#publishMember(run, join(treePath, member.path), member, from);
    }
    if (
      member === undefined &&
      !isFolder &&
      (job.sha256 !== undefined || job.member !== undefined)
    ) {
      throw missingMember(job, files);
    }
    const tree = verifyTree(treePath, files, memberExpectation(member, job));
    const onOccupied = (path: string): Occupied =>
      inspect(path).ok || !(run.repair || isOurs(root, path)) ? "keep" : "set_aside";
    const { published, kept } = publishTree(tree, job.destination, onOccupied);
    await requireSame({ from: treePath, to: job.destination }, files, kept);
    for (const file of files.filter((one) => published.includes(one.path))) {
      this.#remember(job, join(job.destination, file.path), file, from);
    }
    return {
      name: job.name,
      category: job.category,
      file: join(job.destination, isFolder ? memberName(job) : (member?.path ?? "")),
      sizeBytes: isFolder || member === undefined ? sum(files) : member.sizeBytes,
      sha256: isFolder ? undefined : member?.sha256,
      source: from,
      fetched: true,
    };
  }

  /** One file out of an archive, to where the job wants it, whatever it is called in there. */
  async #publishMember(
    run: Run,
    path: string,
    member: UnpackedFile,
    from: string,
  ): Promise<InstalledWeight> {
    const { job } = run;
    const destination = jobKey(job);
    const file = { path, sizeBytes: member.sizeBytes, sha256: member.sha256 };
    const verified = await verify(file, expectationOf(job), run.signal);
    await publish(verified, destination, {
      replaceOurs: run.repair || isOurs(this.#partialRoot(job), destination),
    });
    return this.#installed(job, destination, verified, from);
  }

  #installed(
    job: InstallJob,
    file: string,
    facts: { readonly sizeBytes: number; readonly sha256: string | undefined },
    source: string,
  ): InstalledWeight {
    this.#remember(job, file, facts, source);
    const { sizeBytes, sha256 } = facts;
    this.#log.info(`Installed ${job.name}`, { file, size: formatSize(sizeBytes), sha256 });
    return {
      name: job.name,
      category: job.category,
      file,
      sizeBytes,
      sha256,
      source,
      fetched: true,
    };
  }

  #remember(
    job: InstallJob,
    destination: string,
    facts: { readonly sizeBytes: number; readonly sha256: string | undefined },
    source: string,
  ): void {
    remember(this.#partialRoot(job), {
      name: job.name,
      destination,
      sizeBytes: facts.sizeBytes,
      sha256: facts.sha256 ?? null,
      source,
    });
  }
}

function sum(files: readonly { readonly sizeBytes: number }[]): number {
  return files.reduce((total, file) => total + file.sizeBytes, 0);
}

/** Files that were left because something lies there must be the same files. @throws DownloadError CONFLICT */
async function requireSame(
  { from, to }: { readonly from: string; readonly to: string },
  files: readonly UnpackedFile[],
  kept: readonly string[],
): Promise<void> {
  for (const path of kept) {
    const file = files.find((one) => one.path === path);
    const there = join(to, path);
    const isSame =
      fileAt(there)?.size === file?.sizeBytes &&
      (await digestOf(there)) === (file?.sha256 ?? (await digestOf(join(from, path))));
    if (!isSame) {
      throw conflict(there, file?.sizeBytes);
    }
  }
}

/** Largest first: what takes longest begins first. Copies come last, since they wait for another. */
function largestFirst(steps: readonly PlanStep[]): PlanStep[] {
  const rank = (step: PlanStep): number =>
    step.action === "copy" ? -1 : (step.bytes ?? Number.MAX_SAFE_INTEGER);
  return steps.toSorted((one, other) => rank(other) - rank(one));
}

/** Waits for all, so that nothing is still at work when the first failure is told. */
async function allOf(
  steps: readonly PlanStep[],
  results: ReadonlyMap<InstallJob, Promise<InstalledWeight>>,
): Promise<InstalledWeight[]> {
  const settled = await Promise.allSettled(steps.map((step) => results.get(step.job)));
  const failures = settled
    .filter((result) => result.status === "rejected")
    .map((one) => one.reason);
  if (failures.length > 0) {
    // The others were called off because of the first; its reason is the one that counts.
    throw failures.find((reason) => !isAbort(reason)) ?? failures[0];
  }
  return settled.flatMap((result) =>
    result.status === "fulfilled" && result.value !== undefined ? [result.value] : [],
  );
}

function isSmall(step: PlanStep, tuning: Tuning): boolean {
  return step.bytes !== undefined && step.bytes <= tuning.smallFileBytes;
}

function presentWeight(job: InstallJob, file: string): InstalledWeight {
  return {
    name: job.name,
    category: job.category,
    file,
    sizeBytes: fileAt(file)?.size ?? 0,
    sha256: undefined,
    source: bareUrl(job.sources[0] === undefined ? "" : sourceLabel(job.sources[0])),
    fetched: false,
  };
}

/** @throws DownloadError HASH_MISMATCH when the archive itself is known by its hash and has another */
function requireDigest(
  job: InstallJob,
  actual: string | undefined,
  wanted: string | undefined,
): void {
  if (wanted !== undefined && actual !== wanted) {
    throw new DownloadError(
      "HASH_MISMATCH",
      `The archive of ${job.name} has another SHA-256 than it should`,
      { details: { expected: wanted, actual } },
    );
  }
}

/** A hash known for this very address. */
function statedSha256(source: WeightSource): string | undefined {
  return source.sha256?.toLowerCase();
}

function expectationOf(job: InstallJob, source?: WeightSource, found?: Representation) {
  const own = source === undefined ? undefined : statedSha256(source);
  return {
    name: job.name,
    fileName: jobKey(job),
    sizeBytes: job.sizeBytes,
    sha256: job.sha256 ?? own ?? found?.sha256,
  };
}

/** A request's own address brings nothing that runs code when it is loaded. */
function requireTrustworthy(job: InstallJob): void {
  const fromRequest = job.sources.some((source) => source.trust === "request");
  if (!fromRequest) {
    return;
  }
  if (job.unpack !== undefined || !SAFE_ENDINGS.has(extname(job.destination).toLowerCase())) {
    throw new WeightError(
      "DOWNLOAD_REFUSED",
      `${job.name} is neither a safetensors nor a GGUF file, and a request may bring no other`,
      { hint: "Use a .safetensors version of it, or have the operator install it." },
    );
  }
}

/** What the manifest, the address's row and the server say must be one and the same, before anything is fetched. */
function requireAgreement(job: InstallJob, source: WeightSource, found: Representation): void {
  const isArchive = job.unpack !== undefined || looksLikeArchive(source);
  const stated = [isArchive ? undefined : job.sha256, source.sha256, found.sha256]
    .filter((hash) => hash !== undefined)
    .map((hash) => hash.toLowerCase());
  const [first, other] = new Set(stated);
  if (other !== undefined) {
    throw new DownloadError(
      "HASH_MISMATCH",
      `${sourceLabel(source)} serves the SHA-256 ${stated.at(-1)}, and ${first} is wanted`,
      {
        hint: "The file there was replaced, or the manifest's row is wrong. Correct the sha256, or use another address.",
        details: { expected: first, actual: stated.at(-1), stated: true },
      },
    );
  }
  if (
    !isArchive &&
    job.sizeBytes !== undefined &&
    found.sizeBytes !== undefined &&
    found.sizeBytes !== job.sizeBytes
  ) {
    throw new DownloadError(
      "SIZE_MISMATCH",
      `${sourceLabel(source)} serves ${found.sizeBytes} bytes (${formatSize(found.sizeBytes)}), and ${job.sizeBytes} (${formatSize(job.sizeBytes)}) are wanted`,
      {
        hint: "The file there was replaced, or the manifest's row is wrong. Correct the size, or use another address.",
        details: { expected: job.sizeBytes, actual: found.sizeBytes },
      },
    );
  }
}

/** True when the server itself said that it can't now. */
function isTold(error: unknown): boolean {
  return error instanceof AppError && ["RATE_LIMITED", "SERVER_ERROR"].includes(error.code);
}

function retryVerdict(error: unknown): boolean | { readonly delayMs: number } {
  if (!(error instanceof AppError) || !error.retryable) {
    return false;
  }
  const { waitMs } = error.details;
  return typeof waitMs === "number" ? { delayMs: waitMs } : true;
}

/** One error of several: the only one as it is, else all their messages in one. */
function combined(failures: readonly AppError[], what: string): AppError {
  const [first] = failures;
  if (first === undefined) {
    return new DownloadError("INTERNAL", "A download failed without a reason");
  }
  if (failures.length === 1) {
    return first;
  }
  const lines = failures.map(
    (failure) => `- ${failure.message}${failure.hint === undefined ? "" : ` ${failure.hint}`}`,
  );
  return new DownloadError(first.code, `${failures.length} ${what}:\n${lines.join("\n")}`, {
    cause: first,
    retryable: failures.every((failure) => failure.retryable),
    details: { failures: failures.map((failure) => failure.toJSON()) },
  });
}

/** The same error with the weight's name in front. */
function named(job: InstallJob, error: AppError): AppError {
  if (error.message.startsWith(job.name)) {
    return error;
  }
  return new DownloadError(error.code, `${job.name}: ${error.message}`, {
    hint: error.hint,
    cause: error,
    retryable: error.retryable,
    details: { ...error.details, weight: job.name },
  });
}

/** True when the bytes were not what they should be, as opposed to the server saying so beforehand. */
function isWrongBytes(failure: AppError): boolean {
  return failure.code === "HASH_MISMATCH" && failure.details["stated"] !== true;
}

/** The failure, if another source may do better. @throws what no other source can help with */
function surmountable(job: InstallJob, error: unknown, signal: AbortSignal): AppError {
  if (signal.aborted) {
    throw new CanceledError("The download was called off", { cause: error });
  }
  const failure = isFileFault(error) ? fileError(error, error.path, "use") : error;
  if (!(failure instanceof AppError)) {
    throw failure;
  }
  if (FINAL_CODES.has(failure.code)) {
    throw named(job, failure);
  }
  return failure;
}

/** A system error of a file, as the disk or a limit of this process may cause at any step. */
function isFileFault(error: unknown): error is Error & { readonly path: string } {
  return (
    systemCode(error) !== undefined &&
    error instanceof Error &&
    "path" in error &&
    typeof error.path === "string"
  );
}

/** Twice the same wrong hash is a wrong expectation; two different ones a bad road. */
function hashVerdict(failures: readonly AppError[]): AppError | undefined {
  const wrong = failures.filter(isWrongBytes);
  const last = wrong.at(-1);
  if (last === undefined || failures.at(-1) !== last) {
    return undefined;
  }
  const hashes = new Set(wrong.map((failure) => failure.details["actual"]));
  const hint =
    hashes.size === 1 && wrong.length > 1
      ? "Every download has the same other hash: the sha256 of the manifest is probably out of date. Correct it there."
      : "The downloads differ from one another: memory, disk or a proxy on the way spoils them. Try another network or machine.";
  return new DownloadError("HASH_MISMATCH", last.message, {
    cause: last,
    hint: wrong.length > 1 ? hint : "Use another address, or correct the sha256 in the manifest.",
    details: last.details,
  });
}

function missingMember(job: InstallJob, files: readonly UnpackedFile[]): DownloadError {
  return new DownloadError(
    "NOT_FOUND",
    `The archive of ${job.name} holds no ${memberName(job)}; it holds ${contentText(files)}`,
    { hint: "Correct the source, or the member, in the manifest." },
  );
}
