/** The HTTP and WebSocket server of the embedded engine: ComfyUI's routes, one table. */
import type { Server } from "bun";
import { ConfigError, messageOf, systemCode } from "../../platform/errors.ts";
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import { isJsonObject, parseJson } from "../../platform/json.ts";
import type { EmbeddedEngine } from "./engine.ts";
import { uploadImage, uploadMask, viewFile } from "./file-routes.ts";
import {
  embeddingNames,
  experimentModelFiles,
  experimentModels,
  folderPaths,
  internalFiles,
  modelNames,
  objectInfo,
  systemStats,
  viewMetadata,
} from "./info-routes.ts";
import { jobDetails, listJobs } from "./jobs.ts";
import type { LogRing } from "./log-ring.ts";
import { queueItem } from "./queue.ts";
import { bare, crash, json } from "./replies.ts";
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

interface Call {
  readonly request: Request;
  readonly query: URLSearchParams;
  /** What the `*` parts of the path matched. */
  readonly parts: readonly string[];
}

type Handler = (call: Call) => Response | Promise<Response>;

async function bodyOf(request: Request): Promise<JsonValue> {
  return parseJson(await request.text());
}

async function objectBody(request: Request): Promise<JsonObject> {
  const body = await bodyOf(request);
  if (!isJsonObject(body)) {
    throw new TypeError("the body is no object");
  }
  return body;
}

function textList(value: JsonValue | undefined): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

function numberIn(query: URLSearchParams, name: string): number | undefined {
  const value = query.get(name);
  if (value === null) {
    return undefined;
  }
  const number = Number.parseInt(value, 10);
  return number >= 0 ? number : undefined;
}

/** Routes that exist both as `/x` and as `/api/x`. */
function commonRoutes({ engine, argv }: ServerOptions): Readonly<Record<string, Handler>> {
  const { queue, settings } = engine;
  const { folders, compat } = settings;
  const isNew = compat === "0.33.0";
  return {
    "GET /": () => new Response(WELCOME, { headers: { "content-type": "text/html" } }),
    "GET /system_stats": () => systemStats(engine, argv),
    "GET /features": () => json(engine.features()),
    "GET /object_info": () => objectInfo(engine),
    "GET /object_info/*": ({ parts }) => objectInfo(engine, parts[0]),
    "GET /prompt": () => json({ exec_info: { queue_remaining: queue.remaining } }),
    "POST /prompt": async ({ request }) => {
      const { accepted, body } = engine.submit(await objectBody(request));
      return json(body, accepted ? 200 : 400);
    },
    "GET /queue": () =>
      json({
        queue_running: queue.running === undefined ? [] : [queueItem(queue.running)],
        queue_pending: queue.pending.map(queueItem),
      }),
    "POST /queue": async ({ request }) => {
      const body = await objectBody(request);
      if (body["clear"] === true) {
        queue.clear();
      }
      for (const id of textList(body["delete"])) {
        queue.remove(id);
      }
      return bare(200);
    },
    "POST /interrupt": async ({ request }) => {
      // The one route that takes any body, or none.
      const body = await bodyOf(request).catch((): JsonValue => null);
      const id = isJsonObject(body) ? body["prompt_id"] : undefined;
      engine.interrupt(typeof id === "string" && id !== "" ? id : undefined);
      return bare(200);
    },
    "POST /free": async ({ request }) => {
      const body = await objectBody(request);
      if (body["free_memory"] === true) {
        engine.free();
      }
      return bare(200);
    },
    "GET /history": ({ query }) =>
      json(
        queue.history({
          maxItems: numberIn(query, "max_items"),
          offset: numberIn(query, "offset"),
        }),
      ),
    "GET /history/*": ({ parts }) => json(queue.historyOf(parts[0] ?? "")),
    "POST /history": async ({ request }) => {
      const body = await objectBody(request);
      if (body["clear"] === true) {
        queue.forgetAll();
      }
      for (const id of textList(body["delete"])) {
        queue.forget(id);
      }
      return bare(200);
    },
    "GET /view": ({ query }) => viewFile(folders, query, compat),
    "POST /upload/image": async ({ request }) => uploadImage(folders, await request.formData()),
    "POST /upload/mask": async ({ request }) => uploadMask(folders, await request.formData()),
    "GET /models": () => json(folders.categories()),
    "GET /models/*": ({ parts }) => modelNames(folders, parts[0] ?? ""),
    "GET /experiment/models": () => experimentModels(folders, isNew),
    "GET /experiment/models/*": ({ parts }) => experimentModelFiles(folders, parts[0] ?? ""),
    "GET /view_metadata/*": ({ parts, query }) =>
      viewMetadata(folders, parts[0] ?? "", query.get("filename") ?? ""),
    "GET /embeddings": () => embeddingNames(folders),
    "GET /extensions": () => json([]),
    "GET /workflow_templates": () => json({}),
    "GET /i18n": () => json({}),
    "GET /users": () => json({ storage: "server", migrated: false }),
    "GET /settings": () => json({}),
    ...(isNew
      ? { "GET /node_replacements": () => json({}), "GET /global_subgraphs": () => json({}) }
      : {}),
  };
}

/** Routes with one spelling only: `/internal/*`, and the newer ones under `/api`. */
function singleRoutes({ engine, logs }: ServerOptions): Readonly<Record<string, Handler>> {
  const { folders, compat } = engine.settings;
  const isNew = compat === "0.33.0";
  const internal: Record<string, Handler> = {
    "GET /internal/folder_paths": () => folderPaths(folders),
    "GET /internal/files/*": ({ parts: [area] }) =>
      area === "input" || area === "output" || area === "temp"
        ? internalFiles(folders, area, isNew)
        : bare(400),
    "GET /internal/logs": () => json(logs.text()),
    "GET /internal/logs/raw": () => json({ entries: logs.entries(), size: { cols: 80, rows: 24 } }),
    "PATCH /internal/logs/subscribe": async ({ request }) => {
      const { clientId, enabled } = await objectBody(request);
      logs.subscribe(String(clientId), enabled === true);
      return bare(200);
    },
  };
  return isNew ? { ...internal, ...jobRoutes(engine) } : internal;
}

function jobRoutes(engine: EmbeddedEngine): Record<string, Handler> {
  const { queue } = engine;
  const cancel = (id: string) => queue.remove(id) || engine.interrupt(id);
  return {
    "GET /api/jobs": ({ query }) => json(listJobs(queue, query)),
    "GET /api/jobs/*": ({ parts }) => {
      const details = jobDetails(queue, parts[0] ?? "");
      return details === undefined ? json({ error: "Job not found" }, 404) : json(details);
    },
    "POST /api/jobs/*/cancel": ({ parts }) => json({ cancelled: cancel(parts[0] ?? "") }),
    "POST /api/jobs/cancel": async ({ request }) => {
      const ids = (await objectBody(request))["job_ids"];
      const list = Array.isArray(ids) ? ids : [];
      const invalid = list.filter((id) => typeof id !== "string");
      if (!Array.isArray(ids) || invalid.length > 0) {
        return json({ error: "Invalid job ids", invalid_ids: invalid }, 400);
      }
      return json({ cancelled: list.filter((id) => cancel(String(id))) });
    },
  };
}

const WELCOME =
  "<!doctype html><title>embedded engine</title><p>This is the embedded engine of cog-comfyui. It speaks ComfyUI's API and has no page of its own.";

/** Finds the handler of a path; longer patterns first, so that a fixed path wins over a `*`. */
function createRouter(routes: Readonly<Record<string, Handler>>) {
  const table = Object.entries(routes)
    .map(([key, handler]) => {
      const [method = "", path = ""] = key.split(" ");
      const pattern = path
        .split("/")
        .map((part) => (part === "*" ? "([^/]+)" : RegExp.escape(part)));
      return {
        method,
        handler,
        pattern: new RegExp(`^${pattern.join("/")}$`),
        stars: path.split("*").length,
      };
    })
    .sort((a, b) => a.stars - b.stars);
  return (method: string, path: string): { handler: Handler; parts: string[] } | undefined => {
    for (const row of table) {
      const match = row.method === method ? row.pattern.exec(path) : null;
      if (match !== null) {
        return { handler: row.handler, parts: match.slice(1).map(decodeURIComponent) };
      }
    }
    return undefined;
  };
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || host === "[::1]" || host.startsWith("127.");
}

/** A page of another origin may not use a server that only listens on loopback. */
function isForeign(request: Request, isNew: boolean): boolean {
  const { headers } = request;
  const origin = headers.get("origin");
  const host = headers.get("host") ?? "";
  if (isNew && headers.get("sec-fetch-site") === "cross-site") {
    return true;
  }
  const hostName = host.replace(/:\d+$/, "");
  if (origin === null || !isLoopback(hostName)) {
    return false;
  }
  return !URL.canParse(origin) || new URL(origin).host !== host;
}

/** Starts to listen. @throws ConfigError PORT_IN_USE. */
export function startServer(options: ServerOptions): EmbeddedServer {
  const { engine } = options;
  const isNew = engine.settings.compat === "0.33.0";
  const common = createRouter(commonRoutes(options));
  const single = createRouter(singleRoutes(options));

  async function answer(
    request: Request,
    server: Server<SocketData>,
  ): Promise<Response | undefined> {
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
    if (found === undefined) {
      return bare(404);
    }
    try {
      return await found.handler({ request, query, parts: found.parts });
    } catch (error) {
      engine.settings.log.error(`Error handling request: ${messageOf(error)}`);
      return crash();
    }
  }

  const server = listen(options, answer);
  const host = options.host === "0.0.0.0" ? "127.0.0.1" : options.host;
  const port = server.port ?? options.port;
  return {
    url: `http://${host}:${port}`,
    port,
    stop: async () => {
      await engine.stop();
      await server.stop(true);
    },
  };
}

type Answer = (request: Request, server: Server<SocketData>) => Promise<Response | undefined>;

function listen({ engine, host, port }: ServerOptions, answer: Answer): Server<SocketData> {
  try {
    return Bun.serve<SocketData>({
      hostname: host,
      port,
      // Our own deadlines rule; Bun's would cut a long upload or a quiet socket.
      idleTimeout: 0,
      maxRequestBodySize: engine.settings.maxUploadBytes,
      fetch: answer,
      error: () => crash(),
      websocket: {
        idleTimeout: 0,
        sendPings: false,
        maxPayloadLength: 64 * 1024 ** 2,
        backpressureLimit: 1024 ** 3,
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
