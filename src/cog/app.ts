/**
 * Cog's routes as a Hono app: read the request, call the service, write the answer (cog_protocol.md §1–§5). The only
 * table from error code to status of the protocol is here.
 */
import type { Context } from "hono";
import { Hono } from "hono";
import type { ErrorCode } from "../platform/errors.ts";
import { AppError, InputError } from "../platform/errors.ts";
import type { JsonObject } from "../platform/json.ts";
import type { Logger } from "../platform/log.ts";
import { BearerCheck } from "./auth.ts";
import type { Envelope } from "./envelope.ts";
import { exactInput, MAX_BODY_BYTES, readEnvelope } from "./envelope.ts";
import { fromPercents } from "./file-inputs.ts";
import { writeJson } from "./json-writer.ts";
import type { Prediction } from "./prediction.ts";
import type { RunKind } from "./run.ts";
import type { Service } from "./service.ts";
import { COG_VERSION, hasTrainings } from "./service.ts";
import type { EventStreamOptions } from "./sse.ts";
import { eventStream, wantsEvents } from "./sse.ts";

/** What the transport tells beside the request. */
export interface AppBindings {
  /** The path as it was sent, where the URL parser would have changed it (`..`). */
  readonly path?: string | undefined;
  /** Sets the seconds this connection may be silent; 0 = for ever. */
  readonly allowSilence?: ((seconds: number) => void) | undefined;
}

export interface AppEnv {
  Bindings: AppBindings;
}

export type CogContext = Context<AppEnv>;

export interface AppOptions {
  readonly service: Service;
  readonly logger: Logger;
  /** Called by `POST /shutdown`. */
  readonly shutdown: () => void;
  /** Bearer tokens of clients; none: open to all. */
  readonly tokens?: readonly string[] | undefined;
  /** Paths that need no token: what probes ask. */
  readonly openPaths?: readonly string[] | undefined;
  /** True for requests to further routes that ask for a token of another kind themselves. */
  readonly guardsItself?: ((method: string, path: string) => boolean) | undefined;
  /** Further routes, asked before Cog's own. */
  readonly routes?: readonly Hono<AppEnv>[] | undefined;
  readonly streams?: EventStreamOptions | undefined;
}

/** Paths that answer without a token unless other ones are given. */
export const DEFAULT_OPEN_PATHS: readonly string[] = [
  "/health-check",
  "/livez",
  "/readyz",
  "/ping",
];

/** A body must go on arriving: a connection that says nothing for so many seconds is closed. */
const BODY_SILENCE_SECONDS = 120;

type BodyForm = "text" | "detail" | "error" | "refusal";

interface StatusRow {
  readonly status: number;
  /** `text`: plain text. `detail`: FastAPI's list. `error`: `{error}`. `refusal`: `{error, status: "failed"}`. */
  readonly form: BodyForm;
}

/** From error code to status and form of the answer. Everything else is a 500 that tells nothing. */
const ANSWERS: Readonly<Partial<Record<ErrorCode, StatusRow>>> = {
  PATH_UNDECODABLE: { status: 400, form: "text" },
  BODY_MALFORMED: { status: 400, form: "text" },
  UNAUTHORIZED: { status: 401, form: "error" },
  STREAM_UNSUPPORTED: { status: 406, form: "error" },
  AT_CAPACITY: { status: 409, form: "refusal" },
  BODY_TOO_LARGE: { status: 413, form: "text" },
  BODY_TYPE: { status: 415, form: "text" },
  BODY_SHAPE: { status: 422, form: "text" },
  ID_MISMATCH: { status: 422, form: "detail" },
  INPUT_INVALID: { status: 422, form: "detail" },
  WEBHOOK_REFUSED: { status: 422, form: "detail" },
  STREAM_CROWDED: { status: 429, form: "error" },
  NOT_READY: { status: 503, form: "refusal" },
};

/** Cog's ten routes, and nothing else unless `routes` are given. */
export function createApp(options: AppOptions): Hono<AppEnv> {
  const app = new Hono<AppEnv>({ getPath: pathOf });
  guard(app, options);
  for (const routes of options.routes ?? []) {
    app.route("/", routes);
  }
  const { service } = options;
  app.get("/", (c) => sized(c, json(200, indexOf(service))));
  app.get("/health-check", async (c) =>
    sized(c, jsonText(200, JSON.stringify(await service.health()))),
  );
  app.get("/openapi.json", (c) =>
    sized(
      c,
      service.document === undefined
        ? json(503, { error: "OpenAPI schema not available" })
        : json(200, service.document),
    ),
  );
  app.post("/shutdown", () => {
    options.shutdown();
    return json(200, {});
  });
  for (const kind of ["prediction", "training"] as const) {
    app.post(`/${kind}s`, (c) => create(c, kind, options));
    app.put(`/${kind}s/:id`, (c) => create(c, kind, options, pathId(c)));
    // An empty id is one here, though not for PUT.
    for (const path of [`/${kind}s/:id/cancel`, `/${kind}s//cancel`]) {
      app.post(path, (c) => (service.cancel(pathId(c)) ? json(200, {}) : json(404, {})));
    }
  }
  refuseOtherMethods(app);
  app.notFound(() => new Response(null, { status: 404 }));
  app.onError((error, c) =>
    // Nobody is there to be answered, and a body that broke off is no fault of ours.
    c.req.raw.signal.aborted
      ? new Response(null, { status: 400 })
      : answerError(error, options.logger),
  );
  return app;
}

/** The path as the client sent it: nothing decoded, nothing normalised. */
function pathOf(request: Request, options?: { readonly env?: AppBindings }): string {
  if (options?.env?.path !== undefined) {
    return options.env.path;
  }
  // Without a Host header (HTTP/1.0) Bun hands over the bare path.
  const { url } = request;
  const start = url.startsWith("/") ? 0 : url.indexOf("/", url.indexOf("//") + 2);
  const end = url.search(/[?#]/);
  return url.slice(start, end < 0 ? undefined : end);
}

function guard(app: Hono<AppEnv>, options: AppOptions): void {
  if (options.tokens === undefined || options.tokens.length === 0) {
    return;
  }
  const check = new BearerCheck(options.tokens);
  const open = new Set(options.openPaths ?? DEFAULT_OPEN_PATHS);
  app.use("*", async (c, next) => {
    if (!open.has(c.req.path) && options.guardsItself?.(c.req.method, c.req.path) !== true) {
      check.require(c.req.header("authorization") ?? null);
    }
    await next();
  });
}

const ALLOWED: readonly (readonly [string, string])[] = [
  ["/", "GET,HEAD"],
  ["/health-check", "GET,HEAD"],
  ["/openapi.json", "GET,HEAD"],
  ["/shutdown", "POST"],
  ["/predictions", "POST"],
  ["/predictions/:id", "PUT"],
  ["/predictions/:id/cancel", "POST"],
  ["/predictions//cancel", "POST"],
  ["/trainings", "POST"],
  ["/trainings/:id", "PUT"],
  ["/trainings/:id/cancel", "POST"],
  ["/trainings//cancel", "POST"],
];

function refuseOtherMethods(app: Hono<AppEnv>): void {
  for (const [path, allow] of ALLOWED) {
    app.all(path, () => new Response(null, { status: 405, headers: { allow } }));
  }
}

function indexOf(service: Service): JsonObject {
  const urls = (noun: RunKind): JsonObject => ({
    [`${noun}s_url`]: `/${noun}s`,
    [`${noun}s_idempotent_url`]: `/${noun}s/{${noun}_id}`,
    [`${noun}s_cancel_url`]: `/${noun}s/{${noun}_id}/cancel`,
  });
  return {
    cog_version: COG_VERSION,
    docs_url: "/docs",
    openapi_url: "/openapi.json",
    shutdown_url: "/shutdown",
    healthcheck_url: "/health-check",
    ...urls("prediction"),
    ...(hasTrainings(service.document) ? urls("training") : {}),
  };
}

/** The id in the path, percent-decoded once. @throws InputError PATH_UNDECODABLE */
function pathId(c: CogContext): string {
  const [, , segment = ""] = c.req.path.split("/");
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(fromPercents(segment));
  } catch (cause) {
    throw new InputError("PATH_UNDECODABLE", "Invalid URL: Invalid UTF-8 in `id`", { cause });
  }
}

/** Creation in Cog's order of decisions (§4). */
async function create(
  c: CogContext,
  kind: RunKind,
  options: AppOptions,
  id?: string,
): Promise<Response> {
  const { service } = options;
  const { envelope, text } = await readBody(c);
  const isStreamed = wantsEvents(c.req.header("accept") ?? null);
  if (isStreamed && kind === "training") {
    throw new AppError(
      "STREAM_UNSUPPORTED",
      "Training endpoints do not support streaming responses.",
    );
  }
  const inFlight = id === undefined ? undefined : reattached(service, kind, id, envelope);
  if (inFlight !== undefined) {
    return answerInFlight(inFlight, isStreamed, options);
  }
  const { prediction, isNew } = await service.create({
    ...envelope,
    kind,
    id: id ?? envelope.id,
    isIdempotent: id !== undefined,
    exactInput: () => exactInput(text),
    trace: traceOf(c),
    isStreamed,
  });
  if (!isNew) {
    return answerInFlight(prediction, isStreamed, options);
  }
  if (isStreamed) {
    return stream(prediction, options);
  }
  if (c.req.header("prefer") === "respond-async") {
    return json(202, { id: prediction.id, status: "starting" });
  }
  return answerWhenFinished(prediction, c.req.raw.signal);
}

async function readBody(c: CogContext): ReturnType<typeof readEnvelope> {
  const request = c.req.raw;
  const length = Number(request.headers.get("content-length") ?? "NaN");
  if (request.headers.has("content-type")) {
    c.env?.allowSilence?.(BODY_SILENCE_SECONDS);
  }
  const result = await readEnvelope(
    request.headers.get("content-type") ?? undefined,
    length <= MAX_BODY_BYTES ? wholeBody(request) : request.body,
    length > MAX_BODY_BYTES,
  );
  c.env?.allowSilence?.(0);
  return result;
}

/** A body of known, allowed length is fastest in one piece. */
async function* wholeBody(request: Request): AsyncGenerator<Uint8Array> {
  yield await request.bytes();
}

/** The prediction that a PUT finds in flight. @throws InputError ID_MISMATCH */
function reattached(
  service: Service,
  kind: RunKind,
  id: string,
  envelope: Envelope,
): Prediction | undefined {
  if (envelope.id !== undefined && envelope.id !== id) {
    const msg = `${kind} ID must match the ID supplied in the URL`;
    throw new InputError("ID_MISMATCH", msg, {
      details: { detail: [{ loc: ["body", "id"], msg, type: "value_error" }] },
    });
  }
  return service.find(id);
}

function answerInFlight(
  prediction: Prediction,
  isStreamed: boolean,
  options: AppOptions,
): Response {
  if (isStreamed) {
    options.service.requireStreaming();
    return stream(prediction, options);
  }
  return json(202, { ...prediction.snapshot(), input: prediction.input });
}

async function answerWhenFinished(prediction: Prediction, left: AbortSignal): Promise<Response> {
  const cancel = (): void => prediction.cancel();
  left.addEventListener("abort", cancel, { once: true });
  try {
    if (left.aborted) {
      cancel();
    }
    await prediction.finished;
    return json(200, prediction.result());
  } finally {
    left.removeEventListener("abort", cancel);
  }
}

function stream(prediction: Prediction, options: AppOptions): Response {
  return new Response(eventStream(prediction.subscribe(), options.streams), {
    headers: { "content-type": "text/event-stream", "cache-control": "no-cache" },
  });
}

function traceOf(c: CogContext): Record<string, string> {
  return Object.fromEntries(
    ["traceparent", "tracestate"].flatMap((name) => {
      const value = c.req.header(name);
      return value === undefined ? [] : [[name, value]];
    }),
  );
}

function json(status: number, body: JsonObject): Response {
  return jsonText(status, writeJson(body));
}

const JSON_HEADERS = { "content-type": "application/json" };

function jsonText(status: number, text: string): Response {
  return new Response(text, { status, headers: JSON_HEADERS });
}

/** HEAD answers with the headers of GET, the length among them; for GET itself the transport counts. */
async function sized(c: CogContext, response: Response): Promise<Response> {
  if (c.req.method !== "HEAD") {
    return response;
  }
  const { byteLength } = await response.arrayBuffer();
  return new Response(null, {
    status: response.status,
    headers: { ...JSON_HEADERS, "content-length": String(byteLength) },
  });
}

function answerError(error: Error, logger: Logger): Response {
  const row = error instanceof AppError ? ANSWERS[error.code] : undefined;
  if (!(error instanceof AppError) || row === undefined) {
    const reference = crypto.randomUUID();
    logger.error(`Internal error ${reference}: ${error.message}`, { stack: error.stack });
    return json(500, { error: `Internal error ${reference}` });
  }
  return row.form === "text"
    ? new Response(error.message, {
        status: row.status,
        headers: { "content-type": "text/plain; charset=utf-8" },
      })
    : withChallenge(json(row.status, bodyOf(error, row.form)));
}

function withChallenge(response: Response): Response {
  if (response.status === 401) {
    response.headers.set("www-authenticate", "Bearer");
  }
  return response;
}

function bodyOf(error: AppError, form: BodyForm): JsonObject {
  if (form === "detail") {
    const detail = error.details["detail"] ?? [
      { loc: ["body", "webhook"], msg: error.message, type: "value_error" },
    ];
    return JSON.parse(JSON.stringify({ detail })) as JsonObject;
  }
  return form === "refusal"
    ? { error: error.message, status: "failed" }
    : { error: error.describe() };
}
