/**
 * SHA-256 of a file while it is still growing: in this thread for small files, in a worker for large ones, which
 * hides the cost up to about 1 GB/s (downloader.md B.4).
 */
import { join } from "node:path";
import { CanceledError, DownloadError } from "../platform/errors.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import { Frontier, followFile } from "./frontier.ts";

/** Below this a worker's start costs more than it saves. */
const WORKER_FROM_BYTES = 64 * 1024 * 1024;

/** Follows a frontier and ends with the digest in hex. */
export async function digestBehind(
  path: string,
  frontier: Frontier,
  sizeBytes: number,
): Promise<string> {
  if (sizeBytes < WORKER_FROM_BYTES) {
    const hasher = new Bun.CryptoHasher("sha256");
    for await (const block of followFile(path, frontier)) {
      hasher.update(block);
    }
    return hasher.digest("hex");
  }
  return await digestInWorker(path, frontier);
}

/** The digest of a file that is complete. */
export async function digestOf(path: string, signal?: AbortSignal): Promise<string> {
  const frontier = Frontier.of(Bun.file(path).size);
  const hasher = new Bun.CryptoHasher("sha256");
  for await (const block of followFile(path, frontier)) {
    if (signal?.aborted) {
      throw new CanceledError();
    }
    hasher.update(block);
  }
  return hasher.digest("hex");
}

async function digestInWorker(path: string, frontier: Frontier): Promise<string> {
  const worker = new Worker(join(PROJECT_ROOT, "src/weights/digest-worker.ts"));
  worker.unref();
  const answer = new Promise<string>((resolve, reject) => {
    worker.onmessage = (event: MessageEvent<unknown>) => {
      if (typeof event.data === "string") {
        resolve(event.data);
      } else {
        reject(new DownloadError("IO_ERROR", `${path} could not be read back for its digest`));
      }
    };
    worker.onerror = (event) => {
      reject(new DownloadError("IO_ERROR", `The digest of ${path} failed: ${event.message}`));
    };
  });
  answer.catch(() => undefined);
  try {
    for (let at = 0; await frontier.beyond(at); at = frontier.position) {
      worker.postMessage({ path, position: frontier.position });
    }
    worker.postMessage({ path, end: true });
    return await answer;
  } finally {
    worker.terminate();
  }
}
