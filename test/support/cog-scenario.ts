/**
 * The recorded exchanges with Cog's own server, and how to play one again: in the order of its causes (a request is
 * sent when those answered before it was sent have been answered), with slow files released where they were.
 */
import { readdirSync, readFileSync } from "node:fs";
import { z } from "zod";
import type { HookAnswer, HookCall, UploadCall } from "./cog-receiver.ts";
import { Receiver } from "./cog-receiver.ts";
import type { RawAnswer, RawExchange } from "./raw-http.ts";
import { parseHead, rawExchange } from "./raw-http.ts";
import { casePath } from "./shared.ts";

const Recorded = z.object({
  name: z.string(),
  title: z.string(),
  exchanges: z.array(
    z.object({
      at_ms: z.number(),
      answered_ms: z.number().optional(),
      request: z.string(),
      response: z.string().optional(),
    }),
  ),
  webhooks: z
    .array(
      z.object({
        hook: z.number(),
        at_ms: z.number(),
        method: z.string(),
        path: z.string(),
        headers: z.record(z.string(), z.string()),
        body: z.string(),
        answered: z.number(),
      }),
    )
    .default([]),
  process_exit: z.object({ code: z.number().nullable(), signal: z.string().nullable() }).optional(),
  normalised: z.unknown(),
});

export type Scenario = z.output<typeof Recorded>;

/** What happened in a scenario, recorded or played. */
export interface Run {
  readonly requests: readonly string[];
  readonly answers: readonly (RawAnswer | undefined)[];
  readonly hooks: readonly HookCall[];
  readonly uploads: readonly UploadCall[];
  /** Uploads that had arrived when the last answer came. */
  readonly uploadsAtAnswer: number;
  /** `/health-check` while the first slow prediction ran. */
  readonly during: string | undefined;
  /** `/health-check` at the end, "gone" when nothing answers any more. */
  readonly after: string;
  readonly exit: { readonly code: number | null; readonly signal: string | null } | undefined;
}

export function scenarios(): Scenario[] {
  const all = readdirSync(casePath("cog_transcripts"))
    .filter((name) => name.endsWith(".json"))
    .sort()
    .map((name) =>
      Recorded.parse(JSON.parse(readFileSync(casePath("cog_transcripts", name), "utf8"))),
    );
  // Parts of the OpenAPI document are told without the exchange that they all share.
  const shared = all.find(({ name }) => name === "openapi.head")?.exchanges ?? [];
  return all.map((scenario) =>
    scenario.name.startsWith("openapi.") && scenario.exchanges.length === 0
      ? { ...scenario, exchanges: shared }
      : scenario,
  );
}

/** The recording itself as a run. */
export function recordedRun(scenario: Scenario): Run {
  return {
    requests: scenario.exchanges.map(({ request }) => request),
    answers: scenario.exchanges.map(({ response }) =>
      response === undefined ? undefined : parseRecorded(response),
    ),
    hooks: scenario.webhooks.map((hook) => ({ ...hook, atMs: hook.at_ms })),
    uploads: [],
    uploadsAtAnswer: 0,
    during: undefined,
    after: "READY",
    exit: scenario.process_exit,
  };
}

function parseRecorded(response: string): RawAnswer {
  const split = response.indexOf("\n\n");
  return { ...parseHead(response.slice(0, split), "\n"), body: response.slice(split + 2) };
}

/** What a scenario needs of the server, read off its family and its recording. */
export interface Needs {
  readonly streaming: boolean;
  readonly slots: number;
  readonly uploads: boolean;
  readonly setup: "fails" | "held" | "times-out" | undefined;
  readonly webhookToken: string | undefined;
}

export function needsOf({ name, webhooks }: Scenario): Needs {
  const authorization = webhooks.map(({ headers }) => headers["authorization"]).find(Boolean);
  return {
    streaming: name.startsWith("sse."),
    slots: name.startsWith("slots.") ? 2 : 1,
    uploads: name.startsWith("upload."),
    setup: setupOf(name),
    webhookToken: authorization?.replace("Bearer ", ""),
  };
}

function setupOf(name: string): Needs["setup"] {
  if (name.startsWith("setup-failed.")) {
    return "fails";
  }
  if (name.startsWith("setup-timeout.")) {
    return "times-out";
  }
  return name.startsWith("starting.") ? "held" : undefined;
}

/** The receiver that answers as the recorded one did. */
export function receiverFor(scenario: Scenario): Receiver {
  const { setup } = needsOf(scenario);
  const [first] = scenario.exchanges;
  const output = /"output":\["(?<value>[^"]*)"\]/.exec(first?.response ?? "")?.groups?.["value"];
  const isOwn = output === undefined || output.startsWith("data:") || /\/up\//.test(output);
  return new Receiver({
    hooks: hookAnswers(scenario),
    holdHooks: scenario.name === "webhook.slow-receiver",
    ...(setup === undefined ? {} : { setup: setup === "fails" ? "fails" : "held" }),
    location: isOwn ? undefined : output,
  });
}

function hookAnswers({ webhooks }: Scenario): Map<string, HookAnswer[]> {
  const answers = new Map<string, HookAnswer[]>();
  for (const { path, answered } of webhooks) {
    const other = webhooks.find((hook) => hook.path !== path)?.path;
    const location = answered >= 300 && answered < 400 ? other : undefined;
    answers.set(path, [...(answers.get(path) ?? []), { status: answered, location }]);
  }
  return answers;
}

/** A server that a scenario is played against. */
export interface Target {
  readonly port: number;
  /** Milliseconds between one answer and the next request: Cog hands its slot back a moment after it has answered. */
  readonly pauseMs?: number;
  /** Sends a signal to its process, where it has one of its own. */
  signal?(name: "SIGTERM" | "SIGINT"): void;
  /** How it ended, where the scenario ends it. */
  readonly exited?: Promise<{ readonly code: number | null; readonly signal: string | null }>;
}

/** How long a cancellation may take before its download is let finish, which Cog itself waits for. */
const CANCEL_MS = 700;
/** Webhooks that must not come: how long to listen for them. */
const QUIET_MS = 250;

export async function play(scenario: Scenario, target: Target, receiver: Receiver): Promise<Run> {
  const player = new Player(scenario, target, receiver);
  return await player.run();
}

interface Sent {
  readonly exchange: RawExchange;
  readonly slow: string | undefined;
  readonly index: number;
}

class Player {
  readonly #scenario: Scenario;
  readonly #target: Target;
  readonly #receiver: Receiver;
  readonly #sent: Sent[] = [];
  readonly #requests: string[];
  #during: string | undefined;
  #uploadsAtAnswer = 0;

  constructor(scenario: Scenario, target: Target, receiver: Receiver) {
    this.#scenario = scenario;
    this.#target = target;
    this.#receiver = receiver;
    this.#requests = scenario.exchanges.map((_, index) => this.#request(index));
  }

  async run(): Promise<Run> {
    const { name, exchanges } = this.#scenario;
    if (name === "stop.await-explicit") {
      this.#target.signal?.("SIGTERM");
      this.#during = await healthStatus(this.#target.port);
    }
    if (name === "starting.becomes-ready") {
      this.#receiver.release("/setup");
      await untilReady(this.#target.port);
    }
    if (name === "setup-timeout.health") {
      await untilNot(this.#target.port, "STARTING");
    }
    for (const index of exchanges.keys()) {
      await this.#causesOf(index);
      await this.#pause(index);
      this.#send(index);
      await this.#begun(index);
    }
    const answers = await this.#finish();
    return {
      requests: this.#requests,
      answers,
      hooks: [...this.#receiver.hooks],
      uploads: [...this.#receiver.uploads],
      uploadsAtAnswer: this.#uploadsAtAnswer,
      during: this.#during,
      after: await this.#after(),
      exit: await this.#exit(),
    };
  }

  /** Sends the recorded request with our addresses in it, as long as it really was. */
  #request(index: number): string {
    const recorded = this.#scenario.exchanges[index]?.request ?? "";
    const [head = "", ...rest] = recorded.split("\r\n\r\n");
    const whole = restored(this.#scenario.name, head, rest.join("\r\n\r\n"));
    const body = whole.body.replaceAll(
      /http:\/\/127\.0\.0\.1:\d+\/(?=slow|hook|gone|file|up)/g,
      `${this.#receiver.origin}/`,
    );
    const lines = whole.head
      .replace(/^host: .*$/m, `host: 127.0.0.1:${this.#target.port}`)
      .replace(/^content-length: .*$/m, `content-length: ${Buffer.byteLength(body)}`);
    return `${lines}\r\n\r\n${body}`;
  }

  /** Waits for the answers that were there before this request was sent. */
  async #causesOf(index: number): Promise<void> {
    const at = this.#scenario.exchanges[index]?.at_ms ?? 0;
    for (const sent of this.#sent) {
      const answered = this.#scenario.exchanges[sent.index]?.answered_ms;
      if (answered !== undefined && answered <= at) {
        await sent.exchange.answer;
      }
    }
    const isAfterWebhook = this.#scenario.webhooks.filter((hook) => hook.at_ms < at).length;
    // A cancellation has ended when its webhook is there.
    if (/^cancel\./.test(this.#scenario.name) && isAfterWebhook > 0) {
      await this.#hooksOrRelease(isAfterWebhook);
    }
  }

  /** Cog itself ends a cancelled download only when the file is there: if nothing comes, let it come. */
  async #hooksOrRelease(count: number): Promise<void> {
    const isMet = (): boolean => this.#receiver.hooks.length >= count;
    if (!(await this.#receiver.until(isMet, CANCEL_MS))) {
      this.#releaseSlow();
      await this.#receiver.until(isMet);
    }
  }

  #releaseSlow(): void {
    for (const { slow } of this.#sent) {
      if (slow !== undefined) {
        this.#receiver.release(slow);
      }
    }
  }

  async #pause(index: number): Promise<void> {
    if (index > 0 && this.#target.pauseMs !== undefined) {
      await Bun.sleep(this.#target.pauseMs);
    }
  }

  #send(index: number): void {
    const request = this.#requests[index] ?? "";
    const slow = /\/slow\/[^"]*/.exec(request)?.[0];
    this.#sent.push({ index, slow, exchange: rawExchange(this.#target.port, request) });
  }

  /** Waits until the request has an effect: answered, streaming, or downloading its slow file. */
  async #begun(index: number): Promise<void> {
    const sent = this.#sent[index];
    if (sent === undefined) {
      return;
    }
    const isFirstSlow =
      sent.slow !== undefined && this.#sent.findIndex(({ slow }) => slow === sent.slow) === index;
    if (isFirstSlow && sent.slow !== undefined) {
      await Promise.race([
        this.#receiver.asked(sent.slow),
        sent.exchange.answer.then((answer) => (answer?.status === 202 ? forever() : undefined)),
      ]);
      this.#during ??= await healthStatus(this.#target.port);
    } else {
      await sent.exchange.begun;
    }
  }

  /** The rest: what was cut off leaves, slow files come, webhooks arrive. */
  async #finish(): Promise<(RawAnswer | undefined)[]> {
    await this.#stopIfAsked();
    const leavers = this.#sent.filter(({ index }) => this.#isCutOff(index));
    for (const { exchange } of leavers) {
      exchange.leave();
    }
    if (this.#scenario.webhooks.length > 0 && /^(disconnect|cancel)/.test(this.#scenario.name)) {
      await this.#hooksOrRelease(1);
    } else if (this.#scenario.name === "cancel.sync") {
      await Promise.race([this.#sent[0]?.exchange.answer, Bun.sleep(CANCEL_MS)]);
    }
    this.#releaseSlow();
    const answers = await Promise.all(
      this.#sent.map(({ exchange, index }) =>
        this.#isCutOff(index) ? exchange.sofar() : exchange.answer,
      ),
    );
    this.#uploadsAtAnswer = this.#receiver.uploads.length;
    await this.#settle();
    return answers;
  }

  async #stopIfAsked(): Promise<void> {
    if (/^stop\.sigterm/.test(this.#scenario.name)) {
      this.#target.signal?.("SIGTERM");
      await untilGone(this.#target.port);
    }
  }

  #isCutOff(index: number): boolean {
    const { response } = this.#scenario.exchanges[index] ?? {};
    const isOpenStream = response?.includes("text/event-stream") && !response.includes("completed");
    return response === undefined || isOpenStream === true;
  }

  async #settle(): Promise<void> {
    const expected = this.#scenario.webhooks.length;
    await this.#receiver.until(() => this.#receiver.hooks.length >= expected);
    if (this.#scenario.name === "upload.async") {
      await this.#receiver.until(() => this.#receiver.uploads.length > 0);
    }
    if (
      /noretry|not-retried|not-for|filter-output|busy\.async|validate\.async/.test(
        this.#scenario.name,
      )
    ) {
      await Bun.sleep(QUIET_MS);
    }
  }

  async #after(): Promise<string> {
    const { exited } = this.#target;
    if (exited !== undefined) {
      await exited;
      return "gone";
    }
    const { port } = this.#target;
    if (/^(starting|setup)/.test(this.#scenario.name)) {
      return healthStatus(port);
    }
    // An asynchronous prediction may still be ending.
    await this.#receiver.until(() => true);
    return untilReady(port);
  }

  async #exit(): Promise<Run["exit"]> {
    this.#receiver.releaseAll();
    return await this.#target.exited;
  }
}

function forever(): Promise<never> {
  return new Promise(() => undefined);
}

/** Long bodies are shortened in the recordings; what was left out is known. */
function restored(name: string, head: string, body: string): { head: string; body: string } {
  if (name === "http.chunked-body") {
    const text = JSON.stringify({
      input: {
        workflow_json: '{"1":{"class_type":"EmptyImage","inputs":{}}}',
        output_format: "png",
      },
    });
    const [a, b] = [text.slice(0, 20), text.slice(20)];
    const chunk = (part: string): string => `${part.length.toString(16)}\r\n${part}\r\n`;
    return {
      head: `${head}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked`,
      body: `${chunk(a)}${chunk(b)}0\r\n\r\n`,
    };
  }
  if (!body.includes("bytes in all)")) {
    return { head, body };
  }
  const start = body.slice(0, body.indexOf("…"));
  const encoded = start.length - (start.indexOf("base64,") + "base64,".length);
  return name.startsWith("file.")
    ? { head, body: `${start}${"A".repeat(2_796_000 - (encoded % 4))}"}}` }
    : { head, body: `${start}${" ".repeat(7_340_000)}","output_format":"png"}}` };
}

export async function healthStatus(port: number): Promise<string> {
  const answer = await rawExchange(
    port,
    "GET /health-check HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
  ).answer;
  return answer === undefined ? "gone" : String(JSON.parse(answer.body).status);
}

/** Looks until the status is another one, or five seconds have passed. */
export async function untilNot(port: number, status: string): Promise<string> {
  const until = performance.now() + 5_000;
  let now = await healthStatus(port);
  while (now === status && performance.now() < until) {
    await Bun.sleep(5);
    now = await healthStatus(port);
  }
  return now;
}

async function untilReady(port: number): Promise<string> {
  const until = performance.now() + 5_000;
  let now = await healthStatus(port);
  while (now !== "READY" && performance.now() < until) {
    await Bun.sleep(5);
    now = await healthStatus(port);
  }
  return now;
}

async function untilGone(port: number): Promise<void> {
  const until = performance.now() + 5_000;
  while ((await healthStatus(port)) !== "gone" && performance.now() < until) {
    await Bun.sleep(5);
  }
}
