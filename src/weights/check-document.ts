/** The answer of `weights check --json` and of `POST /weights/check`: one documented form for both. */
import { z } from "zod";
import { Obstacle } from "../workflow/obstacles.ts";
import type { ResolveRef } from "./check-table.ts";
import { CheckReport, checkReport } from "./check-table.ts";
import type { Validation, WeightRef } from "./refs.ts";
import type { ReportOptions } from "./report.ts";
import { MissingReport, missingReport } from "./report.ts";

export const CheckDocument = CheckReport.extend({
  ok: z.boolean().describe("Every weight is there, and nothing is known for which it can't run"),
  obstacles: z.array(Obstacle).describe("What stands in the way of a run beside weights"),
  report: MissingReport,
});
export type CheckDocument = z.infer<typeof CheckDocument>;

/** What was found out about one workflow. */
export interface Checked {
  readonly refs: readonly WeightRef[];
  readonly validation: Validation;
  readonly obstacles: readonly Obstacle[];
}

export function checkDocument(
  { refs, validation, obstacles }: Checked,
  resolve: ResolveRef,
  options: ReportOptions,
): CheckDocument {
  return {
    ...checkReport(refs, validation, resolve),
    ok: validation.missing.length === 0 && !obstacles.some(({ blocks }) => blocks),
    obstacles: [...obstacles],
    report: missingReport(validation, options),
  };
}
