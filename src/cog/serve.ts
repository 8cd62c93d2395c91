/**
 * The Cog server as a process (cog_protocol.md §18): binds the port before setup begins, minds signals, drains, and
 * says with which code to exit. It never exits the process itself; that is for whoever called it.
 */
import type { Hono } from "hono";
import type { Config } from "../platform/env.ts";
import { AppError, ConfigError, messageOf, systemCode } from "../platform/errors.ts";
import { AddressGuard } from "../platform/guard.ts";
import { HttpClient } from "../platform/http.ts";
import type { Logger } from "../platform/log.ts";
import { sleep } from "../platform/retry.ts";
import type { AppBindings, AppEnv } from "./app.ts";
import { createApp } from "./app.ts";
import type { ServerFlags } from "./flags.ts";
import { parseServerFlags } from "./flags.ts";
import { OrphanWatch } from "./orphan.ts";
import type { CogModel } from "./predictor.ts";
import { COG_VERSION, Service } from "./service.ts";
import { cogSettings } from "./settings.ts";
import type { EventStreamOptions } from "./sse.ts";
import { WebhookSender } from "./webhook.ts";

/** What of the environment the server needs. */
export type ServeConfig = Pick<
  Config,
  | "PORT"
  | "API_TOKEN"
  | "ALLOW_PRIVATE_NETWORK"
  | "WEBHOOK_ALLOW_PRIVATE"
  | "WEBHOOK_AUTH_TOKEN"
  | "WEBHOOK_SIGNING_SECRET"
  | "COG_USER_AGENT"
  | "COG_MAX_CONCURRENCY"
  | "COG_SETUP_TIMEOUT"
  | "COG_THROTTLE_RESPONSE_INTERVAL"
  | "COG_STREAM_HISTORY_CAPACITY"
  | "KUBERNETES_SERVICE_HOST"
  | "LOG_FORMAT"
  | "COG_LOG_LEVEL"
  | "ORPHAN_TIMEOUT"
  | "HTTP_PROXY"
  | "HTTPS_PROXY"
  | "NO_PROXY"
  | "workDir"
>;

/** Waits that tests shorten; everything has a default. */
export interface ServeTimings {
  /** How long running predictions may go on after a stop was asked for. */
  readonly shutdownGraceMs?: number | undefined;
  /** How long their last webhooks may take after that; the retry schedule itself takes minutes. */
  readonly webhookGraceMs?: number | undefined;
  readonly webhookRetryDelaysMs?: readonly number[] | undefined;
  readonly webhookTimeoutMs?: number | undefined;
  readonly uploadTimeoutMs?: number | undefined;
  readonly streams?: EventStreamOptions | undefined;
  readonly healthcheckTimeoutMs?: number | undefined;
}

export interface ServeOptions {
  readonly model: CogModel;
  readonly config: ServeConfig;
  readonly logger: Logger;
  /** Cog's own flags; defaults unless given. */
  readonly flags?: Partial<ServerFlags> | undefined;
  /** Further routes, asked before Cog's own; a function gets the service. */
  readonly routes?: ((service: Service) => readonly Hono<AppEnv>[]) | undefined;
  /** Paths that need no API_TOKEN; those of the probes unless given. */
  readonly openPaths?: readonly string[] | undefined;
  /** True for requests to further routes that ask for a token of another kind themselves. */
  readonly guardsItself?: ((method: string, path: string) => boolean) | undefined;
  /** For file inputs; made from the configuration unless given. */
  readonly clientHttp?: HttpClient | undefined;
  readonly maxFileBytes?: number | undefined;
  readonly readinessFile?: string | undefined;
  /** False leaves the process's signals alone. */
  readonly handleSignals?: boolean | undefined;
  readonly timings?: ServeTimings | undefined;
}

export interface CogServer {
  readonly url: string;
  readonly port: number;
  readonly service: Service;
  /** Settles with the exit code when the server has stopped and the model is let go. */
  readonly finished: Promise<number>;
  /** Begins a graceful stop; further calls join it. */
  stop(exitCode?: number): Promise<number>;
}

const DEFAULT_SHUTDOWN_GRACE_MS = 600_000;
const DEFAULT_WEBHOOK_GRACE_MS = 15_000;
/** Answers written just before the end must reach their clients. */
const FLUSH_MS = 2_000;
/** Far above the protocol's limit, which is enforced with its own text while reading. */
const TRANSPORT_BODY_LIMIT = 2 ** 40;
const SIGINT_EXIT_CODE = 130;
const READINESS_FILE = "/var/run/cog/ready";

/**
 * Starts the server: it answers from now on, setup runs in the background.
 * @throws ConfigError PORT_IN_USE, PATH_UNWRITABLE (a port that needs privileges)
 */
export function serveCog(options: ServeOptions): Promise<CogServer> {
  return Promise.try(() => new RunningServer(options));
}

class RunningServer implements CogServer {
  readonly url: string;
  readonly port: number;
  readonly service: Service;
  readonly finished: Promise<number>;
  readonly #options: ServeOptions;
  readonly #http: readonly HttpClient[];
  readonly #server: Bun.Server<undefined>;
  readonly #orphan: OrphanWatch;
  readonly #finish: (exitCode: number) => void;
  /** Takes what we listen to of the process back. */
  readonly #listening = new DisposableStack();
  #stopping: Promise<number> | undefined;

  constructor(options: ServeOptions) {
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<number>();
    this.finished = promise;
    this.#finish = resolve;
    const flags = { ...parseServerFlags([]), ...options.flags };
    const clients = makeClients(options);
    this.#http = clients.own;
    this.service = makeService(options, flags, clients);
    this.#orphan = new OrphanWatch({
      config: options.config,
      logger: options.logger,
      isBusy: () => this.#server.pendingRequests > 0,
      stop: () => void this.stop(),
    });
    this.#server = listen(options, flags, this.service, {
      shutdown: () => void this.stop(),
      see: (request) => this.#orphan.see(request),
    });
    this.port = this.#server.port ?? options.config.PORT;
    this.url = `http://${flags.host.includes(":") ? `[${flags.host}]` : flags.host}:${this.port}`;
    if (options.handleSignals !== false) {
      this.#handleSignals(flags);
      this.#handleFaults();
    }
    options.logger.info(`Listening on ${this.url}`);
    this.service.start();
  }

  stop(exitCode = 0): Promise<number> {
    this.#stopping ??= this.#stop(exitCode);
    return this.#stopping;
  }

  #handleSignals(flags: ServerFlags): void {
    const handlers: [NodeJS.Signals, () => void][] = [
      ["SIGTERM", () => (flags.awaitExplicitShutdown ? undefined : this.#onSignal(0))],
      ["SIGINT", () => this.#onSignal(SIGINT_EXIT_CODE)],
    ];
    for (const [signal, handler] of handlers) {
      process.on(signal, handler);
      this.#listening.defer(() => process.off(signal, handler));
    }
  }

  /** A mistake of ours in one request, or of a library beside it, must not end the predictions of all others. */
  #handleFaults(): void {
    const tell = (thrown: unknown): void =>
      this.#options.logger.error(
        `A fault that nothing caught (please report it); the server goes on: ${messageOf(thrown)}`,
        { stack: thrown instanceof Error ? thrown.stack : undefined },
      );
    for (const fault of ["uncaughtException", "unhandledRejection"] as const) {
      process.on(fault, tell);
      this.#listening.defer(() => process.off(fault, tell));
    }
  }

  /** The first signal drains; the second is from somebody who will not wait. */
  #onSignal(exitCode: number): void {
    if (this.#stopping !== undefined) {
      this.service.cancelAll();
    }
    void this.stop(exitCode);
  }

  async #stop(exitCode: number): Promise<number> {
    const { logger, timings } = this.#options;
    logger.info("Stopping: no new connections, running predictions finish");
    this.#orphan[Symbol.dispose]();
    try {
      void this.#server.stop(false);
      await this.service.drain(
        timings?.shutdownGraceMs ?? DEFAULT_SHUTDOWN_GRACE_MS,
        timings?.webhookGraceMs ?? DEFAULT_WEBHOOK_GRACE_MS,
      );
      await this.#flushed();
      await this.#server.stop(true);
      await this.service.dispose();
      await Promise.all(this.#http.map((client) => client.close()));
    } catch (error) {
      logger.error(`Stopping failed: ${messageOf(error)}`);
    } finally {
      this.#listening.dispose();
    }
    this.#finish(exitCode);
    return exitCode;
  }

  async #flushed(): Promise<void> {
    const until = performance.now() + FLUSH_MS;
    while (this.#server.pendingRequests > 0 && performance.now() < until) {
      await sleep(5);
    }
  }
}

interface Clients {
  /** For addresses in requests. */
  readonly client: HttpClient;
  readonly webhook: HttpClient;
  readonly webhookGuard: AddressGuard;
  readonly operator: HttpClient;
  /** Those made here, to be closed here. */
  readonly own: readonly HttpClient[];
}

function makeClients(options: ServeOptions): Clients {
  const { config } = options;
  const proxy = { http: config.HTTP_PROXY, https: config.HTTPS_PROXY, no: config.NO_PROXY };
  const webhookGuard = new AddressGuard(
    config.WEBHOOK_ALLOW_PRIVATE === undefined
      ? config.ALLOW_PRIVATE_NETWORK
      : config.WEBHOOK_ALLOW_PRIVATE.split(/[\s,]+/).filter((entry) => entry !== ""),
    { variable: "WEBHOOK_ALLOW_PRIVATE" },
  );
  const client =
    options.clientHttp ??
    new HttpClient({ guard: new AddressGuard(config.ALLOW_PRIVATE_NETWORK), proxy });
  const webhook = new HttpClient({ guard: webhookGuard, proxy });
  const operator = new HttpClient({ proxy });
  const own = [webhook, operator, ...(options.clientHttp === undefined ? [client] : [])];
  return { client, webhook, webhookGuard, operator, own };
}

function makeService(options: ServeOptions, flags: ServerFlags, clients: Clients): Service {
  const { config, logger, timings } = options;
  const settings = cogSettings(config, logger);
  return new Service({
    model: options.model,
    logger: logger.child("cog_comfyui::predict"),
    clientHttp: clients.client,
    operatorHttp: clients.operator,
    webhooks: new WebhookSender({
      http: clients.webhook,
      guard: clients.webhookGuard,
      userAgent: `coglet/${COG_VERSION}`,
      authToken: config.WEBHOOK_AUTH_TOKEN,
      signingSecret: config.WEBHOOK_SIGNING_SECRET,
      throttleMs: settings.throttleMs,
      retryDelaysMs: timings?.webhookRetryDelaysMs,
      deliveryTimeoutMs: timings?.webhookTimeoutMs,
      logger: logger.child("cog_comfyui::webhook"),
    }),
    tempDir: config.workDir,
    slots: settings.slots,
    uploadUrl: flags.uploadUrl,
    uploadTimeoutMs: timings?.uploadTimeoutMs,
    maxFileBytes: options.maxFileBytes,
    userAgent: config.COG_USER_AGENT,
    setupTimeoutMs: settings.setupTimeoutMs,
    historyCapacity: settings.historyCapacity,
    healthcheckTimeoutMs: timings?.healthcheckTimeoutMs,
    readinessFile:
      config.KUBERNETES_SERVICE_HOST === undefined
        ? undefined
        : (options.readinessFile ?? READINESS_FILE),
  });
}

interface Hooks {
  /** Called by `POST /shutdown`. */
  readonly shutdown: () => void;
  /** Called with every request. */
  readonly see: (request: Request) => void;
}

function listen(
  options: ServeOptions,
  flags: ServerFlags,
  service: Service,
  hooks: Hooks,
): Bun.Server<undefined> {
  const { config, logger } = options;
  const app = createApp({
    service,
    logger,
    shutdown: hooks.shutdown,
    guardsItself: options.guardsItself,
    tokens: config.API_TOKEN,
    openPaths: options.openPaths,
    routes: options.routes?.(service),
    streams: options.timings?.streams,
  });
  const answer = (request: Request, server: Bun.Server<undefined>, path?: string) => {
    hooks.see(request);
    const bindings: AppBindings = {
      path,
      allowSilence: (seconds) => server.timeout(request, seconds),
    };
    return app.fetch(request, bindings);
  };
  /** Bun's own router sees the path before `..` is resolved away; only there an id of dots survives. */
  const byId =
    (prefix: string, suffix: string) =>
    (request: Bun.BunRequest<"/:id">, server: Bun.Server<undefined>) => {
      const { id } = request.params;
      const isDots = id === "." || id === "..";
      return answer(request, server, isDots ? `${prefix}${id}${suffix}` : undefined);
    };
  try {
    return Bun.serve({
      hostname: flags.host,
      port: config.PORT,
      idleTimeout: 0,
      maxRequestBodySize: TRANSPORT_BODY_LIMIT,
      routes: {
        "/predictions/:id": byId("/predictions/", ""),
        "/predictions/:id/cancel": byId("/predictions/", "/cancel"),
        "/trainings/:id": byId("/trainings/", ""),
        "/trainings/:id/cancel": byId("/trainings/", "/cancel"),
      },
      fetch: (request, server) => answer(request, server),
    });
  } catch (error) {
    throw listenError(error, flags.host, config.PORT);
  }
}

function listenError(error: unknown, host: string, port: number): AppError {
  if (error instanceof AppError) {
    return error;
  }
  if (systemCode(error) === "EADDRINUSE") {
    return new ConfigError("PORT_IN_USE", `Port ${port} on ${host} is in use`, {
      cause: error,
      hint: "Stop the other process, or set PORT to a free port.",
    });
  }
  return new ConfigError("CONFIG_INVALID", `Can't listen on ${host}:${port}: ${messageOf(error)}`, {
    cause: error,
    hint: "Check --host and PORT; ports below 1024 need privileges.",
  });
}
