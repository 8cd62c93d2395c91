/** The thread that digests a growing file. It is told what is complete, in order, and at the end answers the hash. */
import { isMainThread, parentPort } from "node:worker_threads";
import { readFully } from "../platform/files.ts";
import type { Stretch } from "./content.ts";

const BLOCK_BYTES = 1024 * 1024;

/** What comes next; "end" when that was all. */
export type Told = Stretch | "end";

/**
 * Answers "end" with the digest, or with null when reading failed. Opens nothing: a thread that is ended closes nothing
 * either, and what it has open keeps the space of files that were removed.
 */
function serve(port: NonNullable<typeof parentPort>): void {
  const hasher = new Bun.CryptoHasher("sha256");
  const block = Buffer.allocUnsafe(BLOCK_BYTES);
  let failed = false;
  const digest = ({ fd, offset, length }: Stretch): void => {
    for (let at = 0; at < length; at += BLOCK_BYTES) {
      const part = block.subarray(0, Math.min(BLOCK_BYTES, length - at));
      const read = readFully(fd, part, offset + at);
      failed ||= read < part.length;
      hasher.update(part.subarray(0, read));
    }
  };
  port.on("message", (told: Told) => {
    if (told === "end") {
      port.postMessage(failed ? null : hasher.digest("hex"));
      return;
    }
    try {
      digest(told);
    } catch {
      failed = true;
    }
  });
}

if (!isMainThread && parentPort !== null) {
  serve(parentPort);
}
