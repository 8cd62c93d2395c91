/** The thread that digests a growing file. It is told how far the file is complete, and at the end answers the hash. */
import { closeSync, openSync } from "node:fs";
import { isMainThread, parentPort } from "node:worker_threads";
import { readFully } from "../platform/files.ts";

const BLOCK_BYTES = 1024 * 1024;

interface Told {
  readonly path: string;
  readonly position?: number;
  readonly end?: boolean;
}

/** Answers messages of {@link Told}; the last one is answered with the digest, or null when reading failed. */
function serve(port: NonNullable<typeof parentPort>): void {
  const hasher = new Bun.CryptoHasher("sha256");
  const block = Buffer.allocUnsafe(BLOCK_BYTES);
  let fd: number | undefined;
  let at = 0;
  let failed = false;
  port.on("message", (told: Told) => {
    try {
      fd ??= openSync(told.path, "r");
      while (told.position !== undefined && at < told.position) {
        const part = block.subarray(0, Math.min(BLOCK_BYTES, told.position - at));
        const read = readFully(fd, part, at);
        failed ||= read < part.length;
        hasher.update(part.subarray(0, read));
        at += part.length;
      }
    } catch {
      failed = true;
    }
    if (told.end === true) {
      if (fd !== undefined) {
        closeSync(fd);
      }
      port.postMessage(failed ? null : hasher.digest("hex"));
    }
  });
}

if (!isMainThread && parentPort !== null) {
  serve(parentPort);
}
