/** The WebSocket side: one socket for each client id, messages to one or to all, binary frames. */
import type { ServerWebSocket } from "bun";
import type { JsonObject } from "../../platform/json.ts";
import { isJsonObject, stringifyJson } from "../../platform/json.ts";
import type { EventSink } from "./events.ts";

export interface SocketData {
  readonly clientId: string;
}

type Socket = ServerWebSocket<SocketData>;

/** Event codes of binary frames. */
const PREVIEW_IMAGE = 1;
const TEXT = 3;
const PREVIEW_IMAGE_WITH_METADATA = 4;
/** Image format code of event 1. */
const FORMAT_PNG = 2;

function frame(code: number, ...parts: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat([word(code), ...parts]);
}

function word(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  return bytes;
}

export interface HubOptions {
  readonly features: JsonObject;
  queueRemaining(): number;
  /** The client whose prompt runs, and the node it is at. */
  current(): { clientId: string | undefined; nodeId: string | undefined };
}

export class SocketHub implements EventSink {
  readonly #options: HubOptions;
  readonly #sockets = new Map<string, Socket>();
  /** What each client said it understands, in its first message. */
  readonly #features = new Map<string, JsonObject>();
  readonly #greeted = new WeakSet<Socket>();

  constructor(options: HubOptions) {
    this.#options = options;
  }

  status(clientId?: string): JsonObject {
    return {
      status: { exec_info: { queue_remaining: this.#options.queueRemaining() } },
      ...(clientId === undefined ? {} : { sid: clientId }),
    };
  }

  open(socket: Socket): void {
    const { clientId } = socket.data;
    this.#sockets.set(clientId, socket);
    this.#post(socket, "status", this.status(clientId));
    const running = this.#options.current();
    if (running.clientId === clientId && running.nodeId !== undefined) {
      this.#post(socket, "executing", { node: running.nodeId });
    }
  }

  message(socket: Socket, text: string): void {
    if (this.#greeted.has(socket)) {
      return;
    }
    this.#greeted.add(socket);
    let parsed: unknown;
    try {
      parsed = JSON.parse(text);
    } catch {
      return;
    }
    if (isJsonObject(parsed) && parsed["type"] === "feature_flags") {
      const { data } = parsed;
      this.#features.set(socket.data.clientId, isJsonObject(data) ? data : {});
      this.#post(socket, "feature_flags", this.#options.features);
    }
  }

  /** As in ComfyUI: whichever socket of an id closes, the id is no longer reachable. */
  close(socket: Socket): void {
    this.#sockets.delete(socket.data.clientId);
    this.#features.delete(socket.data.clientId);
  }

  closeAll(): void {
    for (const socket of this.#sockets.values()) {
      socket.close(1001, "server stops");
    }
  }

  send(type: string, data: JsonObject, clientId: string | undefined): void {
    for (const socket of this.#targets(clientId)) {
      this.#post(socket, type, data);
    }
  }

  wantsMetadata(clientId: string | undefined): boolean {
    return this.#features.get(clientId ?? "")?.["supports_preview_metadata"] === true;
  }

  preview(
    png: Uint8Array,
    { nodeId, promptId }: { nodeId: string; promptId: string },
    clientId: string | undefined,
  ): void {
    const metadata = Buffer.from(
      JSON.stringify({
        node_id: nodeId,
        prompt_id: promptId,
        display_node_id: nodeId,
        parent_node_id: null,
        real_node_id: nodeId,
        image_type: "image/png",
      }),
    );
    const bytes = this.wantsMetadata(clientId)
      ? frame(PREVIEW_IMAGE_WITH_METADATA, word(metadata.length), metadata, png)
      : frame(PREVIEW_IMAGE, word(FORMAT_PNG), png);
    for (const socket of this.#targets(clientId)) {
      socket.sendBinary(bytes);
    }
  }

  text(nodeId: string, text: string, clientId: string | undefined): void {
    const id = Buffer.from(nodeId);
    const bytes = frame(TEXT, word(id.length), id, Buffer.from(text));
    for (const socket of this.#targets(clientId)) {
      socket.sendBinary(bytes);
    }
  }

  #targets(clientId: string | undefined): Iterable<Socket> {
    if (clientId === undefined) {
      return this.#sockets.values();
    }
    const socket = this.#sockets.get(clientId);
    return socket === undefined ? [] : [socket];
  }

  #post(socket: Socket, type: string, data: JsonObject): void {
    socket.sendText(stringifyJson({ type, data }));
  }
}
