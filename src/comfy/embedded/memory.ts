/** How much memory this process may use: a container's limit where there is one, else the machine's. */
import { freemem, totalmem } from "node:os";

export function memoryLimit(): number {
  const limit = process.constrainedMemory();
  // Without a limit this is 0, or a number beyond all memory.
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

export function memoryLeft(): number {
  return Math.min(process.availableMemory(), freemem());
}
