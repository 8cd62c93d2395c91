/**
 * What ComfyUI sends over HTTP, as schemas: tolerant of new members, strict in what we rely on. Python writes NaN and
 * Infinity into JSON, which no JSON parser reads: they count as null.
 */
import { z } from "zod";

const BARE_NUMBER = /([:[,]\s*)-?(?:NaN|Infinity)(?=\s*[,\]}])/g;

/** Parses JSON as Python writes it. Throws `SyntaxError`. */
export function parseWireJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (!BARE_NUMBER.test(text)) {
      throw error;
    }
    return JSON.parse(text.replace(BARE_NUMBER, "$1null"));
  }
}

export const SystemStats = z.looseObject({
  system: z.looseObject({
    comfyui_version: z.string().optional(),
    argv: z.array(z.string()).optional(),
  }),
});
export type SystemStats = z.infer<typeof SystemStats>;

/** `GET /internal/logs/raw`: the last 300 records, a record may hold several lines or a part of one. */
export const LogRecords = z.looseObject({
  entries: z.array(z.looseObject({ m: z.string().catch("") })),
});
export type LogRecords = z.infer<typeof LogRecords>;

/** `[number, prompt_id, prompt, extra_data, outputs_to_execute]`; only the id matters to us. */
const QueueItem = z.array(z.unknown()).transform((item) => String(item[1]));

export const QueueState = z.looseObject({
  queue_running: z.array(QueueItem),
  queue_pending: z.array(QueueItem),
});
export type QueueState = z.infer<typeof QueueState>;

/** One complaint about one input. `extra_info` is exact where `details` is prose. */
export const InputProblem = z.looseObject({
  type: z.string().catch("unknown"),
  message: z.string().catch(""),
  details: z.string().catch(""),
  extra_info: z.record(z.string(), z.unknown()).catch({}),
});
export type InputProblem = z.infer<typeof InputProblem>;

export const NodeProblem = z.looseObject({
  errors: z.array(InputProblem).catch([]),
  class_type: z.string().catch("?"),
  dependent_outputs: z.array(z.string()).catch([]),
});
export type NodeProblem = z.infer<typeof NodeProblem>;

/** Old versions send `[]` where there are none. */
const NodeErrors = z
  .union([z.record(z.string(), NodeProblem), z.array(z.unknown()).transform(() => ({}))])
  .optional()
  .transform((errors): Record<string, NodeProblem> => errors ?? {});

export const PromptReply = z.looseObject({
  prompt_id: z.string(),
  node_errors: NodeErrors,
});
export type PromptReply = z.infer<typeof PromptReply>;

export const PromptRefusal = z.looseObject({
  error: z.union([
    z.looseObject({
      type: z.string().catch("unknown"),
      message: z.string().catch(""),
      details: z.string().catch(""),
      extra_info: z.record(z.string(), z.unknown()).catch({}),
    }),
    z.string().transform((message) => {
      const extra: Record<string, unknown> = {};
      return { type: "unknown", message, details: "", extra_info: extra };
    }),
  ]),
  node_errors: NodeErrors,
});
export type PromptRefusal = z.infer<typeof PromptRefusal>;

/** `["execution_start", {…}]`. */
const StatusMessage = z.tuple([z.string(), z.record(z.string(), z.unknown())]);

export const HistoryEntry = z.looseObject({
  outputs: z.record(z.string(), z.record(z.string(), z.unknown()).catch({})).catch({}),
  status: z
    .looseObject({
      status_str: z.string().catch("unknown"),
      completed: z.boolean().catch(false),
      messages: z.array(StatusMessage).catch([]),
    })
    .nullish(),
  meta: z
    .record(z.string(), z.looseObject({ display_node: z.string().nullish() }).catch({}))
    .optional()
    .catch(undefined),
});
export type HistoryEntry = z.infer<typeof HistoryEntry>;

export const History = z.record(z.string(), HistoryEntry);

export const UploadReply = z.looseObject({
  name: z.string(),
  subfolder: z.string().catch(""),
});

/** What a failed node tells (comfyui.md §4.4). */
export const ExecutionErrorFacts = z.looseObject({
  node_id: z.string().catch("?"),
  node_type: z.string().catch("?"),
  exception_type: z.string().catch(""),
  exception_message: z.string().catch(""),
  traceback: z.array(z.string()).catch([]),
  current_inputs: z.record(z.string(), z.unknown()).catch({}),
});
export type ExecutionErrorFacts = z.infer<typeof ExecutionErrorFacts>;

/** The answer of `GET /internal/folder_paths`: category → folders, in search order. */
export const FolderPaths = z.record(z.string(), z.array(z.string()));
export type FolderPaths = z.output<typeof FolderPaths>;
