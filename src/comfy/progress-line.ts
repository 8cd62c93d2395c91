/**
 * Progress as a line of a prediction's log, in the form of a tqdm bar: clients that read bars out of logs
 * (`replicate-javascript`'s and `replicate-python`'s progress parsers) understand it.
 */
import type { RunProgress } from "./engine.ts";

const BAR_WIDTH = 10;

/** ` 45%|####      | 9/20 [KSampler 9/20, node 3 of 7]` */
export function progressLine(progress: RunProgress): string {
  const { value, max, finished, total, nodeTitle, classType } = progress;
  const within =
    value === undefined || max === undefined || max <= 0 ? 0 : Math.min(1, value / max);
  const share = total <= 0 ? 1 : Math.min(1, (finished + within) / total);
  const steps = max === undefined || max <= 1 ? "" : ` ${value}/${max}`;
  const bar = "#".repeat(Math.round(share * BAR_WIDTH)).padEnd(BAR_WIDTH);
  const percent = String(Math.round(share * 100)).padStart(3);
  return `${percent}%|${bar}| ${finished}/${total} [${nodeTitle || classType}${steps}]`;
}

/** Progress of a run as the data of an event. */
export function runState(progress: RunProgress): Record<string, string | number | null> {
  const { nodeId, nodeTitle, classType, value, max, finished, total } = progress;
  return {
    node: nodeId,
    title: nodeTitle,
    class_type: classType,
    value: value ?? null,
    max: max ?? null,
    finished_nodes: finished,
    total_nodes: total,
  };
}
