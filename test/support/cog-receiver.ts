/**
 * What a recorded scenario talks to besides the server: slow files that come when released, webhook receivers that
 * answer as recorded, an upload sink, an address that holds setup back.
 */
import { Buffer } from "node:buffer";

export interface HookCall {
  readonly path: string;
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
  readonly atMs: number;
}

export interface UploadCall {
  readonly path: string;
  readonly type: string | null;
  readonly authorization: string | null;
  readonly length: string | null;
  readonly bytes: number;
}

/** One answer of a webhook receiver. */
export interface HookAnswer {
  readonly status: number;
  readonly location?: string | undefined;
}

export interface ReceiverOptions {
  /** Answers of each hook path, in order; the last one goes on. 200 unless given. */
  readonly hooks?: ReadonlyMap<string, readonly HookAnswer[]>;
  /** Hooks answer only when released. */
  readonly holdHooks?: boolean;
  /** `Location` of uploads. */
  readonly location?: string | undefined;
  /** Status of uploads; 200 unless given. */
  readonly uploadStatus?: number;
  /** What `/setup` answers: at once 404, or 200 when released. */
  readonly setup?: "fails" | "held";
}

const PICTURE = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
  "base64",
);

export class Receiver implements Disposable {
  readonly hooks: HookCall[] = [];
  readonly uploads: UploadCall[] = [];
  readonly #options: ReceiverOptions;
  readonly #server: Bun.Server<undefined>;
  readonly #asked = new Map<string, PromiseWithResolvers<void>>();
  readonly #released = new Map<string, PromiseWithResolvers<void>>();
  readonly #changed: (() => void)[] = [];
  readonly #startedAt = performance.now();

  constructor(options: ReceiverOptions = {}) {
    this.#options = options;
    this.#server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      idleTimeout: 0,
      fetch: (request) => this.#answer(request),
    });
  }

  get origin(): string {
    return `http://127.0.0.1:${this.#server.port}`;
  }

  /** Settles when somebody asks for `path`. */
  asked(path: string): Promise<void> {
    return this.#gate(this.#asked, path).promise;
  }

  release(path: string): void {
    this.#gate(this.#released, path).resolve();
  }

  releaseAll(): void {
    for (const gate of this.#released.values()) {
      gate.resolve();
    }
  }

  /** Waits until `isMet`, looking again after each call that arrives; false when `ms` passed before. */
  async until(isMet: () => boolean, ms = 5_000): Promise<boolean> {
    const late = Promise.withResolvers<"late">();
    const timer = setTimeout(() => late.resolve("late"), ms);
    try {
      while (!isMet()) {
        const next = new Promise<void>((resolve) => this.#changed.push(resolve));
        if ((await Promise.race([next, late.promise])) === "late") {
          return isMet();
        }
      }
      return true;
    } finally {
      clearTimeout(timer);
    }
  }

  [Symbol.dispose](): void {
    this.releaseAll();
    void this.#server.stop(true);
  }

  #gate(gates: Map<string, PromiseWithResolvers<void>>, path: string): PromiseWithResolvers<void> {
    const gate = gates.get(path) ?? Promise.withResolvers<void>();
    gates.set(path, gate);
    return gate;
  }

  async #answer(request: Request): Promise<Response> {
    const url = new URL(request.url);
    const path = `${url.pathname}${url.search}`;
    this.#gate(this.#asked, path).resolve();
    if (path.startsWith("/hook/")) {
      return this.#hook(path, request);
    }
    if (path.startsWith("/up/")) {
      return this.#upload(path, request);
    }
    if (path.startsWith("/gone/") || (path === "/setup" && this.#options.setup === "fails")) {
      return new Response("gone", { status: 404 });
    }
    if (path.startsWith("/slow/") || path === "/setup") {
      await this.#gate(this.#released, path).promise;
    }
    return new Response(PICTURE, { headers: { "content-type": "image/png" } });
  }

  async #hook(path: string, request: Request): Promise<Response> {
    const earlier = this.hooks.filter((call) => call.path === path).length;
    const body = await request.text();
    this.hooks.push({
      path,
      method: request.method,
      headers: Object.fromEntries(request.headers),
      body,
      atMs: performance.now() - this.#startedAt,
    });
    this.#notify();
    if (this.#options.holdHooks === true) {
      await this.#gate(this.#released, path).promise;
    }
    const answers = this.#options.hooks?.get(path) ?? [];
    const answer = answers[Math.min(earlier, answers.length - 1)] ?? { status: 200 };
    return new Response("", {
      status: answer.status,
      headers: answer.location === undefined ? {} : { location: answer.location },
    });
  }

  async #upload(path: string, request: Request): Promise<Response> {
    const bytes = (await request.bytes()).byteLength;
    this.uploads.push({
      path,
      bytes,
      type: request.headers.get("content-type"),
      authorization: request.headers.get("authorization"),
      length: request.headers.get("content-length"),
    });
    this.#notify();
    const { location } = this.#options;
    return new Response("", {
      status: this.#options.uploadStatus ?? 200,
      headers: location === undefined ? {} : { location },
    });
  }

  #notify(): void {
    for (const wake of this.#changed.splice(0)) {
      wake();
    }
  }
}
