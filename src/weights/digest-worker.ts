/** The thread that digests a growing file. It is told what is complete, in order, and at the end answers the hash. */
import { closeSync, openSync } from "node:fs";
import { isMainThread, parentPort } from "node:worker_threads";
import { readFully } from "../platform/files.ts";
import type { Stretch } from "./content.ts";

const BLOCK_BYTES = 1024 * 1024;

interface Told {
  readonly stretch?: Stretch;
  readonly end?: boolean;
}

/** Answers messages of {@link Told}; the last one is answered with the digest, or null when reading failed. */
function serve(port: NonNullable<typeof parentPort>): void {
  const hasher = new Bun.CryptoHasher("sha256");
  const block = Buffer.allocUnsafe(BLOCK_BYTES);
  const descriptors = new Map<string, number>();
  let failed = false;
  const digest = ({ path, offset, length }: Stretch): void => {
    const fd = descriptors.get(path) ?? openSync(path, "r");
    descriptors.set(path, fd);
    for (let at = 0; at < length; at += BLOCK_BYTES) {
      const part = block.subarray(0, Math.min(BLOCK_BYTES, length - at));
      const read = readFully(fd, part, offset + at);
      failed ||= read < part.length;
      hasher.update(part.subarray(0, read));
    }
  };
  port.on("message", (told: Told) => {
    try {
      if (told.stretch !== undefined) {
        digest(told.stretch);
      }
    } catch {
      failed = true;
    }
    if (told.end === true) {
      for (const fd of descriptors.values()) {
        closeSync(fd);
      }
      port.postMessage(failed ? null : hasher.digest("hex"));
    }
  });
}

if (!isMainThread && parentPort !== null) {
  serve(parentPort);
}
