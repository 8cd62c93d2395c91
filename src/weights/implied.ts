/**
 * Weights that a node fetches without naming them: preprocessors, IPAdapter presets, InsightFace, background removal.
 * A table of rows, each one condition on the inputs of one class; users may add their own. Asking has no side effects.
 */

import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { z } from "zod";
import { WeightError } from "../platform/errors.ts";
import type { JsonValue } from "../platform/json.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import { linkOf } from "../workflow/graph.ts";

/** Input → value it must have; null: the input must not be linked. */
const Condition = z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]));

/** What is known of an implied weight. Its key is its path relative to ComfyUI's root, `hf-cache:owner/repo[/file]` or `home:…`. */
const ImpliedWeight = z.strictObject({
  urls: z.array(z.string()).exactOptional(),
  size: z.int().positive().exactOptional(),
  sha256: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .exactOptional(),
  /** The weight is a folder; `files` must be in it. */
  folder: z.boolean().exactOptional(),
  files: z.array(z.string()).exactOptional(),
  /** The node takes any file of the same folder whose name matches. */
  accepts: z.string().exactOptional(),
  altPath: z.string().exactOptional(),
});

const ImpliedRow = z.strictObject({
  class: z.string(),
  when: Condition.exactOptional(),
  unless: Condition.exactOptional(),
  /** The row counts for models of this family only. */
  baseModel: z.string().exactOptional(),
  /** Rows of one condition with different versions describe versions of the pack. */
  version: z.string().exactOptional(),
  /** The version to assume when nothing tells. */
  preferred: z.boolean().exactOptional(),
  /** False: a miss is a warning. */
  certain: z.boolean().exactOptional(),
  needs: z.array(z.string()).min(1),
  /** Where this was read. */
  source: z.string(),
});

const ImpliedDocument = z.strictObject({
  version: z.literal(1),
  weights: z.record(z.string(), ImpliedWeight),
  rows: z.array(ImpliedRow),
});

export type ImpliedWeight = z.infer<typeof ImpliedWeight>;
type ImpliedRow = z.infer<typeof ImpliedRow>;

/** A weight that a node needs without naming it. */
export interface ImpliedNeed {
  readonly name: string;
  readonly path: string;
  readonly facts: ImpliedWeight;
  readonly certain: boolean;
  readonly choice?: {
    readonly group: string;
    readonly option: string;
    readonly preferred: boolean;
  };
}

type Inputs = Readonly<Record<string, JsonValue>>;

function holds(condition: z.infer<typeof Condition> | undefined, inputs: Inputs): boolean {
  return Object.entries(condition ?? {}).every(([input, wanted]) => {
    const value = Object.hasOwn(inputs, input) ? inputs[input] : undefined;
    return wanted === null ? linkOf(value) === undefined : value === wanted;
  });
}

/** True when an exception's input has its value; an input that isn't there is no exception. */
function isExcepted(row: ImpliedRow, inputs: Inputs): boolean {
  return row.unless !== undefined && holds(row.unless, inputs);
}

/** What tells rows of one condition apart: the family of the model, or the version of the pack. */
function optionOf(row: ImpliedRow): string | undefined {
  return row.baseModel ?? row.version;
}

export class ImpliedTable {
  static #builtIn: ImpliedTable | undefined;
  readonly #weights: ReadonlyMap<string, ImpliedWeight>;
  readonly #rows: ReadonlyMap<string, readonly ImpliedRow[]>;

  private constructor(weights: ReadonlyMap<string, ImpliedWeight>, rows: readonly ImpliedRow[]) {
    this.#weights = weights;
    this.#rows = Map.groupBy(rows, (row) => row.class);
  }

  /** The table that ships with the program; read at the first use. */
  static builtIn(): ImpliedTable {
    ImpliedTable.#builtIn ??= ImpliedTable.parse(
      JSON.parse(readFileSync(join(PROJECT_ROOT, "src/weights/implied-weights.json"), "utf8")),
      "implied-weights.json",
    );
    return ImpliedTable.#builtIn;
  }

  /** @throws WeightError MANIFEST_INVALID naming the row and the field. */
  static parse(document: unknown, where: string): ImpliedTable {
    const parsed = ImpliedDocument.safeParse(document);
    if (!parsed.success) {
      const problems = parsed.error.issues.map(
        (issue) => `${issue.path.join(".")}: ${issue.message}`,
      );
      throw new WeightError("MANIFEST_INVALID", `${where} is wrong. ${problems.join("; ")}`, {
        hint: "Correct these fields; each row is {class, when?, needs, source}.",
        details: { problems },
      });
    }
    return new ImpliedTable(new Map(Object.entries(parsed.data.weights)), parsed.data.rows);
  }

  /** This table with the rows of another one added; its facts win. */
  with(other: ImpliedTable): ImpliedTable {
    return new ImpliedTable(
      new Map([...this.#weights, ...other.#weights]),
      [...this.#rows.values(), ...other.#rows.values()].flat(),
    );
  }

  /** True when some row is about the class: it may ask for the model family, which costs a walk. */
  knows(classType: string): boolean {
    return this.#rows.has(classType);
  }

  /** What is known of the weight at this path. */
  facts(path: string): ImpliedWeight | undefined {
    return this.#weights.get(path);
  }

  /** Every weight of the table by its path. */
  paths(): Iterable<string> {
    return this.#weights.keys();
  }

  /** The weights that a node of this class needs beside those it names. `baseModel`: the family, if it is known. */
  needsOf(classType: string, inputs: Inputs, baseModel?: string): ImpliedNeed[] {
    const rows = (this.#rows.get(classType) ?? []).filter(
      (row) => holds(row.when, inputs) && !isExcepted(row, inputs),
    );
    const groups = Map.groupBy(rows, (row) => JSON.stringify(row.when ?? {}));
    const needs = [...groups].flatMap(([when, group]) =>
      this.#groupNeeds(`${classType} ${when}`, selectFamily(group, baseModel)),
    );
    return unique(needs);
  }

  #groupNeeds(group: string, rows: readonly ImpliedRow[]): ImpliedNeed[] {
    const options = new Set(rows.map(optionOf).filter((option) => option !== undefined));
    const isPreferredKnown = rows.some((row) => row.preferred === true);
    return rows.flatMap((row) =>
      row.needs.map((path) => {
        const option = optionOf(row);
        // What every option needs is no matter of choice.
        const isShared =
          option === undefined ||
          options.size < 2 ||
          [...options].every((other) =>
            rows.some((peer) => optionOf(peer) === other && peer.needs.includes(path)),
          );
        const preferred = !isPreferredKnown || row.preferred === true;
        return {
          name: basename(path),
          path,
          facts: this.#weights.get(path) ?? {},
          certain: row.certain ?? true,
          ...(isShared ? {} : { choice: { group, option, preferred } }),
        };
      }),
    );
  }
}

/** Of rows for several families, those of the known one; all of them when it isn't known. */
function selectFamily(
  rows: readonly ImpliedRow[],
  baseModel: string | undefined,
): readonly ImpliedRow[] {
  const chosen = rows.filter((row) => row.baseModel === undefined || row.baseModel === baseModel);
  return baseModel === undefined || !rows.some((row) => row.baseModel === baseModel)
    ? rows
    : chosen;
}

function unique(needs: readonly ImpliedNeed[]): ImpliedNeed[] {
  const byPath = new Map<string, ImpliedNeed>();
  for (const need of needs) {
    const known = byPath.get(need.path);
    if (known === undefined || (!known.certain && need.certain)) {
      byPath.set(need.path, need);
    }
  }
  return [...byPath.values()];
}
