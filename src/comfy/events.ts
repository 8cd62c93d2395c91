/**
 * ComfyUI's WebSocket: its messages as a union, and a connection that notices when the peer is gone. Events only say
 * when to look: they may be lost, doubled or late, and what counts in the end is the history (`run.ts`).
 */
import { z } from "zod";
import type { Logger } from "../platform/log.ts";
import { ExecutionErrorFacts, parseWireJson } from "./wire.ts";

const promptId = z.string().optional();
const nodeId = z.string();

const NodeState = z.looseObject({
  value: z.number().catch(0),
  max: z.number().catch(1),
  state: z.string().catch(""),
  display_node_id: z.string().nullish(),
});

function message<T extends string, S extends z.ZodRawShape>(type: T, data: S) {
  return z.object({ type: z.literal(type), data: z.looseObject(data) });
}

/** The messages we act on. Anything else is legal and ignored: node packs send their own. */
const Message = z.discriminatedUnion("type", [
  message("status", {
    status: z.looseObject({ exec_info: z.looseObject({ queue_remaining: z.number() }) }).optional(),
    sid: z.string().optional(),
  }),
  message("execution_start", { prompt_id: promptId }),
  message("execution_cached", { prompt_id: promptId, nodes: z.array(nodeId).catch([]) }),
  message("progress_state", { prompt_id: promptId, nodes: z.record(nodeId, NodeState).catch({}) }),
  message("executing", {
    // A socket that reconnects is told the running node without its prompt.
    prompt_id: promptId,
    node: nodeId.nullish(),
    display_node: nodeId.nullish(),
  }),
  message("progress", {
    prompt_id: promptId,
    node: nodeId.nullish(),
    value: z.number(),
    max: z.number(),
  }),
  message("executed", {
    prompt_id: promptId,
    node: nodeId,
    display_node: nodeId.nullish(),
    output: z.record(z.string(), z.unknown()).nullish(),
  }),
  message("execution_success", { prompt_id: promptId }),
  z.object({
    type: z.literal("execution_error"),
    data: ExecutionErrorFacts.extend({ prompt_id: promptId }),
  }),
  message("execution_interrupted", { prompt_id: promptId }),
]);

/** A picture of the latent while it is sampled. */
export interface PreviewEvent {
  readonly type: "preview";
  readonly mime: "image/jpeg" | "image/png";
  readonly image: Uint8Array;
  readonly nodeId: string | undefined;
  readonly promptId: string | undefined;
}

/** Text that a node shows while it runs. */
export interface TextEvent {
  readonly type: "text";
  readonly nodeId: string;
  readonly text: string;
}

export type ComfyEvent = z.infer<typeof Message> | PreviewEvent | TextEvent;

/** Reads a text frame; undefined for messages nobody here knows. */
export function parseMessage(text: string): ComfyEvent | undefined {
  try {
    const parsed = Message.safeParse(parseWireJson(text));
    return parsed.success ? parsed.data : undefined;
  } catch {
    // Not JSON: no message of ComfyUI's.
    return undefined;
  }
}

const PREVIEW = 1;
const TEXT = 3;
const PREVIEW_WITH_METADATA = 4;
const PNG_FORMAT = 2;

const PreviewMetadata = z.looseObject({
  node_id: z.string().optional(),
  display_node_id: z.string().nullish(),
  prompt_id: z.string().optional(),
  image_type: z.string().optional(),
});

/** Reads a binary frame (comfyui.md §3.4); undefined when it is none we know or is cut. */
export function parseFrame(frame: Uint8Array): PreviewEvent | TextEvent | undefined {
  if (frame.byteLength < 8) {
    return undefined;
  }
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength);
  const second = bytes.readUInt32BE(4);
  switch (bytes.readUInt32BE(0)) {
    case PREVIEW:
      return {
        type: "preview",
        mime: second === PNG_FORMAT ? "image/png" : "image/jpeg",
        image: bytes.subarray(8),
        nodeId: undefined,
        promptId: undefined,
      };
    case TEXT:
      return second + 8 > bytes.length
        ? undefined
        : {
            type: "text",
            nodeId: bytes.toString("utf8", 8, 8 + second),
            text: bytes.toString("utf8", 8 + second),
          };
    case PREVIEW_WITH_METADATA:
      return second + 8 > bytes.length ? undefined : previewWithMetadata(bytes, second);
    default:
      return undefined;
  }
}

function parseBinary(data: unknown): ComfyEvent | undefined {
  return data instanceof ArrayBuffer ? parseFrame(new Uint8Array(data)) : undefined;
}

function previewWithMetadata(bytes: Buffer, length: number): PreviewEvent | undefined {
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString("utf8", 8, 8 + length));
  } catch {
    return undefined;
  }
  const metadata = PreviewMetadata.safeParse(json);
  if (!metadata.success) {
    return undefined;
  }
  const { display_node_id, node_id, prompt_id, image_type } = metadata.data;
  return {
    type: "preview",
    mime: image_type === "image/png" ? "image/png" : "image/jpeg",
    image: bytes.subarray(8 + length),
    nodeId: display_node_id ?? node_id,
    promptId: prompt_id,
  };
}

export interface EventTimes {
  /** A connection that is not open by then is given up and tried again. */
  readonly connectTimeoutMs: number;
  /** Silence after which the peer is pinged. */
  readonly heartbeatMs: number;
  /** Silence after a ping that counts as death. Importing or loading can block ComfyUI's loop for a while. */
  readonly pongTimeoutMs: number;
  readonly reconnectDelayMs: number;
}

export const DEFAULT_EVENT_TIMES: EventTimes = {
  connectTimeoutMs: 10_000,
  heartbeatMs: 10_000,
  pongTimeoutMs: 30_000,
  reconnectDelayMs: 500,
};

export interface EventStreamOptions {
  /** `http://…` address of the engine. */
  readonly url: string;
  readonly clientId: string;
  readonly onEvent: (event: ComfyEvent) => void;
  /** The connection is up: the first time, or again after a gap in which events were lost. */
  readonly onOpen: (isReconnect: boolean) => void;
  readonly wantsPreviews?: boolean | undefined;
  readonly times?: Partial<EventTimes> | undefined;
  readonly log: Logger;
}

/** Keeps one WebSocket open until disposed. Never throws: without events the history is still there. */
export class EventStream implements Disposable {
  readonly #options: EventStreamOptions;
  readonly #times: EventTimes;
  readonly #greeted = Promise.withResolvers<boolean>();
  #socket: WebSocket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isClosed = false;
  #opened = 0;

  constructor(options: EventStreamOptions) {
    this.#options = options;
    this.#times = { ...DEFAULT_EVENT_TIMES, ...options.times };
    this.#connect();
  }

  /**
   * Resolves to true when ComfyUI sent its first message (only then is the client registered), to false when
   * the first connection fails, or after `timeoutMs` without one.
   */
  async greeted(timeoutMs: number): Promise<boolean> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<boolean>((resolve) => {
      timer = setTimeout(resolve, timeoutMs, false);
    });
    try {
      return await Promise.race([this.#greeted.promise, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#greeted.resolve(false);
    this.#drop();
  }

  #connect(): void {
    const address = new URL(`${this.#options.url}/ws`);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.searchParams.set("clientId", this.#options.clientId);
    const socket = new WebSocket(address.href);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#expect(this.#times.connectTimeoutMs, () => this.#lost(socket, "no connection in time"));
    const mine = (act: () => void) => () => {
      if (socket === this.#socket && !this.#isClosed) {
        act();
      }
    };
    socket.addEventListener(
      "open",
      mine(() => this.#isUp(socket)),
    );
    socket.addEventListener(
      "pong",
      mine(() => this.#alive(socket)),
    );
    socket.addEventListener(
      "close",
      mine(() => this.#lost(socket, "closed")),
    );
    socket.addEventListener(
      "error",
      mine(() => this.#lost(socket, "failed")),
    );
    socket.addEventListener("message", ({ data }: MessageEvent<unknown>) => {
      if (socket === this.#socket && !this.#isClosed) {
        this.#alive(socket);
        this.#receive(data);
      }
    });
  }

  #isUp(socket: WebSocket): void {
    this.#opened += 1;
    // The first text must be this one, or the flags are never read.
    socket.send(
      JSON.stringify({
        type: "feature_flags",
        data: { supports_preview_metadata: this.#options.wantsPreviews === true },
      }),
    );
    this.#alive(socket);
    this.#options.onOpen(this.#opened > 1);
  }

  #receive(data: unknown): void {
    this.#greeted.resolve(true);
    const event = typeof data === "string" ? parseMessage(data) : parseBinary(data);
    if (event !== undefined) {
      this.#options.onEvent(event);
    }
  }

  /** Bun raises no event when a peer freezes or a cable is cut: silence is answered by a ping, then by a new socket. */
  #alive(socket: WebSocket): void {
    this.#expect(this.#times.heartbeatMs, () => {
      socket.ping();
      this.#expect(this.#times.pongTimeoutMs, () => this.#lost(socket, "silent"));
    });
  }

  #lost(socket: WebSocket, how: string): void {
    if (socket !== this.#socket || this.#isClosed) {
      return;
    }
    this.#options.log.debug("ComfyUI's event connection is lost", { how });
    this.#drop();
    this.#greeted.resolve(false);
    this.#expect(this.#times.reconnectDelayMs, () => this.#connect());
  }

  #expect(ms: number, then: () => void): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, ms);
  }

  #drop(): void {
    const socket = this.#socket;
    this.#socket = undefined;
    // `close` waits for the peer's answer, which a frozen one never gives.
    socket?.terminate();
  }
}
