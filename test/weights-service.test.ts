/** Weights over HTTP: preloading that does not hold up the server, and the operator's routes. */
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { cogModel, Predictor } from "../predict.ts";
import { samplePicture } from "../scripts/picture.ts";
import { tinyUpscaler } from "../scripts/tiny-upscaler.ts";
import { serverRoutes } from "../src/cli/server-routes.ts";
import { serveCog } from "../src/cog/serve.ts";
import { silentLogger } from "../src/platform/log.ts";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { isAdminRequest } from "../src/routes/admin.ts";
import { rejection, testConfig } from "./support/app.ts";
import type { TempDir } from "./support/temp-dir.ts";
import { tempDir } from "./support/temp-dir.ts";
import { file, isFetch, WeightServer, when } from "./support/weight-server.ts";
import { sha256 } from "./support/weights.ts";

const FIRST = tinyUpscaler(2);
const SECOND = tinyUpscaler(4);
const UPSCALE = readFileSync(join(PROJECT_ROOT, "examples/api_workflows/upscale.json"), "utf8");
const ADMIN = { authorization: "Bearer secret" };

interface Gate {
  open(): void;
  readonly opened: Promise<void>;
}

function gate(): Gate {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { open: resolve, opened: promise };
}

/** A server whose origin serves `first` at once and `second` when the gate opens. */
async function world(env: Readonly<Record<string, string>> = {}) {
  const dir: TempDir = tempDir();
  const origin = await WeightServer.start();
  const held = gate();
  origin.on("/tiny-compact-2x.safetensors", file(FIRST));
  origin.on(
    "/second.safetensors",
    when(
      isFetch,
      async (request, reply) => {
        await held.opened;
        await file(SECOND)(request, reply);
      },
      file(SECOND),
    ),
  );
  const weight = (name: string, body: Uint8Array) => ({
    name,
    category: "upscale_models",
    urls: [origin.url(`/${name}`)],
    size: body.length,
    sha256: sha256(body),
  });
  await Bun.write(
    dir.join("manifest.json"),
    JSON.stringify({
      version: 2,
      weights: [weight("tiny-compact-2x.safetensors", FIRST), weight("second.safetensors", SECOND)],
      kits: { both: ["tiny-compact-2x.safetensors", "second.safetensors"] },
    }),
  );
  const config = testConfig(dir, {
    WEIGHTS_MANIFEST: dir.join("manifest.json"),
    PORT: "0",
    ...env,
  });
  const predictor = new Predictor({ config });
  const server = await serveCog({
    model: cogModel(predictor),
    config,
    logger: silentLogger,
    flags: { host: "127.0.0.1" },
    handleSignals: false,
    routes: (service) => serverRoutes(service, predictor),
    guardsItself: isAdminRequest,
  });
  await server.service.settled();
  const photo = Buffer.from(await samplePicture(20, 16)).toString("base64");
  const call = async (path: string, init: RequestInit = {}) => {
    const response = await fetch(`${server.url}${path}`, init);
    const text = await response.text();
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) };
  };
  return {
    dir,
    origin,
    held,
    predictor,
    server,
    call,
    predict: () =>
      call("/predictions", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({
          input: { workflow_json: UPSCALE, input_file: `data:image/png;base64,${photo}` },
        }),
      }),
    [Symbol.asyncDispose]: async () => {
      held.open();
      await server.stop();
      origin[Symbol.dispose]();
      dir[Symbol.dispose]();
    },
  };
}

function states(body: { weights: { name: string; state: string }[] }): Record<string, string> {
  return Object.fromEntries(body.weights.map(({ name, state }) => [name, state]));
}

describe("PRELOAD_MODE=background", () => {
  test("is READY while weights arrive, and a request waits for the one it needs alone", async () => {
    await using here = await world({ PRELOAD_MODE: "background", BASE_MODEL_KIT: "both" });
    expect(here.server.service.status()).toBe("READY");
    // The second one never comes while this runs.
    const prediction = await here.predict();
    expect(prediction.body).toMatchObject({ status: "succeeded" });
    expect(states((await here.call("/weights")).body)).toMatchObject({
      "tiny-compact-2x.safetensors": "present",
      "second.safetensors": "loading",
    });
    expect((await here.call("/readyz")).status).toBe(200);
    here.held.open();
    await here.predictor.weights.arrivals.background();
    const { body } = await here.call("/weights");
    expect(states(body)).toEqual({
      "tiny-compact-2x.safetensors": "present",
      "second.safetensors": "present",
    });
    expect(body.weights[0]).toMatchObject({ pins: ["preloaded"], last_used: expect.any(String) });
  });

  test("with READY_REQUIRES_WEIGHTS is ready for the router only when all of them are there", async () => {
    await using here = await world({
      PRELOAD_MODE: "background",
      BASE_MODEL_KIT: "both",
      READY_REQUIRES_WEIGHTS: "1",
    });
    const early = await here.call("/readyz");
    expect(early.status).toBe(503);
    expect(early.body.status).toBe("READY");
    here.held.open();
    await here.predictor.weights.arrivals.background();
    expect(await here.call("/readyz")).toMatchObject({ status: 200, body: { status: "READY" } });
  });

  test("a weight whose source fails is told as failed, and tried again by who needs it", async () => {
    await using here = await world({ PRELOAD_MODE: "lazy", BASE_MODEL_KIT: "both" });
    here.origin.on("/tiny-compact-2x.safetensors", (_request, reply) => reply.send(404));
    const failed = await here.predict();
    expect(failed.body.status).toBe("failed");
    expect(failed.body.error).toContain("tiny-compact-2x.safetensors");
    expect(states((await here.call("/weights")).body)["tiny-compact-2x.safetensors"]).toBe(
      "failed",
    );
    here.origin.on("/tiny-compact-2x.safetensors", file(FIRST));
    expect((await here.predict()).body.status).toBe("succeeded");
  });

  test("of a kit that nobody knows ends setup all the same", async () => {
    await using here = await world({ PRELOAD_MODE: "background", BASE_MODEL_KIT: "nonsense" });
    expect(here.server.service.status()).toBe("SETUP_FAILED");
  });
});

describe("PRELOAD_MODE=lazy", () => {
  test("fetches nothing at the start, and each weight at its first use", async () => {
    await using here = await world({ PRELOAD_MODE: "lazy", BASE_MODEL_KIT: "both" });
    expect(here.origin.requests).toEqual([]);
    expect(states((await here.call("/weights")).body)).toEqual({
      "tiny-compact-2x.safetensors": "pending",
      "second.safetensors": "pending",
    });
    expect((await here.predict()).body.status).toBe("succeeded");
    expect(here.origin.requests.map(({ path }) => path)).not.toContain("/second.safetensors");
  });

  test("with WEIGHTS_POLICY=fail lets no request wait, but the weight comes for the next", async () => {
    await using here = await world({
      PRELOAD_MODE: "lazy",
      BASE_MODEL_KIT: "both",
      WEIGHTS_POLICY: "fail",
    });
    expect((await here.predict()).body.status).toBe("failed");
    while (
      states((await here.call("/weights")).body)["tiny-compact-2x.safetensors"] !== "present"
    ) {
      await Bun.sleep(10);
    }
    expect((await here.predict()).body.status).toBe("succeeded");
  });
});

describe("the operator's routes", () => {
  test("are not there without ADMIN_TOKEN", async () => {
    await using here = await world();
    for (const [method, path] of [
      ["POST", "/weights/pull"],
      ["POST", "/weights/verify"],
      ["GET", "/weights/pull/x"],
      ["DELETE", "/weights/loras/a.safetensors"],
    ] as const) {
      expect((await here.call(path, { method, headers: ADMIN })).status).toBe(404);
    }
  });

  test("take no client's token, and nothing that another site's page sends", async () => {
    await using here = await world({ ADMIN_TOKEN: "secret", API_TOKEN: "client" });
    const pull = (headers: Record<string, string>) =>
      here.call("/weights/pull", { method: "POST", headers, body: '{"weights": ["both"]}' });
    expect((await pull({})).status).toBe(401);
    expect((await pull({ authorization: "Bearer client" })).status).toBe(401);
    expect((await pull({ ...ADMIN, origin: "https://evil.example" })).status).toBe(403);
    expect((await pull({ ...ADMIN, origin: "null" })).status).toBe(403);
    expect((await pull({ ...ADMIN, "sec-fetch-site": "cross-site" })).status).toBe(403);
    expect((await pull({ ...ADMIN, origin: here.server.url })).status).toBe(202);
    // And the operator's token opens nothing of the clients'.
    expect((await here.call("/weights", { headers: ADMIN })).status).toBe(401);
  });

  test("pull in the background: an id, its state, its events, its end", async () => {
    await using here = await world({ ADMIN_TOKEN: "secret" });
    const started = await here.call("/weights/pull", {
      method: "POST",
      headers: ADMIN,
      body: '{"weights": ["second.safetensors"]}',
    });
    expect(started.status).toBe(202);
    expect(started.body).toMatchObject({ kind: "pull", state: "running" });
    const { url } = started.body;
    expect((await here.call(url, { headers: ADMIN })).body).toMatchObject({ state: "running" });
    const events = fetch(`${here.server.url}${url}`, {
      headers: { ...ADMIN, accept: "text/event-stream" },
    });
    here.held.open();
    const text = await (await events).text();
    expect(text).toContain("event: completed");
    expect(text).toContain('"state":"succeeded"');
    expect((await here.call(url, { headers: ADMIN })).body).toMatchObject({
      state: "succeeded",
      result: [{ name: "second.safetensors", fetched: true, sha256: sha256(SECOND) }],
    });
  });

  test("cancel a pull, and refuse names and paths that can't be pulled at once", async () => {
    await using here = await world({ ADMIN_TOKEN: "secret" });
    const pull = (weights: unknown) =>
      here.call("/weights/pull", {
        method: "POST",
        headers: ADMIN,
        body: JSON.stringify({ weights }),
      });
    expect((await pull(["no-such.safetensors"])).status).toBe(404);
    expect((await pull(["/etc/passwd.json"])).status).toBe(422);
    expect((await pull("both")).status).toBe(422);
    expect((await pull([])).status).toBe(422);
    const { body } = await pull(["second.safetensors"]);
    await here.call(`${body.url}/cancel`, { method: "POST", headers: ADMIN });
    let state = "running";
    while (state === "running") {
      ({ state } = (await here.call(body.url, { headers: ADMIN })).body);
    }
    expect(state).toBe("canceled");
    const unknown = await here.call("/weights/pull/none/cancel", {
      method: "POST",
      headers: ADMIN,
    });
    expect(unknown.status).toBe(404);
  });

  test("verify reads what is there, and delete refuses what is pinned, and by whom", async () => {
    await using here = await world({ ADMIN_TOKEN: "secret", BASE_MODEL_KIT: "none" });
    await here.predictor.weights.download_weights("tiny-compact-2x.safetensors");
    const started = await here.call("/weights/verify", { method: "POST", headers: ADMIN });
    let { body } = started;
    while (body.state === "running") {
      ({ body } = await here.call(started.body.url, { headers: ADMIN }));
    }
    expect(body.result).toMatchObject([{ by: "sha256", problem: null }]);
    const path = "/weights/upscale_models/tiny-compact-2x.safetensors";
    const located = here.predictor.weights.folders.locate(
      "upscale_models",
      "tiny-compact-2x.safetensors",
    );
    const pin = here.predictor.weights.pin([located ?? ""], "prediction");
    const refused = await here.call(path, { method: "DELETE", headers: ADMIN });
    expect(refused.status).toBe(409);
    expect(refused.body.error.message).toContain("prediction");
    pin[Symbol.dispose]();
    const gone = await here.call(path, { method: "DELETE", headers: ADMIN });
    expect(gone).toEqual({ status: 200, body: { file: located, freed: true } });
    expect(existsSync(located ?? "")).toBe(false);
    expect((await here.call(path, { method: "DELETE", headers: ADMIN })).status).toBe(404);
  });
});

describe("a shared store behind the program", () => {
  test("serves a second instance without its source, and keeps a running prediction's weights", async () => {
    await using here = await world({ BASE_MODEL_KIT: "none" });
    const env = {
      WEIGHTS_MANIFEST: here.dir.join("manifest.json"),
      WEIGHTS_CACHE_DIR: here.dir.join("store"),
    };
    await using one = new Predictor({
      config: testConfig(here.dir, { ...env, COMFYUI_MODELS_DIR: here.dir.join("one") }),
    });
    await one.weights.load_manifest();
    await one.weights.download_weights("tiny-compact-2x.safetensors");
    const asked = here.origin.requests.length;
    await using two = new Predictor({
      config: testConfig(here.dir, { ...env, COMFYUI_MODELS_DIR: here.dir.join("two") }),
    });
    await two.weights.load_manifest();
    const [served] = await two.weights.download_weights("tiny-compact-2x.safetensors");
    expect(served).toMatchObject({ fetched: false, sha256: sha256(FIRST) });
    expect(here.origin.requests.length).toBe(asked);
    const held = two.weights.pin([served?.file ?? ""], "prediction");
    expect(one.weights.store?.list()[0]?.pins.join()).toContain("prediction");
    held[Symbol.dispose]();
    expect(two.weights.remove("upscale_models", "tiny-compact-2x.safetensors").freed).toBe(false);
    expect(one.weights.remove("upscale_models", "tiny-compact-2x.safetensors").freed).toBe(true);
    expect(one.weights.store?.list()).toEqual([]);
  });

  test("a folder of somebody's ends setup, not the process", async () => {
    using dir = tempDir({ "photos/a.jpg": "mine" });
    await using predictor = new Predictor({
      config: testConfig(dir, { WEIGHTS_CACHE_DIR: dir.join("photos") }),
    });
    expect(await rejection(predictor.setup())).toMatchObject({ code: "CONFIG_INVALID" });
  });
});
