/** The HTTP and WebSocket server of the embedded engine: who may ask, and which route answers. */
import type { Server } from "bun";
import { ConfigError, messageOf, systemCode } from "../../platform/errors.ts";
import type { EmbeddedEngine } from "./engine.ts";
import type { LogRing } from "./log-ring.ts";
import { bare, crash } from "./replies.ts";
import { createRouter } from "./router.ts";
import { commonRoutes, singleRoutes } from "./routes.ts";
import type { SocketData } from "./sockets.ts";

export interface ServerOptions {
  readonly engine: EmbeddedEngine;
  readonly host: string;
  /** 0 picks a free one. */
  readonly port: number;
  readonly argv: readonly string[];
  readonly logs: LogRing;
}

export interface EmbeddedServer {
  readonly url: string;
  readonly port: number;
  stop(): Promise<void>;
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "[::1]" || host.startsWith("127.");
}

/** A page of another origin may not use a server that only listens on loopback. */
function isForeign({ headers }: Request, isNew: boolean): boolean {
  const origin = headers.get("origin");
  const host = headers.get("host") ?? "";
  if (isNew && headers.get("sec-fetch-site") === "cross-site") {
    return true;
  }
  if (origin === null || !isLoopback(host.replace(/:\d+$/, ""))) {
    return false;
  }
  return !URL.canParse(origin) || new URL(origin).host !== host;
}

type Answer = (request: Request, server: Server<SocketData>) => Promise<Response | undefined>;

function createAnswer({ engine, argv, logs }: ServerOptions): Answer {
  const isNew = engine.settings.compat === "0.33.0";
  const common = createRouter(commonRoutes(engine, argv));
  const single = createRouter(singleRoutes(engine, logs));
  return async (request, server) => {
    if (isForeign(request, isNew)) {
      return bare(403);
    }
    if (request.method === "OPTIONS") {
      return bare(200);
    }
    const { pathname, searchParams: query } = new URL(request.url);
    const path = pathname.replace(/^\/api(?=\/)/, "");
    if (path === "/ws") {
      const clientId = query.get("clientId") || crypto.randomUUID().replaceAll("-", "");
      return server.upgrade(request, { data: { clientId } }) ? undefined : bare(400);
    }
    const method = request.method === "HEAD" ? "GET" : request.method;
    const found = single(method, pathname) ?? common(method, path);
    try {
      return (await found?.handler({ request, query, parts: found.parts })) ?? bare(404);
    } catch (error) {
      engine.settings.log.error(`Error handling request: ${messageOf(error)}`);
      return crash();
    }
  };
}

/** A message of a client is a few words of JSON; more is no ComfyUI client. */
const MAX_MESSAGE_BYTES = 1024 ** 2;
/** What may wait for a client that reads slowly, before its socket is closed. */
const MAX_BACKLOG_BYTES = 256 * 1024 ** 2;

function listen({ engine, host, port }: ServerOptions, answer: Answer): Server<SocketData> {
  try {
    return Bun.serve<SocketData>({
      hostname: host,
      port,
      // A long upload or a quiet socket is no reason to hang up.
      idleTimeout: 0,
      maxRequestBodySize: engine.settings.maxUploadBytes,
      fetch: answer,
      error: () => crash(),
      websocket: {
        idleTimeout: 0,
        sendPings: false,
        maxPayloadLength: MAX_MESSAGE_BYTES,
        backpressureLimit: MAX_BACKLOG_BYTES,
        closeOnBackpressureLimit: true,
        open: (socket) => engine.hub.open(socket),
        message: (socket, message) => engine.hub.message(socket, String(message)),
        close: (socket) => engine.hub.close(socket),
      },
    });
  } catch (error) {
    if (systemCode(error) === "EADDRINUSE") {
      throw new ConfigError("PORT_IN_USE", `Port ${port} is already in use on address ${host}.`, {
        hint: "Give another --port, or stop the process that listens there.",
        cause: error,
      });
    }
    throw error;
  }
}

/** Starts to listen. @throws ConfigError PORT_IN_USE. */
export function startServer(options: ServerOptions): EmbeddedServer {
  const server = listen(options, createAnswer(options));
  // "Every address" is no address to go to.
  const host = options.host === "0.0.0.0" ? "127.0.0.1" : options.host;
  const port = server.port ?? options.port;
  return {
    url: `http://${host}:${port}`,
    port,
    stop: async () => {
      await options.engine.stop();
      await server.stop(true);
    },
  };
}
