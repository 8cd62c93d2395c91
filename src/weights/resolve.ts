/**
 * Where from? For a weight that isn't there: lock file, manifests, synonyms, the table of implied weights, and last the
 * workflow's own word, which is bounded. Answers with jobs for the data plane, or says why there are none.
 */
import { basename, dirname, join } from "node:path";
import { canonicalCategory, looksLikeWeight } from "../models/categories.ts";
import type { ModelFolders } from "../models/folders.ts";
import { bareUrl } from "../platform/redact.ts";
import type { Manifest, ManifestWeight } from "./manifest.ts";
import { weightPath } from "./manifest.ts";
import type { InstallJob, Trust, WeightSource } from "./plan-types.ts";
import type { KnownWeight, MissingWeight, WeightHint, WeightRef } from "./refs.ts";
import { addressName, nameOfAddress, refusalOf } from "./request-source.ts";

/** What a lock file pins of one weight. */
export interface LockedWeight {
  readonly name: string;
  readonly category: string;
  readonly url: string;
  readonly sizeBytes?: number;
  readonly sha256?: string;
}

export interface ResolveOptions {
  readonly manifest: Manifest;
  readonly folders: ModelFolders;
  /** The lock file's word for a weight. */
  readonly locked?:
    | ((name: string, category: string | undefined) => LockedWeight | undefined)
    | undefined;
  /** Who vouches for the workflow's own addresses: the operator for PRELOAD_WORKFLOW and the command line. */
  readonly workflowTrust?: Trust | undefined;
  /** Hosts that a request's addresses may name; undefined: every public one. */
  readonly allowedHosts?: readonly string[] | undefined;
  /** Whether there is a token for the host of this address, so that gated sources may be tried first. */
  readonly hasToken?: ((url: string) => boolean) | undefined;
}

/** Where a weight can be had. */
export type Resolution =
  | { readonly kind: "jobs"; readonly jobs: readonly InstallJob[]; readonly known: KnownWeight }
  | { readonly kind: "refused"; readonly reason: string; readonly known: KnownWeight }
  | { readonly kind: "unknown" };

/** What is sought: a name, and where it is to lie. */
interface Sought {
  readonly ref: WeightRef;
  /** Of a broken file that is to be replaced. */
  readonly file: string | undefined;
}

/** Says where a weight can be had and what to do for it. */
export function resolveWeight(
  wanted: MissingWeight | WeightRef | string,
  options: ResolveOptions,
): Resolution {
  const sought = soughtFor(wanted);
  return (
    fromLock(sought, options) ??
    fromManifest(sought, options) ??
    fromImplied(sought, options) ??
    fromWorkflow(sought, options) ?? { kind: "unknown" }
  );
}

/** The jobs alone; none when no source is known or allowed. A name without a category may mean several files. */
export function resolveJobs(
  wanted: MissingWeight | WeightRef | string,
  options: ResolveOptions,
): readonly InstallJob[] {
  const resolution = resolveWeight(wanted, options);
  return resolution.kind === "jobs" ? resolution.jobs : [];
}

/**
 * What a kit installs: its required weights.
 * @throws WeightError KIT_UNKNOWN naming the known kits
 */
export function kitJobs(kit: string, options: ResolveOptions): InstallJob[] {
  if (kit === "none" || kit === "") {
    return [];
  }
  return options.manifest.kit(kit).map((row) => lockedKitJob(row, options) ?? rowJob(row, options));
}

function lockedKitJob(row: ManifestWeight, options: ResolveOptions): InstallJob | undefined {
  const ref = { ...namedRef(row.name), category: row.category };
  const resolution = fromLock({ ref, file: undefined }, options);
  return resolution?.kind === "jobs" ? resolution.jobs[0] : undefined;
}

/** The job for a row of a manifest, in the place where it belongs. */
export function rowJob(row: ManifestWeight, options: ResolveOptions, file?: string): InstallJob {
  const place = file ?? options.folders.destinationOf(weightPath(row));
  const own = row.urls.map((url) =>
    source(url, "operator", hasMirrors(row) ? row.sha256 : undefined),
  );
  const mirrors = (row.mirrors ?? []).map((url) => source(url, "operator"));
  const isOpen = row.gated !== true || row.urls.some((url) => options.hasToken?.(url) === true);
  const sources = isOpen ? [...own, ...mirrors] : [...mirrors, ...own];
  return {
    name: row.name,
    category: canonicalCategory(row.category),
    ...placement(place, sources, row.unpack === "tar" || row.folder === true),
    sources,
    ...(row.size === undefined || row.folder === true ? {} : { sizeBytes: row.size }),
    ...(row.sha256 === undefined || hasMirrors(row) ? {} : { sha256: row.sha256 }),
    ...(row.license === undefined ? {} : { license: row.license }),
    // A weight that a mirror gives away without a token needs none.
    ...(row.gated === true && !hasMirrors(row) ? { gated: true } : {}),
  };
}

function hasMirrors(row: ManifestWeight): boolean {
  return row.mirrors !== undefined && row.mirrors.length > 0;
}

function source(url: string, trust: Trust, sha256?: string): WeightSource {
  return { url, trust, ...(sha256 === undefined ? {} : { sha256 }) };
}

/** An archive is unpacked into the folder that its weight then lies in. */
function placement(
  place: string,
  sources: readonly WeightSource[],
  isArchive: boolean,
): Pick<InstallJob, "destination" | "unpack" | "member"> {
  const isTar = sources.every(({ url }) => /\.(tar|tar\.gz|tgz|tar\.zst)$/i.test(bareUrl(url)));
  return isArchive || isTar
    ? { destination: dirname(place), unpack: "tar", member: basename(place) }
    : { destination: place };
}

function soughtFor(wanted: MissingWeight | WeightRef | string): Sought {
  if (typeof wanted !== "string") {
    return "ref" in wanted
      ? { ref: wanted.ref, file: wanted.file }
      : { ref: wanted, file: undefined };
  }
  return { ref: namedRef(wanted), file: undefined };
}

/** A reference for a name that a person gave: `name`, or `category/name`. */
export function namedRef(name: string): WeightRef {
  return {
    name,
    category: undefined,
    nodeId: undefined,
    classType: undefined,
    input: undefined,
    reason: "meta",
    certain: true,
    hints: [],
  };
}

function fromLock(sought: Sought, options: ResolveOptions): Resolution | undefined {
  const { name, category } = sought.ref;
  const locked = options.locked?.(name, category);
  if (locked === undefined) {
    return undefined;
  }
  const row = options.manifest.find(locked.name, locked.category)[0];
  const place =
    sought.file ??
    (row === undefined
      ? join(options.folders.destinationFor(locked.category), locked.name)
      : options.folders.destinationOf(weightPath(row)));
  const sources = [source(locked.url, "operator")];
  const job: InstallJob = {
    name: locked.name,
    category: canonicalCategory(locked.category),
    ...placement(place, sources, row?.folder === true),
    sources,
    ...(locked.sizeBytes === undefined ? {} : { sizeBytes: locked.sizeBytes }),
    ...(locked.sha256 === undefined ? {} : { sha256: locked.sha256 }),
    ...(row?.license === undefined ? {} : { license: row.license }),
    ...(row?.gated === true ? { gated: true } : {}),
  };
  return { kind: "jobs", jobs: [job], known: knownOf(job, "lock", row) };
}

function fromManifest(sought: Sought, options: ResolveOptions): Resolution | undefined {
  const { rows, origin } = rowsFor(sought.ref, options);
  const [first] = rows;
  if (first === undefined) {
    return undefined;
  }
  const jobs = rows.map((row) => rowJob(row, options, sought.file));
  const [job] = jobs;
  return job === undefined ? undefined : { kind: "jobs", jobs, known: knownOf(job, origin, first) };
}

/** Manifest rows for a reference: by place, by name in its folders, by synonym, by file name in another sub-folder. */
function rowsFor(
  ref: WeightRef,
  { manifest }: ResolveOptions,
): { rows: readonly ManifestWeight[]; origin: KnownWeight["origin"] } {
  for (const path of [ref.path, ref.altPath]) {
    const row = path === undefined ? undefined : manifest.at(path);
    if (row !== undefined) {
      return { rows: [row], origin: "manifest" };
    }
  }
  if (ref.path !== undefined || ref.fromUrl === true) {
    return { rows: [], origin: "manifest" };
  }
  const name = ref.name.replaceAll("\\", "/");
  const direct = rowsNamed(manifest, name, ref);
  if (direct.length > 0) {
    return { rows: direct, origin: "manifest" };
  }
  const synonym = manifest.synonym(name);
  const stood = synonym === undefined ? [] : rowsNamed(manifest, synonym, ref);
  return stood.length > 0
    ? { rows: stood, origin: "synonym" }
    : { rows: movedRow(manifest, name, ref), origin: "manifest" };
}

function rowsNamed(manifest: Manifest, name: string, ref: WeightRef): readonly ManifestWeight[] {
  if (ref.category === undefined) {
    const [category = "", ...rest] = name.split("/");
    const inFolder = rest.length > 0 ? manifest.find(rest.join("/"), fileCategory(category)) : [];
    return inFolder.length > 0 ? inFolder : manifest.find(name);
  }
  // Prompts name embeddings and LoRAs without their ending.
  const isBare = ref.accepts !== undefined && !looksLikeWeight(name);
  const names = isBare ? BARE_ENDINGS.map((ending) => `${name}${ending}`) : [name];
  return [ref.category, ...(ref.otherCategories ?? [])]
    .flatMap((category) => names.flatMap((known) => manifest.find(known, fileCategory(category))))
    .slice(0, 1);
}

/** In the order ComfyUI tries them. */
const BARE_ENDINGS = ["", ".safetensors", ".pt", ".bin"];

/** Packs list the same folders under categories of their own; manifests know the folder's first name. */
function fileCategory(category: string): string {
  const sameFolder: Readonly<Record<string, string>> = {
    unet_gguf: "diffusion_models",
    clip_gguf: "text_encoders",
  };
  return sameFolder[category] ?? category;
}

/** Names that many weights share: the file name alone says nothing. */
const GENERIC =
  /^(model|diffusion_pytorch_model|pytorch_model|pytorch_lora_weights|adapter_model)[^/]*$/i;

/** The row of the same file name in the same category, put where the workflow looks for it. */
function movedRow(manifest: Manifest, name: string, ref: WeightRef): readonly ManifestWeight[] {
  const base = basename(name);
  if (base === name || ref.category === undefined || GENERIC.test(base) || !looksLikeWeight(base)) {
    return [];
  }
  const [row, ...more] = manifest.find(base, ref.category);
  return row === undefined || more.length > 0 || row.path !== undefined
    ? []
    : [{ ...row, name, category: ref.category }];
}

/** What the table of implied weights says: it ships with the program, so it is the operator's word. */
function fromImplied(sought: Sought, options: ResolveOptions): Resolution | undefined {
  const { ref } = sought;
  const hints = ref.hints.filter((hint) => hint.trust === "operator");
  const place =
    sought.file ?? (ref.path === undefined ? undefined : options.folders.destinationOf(ref.path));
  if (hints.length === 0 || place === undefined) {
    return undefined;
  }
  const isFolder = ref.folder !== undefined;
  const usable = hints.filter(({ url }) => !isFolder || /\.tar(\.gz)?$/i.test(url));
  const sources = usable.map((hint) => source(hint.url, "operator", hint.sha256));
  const job: InstallJob = {
    name: ref.name,
    category: ref.category ?? "custom_nodes",
    ...placement(place, sources, isFolder),
    sources,
    ...(ref.sizeBytes === undefined ? {} : { sizeBytes: ref.sizeBytes }),
  };
  const known = knownOf(
    { ...job, sources: hints.map((hint) => source(hint.url, "operator")) },
    "manifest",
  );
  return usable.length === 0
    ? {
        kind: "refused",
        known,
        reason: "a whole folder of several files can't be fetched from there",
      }
    : { kind: "jobs", jobs: [job], known };
}

function fromWorkflow(sought: Sought, options: ResolveOptions): Resolution | undefined {
  const { ref } = sought;
  const hints = ref.hints.filter((hint) => hint.trust !== "operator");
  const [first] = hints;
  if (first === undefined) {
    return undefined;
  }
  const origin = ref.fromUrl === true ? "url" : "workflow";
  if (options.workflowTrust === "operator" && ref.fromUrl !== true) {
    const job = operatorJob(sought, hints, options);
    return { kind: "jobs", jobs: [job], known: knownOf(job, origin) };
  }
  const trust = options.workflowTrust ?? "request";
  const attempts = hints.map((hint) => ({ hint, refusal: refusalFor(ref, hint, options) }));
  const allowed = attempts.find(({ refusal }) => refusal === undefined);
  if (allowed === undefined || ref.category === undefined) {
    const known = knownFrom(ref, first, origin);
    return { kind: "refused", known, reason: attempts[0]?.refusal ?? "nothing tells its folder" };
  }
  const place = join(
    options.folders.destinationFor(ref.category),
    addressName(allowed.hint.url, requestFileName(ref, allowed.hint)),
  );
  const job: InstallJob = {
    // Never the address, which may carry a token: the name goes into logs and errors.
    name: ref.fromUrl === true ? requestFileName(ref, allowed.hint) : ref.name,
    category: ref.category,
    destination: place,
    sources: [source(allowed.hint.url, trust, allowed.hint.sha256)],
  };
  return { kind: "jobs", jobs: [job], known: knownOf(job, origin) };
}

/** Under which last name a file from a workflow's address is kept. */
export function requestFileName(ref: WeightRef, hint: WeightHint): string {
  const given = ref.fromUrl === true ? undefined : basename(ref.name.replaceAll("\\", "/"));
  return given ?? nameOfAddress(hint.url) ?? "weight.safetensors";
}

function refusalFor(ref: WeightRef, hint: WeightHint, options: ResolveOptions): string | undefined {
  return refusalOf(
    { url: hint.url, category: ref.category, name: requestFileName(ref, hint) },
    {
      folders: options.folders,
      // What the operator names is bound in place and format, since any client may later name the same, not in host.
      allowedHosts: options.workflowTrust === "operator" ? undefined : options.allowedHosts,
    },
  );
}

function operatorJob(
  sought: Sought,
  hints: readonly WeightHint[],
  { folders }: ResolveOptions,
): InstallJob {
  const { ref, file } = sought;
  const name = ref.name.replaceAll("\\", "/");
  const category = ref.category ?? "checkpoints";
  const place =
    file ??
    (ref.path === undefined
      ? join(folders.destinationFor(category), name)
      : folders.destinationOf(ref.path));
  const sources = hints.map((hint) => source(hint.url, "operator", hint.sha256));
  return { name, category, ...placement(place, sources, false), sources };
}

function knownFrom(ref: WeightRef, hint: WeightHint, origin: KnownWeight["origin"]): KnownWeight {
  const name = ref.fromUrl === true ? requestFileName(ref, hint) : ref.name;
  return { name, source: bareUrl(hint.url), origin };
}

function knownOf(
  job: InstallJob,
  origin: KnownWeight["origin"],
  row?: ManifestWeight,
): KnownWeight {
  const size = job.sizeBytes ?? row?.size;
  return {
    name: job.name,
    source: bareUrl(job.sources[0]?.url ?? ""),
    origin,
    ...(size === undefined ? {} : { sizeBytes: size }),
    ...(size === undefined && row?.approxSize !== undefined ? { approxBytes: row.approxSize } : {}),
    ...(row?.license === undefined ? {} : { license: row.license }),
    ...(row?.nonCommercial === undefined ? {} : { nonCommercial: row.nonCommercial }),
    ...(job.gated === undefined ? {} : { gated: job.gated }),
  };
}
