/**
 * The twin of the small predictor that Cog's recordings were made with: the inputs of cog-comfyui, files out, no
 * ComfyUI. An `EmptyImage` graph yields `batch_size` pictures, a graph that names a checkpoint fails.
 */
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { z } from "zod";
import { boolInput, choiceInput, fileInput, intInput, stringInput } from "../../src/cog/inputs.ts";
import type { CogModel, PredictionContext, SetupContext } from "../../src/cog/predictor.ts";
import { OutputFile } from "../../src/cog/predictor.ts";
import { AppError, InputError } from "../../src/platform/errors.ts";

export const TwinInput = z.object({
  workflow_json: stringInput({ default: "", description: "Your ComfyUI workflow as JSON." }),
  input_file: fileInput({ description: "Input image, tar or zip file." }),
  return_temp_files: boolInput({ default: false, description: "Return any temporary files." }),
  output_format: choiceInput(["webp", "jpg", "png"], {
    default: "webp",
    description: "Format of the output images.",
  }),
  output_quality: intInput({
    default: 95,
    min: 0,
    max: 100,
    description: "Quality of the output images, from 0 to 100.",
  }),
  randomise_seeds: boolInput({ default: true, description: "Automatically randomise seeds." }),
  force_reset_cache: boolInput({ default: false, description: "Force reset the ComfyUI cache." }),
  skip_weight_check: boolInput({ default: false, description: "Skip the check of weights." }),
  download_missing_weights: boolInput({ default: false, description: "Download missing weights." }),
});

const Graph = z.record(
  z.string(),
  z.object({ class_type: z.string(), inputs: z.record(z.string(), z.unknown()).default({}) }),
);

/** A grey picture of 1 × 1. */
const PIXEL = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
  "base64",
);

export interface TwinOptions {
  readonly streaming?: boolean;
  /** Setup waits until this address answers 200, and fails when it does not. */
  readonly setupUrl?: string;
  /** Replaces the setup. */
  readonly setup?: (context: SetupContext) => Promise<void>;
  /** Called with every running prediction before it does anything. */
  readonly during?: (
    context: PredictionContext,
    input: z.output<typeof TwinInput>,
  ) => Promise<void>;
  readonly healthcheck?: () => Promise<boolean>;
}

export class Twin implements CogModel {
  readonly inputs = TwinInput;
  readonly output: CogModel["output"];
  readonly streaming: boolean;
  readonly healthcheck?: () => Promise<boolean>;
  readonly #options: TwinOptions;
  readonly #folder = mkdtempSync(join(tmpdir(), "cog-twin-"));
  #count = 0;

  constructor(options: TwinOptions = {}) {
    this.#options = options;
    this.streaming = options.streaming ?? false;
    this.output = {
      type: "array",
      items: { type: "string", format: "uri" },
      ...(this.streaming ? { "x-cog-array-type": "iterator" } : {}),
    };
    if (options.healthcheck !== undefined) {
      this.healthcheck = options.healthcheck;
    }
  }

  async setup(context: SetupContext): Promise<void> {
    context.log("Loading the model");
    await this.#options.setup?.(context);
    if (this.#options.setupUrl !== undefined) {
      const response = await fetch(this.#options.setupUrl, { signal: context.signal });
      if (!response.ok) {
        throw new AppError("INTERNAL", `HTTP Error ${response.status}`);
      }
    }
  }

  predict(raw: Record<string, unknown>, context: PredictionContext) {
    return this.streaming ? this.#chunks(raw, context) : this.#collect(raw, context);
  }

  dispose(): Promise<void> {
    rmSync(this.#folder, { recursive: true, force: true });
    return Promise.resolve();
  }

  async #collect(raw: Record<string, unknown>, context: PredictionContext): Promise<OutputFile[]> {
    return await Array.fromAsync(this.#chunks(raw, context));
  }

  async *#chunks(
    raw: Record<string, unknown>,
    context: PredictionContext,
  ): AsyncGenerator<OutputFile> {
    const input = TwinInput.parse(raw);
    await this.#options.during?.(context, input);
    context.log("Checking weights");
    context.log("checking on stderr", "stderr");
    if (input.input_file !== undefined) {
      context.log(`input_file ${basename(input.input_file)} ${statSync(input.input_file).size}`);
    }
    const nodes = Object.entries(parseGraph(input.workflow_json));
    const loader = nodes.find(([, node]) => "ckpt_name" in node.inputs);
    if (loader !== undefined) {
      const [id, node] = loader;
      throw new InputError(
        "WEIGHTS_MISSING",
        `1 weight is missing\n  node ${id} ${node.class_type} ckpt_name: ${String(node.inputs["ckpt_name"])}\n  not found in models/checkpoints`,
      );
    }
    const image = nodes.find(([, node]) => node.class_type === "EmptyImage")?.[1];
    for (let index = 0; index < Number(image?.inputs["batch_size"] ?? 1); index += 1) {
      yield this.#picture(index, input.output_format);
    }
    context.log("Executed");
  }

  #picture(index: number, format: string): OutputFile {
    this.#count += 1;
    const folder = mkdtempSync(join(this.#folder, `run-${this.#count}-`));
    const path = join(folder, `ComfyUI_${String(index + 1).padStart(5, "0")}_.${format}`);
    writeFileSync(path, PIXEL);
    return new OutputFile(path);
  }
}

function parseGraph(text: string): z.output<typeof Graph> {
  try {
    return Graph.parse(JSON.parse(text));
  } catch (cause) {
    throw new InputError("WORKFLOW_INVALID", "workflow_json is no workflow", { cause });
  }
}
