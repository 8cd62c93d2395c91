/** An embedded engine in this process, with folders of its own, and a client that is no more than a test needs. */
import { join } from "node:path";
import { decodePicture } from "../../src/comfy/embedded/picture.ts";
import { startEmbedded } from "../../src/comfy/embedded/start.ts";
import type { TempDir, Tree } from "./temp-dir.ts";
import { tempDir } from "./temp-dir.ts";

/** What a server answers is checked by tests, not by types. */
// biome-ignore lint/suspicious/noExplicitAny: JSON of a server under test
export type Json = any;

export type TestGraph = Readonly<
  Record<string, readonly [className: string, inputs: Readonly<Record<string, unknown>>]>
>;

export interface Message {
  readonly type: string;
  readonly data: Json;
}

/** A graph with titles, as the API wants it. */
export function promptOf(graph: TestGraph): Json {
  return Object.fromEntries(
    Object.entries(graph).map(([id, [classType, inputs]]) => [
      id,
      { class_type: classType, inputs, _meta: { title: classType } },
    ]),
  );
}

/** Waits until `ready` gives something; a deadline turns a hang into a failure. */
export async function until<T>(ready: () => T | undefined, what: string, ms = 10_000): Promise<T> {
  const end = Date.now() + ms;
  for (;;) {
    const value = ready();
    if (value !== undefined) {
      return value;
    }
    if (Date.now() > end) {
      throw new Error(`waited in vain for ${what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** One WebSocket and all that came through it. */
export class Listener {
  readonly id: string;
  readonly messages: Message[] = [];
  readonly frames: Uint8Array[] = [];
  /** Messages and frames in the order they came. */
  readonly all: (Message | Uint8Array)[] = [];
  readonly socket: WebSocket;

  constructor(base: string, id: string) {
    this.id = id;
    this.socket = new WebSocket(`${base.replace("http", "ws")}/ws?clientId=${id}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.addEventListener("message", ({ data }) => {
      if (typeof data === "string") {
        const message: Message = JSON.parse(data);
        this.messages.push(message);
        this.all.push(message);
      } else {
        const frame = new Uint8Array(data);
        this.frames.push(frame);
        this.all.push(frame);
      }
    });
  }

  async find(type: string, matches: (data: Json) => boolean = () => true): Promise<Message> {
    return await until(
      () => this.messages.find((message) => message.type === type && matches(message.data)),
      type,
    );
  }

  async ended(promptId: string): Promise<void> {
    await this.find("executing", ({ node, prompt_id }) => node === null && prompt_id === promptId);
  }

  close(): void {
    this.socket.close();
  }
}

export class TestEngine implements AsyncDisposable {
  readonly dir: TempDir;
  readonly url: string;
  readonly log: string[] = [];
  readonly #server: { stop(): Promise<void> };

  constructor(tree: Tree = {}, flags: readonly string[] = []) {
    this.dir = tempDir(tree);
    const server = startEmbedded({
      argv: [
        ...["--listen", "127.0.0.1", "--port", "0"],
        ...["--input-directory", "input", "--output-directory", "output"],
        ...["--temp-directory", ".", "--models-directory", "models"],
        ...flags,
      ],
      cwd: this.dir.path,
      write: (line) => this.log.push(line),
    });
    this.#server = server;
    this.url = server.url;
  }

  async request(path: string, init: RequestInit = {}): Promise<Response> {
    return await fetch(`${this.url}${path}`, init);
  }

  async get(path: string): Promise<Json> {
    return await (await this.request(path)).json();
  }

  async post(path: string, body: unknown): Promise<{ status: number; body: Json }> {
    const text = typeof body === "string" ? body : JSON.stringify(body);
    const response = await this.request(path, { method: "POST", body: text });
    const answer = await response.text();
    const isJson = response.headers.get("content-type")?.includes("json") === true;
    return { status: response.status, body: isJson ? JSON.parse(answer) : answer };
  }

  async listen(id: string = crypto.randomUUID()): Promise<Listener> {
    const listener = new Listener(this.url, id);
    await listener.find("status");
    return listener;
  }

  /** Runs a graph to its end and gives the history entry. */
  async run(graph: TestGraph, more: Readonly<Record<string, unknown>> = {}): Promise<Json> {
    const { status, body } = await this.post("/prompt", { prompt: promptOf(graph), ...more });
    if (status !== 200) {
      throw new Error(`refused: ${JSON.stringify(body)}`);
    }
    return await this.finished(body.prompt_id);
  }

  async finished(promptId: string): Promise<Json> {
    for (let tries = 0; tries < 5000; tries++) {
      const history = await this.get(`/history/${promptId}`);
      if (history[promptId] !== undefined) {
        return history[promptId];
      }
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    throw new Error(`prompt ${promptId} did not end`);
  }

  /** Runs a graph whose last node makes a picture, and reads that back from the saved file. */
  async picture(graph: TestGraph, image: readonly [string, number]) {
    const prefix = `p${crypto.randomUUID()}`;
    const save = { save: ["SaveImage", { images: image, filename_prefix: prefix }] } as const;
    const entry = await this.run({ ...graph, ...save });
    if (entry.status.status_str !== "success") {
      throw new Error(JSON.stringify(entry.status.messages.at(-1)));
    }
    const { filename, subfolder } = entry.outputs.save.images[0];
    const picture = await decodePicture(join(this.dir.path, "output", subfolder, filename));
    if (picture === undefined) {
      throw new Error(`${filename} is no picture`);
    }
    return picture;
  }

  /** The red channel, row by row. */
  async reds(graph: TestGraph, image: readonly [string, number]): Promise<number[][]> {
    const { width, height, rgba } = await this.picture(graph, image);
    return Array.from({ length: height }, (_, y) =>
      Array.from({ length: width }, (_unused, x) => rgba[(y * width + x) * 4] ?? -1),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop();
    this.dir[Symbol.dispose]();
  }
}
