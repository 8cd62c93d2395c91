/** `WORKFLOW`: one workflow as an API of its own, by its named inputs. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cogModel, PredictInput, Predictor, servedInputs } from "../predict.ts";
import { samplePicture } from "../scripts/picture.ts";
import { servedDocument } from "../scripts/signature.ts";
import { tinyUpscaler } from "../scripts/tiny-upscaler.ts";
import { inputSchema, openApiDocument, propertiesOf } from "../src/cog/openapi.ts";
import type { CogServer } from "../src/cog/serve.ts";
import { serveCog } from "../src/cog/serve.ts";
import { ServedWorkflow } from "../src/media/served.ts";
import type { JsonObject } from "../src/platform/json.ts";
import { stringifyJson } from "../src/platform/json.ts";
import { silentLogger } from "../src/platform/log.ts";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { ownRoutes } from "../src/routes/own.ts";
import { parseWorkflow } from "../src/workflow/parse.ts";
import { rejection, testConfig, UPSCALER_2X, weightOrigin } from "./support/app.ts";
import { tempDir } from "./support/temp-dir.ts";

const EXAMPLE = join(PROJECT_ROOT, "examples/api_workflows/named_inputs.json");
const APP_MODE = join(PROJECT_ROOT, "examples/ui_workflows/app_mode.json");
const SWITCHES = Object.keys(PredictInput.shape).filter(
  (name) => !["workflow_json", "input_file", "overrides"].includes(name),
);

function pngSize(bytes: Buffer): number[] {
  return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
}

function propertiesFor(inputs: Parameters<typeof openApiDocument>[0]["inputs"]): JsonObject {
  const document = openApiDocument({ inputs, output: { type: "array" }, streaming: false }, "0");
  return propertiesOf(inputSchema(document, "prediction"));
}

/** A graph of ComfyUI's own nodes whose inputs are these rows. */
function servedOf(
  nodes: JsonObject,
  inputs: readonly { name: string; node: string; input: string }[],
): ServedWorkflow {
  return new ServedWorkflow(parseWorkflow(stringifyJson({ _meta: { inputs }, ...nodes })));
}

describe("the server", () => {
  const dir = tempDir();
  const origin = weightOrigin();
  let predictor: Predictor;
  let server: CogServer;
  let photo: Buffer;

  beforeAll(async () => {
    const named = JSON.parse(readFileSync(EXAMPLE, "utf8"));
    // The example with a weight: what is served is preloaded.
    const graph = {
      ...named,
      "4": { class_type: "UpscaleModelLoader", inputs: { model_name: UPSCALER_2X } },
      "5": {
        class_type: "ImageUpscaleWithModel",
        inputs: { upscale_model: ["4", 0], image: ["2", 0] },
      },
    };
    graph["3"].inputs.images = ["5", 0];
    writeFileSync(dir.join("api.json"), JSON.stringify(graph));
    writeFileSync(dir.join("manifest.json"), JSON.stringify(origin.manifest));
    photo = Buffer.from(await samplePicture(40, 30));
    predictor = new Predictor({
      config: testConfig(dir, {
        WORKFLOW: dir.join("api.json"),
        WEIGHTS_MANIFEST: dir.join("manifest.json"),
        PORT: "0",
      }),
    });
    server = await serveCog({
      model: cogModel(predictor),
      config: predictor.config,
      logger: silentLogger,
      flags: { host: "127.0.0.1" },
      handleSignals: false,
      routes: (service) => ownRoutes({ service, predictor }),
    });
    await server.service.settled();
  });
  afterAll(async () => {
    await server.stop();
    await origin[Symbol.asyncDispose]();
    dir[Symbol.dispose]();
  });

  async function predict(input: JsonObject): Promise<{ status: number; body: JsonObject }> {
    const response = await fetch(`${server.url}/predictions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ input }),
    });
    return { status: response.status, body: (await response.json()) as JsonObject };
  }
  const photoUrl = () => `data:image/png;base64,${photo.toString("base64")}`;

  test("has fetched its weights in setup, and is ready", () => {
    expect(server.service.status()).toBe("READY");
    expect(predictor.weights.weight_exists(`upscale_models/${UPSCALER_2X}`)).toBe(true);
  });

  test("shows the named inputs, then the switches; nothing takes a graph", async () => {
    const document = (await (await fetch(`${server.url}/openapi.json`)).json()) as JsonObject;
    const properties = propertiesOf(inputSchema(document, "prediction"));
    const names = Object.entries(properties)
      .sort(
        ([, a], [, b]) =>
          Number((a as JsonObject)["x-order"]) - Number((b as JsonObject)["x-order"]),
      )
      .map(([name]) => name);
    expect(names).toEqual(["photo", "width", "method", ...SWITCHES]);
    expect(properties["photo"]).toMatchObject({
      type: "string",
      format: "uri",
      description: "Picture to enlarge.",
      "x-cog-accept": "image/*",
    });
    expect(properties["width"]).toMatchObject({
      type: "integer",
      minimum: 0,
      maximum: 16_384,
      default: 768,
    });
    expect(document).toMatchObject({
      components: {
        schemas: {
          Input: { required: ["photo"] },
          method: { enum: ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"] },
        },
      },
    });
  });

  test("runs with a client's file and values", async () => {
    const input = { photo: photoUrl(), width: 20, method: "area", output_format: "png" };
    const { status, body } = await predict(input);
    expect([status, body["status"]]).toEqual([200, "succeeded"]);
    const [output] = body["output"] as string[];
    expect(pngSize(Buffer.from(output?.split(",")[1] ?? "", "base64"))).toEqual([40, 30]);
  });

  test.each([
    [{}, "photo", "Field required"],
    [{ photo: "data:,x", width: 99_999 }, "width", "99999 is greater than the maximum of 16384"],
    [{ photo: "data:,x", method: "magic" }, "method", '"magic" is not one of'],
  ])("refuses %j", async (input: JsonObject, name, message) => {
    const { status, body } = await predict(input);
    expect(status).toBe(422);
    expect(body["detail"]).toMatchObject([
      { loc: ["body", "input", name], msg: expect.stringContaining(message) },
    ]);
  });

  test("runs no graph that a client sends, and no override", async () => {
    const { body } = await predict({
      photo: photoUrl(),
      width: 20,
      output_format: "png",
      workflow_json: readFileSync(
        join(PROJECT_ROOT, "examples/api_workflows/several_outputs.json"),
        "utf8",
      ),
      overrides: '{"2.width": 10}',
    });
    expect(body["output"]).toHaveLength(1);
    const [output] = body["output"] as string[];
    expect(pngSize(Buffer.from(output?.split(",")[1] ?? "", "base64"))).toEqual([40, 30]);
  });

  test("answers /weights/check for the served workflow, whatever is sent", async () => {
    const response = await fetch(`${server.url}/weights/check`, { method: "POST", body: "{}" });
    expect(await response.json()).toMatchObject({
      ok: true,
      obstacles: [],
      weights: [{ name: UPSCALER_2X, state: "present" }],
    });
  });
});

describe("setup", () => {
  test.each([
    [
      "whose named inputs fit no node",
      { _meta: { inputs: [{ name: "a", node: "9", input: "x" }] } },
      "there is no node 9",
    ],
    [
      "whose named input has the name of a switch",
      { _meta: { inputs: [{ name: "output_format", node: "1", input: "width" }] } },
      'can\'t be names of inputs: "output_format"',
    ],
    ["that the engine would refuse", { "3": { class_type: "Nowhere", inputs: {} } }, "Nowhere"],
  ])("fails for a workflow %s", async (_what, more, text) => {
    using dir = tempDir({
      "w.json": JSON.stringify({
        ...more,
        "1": { class_type: "EmptyImage", inputs: { width: 8, height: 8, batch_size: 1, color: 0 } },
        "2": { class_type: "PreviewImage", inputs: { images: ["1", 0] } },
      }),
    });
    await using predictor = new Predictor({
      config: testConfig(dir, { WORKFLOW: dir.join("w.json") }),
    });
    expect((await rejection(predictor.setup())).message).toContain(text);
    expect(predictor.inputs).toBe(PredictInput);
  });

  test("takes App Mode's choices of a file that the editor saved, and a weight offered by the engine", async () => {
    using dir = tempDir();
    mkdirSync(dir.join("models/upscale_models"), { recursive: true });
    writeFileSync(dir.join("models/upscale_models", UPSCALER_2X), tinyUpscaler(2));
    await using predictor = new Predictor({ config: testConfig(dir, { WORKFLOW: APP_MODE }) });
    await predictor.setup();
    expect(Object.keys(predictor.inputs.shape)).toEqual([
      "image",
      "width",
      "upscale_method",
      ...SWITCHES,
    ]);
    const picture = dir.join("my photo (1).png");
    writeFileSync(picture, await samplePicture(30, 20));
    const input = { image: picture, width: 15, output_format: "png" };
    const [file = ""] = await predictor.predict(input);
    expect(pngSize(readFileSync(file))).toEqual([15, 10]);
    const missing = await rejection(predictor.predict({ ...input, image: dir.join("gone.png") }));
    expect(missing.message).toContain("gone.png is not there");
    const wrong = await rejection(predictor.predict({ ...input, width: -1, upscale_method: "x" }));
    expect(wrong.message).toMatch(/width: .*; upscale_method: /);
  });

  test("without WORKFLOW the inputs are what they always were", async () => {
    using dir = tempDir();
    await using predictor = new Predictor({ config: testConfig(dir) });
    await predictor.setup();
    expect(predictor.inputs).toBe(PredictInput);
    expect(predictor.servedWorkflow).toBeUndefined();
  });
});

describe("a seed", () => {
  const graph: JsonObject = {
    "1": { class_type: "KSampler", inputs: { seed: 5, steps: 20 } },
    "2": { class_type: "PreviewAny", inputs: { source: ["1", 0] } },
  };
  const served = servedOf(graph, [
    { name: "seed", node: "1", input: "seed" },
    { name: "steps", node: "1", input: "steps" },
  ]);

  test("shows no default: empty is random", () => {
    const properties = propertiesFor(servedInputs(served));
    expect(properties["seed"]).toMatchObject({ type: "integer", default: null, nullable: true });
    expect(properties["steps"]).toMatchObject({ default: 20 });
  });

  test("that a client sends is kept, beyond 2^53 digit for digit", () => {
    const seed = 18_446_744_073_709_551_615n;
    const { workflow, set } = served.fill({ seed, steps: undefined });
    expect(set).toEqual([{ nodeId: "1", input: "seed" }]);
    expect(workflow.graph["1"]?.inputs).toEqual({ seed, steps: 20 });
    expect(servedInputs(served).parse({ seed })).toMatchObject({ seed });
    expect(served.fill({ seed: null }).set).toEqual([]);
  });
});

describe("inputs of every kind", () => {
  const served = servedOf(
    {
      "1": { class_type: "PrimitiveString", inputs: { value: "a" } },
      "2": { class_type: "PrimitiveFloat", inputs: { value: "1.5" } },
      "3": { class_type: "PrimitiveBoolean", inputs: { value: true } },
      "4": { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "mine.safetensors" } },
      "5": { class_type: "TheirNode", inputs: { table: { a: [1] } } },
      "6": { class_type: "LoadImage", inputs: { image: "https://example.com/a.png" } },
      "7": { class_type: "KSampler", inputs: { steps: 999_999, seed: 2 ** 60 } },
      "8": { class_type: "PreviewAny", inputs: { source: ["1", 0] } },
    },
    [
      { name: "text", node: "1", input: "value" },
      { name: "number", node: "2", input: "value" },
      { name: "flag", node: "3", input: "value" },
      { name: "model", node: "4", input: "ckpt_name" },
      { name: "table", node: "5", input: "table" },
      { name: "picture", node: "6", input: "image" },
      { name: "steps", node: "7", input: "steps" },
    ],
  );

  test("have their type; a default or a limit that contradicts the rest doesn't end setup", () => {
    const properties = propertiesFor(servedInputs(served));
    expect(properties).toMatchObject({
      text: { type: "string", default: "a" },
      number: { type: "number", default: 1.5 },
      flag: { type: "boolean", default: true },
      // Nobody knows the files yet.
      model: { type: "string", default: "mine.safetensors" },
      table: { type: "string", default: '{"a":[1]}' },
      // Fetched by its address unless the client sends one.
      picture: { type: "string", format: "uri", nullable: true },
      steps: { type: "integer", minimum: 1, default: 999_999 },
    });
    expect(properties["steps"]).not.toHaveProperty("maximum");
  });

  test("are set where they belong", () => {
    const { workflow, files } = served.fill({
      text: "b",
      number: 2,
      table: '{"b": 12345678901234567890}',
      picture: "/tmp/a.png",
    });
    expect(workflow.graph).toMatchObject({
      "1": { inputs: { value: "b" } },
      "2": { inputs: { value: 2 } },
      "3": { inputs: { value: true } },
      "5": { inputs: { table: { b: 12_345_678_901_234_567_890n } } },
      "6": { inputs: { image: "/tmp/a.png" } },
    });
    expect(files).toEqual(["/tmp/a.png"]);
    expect(() => served.fill({ table: "{" })).toThrow("table is not JSON");
  });
});

test("the signature of a build for one workflow has its named inputs", async () => {
  const properties = propertiesOf(inputSchema(await servedDocument(EXAMPLE), "prediction"));
  expect(Object.keys(properties).slice(0, 3).sort()).toEqual(["method", "photo", "width"]);
});
