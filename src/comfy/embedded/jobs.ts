/** Prompts as `/api/jobs` tells of them: waiting, running and past ones in one list. */
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";
import type { Job } from "./executor.ts";
import type { FinishedJob, PromptQueue } from "./queue.ts";

const STATUSES = ["pending", "in_progress", "completed", "failed", "cancelled"] as const;
type JobStatus = (typeof STATUSES)[number];

interface Listed {
  readonly status: JobStatus;
  readonly job: Job;
  readonly finished?: FinishedJob;
}

interface Message {
  readonly type: string;
  readonly data: JsonObject;
}

function messagesOf(finished: FinishedJob | undefined): Message[] {
  const messages = finished?.result.status["messages"];
  return (Array.isArray(messages) ? messages : []).flatMap((message) => {
    const [type, data] = Array.isArray(message) ? message : [];
    return typeof type === "string" && isJsonObject(data) ? [{ type, data }] : [];
  });
}

function statusOf(finished: FinishedJob): JobStatus {
  const types = messagesOf(finished).map(({ type }) => type);
  if (types.includes("execution_interrupted")) {
    return "cancelled";
  }
  return finished.result.status["status_str"] === "success" ? "completed" : "failed";
}

function listed(queue: PromptQueue): Listed[] {
  return [
    ...queue.pending.map((job): Listed => ({ status: "pending", job })),
    ...(queue.running === undefined
      ? []
      : [{ status: "in_progress", job: queue.running } satisfies Listed]),
    ...queue
      .allFinished()
      .map((finished): Listed => ({ status: statusOf(finished), job: finished.job, finished })),
  ];
}

/** Kinds of output that a page can show. */
const PREVIEWABLE = new Set(["images", "video", "audio", "3d", "text", "gifs"]);

function outputFacts(outputs: JsonObject): JsonObject {
  const found = Object.entries(outputs).flatMap(([nodeId, ui]) =>
    Object.entries(isJsonObject(ui) ? ui : {}).flatMap(([mediaType, items]) =>
      (Array.isArray(items) ? items : []).map((item) => ({ nodeId, mediaType, item })),
    ),
  );
  const files = found.flatMap(({ nodeId, mediaType, item }) =>
    isJsonObject(item) && typeof item["filename"] === "string" ? [{ nodeId, mediaType, item }] : [],
  );
  const shown = files.filter(({ mediaType }) => PREVIEWABLE.has(mediaType));
  // Saved files are shown rather than temporary ones.
  const best = shown.find(({ item }) => item["type"] === "output") ?? shown[0];
  const text = found.find(
    ({ mediaType, item }) => mediaType === "text" && typeof item === "string",
  );
  return {
    outputs_count: files.length,
    previewable_outputs_count: shown.length,
    ...previewOf(best, text),
  };
}

interface Found {
  readonly nodeId: string;
  readonly mediaType: string;
  readonly item: JsonValue;
}

function previewOf(best: Found | undefined, text: Found | undefined): JsonObject {
  if (best !== undefined && isJsonObject(best.item)) {
    const { nodeId, mediaType } = best;
    return { preview_output: { ...best.item, nodeId, mediaType } };
  }
  return text === undefined
    ? {}
    : { preview_output: { content: text.item, nodeId: text.nodeId, mediaType: text.mediaType } };
}

function timeOf(messages: readonly Message[], pattern: RegExp): JsonValue | undefined {
  return messages.find(({ type }) => pattern.test(type))?.data["timestamp"];
}

function describe({ status, job, finished }: Listed): JsonObject {
  const messages = messagesOf(finished);
  const failure = messages.find(({ type }) => type === "execution_error")?.data;
  const times: readonly (readonly [string, JsonValue | undefined])[] = [
    ["create_time", job.extraData["create_time"]],
    ["execution_start_time", timeOf(messages, /^execution_start$/)],
    ["execution_end_time", timeOf(messages, /^execution_(?:success|error|interrupted)$/)],
    ["execution_error", status === "failed" ? failure : undefined],
  ];
  return {
    id: job.promptId,
    status,
    priority: job.number,
    ...Object.fromEntries(
      times.flatMap(([name, value]) => (value === undefined ? [] : [[name, value] as const])),
    ),
    ...outputFacts(finished?.result.outputs ?? {}),
  };
}

function numberOf(value: JsonValue | undefined): number {
  return typeof value === "number" ? value : 0;
}

function duration(job: JsonObject): number {
  return numberOf(job["execution_end_time"]) - numberOf(job["execution_start_time"]);
}

/** `GET /api/jobs`. */
export function listJobs(queue: PromptQueue, query: URLSearchParams): JsonObject {
  const wanted = query.get("status")?.split(",");
  const byTime = (job: JsonObject) =>
    query.get("sort_by") === "execution_duration" ? duration(job) : numberOf(job["create_time"]);
  const direction = query.get("sort_order") === "asc" ? 1 : -1;
  const jobs = listed(queue)
    .filter(({ status }) => wanted?.includes(status) ?? true)
    .map(describe)
    .reverse()
    .sort((a, b) => direction * (byTime(a) - byTime(b)));
  const offset = Math.max(0, Number(query.get("offset") ?? 0) || 0);
  const limit = query.has("limit") ? Math.max(0, Number(query.get("limit")) || 0) : undefined;
  const part = jobs.slice(offset, limit === undefined ? undefined : offset + limit);
  return {
    jobs: part,
    pagination: {
      offset,
      limit: limit ?? null,
      total: jobs.length,
      has_more: offset + part.length < jobs.length,
    },
  };
}

/** `GET /api/jobs/{id}`; undefined for an unknown one. */
export function jobDetails(queue: PromptQueue, promptId: string): JsonObject | undefined {
  const found = listed(queue).find(({ job }) => job.promptId === promptId);
  if (found === undefined) {
    return undefined;
  }
  const { job, finished } = found;
  return {
    ...describe(found),
    outputs: finished?.result.outputs ?? {},
    ...(finished === undefined ? {} : { execution_status: finished.result.status }),
    workflow: { prompt: job.prompt, extra_data: job.extraData },
  };
}
