/**
 * Every workflow in `examples/`: those that need no big model run end to end on the embedded engine, the others are
 * taken up to the report of their weights. A new example is tested by being there.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Predictor } from "../predict.ts";
import { samplePicture } from "../scripts/picture.ts";
import { tinyUpscaler } from "../scripts/tiny-upscaler.ts";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { rejection, testConfig, UPSCALER_2X } from "./support/app.ts";
import { tempDir } from "./support/temp-dir.ts";

const EXAMPLES = join(PROJECT_ROOT, "examples");
const files = [...new Bun.Glob("*_workflows/*.json").scanSync(EXAMPLES)].sort();

/** What each example gives: the number of files, or the weights its report names. */
const OUTCOMES: Readonly<Record<string, number | readonly string[]>> = {
  "api_workflows/blend.json": 1,
  "api_workflows/controlnet.json": [
    "v1-5-pruned-emaonly.safetensors",
    "control_v11p_sd15_canny.pth",
  ],
  "api_workflows/flux_dev.json": [
    "flux1-dev.safetensors",
    "t5xxl_fp16.safetensors",
    "clip_l.safetensors",
    "ae.safetensors",
  ],
  "api_workflows/input_from_url.json": 1,
  "api_workflows/lora_and_embeddings.json": [
    "sd_xl_base_1.0.safetensors",
    "sdxl_lightning_8step_lora.safetensors",
  ],
  "api_workflows/lora_from_url.json": [
    "sd_xl_base_1.0.safetensors",
    "https://huggingface.co/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_8step_lora.safetensors",
  ],
  "api_workflows/named_inputs.json": 1,
  "api_workflows/outpaint_mask.json": 2,
  "api_workflows/required_weights.json": 1,
  "api_workflows/resize.json": 1,
  "api_workflows/sd15_txt2img.json": ["v1-5-pruned-emaonly.safetensors"],
  "api_workflows/sdxl_txt2img.json": ["sd_xl_base_1.0.safetensors"],
  "api_workflows/several_outputs.json": 6,
  "api_workflows/upscale.json": 1,
  "ui_workflows/app_mode.json": 1,
  "ui_workflows/upscale.json": 1,
};

const dir = tempDir();
let predictor: Predictor;
let photo: string;
let server: Bun.Server<undefined>;

beforeAll(async () => {
  mkdirSync(dir.join("models/upscale_models"), { recursive: true });
  writeFileSync(dir.join("models/upscale_models", UPSCALER_2X), tinyUpscaler(2));
  photo = dir.join("photo.png");
  const picture = Buffer.from(await samplePicture(48, 32));
  writeFileSync(photo, picture);
  server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: () => new Response(picture, { headers: { "content-type": "image/png" } }),
  });
  predictor = new Predictor({ config: testConfig(dir, { ALLOW_PRIVATE_NETWORK: "1" }) });
  await predictor.setup();
});
afterAll(async () => {
  await predictor[Symbol.asyncDispose]();
  await server.stop(true);
  dir[Symbol.dispose]();
});

test("every example has an expected outcome here, and a line in examples/README.md", () => {
  expect(files).toEqual(Object.keys(OUTCOMES).sort());
  const readme = readFileSync(join(EXAMPLES, "README.md"), "utf8");
  expect(files.filter((file) => !readme.includes(file))).toEqual([]);
});

test.each(files)("%s does what it is for", async (file) => {
  // The example's address is a real one; here its bytes come from this machine.
  const text = readFileSync(join(EXAMPLES, file), "utf8").replaceAll(
    "https://example.com/picture.png",
    `${server.url}picture.png`,
  );
  const outcome = OUTCOMES[file] ?? 0;
  const input = { workflow_json: text, input_file: photo };
  if (typeof outcome === "number") {
    const paths = await predictor.predict(input);
    expect(paths).toHaveLength(outcome);
    expect(paths.every((path) => statSync(path).size > 0)).toBe(true);
  } else {
    const error = await rejection(predictor.predict(input));
    expect(error.message.split("\n")[0]).toBe(`Missing required weights: ${outcome.join(", ")}`);
  }
});
