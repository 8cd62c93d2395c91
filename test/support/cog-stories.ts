/**
 * What takes more than one request to see, beyond the recordings: cancelling, leaving, attaching, filters, retries,
 * uploads, stops. Each story is played against Cog's own server to learn the answer (cog-stories.json, written by
 * scripts/cog-reference.ts) and against ours to compare.
 */
import { answerFacts, eventFacts, hookStatuses } from "./cog-facts.ts";
import type { Receiver, ReceiverOptions } from "./cog-receiver.ts";
import { GRAPH } from "./cog-requests.ts";
import type { Target } from "./cog-scenario.ts";
import { healthStatus } from "./cog-scenario.ts";
import type { RawAnswer, RawExchange } from "./raw-http.ts";
import { rawExchange } from "./raw-http.ts";

export interface Story {
  readonly name: string;
  readonly streaming?: boolean;
  readonly slots?: number;
  readonly uploads?: boolean;
  /** Ends the server, which must then be a process of its own. */
  readonly ends?: boolean;
  readonly setup?: "fails" | "held";
  readonly env?: Readonly<Record<string, string>>;
  readonly receiver?: ReceiverOptions;
  play(stage: Stage): Promise<unknown>;
}

interface Ask {
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: unknown;
}

/** What a story acts with. */
export class Stage {
  readonly target: Target;
  readonly receiver: Receiver;

  constructor(target: Target, receiver: Receiver) {
    this.target = target;
    this.receiver = receiver;
  }

  /** Begins an exchange without waiting for its end. */
  begin(route: string, ask: Ask = {}): RawExchange {
    const body = ask.body === undefined ? "" : JSON.stringify(ask.body);
    const headers = {
      host: "127.0.0.1",
      connection: "close",
      ...(ask.body === undefined ? {} : { "content-type": "application/json" }),
      "content-length": String(Buffer.byteLength(body)),
      ...ask.headers,
    };
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    return rawExchange(this.target.port, `${route} HTTP/1.1\r\n${lines.join("")}\r\n${body}`);
  }

  /** A whole exchange, asked again while Cog has not yet got its slot back. */
  async ask(route: string, ask: Ask = {}): Promise<RawAnswer | undefined> {
    for (;;) {
      const answer = await this.begin(route, ask).answer;
      if (answer?.status !== 409) {
        return answer;
      }
      await Bun.sleep(10);
    }
  }

  /** An input that runs until `release` is called. */
  slow(name: string): { readonly input: Record<string, unknown>; readonly path: string } {
    const path = `/slow/${name}/picture.png`;
    return { path, input: { ...GOOD, input_file: `${this.receiver.origin}${path}` } };
  }

  /** Begins a prediction that waits for its file, and waits until it does. */
  async hold(id: string, more: Record<string, unknown> = {}, headers?: Ask["headers"]) {
    const { input, path } = this.slow(id);
    const exchange = this.begin(`PUT /predictions/${id}`, {
      body: { input, ...more },
      headers: headers ?? { prefer: "respond-async" },
    });
    await this.receiver.asked(path);
    return { exchange, input, release: () => this.receiver.release(path) };
  }

  hook(name: string): string {
    return `${this.receiver.origin}/hook/${name}`;
  }

  /** Waits for `count` webhooks and tells their states, sorted as they happened. */
  async hooks(count: number): Promise<unknown> {
    await this.receiver.until(() => this.receiver.hooks.length >= count);
    return hookStatuses(this.receiver.hooks);
  }

  /** Waits until nothing runs any more. */
  async idle(): Promise<string> {
    for (let tries = 0; tries < 500; tries += 1) {
      const status = await healthStatus(this.target.port);
      if (status !== "BUSY") {
        return status;
      }
      await Bun.sleep(10);
    }
    return "BUSY";
  }
}

const GOOD = { workflow_json: GRAPH, output_format: "png" };
const TWO = {
  workflow_json: '{"1":{"class_type":"EmptyImage","inputs":{"batch_size":2}}}',
  output_format: "png",
};
const NONE = { workflow_json: '{"1":{"class_type":"EmptyImage","inputs":{"batch_size":0}}}' };
const BAD = {
  workflow_json:
    '{"4":{"class_type":"Loader","inputs":{"ckpt_name":"conformance-missing.safetensors"}}}',
};
const STREAM = { accept: "text/event-stream" };
/** Webhooks and effects that must not come are waited for so long. */
const QUIET_MS = 300;

function filterStory(
  events: readonly string[],
  input: unknown,
  count: number,
  name: string,
): Story {
  return {
    name: `webhooks ${JSON.stringify(events)} of ${name}`,
    play: async (stage) => {
      await stage.ask("POST /predictions", {
        body: { id: "f", input, webhook: stage.hook("a"), webhook_events_filter: events },
      });
      await stage.hooks(count);
      await Bun.sleep(QUIET_MS);
      return stage.hooks(count);
    },
  };
}

function retryStory(status: number): Story {
  return {
    name: `last webhook answered ${status}`,
    receiver: { hooks: new Map([["/hook/a", [{ status }, { status: 200 }]]]) },
    play: async (stage) => {
      await stage.ask("POST /predictions", {
        body: { input: GOOD, webhook: stage.hook("a"), webhook_events_filter: ["completed"] },
      });
      await Bun.sleep(QUIET_MS + 200);
      return stage.receiver.hooks.length;
    },
  };
}

function redirectStory(status: number): Story {
  return {
    name: `webhook redirected with ${status}`,
    receiver: { hooks: new Map([["/hook/a", [{ status, location: "/hook/b" }]]]) },
    play: async (stage) => {
      await stage.ask("POST /predictions", {
        body: { input: GOOD, webhook: stage.hook("a"), webhook_events_filter: ["completed"] },
      });
      await stage.receiver.until(() => stage.receiver.hooks.length >= 2);
      return stage.receiver.hooks
        .map(({ method, path, body }) => [method, path, body !== ""])
        .sort();
    },
  };
}

function fileStory(name: string, inputFile: string): Story {
  return {
    name: `file input ${name}`,
    play: async (stage) => {
      const url = inputFile.replace("<receiver>", stage.receiver.origin);
      const answer = await stage.ask("POST /predictions", {
        body: { input: { ...GOOD, input_file: url } },
      });
      // The twin logs the name and size of its file: after the random prefix both are Cog's.
      const line = /input_file tmp.{8}(.*?)\\n/.exec(answer?.body ?? "")?.[1] ?? "no file";
      return { ...answerFacts(answer), line };
    },
  };
}

function notReadyStories(setup: "fails" | "held"): Story[] {
  const asks: readonly (readonly [string, Ask])[] = [
    ["GET /openapi.json", {}],
    ["HEAD /openapi.json", {}],
    ["HEAD /", {}],
    ["POST /predictions", { body: { input: { output_quality: "x" } } }],
    ["POST /predictions", { body: 5 }],
    ["PUT /predictions/x", { body: { id: "y" } }],
    ["PUT /trainings/x", { body: { input: GOOD } }],
    ["POST /trainings", { body: {}, headers: STREAM }],
    ["PUT /predictions/x", { body: {}, headers: STREAM }],
    ["POST /predictions", { body: {}, headers: { prefer: "respond-async" } }],
    ["POST /trainings/x/cancel", {}],
    ["GET /nothing", {}],
    ["DELETE /predictions", {}],
  ];
  return [
    {
      name: `requests while setup ${setup === "fails" ? "has failed" : "runs"}`,
      setup,
      play: async (stage) => {
        const facts: unknown[] = [];
        for (const [route, ask] of asks) {
          const answer = await stage.begin(route, ask).answer;
          facts.push([route, answerFacts(answer)]);
        }
        return facts;
      },
    },
  ];
}

export const STORIES: readonly Story[] = [
  filterStory([], GOOD, 0, "a success"),
  filterStory(["logs"], GOOD, 1, "a success"),
  filterStory(["start", "logs"], GOOD, 1, "a success"),
  filterStory(["completed"], GOOD, 1, "a success"),
  filterStory(["start", "output", "completed"], TWO, 4, "two files"),
  filterStory(["output", "completed"], NONE, 1, "no files"),
  filterStory(["start", "completed"], BAD, 2, "a failure"),
  filterStory(["completed"], BAD, 1, "a failure"),
  filterStory(["logs", "output"], BAD, 1, "a failure"),
  ...[401, 408, 429, 500, 501, 502, 504].map(retryStory),
  ...[301, 303, 308].map(redirectStory),
  fileStory("without a type", "data:;base64,aGk="),
  fileStory("of an unknown type", "data:application/x-unknown;base64,aGk="),
  fileStory("of a type with parameters", "data:image/jpeg;name=x;base64,aGk="),
  fileStory("percent-encoded", "data:text/plain,a%20b"),
  fileStory("in upper case", "data:IMAGE/PNG;base64,aGk="),
  fileStory("webp", "data:image/webp;base64,aGk="),
  fileStory("without a comma", "data:image/png;base64"),
  fileStory("by a name with escapes", "<receiver>/file/a%20b%C3%A9.png?x=1"),
  fileStory("by a long name", `<receiver>/file/${"n".repeat(300)}.png`),
  fileStory("by no name", "<receiver>/file/"),
  fileStory("by a name with odd characters", "<receiver>/file/a:b*c%3Fd%7Ce.png"),
  fileStory("that is gone", "<receiver>/gone/a.png"),
  {
    name: "no files at all",
    play: async (stage) =>
      answerFacts(await stage.ask("POST /predictions", { body: { input: NONE } })),
  },
  {
    name: "client leaves a synchronous PUT",
    play: async (stage) => {
      const held = await stage.hold(
        "left",
        { webhook: stage.hook("a"), webhook_events_filter: ["completed"] },
        {},
      );
      held.exchange.leave();
      await Bun.sleep(QUIET_MS);
      held.release();
      return [await stage.hooks(1), await stage.idle()];
    },
  },
  {
    name: "client leaves an asynchronous request",
    play: async (stage) => {
      const held = await stage.hold("kept", {
        webhook: stage.hook("a"),
        webhook_events_filter: ["completed"],
      });
      held.exchange.leave();
      held.release();
      return [await stage.hooks(1), await stage.idle()];
    },
  },
  {
    name: "PUT asks to stream a running prediction of a model that does not",
    play: async (stage) => {
      const held = await stage.hold("running");
      const answer = await stage.begin("PUT /predictions/running", { body: {}, headers: STREAM })
        .answer;
      held.release();
      return [answerFacts(answer), await stage.idle()];
    },
  },
  {
    name: "POST with the id of a running prediction, a slot being free",
    slots: 2,
    play: async (stage) => {
      const held = await stage.hold("twice");
      const answer = await stage.ask("POST /predictions", { body: { id: "twice", input: GOOD } });
      held.release();
      return [answerFacts(answer), await stage.idle()];
    },
  },
  {
    name: "both slots taken",
    slots: 2,
    play: async (stage) => {
      const one = await stage.hold("one");
      const other = await stage.hold("other");
      const health = await healthStatus(stage.target.port);
      const third = await stage.begin("POST /predictions", { body: { input: GOOD } }).answer;
      const again = await stage.begin("PUT /predictions/one", { body: { input: GOOD } }).answer;
      one.release();
      other.release();
      return [health, answerFacts(third), again?.status, await stage.idle()];
    },
  },
  {
    name: "cancelled twice while it runs",
    play: async (stage) => {
      const held = await stage.hold("gone", { webhook: stage.hook("a") });
      const first = await stage.begin("POST /predictions/gone/cancel").answer;
      held.release();
      const states = await stage.hooks(2);
      return [answerFacts(first), states, await stage.idle()];
    },
  },
  {
    name: "stream of a failure",
    streaming: true,
    play: async (stage) =>
      eventFacts(
        await stage.ask("POST /predictions", { body: { id: "s", input: BAD }, headers: STREAM }),
      ),
  },
  {
    name: "stream of no files",
    streaming: true,
    play: async (stage) =>
      eventFacts(
        await stage.ask("POST /predictions", { body: { id: "s", input: NONE }, headers: STREAM }),
      ),
  },
  {
    name: "stream of a failed download",
    streaming: true,
    play: async (stage) =>
      eventFacts(
        await stage.ask("POST /predictions", {
          body: { id: "s", input: { ...GOOD, input_file: `${stage.receiver.origin}/gone/a` } },
          headers: STREAM,
        }),
      ),
  },
  {
    name: "stream wanted and respond-async",
    streaming: true,
    play: async (stage) =>
      eventFacts(
        await stage.ask("POST /predictions", {
          body: { id: "s", input: GOOD },
          headers: { ...STREAM, prefer: "respond-async" },
        }),
      ),
  },
  {
    name: "creator of a stream leaves",
    streaming: true,
    play: async (stage) => {
      const held = await stage.hold(
        "left",
        { webhook: stage.hook("a"), webhook_events_filter: ["completed"] },
        STREAM,
      );
      await held.exchange.begun;
      held.exchange.leave();
      await Bun.sleep(QUIET_MS);
      held.release();
      return [await stage.hooks(1), await stage.idle()];
    },
  },
  {
    name: "creator of a stream leaves, another reader stays",
    streaming: true,
    play: async (stage) => {
      const held = await stage.hold("left", {}, STREAM);
      const reader = stage.begin("PUT /predictions/left", { body: {}, headers: STREAM });
      await reader.begun;
      held.exchange.leave();
      await Bun.sleep(QUIET_MS);
      held.release();
      return [eventFacts(await reader.answer), await stage.idle()];
    },
  },
  {
    name: "attached to without any history",
    streaming: true,
    env: { COG_STREAM_HISTORY_CAPACITY: "0" },
    play: async (stage) => {
      const held = await stage.hold("late");
      const reader = stage.begin("PUT /predictions/late", { body: {}, headers: STREAM });
      await reader.begun;
      held.release();
      return eventFacts(await reader.answer);
    },
  },
  {
    name: "synchronous retry of a streamed prediction",
    streaming: true,
    play: async (stage) => {
      const held = await stage.hold("both", {}, STREAM);
      const retry = await stage.begin("PUT /predictions/both", { body: {} }).answer;
      held.release();
      const body: unknown = JSON.parse(retry?.body ?? "{}");
      return [retry?.status, Object.keys(Object(body)), eventFacts(await held.exchange.answer)];
    },
  },
  {
    name: "two uploads",
    uploads: true,
    play: async (stage) => {
      const answer = await stage.ask("POST /predictions", { body: { input: TWO } });
      return [answerFacts(answer), stage.receiver.uploads.map(({ type, bytes }) => [type, bytes])];
    },
  },
  {
    name: "an upload that fails",
    uploads: true,
    receiver: { uploadStatus: 500 },
    play: async (stage) => {
      const answer = await stage.ask("POST /predictions", { body: { input: GOOD } });
      return [answerFacts(answer), stage.receiver.uploads.length, await stage.idle()];
    },
  },
  ...(
    [
      "https://cdn.example.com/a.png?sig=1#part",
      "HTTPS://CDN.example.com",
      "a.png?x=1",
      "//cdn.example.com/a",
    ] as const
  ).map(
    (location): Story => ({
      name: `an upload with Location ${location}`,
      uploads: true,
      receiver: { location },
      play: async (stage) =>
        answerFacts(await stage.ask("POST /predictions", { body: { input: GOOD } })),
    }),
  ),
  ...notReadyStories("fails"),
  ...notReadyStories("held"),
  {
    name: "a training runs the predictor",
    play: async (stage) => [
      answerFacts(await stage.ask("POST /trainings", { body: { id: "t", input: GOOD } })),
      answerFacts(await stage.ask("PUT /trainings/u", { body: { input: BAD } })),
    ],
  },
  {
    name: "two requests on one connection",
    play: async (stage) => {
      const one = "GET /health-check HTTP/1.1\r\nhost: x\r\n\r\n";
      const text = await pipelined(
        stage.target.port,
        one + one.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"),
      );
      return (text.match(/HTTP\/1\.1 200/g) ?? []).length;
    },
  },
  {
    name: "a body that is only sent when asked for",
    play: async (stage) => {
      const body = JSON.stringify({ input: GOOD });
      const text = await pipelined(
        stage.target.port,
        `POST /predictions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
      );
      return [text.includes("100 Continue"), /HTTP\/1\.1 200/.test(text)];
    },
  },
  {
    name: "SIGINT when idle",
    ends: true,
    play: async (stage) => {
      stage.target.signal?.("SIGINT");
      const end = await stage.target.exited;
      // Cog dies of the signal, ours exits with the code that a shell makes of it.
      return end?.signal === "SIGINT" || end?.code === 130 ? "130 to a shell" : end;
    },
  },
  {
    name: "shutdown while a synchronous prediction runs",
    ends: true,
    play: async (stage) => {
      const held = await stage.hold("last", {}, {});
      const answer = await stage.begin("POST /shutdown").answer;
      await Bun.sleep(QUIET_MS);
      held.release();
      return [
        answerFacts(answer),
        answerFacts(await held.exchange.answer),
        await stage.target.exited,
      ];
    },
  },
  {
    name: "SIGTERM while a stream runs",
    ends: true,
    streaming: true,
    play: async (stage) => {
      const held = await stage.hold("last", {}, STREAM);
      stage.target.signal?.("SIGTERM");
      await Bun.sleep(QUIET_MS);
      held.release();
      return [eventFacts(await held.exchange.answer), await stage.target.exited];
    },
  },
];

async function pipelined(port: number, text: string): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  let seen = "";
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data: (_socket, chunk) => {
        seen += chunk.toString();
      },
      close: () => resolve(seen),
      error: () => resolve(seen),
    },
  });
  socket.write(text);
  // A server that keeps the connection open although it was asked to close has said all after this.
  const timer = setTimeout(() => resolve(seen), 1_000);
  const result = await promise;
  clearTimeout(timer);
  socket.end();
  return result;
}
