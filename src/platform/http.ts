/**
 * HTTP for API calls, client-given addresses and webhooks: the only importer of undici, as `undici/index.js`, since
 * under Bun the bare specifier is a stub that ignores timeouts (test/contract/undici.test.ts proves which one we
 * have). Redirects are followed here, each hop checked by the guard and stripped of credentials that are not its own.
 */
import type { LookupAddress } from "node:dns";
import type { Dispatcher } from "undici/index.js";
import { CanceledError, DownloadError, systemCode } from "./errors.ts";
import { AddressGuard, hostMatches } from "./guard.ts";
import { redactUrl } from "./redact.ts";

export type HttpBody = string | Uint8Array | AsyncIterable<Uint8Array>;

export interface HttpRequest {
  readonly method?: string | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
  readonly body?: HttpBody | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Until the response headers are there; 15 s. */
  readonly headersTimeoutMs?: number | undefined;
  /** Between two chunks of the body; 30 s. */
  readonly bodyTimeoutMs?: number | undefined;
  /** Hops followed; 0 hands a redirect back as it is. 10 unless given. */
  readonly maxRedirects?: number | undefined;
  /** Further headers that must not cross to another origin; Authorization and Cookie never do. */
  readonly secretHeaders?: readonly string[] | undefined;
}

export interface HttpResponse {
  readonly status: number;
  readonly headers: Headers;
  /** The address that answered, after redirects. */
  readonly url: string;
  readonly body: AsyncIterable<Uint8Array>;
  /** The whole body. @throws DownloadError TOO_LARGE beyond `maxBytes` */
  bytes(maxBytes: number): Promise<Uint8Array>;
  text(maxBytes: number): Promise<string>;
  /** Lets the connection go without reading on. */
  discard(): Promise<void>;
}

export interface ProxySettings {
  readonly http?: string | undefined;
  readonly https?: string | undefined;
  /** Hosts reached directly: `*`, names, `.domain`, separated by commas. */
  readonly no?: string | undefined;
}

export interface HttpClientOptions {
  readonly guard?: AddressGuard | undefined;
  readonly proxy?: ProxySettings | undefined;
  readonly userAgent?: string | undefined;
  readonly connectTimeoutMs?: number | undefined;
}

const DEFAULT_CONNECT_TIMEOUT_MS = 10_000;
const DEFAULT_HEADERS_TIMEOUT_MS = 15_000;
const DEFAULT_BODY_TIMEOUT_MS = 30_000;
const DEFAULT_MAX_REDIRECTS = 10;
const REDIRECT_STATUSES = new Set([301, 302, 303, 307, 308]);
/** undici's codes for "nothing came in time". */
const TIMEOUT_CODES = new Set([
  "UND_ERR_HEADERS_TIMEOUT",
  "UND_ERR_BODY_TIMEOUT",
  "UND_ERR_CONNECT_TIMEOUT",
]);

type Undici = typeof import("undici/index.js");

/** undici costs some 30 ms and 15 MB: loaded with the first request, not with the program. */
let loaded: Promise<Undici> | undefined;
function undici(): Promise<Undici> {
  loaded ??= import("undici/index.js");
  return loaded;
}

export class HttpClient {
  readonly #guard: AddressGuard;
  readonly #proxy: ProxySettings;
  readonly #userAgent: string;
  readonly #connectTimeoutMs: number;
  #direct: Dispatcher | undefined;
  readonly #proxies = new Map<string, Dispatcher>();

  constructor(options: HttpClientOptions = {}) {
    this.#guard = options.guard ?? AddressGuard.open;
    this.#proxy = options.proxy ?? {};
    this.#userAgent = options.userAgent ?? "cog-comfyui-bun";
    this.#connectTimeoutMs = options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS;
  }

  /**
   * Sends one request and follows redirects. Any status is an answer, not an error.
   * @throws InputError FETCH_REFUSED by the guard; DownloadError NETWORK, STALLED; CanceledError on abort.
   */
  async request(url: string, request: HttpRequest = {}): Promise<HttpResponse> {
    const limit = request.maxRedirects ?? DEFAULT_MAX_REDIRECTS;
    let hop: Hop = {
      url,
      method: request.method ?? "GET",
      body: request.body,
      headers: lowerCased(request.headers),
    };
    for (let followed = 0; ; followed += 1) {
      const response = await this.#send(hop, request);
      const location = response.headers.get("location");
      if (limit === 0 || location === null || !REDIRECT_STATUSES.has(response.status)) {
        return response;
      }
      await response.discard();
      if (followed >= limit) {
        throw new DownloadError("NETWORK", `${redactUrl(url)} redirects more than ${limit} times`);
      }
      hop = nextHop(
        hop,
        response.status,
        new URL(location, hop.url).href,
        request.secretHeaders ?? [],
      );
    }
  }

  async close(): Promise<void> {
    const open = [this.#direct, ...this.#proxies.values()].filter(
      (dispatcher) => dispatcher !== undefined,
    );
    this.#direct = undefined;
    this.#proxies.clear();
    await Promise.all(open.map((dispatcher) => dispatcher.destroy()));
  }

  async #send(hop: Hop, request: HttpRequest): Promise<HttpResponse> {
    if (request.signal?.aborted) {
      throw new CanceledError("The request was called off before it was sent");
    }
    if (this.#guard.enforced) {
      await this.#guard.check(hop.url);
    }
    try {
      const { request: send } = await undici();
      const answer = await send(hop.url, {
        method: hop.method as Dispatcher.HttpMethod,
        headers: { "user-agent": this.#userAgent, ...hop.headers },
        body: (hop.body ?? null) as Dispatcher.DispatchOptions["body"] &
          (string | Uint8Array | null),
        signal: request.signal ?? null,
        headersTimeout: request.headersTimeoutMs ?? DEFAULT_HEADERS_TIMEOUT_MS,
        bodyTimeout: request.bodyTimeoutMs ?? DEFAULT_BODY_TIMEOUT_MS,
        dispatcher: await this.#dispatcherFor(hop.url),
      });
      return new UndiciResponse(answer, hop.url);
    } catch (error) {
      throw asDownloadError(error, hop.url);
    }
  }

  async #dispatcherFor(url: string): Promise<Dispatcher> {
    const proxy = proxyFor(new URL(url), this.#proxy);
    if (proxy === undefined) {
      this.#direct ??= await this.#makeDirect();
      return this.#direct;
    }
    const { ProxyAgent } = await undici();
    const known = this.#proxies.get(proxy) ?? new ProxyAgent({ uri: proxy });
    this.#proxies.set(proxy, known);
    return known;
  }

  async #makeDirect(): Promise<Dispatcher> {
    const { Agent } = await undici();
    if (!this.#guard.enforced) {
      return new Agent({ connect: { timeout: this.#connectTimeoutMs } });
    }
    // The connection goes to addresses that were checked in this very look-up: a name that answers
    // differently the second time (DNS rebinding) gains nothing.
    const guard = this.#guard;
    const lookup = (host: string, options: LookupOptions, done: LookupDone): void => {
      guard.check(`http://${host.includes(":") ? `[${host}]` : host}/`).then(
        (addresses) => {
          const [first] = addresses;
          if (options.all === true) {
            done(null, [...addresses]);
          } else {
            done(null, first?.address ?? "", first?.family ?? 4);
          }
        },
        (error: unknown) => done(error instanceof Error ? error : new Error(String(error)), []),
      );
    };
    return new Agent({ connect: { timeout: this.#connectTimeoutMs, lookup } });
  }
}

interface LookupOptions {
  readonly all?: boolean | undefined;
}
type LookupDone = (error: Error | null, address: string | LookupAddress[], family?: number) => void;

interface Hop {
  readonly url: string;
  readonly method: string;
  readonly body: HttpBody | undefined;
  readonly headers: Readonly<Record<string, string>>;
}

class UndiciResponse implements HttpResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly url: string;
  readonly #answer: Dispatcher.ResponseData;

  constructor(answer: Dispatcher.ResponseData, url: string) {
    this.#answer = answer;
    this.status = answer.statusCode;
    this.url = url;
    this.headers = new Headers();
    for (const [name, value] of Object.entries(answer.headers)) {
      for (const one of Array.isArray(value) ? value : [value]) {
        if (one !== undefined) {
          this.headers.append(name, one);
        }
      }
    }
  }

  get body(): AsyncIterable<Uint8Array> {
    return this.#read();
  }

  async *#read(): AsyncGenerator<Uint8Array> {
    try {
      for await (const chunk of this.#answer.body) {
        yield chunk;
      }
    } catch (error) {
      throw asDownloadError(error, this.url);
    }
  }

  async bytes(maxBytes: number): Promise<Uint8Array> {
    const chunks: Uint8Array[] = [];
    let total = 0;
    for await (const chunk of this.body) {
      total += chunk.byteLength;
      if (total > maxBytes) {
        await this.discard();
        throw new DownloadError(
          "TOO_LARGE",
          `${redactUrl(this.url)} sends more than ${maxBytes} bytes`,
        );
      }
      chunks.push(chunk);
    }
    return Buffer.concat(chunks);
  }

  async text(maxBytes: number): Promise<string> {
    return new TextDecoder().decode(await this.bytes(maxBytes));
  }

  discard(): Promise<void> {
    this.#answer.body.on("error", () => undefined);
    this.#answer.body.destroy();
    return Promise.resolve();
  }
}

function lowerCased(headers: Readonly<Record<string, string>> = {}): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
  );
}

/** The request after a redirect, by the rules of the Fetch standard (§4.4, HTTP-redirect fetch). */
function nextHop(hop: Hop, status: number, url: string, secretHeaders: readonly string[]): Hop {
  const becomesGet =
    (status === 303 && hop.method !== "HEAD") ||
    ((status === 301 || status === 302) && hop.method === "POST");
  const dropped = new Set(becomesGet ? ["content-type", "content-length", "content-encoding"] : []);
  if (new URL(url).origin !== new URL(hop.url).origin) {
    for (const name of ["authorization", "cookie", "proxy-authorization", ...secretHeaders]) {
      dropped.add(name.toLowerCase());
    }
  }
  return {
    url,
    method: becomesGet ? "GET" : hop.method,
    body: becomesGet ? undefined : hop.body,
    headers: Object.fromEntries(Object.entries(hop.headers).filter(([name]) => !dropped.has(name))),
  };
}

/** The proxy for an address, by HTTP_PROXY, HTTPS_PROXY and NO_PROXY; undefined = straight. Loopback is never proxied. */
export function proxyFor(url: URL, proxy: ProxySettings): string | undefined {
  const host = url.hostname.toLowerCase();
  const exceptions = (proxy.no ?? "")
    .toLowerCase()
    .split(/[\s,]+/)
    .filter((entry) => entry !== "");
  const isException =
    exceptions.includes("*") ||
    exceptions.some((entry) => {
      const name = entry.replace(/^\*?\./, "");
      return host === name || url.host.toLowerCase() === name || hostMatches(host, [`*.${name}`]);
    });
  if (isException || host === "localhost" || host.startsWith("127.") || host === "[::1]") {
    return undefined;
  }
  return url.protocol === "https:" ? proxy.https : proxy.http;
}

/** Wraps whatever undici throws; our own errors (the guard's, inside the look-up) pass through. */
function asDownloadError(error: unknown, url: string): Error {
  const own = ownError(error);
  if (own !== undefined) {
    return own;
  }
  const code = systemCode(error) ?? "";
  if (code === "UND_ERR_ABORTED" || (error instanceof Error && error.name === "AbortError")) {
    return new CanceledError("The request was called off", { cause: error });
  }
  if (error instanceof Error && error.name === "TimeoutError") {
    return error;
  }
  if (TIMEOUT_CODES.has(code)) {
    const what =
      { UND_ERR_CONNECT_TIMEOUT: "connection", UND_ERR_BODY_TIMEOUT: "further data" }[code] ??
      "answer";
    return new DownloadError("STALLED", `${redactUrl(url)} gave no ${what} in time`, {
      cause: error,
      retryable: true,
    });
  }
  const reason = error instanceof Error && error.message !== "" ? error.message : code;
  return new DownloadError("NETWORK", `${redactUrl(url)} can't be reached: ${reason}`, {
    cause: error,
    retryable: true,
  });
}

function ownError(error: unknown): Error | undefined {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    if ("hint" in at && "details" in at) {
      return at;
    }
  }
  return undefined;
}
