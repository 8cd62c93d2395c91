/** Telling a process from a later one that got the same id. */
import { existsSync, readFileSync } from "node:fs";

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
