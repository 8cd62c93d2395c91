/** Telling a process from a later one that got the same id, and from one of that id elsewhere. */
import { existsSync, readFileSync, readlinkSync } from "node:fs";

/**
 * A process's start time in ticks since boot, as the kernel prints it; undefined when it has ended. Where there is no
 * `/proc`, the empty text for one that runs: its id is then all there is to go by.
 */
export function startTicks(pid: number): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    // Where nobody collects the dead, as in a container without an init, they stay listed.
    return fields[0] === "Z" || fields[0] === "X" ? undefined : fields[19];
  } catch {
    return !existsSync("/proc/self/stat") && isRunning(pid) ? "" : undefined;
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** A process as it writes itself down for others to look after it. */
export interface ProcessMark {
  readonly pid: number;
  /** Of the process table that `pid` is of: the same number elsewhere is another process. Empty where that can't be told. */
  readonly table: string;
  readonly startTicks: string | null;
}

export function ownMark(): ProcessMark {
  const { pid } = process;
  return { pid, table: processTable(), startTicks: startTicks(pid) ?? null };
}

/** What became of a process; `unknown` for one of another machine or container. */
export function fateOf(mark: ProcessMark): "running" | "ended" | "unknown" {
  if (mark.table === "" || mark.table !== processTable() || mark.startTicks === null) {
    return "unknown";
  }
  return startTicks(mark.pid) === mark.startTicks ? "running" : "ended";
}

let ownTable: string | undefined;

/** Boot and process namespace: where a process id means something. */
function processTable(): string {
  try {
    ownTable ??= `${readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()} ${readlinkSync("/proc/self/ns/pid")}`;
    return ownTable;
  } catch {
    return "";
  }
}
