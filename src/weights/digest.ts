/**
 * SHA-256 of a file while it is still growing: in this thread for small files, in a worker for large ones, which
 * hides the cost up to about 1 GB/s (downloader.md B.4).
 */
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { CanceledError, DownloadError } from "../platform/errors.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import type { PartialContent, Stretch } from "./content.ts";
import type { Told } from "./digest-worker.ts";
import { Frontier, follow, followFile, readBlock } from "./frontier.ts";

/** Below this a worker's start costs more than it saves. */
const WORKER_FROM_BYTES = 64 * 1024 * 1024;

/** Follows a frontier and ends with the digest in hex. */
export async function digestBehind(
  file: string | PartialContent,
  frontier: Frontier,
  sizeBytes: number,
): Promise<string> {
  if (sizeBytes >= WORKER_FROM_BYTES) {
    return await digestInWorker(file, frontier);
  }
  return await digestHere(file, frontier);
}

/** The digest of a file that is complete. */
export async function digestOf(
  file: string | PartialContent,
  signal?: AbortSignal,
): Promise<string> {
  const sizeBytes = typeof file === "string" ? Bun.file(file).size : file.sizeBytes;
  return await digestHere(file, Frontier.of(sizeBytes), signal);
}

async function digestHere(
  file: string | PartialContent,
  frontier: Frontier,
  signal?: AbortSignal,
): Promise<string> {
  const hasher = new Bun.CryptoHasher("sha256");
  const blocks =
    typeof file === "string"
      ? followFile(file, frontier)
      : follow(frontier, (start, end) => readBlock(file, start, end));
  for await (const block of blocks) {
    if (signal?.aborted) {
      throw new CanceledError();
    }
    hasher.update(block);
  }
  return hasher.digest("hex");
}

async function digestInWorker(file: string | PartialContent, frontier: Frontier): Promise<string> {
  if (typeof file !== "string") {
    return await digestStretches((start, end) => file.stretchAt(start, end), frontier, file.path);
  }
  const fd = openSync(file, "r");
  try {
    const stretchAt = (start: number, end: number): Stretch => ({
      fd,
      offset: start,
      length: end - start,
      inPlace: true,
    });
    return await digestStretches(stretchAt, frontier, file);
  } finally {
    closeSync(fd);
  }
}

async function digestStretches(
  stretchAt: (start: number, end: number) => Stretch,
  frontier: Frontier,
  label: string,
): Promise<string> {
  const worker = new Worker(join(PROJECT_ROOT, "src/weights/digest-worker.ts"));
  worker.unref();
  const answer = new Promise<string>((resolve, reject) => {
    worker.onmessage = (event: MessageEvent<unknown>) => {
      if (typeof event.data === "string") {
        resolve(event.data);
      } else {
        reject(new DownloadError("IO_ERROR", `${label} could not be read back for its digest`));
      }
    };
    worker.onerror = (event) => {
      reject(new DownloadError("IO_ERROR", `The digest of ${label} failed: ${event.message}`));
    };
  });
  answer.catch(() => undefined);
  const tell = (told: Told): void => worker.postMessage(told);
  try {
    for (let at = 0; await frontier.beyond(at); ) {
      const stretch = stretchAt(at, frontier.position);
      tell(stretch);
      at += stretch.length;
    }
    tell("end");
    return await answer;
  } finally {
    worker.terminate();
  }
}
