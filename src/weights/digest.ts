/**
 * SHA-256 of a file while it is still growing: in this thread for small files, in a worker for large ones, which
 * hides the cost up to about 1 GB/s (downloader.md B.4).
 */
import { join } from "node:path";
import { CanceledError, DownloadError } from "../platform/errors.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import type { PartialContent } from "./content.ts";
import { WholeFile } from "./content.ts";
import type { Told } from "./digest-worker.ts";
import { Frontier, follow } from "./frontier.ts";

/** Below this a worker's start costs more than it saves. */
const WORKER_FROM_BYTES = 64 * 1024 * 1024;

/** What can be digested: read in this thread, or by another through open descriptors. */
type Digestible = WholeFile | PartialContent;

/** Follows a frontier and ends with the digest in hex. */
export async function digestBehind(
  file: string | PartialContent,
  frontier: Frontier,
  sizeBytes: number,
): Promise<string> {
  if (typeof file === "string") {
    using whole = new WholeFile(file);
    return await digest(whole, frontier, sizeBytes);
  }
  return await digest(file, frontier, sizeBytes);
}

async function digest(file: Digestible, frontier: Frontier, sizeBytes: number): Promise<string> {
  return sizeBytes < WORKER_FROM_BYTES
    ? await digestHere(file, frontier)
    : await digestInWorker(file, frontier);
}

/** The digest of a file that is complete. */
export async function digestOf(
  file: string | PartialContent,
  signal?: AbortSignal,
): Promise<string> {
  if (typeof file === "string") {
    using whole = new WholeFile(file);
    return await digestHere(whole, Frontier.of(Bun.file(file).size), signal);
  }
  return await digestHere(file, Frontier.of(file.sizeBytes), signal);
}

async function digestHere(
  file: Digestible,
  frontier: Frontier,
  signal?: AbortSignal,
): Promise<string> {
  const hasher = new Bun.CryptoHasher("sha256");
  for await (const block of follow(file, frontier)) {
    if (signal?.aborted) {
      throw new CanceledError();
    }
    hasher.update(block);
  }
  return hasher.digest("hex");
}

async function digestInWorker(file: Digestible, frontier: Frontier): Promise<string> {
  const worker = new Worker(join(PROJECT_ROOT, "src/weights/digest-worker.ts"));
  worker.unref();
  const answer = new Promise<string>((resolve, reject) => {
    worker.onmessage = (event: MessageEvent<unknown>) => {
      if (typeof event.data === "string") {
        resolve(event.data);
      } else {
        reject(new DownloadError("IO_ERROR", `${file.path} could not be read back for its digest`));
      }
    };
    worker.onerror = (event) => {
      reject(new DownloadError("IO_ERROR", `The digest of ${file.path} failed: ${event.message}`));
    };
  });
  answer.catch(() => undefined);
  const tell = (told: Told): void => worker.postMessage(told);
  try {
    for (let at = 0; await frontier.beyond(at); ) {
      const stretch = file.stretchAt(at, frontier.position);
      tell(stretch);
      at += stretch.length;
    }
    tell("end");
    return await answer;
  } finally {
    worker.terminate();
  }
}
