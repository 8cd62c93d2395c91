/**
 * The shared store (`WEIGHTS_CACHE_DIR`): one copy of every weight for all processes and containers that see the folder.
 * It serves what it holds by a link (or a copy), takes in what was downloaded, and keeps its budget. Whoever needs a blob
 * pins it before looking whether it is there.
 */
import { chmodSync, rmSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { looksLikeWeight } from "../models/categories.ts";
import { DownloadError, isDiskFull, messageOf } from "../platform/errors.ts";
import {
  copyFileBytes,
  entryAt,
  fileAt,
  fileError,
  freeSpace,
  isInside,
  makeFolder,
  renameWithoutReplacing,
} from "../platform/files.ts";
import type { Logger } from "../platform/log.ts";
import { redactUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import type { DigestBook } from "./digests.ts";
import type { ObjectIdentity } from "./journal.ts";
import { PARTIAL_FOLDER, REMOTE_FILE_SYSTEMS } from "./journal.ts";
import { partialRootFor } from "./placing.ts";
import { jobKey, memberName } from "./plan.ts";
import type { InstalledWeight, InstallJob, WeightSource } from "./plan-types.ts";
import { conflict, publish } from "./publish.ts";
import { remember } from "./records.ts";
import { looksLikeArchive } from "./sources.ts";
import { StoreContent } from "./store-content.ts";
import {
  blobPath,
  isStore,
  linkRecordPath,
  openLayout,
  remake,
  writeSmall,
} from "./store-layout.ts";
import type { LeaseTimes } from "./store-lease.ts";
import { DEFAULT_LEASE_TIMES, Lease } from "./store-lease.ts";
import type { LinkMethod } from "./store-link.ts";
import { isDangling, leadsTo, linkBlob, methodsFor, removeLink } from "./store-link.ts";
import type { Growth, PlaceOptions, StorePort } from "./store-port.ts";
import type { Evicted, PinnedBlob, Usage } from "./store-room.ts";
import { StoreRoom } from "./store-room.ts";
import type { LocalCopies } from "./store-stage.ts";
import type { VerifiedFile } from "./verify.ts";

export interface StoreOptions {
  readonly root: string;
  readonly modelsRoots: readonly string[];
  readonly digests: DigestBook;
  readonly log: Logger;
  /** `auto` copies where the store is on a network file system, through which a model loads many times slower. */
  readonly mode?: "auto" | "link" | "copy" | undefined;
  readonly maxBytes?: number | undefined;
  readonly minFreeBytes?: number | undefined;
  /** What is staged on the local disk in copy mode, and its budget. */
  readonly copies?: LocalCopies | undefined;
  readonly leaseTimes?: LeaseTimes | undefined;
  /** For whoever only looks and tidies up: no lease is taken. */
  readonly observer?: boolean | undefined;
}

/** A blob as `weights list --store` shows it. */
export interface ListedBlob extends PinnedBlob {
  readonly name: string;
  readonly category: string;
  readonly source: string;
  readonly links: readonly string[];
}

const PLACING = "being put in place";
/** Readable by all and writable by nobody: what changes a blob changes it for everybody. */
const BLOB_MODE = 0o444;
/** Without a pin: the bytes stay whatever becomes of the blob's name. */
const LASTING_METHODS = methodsFor("link").filter((method) => method !== "symbolic link");

export class WeightStore implements StorePort, Disposable {
  readonly root: string;
  /** False: it is only read. */
  readonly writable: boolean;
  readonly mode: "link" | "copy";
  readonly #options: StoreOptions;
  readonly #content: StoreContent;
  readonly #room: StoreRoom;
  readonly #lease: Lease | undefined;
  readonly #log: Logger;
  readonly #told = new Set<string>();

  /** @throws ConfigError for a folder that is not ours, or that can't be made */
  constructor(options: StoreOptions) {
    this.#options = options;
    this.#log = options.log.child("store");
    const layout = openLayout(options.root, options.modelsRoots);
    this.root = layout.root;
    this.writable = layout.writable;
    const isRemote = REMOTE_FILE_SYSTEMS.has(freeSpace(layout.root).type);
    const wanted = options.mode ?? "auto";
    const automatic = isRemote ? "copy" : "link";
    this.mode = wanted === "auto" ? automatic : wanted;
    this.#content = new StoreContent(this.root, this.writable, this.#log);
    const times = options.leaseTimes ?? DEFAULT_LEASE_TIMES;
    const leases = this.writable && options.observer !== true;
    this.#lease = leases
      ? new Lease(this.root, times, {
          lost: () => this.#onLeaseLost(),
          renewed: () => this.#releaseLinks(),
        })
      : undefined;
    this.#room = new StoreRoom({
      root: this.root,
      content: this.#content,
      lease: this.#lease,
      silentMs: times.silentMs,
      renewMs: times.renewMs,
      maxBytes: options.maxBytes,
      minFreeBytes: options.minFreeBytes,
      log: this.#log,
      onUnlinked: (path) => this.#log.info(`Removed the link ${path}`),
    });
    if (!this.writable) {
      this.#log.warn(
        `The store ${this.root} can't be written: what it holds is used, nothing is added, and nothing keeps others from evicting it`,
      );
    }
  }

  // --- what the installer asks -----------------------------------------------------------------------------------

  handles(job: InstallJob): boolean {
    return isOneFile(job) && this.#isUsable();
  }

  growth(job: InstallJob, identity: ObjectIdentity): Growth | undefined {
    if (!this.handles(job)) {
      return undefined;
    }
    const sha = shaOf(job) ?? (isArchive(job) ? undefined : identity.sha256?.toLowerCase());
    const version = `${identity.url} ${identity.sizeBytes} ${identity.etag ?? ""}`;
    const key = sha === undefined ? `address:${version}` : `sha256:${sha}`;
    return { root: join(this.root, PARTIAL_FOLDER), key };
  }

  async serve(job: InstallJob, options: PlaceOptions = {}): Promise<InstalledWeight | undefined> {
    if (!isOneFile(job)) {
      return undefined;
    }
    const sha = this.#shaFor(job);
    // A look before the lease is written: most misses cost no more than this.
    if (sha === undefined || !this.#content.has(sha)) {
      return undefined;
    }
    try {
      return await this.#place(sha, job, options);
    } catch (error) {
      if (isDiskFull(error)) {
        this.#tellOnce(
          "full",
          `The store's disk is full, so weights can't be pinned there: what it holds is used by hard link or copy, which no eviction can hurt`,
        );
        return await this.#place(sha, job, options, "unpinned");
      }
      if (isStore(this.root)) {
        throw error;
      }
      // It was deleted under our hands: the weight comes from its source.
      return undefined;
    }
  }

  async reserve(job: InstallJob, folder: string, bytes: number | undefined): Promise<Disposable> {
    const wanted = bytes ?? job.sizeBytes ?? 0;
    // An archive and what is unpacked of it lie there side by side for a moment.
    try {
      return await this.#room.take(job.name, folder, isArchive(job) ? 2 * wanted : wanted);
    } catch (error) {
      throw isDiskFull(error) ? fileError(error, this.root, "take room in the store") : error;
    }
  }

  async take(
    file: VerifiedFile,
    job: InstallJob,
    from: { readonly source: WeightSource; readonly identity: ObjectIdentity },
    options: PlaceOptions = {},
  ): Promise<InstalledWeight> {
    const { sha256 } = file;
    if (sha256 === undefined) {
      throw new DownloadError("INTERNAL", `${job.name} was to be stored without a digest`);
    }
    remake(this.root);
    using _pin = this.#lease?.pin([sha256], PLACING);
    await this.#room.settled(sha256, options.signal);
    // An altered one of this name is set aside first, so that it can't be in the way.
    if (!(await this.#content.isGood(sha256))) {
      await publish(file, blobPath(this.root, sha256), { mode: BLOB_MODE });
    }
    this.#note(sha256, file.sizeBytes, job, from);
    const placed = await this.#place(sha256, job, options);
    if (placed === undefined) {
      throw new DownloadError("IO_ERROR", `${job.name} has gone from the store ${this.root}`, {
        hint: "Leave the store's files alone while it is in use, and try again.",
        retryable: true,
      });
    }
    return { ...placed, source: from.identity.url, fetched: true };
  }

  async keep(
    installed: InstalledWeight,
    job: InstallJob,
    from: { readonly source: WeightSource; readonly identity: ObjectIdentity },
  ): Promise<void> {
    if (!this.handles(job) || fileAt(installed.file)?.isFile() !== true) {
      return;
    }
    try {
      const sha256 = installed.sha256 ?? (await this.#options.digests.of(installed.file));
      using _pin = this.#lease?.pin([sha256], PLACING);
      await this.#room.settled(sha256);
      if (!(await this.#content.isGood(sha256))) {
        this.#copyIn(installed.file, sha256);
      }
      this.#note(sha256, installed.sizeBytes, job, from);
      this.#options.digests.note(installed.file, sha256);
    } catch (error) {
      this.#log.warn(`${job.name} was installed, but not stored: ${messageOf(error)}`);
    }
  }

  /** Under the blob's name whole or not at all. */
  #copyIn(file: string, sha256: string): void {
    const draft = join(this.root, "tmp", `${sha256}-${process.pid}`);
    try {
      copyFileBytes(file, draft);
      chmodSync(draft, BLOB_MODE);
      makeFolder(dirname(blobPath(this.root, sha256)));
      renameWithoutReplacing(draft, blobPath(this.root, sha256));
    } finally {
      rmSync(draft, { force: true });
    }
  }

  #note(
    sha256: string,
    size: number,
    job: InstallJob,
    { source, identity }: { readonly source: WeightSource; readonly identity: ObjectIdentity },
  ): void {
    const { name, category } = job;
    const { etag, lastModified } = identity;
    this.#content.setMeta({ sha256, size, name, category, source: identity.url, etag });
    this.#content.setRef({ url: addressKey(source, job), sha256, size, etag, lastModified });
  }

  // --- what the program asks -------------------------------------------------------------------------------------

  /** Blobs that no process may evict until the result is disposed. */
  pin(shas: readonly string[], reason: string): Disposable {
    if (this.#lease === undefined || shas.length === 0) {
      return { [Symbol.dispose]: () => undefined };
    }
    try {
      return this.#lease.pin(shas, reason);
    } catch (error) {
      this.#tellOnce("pin", `The store can't be written to pin weights: ${messageOf(error)}`);
      return this.#lease.pinWhenPossible(shas, reason);
    }
  }

  /** They were used now. */
  touch(shas: readonly string[]): void {
    for (const sha of shas) {
      this.#content.touch(sha);
    }
  }

  /** Links of an earlier process in our models folders: from now on ours to protect. */
  adopt(files: readonly { readonly path: string; readonly sha256: string }[]): void {
    const ours = files.filter(({ path, sha256 }) => leadsTo(path, blobPath(this.root, sha256)));
    this.#lease?.addLinks(ours.map(({ sha256 }) => sha256));
    for (const { path, sha256 } of ours) {
      this.#recordLink(sha256, path);
    }
  }

  /** True for a link to a blob that is good as far as a stat can tell. */
  vouches(path: string, sha256: string): boolean {
    return leadsTo(path, blobPath(this.root, sha256)) && this.#content.looksGood(sha256);
  }

  /** True when the file at `path` was put there by a store like this one: a link to a blob, or nowhere any more. */
  isStored(path: string, sha256: string | undefined): boolean {
    return (
      (sha256 !== undefined && leadsTo(path, blobPath(this.root, sha256))) ||
      (isDangling(path) && entryAt(path) !== undefined)
    );
  }

  has(sha256: string): boolean {
    return this.#content.has(sha256);
  }

  usage(): Usage {
    return this.#room.usage();
  }

  /** When a blob was last used, by the store's clock. */
  usedAt(sha256: string): Date | undefined {
    const ms = this.#content.usedMs(sha256);
    return ms === undefined ? undefined : new Date(ms);
  }

  list(): ListedBlob[] {
    return this.#room.usage().blobs.map((blob) => {
      const meta = this.#content.meta(blob.sha256);
      return {
        ...blob,
        name: meta?.name ?? "unknown",
        category: meta?.category ?? "",
        source: meta?.source ?? "",
        links: this.#room.linksOf(blob.sha256),
      };
    });
  }

  /** What `gc` would remove, or removes: unfinished junk, and as much as is above `maxBytes`. */
  gc(options: { readonly maxBytes?: number | undefined; readonly dryRun?: boolean }): Evicted[] {
    const usage = this.#room.usage();
    const excess = options.maxBytes === undefined ? 0 : usage.bytes - options.maxBytes;
    if (options.dryRun === true) {
      return this.#room
        .candidates(Math.max(0, excess), usage)
        .map((blob) => ({ ...blob, name: this.#room.nameOf(blob.sha256) }));
    }
    if (excess <= 0) {
      this.#room.removeJunk();
      return [];
    }
    return this.#room.evict(excess, usage);
  }

  /** Takes a weight out of a models folder; its blob goes too, unless somebody needs it. True when the blob went. */
  remove(path: string, sha256: string): boolean {
    const wasGood = this.#content.looksGood(sha256);
    if (removeLink(path, blobPath(this.root, sha256))) {
      this.#forgetLink(sha256, path);
      if (wasGood) {
        this.#content.refresh(sha256);
      }
    }
    if (this.#isLinked(sha256)) {
      // It is here under another name too, which nobody asked to remove.
      return false;
    }
    const blob = this.#room.usage().blobs.find((one) => one.sha256 === sha256);
    return (
      blob !== undefined && blob.pins.length === 0 && this.#room.evictBlobs([blob]).length === 1
    );
  }

  [Symbol.dispose](): void {
    this.#lease?.[Symbol.dispose]();
  }

  // --- inside ----------------------------------------------------------------------------------------------------

  #isUsable(): boolean {
    if (!this.writable || this.#lease === undefined) {
      return false;
    }
    try {
      remake(this.root);
      return true;
    } catch (error) {
      this.#tellOnce("gone", `The store can't be used, weights go without it: ${messageOf(error)}`);
      return false;
    }
  }

  /** The digest of what the job wants: stated by the operator, or remembered of an address. */
  #shaFor(job: InstallJob): string | undefined {
    const stated = shaOf(job);
    if (stated !== undefined) {
      return stated;
    }
    for (const source of job.sources) {
      const ref = this.#content.ref(addressKey(source, job));
      const fits = job.sizeBytes === undefined || ref?.size === job.sizeBytes;
      if (ref !== undefined && fits && this.#content.has(ref.sha256)) {
        return ref.sha256;
      }
    }
    return undefined;
  }

  async #place(
    sha: string,
    job: InstallJob,
    options: PlaceOptions,
    protection: "pinned" | "unpinned" = "pinned",
  ): Promise<InstalledWeight | undefined> {
    const lease = protection === "pinned" ? this.#lease : undefined;
    using _pin = lease?.pin([sha], PLACING);
    if (lease !== undefined) {
      await this.#room.settled(sha, options.signal);
    }
    if (!(await this.#content.isGood(sha, options.signal))) {
      return undefined;
    }
    const destination = jobKey(job);
    const how = await this.#put(sha, destination, options.replace === true, protection);
    if (how === "gone") {
      return undefined;
    }
    this.#content.touch(sha);
    this.#options.digests.note(destination, sha);
    const meta = this.#content.meta(sha);
    this.#log.info(`${job.name} comes from the store (${how})`, { file: destination, sha256: sha });
    return {
      name: job.name,
      category: job.category,
      file: destination,
      sizeBytes: fileAt(destination)?.size ?? 0,
      sha256: sha,
      source: meta?.source ?? "",
      fetched: false,
    };
  }

  async #put(
    sha: string,
    destination: string,
    replace: boolean,
    protection: "pinned" | "unpinned",
  ): Promise<LinkMethod | "there already" | "gone"> {
    const blob = blobPath(this.root, sha);
    if (leadsTo(destination, blob)) {
      if (protection === "pinned") {
        this.#lease?.addLinks([sha]);
        this.#keepRecord(sha, destination);
      }
      return "there already";
    }
    if (this.mode === "copy") {
      return await this.#copy(sha, destination, replace);
    }
    const how =
      protection === "pinned"
        ? this.#link(sha, destination, replace)
        : linkBlob({ blob, destination, methods: LASTING_METHODS, replace });
    if (how === "taken") {
      await this.#requireSame(sha, destination);
      return "there already";
    }
    return how;
  }

  #link(sha: string, destination: string, replace: boolean): LinkMethod | "taken" | "gone" {
    const blob = blobPath(this.root, sha);
    // Both before the link is made: who evicts looks at leases and records, also when we are killed right after it.
    this.#lease?.addLinks([sha]);
    this.#recordLink(sha, destination);
    const how = linkBlob({ blob, destination, methods: methodsFor("link"), replace });
    if (how === "symbolic link" && !this.#content.has(sha)) {
      // We were paused for so long that others took us for dead, and evicted it between two of these lines.
      removeLink(destination, blob);
      this.#forgetLink(sha, destination);
      return "gone";
    }
    if (leadsTo(destination, blob)) {
      this.#keepRecord(sha, destination);
    } else {
      this.#forgetLink(sha, destination);
    }
    if (how === "hard link") {
      this.#content.refresh(sha);
    }
    if (how !== "gone" && how !== "taken") {
      this.#tellOnce(how, `Weights are put into the models folder by ${how}`);
    }
    return how;
  }

  /** Staged on the local disk, within its budget; every byte is compared on the way. */
  async #copy(
    sha: string,
    destination: string,
    replace: boolean,
  ): Promise<"copy" | "there already" | "gone"> {
    const blob = blobPath(this.root, sha);
    const size = statSync(blob, { throwIfNoEntry: false })?.size ?? 0;
    await this.#options.copies?.makeRoom(size, destination);
    const hasher = new Bun.CryptoHasher("sha256");
    const how = linkBlob({
      blob,
      destination,
      methods: methodsFor("copy"),
      replace,
      seen: (block) => hasher.update(block),
    });
    if (how === "gone") {
      return how;
    }
    if (how === "taken") {
      await this.#requireSame(sha, destination);
      return "there already";
    }
    if (hasher.digest("hex") !== sha) {
      rmSync(destination, { force: true });
      this.#log.warn(`The store's copy of ${destination} can't be read whole; it is fetched again`);
      return "gone";
    }
    const root = partialRootFor(destination, this.#options.modelsRoots);
    remember(root, { name: destination, destination, sizeBytes: size, sha256: sha, source: blob });
    this.#options.copies?.add(destination, sha, size);
    this.#tellOnce(
      "staged",
      `Weights are copied from the store to the local disk (${formatSize(size)} now): through the store's file system ComfyUI would load them slowly`,
    );
    return "copy";
  }

  async #requireSame(sha: string, destination: string): Promise<void> {
    const isFile = fileAt(destination)?.isFile() === true;
    if (!isFile || (await this.#options.digests.of(destination)) !== sha) {
      throw conflict(destination);
    }
  }

  #recordLink(sha: string, path: string): void {
    if (this.writable) {
      writeSmall(this.root, linkRecordPath(this.root, sha, path), JSON.stringify({ path }));
    }
  }

  /** Another process of this models folder may have removed the record together with an earlier link. */
  #keepRecord(sha: string, path: string): void {
    if (fileAt(linkRecordPath(this.root, sha, path)) === undefined) {
      this.#recordLink(sha, path);
    }
  }

  /** After a link was removed. */
  #forgetLink(sha: string, path: string): void {
    const blob = blobPath(this.root, sha);
    if (this.writable) {
      rmSync(linkRecordPath(this.root, sha, path), { force: true });
    }
    if (leadsTo(path, blob)) {
      // Another process of this models folder has just made it again.
      this.#keepRecord(sha, path);
    }
    this.#unprotect(sha);
  }

  /** A blob counts as linked for as long as one of our links leads to it. */
  #unprotect(sha: string): void {
    if (!this.#isLinked(sha)) {
      this.#lease?.removeLinks([sha]);
    }
  }

  #isLinked(sha: string): boolean {
    const blob = blobPath(this.root, sha);
    return this.#room.linksOf(sha).some((path) => this.#isOurs(path) && leadsTo(path, blob));
  }

  #isOurs(path: string): boolean {
    return this.#options.modelsRoots.some((root) => isInside(root, path));
  }

  /** Somebody lacks room: links that nothing here needs go. What stays in the store is linked again at its next use. */
  #releaseLinks(): void {
    try {
      if (!this.#room.isRoomWanted()) {
        return;
      }
      // Another process may run on this very models folder, and have reasons of its own.
      const others = this.#room.reasonsOfOthers();
      const spare = [...(this.#lease?.links ?? [])].filter(
        (sha) => this.#lease?.reasons(sha).length === 0 && !others.has(sha),
      );
      for (const sha of spare) {
        this.#releaseLink(sha);
      }
    } catch (error) {
      this.#log.debug(`Links could not be given up: ${messageOf(error)}`);
    }
  }

  #releaseLink(sha: string): void {
    for (const path of this.#room.linksOf(sha)) {
      if (this.#isOurs(path) && removeLink(path, blobPath(this.root, sha))) {
        this.#forgetLink(sha, path);
        this.#log.info(`Gave up the link ${path}: another process needs room in the store`);
      }
    }
    this.#unprotect(sha);
  }

  #onLeaseLost(): void {
    const links = [...(this.#lease?.links ?? [])];
    const gone = links.filter((sha) => !this.#content.has(sha));
    this.#log.warn(
      `This process was silent for so long that others took it for dead. It goes on; ${gone.length === 0 ? "nothing that it needs was evicted" : `${gone.length} weights were evicted and are fetched again when needed`}`,
    );
    this.#lease?.removeLinks(gone);
  }

  #tellOnce(key: string, text: string): void {
    if (!this.#told.has(key)) {
      this.#told.add(key);
      this.#log.info(text);
    }
  }
}

/** Stated by whoever may say what a weight is. A request's own word for a hash names no blob of others. */
function shaOf(job: InstallJob): string | undefined {
  const source = job.sources.find(
    ({ sha256, trust }) => sha256 !== undefined && trust === "operator",
  );
  return (job.sha256 ?? (isArchive(job) ? undefined : source?.sha256))?.toLowerCase();
}

/** One address, whatever token somebody asks it with; of an archive, the file in it. */
function addressKey(source: WeightSource, job: InstallJob): string {
  return isArchive(job) ? `${redactUrl(source.url)}#${memberName(job)}` : redactUrl(source.url);
}

function isArchive(job: InstallJob): boolean {
  return (
    job.unpack !== undefined || (job.sources.length > 0 && job.sources.every(looksLikeArchive))
  );
}

/** A weight that is one file. Folders are not stored. */
function isOneFile(job: InstallJob): boolean {
  return isArchive(job) ? looksLikeWeight(memberName(job)) : !job.sources.some(looksLikeArchive);
}
