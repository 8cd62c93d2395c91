/**
 * Our own routes beside Cog's ten: probes for orchestrators, and questions about weights that queue nothing and need no
 * GPU. Services in, no logic.
 */
import { statSync } from "node:fs";
import { Hono } from "hono";
import type { AppEnv } from "../cog/app.ts";
import { writeJson } from "../cog/json-writer.ts";
import type { Service } from "../cog/service.ts";
import type { ModelFolders } from "../models/folders.ts";
import { AppError, InputError } from "../platform/errors.ts";
import { isJsonObject, parseJson } from "../platform/json.ts";
import type { Arrival, Arrivals } from "../weights/arrivals.ts";
import { checkDocument } from "../weights/check-document.ts";
import type { DigestBook } from "../weights/digests.ts";
import type { Manifest } from "../weights/manifest.ts";
import type { Pins } from "../weights/pins.ts";
import type { Trust } from "../weights/plan-types.ts";
import type { Validation, WeightRef } from "../weights/refs.ts";
import type { Resolution } from "../weights/resolve.ts";
import { presentWeights } from "../weights/verify-present.ts";
import type { Workflow } from "../workflow/graph.ts";
import type { Obstacle } from "../workflow/obstacles.ts";

/** What these routes ask; the root classes have it. */
export interface RouteServices {
  readonly service: Service;
  /** `READY_REQUIRES_WEIGHTS`. */
  readonly readyRequiresWeights?: boolean;
  readonly predictor: {
    /** The only workflow, where one is served. */
    readonly servedWorkflow: Workflow | undefined;
    readonly weights: {
      readonly manifest: Manifest;
      readonly folders: ModelFolders;
      readonly arrivals: Pick<Arrivals, "list" | "isComplete">;
      readonly digests: Pick<DigestBook, "known">;
      readonly pins: Pick<Pins, "reasons">;
      used_at(file: string): Date | undefined;
      resolve(wanted: WeightRef, trust: Trust): Resolution;
    };
    readonly comfyui: {
      load_workflow(given: string, options: { readonly allowUnnamed: boolean }): Promise<Workflow>;
      find_weights(workflow: Workflow): WeightRef[];
      check_weights(workflow: Workflow): Validation;
      find_obstacles(workflow: Workflow, refs: WeightRef[]): Obstacle[];
    };
  };
}

/** A workflow is never larger; a picture with one goes by URL. */
const MAX_CHECK_BYTES = 64 * 2 ** 20;

export function ownRoutes(services: RouteServices): Hono<AppEnv>[] {
  return [probeRoutes(services), weightRoutes(services)];
}

/** `/livez`, `/readyz`, `/ping`: status codes for probes, where `/health-check` always answers 200. */
function probeRoutes({ service, predictor, readyRequiresWeights }: RouteServices): Hono<AppEnv> {
  const routes = new Hono<AppEnv>();
  const readiness = (): Response => {
    const status = service.status();
    const { arrivals } = predictor.weights;
    const isServing = status === "READY" || status === "BUSY";
    const isReady = isServing && (readyRequiresWeights !== true || arrivals.isComplete);
    const outstanding = arrivals.list().filter(({ state }) => state !== "present");
    return json(
      { status, ...(outstanding.length === 0 ? {} : { weights: outstanding.map(arrivalRow) }) },
      isReady ? 200 : 503,
    );
  };
  routes.get("/readyz", readiness);
  routes.get("/ping", readiness);
  routes.get("/livez", () => {
    const status = service.status();
    // A failed setup never heals by itself: the orchestrator is to replace the pod.
    return Response.json({ status }, { status: status === "SETUP_FAILED" ? 503 : 200 });
  });
  return routes;
}

/** `GET /weights`: what is here. `POST /weights/check`: what a workflow needs, as `weights check --json` says it. */
function weightRoutes({ predictor }: RouteServices): Hono<AppEnv> {
  const routes = new Hono<AppEnv>();
  routes.get("/weights", () => {
    const { weights } = predictor;
    const present = presentWeights(weights.folders).map(({ category, name, file }) => ({
      category,
      name,
      state: "present",
      size: statSync(file, { throwIfNoEntry: false })?.size ?? null,
      sha256: weights.digests.known(file) ?? null,
      pins: weights.pins.reasons(file),
      last_used: weights.used_at(file)?.toISOString() ?? null,
    }));
    const outstanding = weights.arrivals.list().filter(({ state }) => state !== "present");
    return json({ weights: [...present, ...outstanding.map(arrivalRow)] });
  });
  routes.post("/weights/check", async (context) => {
    try {
      const body = await context.req.text();
      const { comfyui, weights } = predictor;
      const workflow =
        predictor.servedWorkflow ??
        (await comfyui.load_workflow(workflowIn(body), { allowUnnamed: true }));
      const refs = comfyui.find_weights(workflow);
      const found = {
        refs,
        validation: comfyui.check_weights(workflow),
        obstacles: comfyui.find_obstacles(workflow, refs),
      };
      const resolve = (ref: WeightRef) => weights.resolve(ref, "request");
      return json(checkDocument(found, resolve, { manifest: weights.manifest }));
    } catch (error) {
      if (error instanceof AppError) {
        return json({ error: error.toJSON() }, 422);
      }
      throw error;
    }
  });
  return routes;
}

/** A preloaded weight that is not there yet. */
function arrivalRow(arrival: Arrival): Record<string, unknown> {
  const { name, category, state, doneBytes, totalBytes, error } = arrival;
  return {
    category,
    name,
    state,
    size: totalBytes ?? null,
    ...(doneBytes === undefined ? {} : { done_bytes: doneBytes }),
    ...(error === undefined ? {} : { error }),
  };
}

/** The workflow itself, or `{"workflow_json": "…"}` as in a prediction's input. */
function workflowIn(body: string): string {
  if (body.length > MAX_CHECK_BYTES) {
    throw new InputError("WORKFLOW_UNREADABLE", "The workflow is too large");
  }
  try {
    const value = parseJson(body);
    const input = isJsonObject(value) ? value["workflow_json"] : undefined;
    return typeof input === "string" ? input : body;
  } catch {
    return body;
  }
}

function json(document: unknown, status = 200): Response {
  return new Response(writeJson(document), {
    status,
    headers: { "content-type": "application/json" },
  });
}
