/** As much of a ComfyUI as is asked before anything runs: what it is, its classes, its folders, its log. */
export interface ComfyStub extends AsyncDisposable {
  readonly url: string;
  /** Classes beside ComfyUI's few below; change them as if it had been started anew. */
  info: Record<string, unknown>;
  log: string;
  /** How often its classes were asked for. */
  asked: number;
}

const OUTPUT = { output: [], output_node: true };

const INFO = {
  EmptyImage: {
    input: { required: { width: ["INT", { min: 1, max: 100 }], height: ["INT", {}] } },
    output: ["IMAGE"],
  },
  SaveImage: {
    ...OUTPUT,
    input: { required: { images: ["IMAGE"], filename_prefix: ["STRING", {}] } },
  },
  UpscaleModelLoader: {
    input: { required: { model_name: [["there.safetensors"]] } },
    output: ["UPSCALE_MODEL"],
  },
  PreviewAny: { ...OUTPUT, input: { required: { source: ["*"] } } },
};

export function comfyStub(): ComfyStub {
  const stub = { info: {}, log: "", asked: 0 };
  const answers: Readonly<Record<string, () => unknown>> = {
    "/system_stats": () => ({ system: { comfyui_version: "0.33.0", argv: [] }, devices: [] }),
    "/object_info": () => {
      stub.asked += 1;
      return { ...INFO, ...stub.info };
    },
    "/internal/folder_paths": () => ({}),
    "/internal/logs/raw": () => ({
      entries: [{ t: "2026-01-01", m: stub.log }],
      size: { cols: 80, rows: 24 },
    }),
  };
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: (request) => {
      const answer = answers[new URL(request.url).pathname];
      return answer === undefined ? new Response(null, { status: 404 }) : Response.json(answer());
    },
  });
  return Object.assign(stub, {
    url: server.url.href,
    [Symbol.asyncDispose]: () => server.stop(true),
  });
}
