/**
 * The private folder a download grows in, and its journal: which chunks are there and what they must hash to. One
 * owner per folder (by lock, renaming and a token), so that no two processes write one file. Nothing in a journal is
 * believed: what it claims is read back and compared, so that a torn line, a crash or a power loss costs bytes, never
 * truth (downloader.md C.4, C.5).
 */
import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import { crc32 } from "node:zlib";
import { z } from "zod";
import type { ArchiveMember } from "../platform/archive.ts";
import { DownloadError, systemCode } from "../platform/errors.ts";
import {
  allocatedBytes,
  fileError,
  fileSystemNow,
  freeSpace,
  makeFolder,
  removeTree,
  WRITE_BLOCK_BYTES,
  writeFully,
} from "../platform/files.ts";
import { tryLock } from "../platform/native.ts";
import { fateOf, ownMark } from "../platform/process-start.ts";
import {
  crcOfRange,
  dataPathIn,
  memberPathIn,
  PartialContent,
  placedBytesIn,
  treePathIn,
} from "./content.ts";

/** Inside a models root, beside the category folders: ComfyUI lists nothing in it. */
export const PARTIAL_FOLDER = ".cog-partial";

const JOURNAL_VERSION = 1;
const LARGE_CHUNK_BYTES = 8 * 1024 * 1024;
/** A dozen connections share a small file: in larger pieces, most of it would be begun and none of it complete when a kill comes. */
const SMALL_CHUNK_BYTES = 1024 * 1024;
const SMALL_FILE_BYTES = 64 * 1024 * 1024;
/** Where the owner can't be asked (no lock to be had), one that was silent this long is taken for dead. */
const SILENT_OWNER_MS = 30_000;
/** How often a home may be removed under our hands before that is taken for a fault. */
const HOME_ATTEMPTS = 100;
/** File systems on which a lock may succeed for everybody and an inode may be written by a machine that is gone. */
export const REMOTE_FILE_SYSTEMS: ReadonlySet<number> = new Set([
  0x6969, // NFS
  0x517b, // SMB
  0xff534d42, // CIFS
  0xfe534d42, // SMB2
  0x65735546, // FUSE
  0x0bd00bd0, // Lustre
  0x47504653, // GPFS
  0x00c36400, // Ceph
  0x01021997, // 9p
]);

/** How an owner that lives is told from one that is gone. Tests put other file systems in its place. */
export interface OwnershipRules {
  /** Takes the lock of an open file; undefined where there are no locks. */
  readonly tryLock: (fd: number) => boolean | undefined;
  readonly isRemote: (path: string) => boolean;
  readonly silentMs: number;
}

const SYSTEM_RULES: OwnershipRules = {
  tryLock,
  isRemote: (path) => REMOTE_FILE_SYSTEMS.has(freeSpace(path).type),
  silentMs: SILENT_OWNER_MS,
};

/** The state of the object that the bytes belong to. Another state, another file: never mixed. */
export interface ObjectIdentity {
  readonly sizeBytes: number;
  readonly etag: string | null;
  readonly lastModified: string | null;
  /** Stated for the address or by its server; the same on two mirrors means the same bytes. */
  readonly sha256: string | null;
  /** Without credentials and signature. */
  readonly url: string;
}

const HeaderSchema = z.object({
  v: z.literal(JOURNAL_VERSION),
  name: z.string(),
  destination: z.string(),
  sizeBytes: z.number().int().nonnegative(),
  chunk: z.number().int().positive(),
  etag: z.string().nullable(),
  lastModified: z.string().nullable(),
  sha256: z.string().nullable(),
  url: z.string(),
});
type Header = z.output<typeof HeaderSchema>;

export interface PartialRequest {
  /** The `.cog-partial` folder to use. */
  readonly root: string;
  /** Name for people. */
  readonly name: string;
  readonly destination: string;
  readonly identity: ObjectIdentity;
  /** Bytes per journal line; by size unless given. */
  readonly chunkBytes?: number | undefined;
  /** Distrust what is there: a hash did not match. */
  readonly fresh?: boolean | undefined;
  /** Don't wait for another process that is at the same file: an attempt of our own. */
  readonly alone?: boolean | undefined;
  readonly rules?: OwnershipRules | undefined;
}

/** Bytes between two journal lines: fine enough to lose little, coarse enough to cost nothing. */
export function chunkBytesFor(sizeBytes: number): number {
  return sizeBytes < SMALL_FILE_BYTES ? SMALL_CHUNK_BYTES : LARGE_CHUNK_BYTES;
}

/** The folder name of a destination: readable, and unique by its hash. */
export function partialKey(destination: string): string {
  const digest = createHash("sha256").update(destination).digest("hex").slice(0, 16);
  const readable = basename(destination)
    .replace(/[^\w.-]+/g, "_")
    .slice(0, 60);
  return `${readable}-${digest}`;
}

/** Somebody else, alive, is downloading the same file. */
export interface BusyPartial {
  readonly busy: true;
  readonly doneBytes: number;
}

/** A download's folder, ours alone until it is closed. */
export class PartialFolder implements Disposable {
  readonly path: string;
  /** The bytes, to be read and written. */
  readonly content: PartialContent;
  readonly chunkBytes: number;
  /** Chunks that are there, each read back and compared. */
  readonly done: ReadonlyMap<number, number>;
  readonly lockFd: number;
  readonly #token: string;
  readonly #journalFd: number;
  #open = true;

  constructor(parts: OwnedParts) {
    this.path = parts.path;
    this.content = parts.content;
    this.chunkBytes = parts.chunkBytes;
    this.done = parts.done;
    this.lockFd = parts.lockFd;
    this.#token = parts.token;
    this.#journalFd = parts.journalFd;
  }

  get dataPath(): string {
    return this.content.path;
  }

  /** Notes that a chunk is complete. One small append; nothing is flushed, since nothing here is believed. */
  record(index: number, crc: number): void {
    this.#append(chunkLine(index, crc, this.content.isInPlace(index)));
  }

  /**
   * Has what comes of a member of this tar go into the member's own file at once. Its descriptor, to write there what came
   * before; undefined where that is not worth it. Stays open until the folder is closed.
   * @throws DownloadError SOURCE_CHANGED when an earlier process saw another member there
   */
  adopt(member: ArchiveMember): number | undefined {
    const known = this.content.members.find(({ offset }) => offset === member.offset);
    if (known === undefined) {
      const adopted = this.content.adopt(member);
      if (adopted !== undefined) {
        // Before any chunk that lies there is recorded.
        this.#append(memberLine(member));
      }
      return adopted?.fd;
    }
    if (known.path !== member.path || known.sizeBytes !== member.sizeBytes) {
      throw new DownloadError(
        "SOURCE_CHANGED",
        `At byte ${member.offset} of the archive there is ${member.path} now, and there was ${known.path}`,
      );
    }
    return known.fd;
  }

  /** Notes that a chunk must not be believed after all. */
  revoke(index: number): void {
    this.#append(`x ${index}\n`);
  }

  /** Says that the owner lives, and checks that it still is the owner. @throws DownloadError IO_ERROR */
  beat(): void {
    const path = join(this.path, "owner");
    try {
      if (readFileSync(path, "utf8").includes(this.#token)) {
        // By writing: the file system's own clock stamps it. This machine's may be a day off from the next one's.
        writeSync(this.lockFd, OWNER_START, 0);
        return;
      }
    } catch (cause) {
      throw new DownloadError("IO_ERROR", `The folder ${this.path} has gone while it was in use`, {
        cause,
        hint: "Leave .cog-partial alone while downloads run, and try again.",
      });
    }
    throw new DownloadError("IO_ERROR", `Another process took over ${this.path}`);
  }

  /** Lets go and keeps everything for the next start. */
  [Symbol.dispose](): void {
    if (this.#open) {
      this.#open = false;
      this.content[Symbol.dispose]();
      closeSync(this.#journalFd);
      letGo({ path: this.path, lockFd: this.lockFd, token: this.#token });
    }
  }

  /** Lets go and removes it all. The published file is not in here any more. */
  remove(): void {
    // What was let go of may be somebody else's by now.
    if (this.#open) {
      this.#open = false;
      this.content[Symbol.dispose]();
      closeSync(this.#journalFd);
      removeAttempt(this);
    }
  }

  #append(line: string): void {
    try {
      writeSync(this.#journalFd, line);
    } catch (error) {
      throw fileError(error, this.path, "write the journal in");
    }
  }
}

interface OwnedParts {
  readonly path: string;
  readonly content: PartialContent;
  readonly lockFd: number;
  readonly journalFd: number;
  readonly token: string;
  readonly chunkBytes: number;
  readonly done: ReadonlyMap<number, number>;
}

/**
 * Opens the partial file of a destination: what a dead process left is taken over if it is of the same object,
 * otherwise a fresh one is made.
 */
export async function openPartial(request: PartialRequest): Promise<PartialFolder | BusyPartial> {
  const home = join(request.root, partialKey(request.destination));
  makeFolder(request.root);
  const rules = request.rules ?? SYSTEM_RULES;
  const orphan = request.alone === true ? undefined : claimOrphan(home, rules);
  if (orphan !== undefined && "busy" in orphan) {
    return orphan;
  }
  sweepHome(home, rules);
  const chunkBytes = request.chunkBytes ?? chunkBytesFor(request.identity.sizeBytes);
  const header: Header = {
    v: JOURNAL_VERSION,
    name: request.name,
    destination: request.destination,
    chunk: chunkBytes,
    ...request.identity,
  };
  const claim = orphan ?? createAttempt(home, rules);
  if (orphan === undefined && request.alone !== true && hasRival(home, claim, rules)) {
    // Two began at once and neither saw the other coming. Whoever sees the other yields; both look again later.
    removeAttempt(claim);
    return { busy: true, doneBytes: 0 };
  }
  try {
    return await takeOver(claim, header, request.fresh === true);
  } catch (error) {
    letGo(claim);
    throw fileError(error, home, "prepare the download in");
  }
}

interface Claim {
  readonly path: string;
  readonly lockFd: number;
  readonly token: string;
  /** False when a writer of old may still be able to write into the data file. */
  readonly exclusive: boolean;
}

function attemptName(): string {
  return `${hostname()
    .replace(/[^\w-]+/g, "_")
    .slice(0, 40)}-${process.pid}-${randomBytes(4).toString("hex")}`;
}

/** In the owner file of an attempt that nobody works on: where locks tell nothing, others need not wait for silence. */
const LET_GO = '{"released":true}\n';

/** Unlocks an attempt, and says so. */
function letGo({ path, lockFd, token }: Omit<Claim, "exclusive">): void {
  try {
    // Unless it was taken over: what stands there then is another's.
    if (readFileSync(join(path, "owner"), "utf8").includes(token)) {
      ftruncateSync(lockFd, 0);
      writeSync(lockFd, LET_GO, 0);
    }
  } catch {
    // It has gone, or the disk is full: silence says the same, later.
  } finally {
    closeSync(lockFd);
  }
}

/** What every owner file begins with. */
const OWNER_START = "{";

function ownerText(token: string): string {
  return `${JSON.stringify({ token, host: hostname(), ...ownMark() })}\n`;
}

/** Attempts that are being made, and such that are being removed. Nobody claims what begins with a dot. */
const UNBORN = ".new-";
const DOOMED = ".gone-";

function createAttempt(home: string, rules: OwnershipRules): Claim {
  const token = randomBytes(8).toString("hex");
  const name = attemptName();
  const path = join(home, name);
  const unborn = join(home, `${UNBORN}${name}`);
  let lockFd: number | undefined;
  try {
    makeIn(home, unborn);
    writeFileSync(join(unborn, "owner"), ownerText(token), { mode: 0o600 });
    lockFd = openSync(join(unborn, "owner"), "r+");
    rules.tryLock(lockFd);
    // Locked before it can be seen: no one who looks for orphans finds it without an owner.
    renameSync(unborn, path);
    return { path, lockFd, token, exclusive: true };
  } catch (error) {
    if (lockFd !== undefined) {
      closeSync(lockFd);
    }
    removeTree(unborn);
    throw fileError(error, path, "create the folder");
  }
}

/** Whoever lets go of a home's last attempt removes the home, maybe right now. */
function makeIn(home: string, folder: string): void {
  for (let left = HOME_ATTEMPTS; ; left -= 1) {
    try {
      mkdirSync(home, { recursive: true });
      mkdirSync(folder);
      return;
    } catch (error) {
      // Bun's recursive mkdir says that it exists when it did a moment ago.
      if (!["ENOENT", "EEXIST"].includes(systemCode(error) ?? "") || left === 0) {
        throw error;
      }
    }
  }
}

function hasRival(home: string, claim: Claim, rules: OwnershipRules): boolean {
  return attemptsIn(home).some((path) => path !== claim.path && isAlive(path, rules));
}

function isAlive(path: string, rules: OwnershipRules): boolean {
  const probed = lockOf(path, rules);
  if (typeof probed === "object") {
    closeSync(probed.lockFd);
    return false;
  }
  return probed === "alive";
}

function attemptsIn(home: string): string[] {
  // Whoever finished last may have removed the folder since it was made.
  return subfolders(home).filter((path) => !basename(path).startsWith("."));
}

/**
 * Removes an attempt that is ours, and its home if that is empty then. Out of everybody's reach before it is unlocked: a
 * process that claimed it half removed would lose what it goes on to write there. Unlocked before it is removed: network
 * file systems keep the name of a file that is open, and its folder with it.
 * @returns false where it could not be removed; it is then an orphan that the next start takes over
 */
function removeAttempt({
  path,
  lockFd,
}: {
  readonly path: string;
  readonly lockFd: number;
}): boolean {
  const home = dirname(path);
  const doomed = join(home, `${DOOMED}${basename(path)}`);
  try {
    renameSync(path, doomed);
  } catch (error) {
    // Taken over, removed by hand, or on a disk that does not let us. What was fetched is in its place by now, and
    // must not fail for this.
    return systemCode(error) === "ENOENT";
  } finally {
    closeSync(lockFd);
  }
  removeDoomed(doomed);
  removeIfEmpty(home);
  return true;
}

/** The data first: from then on what a kill leaves is small. What can't go now goes with the next sweep. */
function removeDoomed(path: string): void {
  try {
    rmSync(dataPathIn(path), { force: true });
    removeTree(treePathIn(path));
    removeTree(path);
  } catch {
    // Another user's, or open elsewhere on a network file system: it is in nobody's way.
  }
}

/** What processes that were killed meanwhile left of making or removing an attempt. */
function sweepHome(home: string, rules: OwnershipRules): void {
  for (const path of subfolders(home)) {
    const name = basename(path);
    if (name.startsWith(DOOMED) || (name.startsWith(UNBORN) && isOld(path, rules))) {
      removeDoomed(path);
    }
  }
}

/** Takes over the richest attempt whose owner is gone; `busy` when one is alive; undefined when there is none. */
function claimOrphan(home: string, rules: OwnershipRules): Claim | BusyPartial | undefined {
  const attempts = attemptsIn(home).toSorted((one, other) => journalSize(other) - journalSize(one));
  let claimed: Claim | undefined;
  for (const path of attempts) {
    const claim = claimAttempt(path, home, rules);
    if (claim === "alive") {
      if (claimed !== undefined) {
        letGo(claimed);
      }
      return { busy: true, doneBytes: summarise(path)?.doneBytes ?? 0 };
    }
    if (claim !== undefined && claimed === undefined) {
      claimed = claim;
    } else if (claim !== undefined) {
      // A second orphan holds nothing that the richer one lacks for long.
      removeAttempt(claim);
    }
  }
  return claimed;
}

function journalSize(path: string): number {
  return statSync(join(path, "journal"), { throwIfNoEntry: false })?.size ?? 0;
}

interface Orphan {
  readonly lockFd: number;
  readonly exclusive: boolean;
  /** Its owner file when it was found to be one. */
  readonly said: string;
}

/** The lock of an attempt whose owner is gone. `vanished`: there is nothing to lock any more. */
function lockOf(path: string, rules: OwnershipRules): Orphan | "alive" | "vanished" {
  let lockFd: number;
  try {
    lockFd = openSync(join(path, "owner"), "r+");
  } catch {
    // Its maker died between two lines, or somebody else is removing it.
    return "vanished";
  }
  try {
    const remote = rules.isRemote(path);
    const locked = rules.tryLock(lockFd);
    const said = readFileSync(join(path, "owner"), "utf8");
    if (isGone({ path, said, locked, remote }, rules)) {
      return { lockFd, exclusive: locked === true && !remote, said };
    }
  } catch {
    closeSync(lockFd);
    return "vanished";
  }
  closeSync(lockFd);
  return "alive";
}

interface Evidence {
  readonly path: string;
  readonly said: string;
  readonly locked: boolean | undefined;
  readonly remote: boolean;
}

/** A local lock that is free says it all. A remote one may be free for everybody, and where there is none, others must tell. */
function isGone({ path, said, locked, remote }: Evidence, rules: OwnershipRules): boolean {
  if (locked === false || (locked === true && !remote)) {
    return locked;
  }
  const fate = ownerFate(said);
  // With a lock that proves nothing, one that runs but is silent may only have slept; whoever wakes is fenced off.
  return fate === "ended" || ((fate === "unknown" || locked === true) && isSilent(path, rules));
}

function claimAttempt(
  path: string,
  home: string,
  rules: OwnershipRules,
): Claim | "alive" | undefined {
  const lock = lockOf(path, rules);
  if (typeof lock === "string") {
    return lock === "alive" ? lock : undefined;
  }
  const { lockFd, exclusive, said } = lock;
  const token = randomBytes(8).toString("hex");
  const mine = join(home, attemptName());
  try {
    // Of several that think so, one wins the rename.
    renameSync(path, mine);
    if (readFileSync(join(mine, "owner"), "utf8") !== said) {
      // Somebody else had won, and we took it from under its hands: without a lock, between the look and the rename.
      renameSync(mine, path);
      closeSync(lockFd);
      return "alive";
    }
    writeFileSync(join(mine, "owner"), ownerText(token));
  } catch {
    closeSync(lockFd);
    return undefined;
  }
  return { path: mine, token, lockFd, exclusive };
}

/** True when the owner has not said for long that it lives. */
function isSilent(path: string, rules: OwnershipRules): boolean {
  return isOlder(join(path, "owner"), path, rules.silentMs);
}

/** True for a folder in which nothing was made for long. */
function isOld(path: string, rules: OwnershipRules): boolean {
  return isOlder(path, dirname(path), rules.silentMs);
}

/** By the clock of the file system that `folder` lies on; false where it can't be asked. */
function isOlder(path: string, folder: string, ms: number): boolean {
  try {
    return fileSystemNow(folder) - statSync(path).mtimeMs > ms;
  } catch {
    return false;
  }
}

const OwnerSchema = z.union([
  z.object({ released: z.literal(true) }),
  z.object({ pid: z.number(), table: z.string(), startTicks: z.string().nullable() }),
]);

/** What became of an owner by its owner file, as far as that can be seen from here. */
function ownerFate(said: string): ReturnType<typeof fateOf> {
  try {
    const owner = OwnerSchema.parse(JSON.parse(said));
    return "released" in owner ? "ended" : fateOf(owner);
  } catch {
    // Half written: it says nothing; time does.
    return "unknown";
  }
}

/** Checks what a claimed folder holds against what is wanted, and opens it for writing. */
async function takeOver(claim: Claim, header: Header, fresh: boolean): Promise<PartialFolder> {
  const known = readJournal(claim.path);
  const dataPath = dataPathIn(claim.path);
  const usable = !fresh && known !== undefined && isSameObject(known.header, header);
  const spare = new Set<PartialContent>();
  const open = (path: string, flags: string): PartialContent => {
    const fd = openSync(path, flags, 0o600);
    const { sizeBytes, chunk: chunkBytes } = header;
    const opened = new PartialContent({ folderPath: claim.path, fd, sizeBytes, chunkBytes });
    spare.add(opened);
    return opened;
  };
  try {
    const old = usable && existsSync(dataPath) ? open(dataPath, "r+") : undefined;
    let content: PartialContent;
    let done = new Map<number, number>();
    if (known !== undefined && old !== undefined && claim.exclusive) {
      content = old;
      done = await verifiedChunks(old, known);
    } else {
      // The old files may still be open in a process that only sleeps: none of their inodes is used again.
      const freshPath = join(claim.path, "data.new");
      content = open(freshPath, "w+");
      if (known !== undefined && old !== undefined) {
        done = await verifiedChunks(old, known, content);
      }
      renameSync(freshPath, dataPath);
    }
    if (fstatSync(content.fd).size > header.sizeBytes) {
      ftruncateSync(content.fd, header.sizeBytes);
    }
    rewriteJournal(claim.path, header, { content, done });
    if (content !== old) {
      if (old !== undefined) {
        spare.delete(old);
        old[Symbol.dispose]();
      }
      discardTree(claim.path);
    }
    const folder = new PartialFolder({
      path: claim.path,
      content,
      lockFd: claim.lockFd,
      token: claim.token,
      chunkBytes: header.chunk,
      done,
      journalFd: openSync(join(claim.path, "journal"), "a"),
    });
    spare.delete(content);
    return folder;
  } finally {
    // What was copied from; after a failure, all.
    for (const content of spare) {
      content[Symbol.dispose]();
    }
  }
}

/**
 * Removes what an earlier owner unpacked. Moved away first: where it still has a file open, a network file system keeps
 * that under another name, and in the tree everything is published.
 */
function discardTree(folderPath: string): void {
  const discarded = `${treePathIn(folderPath)}.old-${randomBytes(4).toString("hex")}`;
  try {
    renameSync(treePathIn(folderPath), discarded);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") {
      throw error;
    }
  }
  removeTree(discarded);
}

function isSameObject(known: Header, wanted: Header): boolean {
  if (known.sizeBytes !== wanted.sizeBytes || known.chunk !== wanted.chunk) {
    return false;
  }
  if (known.sha256 !== null && known.sha256 === wanted.sha256) {
    return true;
  }
  const hasValidator = known.etag !== null || known.lastModified !== null;
  return (
    hasValidator &&
    known.sha256 === wanted.sha256 &&
    known.etag === wanted.etag &&
    known.lastModified === wanted.lastModified &&
    known.url === wanted.url
  );
}

function rewriteJournal(
  path: string,
  header: Header,
  { content, done }: Pick<PartialFolder, "content" | "done">,
): void {
  const lines = [
    `${JSON.stringify(header)}\n`,
    ...content.members.map(memberLine),
    ...[...done].map(([index, crc]) => chunkLine(index, crc, content.isInPlace(index))),
  ];
  const next = join(path, "journal.new");
  writeFileSync(next, lines.join(""), { mode: 0o600 });
  renameSync(next, join(path, "journal"));
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}

/** The check is over the line itself: a torn line that still parses must not pass. */
function checkedLine(body: string): string {
  return `${body} ${hex(crc32(body) & 0xff, 2)}\n`;
}

/** `c` lies in `data`, `d` in the file of a member. */
function chunkLine(index: number, crc: number, inPlace: boolean): string {
  return checkedLine(`${inPlace ? "d" : "c"} ${index} ${hex(crc, 8)}`);
}

function memberLine({ path, offset, sizeBytes }: ArchiveMember): string {
  return checkedLine(`m ${offset} ${sizeBytes} ${Buffer.from(path).toString("base64url")}`);
}

interface ClaimedChunk {
  readonly crc: number;
  readonly inPlace: boolean;
}

interface JournalContent {
  readonly header: Header;
  readonly members: readonly ArchiveMember[];
  readonly chunks: ReadonlyMap<number, ClaimedChunk>;
}

function readJournal(path: string): JournalContent | undefined {
  let lines: string[];
  try {
    lines = readFileSync(join(path, "journal"), "utf8").split("\n");
  } catch {
    return undefined;
  }
  const header = parseHeader(lines[0] ?? "");
  if (header === undefined) {
    return undefined;
  }
  const chunks = new Map<number, ClaimedChunk>();
  const members = new Map<string, ArchiveMember>();
  for (const line of lines.slice(1)) {
    const [body = ""] = /^.*(?= [0-9a-f]{2}$)/.exec(line) ?? [];
    const isWhole = checkedLine(body) === `${line}\n`;
    const chunk = /^([cd]) (\d+) ([0-9a-f]{8})$/.exec(body);
    const member = /^m (\d+) (\d+) ([\w-]+)$/.exec(body);
    const revoked = /^x (\d+)$/.exec(line);
    if (isWhole && chunk !== null) {
      const [, place, index, crc = ""] = chunk;
      if (Number(index) * header.chunk < header.sizeBytes) {
        chunks.set(Number(index), { crc: Number.parseInt(crc, 16), inPlace: place === "d" });
      }
    } else if (isWhole && member !== null) {
      const [, offset = "", sizeBytes, name = ""] = member;
      members.set(offset, {
        path: Buffer.from(name, "base64url").toString(),
        offset: Number(offset),
        sizeBytes: Number(sizeBytes),
      });
    } else if (revoked !== null) {
      chunks.delete(Number(revoked[1]));
    }
  }
  const inside = [...members.values()].filter((member) => hasPlaceIn(path, member));
  return { header, members: inside, chunks };
}

/** False for a name that leads out of the tree: no unpacker wrote it. */
function hasPlaceIn(folderPath: string, member: ArchiveMember): boolean {
  try {
    memberPathIn(folderPath, member);
    return true;
  } catch {
    return false;
  }
}

function parseHeader(line: string): Header | undefined {
  try {
    const parsed = HeaderSchema.safeParse(JSON.parse(line));
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}

/** The chunks whose bytes are what the journal says; copied into `copy`'s data on the way where one is given. */
async function verifiedChunks(
  content: PartialContent,
  { header, members, chunks }: JournalContent,
  copy?: PartialContent,
): Promise<Map<number, number>> {
  const good = new Map<number, number>();
  const block = Buffer.allocUnsafe(WRITE_BLOCK_BYTES);
  const toCopy = (part: Uint8Array, at: number): void => {
    if (copy !== undefined) {
      writeFully(copy.fd, part, at);
    }
  };
  for (const member of members) {
    content.restore(member);
  }
  for (const [index, { crc, inPlace }] of [...chunks].toSorted(([one], [other]) => one - other)) {
    const start = index * header.chunk;
    const end = Math.min(header.sizeBytes, start + header.chunk);
    const hasPlace = content.place(index, inPlace);
    if (hasPlace && crcOfRange(content, { start, end }, block, toCopy) === crc) {
      good.set(index, crc);
      copy?.place(index, false);
    } else {
      content.forget(index);
    }
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
  return good;
}

/** What an unfinished download holds, for status and `gc`. */
export interface PartialState {
  readonly name: string;
  readonly destination: string;
  readonly sizeBytes: number;
  readonly doneBytes: number;
  /** Without credentials. */
  readonly source: string;
  readonly updatedAt: Date;
  /** What it takes on the disk by now: reserved space counts too. */
  readonly allocatedBytes: number;
  /** How much of that is in the files of a tar's members, which need no room again when they are unpacked. */
  readonly placedBytes: number;
  readonly path: string;
}

function summarise(path: string): PartialState | undefined {
  const journal = readJournal(path);
  const updatedAt = statSync(join(path, "journal"), { throwIfNoEntry: false })?.mtime;
  // Its owner may finish, and remove it, between the two looks.
  if (journal === undefined || updatedAt === undefined) {
    return undefined;
  }
  const { header, members, chunks } = journal;
  const doneBytes = [...chunks.keys()].reduce(
    (sum, index) => sum + Math.min(header.chunk, header.sizeBytes - index * header.chunk),
    0,
  );
  const placedBytes = placedBytesIn(path, members);
  return {
    name: header.name,
    destination: header.destination,
    sizeBytes: header.sizeBytes,
    doneBytes,
    source: header.url,
    updatedAt,
    allocatedBytes: allocatedBytes(dataPathIn(path)) + placedBytes,
    placedBytes,
    path,
  };
}

function subfolders(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(path, entry.name));
  } catch {
    return [];
  }
}

function homesIn(roots: readonly string[]): string[] {
  return roots
    .map((root) => (basename(root) === PARTIAL_FOLDER ? root : join(root, PARTIAL_FOLDER)))
    .flatMap(subfolders);
}

/** The unfinished downloads below the given models roots (or `.cog-partial` folders). */
export function listPartials(roots: readonly string[]): PartialState[] {
  return homesIn(roots)
    .flatMap(attemptsIn)
    .map(summarise)
    .filter((state) => state !== undefined);
}

/** What is there of one destination; undefined when nothing is. */
export function partialState(
  destination: string,
  roots: readonly string[],
): PartialState | undefined {
  return listPartials(roots)
    .filter((state) => state.destination === destination)
    .toSorted((one, other) => other.doneBytes - one.doneBytes)[0];
}

/** Removes unfinished downloads that nobody works on and nobody touched for `olderThanMs`. Returns what it removed. */
export function removePartials(roots: readonly string[], olderThanMs: number): PartialState[] {
  return homesIn(roots).flatMap((home) => {
    sweepHome(home, SYSTEM_RULES);
    return attemptsIn(home).flatMap((path) => {
      // undefined of a process that was killed before it wrote down what it was about to fetch.
      const state = summarise(path);
      const isFresh = state !== undefined && Date.now() - state.updatedAt.getTime() < olderThanMs;
      return !isFresh && removeOrphan(path) && state !== undefined ? [state] : [];
    });
  });
}

/** False where somebody works on it. */
function removeOrphan(path: string): boolean {
  const claim = claimAttempt(path, dirname(path), SYSTEM_RULES);
  return claim !== undefined && claim !== "alive" && removeAttempt(claim);
}

function removeIfEmpty(path: string): void {
  try {
    rmdirSync(path);
  } catch {
    // Not empty, or gone already: both are fine.
  }
}
