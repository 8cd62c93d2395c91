/**
 * A proxy between us and an engine that breaks on purpose: HTTP goes through, WebSocket frames pass a filter that may
 * drop, delay, double or reorder them, and connections can be refused or cut at any moment.
 */
import type { Server, ServerWebSocket } from "bun";

type Frame = string | ArrayBuffer;

interface Bridge {
  readonly upstream: WebSocket;
  readonly waiting: Frame[];
  readonly path: string;
  client?: ServerWebSocket<Bridge>;
}

export interface ProxyHooks {
  /** Sees each frame of the engine; what it passes to `send` reaches the client. Default: everything, at once. */
  frame?: (frame: Frame, send: (frame: Frame) => void) => void;
  /** Sees each request before it is forwarded; a response answers it instead. */
  request?: (
    path: string,
    request: Request,
  ) => Response | undefined | Promise<Response | undefined>;
  refuseSockets?: boolean;
}

export interface EngineProxy extends AsyncDisposable {
  readonly url: string;
  readonly hooks: ProxyHooks;
  /** Paths of all requests so far, sockets as `WS /ws`. */
  readonly requests: string[];
  /** Bodies of all prompts, as text. */
  readonly prompts: string[];
  cutSockets(): void;
}

export function proxyTo(target: string, hooks: ProxyHooks = {}): EngineProxy {
  const bridges = new Set<Bridge>();
  const requests: string[] = [];
  const prompts: string[] = [];

  function open(path: string): Bridge {
    const upstream = new WebSocket(`${target.replace(/^http/, "ws")}${path}`);
    upstream.binaryType = "arraybuffer";
    return { upstream, waiting: [], path };
  }

  async function forward(request: Request, path: string): Promise<Response> {
    const body = request.body === null ? null : await request.arrayBuffer();
    if (path === "/prompt" && body !== null) {
      prompts.push(new TextDecoder().decode(body));
    }
    const headers = new Headers(request.headers);
    headers.delete("host");
    return await fetch(`${target}${path}`, { method: request.method, headers, body });
  }

  const server: Server<Bridge> = Bun.serve<Bridge>({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 0,
    async fetch(request, self) {
      const { pathname, search } = new URL(request.url);
      const path = `${pathname}${search}`;
      const isSocket = request.headers.get("upgrade") !== null;
      requests.push(`${isSocket ? "WS" : request.method} ${pathname}`);
      if (!isSocket) {
        return (await hooks.request?.(pathname, request)) ?? (await forward(request, path));
      }
      if (hooks.refuseSockets !== true && self.upgrade(request, { data: open(path) })) {
        return undefined;
      }
      return new Response("refused", { status: 503 });
    },
    websocket: {
      open(client) {
        const bridge = client.data;
        bridge.client = client;
        bridges.add(bridge);
        const filter = (frame: Frame): void => {
          const send = (one: Frame): void => {
            client.send(one);
          };
          if (hooks.frame === undefined) {
            send(frame);
          } else {
            hooks.frame(frame, send);
          }
        };
        bridge.upstream.addEventListener("message", ({ data }) => filter(data));
        bridge.upstream.addEventListener("close", () => client.close());
        bridge.upstream.addEventListener("open", () => {
          for (const frame of bridge.waiting.splice(0)) {
            bridge.upstream.send(frame);
          }
        });
      },
      message(client, frame) {
        const { upstream, waiting } = client.data;
        const data = typeof frame === "string" ? frame : new Uint8Array(frame).slice().buffer;
        if (upstream.readyState === WebSocket.OPEN) {
          upstream.send(data);
        } else {
          waiting.push(data);
        }
      },
      close(client) {
        bridges.delete(client.data);
        client.data.upstream.terminate();
      },
    },
  });

  return {
    url: `http://127.0.0.1:${server.port}`,
    hooks,
    requests,
    prompts,
    cutSockets() {
      for (const { client } of bridges) {
        client?.terminate();
      }
    },
    async [Symbol.asyncDispose]() {
      await server.stop(true);
    },
  };
}

/** An answer whose connection breaks after its first byte. */
export function cutOff(): Response {
  return new Response(
    new ReadableStream({
      async pull(controller) {
        controller.enqueue(new TextEncoder().encode("{"));
        // The byte must be on its way before the break.
        await new Promise((resolve) => setImmediate(resolve));
        controller.error();
      },
    }),
  );
}
