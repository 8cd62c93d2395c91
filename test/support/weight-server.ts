/**
 * An origin that misbehaves on cue, on loopback: raw sockets, so that it can cut, stall, lie and reset where a decent
 * HTTP server would not. Records every request it got.
 */
import type { AddressInfo, Server, Socket } from "node:net";
import { createServer } from "node:net";

export interface WeightRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: Readonly<Record<string, string>>;
  readonly range: { readonly start: number; readonly end: number } | undefined;
  /** How many requests for this path came before. */
  readonly nth: number;
  /** How many connections were accepted before this one. */
  readonly connection: number;
}

export type Handler = (request: WeightRequest, reply: Reply) => Promise<void> | void;

/** What goes back on one request. */
export class Reply {
  readonly #socket: Socket;
  #closing = false;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  get isOpen(): boolean {
    return !this.#socket.destroyed && !this.#closing;
  }

  head(status: number, headers: Readonly<Record<string, string | number | undefined>> = {}): void {
    const lines = Object.entries(headers)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => `${name}: ${value}\r\n`);
    this.#socket.write(`HTTP/1.1 ${status} Status\r\n${lines.join("")}\r\n`);
  }

  async write(bytes: Uint8Array | string): Promise<void> {
    if (this.isOpen && !this.#socket.write(bytes)) {
      await new Promise<void>((resolve) => {
        const done = (): void => {
          this.#socket.off("drain", done).off("close", done);
          resolve();
        };
        this.#socket.once("drain", done).once("close", done);
      });
    }
  }

  async chunk(bytes: Uint8Array): Promise<void> {
    await this.write(`${bytes.byteLength.toString(16)}\r\n`);
    await this.write(bytes);
    await this.write("\r\n");
  }

  /** A whole answer with a length. */
  async send(
    status: number,
    body: Uint8Array | string = "",
    headers: Readonly<Record<string, string | number | undefined>> = {},
  ): Promise<void> {
    const bytes = typeof body === "string" ? Buffer.from(body) : body;
    this.head(status, { "content-length": bytes.byteLength, ...headers });
    await this.write(bytes);
  }

  redirect(location: string, status = 302, headers: Record<string, string> = {}): Promise<void> {
    return this.send(status, "", { location, ...headers });
  }

  /** FIN, whatever was promised. */
  close(): void {
    this.#closing = true;
    this.#socket.end();
  }

  /** RST. */
  reset(): void {
    this.#closing = true;
    this.#socket.resetAndDestroy();
  }

  /** Nothing more, ever; the socket stays open. */
  silence(): Promise<void> {
    return new Promise((resolve) => this.#socket.once("close", () => resolve()));
  }
}

export interface FileOptions {
  readonly etag?: string | null;
  readonly lastModified?: string;
  /** false: ranges are ignored. */
  readonly ranges?: boolean;
  readonly bytesPerSecond?: number;
  readonly headers?: Readonly<Record<string, string>>;
}

/** Content that need not lie in memory: bytes by position. */
export interface Content {
  readonly size: number;
  at(start: number, end: number): Uint8Array;
}

const BLOCK_BYTES = 64 * 1024;

export function contentOf(bytes: Uint8Array): Content {
  return { size: bytes.byteLength, at: (start, end) => bytes.subarray(start, end) };
}

/** Serves a file as a decent server does. */
export function file(content: Uint8Array | Content, options: FileOptions = {}): Handler {
  const body = content instanceof Uint8Array ? contentOf(content) : content;
  const etag = options.etag === undefined ? `"${body.size}-v1"` : options.etag;
  return async (request, reply) => {
    const common = {
      ...(etag === null ? {} : { etag }),
      ...(options.lastModified === undefined ? {} : { "last-modified": options.lastModified }),
      ...options.headers,
    };
    const unchanged =
      request.headers["if-range"] === undefined || request.headers["if-range"] === etag;
    if (options.ranges === false || request.range === undefined || !unchanged) {
      reply.head(200, { "content-length": body.size, ...common });
      await pour(reply, body, 0, body.size, options.bytesPerSecond);
      return;
    }
    if (request.range.start >= body.size) {
      await reply.send(416, "", { "content-range": `bytes */${body.size}` });
      return;
    }
    const { start } = request.range;
    const end = Math.min(request.range.end, body.size - 1);
    reply.head(206, {
      "content-length": end - start + 1,
      "content-range": `bytes ${start}-${end}/${body.size}`,
      "accept-ranges": "bytes",
      ...common,
    });
    await pour(reply, body, start, end + 1, options.bytesPerSecond);
  };
}

/** Writes a part of a body, at a pace where one is given. */
export async function pour(
  reply: Reply,
  body: Content,
  from: number,
  to: number,
  bytesPerSecond?: number,
): Promise<void> {
  const block = bytesPerSecond === undefined ? BLOCK_BYTES : Math.max(1, bytesPerSecond / 20);
  for (let at = from; at < to && reply.isOpen; at += block) {
    await reply.write(body.at(Math.floor(at), Math.min(to, Math.floor(at + block))));
    if (bytesPerSecond !== undefined) {
      await Bun.sleep(50);
    }
  }
}

/** `first` for the requests it accepts, `then` for the others. */
export function when(
  accepts: (request: WeightRequest) => boolean,
  first: Handler,
  then: Handler,
): Handler {
  return (request, reply) => (accepts(request) ? first(request, reply) : then(request, reply));
}

/** True for requests that fetch, false for the small one that asks. */
export function isFetch(request: WeightRequest): boolean {
  return !isProbe(request);
}

export function isProbe(request: WeightRequest): boolean {
  return request.range?.start === 0 && request.range.end <= 1023;
}

export class WeightServer implements Disposable {
  readonly requests: WeightRequest[] = [];
  readonly #routes = new Map<string, Handler>();
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;
  #connections = 0;
  #fallback: Handler = (_request, reply) => reply.send(404, "not found");

  private constructor() {
    this.#server = createServer((socket) => this.#accept(socket));
  }

  static async start(): Promise<WeightServer> {
    const server = new WeightServer();
    await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", resolve));
    return server;
  }

  get port(): number {
    const address: AddressInfo | string | null = this.#server.address();
    return typeof address === "object" && address !== null ? address.port : 0;
  }

  get origin(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  url(path: string): string {
    return `${this.origin}${path}`;
  }

  on(path: string, handler: Handler): this {
    this.#routes.set(path, handler);
    return this;
  }

  otherwise(handler: Handler): this {
    this.#fallback = handler;
    return this;
  }

  /** Requests for a path, probes left out. */
  fetches(path: string): WeightRequest[] {
    return this.requests.filter((request) => request.path === path && isFetch(request));
  }

  /** How many different bytes of a file were asked for, since the nth request. */
  askedBytes(path: string, since = 0): number {
    const spans = this.requests
      .slice(since)
      .filter((request) => request.path === path && isFetch(request))
      .map(({ range }) => range ?? { start: 0, end: Number.POSITIVE_INFINITY })
      .toSorted((one, other) => one.start - other.start);
    let bytes = 0;
    let covered = 0;
    for (const { start, end } of spans) {
      bytes += Math.max(0, end + 1 - Math.max(start, covered));
      covered = Math.max(covered, end + 1);
    }
    return bytes;
  }

  [Symbol.dispose](): void {
    for (const socket of this.#sockets) {
      socket.destroy();
    }
    this.#server.close();
  }

  #accept(socket: Socket): void {
    const connection = this.#connections;
    this.#connections += 1;
    this.#sockets.add(socket);
    socket.setNoDelay(true);
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("error", () => undefined);
    let text = "";
    let busy = Promise.resolve();
    socket.on("data", (data: Buffer) => {
      text += data.toString("latin1");
      for (let end = text.indexOf("\r\n\r\n"); end !== -1; end = text.indexOf("\r\n\r\n")) {
        const head = text.slice(0, end);
        text = text.slice(end + 4);
        busy = busy.then(() => this.#answer(head, socket, connection));
      }
    });
  }

  async #answer(head: string, socket: Socket, connection: number): Promise<void> {
    const request = this.#parse(head, connection);
    this.requests.push(request);
    const handler = this.#routes.get(request.path) ?? this.#fallback;
    await handler(request, new Reply(socket));
  }

  #parse(head: string, connection: number): WeightRequest {
    const [line = "", ...rest] = head.split("\r\n");
    const [method = "", target = "/"] = line.split(" ");
    const url = new URL(target, this.origin);
    const headers: Record<string, string> = {};
    for (const entry of rest) {
      const colon = entry.indexOf(":");
      headers[entry.slice(0, colon).toLowerCase()] = entry.slice(colon + 1).trim();
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(headers["range"] ?? "");
    return {
      method,
      path: url.pathname,
      query: url.searchParams,
      headers,
      range: range === null ? undefined : { start: Number(range[1]), end: Number(range[2]) },
      nth: this.requests.filter((request) => request.path === url.pathname).length,
      connection,
    };
  }
}
