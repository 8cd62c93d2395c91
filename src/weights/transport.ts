/**
 * One GET, and the road to it: redirects followed here, hop by hop, each checked and each with the credentials of
 * its own host only. Bodies come as they are on the wire. Nothing is ever asked with HEAD: signed addresses answer
 * 403 to it, and Civitai hangs (downloader.md §0.7).
 */
import { CanceledError, DownloadError, isAbort, systemCode } from "../platform/errors.ts";
import { AddressGuard } from "../platform/guard.ts";
import type { ProxySettings } from "../platform/http.ts";
import { HttpClient, proxyFor } from "../platform/http.ts";
import { redactUrl } from "../platform/redact.ts";
import type { Credentials } from "./credentials.ts";
import type { Trust } from "./plan-types.ts";

export interface TransportRequest {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
}

export interface TransportResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly body: AsyncIterable<Uint8Array>;
  /** Lets the connection go without reading on. */
  discard(): Promise<void>;
}

/** Sends one GET and hands back whatever answers, redirects included, bodies undecoded. */
export interface Transport {
  get(request: TransportRequest): Promise<TransportResponse>;
}

/** Bun's fetch: the fastest data plane here (downloader.md B.1). For addresses that the operator gave. */
export class FetchTransport implements Transport {
  readonly #proxy: ProxySettings;

  constructor(proxy: ProxySettings = {}) {
    this.#proxy = proxy;
  }

  async get({ url, headers, signal }: TransportRequest): Promise<TransportResponse> {
    const proxy = proxyFor(new URL(url), this.#proxy);
    const init: BunFetchRequestInit & { decompress: boolean } = {
      headers,
      signal,
      redirect: "manual",
      decompress: false,
      ...(proxy === undefined ? {} : { proxy }),
    };
    const response = await fetch(url, init);
    return {
      status: response.status,
      headers: response.headers,
      body: response.body ?? emptyBody(),
      discard: async () => {
        await response.body?.cancel().catch(() => undefined);
      },
    };
  }
}

async function* emptyBody(): AsyncGenerator<Uint8Array> {
  // No body: nothing to yield.
}

/** The guarded client: each address is checked after DNS and the connection goes to the very address checked. */
export class GuardedTransport implements Transport {
  readonly #client: HttpClient;
  readonly #bodyTimeoutMs: number;

  constructor(guard: AddressGuard, proxy: ProxySettings = {}, bodyTimeoutMs = 60_000) {
    this.#client = new HttpClient({ guard, proxy });
    this.#bodyTimeoutMs = bodyTimeoutMs;
  }

  async get({ url, headers, signal }: TransportRequest): Promise<TransportResponse> {
    const response = await this.#client.request(url, {
      headers,
      signal,
      maxRedirects: 0,
      bodyTimeoutMs: this.#bodyTimeoutMs,
    });
    return {
      status: response.status,
      headers: response.headers,
      body: response.body,
      discard: () => response.discard(),
    };
  }

  async close(): Promise<void> {
    await this.#client.close();
  }
}

export interface RoadOptions {
  /** For the operator's addresses. */
  readonly direct: Transport;
  /** For addresses that a request gave. */
  readonly guarded: Transport;
  readonly guard: AddressGuard;
  readonly credentials: Credentials;
  readonly headersTimeoutMs: number;
}

export interface RoadRequest {
  readonly url: string;
  readonly trust: Trust;
  /** Credentials written into the address itself; sent to its origin only. */
  readonly authorization?: string | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
  readonly signal: AbortSignal;
}

/** The headers of one answer on the way. */
export interface RoadHop {
  readonly url: string;
  readonly status: number;
  readonly headers: Headers;
}

export interface RoadAnswer extends TransportResponse {
  /** The address that answered. */
  readonly url: string;
  /** Every redirect before it; Hugging Face tells hash and size there and nowhere else. */
  readonly hops: readonly RoadHop[];
}

const MAX_HOPS = 10;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const USER_AGENT = "cog-comfyui-bun";
/** Names refused before anything is sent: the certificate won't become valid by asking again. */
const CERTIFICATE_CODE = /CERT|SELF_SIGNED|UNABLE_TO_VERIFY|ALTNAME|TLS/;

/** Follows redirects to a file's bytes. */
export class Road {
  readonly #options: RoadOptions;

  constructor(options: RoadOptions) {
    this.#options = options;
  }

  get credentials(): Credentials {
    return this.#options.credentials;
  }

  /** The same road with other credentials. */
  with(credentials: Credentials): Road {
    return new Road({ ...this.#options, credentials });
  }

  /**
   * @throws DownloadError NETWORK, STALLED; InputError FETCH_REFUSED; CanceledError. Any status that is no redirect
   * is handed back.
   */
  async get(request: RoadRequest): Promise<RoadAnswer> {
    const hops: RoadHop[] = [];
    let { url } = request;
    for (;;) {
      const response = await this.#ask(url, request);
      const location = response.headers.get("location");
      if (!REDIRECTS.has(response.status)) {
        return { ...response, url, hops };
      }
      await response.discard();
      hops.push({ url, status: response.status, headers: response.headers });
      url = nextAddress(url, location, hops.length);
    }
  }

  async #ask(url: string, request: RoadRequest): Promise<TransportResponse> {
    if (request.trust === "request") {
      await this.#checkRequestAddress(url);
    }
    const sameOrigin = new URL(url).origin === new URL(request.url).origin;
    const own =
      sameOrigin && request.authorization !== undefined
        ? { authorization: request.authorization }
        : {};
    const transport = request.trust === "request" ? this.#options.guarded : this.#options.direct;
    return await withHeadersDeadline(
      request.signal,
      this.#options.headersTimeoutMs,
      url,
      (signal) =>
        transport.get({
          url,
          signal,
          headers: {
            "user-agent": USER_AGENT,
            accept: "*/*",
            "accept-encoding": "identity",
            ...this.#options.credentials.headersFor(url, request.trust),
            ...own,
            ...request.headers,
          },
        }),
    );
  }

  /** A request's address is https; plain http only inside networks that the operator opened by name. */
  async #checkRequestAddress(url: string): Promise<void> {
    const { guard } = this.#options;
    await guard.check(url);
    if (new URL(url).protocol === "http:" && (await isPublic(url))) {
      throw new DownloadError(
        "DOWNLOAD_REFUSED",
        `${redactUrl(url)} is a plain http address, which anyone on the way could change`,
        { hint: "Use the https address of the file." },
      );
    }
  }
}

const strictGuard = new AddressGuard([]);

async function isPublic(url: string): Promise<boolean> {
  try {
    await strictGuard.check(url);
    return true;
  } catch {
    return false;
  }
}

function nextAddress(url: string, location: string | null, hops: number): string {
  if (location === null) {
    throw new DownloadError("NETWORK", `${redactUrl(url)} redirects without saying where to`);
  }
  if (hops > MAX_HOPS) {
    throw new DownloadError("NETWORK", `${redactUrl(url)} redirects more than ${MAX_HOPS} times`);
  }
  let next: URL;
  try {
    next = new URL(location, url);
  } catch (cause) {
    throw new DownloadError(
      "NETWORK",
      `${redactUrl(url)} redirects to something that is no address`,
      {
        cause,
      },
    );
  }
  if (next.protocol !== "https:" && next.protocol !== "http:") {
    throw new DownloadError("NETWORK", `${redactUrl(url)} redirects to a ${next.protocol} address`);
  }
  if (next.protocol === "http:" && new URL(url).protocol === "https:") {
    throw new DownloadError(
      "NETWORK",
      `${redactUrl(url)} redirects from https to plain http, which is not followed`,
    );
  }
  next.username = "";
  next.password = "";
  return next.href;
}

/** Bounds the wait for the headers only: the body has a watchdog of its own. */
async function withHeadersDeadline<T>(
  signal: AbortSignal,
  timeoutMs: number,
  url: string,
  job: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  if (signal.aborted) {
    throw new CanceledError();
  }
  const controller = new AbortController();
  const cancel = (): void => controller.abort();
  signal.addEventListener("abort", cancel, { once: true });
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    controller.abort();
  }, timeoutMs);
  try {
    return await job(controller.signal);
  } catch (error) {
    if (late) {
      throw new DownloadError(
        "STALLED",
        `${redactUrl(url)} did not answer within ${Math.round(timeoutMs / 1000)} s`,
        { cause: error, retryable: true },
      );
    }
    throw networkError(error, url);
  } finally {
    clearTimeout(timer);
    // The listener stays while the body is read: an abort from outside must reach it. It goes with the signal.
  }
}

/** Whatever a transport throws, as one of ours. */
export function networkError(error: unknown, url: string): Error {
  if (error instanceof DownloadError || error instanceof CanceledError) {
    return error;
  }
  if (error instanceof Error && "hint" in error && "details" in error) {
    return error;
  }
  if (isAbort(error)) {
    return new CanceledError("The download was called off", { cause: error });
  }
  const code = systemCode(error) ?? "";
  const reason = error instanceof Error ? error.message : String(error);
  const certificate = CERTIFICATE_CODE.test(code);
  return new DownloadError(
    "NETWORK",
    certificate
      ? `${redactUrl(url)} shows a certificate that can't be trusted (${code})`
      : `${redactUrl(url)} can't be read: ${code === "" ? reason : code}`,
    {
      cause: error,
      retryable: !certificate,
      ...(certificate
        ? { hint: "Check the address and this machine's clock and certificates." }
        : {}),
    },
  );
}
