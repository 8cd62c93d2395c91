/**
 * What an installation will do, before it does anything: what is there already, what is fetched once for several
 * places, how many bytes, how much disk at the worst moment, and whether that fits. Making a plan is pure; its facts
 * are gathered by {@link gatherFacts}.
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { inspect } from "../models/header.ts";
import { DownloadError, WeightError } from "../platform/errors.ts";
import { fileAt, freeSpace } from "../platform/files.ts";
import { bareUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import { partialState } from "./journal.ts";
import { partialRootFor } from "./placing.ts";
import type { InstallJob, Plan } from "./plan-types.ts";
import { looksLikeArchive, sourceLabel } from "./sources.ts";

/** What a source said of itself, as far as the plan cares. */
export interface SourceFacts {
  readonly sizeBytes: number | undefined;
}

export interface FileSystemFacts {
  readonly device: number;
  /** A folder on it, for people. */
  readonly path: string;
  readonly freeBytes: number;
  readonly totalBytes: number;
}

/** What is known of one job's destination. */
export interface DestinationFacts {
  /** Absolute path of the file (or folder) that makes the job unnecessary. */
  readonly present: string | undefined;
  readonly presentBytes: number;
  readonly device: number;
  /** Of an earlier attempt. */
  readonly resumedBytes: number;
  readonly allocatedBytes: number;
  /** The part of `allocatedBytes` that is unpacked already. */
  readonly placedBytes: number;
}

export interface PlanFacts {
  readonly destinations: ReadonlyMap<string, DestinationFacts>;
  readonly sources: ReadonlyMap<InstallJob, SourceFacts>;
  readonly fileSystems: readonly FileSystemFacts[];
}

export interface PlanLimits {
  /** `WEIGHTS_MIN_FREE_BYTES`; 10 GB or a tenth of the disk unless given. */
  readonly minFreeBytes?: number | undefined;
  /** `WEIGHTS_REQUEST_MAX_BYTES`, for what a request asks for. */
  readonly maxBytes?: number | undefined;
}

export interface PlanStep {
  readonly job: InstallJob;
  readonly action: "present" | "fetch" | "copy";
  /** Where it lies already. */
  readonly file?: string;
  /** The job whose file is linked or copied, because it has the same SHA-256. */
  readonly from?: InstallJob;
  /** Of the download; undefined when nobody knows. */
  readonly bytes: number | undefined;
  readonly resumedBytes: number;
  readonly isArchive: boolean;
  /** Unpacked straight from the network, because the disk has no room for the archive as well: a cut starts it over. */
  readonly isStreamed: boolean;
}

export interface FileSystemNeed extends FileSystemFacts {
  /** More than now, at the worst moment. */
  readonly peakBytes: number;
  readonly reserveBytes: number;
  readonly fits: boolean;
  /** It only fits when archives are not kept while they are unpacked. */
  readonly streamsArchives: boolean;
}

export interface InstallPlan extends Plan {
  readonly steps: readonly PlanStep[];
  /** Of {@link Plan.totalBytes}, what earlier attempts left on disk. */
  readonly resumedBytes: number;
  readonly fileSystems: readonly FileSystemNeed[];
  readonly limits: PlanLimits;
}

const DEFAULT_MIN_FREE_BYTES = 10e9;
const DEFAULT_MIN_FREE_SHARE = 0.1;
/** Archives that are unpacked at the same time, and so lie twice on the disk. */
const ARCHIVES_AT_ONCE = 3;

/** Decides what to do. Later jobs for a destination that an earlier one serves are dropped. */
export function makePlan(
  jobs: readonly InstallJob[],
  facts: PlanFacts,
  limits: PlanLimits = {},
): InstallPlan {
  const steps: PlanStep[] = [];
  const known = new Map<string, InstallJob>();
  for (const job of distinct(jobs)) {
    const step = planStep(job, facts, known);
    steps.push(step);
    for (const key of step.action === "copy" ? [] : contentKeys(job)) {
      known.set(key, job);
    }
  }
  const fetched = steps.filter((step) => step.action === "fetch");
  const fileSystems = facts.fileSystems.map((disk) => bestNeed(disk, steps, facts, limits));
  const streaming = new Set(
    fileSystems.filter((disk) => disk.streamsArchives).map((disk) => disk.device),
  );
  return {
    steps: steps.map((step) => {
      const device = facts.destinations.get(jobKey(step.job))?.device ?? -1;
      const isStreamed = step.action === "fetch" && canStream(step) && streaming.has(device);
      return { ...step, isStreamed };
    }),
    jobs: steps.filter((step) => step.action !== "present").map((step) => step.job),
    totalBytes: fetched.reduce((sum, step) => sum + (step.bytes ?? 0), 0),
    resumedBytes: fetched.reduce((sum, step) => sum + step.resumedBytes, 0),
    unsized: fetched.filter((step) => step.bytes === undefined).map((step) => step.job),
    fileSystems,
    limits,
  };
}

/** The identity of a job: where it ends up. Two files out of one archive are two jobs. */
export function jobKey(job: InstallJob): string {
  return job.unpack === undefined ? job.destination : join(job.destination, memberName(job));
}

/** What to look for inside a job's archive. */
export function memberName(job: InstallJob): string {
  return job.member ?? basename(job.name);
}

/** Two jobs with a key in common bring the same bytes: by SHA-256, or from the very same addresses. */
function contentKeys(job: InstallJob): string[] {
  if (job.unpack !== undefined || job.sources.some(looksLikeArchive)) {
    return [];
  }
  const addresses = job.sources.map(({ url, trust }) => `${trust} ${url}`);
  return [
    ...(job.sha256 === undefined ? [] : [job.sha256.toLowerCase()]),
    ...(addresses.length === 0 ? [] : [addresses.join("\n")]),
  ];
}

function distinct(jobs: readonly InstallJob[]): InstallJob[] {
  const seen = new Map<string, InstallJob>();
  for (const job of jobs) {
    const key = jobKey(job);
    const known = seen.get(key);
    if (known === undefined) {
      seen.set(key, job);
    } else if (
      known.sha256 !== undefined &&
      job.sha256 !== undefined &&
      known.sha256.toLowerCase() !== job.sha256.toLowerCase()
    ) {
      throw new WeightError(
        "CONFLICT",
        `${known.name} and ${job.name} are different files for one place, ${key}`,
        { hint: "Give one of them another name or category in the manifest." },
      );
    }
  }
  return [...seen.values()];
}

function planStep(
  job: InstallJob,
  facts: PlanFacts,
  known: ReadonlyMap<string, InstallJob>,
): PlanStep {
  const there = facts.destinations.get(jobKey(job));
  const isArchive = job.unpack !== undefined || job.sources.every(looksLikeArchive);
  if (there?.present !== undefined) {
    const { present: file, presentBytes: bytes } = there;
    return { job, action: "present", file, bytes, resumedBytes: 0, isArchive, isStreamed: false };
  }
  const twin = contentKeys(job)
    .map((key) => known.get(key))
    .find((other) => other !== undefined);
  if (twin !== undefined) {
    return {
      job,
      action: "copy",
      from: twin,
      bytes: job.sizeBytes,
      resumedBytes: 0,
      isArchive,
      isStreamed: false,
    };
  }
  const bytes = facts.sources.get(job)?.sizeBytes ?? job.sizeBytes;
  const resumedBytes = Math.min(there?.resumedBytes ?? 0, bytes ?? 0);
  return { job, action: "fetch", bytes, resumedBytes, isArchive, isStreamed: false };
}

/** Only a plain tar can be read as it comes. */
function canStream(step: PlanStep): boolean {
  return step.isArchive && step.job.sources.every(({ url }) => /\.tar$/i.test(bareUrl(url)));
}

/** With archives kept until they are unpacked, which a cut can go on from; without, where that is all that fits. */
function bestNeed(
  disk: FileSystemFacts,
  steps: readonly PlanStep[],
  facts: PlanFacts,
  limits: PlanLimits,
): FileSystemNeed {
  const kept = needOf(disk, steps, facts, limits);
  if (kept.fits) {
    return kept;
  }
  const lean = steps.map((step) => (canStream(step) ? { ...step, isStreamed: true } : step));
  const streamed = needOf(disk, lean, facts, limits);
  return streamed.fits ? { ...streamed, streamsArchives: true } : kept;
}

function needOf(
  disk: FileSystemFacts,
  steps: readonly PlanStep[],
  facts: PlanFacts,
  limits: PlanLimits,
): FileSystemNeed {
  let peakBytes = 0;
  const archives: number[] = [];
  for (const step of steps) {
    const there = facts.destinations.get(jobKey(step.job));
    if (step.action === "present" || there?.device !== disk.device) {
      continue;
    }
    const bytes = step.bytes ?? 0;
    if (step.isArchive) {
      // The tar lies there until its content is published; its content is about as long.
      archives.push(step.isStreamed ? 0 : Math.max(0, bytes - there.allocatedBytes));
      peakBytes += Math.max(0, (step.job.sizeBytes ?? bytes) - there.placedBytes);
    } else {
      peakBytes += Math.max(0, bytes - there.allocatedBytes);
    }
  }
  archives.sort((one, other) => other - one);
  peakBytes += archives.slice(0, ARCHIVES_AT_ONCE).reduce((sum, bytes) => sum + bytes, 0);
  const reserveBytes =
    limits.minFreeBytes ??
    Math.min(DEFAULT_MIN_FREE_BYTES, Math.floor(disk.totalBytes * DEFAULT_MIN_FREE_SHARE));
  // A plan that brings nothing here fits, however full the disk is.
  const fits = peakBytes === 0 || disk.freeBytes - peakBytes >= reserveBytes;
  return { ...disk, peakBytes, reserveBytes, fits, streamsArchives: false };
}

/** Looks at the disk: what is there, what is half there, what is free. */
export function gatherFacts(
  jobs: readonly InstallJob[],
  roots: readonly string[],
  sources: ReadonlyMap<InstallJob, SourceFacts> = new Map(),
): PlanFacts {
  const destinations = new Map<string, DestinationFacts>();
  const fileSystems = new Map<number, FileSystemFacts>();
  for (const job of jobs) {
    const { device, freeBytes, totalBytes } = freeSpace(job.destination);
    if (!fileSystems.has(device)) {
      fileSystems.set(device, { device, freeBytes, totalBytes, path: job.destination });
    }
    const file = presentFile(job);
    const partial = partialState(jobKey(job), [partialRootFor(jobKey(job), roots)]);
    destinations.set(jobKey(job), {
      device,
      present: file,
      presentBytes: file === undefined ? 0 : (fileAt(file)?.size ?? 0),
      resumedBytes: partial?.doneBytes ?? 0,
      allocatedBytes: partial?.allocatedBytes ?? 0,
      placedBytes: partial?.placedBytes ?? 0,
    });
  }
  return { destinations, sources, fileSystems: [...fileSystems.values()] };
}

/** The usable file (or folder) that a job would bring; undefined when there is none or it is broken. */
export function presentFile(job: InstallJob): string | undefined {
  const path = jobKey(job);
  const there = fileAt(path);
  if (there === undefined) {
    return undefined;
  }
  if (there.isDirectory()) {
    return job.unpack !== undefined && holdsFiles(path) ? path : undefined;
  }
  return inspect(path, { expectedSize: job.sizeBytes }).ok ? path : undefined;
}

/** An empty folder, or one of empty folders, is what a clean-up leaves, no weight. */
function holdsFiles(folder: string): boolean {
  return readdirSync(folder, { recursive: true, withFileTypes: true }).some(
    (entry) => entry.isFile() || entry.isSymbolicLink(),
  );
}

/** True when something that is no usable weight lies where the job's file belongs. */
export function isBlocked(job: InstallJob): boolean {
  return presentFile(job) === undefined && existsSync(jobKey(job));
}

/** Facts and plan in one step, without asking any server: sizes are those the manifests know. */
export function planInstall(
  jobs: readonly InstallJob[],
  options: PlanLimits & { readonly roots?: readonly string[] } = {},
): Promise<InstallPlan> {
  return Promise.resolve(makePlan(jobs, gatherFacts(jobs, options.roots ?? []), options));
}

/**
 * @throws DownloadError NO_SPACE with need and have of every disk that is too small; WeightError DOWNLOAD_REFUSED when a
 * request asks for more than it may
 */
export function requireFits(plan: InstallPlan): void {
  const { maxBytes } = plan.limits;
  if (maxBytes !== undefined && plan.totalBytes > maxBytes) {
    throw new WeightError(
      "DOWNLOAD_REFUSED",
      `This request would download ${formatSize(plan.totalBytes)}, and one may download ${formatSize(maxBytes)}`,
      {
        hint: "Have the operator install these weights beforehand (`weights pull`), or raise WEIGHTS_REQUEST_MAX_BYTES.",
        details: { bytes: plan.totalBytes, maxBytes },
      },
    );
  }
  const [unsized] = plan.unsized;
  if (maxBytes !== undefined && unsized !== undefined) {
    throw new WeightError(
      "DOWNLOAD_REFUSED",
      `Nobody says how long ${unsized.name} is, and a request may download at most ${formatSize(maxBytes)}`,
      { hint: "Use an address whose server states the length." },
    );
  }
  const tooSmall = plan.fileSystems.filter((disk) => !disk.fits);
  if (tooSmall.length > 0) {
    throw new DownloadError(
      "NO_SPACE",
      `The disk is too small. ${tooSmall.map(spaceText).join(" ")}`,
      {
        hint: "Free space, or point COMFYUI_MODELS_DIR at a larger disk; WEIGHTS_MIN_FREE_BYTES says how much must stay free.",
        details: {
          disks: tooSmall.map(({ path, peakBytes, freeBytes, reserveBytes }) => ({
            path,
            needBytes: peakBytes,
            freeBytes,
            reserveBytes,
          })),
        },
      },
    );
  }
}

function spaceText(disk: FileSystemNeed): string {
  return `At ${disk.path}: ${formatSize(disk.peakBytes)} are needed and ${formatSize(disk.reserveBytes)} must stay free, ${formatSize(disk.freeBytes)} are.`;
}

/** The plan as people read it. */
export function describePlan(plan: InstallPlan): string {
  const lines = plan.steps.map((step) => `  ${stepText(step)}`);
  const resumed =
    plan.resumedBytes === 0 ? "" : `, ${formatSize(plan.resumedBytes)} of it are there from before`;
  const unsized = plan.unsized.length === 0 ? "" : `, and ${plan.unsized.length} of unknown size`;
  lines.push(`To download: ${formatSize(plan.totalBytes)}${resumed}${unsized}.`);
  for (const disk of plan.fileSystems.filter(({ peakBytes }) => peakBytes > 0)) {
    const verdict = disk.fits ? "fits" : "does not fit";
    lines.push(
      `Disk at ${disk.path}: ${formatSize(disk.peakBytes)} at the worst moment, ${formatSize(disk.freeBytes)} free, ${formatSize(disk.reserveBytes)} kept free: ${verdict}.`,
    );
  }
  return lines.join("\n");
}

function stepText(step: PlanStep): string {
  const size = step.bytes === undefined ? "size unknown" : formatSize(step.bytes);
  const { job } = step;
  switch (step.action) {
    case "present":
      return `${job.name}: there already (${size})`;
    case "copy":
      return `${job.name}: same file as ${step.from?.name ?? "another"} (${size}), fetched once`;
    case "fetch": {
      const [first, ...mirrors] = job.sources;
      const source = first === undefined ? "nowhere" : sourceLabel(first);
      const more =
        mirrors.length === 0
          ? ""
          : `, ${mirrors.length} more source${mirrors.length === 1 ? "" : "s"}`;
      const unpack = step.isArchive ? unpackText(step) : "";
      return `${job.name}: ${size} from ${source}${more}${unpack}`;
    }
  }
}

function unpackText(step: PlanStep): string {
  return step.isStreamed
    ? ", unpacked straight from the network for want of space (a cut starts it over)"
    : ", unpacked on the way";
}
