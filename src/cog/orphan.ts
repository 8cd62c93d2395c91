/**
 * Ends a server that the cog CLI forgot. `cog run` and `cog predict` leave their container behind when setup fails or
 * is interrupted, and nobody can ever reach it again: its port was random. Seen from inside: the CLI's variables are
 * set, its health polls (ten a second) have come, and then nothing asks any more. Under plain `docker run`, on a
 * platform and under `cog serve` no such polls come with these variables, and the rule never applies.
 */
import type { Config } from "../platform/env.ts";
import type { Logger } from "../platform/log.ts";

/** What the CLI's HTTP client calls itself. */
const CLI_USER_AGENT = /^Go-http-client\//;
const DEFAULT_TIMEOUT_SECONDS = 60;
/** Looked at so many times within the time-out. */
const LOOKS = 12;

export interface OrphanOptions {
  readonly config: Pick<Config, "LOG_FORMAT" | "COG_LOG_LEVEL" | "ORPHAN_TIMEOUT">;
  readonly logger: Logger;
  /** True while a request is being answered. */
  readonly isBusy: () => boolean;
  readonly stop: () => void;
}

export class OrphanWatch implements Disposable {
  readonly #options: OrphanOptions;
  readonly #timeoutMs: number;
  #timer: ReturnType<typeof setInterval> | undefined;
  #lastSeen = 0;

  constructor(options: OrphanOptions) {
    const { LOG_FORMAT, COG_LOG_LEVEL, ORPHAN_TIMEOUT } = options.config;
    const isUnderCli = LOG_FORMAT === "console" && COG_LOG_LEVEL !== undefined;
    this.#options = options;
    this.#timeoutMs = isUnderCli ? (ORPHAN_TIMEOUT ?? DEFAULT_TIMEOUT_SECONDS) * 1000 : 0;
  }

  /** Takes note of a request; the CLI's first health poll starts the watch. */
  see(request: Request): void {
    if (this.#timeoutMs === 0) {
      return;
    }
    const isHealth = request.url.endsWith("/health-check");
    const isCli = CLI_USER_AGENT.test(request.headers.get("user-agent") ?? "");
    // The image's own HEALTHCHECK asks for ever, whoever is gone.
    if (isHealth && !isCli) {
      return;
    }
    this.#lastSeen = performance.now();
    if (this.#timer === undefined && isHealth) {
      this.#timer = setInterval(() => this.#look(), this.#timeoutMs / LOOKS);
      this.#timer.unref();
    }
  }

  #look(): void {
    if (this.#options.isBusy()) {
      this.#lastSeen = performance.now();
    } else if (performance.now() - this.#lastSeen >= this.#timeoutMs) {
      this[Symbol.dispose]();
      this.#options.logger.error(
        `The cog command that started this container is gone: nothing asked for ${this.#timeoutMs / 1000} s. Stopping (ORPHAN_TIMEOUT=0 keeps such containers).`,
      );
      this.#options.stop();
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
