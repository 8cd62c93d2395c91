/** Where the engine's messages go: the sockets of the server, or a list in a test. */
import type { JsonObject } from "../../platform/json.ts";

export interface EventSink {
  /** Sends to the socket of one client, or to all of them. */
  send(type: string, data: JsonObject, clientId: string | undefined): void;
  /** A picture while a node runs; as with metadata or plain, as the client asked. */
  preview(
    png: Uint8Array,
    node: { nodeId: string; promptId: string },
    clientId: string | undefined,
  ): void;
  /** True when the preview goes out with metadata, and then before the `progress` message. */
  wantsMetadata(clientId: string | undefined): boolean;
  text(nodeId: string, text: string, clientId: string | undefined): void;
}
