/** The real process, as a platform sees it: `bun predict.ts`. */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { UPSCALER_2X, weightOrigin } from "./support/app.ts";
import type { TempDir } from "./support/temp-dir.ts";
import { tempDir } from "./support/temp-dir.ts";

interface Running extends AsyncDisposable {
  readonly url: string;
  readonly process: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly log: { text: string };
  health(): Promise<{ status: string; setup?: { status: string; logs?: string } }>;
  until(status: string): Promise<{ status: string; setup?: { status: string; logs?: string } }>;
}

const DEADLINE_MS = 15_000;

async function start(dir: TempDir, env: Readonly<Record<string, string>> = {}): Promise<Running> {
  const child = Bun.spawn(
    [process.execPath, join(PROJECT_ROOT, "predict.ts"), "--host", "127.0.0.1"],
    {
      cwd: dir.path,
      env: {
        PATH: process.env["PATH"] ?? "",
        HOME: dir.path,
        PORT: "0",
        LOG_FORMAT: "console",
        COMFYUI_ENGINE: "embedded",
        COMFYUI_MODELS_DIR: dir.join("models"),
        WORK_DIR: dir.join("work"),
        WEIGHTS_MIN_FREE_BYTES: "1MB",
        ...env,
      },
      stdio: ["ignore", "pipe", "pipe"],
    },
  );
  const log = { text: "" };
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  void (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stderr) {
      log.text += decoder.decode(chunk, { stream: true });
      const url = /Listening on (http:\S+)/.exec(log.text)?.[1];
      if (url !== undefined) {
        resolve(url);
      }
    }
    reject(new Error(`it ended before it listened: ${log.text}`));
  })();
  const url = await promise;
  const health = async () =>
    (await (await fetch(`${url}/health-check`)).json()) as Awaited<ReturnType<Running["health"]>>;
  return {
    url,
    process: child,
    log,
    health,
    until: async (status) => {
      const from = performance.now();
      for (;;) {
        const now = await health();
        if (now.status === status) {
          return now;
        }
        if (performance.now() - from > DEADLINE_MS) {
          throw new Error(
            `still ${now.status}, not ${status}: ${now.setup?.logs ?? ""}\n${log.text}`,
          );
        }
        await Bun.sleep(10);
      }
    },
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function predict(
  server: Running,
  input: unknown,
): Promise<{ status: number; body: Record<string, unknown>; text: string }> {
  const response = await fetch(`${server.url}/predictions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ input }),
  });
  const text = await response.text();
  return { status: response.status, body: text.startsWith("{") ? JSON.parse(text) : {}, text };
}

describe("bun predict.ts", () => {
  test("answers STARTING at once, then READY with the preloaded weight there, and predicts", async () => {
    await using source = weightOrigin();
    using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
    await using server = await start(dir, {
      WEIGHTS_MANIFEST: dir.join("manifest.json"),
      BASE_MODEL_KIT: "tiny",
    });
    expect(["STARTING", "READY"]).toContain((await server.health()).status);
    const ready = await server.until("READY");
    expect(ready.setup).toMatchObject({ status: "succeeded" });
    expect(ready.setup?.logs).toContain("Kit tiny: 1 fetched and verified");
    expect(existsSync(dir.join("models/upscale_models", UPSCALER_2X))).toBe(true);
    const { status, body } = await predict(server, {});
    expect([status, body["status"]]).toEqual([200, "succeeded"]);
    expect(body["output"]).toEqual([expect.stringMatching(/^data:image\/webp;base64,/)]);
    // What was answered is no longer on this machine.
    const left = readdirSync(dir.join("work"), { recursive: true }).filter((name) =>
      /\.(png|webp)$/.test(String(name)),
    );
    expect(left).toEqual([]);
  });

  test("a failed setup keeps the process up to say why; predictions get Cog's 503", async () => {
    using dir = tempDir();
    await using server = await start(dir, { BASE_MODEL_KIT: "sd16" });
    const { setup } = await server.until("SETUP_FAILED");
    expect(setup).toMatchObject({
      status: "failed",
      logs: expect.stringContaining('"sd16" is no kit. Known: '),
    });
    expect((await predict(server, {})).status).toBe(503);
    expect((await fetch(`${server.url}/livez`)).status).toBe(503);
    expect(server.process.exitCode).toBeNull();
  });

  test("a missing weight is a failed prediction with the whole report, and no stack trace reaches the client", async () => {
    using dir = tempDir();
    await using server = await start(dir);
    await server.until("READY");
    const workflowJson = JSON.stringify({
      "1": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "gone.safetensors" } },
      "2": { class_type: "CLIPTextEncode", inputs: { text: "a", clip: ["1", 1] } },
      "3": { class_type: "PreviewAny", inputs: { source: ["2", 0] } },
    });
    const { status, body, text } = await predict(server, { workflow_json: workflowJson });
    expect([status, body["status"]]).toEqual([200, "failed"]);
    expect(body["error"]).toStartWith("Missing required weights: gone.safetensors");
    expect(text).not.toMatch(/\\n\s+at |\.ts:\d+/);
  });

  test.each([
    ["not JSON", "{", /WORKFLOW|JSON/i],
    ["a list", "[]", /list/],
    ["an empty object", "{}", /empty/],
    ["a node without class", '{"1":{"inputs":{}}}', /class/],
    [
      "a link to a missing node",
      '{"1":{"class_type":"SaveImage","inputs":{"images":["7",0],"filename_prefix":"x"}}}',
      /7/,
    ],
  ])(
    "says in one sentence what is wrong with a workflow that is %s",
    async (_what, workflowJson, pattern) => {
      using dir = tempDir();
      await using server = await start(dir);
      await server.until("READY");
      const { body } = await predict(server, { workflow_json: workflowJson });
      expect(body["status"]).toBe("failed");
      expect(String(body["error"])).toMatch(pattern);
      expect(String(body["error"])).not.toMatch(/\n\s+at /);
    },
  );

  test("a port in use is told, with the variable to change", async () => {
    using dir = tempDir();
    await using taken = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
    const child = Bun.spawn(
      [process.execPath, join(PROJECT_ROOT, "predict.ts"), "--host", "127.0.0.1"],
      {
        env: {
          PATH: process.env["PATH"] ?? "",
          PORT: String(taken.port),
          COMFYUI_ENGINE: "embedded",
          WORK_DIR: dir.join("work"),
        },
        stdio: ["ignore", "pipe", "pipe"],
      },
    );
    const [text, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
    expect(code).not.toBe(0);
    expect(text).toContain(`Port ${taken.port} on 127.0.0.1 is in use`);
    expect(text).toContain("PORT");
    expect(text).not.toMatch(/\n\s+at /);
  });

  test("SIGTERM lets a running prediction finish, then ends with 0 and leaves no process and no scratch", async () => {
    using dir = tempDir();
    await using server = await start(dir);
    await server.until("READY");
    const slow = JSON.stringify({
      "1": {
        class_type: "EmptyImage",
        inputs: { width: 1500, height: 1500, batch_size: 1, color: 1 },
      },
      "2": {
        class_type: "ImageScale",
        inputs: {
          image: ["1", 0],
          upscale_method: "lanczos",
          width: 1800,
          height: 1800,
          crop: "disabled",
        },
      },
      "3": { class_type: "SaveImage", inputs: { images: ["2", 0], filename_prefix: "x" } },
    });
    const running = predict(server, { workflow_json: slow });
    await server.until("BUSY");
    server.process.kill("SIGTERM");
    expect((await running).body["status"]).toBe("succeeded");
    expect(await server.process.exited).toBe(0);
    const alive = Bun.spawnSync(["pgrep", "-f", dir.path]).stdout.toString().trim();
    expect(alive).toBe("");
    expect(readdirSync(dir.join("work"))).toEqual([]);
  });

  test("POST /weights/check answers what a workflow needs without running anything", async () => {
    using dir = tempDir();
    await using server = await start(dir);
    await server.until("READY");
    const response = await fetch(`${server.url}/weights/check`, {
      method: "POST",
      body: JSON.stringify({
        "1": { class_type: "VAELoader", inputs: { vae_name: "ae.safetensors" } },
        "2": { class_type: "VAEDecode", inputs: { vae: ["1", 0], samples: ["1", 0] } },
        "3": { class_type: "SaveImage", inputs: { images: ["2", 0], filename_prefix: "x" } },
      }),
    });
    expect(await response.json()).toMatchObject({
      ok: false,
      weights: [
        { name: "ae.safetensors", category: "vae", state: "missing", sizeBytes: 335_304_388 },
      ],
    });
    const wrong = await fetch(`${server.url}/weights/check`, { method: "POST", body: "[]" });
    expect(wrong.status).toBe(422);
    expect(await wrong.json()).toMatchObject({ error: { code: "WORKFLOW_INVALID" } });
  });
});

describe("bin/cog-comfyui", () => {
  async function cli(
    args: readonly string[],
    cwd: string,
    env: Readonly<Record<string, string>> = {},
  ) {
    const child = Bun.spawn([process.execPath, join(PROJECT_ROOT, "predict.ts"), ...args], {
      cwd,
      env: {
        PATH: process.env["PATH"] ?? "",
        HOME: cwd,
        COMFYUI_ENGINE: "embedded",
        COMFYUI_MODELS_DIR: join(cwd, "models"),
        WORK_DIR: join(cwd, "work"),
        WEIGHTS_MIN_FREE_BYTES: "1MB",
        ...env,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [out, err, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { out, err, code };
  }

  test("predict works from a sub-folder with relative paths, as cog predict does", async () => {
    using dir = tempDir({
      "sub/w.json": JSON.stringify({
        "1": { class_type: "EmptyImage", inputs: { width: 8, height: 8, batch_size: 2, color: 9 } },
        "2": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "x" } },
      }),
    });
    const { code, err } = await cli(
      ["predict", "-i", "workflow_json=@w.json", "-i", "output_format=png", "-o", "out/"],
      dir.join("sub"),
    );
    expect(err).toContain(`Written output to: ${dir.join("sub/out/output.0.png")}`);
    expect(code).toBe(0);
    expect(readdirSync(dir.join("sub/out")).sort()).toEqual(["output.0.png", "output.1.png"]);
  });

  test("predict --json prints one document on standard output and nothing else there", async () => {
    using dir = tempDir();
    const { out, code } = await cli(["predict", "--json", "-o", "x.png"], dir.path);
    expect(JSON.parse(out)).toMatchObject({ status: "succeeded", output: [dir.join("x.0.png")] });
    expect(code).toBe(0);
  });

  test.each([
    [["predict", "-i", "nope=1"], 2, /Unknown input: nope/],
    [
      ["predict", "-i", "output_quality=101"],
      1,
      /output_quality: 101 is greater than the maximum of 100/,
    ],
    [["predict", "-i", "workflow_json=@missing.json"], 2, /missing\.json can't be read/],
    [["weights", "check"], 2, /needs an argument/],
    [["weights", "pull", "made-up.safetensors"], 1, /No source is known for made-up\.safetensors/],
    [["nonsense"], 2, /is no command/],
  ])("%p ends with %p and says why", async (args, expected, pattern) => {
    using dir = tempDir();
    const { code, err } = await cli(args, dir.path);
    expect(err).toMatch(pattern);
    expect(code).toBe(expected);
  });

  test("weights check lists what a workflow needs, ends with the line to paste, and exits 3", async () => {
    using dir = tempDir();
    const example = join(PROJECT_ROOT, "examples/api_workflows/flux_dev.json");
    const { out, code } = await cli(["weights", "check", example], dir.path);
    expect(code).toBe(3);
    expect(out).toContain("4 of 4 weights are missing. To download: 34.2 GB.");
    expect(out.trimEnd().split("\n").at(-1)).toBe(`PRELOAD_WORKFLOW=${example}`);
    const json = await cli(["weights", "check", example, "--json"], dir.path);
    expect(JSON.parse(json.out)).toMatchObject({ ok: false, downloadBytes: 34_172_222_116 });
    expect(json.code).toBe(3);
  });

  test("weights pull brings what a workflow needs; check is then satisfied; verify reads every byte; list shows it", async () => {
    await using source = weightOrigin();
    using dir = tempDir({ "manifest.json": JSON.stringify(source.manifest) });
    const env = { WEIGHTS_MANIFEST: dir.join("manifest.json") };
    const example = join(PROJECT_ROOT, "examples/api_workflows/upscale.json");
    expect((await cli(["weights", "check", example], dir.path, env)).code).toBe(3);
    expect((await cli(["weights", "plan", example], dir.path, env)).out).toContain(
      "To download: 21.4 kB",
    );
    expect((await cli(["weights", "pull", example], dir.path, env)).code).toBe(0);
    expect((await cli(["weights", "check", example], dir.path, env)).code).toBe(0);
    expect((await cli(["weights", "verify"], dir.path, env)).out).toContain("(SHA-256)");
    expect((await cli(["weights", "list"], dir.path, env)).out).toContain(
      `upscale_models/${UPSCALER_2X}`,
    );
    mkdirSync(dir.join("models/upscale_models"), { recursive: true });
    writeFileSync(dir.join("models/upscale_models", UPSCALER_2X), "<html>");
    expect((await cli(["weights", "verify"], dir.path, env)).code).toBe(1);
    expect((await cli(["weights", "repair", UPSCALER_2X], dir.path, env)).code).toBe(0);
    expect((await cli(["weights", "verify"], dir.path, env)).code).toBe(0);
  });
});
