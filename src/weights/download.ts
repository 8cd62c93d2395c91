/**
 * One representation of one file into one private partial file: several ranges at once, the slow tail stolen, sick
 * connections replaced, signatures renewed, every answer checked against the probe. Where a server can't do ranges,
 * one body from its start. Ends with all bytes on disk and their digest, or with the reason why not.
 */
import { closeSync, ftruncateSync, openSync } from "node:fs";
import { CanceledError, DownloadError } from "../platform/errors.ts";
import { fileError, freeSpace, noSpace, readFully } from "../platform/files.ts";
import { bareUrl, redactUrl } from "../platform/redact.ts";
import { retryDelay, sleep } from "../platform/retry.ts";
import { ChunkLedger } from "./chunks.ts";
import type { ConnectionBudget } from "./connections.ts";
import { digestBehind, digestOf } from "./digest.ts";
import type { Frontier } from "./frontier.ts";
import type { ObjectIdentity, PartialFolder } from "./journal.ts";
import type { Representation } from "./probe.ts";
import { contentRange, probe, refusalOf, requireIdentity, strongEtag, weakEtag } from "./probe.ts";
import type { Segment } from "./segments.ts";
import { gaps, SegmentQueue } from "./segments.ts";
import type { Address } from "./sources.ts";
import { sourceLabel } from "./sources.ts";
import type { Road, RoadAnswer } from "./transport.ts";
import { networkError } from "./transport.ts";
import type { Tuning } from "./tuning.ts";
import type { PartialFile } from "./verify.ts";
import { Writeback } from "./writeback.ts";

export interface DownloadContext {
  readonly road: Road;
  readonly budget: ConnectionBudget;
  readonly tuning: Tuning;
  readonly signal: AbortSignal;
  /** Gives a fresh address for the same source (a new signature, the redirect walked again). */
  readonly readdress: () => Address;
  /** Follows the file; others may follow it too. */
  readonly frontier: Frontier;
  readonly onBytes: (doneBytes: number) => void;
  /** False when nobody needs the digest (the inside of an archive is what counts). */
  readonly digest: boolean;
  /** False when the file itself is thrown away in the end: it need not reach the disk. */
  readonly lasting: boolean;
}

/** What a journal must know of an object to go on with it. */
export function identityOf(found: Representation, statedSha256?: string): ObjectIdentity {
  return {
    sizeBytes: found.sizeBytes ?? 0,
    etag: found.etag ?? null,
    lastModified: found.lastModified ?? null,
    sha256: found.sha256 ?? statedSha256 ?? null,
    // A revision that moves is told apart by its commit, not by its name.
    url: bareUrl(found.address.kind === "http" ? found.address.url : `file://${found.address.url}`),
  };
}

/** Brings every byte. The folder stays open; whoever called closes or removes it. */
export async function download(
  found: Representation,
  folder: PartialFolder,
  context: DownloadContext,
): Promise<PartialFile> {
  const { frontier } = context;
  const digesting = context.digest
    ? digestBehind(folder.content, frontier, found.sizeBytes ?? 0)
    : Promise.resolve(undefined);
  // Its failure is reported by the await below; until then nobody listens.
  digesting.catch(() => undefined);
  try {
    const sizeBytes = await bring(found, folder, context);
    frontier.advance(sizeBytes);
    frontier.end();
    const sha256 = await digesting;
    const isTrue = context.digest && !frontier.isTainted;
    return {
      path: folder.dataPath,
      sizeBytes,
      sha256: context.digest && !isTrue ? await digestOf(folder.content, context.signal) : sha256,
    };
  } catch (error) {
    frontier.fail(error);
    throw error;
  }
}

async function bring(
  found: Representation,
  folder: PartialFolder,
  context: DownloadContext,
): Promise<number> {
  if (found.address.kind === "file") {
    return await copyLocal(found, folder, context);
  }
  if (found.ranges && found.sizeBytes !== undefined) {
    const run = new RangedDownload(found, found.sizeBytes, folder, context);
    const complete = await run.run();
    if (complete) {
      return found.sizeBytes;
    }
  }
  return await new WholeDownload(found, folder, context).run();
}

/** One connection at work. */
interface Connection {
  readonly segment: Segment;
  readonly controller: AbortController;
  readonly startedAtMs: number;
  /** Headers are there; until then another deadline holds. */
  answered: boolean;
  lastByteAtMs: number;
  bytes: number;
  /** Bytes per second over the last ticks. */
  rate: number;
  bytesAtTick: number;
  slowSinceMs: number | undefined;
  /** Why we ended it ourselves. */
  ended: "stalled" | "slow" | undefined;
}

/** Weight of the newest tick in a connection's rate. */
const RATE_SMOOTHING = 0.3;
/** A request should last ten round trips, and at least and at most this long: what a cut costs stays small. */
const MIN_SPAN_SECONDS = 0.25;
const SPAN_SECONDS = 2;
const MAX_SPAN_CHUNKS = 8;
const MIN_SPAN_BYTES = 1024 * 1024;
/** A file that has come this many times faster makes a slow connection a sick one. */
const SICK_FACTOR = 8;
/** Taking over less time than this is not worth a request. */
const MIN_ETA_GAP_SECONDS = 0.2;
/** The last connections get this part of the patience that the others get. */
const LAST_HASTE = 10;
const STEAL_AFTER_TICKS = 3;
const IDLE_POLL_MS = 50;
/** A rise under this share of the rate is noise. */
const RAMP_GAIN = 1.05;
const HEARTBEAT_MS = 5000;
/** No more connections this soon after a fault. */
const CALM_MS = 2000;

class RangedDownload {
  #found: Representation;
  readonly #sizeBytes: number;
  readonly #folder: PartialFolder;
  readonly #context: DownloadContext;
  readonly #queue: SegmentQueue;
  readonly #ledger: ChunkLedger;
  readonly #connections = new Set<Connection>();
  readonly #writeback: Writeback | undefined;
  readonly #stop = new AbortController();
  #target: number;
  #workers = 0;
  readonly #running: Promise<void>[] = [];
  #failure: unknown;
  #fallBack = false;
  /** Tries since the last new byte. */
  #fruitless = 0;
  #rangeFaults = 0;
  #renewals = 0;
  #renewing: Promise<void> | undefined;
  #coveredAtFault = -1;
  /** Of any one connection so far. */
  #peakRate = 0;
  /** From asking to the first answer. */
  #latencySeconds = 0;
  #faultAtMs = Number.NEGATIVE_INFINITY;

  constructor(
    found: Representation,
    sizeBytes: number,
    folder: PartialFolder,
    context: DownloadContext,
  ) {
    this.#found = found;
    this.#sizeBytes = sizeBytes;
    this.#folder = folder;
    this.#context = context;
    this.#writeback = context.lasting ? new Writeback(folder.content.fd) : undefined;
    const done = new Set(folder.done.keys());
    this.#queue = new SegmentQueue(gaps(sizeBytes, folder.chunkBytes, done));
    this.#ledger = new ChunkLedger({
      sizeBytes,
      chunkBytes: folder.chunkBytes,
      content: folder.content,
      journal: folder,
      frontier: context.frontier,
      done,
    });
    this.#target = Math.min(
      context.tuning.startConnections,
      context.tuning.connectionsPerFile,
      Math.max(1, Math.ceil(this.#queue.pendingBytes / folder.chunkBytes)),
    );
  }

  /** True when every byte is there; false when the server turned out not to do ranges after all. */
  async run(): Promise<boolean> {
    const { signal, tuning } = this.#context;
    reserveSpace(this.#folder, this.#sizeBytes);
    this.#context.onBytes(this.#ledger.coveredBytes);
    const cancel = (): void => this.#fail(new CanceledError("The download was called off"));
    signal.addEventListener("abort", cancel, { once: true });
    if (signal.aborted) {
      cancel();
    }
    const ramp = new Ramp(tuning.rampIntervalMs, this.#ledger.coveredBytes);
    const ticking = setInterval(() => this.#tick(ramp), tuning.tickMs);
    const deadline = deadlineTimer(tuning.fileDeadlineMs, () =>
      this.#fail(deadlineError(this.#found)),
    );
    try {
      this.#staff();
      while (this.#running.length > 0) {
        await this.#running.shift();
      }
    } finally {
      clearInterval(ticking);
      clearTimeout(deadline);
      signal.removeEventListener("abort", cancel);
      await this.#writeback?.settle();
    }
    if (this.#failure !== undefined) {
      throw this.#failure;
    }
    return !this.#fallBack;
  }

  #staff(): void {
    while (this.#workers < this.#target && !this.#isOver) {
      this.#workers += 1;
      this.#running.push(
        this.#work().finally(() => {
          this.#workers -= 1;
        }),
      );
    }
  }

  get #isOver(): boolean {
    return this.#failure !== undefined || this.#fallBack || this.#ledger.isComplete;
  }

  async #work(): Promise<void> {
    while (!this.#isOver && this.#workers <= this.#target) {
      if (this.#queue.pendingBytes === 0 && this.#slowest() === undefined) {
        await this.#pause(IDLE_POLL_MS);
        continue;
      }
      try {
        await this.#fetchNext();
      } catch (error) {
        // After the segment was given back: while this one waits, others may take it.
        await this.#recover(error);
      }
    }
  }

  async #pause(ms: number): Promise<void> {
    await sleep(ms, this.#stop.signal).catch(() => undefined);
  }

  /** The lowest bytes nobody has; when there are none, the tail of whoever will take longest. */
  #next(): Segment | undefined {
    return this.#queue.take(this.#spanBytes(), this.#folder.chunkBytes) ?? this.#stealFromSlowest();
  }

  #spanBytes(): number {
    const { chunkBytes } = this.#folder;
    const rates = [...this.#connections].map((connection) => connection.rate);
    const rate = rates.length === 0 ? 0 : Math.max(...rates);
    // Long enough to hide the round trip, and no longer: the digest can only follow what is complete from the start.
    const seconds = Math.min(SPAN_SECONDS, Math.max(MIN_SPAN_SECONDS, this.#latencySeconds * 10));
    const chunks = Math.floor((rate * seconds) / chunkBytes);
    const share = this.#queue.pendingBytes / (this.#target * 2) / chunkBytes;
    if (share < 1) {
      // At the end everyone gets an even part of what is left, so that all end together.
      return Math.min(chunkBytes, Math.max(MIN_SPAN_BYTES, Math.ceil(share * chunkBytes)));
    }
    return chunkBytes * Math.max(1, Math.floor(Math.min(chunks, share, MAX_SPAN_CHUNKS)));
  }

  /** The connection that will need longest for its rest, where taking some of it over pays. */
  #slowest(): Connection | undefined {
    let victim: Connection | undefined;
    let worst = MIN_ETA_GAP_SECONDS;
    const now = performance.now();
    for (const connection of this.#connections) {
      const left = connection.segment.end - connection.segment.next;
      // Of a connection that has just begun nothing is known: its rate would look like none at all.
      const isNew = now - connection.startedAtMs < STEAL_AFTER_TICKS * this.#context.tuning.tickMs;
      const eta = isNew ? 0 : left / Math.max(1, connection.rate);
      if (left >= 2 * this.#context.tuning.minStealBytes && eta > worst) {
        victim = connection;
        worst = eta;
      }
    }
    return victim;
  }

  #stealFromSlowest(): Segment | undefined {
    const victim = this.#slowest();
    if (victim === undefined) {
      return undefined;
    }
    const best = Math.max(...[...this.#connections].map((connection) => connection.rate), 1);
    // Half from an equal; nearly all from a slow one.
    const share = victim.rate * 4 < best ? 0.9 : 0.5;
    return this.#queue.steal(victim.segment, share, this.#context.tuning.minStealBytes);
  }

  async #fetchNext(): Promise<void> {
    await this.#renewInTime();
    using permit = await this.#context.budget.acquire(this.#found.url, this.#stop.signal);
    // Only now: bytes must not wait in a segment whose connection waits for its place.
    const segment = this.#isOver ? undefined : this.#next();
    if (segment === undefined) {
      return;
    }
    const connection = newConnection(segment);
    const cancel = (): void => connection.controller.abort();
    this.#stop.signal.addEventListener("abort", cancel, { once: true });
    this.#connections.add(connection);
    try {
      await this.#receive(connection);
      this.#context.budget.recover(permit.origin);
    } catch (error) {
      throw this.#explain(error, connection);
    } finally {
      this.#connections.delete(connection);
      this.#queue.release(segment);
      this.#stop.signal.removeEventListener("abort", cancel);
      if (this.#ledger.isComplete) {
        this.#stop.abort();
      }
    }
  }

  async #receive(connection: Connection): Promise<void> {
    const { segment } = connection;
    const found = this.#found;
    const asked = { start: segment.next, end: segment.end };
    const answer = await this.#context.road.get({
      url: found.url,
      trust: found.address.source.trust,
      authorization: authorizationFor(found),
      headers: {
        range: `bytes=${asked.start}-${asked.end - 1}`,
        ...(found.etag === undefined ? {} : { "if-range": found.etag }),
      },
      signal: connection.controller.signal,
    });
    try {
      await checkRange(answer, found, asked, this.#context.road);
      connection.answered = true;
      const waited = (performance.now() - connection.startedAtMs) / 1000;
      this.#latencySeconds +=
        (waited - this.#latencySeconds) * (this.#latencySeconds === 0 ? 1 : RATE_SMOOTHING);
      connection.lastByteAtMs = performance.now();
      await this.#pour(answer, connection, asked.end);
    } finally {
      await answer.discard();
    }
    if (segment.next < segment.end) {
      throw new DownloadError(
        "SHORT_BODY",
        `${sourceLabel(found.address.source)} sent ${segment.next - asked.start} bytes of ${asked.end - asked.start}`,
        { retryable: true },
      );
    }
    this.#rangeFaults = 0;
    // Short requests live between two ticks: their rate is only seen here. What comes in one burst says little.
    const { tickMs } = this.#context.tuning;
    const seconds = Math.max(tickMs, performance.now() - connection.startedAtMs) / 1000;
    this.#peakRate = Math.max(this.#peakRate, connection.bytes / seconds);
  }

  /** Writes what comes to where it belongs, up to the segment's end, which a thief may have moved. */
  async #pour(answer: RoadAnswer, connection: Connection, askedEnd: number): Promise<void> {
    const { segment } = connection;
    for await (const chunk of answer.body) {
      connection.lastByteAtMs = performance.now();
      connection.bytes += chunk.byteLength;
      const room = segment.end - segment.next;
      const part = chunk.byteLength > room ? chunk.subarray(0, room) : chunk;
      await this.#write(segment, part);
      if (chunk.byteLength > room && segment.end === askedEnd) {
        this.#ledger.revoke(segment.start, segment.next);
        this.#queue.revoke(segment);
        throw new DownloadError(
          "RANGE_INVALID",
          `${sourceLabel(this.#found.address.source)} sent more bytes than the range has`,
          { retryable: true },
        );
      }
      if (segment.next >= segment.end && segment.end < askedEnd) {
        return;
      }
    }
  }

  async #write(segment: Segment, part: Uint8Array): Promise<void> {
    const position = segment.next;
    // Claimed before it is written: what a thief takes meanwhile lies beyond it.
    segment.next += part.byteLength;
    try {
      await this.#folder.content.write(part, position);
    } catch (error) {
      // Not there after all; whoever fetches next must not leave it out.
      segment.next = position;
      throw fileError(error, this.#folder.dataPath, "write");
    }
    this.#ledger.wrote(position, part);
    this.#writeback?.note(this.#ledger.coveredBytes);
    this.#context.onBytes(this.#ledger.coveredBytes);
  }

  /** An abort of our own, told as what it was. */
  #explain(error: unknown, connection: Connection): unknown {
    if (this.#failure !== undefined) {
      return this.#failure;
    }
    if (connection.ended !== undefined) {
      const what = connection.ended === "stalled" ? "sends nothing any more" : "crawls";
      return new DownloadError(
        "STALLED",
        `A connection to ${sourceLabel(this.#found.address.source)} ${what}`,
        { cause: error, retryable: true },
      );
    }
    return networkError(error, this.#found.url);
  }

  /** Decides what a fault means: wait and go on, renew the address, or give this source up. */
  async #recover(error: unknown): Promise<void> {
    if (this.#isOver) {
      return;
    }
    if (!(error instanceof DownloadError)) {
      this.#fail(error);
      return;
    }
    const { tuning, budget } = this.#context;
    this.#countFault();
    switch (error.code) {
      case "URL_EXPIRED":
        await this.#renew();
        return;
      case "RANGE_INVALID":
        this.#rangeFaults += 1;
        if (this.#rangeFaults >= tuning.rangeFaults) {
          this.#giveUpRanges(error);
        }
        return;
      case "RATE_LIMITED":
        budget.pause(this.#found.url, waitOf(error) ?? this.#backOff());
        this.#target = Math.max(1, Math.ceil(this.#target / 2));
        break;
      case "NETWORK":
        // Some servers cut what goes beyond their limit of connections.
        this.#target = Math.max(1, this.#target - 1);
        break;
      default:
        break;
    }
    if (!error.retryable || this.#fruitless >= tuning.attempts) {
      this.#fail(error);
      return;
    }
    if (error.code !== "RATE_LIMITED") {
      await this.#pause(waitOf(error) ?? this.#backOff());
    }
  }

  #countFault(): void {
    const covered = this.#ledger.coveredBytes;
    if (covered !== this.#coveredAtFault) {
      this.#coveredAtFault = covered;
      this.#fruitless = 0;
      this.#renewals = 0;
    }
    this.#fruitless += 1;
    this.#faultAtMs = performance.now();
  }

  #backOff(): number {
    const { firstRetryDelayMs, maxRetryDelayMs, attempts } = this.#context.tuning;
    return retryDelay(
      { attempts, firstDelayMs: firstRetryDelayMs, maxDelayMs: maxRetryDelayMs },
      Math.max(1, this.#fruitless),
    );
  }

  /** A server that answers ranges with the whole body does not do ranges; any other nonsense ends the source. */
  #giveUpRanges(error: DownloadError): void {
    if (error.details["whole"] === true) {
      this.#fallBack = true;
      this.#stop.abort();
    } else {
      this.#fail(error);
    }
  }

  async #renewInTime(): Promise<void> {
    const { expiresAtMs } = this.#found;
    if (
      expiresAtMs !== undefined &&
      (this.#renewals === 0 || this.#renewing !== undefined) &&
      expiresAtMs - Date.now() < this.#context.tuning.renewBeforeMs
    ) {
      await this.#renew().catch((error: unknown) => this.#fail(error));
    }
  }

  /** One renewal for all connections: the redirect is walked again, and must lead to the same object. */
  async #renew(): Promise<void> {
    this.#renewing ??= this.#renewNow().finally(() => {
      this.#renewing = undefined;
    });
    await this.#renewing;
  }

  async #renewNow(): Promise<void> {
    const { tuning, road, readdress } = this.#context;
    this.#renewals += 1;
    if (this.#renewals > tuning.renewals) {
      this.#fail(
        new DownloadError(
          "URL_EXPIRED",
          `Every fresh address of ${sourceLabel(this.#found.address.source)} is refused at once`,
          { hint: "Check this machine's clock, and that the token may read the file." },
        ),
      );
      return;
    }
    try {
      const fresh = await probe(readdress(), road, {
        signal: this.#stop.signal,
        stallTimeoutMs: tuning.headersTimeoutMs,
      });
      requireSameObject(this.#found, fresh);
      this.#found = fresh;
    } catch (error) {
      if (error instanceof DownloadError && error.retryable && this.#fruitless < tuning.attempts) {
        await this.#pause(this.#backOff());
      } else {
        this.#fail(error);
      }
    }
  }

  #fail(error: unknown): void {
    if (this.#ledger.isComplete) {
      // Every byte is there: what still runs is called off, and its complaints are about that.
      return;
    }
    this.#failure ??= error;
    this.#stop.abort();
  }

  #tick(ramp: Ramp): void {
    const now = performance.now();
    for (const connection of this.#connections) {
      measure(connection, this.#context.tuning.tickMs);
    }
    this.#endSick(now);
    try {
      ramp.beat(now, () => this.#folder.beat());
    } catch (error) {
      this.#fail(error);
    }
    const { connectionsPerFile } = this.#context.tuning;
    if (ramp.mayGrow(now, this.#ledger.coveredBytes, now - this.#faultAtMs < CALM_MS)) {
      const wanted = Math.ceil(this.#queue.pendingBytes / this.#context.tuning.minStealBytes);
      this.#target = Math.min(connectionsPerFile, this.#target * 2, Math.max(this.#target, wanted));
    }
    this.#staff();
  }

  /** Ends connections that bring nothing, and those that crawl although this file is known to come faster. */
  #endSick(now: number): void {
    const { stallTimeoutMs, slowWindowMs } = this.#context.tuning;
    // With nothing else left to do, the last crawler holds up everything: less patience with it.
    const patienceMs = this.#queue.pendingBytes > 0 ? slowWindowMs : slowWindowMs / LAST_HASTE;
    for (const connection of this.#connections) {
      this.#peakRate = Math.max(this.#peakRate, connection.rate);
      connection.slowSinceMs = this.#isSlow(connection)
        ? (connection.slowSinceMs ?? now)
        : undefined;
      if (connection.answered && now - connection.lastByteAtMs > stallTimeoutMs) {
        connection.ended = "stalled";
      } else if (
        connection.slowSinceMs !== undefined &&
        now - connection.slowSinceMs > patienceMs
      ) {
        connection.ended = "slow";
      }
      if (connection.ended !== undefined) {
        connection.controller.abort();
      }
    }
  }

  #isSlow({ answered, rate, segment }: Connection): boolean {
    if (!answered) {
      return false;
    }
    const left = segment.end - segment.next;
    const isLong = left > rate * SPAN_SECONDS;
    const isSick = this.#peakRate > rate * SICK_FACTOR;
    const isCrawling = rate < this.#context.tuning.slowBytesPerSecond;
    return isLong && isSick && (isCrawling || this.#queue.pendingBytes === 0);
  }
}

/**
 * Says when to try more connections: soon while each step raised the rate, ever later when it did not. It never gives
 * up trying: what one step measured may have been a burst, and the limit is low anyway.
 */
class Ramp {
  readonly #intervalMs: number;
  #lastAtMs = performance.now();
  #lastBytes: number;
  #lastRate = 0;
  #misses = 0;
  #beatAtMs = performance.now();

  constructor(intervalMs: number, startBytes: number) {
    this.#intervalMs = intervalMs;
    this.#lastBytes = startBytes;
  }

  beat(now: number, heart: () => void): void {
    if (now - this.#beatAtMs >= HEARTBEAT_MS) {
      this.#beatAtMs = now;
      heart();
    }
  }

  mayGrow(now: number, bytes: number, troubled: boolean): boolean {
    if (now - this.#lastAtMs < this.#intervalMs * 2 ** Math.min(this.#misses, 6)) {
      return false;
    }
    const rate = ((bytes - this.#lastBytes) / (now - this.#lastAtMs)) * 1000;
    this.#misses = rate > this.#lastRate * RAMP_GAIN ? 0 : this.#misses + 1;
    this.#lastAtMs = now;
    this.#lastBytes = bytes;
    this.#lastRate = rate;
    return !troubled && rate > 0;
  }
}

function newConnection(segment: Segment): Connection {
  const now = performance.now();
  return {
    segment,
    controller: new AbortController(),
    startedAtMs: now,
    answered: false,
    lastByteAtMs: now,
    bytes: 0,
    rate: 0,
    bytesAtTick: 0,
    slowSinceMs: undefined,
    ended: undefined,
  };
}

function measure(connection: Connection, tickMs: number): void {
  const fresh = ((connection.bytes - connection.bytesAtTick) / tickMs) * 1000;
  connection.rate =
    connection.rate === 0 ? fresh : connection.rate * (1 - RATE_SMOOTHING) + fresh * RATE_SMOOTHING;
  connection.bytesAtTick = connection.bytes;
}

function waitOf(error: DownloadError): number | undefined {
  const { waitMs } = error.details;
  return typeof waitMs === "number" ? waitMs : undefined;
}

/** User info belongs to the origin it was written for, not to where that redirects. */
function authorizationFor(found: Representation): string | undefined {
  return new URL(found.url).origin === new URL(found.address.url).origin
    ? found.address.authorization
    : undefined;
}

async function checkRange(
  answer: RoadAnswer,
  found: Representation,
  asked: { readonly start: number; readonly end: number },
  road: Road,
): Promise<void> {
  if (answer.status !== 206 && answer.status !== 200) {
    throw await refusalOf(answer, found.address, road, found.derived);
  }
  requireIdentity(answer, found.address);
  requireSameValidators(found, answer.headers);
  const bad = answer.status === 200 ? "the whole body" : rangeFault(answer.headers, found, asked);
  if (bad !== undefined) {
    throw new DownloadError(
      "RANGE_INVALID",
      `${sourceLabel(found.address.source)} answers a range with ${bad}`,
      { retryable: true, details: { whole: answer.status === 200 } },
    );
  }
}

function rangeFault(
  headers: Headers,
  found: Representation,
  asked: { readonly start: number; readonly end: number },
): string | undefined {
  if (/^multipart\//i.test(headers.get("content-type") ?? "")) {
    return "several parts at once";
  }
  const range = contentRange(headers);
  if (range === undefined || range.start !== asked.start || range.end !== asked.end - 1) {
    return `another range (${headers.get("content-range") ?? "none named"})`;
  }
  if (range.sizeBytes !== undefined && range.sizeBytes !== found.sizeBytes) {
    throw changed(found, `its length went from ${found.sizeBytes} to ${range.sizeBytes}`);
  }
  const length = headers.get("content-length");
  if (length !== null && Number(length) !== asked.end - asked.start) {
    return `a length of ${length} for ${asked.end - asked.start} bytes`;
  }
  return undefined;
}

function requireSameValidators(found: Representation, headers: Headers): void {
  const etag = strongEtag(headers);
  if (found.etag !== undefined && etag !== undefined && etag !== found.etag) {
    throw changed(found, "its ETag is another one");
  }
  const weak = weakEtag(headers);
  if (found.weakEtag !== undefined && weak !== undefined && weak !== found.weakEtag) {
    throw changed(found, "its ETag is another one");
  }
  const lastModified = headers.get("last-modified");
  if (
    found.etag === undefined &&
    found.lastModified !== undefined &&
    lastModified !== null &&
    lastModified !== found.lastModified
  ) {
    throw changed(found, "it was modified");
  }
}

/** A renewed address must serve the very object that the bytes so far are of. */
function requireSameObject(found: Representation, fresh: Representation): void {
  if (fresh.sizeBytes !== found.sizeBytes) {
    throw changed(found, `its length went from ${found.sizeBytes} to ${fresh.sizeBytes}`);
  }
  if (found.etag !== undefined && fresh.etag !== found.etag) {
    throw changed(found, "its ETag is another one");
  }
  if (found.sha256 !== undefined && fresh.sha256 !== found.sha256) {
    throw changed(found, "its SHA-256 is another one");
  }
  if (!fresh.ranges) {
    throw changed(found, "it is served without ranges now");
  }
}

function changed(found: Representation, what: string): DownloadError {
  return new DownloadError(
    "SOURCE_CHANGED",
    `${sourceLabel(found.address.source)} changed while it was read: ${what}`,
  );
}

function deadlineTimer(
  ms: number | undefined,
  act: () => void,
): ReturnType<typeof setTimeout> | undefined {
  return ms === undefined ? undefined : setTimeout(act, ms);
}

function deadlineError(found: Representation): DownloadError {
  return new DownloadError(
    "DEADLINE",
    `${sourceLabel(found.address.source)} took longer than it was given`,
    { hint: "What was downloaded is kept; the next start goes on from there." },
  );
}

/** Space first: a disk that is too small is told before the first byte, not after the last. */
function reserveSpace(folder: PartialFolder, sizeBytes: number): void {
  if (folder.content.reserve()) {
    return;
  }
  const { freeBytes } = freeSpace(folder.path);
  const kept = [...folder.done.keys()].length * folder.chunkBytes;
  if (freeBytes + kept < sizeBytes) {
    throw noSpace(folder.dataPath, sizeBytes - kept);
  }
  try {
    ftruncateSync(folder.content.fd, sizeBytes);
  } catch (error) {
    throw fileError(error, folder.dataPath, "make room for");
  }
}

/** The whole body from its start, for servers without ranges. A cut means starting over. */
class WholeDownload {
  readonly #found: Representation;
  readonly #folder: PartialFolder;
  readonly #context: DownloadContext;

  constructor(found: Representation, folder: PartialFolder, context: DownloadContext) {
    this.#found = found;
    this.#folder = folder;
    this.#context = context;
  }

  async run(): Promise<number> {
    const { tuning, signal } = this.#context;
    if (this.#found.sizeBytes === undefined && !this.#found.endMarked) {
      throw new DownloadError(
        "SHORT_BODY",
        `${sourceLabel(this.#found.address.source)} does not say how long it is, so that a cut could not be told from its end`,
        { hint: "Use another address for it." },
      );
    }
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#once();
      } catch (error) {
        const retry =
          error instanceof DownloadError &&
          error.retryable &&
          error.code !== "URL_EXPIRED" &&
          attempt < tuning.attempts &&
          !signal.aborted;
        if (!retry) {
          throw error;
        }
        const policy = {
          attempts: tuning.attempts,
          firstDelayMs: tuning.firstRetryDelayMs,
          maxDelayMs: tuning.maxRetryDelayMs,
        };
        await sleep(waitOf(error) ?? retryDelay(policy, attempt), signal).catch(
          (cause: unknown) => {
            throw new CanceledError("The download was called off", { cause });
          },
        );
      }
    }
  }

  async #once(): Promise<number> {
    const { road, budget, signal, tuning } = this.#context;
    const { address } = this.#found;
    using _permit = await budget.acquire(address.url, signal);
    const watch = new Watchdog(tuning.stallTimeoutMs, signal, tuning.fileDeadlineMs);
    try {
      const answer = await road.get({
        url: address.url,
        trust: address.source.trust,
        authorization: address.authorization,
        signal: watch.signal,
      });
      try {
        return await this.#pour(answer, watch);
      } finally {
        await answer.discard();
      }
    } catch (error) {
      throw watch.explain(error, this.#found) ?? networkError(error, address.url);
    } finally {
      watch.end();
    }
  }

  async #pour(answer: RoadAnswer, watch: Watchdog): Promise<number> {
    const { address } = this.#found;
    const expected = this.#found.sizeBytes;
    if (answer.status !== 200) {
      throw await refusalOf(answer, address, this.#context.road);
    }
    requireIdentity(answer, address);
    requireSameValidators(this.#found, answer.headers);
    let position = 0;
    for await (const chunk of answer.body) {
      watch.fed();
      if (expected !== undefined && position + chunk.byteLength > expected) {
        throw changed(this.#found, `it is longer than the ${expected} bytes it said`);
      }
      try {
        await this.#folder.content.write(chunk, position);
      } catch (error) {
        throw fileError(error, this.#folder.dataPath, "write");
      }
      position += chunk.byteLength;
      this.#context.onBytes(position);
    }
    if (expected !== undefined && position < expected) {
      throw new DownloadError(
        "SHORT_BODY",
        `${sourceLabel(address.source)} ended after ${position} of ${expected} bytes`,
        { retryable: true },
      );
    }
    ftruncateSync(this.#folder.content.fd, position);
    return position;
  }
}

/** Ends a single stream that fell silent. */
class Watchdog {
  readonly #controller = new AbortController();
  readonly #timer: ReturnType<typeof setInterval>;
  readonly #deadline: ReturnType<typeof setTimeout> | undefined;
  readonly #outer: AbortSignal;
  readonly #cancel = (): void => this.#controller.abort();
  #fedAtMs = performance.now();
  #reason: "stalled" | "deadline" | undefined;

  constructor(stallTimeoutMs: number, outer: AbortSignal, deadlineMs: number | undefined) {
    this.#outer = outer;
    outer.addEventListener("abort", this.#cancel, { once: true });
    if (outer.aborted) {
      this.#controller.abort();
    }
    this.#timer = setInterval(
      () => {
        if (performance.now() - this.#fedAtMs > stallTimeoutMs) {
          this.#reason = "stalled";
          this.#controller.abort();
        }
      },
      Math.max(10, stallTimeoutMs / 4),
    );
    this.#deadline = deadlineTimer(deadlineMs, () => {
      this.#reason = "deadline";
      this.#controller.abort();
    });
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  fed(): void {
    this.#fedAtMs = performance.now();
  }

  explain(error: unknown, found: Representation): Error | undefined {
    if (this.#outer.aborted) {
      return new CanceledError("The download was called off", { cause: error });
    }
    if (this.#reason === "deadline") {
      return deadlineError(found);
    }
    return this.#reason === undefined
      ? undefined
      : new DownloadError(
          "STALLED",
          `${sourceLabel(found.address.source)} sends nothing any more`,
          { cause: error, retryable: true },
        );
  }

  end(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#deadline);
    this.#outer.removeEventListener("abort", this.#cancel);
  }
}

/**
 * The bytes of a file as they come, never on disk: for an archive that is unpacked where there is no room for both. Its
 * end is checked; what was taken before a cut must be thrown away.
 */
export async function* streamBody(
  found: Representation,
  context: Pick<DownloadContext, "road" | "budget" | "tuning" | "signal" | "onBytes">,
): AsyncGenerator<Uint8Array> {
  const { road, budget, signal, tuning } = context;
  const { address } = found;
  using _permit = await budget.acquire(address.url, signal);
  const watch = new Watchdog(tuning.stallTimeoutMs, signal, tuning.fileDeadlineMs);
  try {
    const answer = await road.get({
      url: address.url,
      trust: address.source.trust,
      authorization: address.authorization,
      signal: watch.signal,
    });
    if (answer.status !== 200) {
      throw await refusalOf(answer, address, road);
    }
    requireIdentity(answer, address);
    requireSameValidators(found, answer.headers);
    let position = 0;
    for await (const chunk of answer.body) {
      watch.fed();
      position += chunk.byteLength;
      context.onBytes(position);
      yield chunk;
      // The consumer may have taken its time with it.
      watch.fed();
    }
    if (found.sizeBytes !== undefined && position !== found.sizeBytes) {
      throw new DownloadError(
        "SHORT_BODY",
        `${sourceLabel(address.source)} ended after ${position} of ${found.sizeBytes} bytes`,
        { retryable: true },
      );
    }
  } catch (error) {
    throw watch.explain(error, found) ?? networkError(error, address.url);
  } finally {
    watch.end();
  }
}

const COPY_BLOCK_BYTES = 256 * 1024;

/** A file of this machine, copied by the same road so that it is checked and published in the same way. */
async function copyLocal(
  found: Representation,
  folder: PartialFolder,
  context: DownloadContext,
): Promise<number> {
  const source = openSync(found.url, "r");
  try {
    const block = Buffer.allocUnsafe(COPY_BLOCK_BYTES);
    let position = 0;
    for (;;) {
      if (context.signal.aborted) {
        throw new CanceledError("The copy was called off");
      }
      const length = readFully(source, block, position);
      if (length === 0) {
        break;
      }
      await folder.content.write(block.subarray(0, length), position);
      position += length;
      context.onBytes(position);
    }
    ftruncateSync(folder.content.fd, position);
    return position;
  } catch (error) {
    throw fileError(error, redactUrl(found.url), "copy");
  } finally {
    closeSync(source);
  }
}
