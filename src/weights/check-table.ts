/** `weights check`: every weight of a workflow with node, folder, size, source and state, as data and as a table. */
import { z } from "zod";
import { redactUrl } from "../platform/redact.ts";
import { formatSize } from "../platform/size.ts";
import type { KnownWeight, Validation, WeightRef } from "./refs.ts";
import type { Resolution } from "./resolve.ts";

export const WEIGHT_STATES = [
  "present",
  "missing",
  "broken",
  "perhaps",
  "listed",
  "ignored",
] as const;

const CheckRow = z.object({
  name: z.string(),
  category: z.string().nullable(),
  state: z
    .enum(WEIGHT_STATES)
    .describe(
      "perhaps: not there, and nothing proves that it is needed; listed: the engine offers it",
    ),
  nodes: z.array(z.string()),
  reason: z.string(),
  file: z.string().optional(),
  sizeBytes: z.int().optional().describe("Of the file, else of the source"),
  source: z.string().optional(),
  license: z.string().optional(),
  nonCommercial: z.boolean().optional(),
  gated: z.boolean().optional(),
  refused: z.string().optional(),
});

export const CheckReport = z.object({
  weights: z.array(CheckRow),
  downloadBytes: z.int(),
  unsized: z.array(z.string()),
  gated: z.array(z.string()),
});

export type CheckReport = z.infer<typeof CheckReport>;
type CheckRow = z.infer<typeof CheckRow>;

/** Looks up where a weight that is there came from, for the table; optional. */
export type ResolveRef = (ref: WeightRef) => Resolution;

/** Rows in the order of the workflow, one for every weight. */
export function checkReport(
  refs: readonly WeightRef[],
  validation: Validation,
  resolve?: ResolveRef,
): CheckReport {
  const uses = Map.groupBy(refs, keyOf);
  const states = statesOf(validation);
  const rows = [...uses].flatMap(([key, group]) => rowFor(group, states.get(key), resolve));
  const wanted = rows.filter((row) => row.state === "missing" || row.state === "broken");
  const available = wanted.filter((row) => row.source !== undefined && row.refused === undefined);
  return {
    weights: rows,
    downloadBytes: available.reduce((sum, row) => sum + (row.sizeBytes ?? 0), 0),
    unsized: available.filter((row) => row.sizeBytes === undefined).map((row) => row.name),
    gated: available.filter((row) => row.gated === true).map((row) => row.name),
  };
}

function keyOf(ref: WeightRef): string {
  return `${ref.path ?? ""}|${ref.category ?? ""}|${ref.name}`;
}

function rowFor(
  uses: readonly WeightRef[],
  found: Found | undefined,
  resolve: ResolveRef | undefined,
): CheckRow[] {
  const [ref] = uses;
  // Nothing was found out about an option of a choice that isn't needed.
  if (ref === undefined || found === undefined) {
    return [];
  }
  const resolution = found.known === undefined ? resolve?.(ref) : undefined;
  const known = found.known ?? (resolution?.kind === "unknown" ? undefined : resolution?.known);
  const sizeBytes = found.sizeBytes ?? known?.sizeBytes ?? known?.approxBytes;
  return [
    {
      name: ref.fromUrl === true ? redactUrl(ref.name) : ref.name,
      category: ref.category ?? null,
      state: found.state,
      nodes: uses.flatMap(nodeText),
      reason: ref.reason,
      ...(found.file === undefined ? {} : { file: found.file }),
      ...(sizeBytes === undefined ? {} : { sizeBytes }),
      ...sourceOf(known),
      ...(found.refused === undefined ? {} : { refused: found.refused }),
    },
  ];
}

interface Found {
  readonly state: CheckRow["state"];
  readonly file?: string | undefined;
  readonly sizeBytes?: number | undefined;
  readonly known?: KnownWeight | undefined;
  readonly refused?: string | undefined;
}

/** What was found out about each weight, by its key. What is there, or missed for certain, goes before the rest. */
function statesOf(validation: Validation): ReadonlyMap<string, Found> {
  const { present, missing, warnings, listed = [], ignored } = validation;
  const named = (refs: readonly WeightRef[], state: "listed" | "ignored") =>
    refs.map((ref): [string, Found] => [keyOf(ref), { state }]);
  return new Map<string, Found>([
    ...named(ignored, "ignored"),
    ...named(listed, "listed"),
    ...warnings.map((weight): [string, Found] => [
      keyOf(weight.ref),
      { state: "perhaps", known: weight.known, refused: weight.refused },
    ]),
    ...missing.map(({ ref, state, file, known, refused }): [string, Found] => [
      keyOf(ref),
      { state, file, known, refused },
    ]),
    ...present.map(({ ref, file, sizeBytes }): [string, Found] => [
      keyOf(ref),
      { state: "present", file, sizeBytes },
    ]),
  ]);
}

function nodeText(ref: WeightRef): string[] {
  if (ref.nodeId === undefined) {
    return [];
  }
  return [`${ref.nodeId} ${ref.classType ?? ""}${ref.input === undefined ? "" : `.${ref.input}`}`];
}

function sourceOf(known: KnownWeight | undefined): Partial<CheckRow> {
  return known === undefined
    ? {}
    : {
        source: known.source,
        ...(known.license === undefined ? {} : { license: known.license }),
        ...(known.nonCommercial === undefined ? {} : { nonCommercial: known.nonCommercial }),
        ...(known.gated === undefined ? {} : { gated: known.gated }),
      };
}

const MARKS: Readonly<Record<CheckRow["state"], string>> = {
  present: "ok",
  missing: "MISSING",
  broken: "BROKEN",
  perhaps: "perhaps",
  listed: "listed",
  ignored: "ignored",
};

/** The table for a terminal, and the sums below it. */
export function checkTable(report: CheckReport): string {
  const rows = report.weights.map((row) => [
    MARKS[row.state],
    row.name,
    row.category ?? "",
    row.sizeBytes === undefined ? "?" : formatSize(row.sizeBytes),
    row.nodes.join(", "),
    noteOf(row),
  ]);
  const head = ["state", "weight", "folder", "size", "node", "source"];
  return [...alignedLines([head, ...rows]), "", ...sums(report)].join("\n");
}

function noteOf(row: CheckRow): string {
  return [
    row.source ?? (row.state === "present" ? "" : "no source known"),
    ...(row.gated === true ? ["gated"] : []),
    ...(row.nonCommercial === true ? ["non-commercial"] : []),
    ...(row.refused === undefined ? [] : ["not for requests"]),
  ]
    .filter((part) => part !== "")
    .join(" · ");
}

function alignedLines(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => row[column]?.length ?? 0)),
  );
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd(),
  );
}

function sums({ weights, downloadBytes, unsized, gated }: CheckReport): string[] {
  const missing = weights.filter((row) => row.state === "missing" || row.state === "broken");
  const more = unsized.length === 0 ? "" : `, and ${unsized.length} of unknown size`;
  return [
    missing.length === 0
      ? `All ${weights.length} weights are there.`
      : `${missing.length} of ${weights.length} weights are missing. To download: ${formatSize(downloadBytes)}${more}.`,
    ...(gated.length === 0 ? [] : [`Gated: ${gated.join(", ")}`]),
  ];
}
