/**
 * Puts output files into an S3-compatible bucket and answers with addresses that anybody may read for a while: platforms
 * cap answers at some ten megabytes. Requests are signed in their address, so that the upload itself is an ordinary PUT
 * with our own deadlines; files are streamed, never held in memory.
 */
import { statSync } from "node:fs";
import { basename, posix } from "node:path";
import {
  AppError,
  CanceledError,
  ConfigError,
  DownloadError,
  messageOf,
} from "../platform/errors.ts";
import { fileBlocks } from "../platform/files.ts";
import type { HttpClient } from "../platform/http.ts";
import { Limiter } from "../platform/limit.ts";
import { redactUrl } from "../platform/redact.ts";
import { withRetries } from "../platform/retry.ts";
import { sniffFile } from "./sniff.ts";

type Env = Readonly<Record<string, string | undefined>>;

export interface OutputStoreOptions {
  /** `s3://bucket/prefix`. */
  readonly url: string;
  /** Where AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL are. */
  readonly env: Env;
  readonly http: HttpClient;
  /** How long the answered addresses can be read. */
  readonly linkSeconds?: number | undefined;
  readonly retryDelayMs?: number | undefined;
}

/** Long enough for a client that polls once an hour, the longest some of them sleep. */
const DEFAULT_LINK_SECONDS = 24 * 3600;
const UPLOAD_LINK_SECONDS = 3600;
const PARALLEL = 4;
const ATTEMPTS = 4;
/** A large video is taken in whole before S3 answers. */
const ANSWER_TIMEOUT_MS = 5 * 60_000;
/** As much of a refusal as says why. */
const QUOTED_CHARACTERS = 300;
/** S3's limit for one PUT. */
const MAX_PUT_BYTES = 5 * 2 ** 30;

export class OutputStore {
  readonly #client: Bun.S3Client;
  readonly #prefix: string;
  readonly #bucket: string;
  readonly #http: HttpClient;
  readonly #linkSeconds: number;
  readonly #retryDelayMs: number;

  /** @throws ConfigError when the address is no bucket, or there are no credentials */
  constructor(options: OutputStoreOptions) {
    const match = /^s3:\/\/([a-z0-9][a-z0-9.-]+)(?:\/(.*))?$/.exec(options.url);
    if (match === null) {
      throw new ConfigError(
        "CONFIG_INVALID",
        `OUTPUT_STORE_URL is "${redactUrl(options.url)}", which is no bucket`,
        { hint: "Write it as s3://bucket/prefix." },
      );
    }
    const { env } = options;
    const [accessKeyId, secretAccessKey] = [env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]];
    if (accessKeyId === undefined || secretAccessKey === undefined) {
      throw new ConfigError("CONFIG_INVALID", "OUTPUT_STORE_URL is set, but no credentials are", {
        hint: "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
      });
    }
    const endpoint = env["AWS_ENDPOINT_URL_S3"] ?? env["AWS_ENDPOINT_URL"];
    const sessionToken = env["AWS_SESSION_TOKEN"];
    this.#bucket = match[1] ?? "";
    this.#prefix = (match[2] ?? "").replace(/\/+$/, "");
    this.#http = options.http;
    this.#linkSeconds = options.linkSeconds ?? DEFAULT_LINK_SECONDS;
    this.#retryDelayMs = options.retryDelayMs ?? 500;
    this.#client = new Bun.S3Client({
      accessKeyId,
      secretAccessKey,
      bucket: this.#bucket,
      region: env["AWS_REGION"] ?? env["AWS_DEFAULT_REGION"] ?? "us-east-1",
      ...(sessionToken === undefined ? {} : { sessionToken }),
      ...(endpoint === undefined ? {} : { endpoint }),
    });
  }

  /**
   * Uploads files under `<prefix>/<folder>/` and answers their addresses in the same order.
   * @throws DownloadError; CanceledError
   */
  async put(paths: readonly string[], folder: string, signal?: AbortSignal): Promise<string[]> {
    const limiter = new Limiter(PARALLEL);
    const failing = new AbortController();
    const either =
      signal === undefined ? failing.signal : AbortSignal.any([signal, failing.signal]);
    try {
      return await Promise.all(
        paths.map((path, index) =>
          limiter.run(async () => await this.#upload(path, this.#key(path, folder, index), either)),
        ),
      );
    } catch (error) {
      // The others need not finish for an answer that won't be given.
      failing.abort();
      throw signal?.aborted ? new CanceledError("Uploading outputs was called off") : error;
    }
  }

  /** Two outputs may have one name: the number keeps them apart, and in order. */
  #key(path: string, folder: string, index: number): string {
    const name = basename(path).replace(/[^A-Za-z0-9._-]+/g, "_");
    return posix.join(this.#prefix, folder, `${String(index).padStart(3, "0")}-${name}`);
  }

  async #upload(path: string, key: string, signal: AbortSignal): Promise<string> {
    const { size } = statSync(path);
    if (size > MAX_PUT_BYTES) {
      throw new DownloadError(
        "TOO_LARGE",
        `${basename(path)} is larger than S3 takes at once (5 GiB)`,
      );
    }
    await withRetries(async () => await this.#send(path, key, size, signal), {
      policy: { attempts: ATTEMPTS, firstDelayMs: this.#retryDelayMs, maxDelayMs: 10_000 },
      signal,
      shouldRetry: (error) => error instanceof AppError && error.retryable,
    });
    return this.#client.presign(key, { method: "GET", expiresIn: this.#linkSeconds });
  }

  async #send(path: string, key: string, size: number, signal: AbortSignal): Promise<void> {
    const url = this.#client.presign(key, { method: "PUT", expiresIn: UPLOAD_LINK_SECONDS });
    const response = await this.#http.request(url, {
      method: "PUT",
      headers: { "content-length": String(size), "content-type": sniffFile(path).mime },
      body: fileBlocks(path),
      headersTimeoutMs: ANSWER_TIMEOUT_MS,
      maxRedirects: 0,
      signal,
    });
    const text = await response.text(2 ** 20).catch(messageOf);
    if (response.status === 200) {
      return;
    }
    const code = /<Code>([^<]*)<\/Code>/.exec(text)?.[1];
    throw new DownloadError(
      response.status === 403 ? "AUTH_FORBIDDEN" : "SERVER_ERROR",
      `The bucket ${this.#bucket} refused ${key}: ${response.status} ${code ?? text.slice(0, QUOTED_CHARACTERS)}`,
      {
        hint:
          response.status < 500
            ? "Check OUTPUT_STORE_URL, AWS_REGION, AWS_ENDPOINT_URL and that the credentials may write there."
            : undefined,
        retryable: response.status >= 500 || response.status === 429,
      },
    );
  }
}
