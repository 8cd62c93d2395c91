/**
 * `npm run demo`: the main job in a few seconds, on the embedded engine and with nothing mocked. A real server fetches a
 * real (tiny) upscaler in setup, runs a workflow with it, refuses one with a misspelt weight, fetches another on request,
 * resumes a killed download and starts again warm.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { formatSize } from "../src/platform/size.ts";
import type { Origin } from "./demo-origin.ts";
import { originFile, serveOrigin } from "./demo-origin.ts";
import { samplePicture } from "./picture.ts";
import { tinyUpscaler } from "./tiny-upscaler.ts";

const PREDICT = join(PROJECT_ROOT, "predict.ts");
const OUT = join(PROJECT_ROOT, "out", "demo");
const EXAMPLE = join(PROJECT_ROOT, "examples/api_workflows/upscale.json");
const UPSCALER_2X = "tiny-compact-2x.safetensors";
const UPSCALER_4X = "tiny-compact-4x.safetensors";
const BIG = "demo-lora.safetensors";
/** Large enough to be fetched in several ranges, small enough for a demo. */
const BIG_BYTES = 48 * 2 ** 20;
const LINE_BYTES_PER_SECOND = 60e6;
const KILL_AT = 0.6;
const READY_TIMEOUT_MS = 20_000;

interface Answer {
  readonly status: string;
  readonly output?: readonly string[];
  readonly error?: string;
  readonly logs: string;
  readonly metrics: { readonly predict_time: number };
}

interface Server extends AsyncDisposable {
  readonly url: string;
  readonly readyMs: number;
}

function say(text = ""): void {
  console.log(text);
}

let step = 0;
function heading(text: string): void {
  step += 1;
  say(`\n\u001b[1m${step}. ${text}\u001b[0m`);
}

function indent(text: string): string {
  return text.replace(/^(?=.)/gm, "   ");
}

/** A safetensors file of one tensor, its bytes from a small generator: no two chunks are equal. */
function bigFile(): Uint8Array {
  const count = BIG_BYTES / 4;
  const header = JSON.stringify({
    "lora.weight": { dtype: "F32", shape: [count], data_offsets: [0, BIG_BYTES] },
  });
  const padded = header.padEnd(Math.ceil(header.length / 8) * 8);
  const bytes = new Uint8Array(8 + padded.length + BIG_BYTES);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded.length), true);
  bytes.set(new TextEncoder().encode(padded), 8);
  const words = new Uint32Array(count);
  for (let index = 0, state = 1; index < count; index += 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    words[index] = state;
  }
  bytes.set(new Uint8Array(words.buffer), 8 + padded.length);
  return bytes;
}

async function startServer(env: Record<string, string>): Promise<Server> {
  const started = performance.now();
  const child = Bun.spawn([process.execPath, PREDICT, "serve", "--host", "127.0.0.1"], {
    env: { ...process.env, ...env, PORT: "0", LOG_FORMAT: "", COG_LOG_LEVEL: "info" },
    stdio: ["ignore", "inherit", "pipe"],
  });
  const url = await listeningUrl(child.stderr);
  let first = true;
  for (;;) {
    const health = (await (await fetch(`${url}/health-check`)).json()) as {
      status: string;
      setup?: { logs?: string };
    };
    if (first) {
      say(
        `   GET /health-check answers ${(performance.now() - started).toFixed(0)} ms after the start: ${health.status}`,
      );
      first = false;
    }
    if (health.status === "READY") {
      break;
    }
    if (health.status === "SETUP_FAILED" || performance.now() - started > READY_TIMEOUT_MS) {
      child.kill();
      throw new Error(
        `The server did not become ready: ${health.status}\n${health.setup?.logs ?? ""}`,
      );
    }
    await Bun.sleep(10);
  }
  return {
    url,
    readyMs: performance.now() - started,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGTERM");
      await child.exited;
    },
  };
}

/** Reads the server's log up to the line that names its address, and drains the rest. */
async function listeningUrl(stderr: ReadableStream<Uint8Array>): Promise<string> {
  const reader = stderr.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      throw new Error(`The server ended before it listened:\n${text}`);
    }
    text += decoder.decode(value, { stream: true });
    const url = /Listening on (http:\/\/[^"\s]+)/.exec(text)?.[1];
    if (url !== undefined) {
      void drain(reader);
      return url;
    }
  }
}

async function drain(reader: { read(): Promise<{ done: boolean }> }): Promise<void> {
  while (!(await reader.read()).done) {
    // An undrained pipe would stop the server.
  }
}

async function predict(
  server: Server,
  input: Record<string, unknown>,
): Promise<{ answer: Answer; ms: number }> {
  const started = performance.now();
  const response = await fetch(`${server.url}/predictions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ input }),
  });
  return { answer: (await response.json()) as Answer, ms: performance.now() - started };
}

/** Writes a picture that came as a data URL; says where. */
function keepPicture(answer: Answer, name: string): string {
  const [picture] = answer.output ?? [];
  if (answer.status !== "succeeded" || picture === undefined) {
    throw new Error(`The prediction ${answer.status}: ${answer.error ?? "no output"}`);
  }
  const file = join(OUT, name);
  writeFileSync(file, Buffer.from(picture.slice(picture.indexOf(",") + 1), "base64"));
  const bytes = readFileSync(file);
  // Width and height stand in the header of every PNG.
  return `${file}  (${bytes.readUInt32BE(16)}×${bytes.readUInt32BE(20)})`;
}

function workflowWith(model: string): string {
  return readFileSync(EXAMPLE, "utf8").replace(UPSCALER_2X, model);
}

/** Kills a download at 60 % and lets the next command finish it. */
async function killAndResume(origin: Origin, env: Record<string, string>): Promise<void> {
  origin.reset();
  const pull = () =>
    Bun.spawn([process.execPath, PREDICT, "weights", "pull", BIG], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "ignore"],
    });
  const first = pull();
  while (origin.sentBytes < BIG_BYTES * KILL_AT && first.exitCode === null) {
    await Bun.sleep(2);
  }
  first.kill("SIGKILL");
  await first.exited;
  const target = join(env["COMFYUI_MODELS_DIR"] ?? "", "loras", BIG);
  say(
    `   SIGKILL after ${formatSize(origin.sentBytes)} of ${formatSize(BIG_BYTES)}. At ${target}: ${existsSync(target) ? "a file!" : "nothing, as it should be"}`,
  );
  await Bun.sleep(50);
  origin.reset();
  const code = await pull().exited;
  const again = (origin.sentBytes / BIG_BYTES) * 100;
  if (code !== 0 || !existsSync(target)) {
    throw new Error(`The second download failed with ${code}`);
  }
  say(
    `   The same command again: it fetched ${formatSize(origin.sentBytes)} (${again.toFixed(0)} %), took the rest from disk, checked the SHA-256 and published.`,
  );
}

const began = performance.now();
const work = mkdtempSync(join(tmpdir(), "cog-comfyui-demo-"));
rmSync(OUT, { recursive: true, force: true });
mkdirSync(OUT, { recursive: true });
try {
  await main();
} finally {
  rmSync(work, { recursive: true, force: true });
}

async function main(): Promise<void> {
  const files = [
    originFile(UPSCALER_2X, tinyUpscaler(2)),
    originFile(UPSCALER_4X, tinyUpscaler(4)),
    originFile(BIG, bigFile()),
  ];
  await using origin = serveOrigin(files, LINE_BYTES_PER_SECOND);
  const manifest = {
    version: 2,
    weights: files.map(({ name, bytes, sha256 }) => ({
      name,
      category: name === BIG ? "loras" : "upscale_models",
      urls: [origin.urlOf(name)],
      size: bytes.length,
      sha256,
      license: "MIT",
    })),
  };
  writeFileSync(join(work, "manifest.json"), JSON.stringify(manifest));
  writeFileSync(join(work, "photo.png"), await samplePicture(160, 120));
  const photo = `data:image/png;base64,${readFileSync(join(work, "photo.png")).toString("base64")}`;
  const env = {
    COMFYUI_ENGINE: "embedded",
    COMFYUI_MODELS_DIR: join(work, "models"),
    WEIGHTS_MANIFEST: join(work, "manifest.json"),
    WEIGHTS_MIN_FREE_BYTES: "1MB",
    PRELOAD_WORKFLOW: EXAMPLE,
    WORK_DIR: work,
    // The demo must not depend on what else is configured on this machine.
    COMFYUI_URL: "",
    COMFYUI_PATH: "",
    BASE_MODEL_KIT: "",
    COG_WEIGHTS: "",
    WEIGHTS_LOCK: "",
    WEIGHTS_CACHE_DIR: "",
    API_TOKEN: "",
  };

  say(
    "cog-comfyui-bun: a Cog-compatible server for ComfyUI workflows whose weight loading never surprises.",
  );
  say(
    "This demo runs the real server, real downloads and real networks. The engine is the embedded one: it renders ComfyUI's",
  );
  say(
    "weight-free image nodes and computes RealESRGAN-Compact upscalers. It is not ComfyUI: for diffusion models, set COMFYUI_PATH.",
  );

  heading("setup(): everything common is there before the first request");
  say(
    `   An origin on this machine serves two upscalers: ${files
      .slice(0, 2)
      .map(({ name, bytes }) => `${name} (${formatSize(bytes.length)})`)
      .join(", ")}`,
  );
  say("   PRELOAD_WORKFLOW=examples/api_workflows/upscale.json bin/cog-comfyui serve");
  {
    await using server = await startServer(env);
    say(
      `   READY after ${server.readyMs.toFixed(0)} ms: ${UPSCALER_2X} was fetched, its SHA-256 checked, published, and the engine booted meanwhile.`,
    );

    heading("predict(): LoadImage → UpscaleModelLoader → ImageUpscaleWithModel → SaveImage");
    const first = await predict(server, {
      workflow_json: workflowWith(UPSCALER_2X),
      input_file: photo,
      output_format: "png",
    });
    say(`   ${first.answer.status} in ${first.ms.toFixed(0)} ms`);
    say(`   ${keepPicture(first.answer, "upscaled-2x.png")}`);

    heading("The same with a misspelt weight: it fails before the engine is asked anything");
    const misspelt = await predict(server, {
      workflow_json: workflowWith("Tiny-Compact-2x.safetensors"),
      input_file: photo,
    });
    say(
      `   ${misspelt.answer.status} in ${misspelt.ms.toFixed(0)} ms. The error, word for word:\n`,
    );
    say(indent(misspelt.answer.error ?? ""));

    heading("A weight that is not there, with download_missing_weights");
    const asked = await predict(server, {
      workflow_json: workflowWith(UPSCALER_4X),
      input_file: photo,
      output_format: "png",
      download_missing_weights: true,
    });
    say(
      indent(
        asked.answer.logs
          .split("\n")
          .filter((line) => /etch|weight/.test(line))
          .join("\n"),
      ),
    );
    say(`   ${asked.answer.status} in ${asked.ms.toFixed(0)} ms`);
    say(`   ${keepPicture(asked.answer, "upscaled-4x.png")}`);
  }

  heading("A download that is killed at 60 % resumes");
  await killAndResume(origin, env);

  heading("A warm start: nothing to fetch");
  origin.reset();
  {
    await using server = await startServer(env);
    const again = await predict(server, {
      workflow_json: workflowWith(UPSCALER_2X),
      input_file: photo,
      output_format: "png",
    });
    say(
      `   READY after ${server.readyMs.toFixed(0)} ms with ${origin.requests} requests to the origin; ${again.answer.status} in ${again.ms.toFixed(0)} ms`,
    );
    const line = again.answer.logs.split("\n").find((text) => text.includes("checked in"));
    say(`   The prediction's own log says of the weights: ${line ?? "nothing"}`);
  }

  say(`\nThe pictures are in ${OUT}`);
  say(
    "Your own workflow, without a GPU and without models:  bin/cog-comfyui weights check your_workflow.json",
  );
  say(`Done in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
}
