/** The demo's own weight server: ranges, strong validators, a speed limit, and a count of what it sent. */
import { setTimeout as sleep } from "node:timers/promises";

export interface OriginFile {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly sha256: string;
}

export interface Origin extends AsyncDisposable {
  urlOf(name: string): string;
  /** Bytes of bodies sent since the last {@link reset}. */
  readonly sentBytes: number;
  readonly requests: number;
  reset(): void;
}

const BLOCK_BYTES = 256 * 1024;

/** Serves the files on loopback; `bytesPerSecond` is for all connections together. */
export function serveOrigin(
  files: readonly OriginFile[],
  bytesPerSecond = Number.POSITIVE_INFINITY,
): Origin {
  let sentBytes = 0;
  let requests = 0;
  let freeAt = 0;

  /** Waits until the line has room for one more block. */
  async function throttle(bytes: number): Promise<void> {
    const now = performance.now();
    freeAt = Math.max(now, freeAt) + (bytes / bytesPerSecond) * 1000;
    if (freeAt - now > 1) {
      await sleep(freeAt - now);
    }
  }

  async function* blocks(body: Uint8Array): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < body.length; at += BLOCK_BYTES) {
      const block = body.subarray(at, at + BLOCK_BYTES);
      await throttle(block.length);
      sentBytes += block.length;
      yield block;
    }
  }

  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    idleTimeout: 0,
    fetch(request) {
      requests += 1;
      const name = decodeURIComponent(new URL(request.url).pathname.slice(1));
      const file = files.find((candidate) => candidate.name === name);
      if (file === undefined) {
        return new Response("not found", { status: 404 });
      }
      const { bytes } = file;
      const headers = { etag: `"${file.sha256}"`, "accept-ranges": "bytes" };
      const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
      if (range === null) {
        return new Response(blocks(bytes), {
          headers: { ...headers, "content-length": String(bytes.length) },
        });
      }
      const from = Number(range[1]);
      const to = Math.min(bytes.length - 1, range[2] === "" ? bytes.length - 1 : Number(range[2]));
      return new Response(blocks(bytes.subarray(from, to + 1)), {
        status: 206,
        headers: {
          ...headers,
          "content-range": `bytes ${from}-${to}/${bytes.length}`,
          "content-length": String(to - from + 1),
        },
      });
    },
  });
  return {
    urlOf: (name) => `${server.url}${encodeURIComponent(name)}`,
    get sentBytes() {
      return sentBytes;
    },
    get requests() {
      return requests;
    },
    reset: () => {
      sentBytes = 0;
      requests = 0;
    },
    [Symbol.asyncDispose]: () => server.stop(true),
  };
}

export function originFile(name: string, bytes: Uint8Array): OriginFile {
  return { name, bytes, sha256: new Bun.CryptoHasher("sha256").update(bytes).digest("hex") };
}
