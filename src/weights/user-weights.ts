/**
 * COG_WEIGHTS: the operator's own archives, unpacked into the models folder with their tree kept. Understands
 * `models/checkpoints/x`, `checkpoints/x` and what the original's `train` packs; the `weights.json` inside is handed
 * back. An archive that was unpacked before and is unchanged costs one small request, or none when it is a file.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, statSync } from "node:fs";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { CATEGORIES, looksLikeWeight } from "../models/categories.ts";
import type { UnpackedFile } from "../platform/archive.ts";
import { unpackArchive } from "../platform/archive.ts";
import { ConfigError, DownloadError } from "../platform/errors.ts";
import { fileAt, freeSpace, makeFolder, removeTree, writeAtomically } from "../platform/files.ts";
import type { Logger } from "../platform/log.ts";
import { silentLogger } from "../platform/log.ts";
import { bareUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import { digestOf } from "./digest.ts";
import type { Installer } from "./install.ts";
import type { ObjectIdentity } from "./journal.ts";
import { PARTIAL_FOLDER, partialKey } from "./journal.ts";
import type { InstallProgress } from "./plan-types.ts";
import type { Occupied } from "./publish.ts";
import { publishTree } from "./publish.ts";
import { isOurs, recall, remember } from "./records.ts";
import { verifyTree } from "./verify.ts";

export interface UserWeightsOptions {
  /** Brings archives that are not files of this machine. */
  readonly installer: Installer;
  /** The receiving models folder. */
  readonly modelsRoot: string;
  readonly minFreeBytes?: number | undefined;
  /** What relative paths are relative to; the working folder unless given. */
  readonly base?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: InstallProgress) => void) | undefined;
  readonly log?: Logger | undefined;
}

export interface UserWeights {
  /** Absolute paths of everything the archives brought, whether now or at an earlier start. */
  readonly files: readonly string[];
  /** The `weights.json` of each archive that has one, parsed and otherwise as it stands. */
  readonly manifests: readonly { readonly source: string; readonly content: unknown }[];
  /** Files left as they were, because somebody else put another one there. */
  readonly kept: readonly string[];
  /** Files of the archives that lie in no folder and so could not be placed. */
  readonly unplaced: readonly string[];
}

const RecordSchema = z.object({
  v: z.literal(1),
  source: z.string(),
  state: z.string(),
  files: z.array(z.object({ path: z.string(), sizeBytes: z.number() })),
  manifest: z.string().nullable(),
  unplaced: z.array(z.string()),
});
type UserRecord = z.output<typeof RecordSchema>;

/** Folders that archives are wrapped in; what counts is what lies below. */
const WRAPPERS = new Set(["comfyui", "models", "weights", "user-weights", "user_weights"]);
const MANIFEST_NAME = "weights.json";
/** A manifest of ten thousand weights has some megabytes. */
const MAX_MANIFEST_BYTES = 32 * 1024 * 1024;

/**
 * Unpacks one or several archives: paths or addresses, separated by white space when they come as one text.
 * @throws ConfigError for a path that is not there; DownloadError from fetching or unpacking
 */
export async function installUserWeights(
  sources: string | readonly string[],
  options: UserWeightsOptions,
): Promise<UserWeights> {
  const result: {
    files: string[];
    manifests: { source: string; content: unknown }[];
    kept: string[];
    unplaced: string[];
  } = { files: [], manifests: [], kept: [], unplaced: [] };
  for (const source of splitSources(sources, options.base)) {
    const one = await installOne(source, options);
    result.files.push(...one.files);
    result.manifests.push(...one.manifests);
    result.kept.push(...one.kept);
    result.unplaced.push(...one.unplaced);
  }
  return result;
}

/** A path may hold spaces: one that exists as it stands is one source. */
function splitSources(sources: string | readonly string[], base: string | undefined): string[] {
  if (typeof sources !== "string") {
    return [...sources];
  }
  const whole = sources.trim();
  return existsSync(resolve(base ?? ".", whole)) ? [whole] : whole.split(/\s+/).filter(Boolean);
}

async function installOne(source: string, options: UserWeightsOptions): Promise<UserWeights> {
  const local = localPath(source, options.base);
  const log = (options.log ?? silentLogger).child("user_weights");
  const root = join(options.modelsRoot, PARTIAL_FOLDER);
  const label = local ?? bareUrl(source);
  const recordPath = join(root, "user-weights", `${partialKey(label)}.json`);
  const known = readRecord(recordPath);
  const isKnown = (state: string): boolean =>
    known !== undefined && known.state === state && isAllThere(known, options.modelsRoot);
  const context = { options, log, root, label, recordPath };
  if (local !== undefined) {
    const state = localState(local);
    return isKnown(state)
      ? told(known, options.modelsRoot)
      : await unpackInto({ ...context, archive: local, state });
  }
  return await installRemote(source, { ...context, known, isKnown });
}

interface Context {
  readonly options: UserWeightsOptions;
  readonly log: Logger;
  readonly root: string;
  readonly label: string;
  readonly recordPath: string;
}

async function installRemote(
  source: string,
  context: Context & {
    readonly known: UserRecord | undefined;
    readonly isKnown: (state: string) => boolean;
  },
): Promise<UserWeights> {
  const { options, log, root, label, known, isKnown } = context;
  try {
    const raw = await options.installer.fetchRaw(
      {
        name: partialKey(label),
        source: { url: source, trust: "operator" },
        root,
        isKnown: (identity) => isKnown(remoteState(identity)),
      },
      { signal: options.signal, onProgress: options.onProgress },
    );
    if (raw === undefined) {
      log.info(`User weights of ${label} are unpacked already`);
      return told(known, options.modelsRoot);
    }
    try {
      return await unpackInto({ ...context, archive: raw.path, state: remoteState(raw.identity) });
    } finally {
      raw.remove();
    }
  } catch (error) {
    const offline = error instanceof DownloadError && error.retryable;
    if (!offline || known === undefined || !isAllThere(known, options.modelsRoot)) {
      throw error;
    }
    log.warn(`${label} can't be asked whether it changed; what was unpacked before is used`, {
      reason: error.message,
    });
    return told(known, options.modelsRoot);
  }
}

/** The absolute path, when the source is a file of this machine. @throws ConfigError when it is not there */
function localPath(source: string, base: string | undefined): string | undefined {
  if (/^[a-z][a-z0-9+.-]+:\/\//i.test(source) && !source.startsWith("file://")) {
    return undefined;
  }
  const named = source.startsWith("file://") ? fileURLToPath(source) : source;
  const path = isAbsolute(named) ? named : resolve(base ?? ".", named);
  if (fileAt(path)?.isFile() !== true) {
    throw new ConfigError("CONFIG_INVALID", `The user weights ${path} are not there`, {
      hint: "Set COG_WEIGHTS to the path or address of a .tar, .tar.gz or .zip file.",
    });
  }
  return path;
}

function localState(path: string): string {
  const { size, mtimeMs } = statSync(path);
  return `${size}:${Math.floor(mtimeMs)}`;
}

function remoteState(identity: ObjectIdentity): string {
  return [identity.sizeBytes, identity.etag ?? "", identity.lastModified ?? ""].join(":");
}

function readRecord(path: string): UserRecord | undefined {
  try {
    const parsed = RecordSchema.safeParse(JSON.parse(readFileSync(path, "utf8")));
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}

function isAllThere(record: UserRecord, modelsRoot: string): boolean {
  return record.files.every((file) => fileAt(join(modelsRoot, file.path))?.size === file.sizeBytes);
}

function told(record: UserRecord | undefined, modelsRoot: string): UserWeights {
  if (record === undefined) {
    return { files: [], manifests: [], kept: [], unplaced: [] };
  }
  return {
    files: record.files.map((file) => join(modelsRoot, file.path)),
    manifests: manifestsOf(record.source, record.manifest),
    kept: [],
    unplaced: record.unplaced,
  };
}

function manifestsOf(
  source: string,
  text: string | null,
): { readonly source: string; readonly content: unknown }[] {
  return text === null ? [] : [{ source, content: parseManifest(source, text) }];
}

function parseManifest(source: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConfigError("MANIFEST_INVALID", `The ${MANIFEST_NAME} in ${source} is no JSON`, {
      cause,
      hint: "Correct it and pack the archive again.",
    });
  }
}

interface UnpackContext extends Context {
  readonly archive: string;
  readonly state: string;
}

async function unpackInto(context: UnpackContext): Promise<UserWeights> {
  const { options, log, root, label, archive } = context;
  const staging = join(root, `unpack-${partialKey(label)}`);
  removeTree(staging);
  makeFolder(join(staging, "tree"));
  try {
    const space = freeSpace(root).freeBytes - (options.minFreeBytes ?? 0);
    const files = await unpackArchive(archive, join(staging, "tree"), {
      label: `The archive ${label}`,
      signal: options.signal,
      hash: true,
      limits: { spaceBytes: Math.max(0, space) },
    });
    const { placed, manifest, unplaced } = arrange(staging, files);
    const published = await publishUserTree(context, join(staging, "placed"), placed);
    const record: UserRecord = {
      v: 1,
      source: label,
      state: context.state,
      files: placed
        .filter((file) => !published.kept.includes(file.path))
        .map(({ path, sizeBytes }) => ({ path, sizeBytes })),
      manifest,
      unplaced,
    };
    const result = {
      ...told(record, options.modelsRoot),
      kept: published.kept.map((path) => join(options.modelsRoot, path)),
    };
    writeAtomically(context.recordPath, `${JSON.stringify(record)}\n`);
    log.info(`Unpacked ${placed.length} user weights of ${label}`, {
      size: formatSize(placed.reduce((sum, file) => sum + file.sizeBytes, 0)),
    });
    if (unplaced.length > 0) {
      log.warn(
        `${label} holds files outside of any model folder, which ComfyUI would not find: ${unplaced.join(", ")}`,
      );
    }
    return result;
  } finally {
    removeTree(staging);
  }
}

/** Moves what was unpacked to where it belongs below `placed/`, without its wrapping folders. */
function arrange(
  staging: string,
  files: readonly UnpackedFile[],
): { placed: UnpackedFile[]; manifest: string | null; unplaced: string[] } {
  const common = commonWrapper(files);
  const placed: UnpackedFile[] = [];
  const unplaced: string[] = [];
  let manifest: string | null = null;
  for (const file of files) {
    const from = join(staging, "tree", file.path);
    const path = withoutWrappers(file.path, common);
    if (path === MANIFEST_NAME && file.sizeBytes <= MAX_MANIFEST_BYTES) {
      manifest = readFileSync(from, "utf8");
    } else if (!path.includes("/")) {
      if (looksLikeWeight(path)) {
        unplaced.push(file.path);
      }
    } else if (!isLitter(path)) {
      const to = join(staging, "placed", path);
      mkdirSync(dirname(to), { recursive: true });
      renameSync(from, to);
      placed.push({ ...file, path });
    }
  }
  mkdirSync(join(staging, "placed"), { recursive: true });
  return { placed, manifest, unplaced };
}

/** macOS's companions of real files, and its folder for them. */
function isLitter(path: string): boolean {
  return (
    basename(path).startsWith("._") ||
    basename(path) === ".DS_Store" ||
    path.startsWith("__MACOSX/")
  );
}

/** A single folder around everything that is itself no model folder: `my-weights/checkpoints/x`. */
function commonWrapper(files: readonly UnpackedFile[]): string | undefined {
  const paths = files.map((file) => file.path).filter((path) => !isLitter(path));
  const tops = new Set(paths.map((path) => path.split("/")[0] ?? ""));
  const [top] = tops;
  if (tops.size !== 1 || top === undefined || isCategory(top) || WRAPPERS.has(top.toLowerCase())) {
    return undefined;
  }
  const holdsFolders = paths.every((path) => {
    const [, second = "", ...rest] = path.split("/");
    return rest.length === 0
      ? second === MANIFEST_NAME
      : isCategory(second) || WRAPPERS.has(second.toLowerCase());
  });
  return holdsFolders ? top : undefined;
}

function isCategory(name: string): boolean {
  return Object.hasOwn(CATEGORIES, name);
}

function withoutWrappers(path: string, common: string | undefined): string {
  const parts = path.split("/");
  if (common !== undefined && parts[0] === common) {
    parts.shift();
  }
  while (parts.length > 1 && WRAPPERS.has((parts[0] ?? "").toLowerCase())) {
    parts.shift();
  }
  return parts.join("/");
}

async function publishUserTree(
  context: UnpackContext,
  placedRoot: string,
  placed: readonly UnpackedFile[],
): Promise<{ kept: string[] }> {
  const { options, root, log } = context;
  const tree = verifyTree(placedRoot, placed);
  const verdicts = new Map<string, Occupied>();
  for (const file of placed) {
    const path = join(options.modelsRoot, file.path);
    verdicts.set(path, await occupied(root, path, file));
  }
  const { published, kept } = publishTree(
    tree,
    options.modelsRoot,
    (path) => verdicts.get(path) ?? "keep",
  );
  for (const file of placed.filter((one) => published.includes(one.path))) {
    remember(root, {
      name: basename(file.path),
      destination: join(options.modelsRoot, file.path),
      sizeBytes: file.sizeBytes,
      sha256: file.sha256 ?? null,
      source: context.label,
    });
  }
  const foreign: string[] = [];
  for (const path of kept) {
    const file = placed.find((one) => one.path === path);
    if (file !== undefined && (await isOther(join(options.modelsRoot, path), file))) {
      log.warn(
        `${join(options.modelsRoot, path)} is another file than the one in ${context.label}; it is left as it is`,
      );
      foreign.push(path);
    }
  }
  return { kept: foreign };
}

/** Ours of an earlier version of the archive is replaced; the same file, and anybody else's, stays. */
async function occupied(root: string, path: string, file: UnpackedFile): Promise<Occupied> {
  if (!isOurs(root, path)) {
    return "keep";
  }
  const record = recall(root, path);
  const same = record?.sha256 === file.sha256 && fileAt(path)?.size === file.sizeBytes;
  return same && !(await isOther(path, file)) ? "keep" : "replace";
}

async function isOther(path: string, file: UnpackedFile): Promise<boolean> {
  const there = fileAt(path);
  return there?.size !== file.sizeBytes || (await digestOf(path)) !== file.sha256;
}
