/**
 * Unpacks tar, tar.gz, tar.zst and zip into a folder of our own: regular files and folders only, links inside the
 * root made into real files, nothing outside the root, counts and sizes capped. An archive that was cut, even
 * exactly between two members, is refused: no reader of tar notices that by itself (downloader.md B.8).
 */
import { chmodSync, closeSync, copyFileSync, linkSync, mkdirSync, openSync } from "node:fs";
import { dirname, posix } from "node:path";
import { Readable } from "node:stream";
import { crc32, createGunzip, createInflateRaw, createZstdDecompress } from "node:zlib";
import type { extract as createTarParser } from "tar-stream";
import { AppError, CanceledError, DownloadError, isAbort, messageOf } from "./errors.ts";
import { fileBlocks, fileError, joinInside, readFully, writeAway } from "./files.ts";
import { formatSize } from "./size.ts";

export interface ArchiveLimits {
  readonly maxEntries: number;
  /** Sum of all files, unpacked. */
  readonly maxTotalBytes: number;
  /** What the disk has room for; more than that is no fault of the archive's. */
  readonly spaceBytes: number;
  readonly maxDepth: number;
  readonly maxPathLength: number;
}

/** Above the largest weight collections seen, far below what exhausts inodes. */
export const DEFAULT_ARCHIVE_LIMITS: ArchiveLimits = {
  maxEntries: 100_000,
  maxTotalBytes: 2 ** 43,
  spaceBytes: Number.POSITIVE_INFINITY,
  maxDepth: 32,
  maxPathLength: 1024,
};

/** A file that was unpacked. */
export interface UnpackedFile {
  /** Relative to the root, with `/`. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly sha256: string | undefined;
}

/** Accompanies a file while it is written (a digest elsewhere, an early flush). */
export interface FileFollower {
  /** Everything before `position` is written. */
  advance(position: number): void;
  /** The file is whole and still open. The SHA-256, where the follower makes one. */
  end(): Promise<string | undefined>;
  /** It won't become whole. */
  cancel(): void;
}

/** A file in a tar. */
export interface ArchiveMember {
  /** Below the folder that the tar is unpacked into, with `/`. */
  readonly path: string;
  /** Of its first byte in the tar. */
  readonly offset: number;
  readonly sizeBytes: number;
}

/** Of a tar whose large members are written to where they belong by whoever receives it. */
export interface InPlace {
  /** Stands in the stream for bytes that are where they belong already. */
  isStandIn(block: Uint8Array): boolean;
  /** Asked when a file begins. Its open descriptor, which stays the giver's; undefined to have the file made here. */
  adopt(member: ArchiveMember): number | undefined;
}

export interface UnpackOptions {
  readonly limits?: Partial<ArchiveLimits> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Digest every file while it is written. */
  readonly hash?: boolean | undefined;
  /** Called with the absolute path of each file that begins; takes the place of `hash`. */
  readonly follow?: ((path: string) => FileFollower) | undefined;
  /** How messages name the archive. */
  readonly label?: string | undefined;
  readonly onBytes?: ((unpackedBytes: number) => void) | undefined;
  readonly inPlace?: InPlace | undefined;
}

export type ArchiveKind = "tar" | "gzip" | "zstd" | "zip";

/** Two zero blocks end a tar. */
const TAR_END_BYTES = 1024;
const TAR_BLOCK_BYTES = 512;
/** Where a chain of links must have arrived at a file. */
const MAX_LINK_HOPS = 16;

/** What an archive is by its first bytes (512 are enough); undefined when it is none that we read. */
export function sniffArchive(head: Uint8Array): ArchiveKind | undefined {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength);
  if (bytes.length >= 2 && bytes[0] === 0x1f && bytes[1] === 0x8b) {
    return "gzip";
  }
  if (bytes.length >= 4 && bytes.readUInt32LE(0) === 0xfd2fb528) {
    return "zstd";
  }
  if (
    bytes.length >= 4 &&
    ["PK\u0003\u0004", "PK\u0005\u0006"].includes(bytes.toString("latin1", 0, 4))
  ) {
    return "zip";
  }
  return hasTarChecksum(bytes) ? "tar" : undefined;
}

function hasTarChecksum(block: Buffer): boolean {
  if (block.length < TAR_BLOCK_BYTES) {
    return false;
  }
  const stated = Number.parseInt(
    block
      .toString("latin1", 148, 156)
      .replace(/[\0 ]+$/, "")
      .trim(),
    8,
  );
  let sum = 8 * 32;
  for (let at = 0; at < TAR_BLOCK_BYTES; at += 1) {
    sum += at >= 148 && at < 156 ? 0 : (block[at] ?? 0);
  }
  return stated === sum;
}

/**
 * A member's name as a path below the root, with `/`.
 * @throws DownloadError ARCHIVE_UNSAFE for everything that is absolute, climbs, or can't be written as it is.
 */
export function safeEntryPath(name: string, limits: Partial<ArchiveLimits> = {}): string {
  const { maxDepth, maxPathLength } = { ...DEFAULT_ARCHIVE_LIMITS, ...limits };
  const spelled = name.replaceAll("\\", "/");
  const parts = spelled.split("/").filter((part) => part !== "" && part !== ".");
  const reason = unsafeReason(spelled, parts);
  if (reason !== undefined) {
    throw unsafe(`holds the name ${quote(name)}, ${reason}`);
  }
  if (parts.length > maxDepth || Buffer.byteLength(spelled) > maxPathLength) {
    throw unsafe(`holds a path that is too deep or too long: ${quote(name.slice(0, 120))}…`);
  }
  return parts.join("/");
}

function unsafeReason(spelled: string, parts: readonly string[]): string | undefined {
  if (spelled.startsWith("/") || /^[A-Za-z]:/.test(spelled)) {
    return "which is an absolute path";
  }
  if (parts.includes("..")) {
    return "which leads out of the archive";
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the characters that are refused
  if (/[\u0000-\u001f\u007f\ufffd]/.test(spelled)) {
    return "which holds control characters or is no valid UTF-8";
  }
  return undefined;
}

function quote(name: string): string {
  return JSON.stringify(name);
}

function unsafe(what: string, label = "The archive"): DownloadError {
  return new DownloadError("ARCHIVE_UNSAFE", `${label} ${what}`, {
    hint: "Nothing of it was installed. Pack the files again, as plain files with relative names.",
  });
}

function truncated(what: string, label = "The archive", cause?: unknown): DownloadError {
  return new DownloadError("ARCHIVE_TRUNCATED", `${label} ${what}`, {
    cause,
    hint: "Nothing of it was installed. Fetch or pack it again.",
  });
}

/** Digests in this thread, or does nothing. */
function hashing(on: boolean): FileFollower & { readonly see?: (chunk: Uint8Array) => void } {
  const hasher = on ? new Bun.CryptoHasher("sha256") : undefined;
  return {
    advance: () => undefined,
    cancel: () => undefined,
    end: () => Promise.resolve(hasher?.digest("hex")),
    ...(hasher === undefined ? {} : { see: (chunk: Uint8Array) => void hasher.update(chunk) }),
  };
}

/** What an archive has put into its root so far, and the rules for what may come. */
class Unpacking {
  readonly root: string;
  readonly label: string;
  readonly files: UnpackedFile[] = [];
  readonly #options: UnpackOptions;
  readonly #limits: ArchiveLimits;
  readonly #kinds = new Map<string, "file" | "folder" | "link">();
  readonly #links: { path: string; target: string; hard: boolean }[] = [];
  #entries = 0;
  #totalBytes = 0;

  constructor(root: string, options: UnpackOptions) {
    this.root = root;
    this.label = options.label ?? "The archive";
    this.#options = options;
    this.#limits = { ...DEFAULT_ARCHIVE_LIMITS, ...options.limits };
  }

  /** Counts a member and says where it goes; undefined for the root itself (`./`). */
  place(name: string): string | undefined {
    this.#options.signal?.throwIfAborted();
    this.#entries += 1;
    if (this.#entries > this.#limits.maxEntries) {
      throw unsafe(`holds more than ${this.#limits.maxEntries} entries`, this.label);
    }
    let path: string;
    try {
      path = safeEntryPath(name, this.#limits);
    } catch (error) {
      throw unsafe(messageOf(error).replace(/^The archive /, ""), this.label);
    }
    return path === "" ? undefined : path;
  }

  folder(path: string): void {
    this.#claimFolders(path);
    mkdirSync(joinInside(this.root, path), { recursive: true });
  }

  link(path: string, target: string, hard: boolean): void {
    this.#claim(path, "link");
    this.#links.push({ path, target, hard });
  }

  /** Writes one regular file. Its size is checked against what comes; `offset` is where it begins in a tar. */
  async file(
    path: string,
    { sizeBytes: declared, offset }: MemberFacts,
    body: AsyncIterable<Uint8Array>,
  ): Promise<void> {
    this.#claim(path, "file");
    if (declared !== undefined) {
      this.#checkTotal(this.#totalBytes + declared);
    }
    const target = joinInside(this.root, path);
    const adopted =
      declared === undefined || offset === undefined
        ? undefined
        : this.#options.inPlace?.adopt({ path, offset, sizeBytes: declared });
    const fd = adopted ?? this.#create(target);
    // What is in place already does not come by here: its digest is the follower's to make.
    const mustHash = this.#options.hash === true && adopted === undefined;
    const follower = this.#options.follow?.(target) ?? hashing(mustHash);
    try {
      const sizeBytes = await this.#write({ fd, isAdopted: adopted !== undefined }, body, follower);
      if (declared !== undefined && sizeBytes !== declared) {
        throw truncated(`ends inside of ${quote(path)}`, this.label);
      }
      this.files.push({ path, sizeBytes, sha256: await follower.end() });
    } catch (error) {
      follower.cancel();
      throw this.translate(error, target);
    } finally {
      if (adopted === undefined) {
        closeSync(fd);
      }
    }
  }

  async #write(
    { fd, isAdopted }: { readonly fd: number; readonly isAdopted: boolean },
    body: AsyncIterable<Uint8Array>,
    follower: FileFollower & { readonly see?: (chunk: Uint8Array) => void },
  ): Promise<number> {
    let position = 0;
    // One block is written while the next is read.
    let writing = Promise.resolve();
    try {
      for await (const chunk of body) {
        this.#options.signal?.throwIfAborted();
        this.#totalBytes += chunk.byteLength;
        this.#checkTotal(this.#totalBytes);
        await writing;
        follower.advance(position);
        if (this.#options.inPlace?.isStandIn(chunk) !== true) {
          writing = writeAway(fd, chunk, position);
          // A failure is heard at the next `await`.
          writing.catch(() => undefined);
        } else if (!isAdopted) {
          throw new DownloadError(
            "SOURCE_CHANGED",
            `${this.label} is not the archive that files in place were taken from`,
          );
        }
        position += chunk.byteLength;
        follower.see?.(chunk);
        this.#options.onBytes?.(this.#totalBytes);
      }
    } finally {
      // Whatever ends it: the file may be closed only when nothing is written to it any more.
      await writing;
    }
    follower.advance(position);
    return position;
  }

  /** Makes links into files, now that everything they may point at is there. */
  finish(): readonly UnpackedFile[] {
    for (const link of this.#links) {
      for (const [path, original] of this.#materialised(link.path, this.#resolve(link))) {
        this.#copyInside(original.path, path);
        this.files.push({ ...original, path });
      }
    }
    if (this.files.length === 0) {
      throw truncated("holds no file", this.label);
    }
    return this.files;
  }

  translate(error: unknown, path: string): unknown {
    if (error instanceof AppError || isAbort(error)) {
      return error;
    }
    if (error instanceof Error && "syscall" in error) {
      return fileError(error, path, "unpack");
    }
    return truncated(`is damaged: ${messageOf(error)}`, this.label, error);
  }

  #create(target: string): number {
    try {
      mkdirSync(dirname(target), { recursive: true });
      return openSync(target, "wx", 0o644);
    } catch (error) {
      throw fileError(error, target, "unpack");
    }
  }

  #claim(path: string, kind: "file" | "link"): void {
    if (this.#kinds.has(path)) {
      throw unsafe(`holds ${quote(path)} twice`, this.label);
    }
    const parent = posix.dirname(path);
    if (parent !== ".") {
      this.#claimFolders(parent);
    }
    this.#kinds.set(path, kind);
  }

  #claimFolders(path: string): void {
    const parts = path.split("/");
    for (let depth = 1; depth <= parts.length; depth += 1) {
      const folder = parts.slice(0, depth).join("/");
      const known = this.#kinds.get(folder);
      if (known === "file" || known === "link") {
        throw unsafe(`uses ${quote(folder)} both as a ${known} and as a folder`, this.label);
      }
      this.#kinds.set(folder, "folder");
    }
  }

  /** The path inside the root that a link leads to, through further links. Pure: the disk is not asked. */
  #resolve(link: { path: string; target: string; hard: boolean }): string {
    let { path, target, hard } = link;
    for (let hop = 0; hop < MAX_LINK_HOPS; hop += 1) {
      if (target.startsWith("/") || target.includes("\0") || target === "") {
        throw unsafe(
          `holds a link ${quote(link.path)} that points outside (${quote(target)})`,
          this.label,
        );
      }
      const at = posix.normalize(hard ? target : posix.join(posix.dirname(path), target));
      const clean = at.replace(/\/$/, "");
      if (clean === ".." || clean.startsWith("../") || clean === ".") {
        throw unsafe(
          `holds a link ${quote(link.path)} that points outside (${quote(target)})`,
          this.label,
        );
      }
      if (this.#kinds.get(clean) !== "link") {
        return clean;
      }
      const next = this.#links.find((candidate) => candidate.path === clean);
      if (next === undefined) {
        break;
      }
      ({ path, target, hard } = next);
    }
    throw unsafe(`holds links that lead in a circle at ${quote(link.path)}`, this.label);
  }

  /** The files a link stands for: one, or all below when it points at a folder. */
  #materialised(path: string, target: string): [string, UnpackedFile][] {
    const below = `${target}/`;
    const found = this.files
      .filter((file) => file.path === target || file.path.startsWith(below))
      .map((file): [string, UnpackedFile] => [path + file.path.slice(target.length), file]);
    if (found.length === 0) {
      throw unsafe(
        `holds a link ${quote(path)} to ${quote(target)}, which it does not hold`,
        this.label,
      );
    }
    if (this.#kinds.get(target) === "folder" && path.startsWith(below)) {
      throw unsafe(`holds a link ${quote(path)} to a folder around it`, this.label);
    }
    return found;
  }

  #copyInside(from: string, to: string): void {
    this.#entries += 1;
    if (this.#entries > this.#limits.maxEntries) {
      throw unsafe(`holds more than ${this.#limits.maxEntries} entries`, this.label);
    }
    const source = joinInside(this.root, from);
    const target = joinInside(this.root, to);
    mkdirSync(dirname(target), { recursive: true });
    try {
      linkSync(source, target);
    } catch {
      // No hard links here: a copy is as good, and dearer.
      copyFileSync(source, target);
      chmodSync(target, 0o644);
    }
  }

  #checkTotal(bytes: number): void {
    const { maxTotalBytes, spaceBytes } = this.#limits;
    if (bytes > spaceBytes) {
      throw new DownloadError(
        "NO_SPACE",
        `${this.label ?? "The archive"} does not fit: ${this.root} has room for ${formatSize(spaceBytes)}, its files need at least ${formatSize(bytes)}`,
        { hint: "Make room there, or give a larger disk. Nothing of the archive was installed." },
      );
    }
    if (bytes > maxTotalBytes) {
      throw unsafe(`unpacks to more than ${formatSize(maxTotalBytes)}`, this.label);
    }
  }
}

/** What an archive says of a file before its bytes. */
interface MemberFacts {
  readonly sizeBytes: number | undefined;
  /** Of its first byte in a tar. */
  readonly offset?: number | undefined;
}

/** A member as tar-stream hands it over. `byteOffset` is there, but not in its types. */
interface TarHeader {
  readonly name: string;
  readonly type?: string | null | undefined;
  readonly size?: number | undefined;
  readonly linkname?: string | null | undefined;
  readonly byteOffset?: number;
  readonly pax?: unknown;
}

/**
 * Unpacks a plain tar that comes as a stream of bytes into `root`, which must be ours alone.
 * @throws DownloadError ARCHIVE_UNSAFE, ARCHIVE_TRUNCATED, NO_SPACE; CanceledError
 */
export async function unpackTar(
  source: AsyncIterable<Uint8Array>,
  root: string,
  options: UnpackOptions = {},
): Promise<readonly UnpackedFile[]> {
  const unpacking = new Unpacking(root, options);
  const { extract } = await import("tar-stream");
  const parser = extract();
  const counter = { bytes: 0 };
  let endOfLast = 0;
  const feeding = feed(source, parser, counter);
  // Observed below; until then a failure here reaches the loop through the parser.
  feeding.catch(() => undefined);
  try {
    for await (const entry of parser) {
      const header: TarHeader = entry.header;
      const size = header.size ?? 0;
      endOfLast = (header.byteOffset ?? 0) + Math.ceil(size / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES;
      await takeEntry(unpacking, header, entry);
    }
    await feeding;
  } catch (error) {
    parser.destroy();
    throw unpacking.translate(await firstCause(feeding, error), root);
  }
  if (counter.bytes - endOfLast < TAR_END_BYTES && unpacking.files.length > 0) {
    throw truncated("has no end mark: it was cut between two of its files", unpacking.label);
  }
  return unpacking.finish();
}

/** The source's own error says more than the parser's "stream was destroyed". */
async function firstCause(feeding: Promise<void>, error: unknown): Promise<unknown> {
  if (error instanceof AppError) {
    return error;
  }
  const settled = await Promise.race([
    feeding.then(
      () => undefined,
      (cause: unknown) => cause,
    ),
    new Promise<undefined>((resolve) => setImmediate(resolve, undefined)),
  ]);
  return settled instanceof AppError || isAbort(settled) ? settled : error;
}

type TarParser = ReturnType<typeof createTarParser>;

async function feed(
  source: AsyncIterable<Uint8Array>,
  parser: TarParser,
  counter: { bytes: number },
): Promise<void> {
  let closed = false;
  parser.once("close", () => {
    closed = true;
  });
  try {
    for await (const chunk of source) {
      if (closed) {
        return;
      }
      counter.bytes += chunk.byteLength;
      if (!parser.write(chunk)) {
        await drained(parser);
      }
    }
    parser.end(undefined);
  } catch (error) {
    parser.destroy(error instanceof Error ? error : new Error(String(error)));
    throw error;
  }
}

function drained(parser: TarParser): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      parser.removeListener("drain", done);
      parser.removeListener("close", done);
      resolve();
    };
    parser.once("drain", done);
    parser.once("close", done);
  });
}

async function takeEntry(
  unpacking: Unpacking,
  header: TarHeader,
  body: AsyncIterable<unknown> & { resume(): unknown },
): Promise<void> {
  const path = unpacking.place(header.name);
  // tar-stream leaves out what it does not know (old GNU sparse files, vendors' own).
  const type = header.type ?? "member of an unknown kind";
  if (path !== undefined) {
    if (isSparse(header)) {
      throw unsafe(
        `holds the sparse file ${quote(path)}, which can't be unpacked safely`,
        unpacking.label,
      );
    }
    if (type === "file" || type === "contiguous-file") {
      await unpacking.file(
        path,
        { sizeBytes: header.size, offset: header.byteOffset },
        bytesOf(body),
      );
      return;
    }
    takeSpecial(unpacking, path, type, header.linkname ?? "");
  } else if (type !== "directory") {
    throw unsafe(`holds a ${type} without a name`, unpacking.label);
  }
  body.resume();
}

/** tar-stream's streams say nothing of what they carry: always bytes. */
async function* bytesOf(body: AsyncIterable<unknown>): AsyncGenerator<Uint8Array> {
  for await (const chunk of body) {
    if (chunk instanceof Uint8Array) {
      yield chunk;
    }
  }
}

function takeSpecial(unpacking: Unpacking, path: string, type: string, linkname: string): void {
  switch (type) {
    case "directory":
      unpacking.folder(path);
      return;
    case "symlink":
      unpacking.link(path, linkname, false);
      return;
    case "link":
      unpacking.link(path, linkname, true);
      return;
    default:
      throw unsafe(
        `holds ${quote(path)}, which is no file or folder but a ${type}`,
        unpacking.label,
      );
  }
}

function isSparse(header: TarHeader): boolean {
  return (
    typeof header.pax === "object" &&
    header.pax !== null &&
    Object.keys(header.pax).some((key) => key.startsWith("GNU.sparse."))
  );
}

/**
 * Unpacks an archive file of any kind we read into `root`, which must be ours alone.
 * @throws DownloadError FORMAT_INVALID when it is no such archive; else as {@link unpackTar}
 */
export async function unpackArchive(
  file: string,
  root: string,
  options: UnpackOptions = {},
): Promise<readonly UnpackedFile[]> {
  const kind = sniffArchive(readHead(file));
  switch (kind) {
    case "tar":
      return await unpackTar(fileBlocks(file, { signal: options.signal }), root, options);
    case "gzip":
    case "zstd":
      return await unpackTar(decompressed(file, kind, options.signal), root, options);
    case "zip":
      return await unpackZip(file, root, options);
    case undefined:
      throw new DownloadError(
        "FORMAT_INVALID",
        `${options.label ?? file} is no archive that can be unpacked`,
        { hint: "Give a .tar, .tar.gz, .tar.zst or .zip file." },
      );
  }
}

function readHead(file: string): Uint8Array {
  let fd: number;
  try {
    fd = openSync(file, "r");
  } catch (error) {
    throw fileError(error, file, "open");
  }
  try {
    const head = Buffer.alloc(TAR_BLOCK_BYTES);
    return head.subarray(0, readFully(fd, head, 0));
  } finally {
    closeSync(fd);
  }
}

async function* decompressed(
  file: string,
  kind: "gzip" | "zstd",
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  const source = Readable.from(fileBlocks(file, { signal }));
  const inflate = kind === "gzip" ? createGunzip() : createZstdDecompress({});
  source.on("error", (error) => inflate.destroy(error));
  source.pipe(inflate);
  try {
    for await (const chunk of inflate) {
      signal?.throwIfAborted();
      yield chunk;
    }
  } catch (error) {
    if (isAbort(error)) {
      throw new CanceledError("Unpacking was called off", { cause: error });
    }
    throw truncated(`is damaged: ${messageOf(error)}`, undefined, error);
  } finally {
    source.destroy();
    inflate.destroy();
  }
}

// --- zip -----------------------------------------------------------------------------------------------------------

const ZIP_END = 0x06054b50;
const ZIP64_END = 0x06064b50;
const ZIP64_LOCATOR = 0x07064b50;
const ZIP_CENTRAL = 0x02014b50;
const ZIP_LOCAL = 0x04034b50;
/** End record plus the longest comment. */
const ZIP_TAIL_BYTES = 22 + 65_535 + 20;
/** Room for 100 000 entries with long names. */
const MAX_ZIP_DIRECTORY_BYTES = 64 * 1024 * 1024;
const STORED = 0;
const DEFLATED = 8;
const UNIX_TYPE_MASK = 0o170000;
const UNIX_SYMLINK = 0o120000;
const UNIX_FILE = 0o100000;
const UNIX_FOLDER = 0o040000;

interface ZipMember {
  readonly name: string;
  readonly method: number;
  readonly crc: number;
  readonly compressedBytes: number;
  readonly sizeBytes: number;
  readonly offset: number;
  readonly unixType: number;
  readonly encrypted: boolean;
}

/** Unpacks a zip by its central directory. Zip64 is read; encryption and other methods than deflate are refused. */
async function unpackZip(
  file: string,
  root: string,
  options: UnpackOptions,
): Promise<readonly UnpackedFile[]> {
  const unpacking = new Unpacking(root, options);
  const fd = openSync(file, "r");
  try {
    for (const member of readZipDirectory(fd, unpacking.label)) {
      await takeZipMember(unpacking, fd, file, member);
    }
    return unpacking.finish();
  } catch (error) {
    throw unpacking.translate(error, root);
  } finally {
    closeSync(fd);
  }
}

async function takeZipMember(
  unpacking: Unpacking,
  fd: number,
  file: string,
  member: ZipMember,
): Promise<void> {
  const path = unpacking.place(member.name);
  if (path === undefined) {
    return;
  }
  if (member.encrypted) {
    throw unsafe(`holds ${quote(path)}, which is encrypted`, unpacking.label);
  }
  if (member.name.replaceAll("\\", "/").endsWith("/") || member.unixType === UNIX_FOLDER) {
    unpacking.folder(path);
    return;
  }
  const body = zipBody(fd, file, member, unpacking.label);
  if (member.unixType === UNIX_SYMLINK) {
    const chunks: Uint8Array[] = [];
    for await (const chunk of body) {
      chunks.push(chunk);
    }
    unpacking.link(path, Buffer.concat(chunks).toString("utf8"), false);
    return;
  }
  if (member.unixType !== 0 && member.unixType !== UNIX_FILE) {
    throw unsafe(`holds ${quote(path)}, which is no file or folder`, unpacking.label);
  }
  await unpacking.file(path, { sizeBytes: member.sizeBytes }, body);
}

async function* zipBody(
  fd: number,
  file: string,
  member: ZipMember,
  label: string,
): AsyncGenerator<Uint8Array> {
  const local = Buffer.alloc(30);
  if (readFully(fd, local, member.offset) < 30 || local.readUInt32LE(0) !== ZIP_LOCAL) {
    throw truncated(`is damaged at ${quote(member.name)}`, label);
  }
  const start = member.offset + 30 + local.readUInt16LE(26) + local.readUInt16LE(28);
  const raw =
    member.compressedBytes === 0
      ? Readable.from([])
      : Readable.from(fileBlocks(file, { start, end: start + member.compressedBytes }));
  const stream = member.method === DEFLATED ? raw.pipe(createInflateRaw()) : raw;
  // A pipe hands on no errors.
  raw.on("error", (error) => stream.destroy(error));
  if (member.method !== DEFLATED && member.method !== STORED) {
    throw unsafe(
      `packs ${quote(member.name)} by method ${member.method}, which is not read`,
      label,
    );
  }
  let crc = 0;
  let length = 0;
  try {
    for await (const chunk of stream) {
      length += chunk.byteLength;
      if (length > member.sizeBytes) {
        throw unsafe(`holds more of ${quote(member.name)} than it says`, label);
      }
      crc = crc32(chunk, crc);
      yield chunk;
    }
  } finally {
    raw.destroy();
    stream.destroy();
  }
  if (crc !== member.crc) {
    throw truncated(`is damaged: the checksum of ${quote(member.name)} is wrong`, label);
  }
}

function readZipDirectory(fd: number, label: string): ZipMember[] {
  const { offset, length, entries } = findZipDirectory(fd, label);
  if (length > MAX_ZIP_DIRECTORY_BYTES) {
    throw unsafe("has a table of contents of absurd size", label);
  }
  const directory = Buffer.alloc(length);
  if (readFully(fd, directory, offset) < length) {
    throw truncated("is cut: its table of contents is not whole", label);
  }
  const members: ZipMember[] = [];
  for (let at = 0; members.length < entries; ) {
    if (at + 46 > length || directory.readUInt32LE(at) !== ZIP_CENTRAL) {
      throw truncated("is damaged: its table of contents is not whole", label);
    }
    const nameBytes = directory.readUInt16LE(at + 28);
    const extraBytes = directory.readUInt16LE(at + 30);
    members.push(readZipMember(directory.subarray(at), nameBytes, extraBytes));
    at += 46 + nameBytes + extraBytes + directory.readUInt16LE(at + 32);
  }
  return members;
}

function readZipMember(record: Buffer, nameBytes: number, extraBytes: number): ZipMember {
  const sizes = {
    sizeBytes: record.readUInt32LE(24),
    compressedBytes: record.readUInt32LE(20),
    offset: record.readUInt32LE(42),
  };
  const extra = record.subarray(46 + nameBytes, 46 + nameBytes + extraBytes);
  const wide = zip64Values(extra);
  // The 64-bit values stand in this order, each only where the 32-bit field is saturated.
  for (const field of ["sizeBytes", "compressedBytes", "offset"] as const) {
    if (sizes[field] === 0xffffffff) {
      sizes[field] = wide.shift() ?? sizes[field];
    }
  }
  const madeOnUnix = record.readUInt8(5) === 3;
  return {
    ...sizes,
    name: record.toString("utf8", 46, 46 + nameBytes),
    method: record.readUInt16LE(10),
    crc: record.readUInt32LE(16),
    encrypted: (record.readUInt16LE(8) & 1) === 1,
    unixType: madeOnUnix ? (record.readUInt32LE(38) >>> 16) & UNIX_TYPE_MASK : 0,
  };
}

function zip64Values(extra: Buffer): number[] {
  for (let at = 0; at + 4 <= extra.length; at += 4 + extra.readUInt16LE(at + 2)) {
    if (extra.readUInt16LE(at) === 1) {
      const end = Math.min(at + 4 + extra.readUInt16LE(at + 2), extra.length);
      const values: number[] = [];
      for (let field = at + 4; field + 8 <= end; field += 8) {
        values.push(Number(extra.readBigUInt64LE(field)));
      }
      return values;
    }
  }
  return [];
}

function findZipDirectory(
  fd: number,
  label: string,
): { offset: number; length: number; entries: number } {
  const { size } = Bun.file(fd);
  const tail = Buffer.alloc(Math.min(size, ZIP_TAIL_BYTES));
  readFully(fd, tail, size - tail.length);
  for (let at = tail.length - 22; at >= 0; at -= 1) {
    if (tail.readUInt32LE(at) === ZIP_END) {
      const plain = {
        entries: tail.readUInt16LE(at + 10),
        length: tail.readUInt32LE(at + 12),
        offset: tail.readUInt32LE(at + 16),
      };
      return zip64Directory(fd, tail, at) ?? plain;
    }
  }
  throw truncated("is cut: a zip ends with its table of contents, and this one has none", label);
}

function zip64Directory(
  fd: number,
  tail: Buffer,
  endAt: number,
): { offset: number; length: number; entries: number } | undefined {
  if (endAt < 20 || tail.readUInt32LE(endAt - 20) !== ZIP64_LOCATOR) {
    return undefined;
  }
  const record = Buffer.alloc(56);
  const at = Number(tail.readBigUInt64LE(endAt - 20 + 8));
  if (readFully(fd, record, at) < 56 || record.readUInt32LE(0) !== ZIP64_END) {
    return undefined;
  }
  return {
    entries: Number(record.readBigUInt64LE(32)),
    length: Number(record.readBigUInt64LE(40)),
    offset: Number(record.readBigUInt64LE(48)),
  };
}

/** What goes into a tar: a file, or a folder where there is no body. */
export interface TarMember {
  /** Relative, with `/`. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly modifiedMs: number;
  readonly body?: (() => AsyncIterable<Uint8Array>) | undefined;
}

/**
 * Packs a tar whose bytes depend on the members alone: no owner, no clock of this machine. `write` gets the blocks in
 * order; what it throws ends the packing.
 */
export async function packTar(
  members: readonly TarMember[],
  write: (block: Uint8Array) => void,
): Promise<void> {
  const { pack: createPack } = await import("tar-stream");
  const pack = createPack();
  const feeding = (async () => {
    for (const { path, sizeBytes, modifiedMs, body } of members) {
      const header = { mtime: new Date(modifiedMs), uid: 0, gid: 0, uname: "", gname: "" };
      if (body === undefined) {
        pack.entry({ ...header, name: path, type: "directory", mode: 0o755 });
        continue;
      }
      const done = Promise.withResolvers<void>();
      const entry = pack.entry({ ...header, name: path, size: sizeBytes, mode: 0o644 }, (error) =>
        error ? done.reject(error) : done.resolve(),
      );
      done.promise.catch(() => undefined);
      // Told through `done`; without a listener it would end the process.
      entry.on("error", () => undefined);
      for await (const block of body()) {
        // The sink may keep the block; a reader's buffer is used again.
        if (!entry.write(Buffer.from(block))) {
          await new Promise<void>((resolve) => entry.once("drain", () => resolve()));
        }
      }
      entry.end(null);
      await done.promise;
    }
    pack.finalize();
  })();
  // Observed below; until then the loop hears of it through the stream.
  feeding.catch((error: unknown) =>
    pack.destroy(error instanceof Error ? error : new Error(messageOf(error))),
  );
  try {
    for await (const block of bytesOf(pack)) {
      write(block);
    }
    await feeding;
  } catch (error) {
    throw await firstCause(feeding, error);
  } finally {
    pack.destroy();
  }
}
