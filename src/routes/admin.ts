/**
 * Routes that change weights: pull, verify, delete. They exist only where the operator set `ADMIN_TOKEN`, take no other
 * token, and refuse what another site's page makes a browser send.
 */
import { Hono } from "hono";
import type { AppEnv, CogContext } from "../cog/app.ts";
import { BearerCheck } from "../cog/auth.ts";
import { writeJson } from "../cog/json-writer.ts";
import { wantsEvents } from "../cog/sse.ts";
import type { ErrorCode } from "../platform/errors.ts";
import { AppError, InputError } from "../platform/errors.ts";
import { isJsonObject, parseJson } from "../platform/json.ts";
import { within } from "../platform/retry.ts";
import type { InstallOptions } from "../weights/install.ts";
import type { InstalledWeight, InstallJob } from "../weights/plan-types.ts";
import type { Tasks, TaskView } from "../weights/tasks.ts";
import type { PresentWeights } from "../weights/verify-present.ts";
import { verifyPresent } from "../weights/verify-present.ts";

/** What these routes ask; the root classes have it. */
export interface AdminServices {
  readonly tokens: readonly string[];
  readonly tasks: Tasks;
  readonly weights: PresentWeights & {
    install(jobs: readonly InstallJob[], options?: InstallOptions): Promise<InstalledWeight[]>;
    /** @throws WeightError CONFLICT naming who needs it, NOT_FOUND */
    remove(category: string, name: string): { readonly file: string; readonly freed: boolean };
  };
  /** What installs a name, `category/name`, a kit, or what a workflow at an address lacks. */
  jobsFor(targets: readonly string[], signal: AbortSignal): Promise<readonly InstallJob[]>;
}

const MAX_BODY_BYTES = 2 ** 20;
const KEEP_ALIVE_MS = 15_000;
/** Progress comes by the block; a reader needs a few lines a second. */
const EVENT_PAUSE_MS = 200;

const STATUS: Readonly<Partial<Record<ErrorCode, number>>> = {
  UNAUTHORIZED: 401,
  NOT_FOUND: 404,
  WEIGHT_UNKNOWN: 404,
  KIT_UNKNOWN: 404,
  CONFLICT: 409,
  INPUT_INVALID: 422,
  WORKFLOW_INVALID: 422,
  WEIGHTS_MISSING: 422,
};

/** True for a request that is guarded here, and so needs no client's token. */
export function isAdminRequest(method: string, path: string): boolean {
  return (
    /^\/weights\/(pull|verify)(\/|$)/.test(path) ||
    (method === "DELETE" && path.startsWith("/weights/"))
  );
}

export function adminRoutes(services: AdminServices): Hono<AppEnv> {
  const routes = new Hono<AppEnv>();
  const { tasks, weights } = services;
  const guarded =
    (handle: (context: CogContext) => Promise<Response> | Response) =>
    async (context: CogContext): Promise<Response> => {
      try {
        return refusal(context, services.tokens) ?? (await handle(context));
      } catch (error) {
        if (error instanceof AppError) {
          return json({ error: error.toJSON() }, STATUS[error.code] ?? 422);
        }
        throw error;
      }
    };
  routes.post(
    "/weights/pull",
    guarded(async (context) => {
      const targets = await targetsIn(context);
      if (targets.length === 0) {
        throw new InputError("INPUT_INVALID", "Name what to pull", {
          hint: 'Send {"weights": ["sdxl", "loras/mine.safetensors", "https://…/workflow.json"]}.',
        });
      }
      // Names that nothing knows are told at once; what takes time happens afterwards.
      const jobs = await services.jobsFor(targets, context.req.raw.signal);
      return accepted(tasks.start("pull", (task) => weights.install(jobs, task)));
    }),
  );
  routes.post(
    "/weights/verify",
    guarded(async (context) => {
      const targets = await targetsIn(context);
      return accepted(
        tasks.start("verify", ({ signal }) =>
          Array.fromAsync(verifyPresent(weights, targets, signal)),
        ),
      );
    }),
  );
  for (const kind of ["pull", "verify"] as const) {
    routes.get(
      `/weights/${kind}`,
      guarded(() => json({ tasks: tasks.list().filter((task) => task.kind === kind) })),
    );
    routes.get(
      `/weights/${kind}/:id`,
      guarded((context) => show(context, tasks, kind)),
    );
    routes.post(
      `/weights/${kind}/:id/cancel`,
      guarded((context) => {
        const known = tasks.get(context.req.param("id") ?? "");
        return known?.kind === kind && tasks.cancel(known.id) ? json({}) : json({}, 404);
      }),
    );
  }
  routes.delete(
    "/weights/:category/:name{.+}",
    guarded((context) => {
      const category = context.req.param("category") ?? "";
      const name = context.req.param("name") ?? "";
      return json(weights.remove(category, name));
    }),
  );
  return routes;
}

/** Nothing here without a token of the operator's; nothing that a page of another site set off. */
function refusal(context: CogContext, tokens: readonly string[]): Response | undefined {
  if (tokens.length === 0) {
    return new Response(null, { status: 404 });
  }
  if (isCrossSite(context)) {
    return json(
      { error: { code: "UNAUTHORIZED", message: "A page of another site can't change weights" } },
      403,
    );
  }
  new BearerCheck(tokens, "ADMIN_TOKEN").require(context.req.header("authorization") ?? null);
  return undefined;
}

function isCrossSite(context: CogContext): boolean {
  const site = context.req.header("sec-fetch-site");
  if (site !== undefined && site !== "same-origin" && site !== "none") {
    return true;
  }
  const origin = context.req.header("origin");
  if (origin === undefined) {
    return false;
  }
  return !URL.canParse(origin) || new URL(origin).host !== context.req.header("host");
}

async function targetsIn(context: CogContext): Promise<string[]> {
  const text = await context.req.text();
  if (text.length > MAX_BODY_BYTES) {
    throw new InputError("INPUT_INVALID", "The request is too long");
  }
  let body: unknown;
  try {
    body = text.trim() === "" ? {} : parseJson(text);
  } catch (cause) {
    throw new InputError("INPUT_INVALID", "The request is not JSON", { cause });
  }
  const given = isJsonObject(body) ? (body["weights"] ?? []) : undefined;
  if (!Array.isArray(given) || !given.every((one) => typeof one === "string")) {
    throw new InputError("INPUT_INVALID", 'The request must be {"weights": ["NAME", …]}');
  }
  return given;
}

function accepted(task: TaskView): Response {
  return json({ ...document(task), url: `/weights/${task.kind}/${task.id}` }, 202);
}

function show(context: CogContext, tasks: Tasks, kind: TaskView["kind"]): Response {
  const task = tasks.get(context.req.param("id") ?? "");
  if (task === undefined || task.kind !== kind) {
    return json({}, 404);
  }
  if (!wantsEvents(context.req.header("accept") ?? null)) {
    return json(document(task));
  }
  context.env.allowSilence?.(0);
  return new Response(events(tasks.watch(task.id)), {
    headers: { "content-type": "text/event-stream", "cache-control": "no-cache" },
  });
}

function events(views: AsyncGenerator<TaskView>): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let pending: Promise<IteratorResult<TaskView>> | undefined;
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        pending ??= views.next();
        if (!(await within(pending, KEEP_ALIVE_MS))) {
          controller.enqueue(encoder.encode(": keep-alive\n\n"));
          return;
        }
        const { done, value } = await pending;
        pending = undefined;
        if (done === true) {
          controller.close();
          return;
        }
        const name = value.state === "running" ? "progress" : "completed";
        const text = `event: ${name}\ndata: ${writeJson(document(value))}\n\n`;
        controller.enqueue(encoder.encode(text));
        if (name === "progress") {
          await Bun.sleep(EVENT_PAUSE_MS);
        }
      },
      async cancel() {
        await views.return(undefined);
      },
    },
    { highWaterMark: 0 },
  );
}

/** As outsiders read it. */
function document(task: TaskView): Record<string, unknown> {
  return {
    id: task.id,
    kind: task.kind,
    state: task.state,
    started_at: task.startedAt,
    finished_at: task.finishedAt,
    progress: task.progress.map((one) => ({
      name: one.name,
      phase: one.phase,
      done_bytes: one.doneBytes,
      total_bytes: one.totalBytes ?? null,
      eta_seconds: one.etaSeconds ?? null,
    })),
    result: task.result,
    error: task.error,
  };
}

function json(body: unknown, status = 200): Response {
  return new Response(writeJson(body), {
    status,
    headers: { "content-type": "application/json" },
  });
}
