/**
 * What people read when weights are missing: everything at once, the fix first; and the same as data. Pure.
 */
import { z } from "zod";
import { DEFECT_TEXT, DEFECTS } from "../models/header.ts";
import { WeightError } from "../platform/errors.ts";
import { redactUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import { Obstacle, obstacleSections } from "../workflow/obstacles.ts";
import type { Manifest } from "./manifest.ts";
import type { KnownWeight, MissingWeight, NearMatch, Validation, WeightRef } from "./refs.ts";

/** One input that wants a weight. */
const NodeUse = z.object({
  nodeId: z.string(),
  title: z.string().optional(),
  classType: z.string(),
  input: z
    .string()
    .optional()
    .describe("Absent for weights that a node fetches without naming them"),
  subgraphs: z.array(z.string()).optional(),
});

const SourceFacts = z.object({
  url: z.string().describe("Without credentials"),
  origin: z.enum(["lock", "manifest", "synonym", "workflow", "url"]),
  name: z.string().describe("The name the source knows it by"),
  sizeBytes: z.int().optional(),
  approxBytes: z.int().optional(),
  license: z.string().optional(),
  nonCommercial: z.boolean().optional(),
  gated: z.boolean().optional(),
  refused: z.string().optional().describe("Why a request may not use it"),
});

const MissingEntry = z.object({
  name: z.string().describe("As the workflow spells it"),
  category: z.string().nullable(),
  path: z.string().optional(),
  state: z.enum(["missing", "broken"]),
  defect: z.enum(DEFECTS).optional(),
  file: z.string().optional().describe("The broken file"),
  fix: z.string(),
  nodes: z.array(NodeUse),
  searched: z.array(z.string()),
  near: z.array(
    z.object({ name: z.string(), category: z.string(), why: z.string(), onDisk: z.boolean() }),
  ),
  source: SourceFacts.optional(),
});

/** The missing report as data: `details` of the error, `--json` of the command line, `POST /weights/check`. */
export const MissingReport = z.object({
  message: z.string(),
  missing: z.array(MissingEntry),
  warnings: z.array(MissingEntry).describe("Told, but they block nothing"),
  download: z.object({
    bytes: z.int().describe("Sum of the known sizes of what has a source"),
    files: z.int(),
    unsized: z.array(z.string()),
    gated: z.array(z.string()),
    withoutSource: z.array(z.string()),
  }),
  commands: z.array(z.object({ command: z.string(), does: z.string() })),
  obstacles: z
    .array(Obstacle)
    .optional()
    .describe("What else stands in the way of a run, where there is something"),
});

export type MissingReport = z.infer<typeof MissingReport>;
type MissingEntry = z.infer<typeof MissingEntry>;

export interface ReportOptions {
  /** How the command line calls the workflow: a path or URL that can be pasted. */
  readonly workflow?: string | undefined;
  /** To name the kits that hold a missing weight. */
  readonly manifest?: Manifest | undefined;
  /** False where the operator's policy forbids downloads by request. */
  readonly canRequestDownload?: boolean | undefined;
  /** What else ComfyUI would refuse: told together with the weights. */
  readonly obstacles?: readonly Obstacle[] | undefined;
}

/** Where the report doesn't know what its reader calls the workflow. */
const SOME_WORKFLOW = "your_workflow.json";
/** What people type; the image's own command has no `bin/`. */
const COMMAND = "bin/cog-comfyui";

/** The first line, as the guide promises it. */
export function missingLine(missing: readonly MissingWeight[]): string {
  return `Missing required weights: ${missing.map(({ ref }) => shownName(ref)).join(", ")}`;
}

/** An address may carry a token; a name is shown as it is. */
function shownName(ref: WeightRef): string {
  return ref.fromUrl === true ? redactUrl(ref.name) : ref.name;
}

/** The report as data. */
export function missingReport(validation: Validation, options: ReportOptions = {}): MissingReport {
  const { missing, warnings } = validation;
  const obstacles = options.obstacles ?? [];
  return {
    message: missing.length === 0 ? "All required weights are there" : missingLine(missing),
    missing: missing.map((weight) => toEntry(weight, options)),
    warnings: warnings.map((weight) => toEntry(weight, options)),
    download: downloadOf(missing),
    commands: commandsFor(missing, options),
    ...(obstacles.length === 0 ? {} : { obstacles: [...obstacles] }),
  };
}

/** The report as text: first line, one block for every weight with the fix first, what brings them all. */
export function missingText(validation: Validation, options: ReportOptions = {}): string {
  const report = missingReport(validation, options);
  const blocks = report.missing.map((entry) => blockOf(entry));
  const uncertain = report.warnings.map((entry) => blockOf(entry));
  return [
    report.message,
    ...blocks.map((block) => `\n${block}`),
    ...(uncertain.length === 0
      ? []
      : ["\nPerhaps missing too (nothing proves that they are needed):"]),
    ...uncertain.map((block) => `\n${block}`),
    ...obstacleSections(report.obstacles ?? [], true).map((section) => `\n${section}`),
    ...commandLines(report),
  ].join("\n");
}

/**
 * The error of a prediction whose weights are missing: the report is its text, the same as data its details. `why`: what
 * would have made a download happen, as the policy says.
 */
export function weightsMissing(
  validation: Validation,
  manifest: Manifest | undefined,
  options: Omit<ReportOptions, "manifest"> & { readonly why?: string | undefined } = {},
): WeightError {
  const report = { ...options, manifest };
  return new WeightError("WEIGHTS_MISSING", missingText(validation, report), {
    hint: options.why,
    details: missingReport(validation, report),
  });
}

function toEntry(weight: MissingWeight, options: ReportOptions): MissingEntry {
  const { ref, known } = weight;
  return {
    name: shownName(ref),
    category: ref.category ?? null,
    ...(ref.path === undefined ? {} : { path: ref.path }),
    state: weight.state,
    ...(weight.defect === undefined ? {} : { defect: weight.defect }),
    ...(weight.file === undefined ? {} : { file: weight.file }),
    fix: fixFor(weight, options),
    nodes: (weight.uses ?? [ref]).flatMap(toUse),
    searched: [...weight.searched],
    near: weight.near.map((match) => ({ ...match, onDisk: match.onDisk ?? true })),
    ...(known === undefined ? {} : { source: toSource(known, weight.refused) }),
  };
}

function toUse(ref: WeightRef): MissingEntry["nodes"] {
  if (ref.nodeId === undefined) {
    return [];
  }
  return [
    {
      nodeId: ref.nodeId,
      ...(ref.nodeTitle === undefined ? {} : { title: ref.nodeTitle }),
      classType: ref.classType ?? "",
      ...(ref.input === undefined ? {} : { input: ref.input }),
      ...(ref.subgraphs === undefined ? {} : { subgraphs: [...ref.subgraphs] }),
    },
  ];
}

function toSource(known: KnownWeight, refused: string | undefined): z.infer<typeof SourceFacts> {
  const { source: url, ...facts } = known;
  return { url, ...facts, ...(refused === undefined ? {} : { refused }) };
}

/** What to do about one weight, in one line. */
function fixFor(weight: MissingWeight, options: ReportOptions): string {
  const [near] = weight.near;
  if (weight.state === "broken") {
    return brokenFix(weight);
  }
  if (near !== undefined && near.onDisk !== false) {
    return near.why === "other_folder" ? moveFix(weight, near) : renameFix(weight, near);
  }
  if (weight.refused !== undefined) {
    return `have the operator install it, since ${weight.refused}`;
  }
  if (weight.known !== undefined) {
    return weight.ref.fromUrl === true
      ? `${COMMAND} weights pull ${quote(options.workflow ?? SOME_WORKFLOW)}`
      : pullFix(weight.ref, weight.known);
  }
  if (near !== undefined) {
    return renameFix(weight, near);
  }
  const folder = receivingFolder(weight.ref, weight.searched) ?? "its model folder";
  return `put the file into ${folder}, or add a row with its address to the manifest in WEIGHTS_MANIFEST`;
}

/** Of the folders searched, the one called like the category: ComfyUI searches an old name first (`unet`). */
function receivingFolder(ref: WeightRef, searched: readonly string[]): string | undefined {
  return searched.find((path) => path.endsWith(`/${ref.category}`)) ?? searched[0];
}

function brokenFix({ ref, file, known, defect }: MissingWeight): string {
  if (defect === "unreadable") {
    return `make ${file} readable for this process`;
  }
  return known === undefined
    ? `replace ${file} by a whole file`
    : `${COMMAND} weights repair ${quote(pullName(ref, known))}`;
}

function renameFix({ ref }: MissingWeight, near: NearMatch): string {
  return ref.input === undefined || ref.nodeId === undefined
    ? `use "${near.name}" instead`
    : `set ${ref.input} of node ${ref.nodeId} to "${near.name}"`;
}

function moveFix({ ref, searched }: MissingWeight, near: NearMatch): string {
  const folder = receivingFolder(ref, searched) ?? ref.category ?? "the right folder";
  return `move it: it lies in ${near.category}/${near.name}, and this input reads ${folder}`;
}

function pullFix(ref: WeightRef, known: KnownWeight): string {
  const command = `${COMMAND} weights pull ${quote(pullName(ref, known))}`;
  const gate = gateOf(known);
  return gate === undefined ? command : `${gate}, then ${command}`;
}

/** How to pass a gate: page of the licence, variable of the token. */
function gateOf({ gated, source }: KnownWeight): string | undefined {
  if (gated !== true) {
    return undefined;
  }
  const page = /^(?:https:\/\/huggingface\.co\/|hf:\/\/)([^/]+\/[^/@]+)/.exec(source)?.[1];
  const variable = /civitai\./i.test(source) ? "CIVITAI_API_TOKEN" : "HF_TOKEN";
  return page === undefined
    ? `set ${variable}`
    : `accept the licence at https://huggingface.co/${page} and set ${variable}`;
}

/** The name by which `weights pull` finds the weight without doubt. */
function pullName(ref: WeightRef, known: KnownWeight): string {
  if (ref.path?.startsWith("models/") === true) {
    return ref.path.slice("models/".length);
  }
  const name = known.origin === "manifest" || known.origin === "synonym" ? known.name : ref.name;
  return `${ref.category === undefined ? "" : `${ref.category}/`}${name}`;
}

function quote(text: string): string {
  return /^[\w./:@%+=,-]+$/.test(text) ? text : `"${text.replace(/(["\\$`])/g, "\\$1")}"`;
}

function downloadOf(missing: readonly MissingWeight[]): MissingReport["download"] {
  const names = (weights: readonly MissingWeight[]) => weights.map(({ ref }) => shownName(ref));
  const available = missing.filter(
    ({ known, refused }) => known !== undefined && refused === undefined,
  );
  const sizeOf = ({ known }: MissingWeight) => known?.sizeBytes ?? known?.approxBytes;
  return {
    bytes: available.reduce((sum, weight) => sum + (sizeOf(weight) ?? 0), 0),
    files: available.length,
    unsized: names(available.filter((weight) => sizeOf(weight) === undefined)),
    gated: names(available.filter(({ known }) => known?.gated === true)),
    withoutSource: names(missing.filter((weight) => !available.includes(weight))),
  };
}

function commandsFor(
  missing: readonly MissingWeight[],
  options: ReportOptions,
): MissingReport["commands"] {
  if (!missing.some(({ known, refused }) => known !== undefined && refused === undefined)) {
    return [];
  }
  const workflow = quote(options.workflow ?? SOME_WORKFLOW);
  return [
    { command: `${COMMAND} weights pull ${workflow}`, does: "gets them now, on this machine" },
    ...(options.canRequestDownload === false
      ? []
      : [{ command: "download_missing_weights=true", does: "gets them with this request" }]),
    { command: `PRELOAD_WORKFLOW=${workflow}`, does: "gets them at every start" },
    ...kitCommands(missing, options.manifest),
  ];
}

function kitCommands(
  missing: readonly MissingWeight[],
  manifest: Manifest | undefined,
): MissingReport["commands"] {
  const held = new Map<string, string[]>();
  for (const { known, ref } of missing) {
    const row = known === undefined ? undefined : manifest?.find(known.name, ref.category)[0];
    for (const kit of row === undefined ? [] : (manifest?.kitsWith(row) ?? [])) {
      held.set(kit, [...(held.get(kit) ?? []), ref.name]);
    }
  }
  return [...held]
    .sort(([, a], [, b]) => b.length - a.length)
    .slice(0, 1)
    .map(([kit, names]) => ({ command: `BASE_MODEL_KIT=${kit}`, does: `has ${names.join(", ")}` }));
}

/** Width of the words in front of each line of a block. */
const LABEL_WIDTH = 9;

function line(label: string, text: string): string {
  return `  ${label.padEnd(LABEL_WIDTH)} ${text}`;
}

function blockOf(entry: MissingEntry): string {
  const state = entry.defect === undefined ? "" : `  the file ${DEFECT_TEXT[entry.defect]}`;
  return [
    `${entry.name}${state}`,
    line("fix", entry.fix),
    ...entry.near.slice(0, 3).map((match) => line("maybe", maybe(match))),
    ...entry.nodes.map((use) => line("node", describeUse(use))),
    ...(entry.file === undefined ? [] : [line("file", entry.file)]),
    ...(entry.state === "broken" ? [] : searchedLines(entry.searched)),
    ...(entry.source === undefined ? [] : [line("source", describeSource(entry.source))]),
  ].join("\n");
}

const WHY: Readonly<Record<NearMatch["why"], string>> = {
  case: "same name in other case",
  separator: "other separators",
  extension: "other ending",
  subfolder: "in another sub-folder",
  other_folder: "in another folder",
  spelling: "spelt alike",
};

function isWhy(text: string): text is NearMatch["why"] {
  return Object.hasOwn(WHY, text);
}

function maybe(match: MissingEntry["near"][number]): string {
  const why = isWhy(match.why) ? WHY[match.why] : match.why;
  return match.onDisk
    ? `did you mean ${match.category}/${match.name}? (${why})`
    : `did you mean ${match.name}? (known to the manifest, ${why})`;
}

function describeUse(use: z.infer<typeof NodeUse>): string {
  const title = use.title === undefined || use.title === use.classType ? "" : ` "${use.title}"`;
  const inside = use.subgraphs === undefined ? "" : ` in ${use.subgraphs.join(" › ")}`;
  const what =
    use.input === undefined
      ? `${use.classType}, which needs it by itself`
      : `${use.classType}, input ${use.input}`;
  return `${use.nodeId}${title}${inside}: ${what}`;
}

function searchedLines(searched: readonly string[]): string[] {
  return searched.map((path, index) => line(index === 0 ? "searched" : "", path));
}

function describeSource(source: z.infer<typeof SourceFacts>): string {
  const size = source.sizeBytes ?? source.approxBytes;
  const about = source.sizeBytes === undefined ? "about " : "";
  return [
    source.url,
    size === undefined ? "size unknown" : `${about}${formatSize(size)}`,
    ...(source.license === undefined ? [] : [`licence ${source.license}`]),
    ...(source.nonCommercial === true ? ["NON-COMMERCIAL USE ONLY"] : []),
    ...(source.gated === true ? ["gated"] : []),
    ...(source.origin === "synonym" ? [`known as ${source.name}`] : []),
    ...(source.origin === "workflow" || source.origin === "url" ? ["named by the workflow"] : []),
    ...(source.refused === undefined ? [] : [`refused: ${source.refused}`]),
  ].join(" · ");
}

function commandLines({ commands, download }: MissingReport): string[] {
  if (commands.length === 0) {
    return [];
  }
  const width = Math.max(...commands.map(({ command }) => command.length));
  const { bytes, unsized } = download;
  const sizes = [
    ...(bytes === 0 ? [] : [formatSize(bytes)]),
    ...(unsized.length === 0 ? [] : [`${unsized.length} of unknown size`]),
  ];
  const files = download.files === 1 ? "1 file" : `${download.files} files`;
  return [
    `\nWhat has a source (${files}, ${sizes.join(", ")}):`,
    ...commands.map(({ command, does }) => `  ${command.padEnd(width)}  ${does}`),
  ];
}
