import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PredictInput, Predictor } from "../predict.ts";
import { samplePicture } from "../scripts/picture.ts";
import { tinyUpscaler } from "../scripts/tiny-upscaler.ts";
import { inputSchema, openApiDocument, propertiesOf } from "../src/cog/openapi.ts";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import {
  keptLog,
  rejection,
  testConfig,
  UPSCALER_2X,
  UPSCALER_4X,
  weightOrigin,
} from "./support/app.ts";
import { TAR_END, tarEntry } from "./support/tar.ts";
import { tempDir } from "./support/temp-dir.ts";

const UPSCALE = readFileSync(join(PROJECT_ROOT, "examples/api_workflows/upscale.json"), "utf8");
const PNG_MAGIC = "89504e470d0a1a0a";

function pngSize(path: string): [number, number] {
  const bytes = readFileSync(path);
  expect(bytes.subarray(0, 8).toString("hex")).toBe(PNG_MAGIC);
  return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
}

function tarOf(files: Readonly<Record<string, Uint8Array>>): Uint8Array {
  const entries = Object.entries(files).map(([name, content]) => tarEntry({ name, body: content }));
  return Buffer.concat([...entries, TAR_END]);
}

describe("the inputs", () => {
  const properties = propertiesOf(
    inputSchema(
      openApiDocument({ inputs: PredictInput, output: { type: "array" }, streaming: false }, "0"),
      "prediction",
    ),
  );

  test("begin with the original's seven and the two of the weight check, types and defaults included", () => {
    const first = Object.entries(properties)
      .sort(
        ([, a], [, b]) =>
          Number((a as { "x-order": number })["x-order"]) -
          Number((b as { "x-order": number })["x-order"]),
      )
      .slice(0, 9)
      .map(([name, property]) => {
        const {
          type,
          format,
          default: value,
          minimum,
          maximum,
          allOf,
        } = property as Record<string, unknown>;
        return [
          name,
          type ?? (allOf === undefined ? "?" : "choice"),
          format ?? "",
          value,
          minimum,
          maximum,
        ];
      });
    expect(first).toEqual([
      ["workflow_json", "string", "", "", undefined, undefined],
      ["input_file", "string", "uri", null, undefined, undefined],
      ["return_temp_files", "boolean", "", false, undefined, undefined],
      ["output_format", "choice", "", "webp", undefined, undefined],
      ["output_quality", "integer", "", 95, 0, 100],
      ["randomise_seeds", "boolean", "", true, undefined, undefined],
      ["force_reset_cache", "boolean", "", false, undefined, undefined],
      ["skip_weight_check", "boolean", "", false, undefined, undefined],
      ["download_missing_weights", "boolean", "", false, undefined, undefined],
    ]);
  });

  test("fill in every default", () => {
    expect(PredictInput.parse({})).toMatchObject({
      workflow_json: "",
      output_format: "webp",
      output_quality: 95,
      overrides: "",
    });
  });
});

describe("setup", () => {
  test("unpacks user weights, fetches kit and workflow, starts the engine; then everything is there", async () => {
    await using source = weightOrigin();
    const user = tarOf({ "loras/mine.safetensors": tinyUpscaler(2) });
    using dir = tempDir({
      "manifest.json": JSON.stringify(source.manifest),
      "user.tar": user,
      "w.json": UPSCALE.replace(UPSCALER_2X, UPSCALER_4X),
    });
    const { log, lines } = keptLog();
    await using predictor = new Predictor({
      config: testConfig(dir, {
        WEIGHTS_MANIFEST: dir.join("manifest.json"),
        COG_WEIGHTS: dir.join("user.tar"),
        BASE_MODEL_KIT: "tiny",
        PRELOAD_WORKFLOW: dir.join("w.json"),
      }),
      log,
    });
    await predictor.setup();
    expect(predictor.comfyui.is_server_running()).toBe(true);
    for (const name of [
      "loras/mine.safetensors",
      `upscale_models/${UPSCALER_2X}`,
      `upscale_models/${UPSCALER_4X}`,
    ]) {
      expect(predictor.weights.weight_exists(name)).toBe(true);
    }
    const order = ["User weights", "Kit tiny", "Preloading"].map((word) =>
      lines.findIndex((line) => line.startsWith(word)),
    );
    expect(order).toEqual(order.toSorted((a, b) => a - b));
    expect(order).not.toContain(-1);
  });

  test("takes the weights given as an argument before COG_WEIGHTS", async () => {
    using dir = tempDir({
      "a.tar": tarOf({ "loras/a.safetensors": tinyUpscaler(2) }),
      "b.tar": tarOf({ "loras/b.safetensors": tinyUpscaler(2) }),
    });
    await using predictor = new Predictor({
      config: testConfig(dir, { COG_WEIGHTS: dir.join("b.tar") }),
    });
    await predictor.preload(dir.join("a.tar"));
    expect([
      predictor.weights.weight_exists("a.safetensors"),
      predictor.weights.weight_exists("b.safetensors"),
    ]).toEqual([true, false]);
  });

  test.each([
    ["an unknown kit", { BASE_MODEL_KIT: "sd16" }, "KIT_UNKNOWN", "sdxl"],
    [
      "a workflow that is not there",
      { PRELOAD_WORKFLOW: "/no/such/file.json" },
      "WORKFLOW_UNREADABLE",
      "/no/such/file.json",
    ],
    [
      "user weights that are not there",
      { COG_WEIGHTS: "/no/such.tar" },
      "CONFIG_INVALID",
      "/no/such.tar",
    ],
    [
      "a manifest that is not there",
      { WEIGHTS_MANIFEST: "/no/such.json" },
      "MANIFEST_INVALID",
      "/no/such.json",
    ],
  ])("fails with its reason for %s", async (_what, env, code, word) => {
    using dir = tempDir();
    await using predictor = new Predictor({ config: testConfig(dir, env) });
    const error = await rejection(predictor.setup());
    expect(error.code).toBe(code);
    expect(error.message).toContain(word);
  });

  test.each([
    ["with ../ in it", "../evil.safetensors"],
    ["with an absolute path in it", "/tmp/evil.safetensors"],
  ])("refuses a tar %s and leaves nothing behind", async (_what, name) => {
    using dir = tempDir({
      "user.tar": tarOf({
        "loras/good.safetensors": tinyUpscaler(2),
        [name]: tinyUpscaler(2),
      }),
    });
    await using predictor = new Predictor({ config: testConfig(dir) });
    expect((await rejection(predictor.handle_user_weights(dir.join("user.tar")))).code).toBe(
      "ARCHIVE_UNSAFE",
    );
    expect(existsSync(dir.join("models/loras/good.safetensors"))).toBe(false);
    expect(existsSync(dir.join("evil.safetensors"))).toBe(false);
  });

  test("a preloaded workflow whose weight nobody has ends setup with the report", async () => {
    using dir = tempDir({ "w.json": UPSCALE });
    await using predictor = new Predictor({
      config: testConfig(dir, { PRELOAD_WORKFLOW: dir.join("w.json") }),
    });
    const error = await rejection(predictor.setup());
    expect(error.code).toBe("WEIGHTS_MISSING");
    expect(error.message).toStartWith(`Missing required weights: ${UPSCALER_2X}`);
  });

  test("says that a models folder is not writable", async () => {
    await using source = weightOrigin();
    using dir = tempDir({
      "manifest.json": JSON.stringify(source.manifest),
      models: "a file, not a folder",
    });
    await using predictor = new Predictor({
      config: testConfig(dir, {
        WEIGHTS_MANIFEST: dir.join("manifest.json"),
        BASE_MODEL_KIT: "tiny",
      }),
    });
    const error = await rejection(predictor.preload());
    expect(error.message).toContain(dir.join("models"));
  });
});

describe("predict", () => {
  const dir = tempDir();
  const origin = weightOrigin();
  let predictor: Predictor;
  let photo: string;
  const { log, lines } = keptLog();

  beforeAll(async () => {
    mkdirSync(dir.join("models/upscale_models"), { recursive: true });
    writeFileSync(dir.join("models/upscale_models", UPSCALER_2X), tinyUpscaler(2));
    writeFileSync(dir.join("manifest.json"), JSON.stringify(origin.manifest));
    photo = dir.join("photo.png");
    writeFileSync(photo, await samplePicture(40, 30));
    predictor = new Predictor({
      config: testConfig(dir, { WEIGHTS_MANIFEST: dir.join("manifest.json") }),
      log,
    });
    await predictor.setup();
  });
  afterAll(async () => {
    await predictor[Symbol.asyncDispose]();
    await origin[Symbol.asyncDispose]();
    dir[Symbol.dispose]();
  });

  test("upscales a picture with a weight and returns the file", async () => {
    const files = await predictor.predict({
      workflow_json: UPSCALE,
      input_file: photo,
      output_format: "png",
    });
    expect(files.map(pngSize)).toEqual([[80, 60]]);
  });

  test("a changed tensor gives other pixels", async () => {
    const bytes = Buffer.from(tinyUpscaler(2));
    // The last four bytes of the file belong to the last tensor: a bias of one sub-pixel.
    bytes.writeFloatLE(0.5, bytes.length - 4);
    writeFileSync(dir.join("models/upscale_models/changed.safetensors"), bytes);
    const run = async (name: string) => {
      const [file = ""] = await predictor.predict({
        workflow_json: UPSCALE.replace(UPSCALER_2X, name),
        input_file: photo,
        output_format: "png",
      });
      return readFileSync(file);
    };
    const [one, other] = [await run(UPSCALER_2X), await run("changed.safetensors")];
    expect(one.equals(other)).toBe(false);
  });

  test("converts to the format asked for", async () => {
    const magic: Record<string, string> = {};
    for (const format of ["webp", "jpg", "png"] as const) {
      const [file = ""] = await predictor.predict({ output_format: format, output_quality: 80 });
      expect(file).toEndWith(`.${format}`);
      magic[format] = readFileSync(file).subarray(0, 3).toString("hex");
    }
    expect(magic).toEqual({ webp: "524946", jpg: "ffd8ff", png: "89504e" });
  });

  test("returns temporary files only when asked", async () => {
    const workflowJson = readFileSync(
      join(PROJECT_ROOT, "examples/api_workflows/several_outputs.json"),
      "utf8",
    );
    expect(await predictor.predict({ workflow_json: workflowJson })).toHaveLength(6);
    expect(
      await predictor.predict({ workflow_json: workflowJson, return_temp_files: true }),
    ).toHaveLength(9);
    expect(
      await predictor.predict({ workflow_json: workflowJson, return_temp_files: true }),
    ).toHaveLength(9);
  });

  test("fails before the engine is asked anything when a weight is missing", async () => {
    lines.length = 0;
    const error = await rejection(
      predictor.predict({
        workflow_json: UPSCALE.replace(UPSCALER_2X, "nope.safetensors"),
        input_file: photo,
      }),
    );
    expect(error.message).toStartWith("Missing required weights: nope.safetensors");
    expect(lines.filter((line) => /got prompt/.test(line))).toEqual([]);
  });

  test("fetches a missing weight when the request asks for it, then runs", async () => {
    const workflowJson = UPSCALE.replace(UPSCALER_2X, UPSCALER_4X);
    const input = { workflow_json: workflowJson, input_file: photo, output_format: "png" as const };
    expect((await rejection(predictor.predict(input))).code).toBe("WEIGHTS_MISSING");
    const files = await predictor.predict({ ...input, download_missing_weights: true });
    expect(files.map(pngSize)).toEqual([[160, 120]]);
  });

  test("honours _meta.required_weights of the guide's form", async () => {
    const guide = JSON.parse(
      readFileSync(join(PROJECT_ROOT, "examples/api_workflows/required_weights.json"), "utf8"),
    );
    expect(await predictor.predict({ workflow_json: JSON.stringify(guide) })).toHaveLength(1);
    guide._meta.required_weights.push("another.safetensors");
    const error = await rejection(predictor.predict({ workflow_json: JSON.stringify(guide) }));
    expect(error.message).toStartWith("Missing required weights: another.safetensors");
  });

  test("skip_weight_check checks nothing, says so, and leaves the failure to ComfyUI", async () => {
    lines.length = 0;
    const error = await rejection(
      predictor.predict({
        workflow_json: UPSCALE.replace(UPSCALER_2X, "nope.safetensors"),
        input_file: photo,
        skip_weight_check: true,
      }),
    );
    expect(error.code).toBe("PROMPT_REJECTED");
    expect(lines.some((line) => line.includes("skip_weight_check"))).toBe(true);
  });

  test("runs an example when no workflow is given, and says which", async () => {
    const told: string[] = [];
    expect(await predictor.predict({}, { log: (line) => told.push(line) })).toHaveLength(1);
    expect(told[0]).toContain("examples/api_workflows/blend.json");
  });

  test("takes the uploaded file as the workflow when workflow_json says so", async () => {
    const file = dir.join("uploaded.json");
    writeFileSync(
      file,
      readFileSync(join(PROJECT_ROOT, "examples/api_workflows/outpaint_mask.json")),
    );
    expect(await predictor.predict({ workflow_json: "input_file", input_file: file })).toHaveLength(
      2,
    );
    expect((await rejection(predictor.predict({ workflow_json: "input_file" }))).message).toContain(
      "no input_file",
    );
  });

  test("sets values by overrides, before weights are looked for", async () => {
    const overrides = JSON.stringify({ "2.model_name": "other.safetensors" });
    const error = await rejection(
      predictor.predict({ workflow_json: UPSCALE, input_file: photo, overrides }),
    );
    expect(error.message).toStartWith("Missing required weights: other.safetensors");
    const wrong = await rejection(predictor.predict({ overrides: '{"99.text": "x"}' }));
    expect(wrong).toMatchObject({
      code: "INPUT_INVALID",
      message: expect.stringContaining("99.text"),
    });
  });

  test("says in the log how many weights were checked and how long that took", async () => {
    const told: string[] = [];
    await predictor.predict(
      { workflow_json: UPSCALE, input_file: photo },
      { log: (line) => told.push(line) },
    );
    expect(told.some((line) => /^1 weight checked in \d+\.\d ms, all there$/.test(line))).toBe(
      true,
    );
  });

  test("a node that can't load its weight says whether the file is whole, and names only that one", async () => {
    // A safetensors file that is whole, of a network that no upscaler is.
    const header = JSON.stringify({ x: { dtype: "F32", shape: [1], data_offsets: [0, 4] } });
    const bytes = Buffer.alloc(8 + header.length + 4);
    bytes.writeBigUInt64LE(BigInt(header.length));
    bytes.write(header, 8);
    writeFileSync(dir.join("models/upscale_models/odd.safetensors"), bytes);
    const error = await rejection(
      predictor.predict({
        workflow_json: UPSCALE.replace(UPSCALER_2X, "odd.safetensors"),
        input_file: photo,
      }),
    );
    expect(error.code).toBe("NODE_FAILED");
    expect(error.message).toContain("Its weight odd.safetensors (");
    expect(error.message).toContain("is whole: its format is right, no SHA-256 is known.");
    expect(error.message).not.toContain(UPSCALER_2X);
  });

  test("a cancelled prediction ends, and the next one runs", async () => {
    const slow = {
      "1": {
        class_type: "EmptyImage",
        inputs: { width: 2000, height: 2000, batch_size: 1, color: 1 },
      },
      "2": {
        class_type: "ImageScale",
        inputs: {
          image: ["1", 0],
          upscale_method: "lanczos",
          width: 3000,
          height: 3000,
          crop: "disabled",
        },
      },
      "3": {
        class_type: "ImageScale",
        inputs: {
          image: ["2", 0],
          upscale_method: "lanczos",
          width: 2000,
          height: 2000,
          crop: "disabled",
        },
      },
      "4": { class_type: "SaveImage", inputs: { images: ["3", 0], filename_prefix: "x" } },
    };
    const ending = new AbortController();
    const running = rejection(
      predictor.predict(
        { workflow_json: JSON.stringify(slow) },
        { signal: ending.signal, log: () => ending.abort() },
      ),
    );
    expect((await running).code).toBe("CANCELED");
    expect(await predictor.predict({})).toHaveLength(1);
  });

  test("leaves no file behind once its outputs are taken away", async () => {
    const output = join(dir.path, "work");
    const count = (): number =>
      readdirSync(output, { recursive: true, withFileTypes: true }).filter(
        (entry) => entry.isFile() && /\.(png|webp|jpg)$/.test(entry.name),
      ).length;
    const before = count();
    const files = await predictor.predict({ workflow_json: UPSCALE, input_file: photo });
    expect(files.every((file) => statSync(file).isFile())).toBe(true);
    predictor.comfyui.cleanup(files);
    expect(count()).toBe(before);
  });
});
