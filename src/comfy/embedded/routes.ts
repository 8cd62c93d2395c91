/** ComfyUI's routes, as tables. */
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
import { bare, json } from "./replies.ts";
import type { Routes } from "./router.ts";

const WELCOME =
  "<!doctype html><title>embedded engine</title><p>This is the embedded engine of cog-comfyui. It speaks ComfyUI's API and has no page of its own.";

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
  const number = Number.parseInt(query.get(name) ?? "", 10);
  return number >= 0 ? number : undefined;
}

function isNew(engine: EmbeddedEngine): boolean {
  return engine.settings.compat === "0.33.0";
}

function promptRoutes(engine: EmbeddedEngine): Routes {
  const { queue } = engine;
  return {
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
      if ((await objectBody(request))["free_memory"] === true) {
        engine.free();
      }
      return bare(200);
    },
  };
}

function historyRoutes({ queue }: EmbeddedEngine): Routes {
  return {
    "GET /history": ({ query }) => {
      const range = {
        maxItems: numberIn(query, "max_items"),
        offset: numberIn(query, "offset"),
      };
      return json(queue.history(range));
    },
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
  };
}

function fileRoutes({ settings }: EmbeddedEngine): Routes {
  const { folders, compat } = settings;
  return {
    "GET /view": ({ query }) => viewFile(folders, query, compat),
    "POST /upload/image": async ({ request }) => uploadImage(folders, await request.formData()),
    "POST /upload/mask": async ({ request }) => uploadMask(folders, await request.formData()),
  };
}

function infoRoutes(engine: EmbeddedEngine, argv: readonly string[]): Routes {
  const { folders } = engine.settings;
  return {
    "GET /": () => new Response(WELCOME, { headers: { "content-type": "text/html" } }),
    "GET /system_stats": () => systemStats(engine, argv),
    "GET /features": () => json(engine.features()),
    "GET /object_info": () => objectInfo(engine),
    "GET /object_info/*": ({ parts }) => objectInfo(engine, parts[0]),
    "GET /models": () => json(folders.categories()),
    "GET /models/*": ({ parts }) => modelNames(folders, parts[0] ?? ""),
    "GET /experiment/models": () => experimentModels(folders, isNew(engine)),
    "GET /experiment/models/*": ({ parts }) => experimentModelFiles(folders, parts[0] ?? ""),
    "GET /view_metadata/*": ({ parts, query }) =>
      viewMetadata(folders, parts[0] ?? "", query.get("filename") ?? ""),
    "GET /embeddings": () => embeddingNames(folders),
    "GET /extensions": () => json([]),
    "GET /workflow_templates": () => json({}),
    "GET /i18n": () => json({}),
    "GET /users": () => json({ storage: "server", migrated: false }),
    "GET /settings": () => json({}),
    ...(isNew(engine)
      ? { "GET /node_replacements": () => json({}), "GET /global_subgraphs": () => json({}) }
      : {}),
  };
}

/** Routes that exist both as `/x` and as `/api/x`. */
export function commonRoutes(engine: EmbeddedEngine, argv: readonly string[]): Routes {
  return {
    ...promptRoutes(engine),
    ...historyRoutes(engine),
    ...fileRoutes(engine),
    ...infoRoutes(engine, argv),
  };
}

function internalRoutes(engine: EmbeddedEngine, logs: LogRing): Routes {
  const { folders } = engine.settings;
  return {
    "GET /internal/folder_paths": () => folderPaths(folders),
    "GET /internal/files/*": ({ parts: [area] }) =>
      area === "input" || area === "output" || area === "temp"
        ? internalFiles(folders, area, isNew(engine))
        : bare(400),
    "GET /internal/logs": () => json(logs.text()),
    "GET /internal/logs/raw": () => json({ entries: logs.entries(), size: { cols: 80, rows: 24 } }),
    "PATCH /internal/logs/subscribe": async ({ request }) => {
      const { clientId, enabled } = await objectBody(request);
      logs.subscribe(String(clientId), enabled === true);
      return bare(200);
    },
  };
}

function jobRoutes(engine: EmbeddedEngine): Routes {
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
      return Array.isArray(ids) && invalid.length === 0
        ? json({ cancelled: list.filter((id) => cancel(String(id))) })
        : json({ error: "Invalid job ids", invalid_ids: invalid }, 400);
    },
  };
}

/** Routes with one spelling only: `/internal/*`, and the newer ones under `/api`. */
export function singleRoutes(engine: EmbeddedEngine, logs: LogRing): Routes {
  return { ...internalRoutes(engine, logs), ...(isNew(engine) ? jobRoutes(engine) : {}) };
}
