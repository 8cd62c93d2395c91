/** Telling a process from a later one that got the same id. */
import { readFileSync } from "node:fs";

/** A process's start time in ticks since boot, as the kernel prints it; undefined when it has ended. Linux only. */
export function startTicks(pid: number): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    // Where nobody collects the dead, as in a container without an init, they stay listed.
    return fields[0] === "Z" || fields[0] === "X" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}
