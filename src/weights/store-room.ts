/**
 * A store's budget: room is taken before a download begins, and made by evicting what nobody needs, least recently used
 * first. Nothing is locked. Who wants room writes that down first and counts afterwards, so that of two who would
 * together take too much at least one sees the other; who evicts announces it first and looks at the leases afterwards,
 * while who needs a blob pins it first and looks at the announcements afterwards.
 */
import { randomBytes } from "node:crypto";
import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { DownloadError } from "../platform/errors.ts";
import { freeSpace, removeTree } from "../platform/files.ts";
import type { Logger } from "../platform/log.ts";
import { sleep } from "../platform/retry.ts";
import { formatSize } from "../platform/size.ts";
import { listPartials, PARTIAL_FOLDER, removePartials } from "./journal.ts";
import type { StoreContent, StoredBlob } from "./store-content.ts";
import {
  blobPath,
  entriesOf,
  linksFolder,
  metaPath,
  restore,
  storeNow,
  usedPath,
  writeSmall,
} from "./store-layout.ts";
import type { ForeignLease, Lease } from "./store-lease.ts";
import { livingLeases } from "./store-lease.ts";
import { removeLink } from "./store-link.ts";

export interface RoomOptions {
  readonly root: string;
  readonly content: StoreContent;
  /** undefined for whoever only looks and tidies up. */
  readonly lease: Lease | undefined;
  readonly silentMs: number;
  readonly renewMs: number;
  readonly maxBytes: number | undefined;
  readonly minFreeBytes: number | undefined;
  readonly log: Logger;
  /** Names that a link's file was removed from its models folder. */
  readonly onUnlinked?: ((path: string) => void) | undefined;
}

/** A blob with the reasons why it must stay. */
export interface PinnedBlob extends StoredBlob {
  /** `why (whose)`, one entry each; empty: it may go. */
  readonly pins: readonly string[];
  /** Nobody gives a reason; some have a link to it, which they give up when room is asked for. */
  readonly linkedOnly: boolean;
}

export interface Usage {
  readonly blobs: readonly PinnedBlob[];
  /** Of blobs, downloads and what was set aside. */
  readonly bytes: number;
  readonly blobBytes: number;
  /** Taken by downloads that go on. */
  readonly roomBytes: number;
  /** Of it, on the disk by now. */
  readonly partialBytes: number;
}

export interface Evicted {
  readonly sha256: string;
  readonly name: string;
  readonly size: number;
}

const LinkRecord = z.object({ path: z.string() });

/** Touched by whoever lacks room. */
const ROOM_WANTED = "room-wanted";
/** An announcement older than this was made by a process that is gone. */
const STALE_INTENT_MS = 15_000;
/** What lies in trash and tmp this long is nobody's. */
const STALE_JUNK_MS = 120_000;
/** How long two who stand in each other's way try again. */
const CONTENTION_MS = 10_000;
const CONTENTION_PAUSE_MS = 60;
/** A tenth of the disk, at most 10 GB: as for models folders. */
const DEFAULT_MIN_FREE_BYTES = 10e9;
const DEFAULT_MIN_FREE_SHARE = 0.1;

export class StoreRoom {
  readonly #options: RoomOptions;

  constructor(options: RoomOptions) {
    this.#options = options;
  }

  /** Everything in the store with who needs it. */
  usage(): Usage {
    const { root, content, lease, silentMs } = this.#options;
    const others = livingLeases(root, silentMs, lease?.id);
    const pins = new Map<string, string[]>();
    const add = (sha: string, why: string): void => {
      pins.set(sha, [...(pins.get(sha) ?? []), why]);
    };
    for (const { pins: reasons, links, holder } of others) {
      for (const sha of new Set([...Object.keys(reasons), ...links])) {
        const why = reasons[sha] ?? [];
        add(
          sha,
          `${why.length === 0 ? "linked into its models folder" : why.join(", ")} (${holder})`,
        );
      }
    }
    const reasoned = reasonsIn(others);
    const blobs = content.list().map((blob): PinnedBlob => {
      const own = lease?.reasons(blob.sha256) ?? [];
      return {
        ...blob,
        linkedOnly: own.length === 0 && pins.has(blob.sha256) && !reasoned.has(blob.sha256),
        pins: [...own.map((why) => `${why} (this process)`), ...(pins.get(blob.sha256) ?? [])],
      };
    });
    const rooms = [...others.map(({ rooms: one }) => one), lease?.ownRooms() ?? {}];
    const roomBytes = sum(rooms.flatMap((one) => Object.values(one)).map(({ bytes }) => bytes));
    // What grows in a folder that has room taken is in that room; what others left counts as it lies there.
    const roomy = new Set(rooms.flatMap((one) => Object.keys(one)));
    const partials = listPartials([join(root, PARTIAL_FOLDER)]);
    const left = partials.filter(({ path }) => !roomy.has(path));
    const blobBytes = sum(blobs.map(({ size }) => size));
    const leftBytes = sum(left.map(({ allocatedBytes }) => allocatedBytes));
    return {
      blobs,
      blobBytes,
      roomBytes,
      partialBytes: sum(partials.map(({ allocatedBytes }) => allocatedBytes)) - leftBytes,
      bytes: blobBytes + roomBytes + leftBytes + this.#junkBytes(),
    };
  }

  /** The blobs for which another process gives a reason; a mere link is none. */
  reasonsOfOthers(): Set<string> {
    const { root, lease, silentMs } = this.#options;
    return reasonsIn(livingLeases(root, silentMs, lease?.id));
  }

  /** What the first process that brought a blob called it. */
  nameOf(sha256: string): string {
    return this.#options.content.meta(sha256)?.name ?? sha256.slice(0, 12);
  }

  /**
   * Room for a download, until the result is disposed: by then its bytes are a blob, or gone.
   * @throws DownloadError NO_SPACE with everything that is pinned, and by whom
   */
  async take(
    name: string,
    folder: string,
    bytes: number,
    signal?: AbortSignal,
  ): Promise<Disposable> {
    const { lease, maxBytes } = this.#options;
    if (lease === undefined) {
      return { [Symbol.dispose]: () => undefined };
    }
    const until = performance.now() + Math.max(CONTENTION_MS, this.#options.renewMs * 3);
    for (;;) {
      lease.setRoom(folder, { bytes, granted: false });
      try {
        const verdict = this.#fit();
        if (verdict === "fits") {
          lease.setRoom(folder, { bytes, granted: true });
          return { [Symbol.dispose]: () => lease.setRoom(folder, undefined) };
        }
        const onlyWishes = verdict === "contended" && performance.now() < until;
        if (!onlyWishes) {
          throw this.#noRoom(name, bytes, maxBytes);
        }
      } catch (error) {
        lease.setRoom(folder, undefined);
        throw error;
      }
      // Two wishes that don't fit together: both step back, and try again at different times.
      lease.setRoom(folder, undefined);
      await sleep(CONTENTION_PAUSE_MS * (0.5 + Math.random() * 2), signal);
    }
  }

  /** Evicts until everything that is written down fits. */
  #fit(): "fits" | "contended" | "full" {
    for (let round = 0; round < 3; round += 1) {
      const usage = this.usage();
      const excess = this.#excess(usage);
      if (excess <= 0) {
        return "fits";
      }
      this.evict(excess, usage);
    }
    const usage = this.usage();
    const excess = this.#excess(usage);
    if (excess <= 0) {
      return "fits";
    }
    const linked = sum(usage.blobs.filter(({ linkedOnly }) => linkedOnly).map(({ size }) => size));
    if (linked > 0) {
      this.#askForRoom();
    }
    return excess <= this.#wishedBytes() + linked ? "contended" : "full";
  }

  /** Other processes give up links that they don't need, when they next renew their leases. */
  #askForRoom(): void {
    writeSmall(this.#options.root, join(this.#options.root, ROOM_WANTED), "");
  }

  /** True when another process lacks room at the moment. */
  isRoomWanted(): boolean {
    const { root, renewMs } = this.#options;
    const at = statSync(join(root, ROOM_WANTED), { throwIfNoEntry: false })?.mtimeMs;
    return at !== undefined && storeNow(root) - at < renewMs * 3;
  }

  /** Bytes too many, by the budget or by what the disk must keep free. */
  #excess(usage: Usage): number {
    const { root, maxBytes } = this.#options;
    const over = maxBytes === undefined ? 0 : usage.bytes - maxBytes;
    const { freeBytes, totalBytes } = freeSpace(root);
    const minFree =
      this.#options.minFreeBytes ??
      Math.min(DEFAULT_MIN_FREE_BYTES, totalBytes * DEFAULT_MIN_FREE_SHARE);
    const toCome = Math.max(0, usage.roomBytes - usage.partialBytes);
    return Math.max(over, toCome === 0 ? 0 : toCome + minFree - freeBytes);
  }

  /** Room that others only wish for and have not got. */
  #wishedBytes(): number {
    const { root, silentMs, lease } = this.#options;
    return livingLeases(root, silentMs, lease?.id)
      .flatMap(({ rooms }) => Object.values(rooms))
      .filter(({ granted }) => !granted)
      .reduce((total, { bytes }) => total + bytes, 0);
  }

  /** What would go, least recently used first, to free so many bytes. */
  candidates(bytes: number, usage: Usage = this.usage()): PinnedBlob[] {
    const chosen: PinnedBlob[] = [];
    let freed = 0;
    const free = usage.blobs.filter(({ pins }) => pins.length === 0);
    for (const blob of free.toSorted((one, other) => one.usedMs - other.usedMs)) {
      if (freed >= bytes) {
        break;
      }
      chosen.push(blob);
      freed += blob.size;
    }
    return chosen;
  }

  /** Frees so many bytes if that can be done without touching what anybody needs. */
  evict(bytes: number, usage: Usage = this.usage()): Evicted[] {
    const junk = this.removeJunk();
    const evicted = bytes > junk ? this.evictBlobs(this.candidates(bytes - junk, usage)) : [];
    const freed = junk + sum(evicted.map(({ size }) => size));
    if (freed < bytes) {
      removePartials([join(this.#options.root, PARTIAL_FOLDER)], 0);
    }
    return evicted;
  }

  /** Removes these blobs, unless somebody has come to need them meanwhile. */
  evictBlobs(victims: readonly PinnedBlob[]): Evicted[] {
    const { lease, log } = this.#options;
    const shas = victims.map(({ sha256 }) => sha256);
    return this.#announced(shas, (free, mark) => {
      const evicted = this.#discard(
        victims.filter(({ sha256 }) => free.has(sha256)),
        mark,
      );
      lease?.removeLinks(evicted.map(({ sha256 }) => sha256));
      for (const { sha256, name, size } of evicted) {
        log.info(`Evicted ${name} from the store`, { sha256, size: formatSize(size) });
      }
      return evicted;
    });
  }

  /**
   * Says that something is about to be done to these blobs, then does it to those that nobody needs. Whoever pins one
   * from now on waits until it is done.
   */
  #announced<T>(shas: readonly string[], use: (free: ReadonlySet<string>, mark: string) => T): T {
    const { root } = this.#options;
    const mark = randomBytes(6).toString("hex");
    const intents = shas.map((sha) => join(root, "evicting", `${sha}-${mark}`));
    try {
      for (const intent of intents) {
        writeFileSync(intent, "");
      }
      const needed = intents.length === 0 ? new Set<string>() : this.#neededShas();
      return use(new Set(shas.filter((sha) => !needed.has(sha))), mark);
    } finally {
      for (const intent of intents) {
        rmSync(intent, { force: true });
      }
    }
  }

  /** The blobs that anybody, ourselves included, has a reason to keep. */
  #neededShas(): Set<string> {
    const { root, lease, silentMs } = this.#options;
    const others = livingLeases(root, silentMs, lease?.id).flatMap(({ pins, links }) => [
      ...Object.keys(pins),
      ...links,
    ]);
    return new Set([...others, ...(lease?.pinned() ?? [])]);
  }

  #discard(victims: readonly PinnedBlob[], mark: string): Evicted[] {
    const { root } = this.#options;
    const named = victims.map(({ sha256, size }) => ({ sha256, size, name: this.nameOf(sha256) }));
    const moved = named.filter((blob) => {
      // Links first: none may lead nowhere, not even for a moment.
      this.#unlink(blob.sha256);
      try {
        renameSync(blobPath(root, blob.sha256), join(root, "trash", `${blob.sha256}-${mark}`));
        return true;
      } catch {
        return false;
      }
    });
    // Whoever was asleep between two of these lines, while its announcement ran out, looks once more.
    const needed = moved.length === 0 ? new Set<string>() : this.#neededShas();
    return moved.filter(({ sha256 }) => {
      const trash = join(root, "trash", `${sha256}-${mark}`);
      if (needed.has(sha256)) {
        restore(trash, blobPath(root, sha256));
        return false;
      }
      for (const path of [metaPath(root, sha256), usedPath(root, sha256), trash]) {
        rmSync(path, { force: true });
      }
      return true;
    });
  }

  #unlink(sha256: string): void {
    const { root, onUnlinked } = this.#options;
    for (const path of this.linksOf(sha256)) {
      if (removeLink(path, blobPath(root, sha256))) {
        onUnlinked?.(path);
      }
    }
    removeTree(linksFolder(root, sha256));
  }

  linksOf(sha256: string): string[] {
    const folder = linksFolder(this.#options.root, sha256);
    return entriesOf(folder).flatMap((name) => {
      try {
        const parsed = LinkRecord.safeParse(JSON.parse(readFileSync(join(folder, name), "utf8")));
        return parsed.success ? [parsed.data.path] : [];
      } catch {
        return [];
      }
    });
  }

  /** Waits until nobody is about to evict this blob; call it after pinning. */
  async settled(sha256: string, signal?: AbortSignal): Promise<void> {
    const { root } = this.#options;
    for (;;) {
      const intents = entriesOf(join(root, "evicting")).filter((name) => name.startsWith(sha256));
      const now = intents.length === 0 ? 0 : storeNow(root);
      const live = intents.filter((name) => {
        const at = statSync(join(root, "evicting", name), { throwIfNoEntry: false })?.mtimeMs;
        const isStale = at !== undefined && now - at > STALE_INTENT_MS;
        if (isStale) {
          rmSync(join(root, "evicting", name), { force: true });
        }
        return at !== undefined && !isStale;
      });
      if (live.length === 0) {
        this.#rescue(sha256);
        return;
      }
      await sleep(5, signal);
    }
  }

  /** A blob that a killed process left in the trash while somebody needs it. */
  #rescue(sha256: string): void {
    const { root, content } = this.#options;
    if (content.has(sha256)) {
      return;
    }
    for (const name of entriesOf(join(root, "trash")).filter((one) => one.startsWith(sha256))) {
      restore(join(root, "trash", name), blobPath(root, sha256));
    }
  }

  /** Removes what was set aside and what killed processes left. Returns the bytes. */
  removeJunk(): number {
    let bytes = 0;
    for (const { path, size, isStale } of this.#junk()) {
      if (isStale) {
        bytes += size;
        removeTree(path);
      }
    }
    this.#removeLinksToNothing();
    return bytes;
  }

  #removeLinksToNothing(): void {
    const { root, content } = this.#options;
    const gone = entriesOf(join(root, "links")).filter((sha) => !content.has(sha));
    this.#announced(gone, (free) => {
      // One that came back meanwhile has links again that somebody counts on being known.
      for (const sha of [...free].filter((one) => !content.has(one))) {
        this.#unlink(sha);
      }
    });
  }

  #junkBytes(): number {
    return this.#junk().reduce((sum, { size }) => sum + size, 0);
  }

  #junk(): { path: string; size: number; isStale: boolean }[] {
    const { root } = this.#options;
    const paths = ["quarantine", "trash", "tmp"].flatMap((folder) =>
      entriesOf(join(root, folder)).map((name) => ({ folder, path: join(root, folder, name) })),
    );
    const now = paths.length === 0 ? 0 : storeNow(root);
    return paths.flatMap(({ folder, path }) => {
      const stat = statSync(path, { throwIfNoEntry: false });
      // In the trash it may still be wanted back for a moment; what was set aside never is.
      const isStale = folder === "quarantine" || now - (stat?.ctimeMs ?? now) > STALE_JUNK_MS;
      return stat === undefined ? [] : [{ path, size: stat.size, isStale }];
    });
  }

  #noRoom(name: string, bytes: number, maxBytes: number | undefined): DownloadError {
    const { root } = this.#options;
    const usage = this.usage();
    const pinned = usage.blobs
      .filter(({ pins }) => pins.length > 0)
      .toSorted((one, other) => other.size - one.size);
    const lines = pinned.map(
      ({ sha256, size, pins }) =>
        `- ${this.nameOf(sha256)}, ${formatSize(size)}: ${pins.join("; ")}`,
    );
    const budget =
      maxBytes === undefined
        ? `${formatSize(freeSpace(root).freeBytes)} are free on its disk`
        : `its budget is ${formatSize(maxBytes)}`;
    const going =
      usage.roomBytes <= bytes
        ? ""
        : `\n- downloads that go on: ${formatSize(usage.roomBytes - bytes)}`;
    return new DownloadError(
      "NO_SPACE",
      `The store ${root} has no room for ${name} (${formatSize(bytes)}): ${budget}, and what is in it can't be evicted now.${lines.length === 0 ? "" : `\n${lines.join("\n")}`}${going}`,
      {
        hint: "Raise WEIGHTS_CACHE_MAX_BYTES, give the store a larger disk, or stop what needs these weights.",
        details: {
          needBytes: bytes,
          maxBytes: maxBytes ?? null,
          pinned: pinned.map(({ sha256, size, pins }) => ({
            sha256,
            name: this.nameOf(sha256),
            size,
            pins,
          })),
        },
      },
    );
  }
}

function reasonsIn(leases: readonly ForeignLease[]): Set<string> {
  return new Set(leases.flatMap(({ pins }) => Object.keys(pins)));
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0);
}
