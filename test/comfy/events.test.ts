import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { EventStream, parseFrame, parseMessage } from "../../src/comfy/events.ts";
import { parseWireJson } from "../../src/comfy/wire.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { casePath, describeCases } from "../support/shared.ts";

function frame(event: number, ...parts: readonly (number | string)[]): Uint8Array {
  return Buffer.concat(
    [event, ...parts].map((part) => {
      if (typeof part === "string") {
        return Buffer.from(part, "latin1");
      }
      const word = Buffer.alloc(4);
      word.writeUInt32BE(part);
      return word;
    }),
  );
}

describe("binary frames", () => {
  test("of previews carry the picture, with or without its node", () => {
    expect(parseFrame(frame(1, 1, "JPEG"))).toEqual({
      type: "preview",
      mime: "image/jpeg",
      image: Buffer.from("JPEG"),
      nodeId: undefined,
      promptId: undefined,
    });
    const metadata = JSON.stringify({
      node_id: "1.0",
      display_node_id: "1",
      prompt_id: "p",
      image_type: "image/png",
    });
    expect(parseFrame(frame(4, metadata.length, metadata, "PNG"))).toEqual({
      type: "preview",
      mime: "image/png",
      image: Buffer.from("PNG"),
      nodeId: "1",
      promptId: "p",
    });
  });

  test("of text name their node", () => {
    expect(parseFrame(frame(3, 2, "12", "width: 8"))).toEqual({
      type: "text",
      nodeId: "12",
      text: "width: 8",
    });
  });

  test.each([
    ["too short", new Uint8Array(7)],
    ["of another kind", frame(2, 1, "x")],
    ["with a length beyond its end", frame(4, 5000, "{}")],
    ["with metadata that is no JSON", frame(4, 3, "{x}", "p")],
    ["of text with a length beyond its end", frame(3, 99, "12")],
  ])("%s are ignored", (_what, bytes) => {
    expect(parseFrame(bytes)).toBeUndefined();
  });
});

describe("messages", () => {
  test.each(["", "[]", "null", '{"type":"crystools.monitor","data":{}}', '{"type":"progress"}'])(
    "that we don't know are ignored: %s",
    (text) => {
      expect(parseMessage(text)).toBeUndefined();
    },
  );

  test("with Python's NaN and Infinity are read, strings untouched", () => {
    expect(parseWireJson('{"a": NaN, "b": [-Infinity, Infinity], "c": "x: 1"}')).toEqual({
      a: null,
      b: [null, null],
      c: "x: 1",
    });
    expect(() => parseWireJson("{a}")).toThrow(SyntaxError);
  });

  describeCases("comfy_transcripts", () => {
    const files = ["0.3.64", "0.33.0"].flatMap((version) =>
      readdirSync(casePath("comfy_transcripts", version)).map((name) => `${version}/${name}`),
    );

    test.each(files)("of the recording %s are all understood", (file) => {
      const { steps } = JSON.parse(readFileSync(casePath("comfy_transcripts", file), "utf8"));
      for (const step of steps) {
        if (step.kind === "ws" && step.event === "message" && step.json !== undefined) {
          const known = ["feature_flags", "logs"].includes(step.json.type);
          expect([step.json, parseMessage(JSON.stringify(step.json)) !== undefined]).toEqual([
            step.json,
            !known,
          ]);
        }
      }
    });
  });
});

describe("the event connection", () => {
  test("notices a peer that freezes without closing, and connects again", async () => {
    let connections = 0;
    // A peer that answers neither text nor ping, as a frozen process: raw TCP after the handshake.
    const peer = Bun.listen<{ isOpen: boolean }>({
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        open(socket) {
          socket.data = { isOpen: false };
        },
        data(socket, bytes) {
          const key = /sec-websocket-key: (.*)\r\n/i.exec(bytes.toString("latin1"))?.[1];
          if (socket.data.isOpen || key === undefined) {
            return;
          }
          connections += 1;
          socket.data.isOpen = true;
          const accept = new Bun.CryptoHasher("sha1")
            .update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
            .digest("base64");
          socket.write(
            `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ${accept}\r\n\r\n`,
          );
        },
      },
    });
    const reopened = Promise.withResolvers<void>();
    using _stream = new EventStream({
      url: `http://127.0.0.1:${peer.port}`,
      clientId: "c",
      onEvent: () => undefined,
      onOpen: (isReconnect) => {
        if (isReconnect) {
          reopened.resolve();
        }
      },
      times: { heartbeatMs: 20, pongTimeoutMs: 20, reconnectDelayMs: 1 },
      log: silentLogger,
    });
    await reopened.promise;
    expect(connections).toBeGreaterThan(1);
    peer.stop(true);
  });

  test("goes on trying while nobody is there, and stops when disposed", async () => {
    let tries = 0;
    const again = Promise.withResolvers<void>();
    const server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch: () => {
        tries += 1;
        if (tries === 3) {
          again.resolve();
        }
        return new Response("not yet", { status: 503 });
      },
    });
    const stream = new EventStream({
      url: `http://127.0.0.1:${server.port}`,
      clientId: "c",
      onEvent: () => undefined,
      onOpen: () => undefined,
      times: { reconnectDelayMs: 1 },
      log: silentLogger,
    });
    expect(await stream.greeted(10_000)).toBe(false);
    await again.promise;
    stream[Symbol.dispose]();
    await server.stop(true);
  });
});
