/** The embedded engine asked what real ComfyUI servers were asked, answer by answer and message by message. */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, symlinkSync } from "node:fs";
import type { Json, Listener } from "../support/embedded.ts";
import { TestEngine } from "../support/embedded.ts";
import { safetensors } from "../support/safetensors.ts";
import { casePath, describeCases } from "../support/shared.ts";
import type { Tree } from "../support/temp-dir.ts";

interface Step {
  readonly kind: "http" | "ws" | "note";
  readonly [field: string]: Json;
}

/** Scenarios that need what the embedded engine doesn't compute, or that are about time; with the reason. */
const SKIPPED: Readonly<Record<string, string>> = {
  exec_error_checkpoint_without_vae: "runs a diffusion model",
  exec_error_clip_wrong_content_used: "runs a text encoder",
  lora_wrong_keys_used: "runs a diffusion model",
  ksampler_progress_plain_previews: "runs a diffusion model",
  ksampler_progress_previews_metadata: "runs a diffusion model",
  outputs_audio_video_latent_webp: "writes audio, video and latents",
  interrupt_running: "its pictures are too big for a test; embedded-queue.test.ts interrupts",
  interrupt_global_no_body: "as interrupt_running",
  queue_delete_and_interrupt_pending: "as interrupt_running",
};

const lengthPrefix = (length: number): Uint8Array => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  return bytes;
};

/** A valid file with metadata. */
function withMetadata(): Uint8Array {
  const text = new TextEncoder().encode(
    JSON.stringify({
      __metadata__: { format: "pt", note: "test" },
      "foo.weight": { dtype: "F32", shape: [1], data_offsets: [0, 4] },
    }),
  );
  return Buffer.concat([lengthPrefix(text.length), text, new Uint8Array(4)]);
}

function truncated(): Uint8Array {
  const text = new TextEncoder().encode(
    JSON.stringify({ "foo.weight": { dtype: "F32", shape: [4000], data_offsets: [0, 16_000] } }),
  );
  return Buffer.concat([lengthPrefix(text.length), text, new Uint8Array(1000)]).subarray(0, 1000);
}

const unknown = safetensors({ "foo.weight": [1] });
const html =
  "<!DOCTYPE html><html><body>not found, sorry about that, please try again later</body></html>";
const pointer =
  "version https://git-lfs.github.com/spec/v1\noid sha256:0000000000000000000000000000000000000000000000000000000000000000\nsize 123\n";

/** The model files that the recordings say were there. */
const MODELS: Tree = {
  "models/checkpoints/unknown_arch.safetensors": withMetadata(),
  "models/checkpoints/sub/inner.safetensors": unknown,
  "models/checkpoints/truncated.safetensors": truncated(),
  "models/checkpoints/empty.safetensors": "",
  "models/checkpoints/seven_bytes.safetensors": "1234567",
  "models/checkpoints/html_page.safetensors": html,
  "models/checkpoints/lfs_pointer.safetensors": pointer,
  "models/checkpoints/bad_header_json.safetensors": Buffer.concat([
    lengthPrefix(80),
    Buffer.from("{broken".padEnd(80)),
  ]),
  "models/checkpoints/html_page.ckpt": html.slice(0, 29),
  "models/checkpoints/zero.ckpt": "",
  "models/checkpoints/foreign_global.ckpt": Buffer.from([
    0x80, 4, 0x95, 0x26, 0, 0, 0, 0, 0, 0, 0, 0x8c,
  ]),
  ...Object.fromEntries(
    [
      "vae",
      "loras",
      "text_encoders",
      "controlnet",
      "clip_vision",
      "style_models",
      "gligen",
      "upscale_models",
      "diffusion_models",
    ].map((folder) => [`models/${folder}/unknown.safetensors`, unknown]),
  ),
  "models/embeddings/wrong.safetensors": unknown,
};

/** Fields whose value differs from run to run, or that only a Python process has. */
const VOLATILE = new Set([
  "timestamp",
  "create_time",
  "execution_start_time",
  "execution_end_time",
  "number",
  "priority",
  "traceback",
  "description",
  "tooltip",
  "current_inputs",
  "has_intermediate_output",
  "total",
  // Checked for 0.33.0 by embedded-object-info.test.ts; those of 0.3.64 are not modelled.
  "category",
]);

/** Several prompts at once: the order of their messages depends on time, only the answers are compared. */
const CONCURRENT = new Set(["0.3.64 err_missing_model"]);

/** Recorded after this one on the same server, whose history it sees. */
const PRELUDES: Readonly<Record<string, string>> = { history_reads: "success_basic" };

/** Lists that stem from Python sets. */
const UNORDERED = new Set(["executed", "current_outputs", "dependent_outputs"]);

/** A value without what may differ: times, temp names, paths, the order of sets. */
function normal(value: Json, key = ""): Json {
  if (VOLATILE.has(key)) {
    return undefined;
  }
  if (typeof value === "string") {
    return value
      .replace(/ComfyUI_temp_[a-z]{5}_/, "ComfyUI_temp_?_")
      .replace(
        /\S*\/(?:models|input|output|temp)(?=[/\s']|$)/g,
        (path) => `/data/${path.split("/").at(-1)}`,
      )
      .replace(/list of length \d+/, "list of length ?")
      .replace(/^<.*(?:object at|of) .*>$/, "<object>")
      .replace(/full_output_folder: .*\n/, "full_output_folder: …\n")
      .replace(/commonpath: .*\n/, "commonpath: …\n");
  }
  if (Array.isArray(value)) {
    if (key === "prompt" && typeof value[0] === "number") {
      // A queue item: its number goes, its outputs are a set.
      return [normal(value[1]), normal(value[2]), normal(value[3]), [...value[4]].sort()];
    }
    const list = value.map((inner) => normal(inner));
    return UNORDERED.has(key) || key === "errors"
      ? list.sort((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1))
      : list;
  }
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(
      Object.entries(value)
        .map(([name, inner]): [string, Json] => [name, normal(inner, name)])
        .filter(([, inner]) => inner !== undefined),
    );
  }
  return value;
}

/** A binary frame in the words of the recordings. */
function describeFrame(frame: Uint8Array): Json {
  const view = new DataView(frame.buffer, frame.byteOffset);
  const event = view.getUint32(0);
  if (event === 1) {
    return { event, format: view.getUint32(4) };
  }
  const length = view.getUint32(4);
  const text = new TextDecoder().decode(frame.subarray(8, 8 + length));
  const rest = new TextDecoder().decode(frame.subarray(8 + length));
  return event === 3 ? { event, node_id: text, text: rest } : { event, metadata: JSON.parse(text) };
}

function recordedFrame({ event, format, node_id, text, metadata }: Json): Json {
  return JSON.parse(JSON.stringify({ event, format, node_id, text, metadata }));
}

function formOf(form: Json): FormData {
  const data = new FormData();
  for (const [name, value] of Object.entries<Json>(form)) {
    if (typeof value === "string") {
      data.append(name, value);
    } else {
      const bytes = Buffer.from(value.base64, "base64");
      data.append(name, new File([bytes], value.filename, { type: value.content_type }));
    }
  }
  return data;
}

function requestOf(step: Step): RequestInit {
  if (step["request_form"] !== undefined) {
    return { method: step["method"], body: formOf(step["request_form"]) };
  }
  const json = step["request_json"];
  const body = json === undefined ? step["request_body"] : JSON.stringify(json);
  return { method: step["method"], ...(body === undefined ? {} : { body }) };
}

/** Answers that tell of the machine, or of nodes that the embedded engine doesn't have. */
const INCOMPARABLE =
  /^\/(?:extensions|system_stats|node_replacements|object_info\/(?:SaveVideo|KSampler)$|experiment\/models|internal\/(?:folder_paths|files))/;

/** A PNG file in the words of the recordings, without the lengths of what was packed. */
function describePng(bytes: Uint8Array): Json {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const chunks: Json[] = [];
  for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
    const body = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    const type = Buffer.from(bytes.subarray(at + 4, at + 8)).toString();
    const [keyword, text] = Buffer.from(body).toString("latin1").split("\0");
    chunks.push(type === "tEXt" ? { type, keyword, text } : { type });
  }
  return {
    width: view.getUint32(16),
    height: view.getUint32(20),
    bit_depth: bytes[24],
    color_type: bytes[25],
    chunks,
  };
}

function recordedPng({ chunks, ...rest }: Json): Json {
  return {
    ...rest,
    chunks: chunks.map(({ type, keyword, text }: Json) =>
      keyword === undefined ? { type } : { type, keyword, text },
    ),
  };
}

async function compareHttp(engine: TestEngine, step: Step): Promise<void> {
  const path: string = step["path"];
  const response = await engine.request(path, requestOf(step));
  const what = `${step["method"]} ${path} ${step["note"] ?? ""}`;
  const bytes = await response.bytes();
  const text = new TextDecoder().decode(bytes);
  expect(`${what}: ${response.status}`).toBe(`${what}: ${step["status"]}`);
  if (INCOMPARABLE.test(path)) {
    return;
  }
  if (step["response_json"] !== undefined) {
    expect(normal(JSON.parse(text))).toEqual(normal(step["response_json"]));
  } else if (step["response_text"] !== undefined) {
    expect(text).toBe(step["response_text"]);
  }
  if (step["response_binary"]?.png !== undefined) {
    expect(describePng(bytes)).toEqual(recordedPng(step["response_binary"].png));
  }
  const headers = step["response_headers"] ?? {};
  for (const name of ["content-type", "content-disposition", "x-content-type-options"]) {
    if (headers[name] !== undefined) {
      expect(`${what}: ${response.headers.get(name)}`).toBe(`${what}: ${headers[name]}`);
    }
  }
}

/** Plays a recording: requests in their order, each once all messages recorded before it have come. */
async function replay(engine: TestEngine, steps: readonly Step[], onlyHttp = false): Promise<void> {
  const sockets = new Map<string, Listener>();
  const expected = new Map<string, Json[]>();
  const settle = async () => {
    for (const [label, listener] of sockets) {
      const wanted = expected.get(label)?.length ?? 0;
      for (let tries = 0; listener.all.length < wanted && tries < 1000; tries++) {
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
    }
  };
  for (const step of steps) {
    const label: string = step["socket"] ?? "";
    if (step.kind === "http") {
      await settle();
      await compareHttp(engine, step);
    } else if (step["event"] === "connect") {
      sockets.set(label, await engine.listen(/clientId=(.*)/.exec(step["path"])?.[1] ?? ""));
    } else if (step["event"] === "send") {
      sockets.get(label)?.socket.send(JSON.stringify(step["json"]));
    } else if (step["event"] === "message" && !onlyHttp) {
      const message = step["json"] ?? recordedFrame(step["binary"]);
      expected.set(label, [...(expected.get(label) ?? []), message]);
    }
  }
  await settle();
  for (const [label, listener] of sockets) {
    const got = listener.all.map((one) => (one instanceof Uint8Array ? describeFrame(one) : one));
    // What came after the recorder had hung up was not recorded.
    const wanted = expected.get(label) ?? [];
    expect(got.slice(0, wanted.length).map((one) => normal(one))).toEqual(
      wanted.map((one) => normal(one)),
    );
    listener.close();
  }
}

describeCases("comfy_transcripts", () => {
  describe.each(["0.33.0", "0.3.64"])("as %s", (version) => {
    const names = readdirSync(casePath("comfy_transcripts", version))
      .map((file) => file.replace(/\.json$/, ""))
      .filter((name) => SKIPPED[name] === undefined);

    const stepsOf = (name: string): Step[] =>
      JSON.parse(readFileSync(casePath("comfy_transcripts", version, `${name}.json`), "utf8"))
        .steps;

    test.each(names)("%s", async (name) => {
      await using engine = new TestEngine(MODELS, ["--compat", version]);
      symlinkSync("/nowhere", engine.dir.join("models/checkpoints/dangling.safetensors"));
      const prelude = PRELUDES[name];
      if (prelude !== undefined) {
        await replay(engine, stepsOf(prelude));
      }
      await replay(engine, stepsOf(name), CONCURRENT.has(`${version} ${name}`));
    });
  });
});
