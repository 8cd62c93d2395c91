/**
 * Leases: what every process that uses a store says of itself, in a file of its own that it rewrites while it lives.
 * In it stand the blobs it needs and why, and the room it has taken for downloads. A lease that falls silent counts for
 * nothing; its owner finds that out when it wakes and starts anew. No locks: every decision is one rename, and times are
 * the file system's own.
 */
import { randomBytes } from "node:crypto";
import { readFileSync, rmSync, statSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { fateOf, ownMark } from "../platform/process-start.ts";
import { entriesOf, storeNow, writeSmall } from "./store-layout.ts";

const LeaseDocument = z.object({
  v: z.literal(1),
  host: z.string(),
  pid: z.number(),
  /** Of the process table that `pid` is of: the same number elsewhere is another process. */
  table: z.string(),
  startTicks: z.string().nullable(),
  /** Blob → why it must stay. */
  pins: z.record(z.string(), z.array(z.string())),
  /** Blobs that the process's models folders hold links to. */
  links: z.array(z.string()),
  /** Folder that a download grows in → room taken for it. */
  rooms: z.record(z.string(), z.object({ bytes: z.number(), granted: z.boolean() })),
});
type LeaseDocument = z.output<typeof LeaseDocument>;

export interface ForeignLease extends LeaseDocument {
  readonly id: string;
  /** How people are told of the process. */
  readonly holder: string;
}

export interface LeaseEvents {
  /** Others have taken this process for dead. */
  lost(): void;
  renewed(): void;
}

/** How often a lease is renewed, and after which silence it counts for nothing. */
export interface LeaseTimes {
  readonly renewMs: number;
  readonly silentMs: number;
}

export const DEFAULT_LEASE_TIMES: LeaseTimes = { renewMs: 10_000, silentMs: 60_000 };

/** This process's lease. */
export class Lease implements Disposable {
  readonly id: string;
  readonly #root: string;
  readonly #on: LeaseEvents;
  readonly #pins = new Map<string, Map<string, number>>();
  readonly #links = new Set<string>();
  readonly #rooms = new Map<string, { bytes: number; granted: boolean }>();
  readonly #timer: Timer;
  readonly #self: Pick<LeaseDocument, "host" | "pid" | "table" | "startTicks">;
  #written = false;

  constructor(root: string, times: LeaseTimes, on: LeaseEvents) {
    this.#root = root;
    this.#on = on;
    this.id = `${hostname()
      .replace(/[^\w-]+/g, "_")
      .slice(0, 40)}-${process.pid}-${randomBytes(4).toString("hex")}`;
    this.#self = {
      host: hostname(),
      ...ownMark(),
    };
    this.#timer = setInterval(() => this.#renew(), times.renewMs);
    this.#timer.unref();
  }

  get path(): string {
    return join(this.#root, "leases", `${this.id}.json`);
  }

  /** From the moment this returns, no process evicts these blobs, until it is disposed. */
  pin(shas: readonly string[], reason: string): Disposable {
    const pinned = this.#remember(shas, reason);
    try {
      this.write();
    } catch (error) {
      pinned[Symbol.dispose]();
      throw error;
    }
    return pinned;
  }

  /** As {@link pin} where the lease can be written, else from the next renewal that succeeds. */
  pinWhenPossible(shas: readonly string[], reason: string): Disposable {
    const pinned = this.#remember(shas, reason);
    this.tryWrite();
    return pinned;
  }

  #remember(shas: readonly string[], reason: string): Disposable {
    for (const sha of shas) {
      const reasons = this.#pins.get(sha) ?? new Map<string, number>();
      reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
      this.#pins.set(sha, reasons);
    }
    let pinned = true;
    return {
      [Symbol.dispose]: () => {
        if (pinned) {
          pinned = false;
          this.#unpin(shas, reason);
        }
      },
    };
  }

  #unpin(shas: readonly string[], reason: string): void {
    for (const sha of shas) {
      const reasons = this.#pins.get(sha);
      const count = (reasons?.get(reason) ?? 1) - 1;
      if (count > 0) {
        reasons?.set(reason, count);
      } else {
        reasons?.delete(reason);
      }
      if (reasons?.size === 0) {
        this.#pins.delete(sha);
      }
    }
    this.tryWrite();
  }

  /** This process's own reasons for a blob. */
  reasons(sha: string): string[] {
    return [...(this.#pins.get(sha)?.keys() ?? [])];
  }

  /** Every blob that this process has a reason to keep, apart from mere links. */
  pinned(): string[] {
    return [...this.#pins.keys()];
  }

  ownRooms(): LeaseDocument["rooms"] {
    return Object.fromEntries(this.#rooms);
  }

  get links(): ReadonlySet<string> {
    return this.#links;
  }

  addLinks(shas: readonly string[]): void {
    const added = shas.filter((sha) => !this.#links.has(sha));
    if (added.length === 0) {
      return;
    }
    for (const sha of added) {
      this.#links.add(sha);
    }
    try {
      this.write();
    } catch (error) {
      this.removeLinks(added);
      throw error;
    }
  }

  removeLinks(shas: readonly string[]): void {
    for (const sha of shas) {
      this.#links.delete(sha);
    }
    this.tryWrite();
  }

  setRoom(key: string, room: { bytes: number; granted: boolean } | undefined): void {
    if (room === undefined) {
      this.#rooms.delete(key);
      this.tryWrite();
    } else {
      this.#rooms.set(key, room);
      this.write();
    }
  }

  write(): void {
    const document: LeaseDocument = {
      v: 1,
      ...this.#self,
      pins: Object.fromEntries([...this.#pins].map(([sha, reasons]) => [sha, [...reasons.keys()]])),
      links: [...this.#links],
      rooms: Object.fromEntries(this.#rooms),
    };
    this.#noticeLoss();
    writeSmall(this.#root, this.path, JSON.stringify(document));
    this.#written = true;
  }

  /** What only lets go may fail: the lease then falls silent by itself. */
  tryWrite(): void {
    try {
      this.write();
    } catch {
      // The store has gone or is full; the next renewal tries again.
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#written = false;
    rmSync(this.path, { force: true });
  }

  #renew(): void {
    if (this.#written) {
      this.tryWrite();
      this.#on.renewed();
    }
  }

  /** Somebody who thought us dead has removed the lease: nothing that it protected is sure to be there. */
  #noticeLoss(): void {
    if (this.#written && statSync(this.path, { throwIfNoEntry: false }) === undefined) {
      this.#written = false;
      this.#on.lost();
    }
  }
}

/**
 * Every living process's lease. Silent ones are removed: whoever wakes after that starts with a new one.
 * `except`: the reader's own.
 */
export function livingLeases(root: string, silentMs: number, except?: string): ForeignLease[] {
  const names = entriesOf(join(root, "leases")).filter((name) => name.endsWith(".json"));
  if (names.length === 0) {
    return [];
  }
  let now: number | undefined;
  return names.flatMap((name) => {
    const id = name.slice(0, -".json".length);
    const path = join(root, "leases", name);
    if (id === except) {
      return [];
    }
    const stat = statSync(path, { throwIfNoEntry: false });
    const document = stat === undefined ? undefined : readLease(path);
    if (stat === undefined || document === undefined) {
      return [];
    }
    now ??= nowOf(root);
    if (fateOf(document) === "ended" || now - stat.mtimeMs > silentMs) {
      rmSync(path, { force: true });
      return [];
    }
    return [{ ...document, id, holder: `${document.host}, process ${document.pid}` }];
  });
}

function nowOf(root: string): number {
  try {
    return storeNow(root);
  } catch {
    // A store that can only be read: this machine's clock is the only one to be had.
    return Date.now();
  }
}

function readLease(path: string): LeaseDocument | undefined {
  try {
    const parsed = LeaseDocument.safeParse(JSON.parse(readFileSync(path, "utf8")));
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}
