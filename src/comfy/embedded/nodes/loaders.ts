/**
 * The core's model loaders: each finds its file, checks it and raises ComfyUI's own errors. What they return can only
 * be passed on; see `nodes/models.ts` for the nodes that would compute with it.
 */
import { basename } from "node:path";
import type { EngineFolders } from "../folders.ts";
import type { ModelFile } from "../model-file.ts";
import { openModelFile } from "../model-file.ts";
import { NodeError } from "../node-error.ts";
import { OpaqueModel } from "../values.ts";
import type { InputTable, NodeDefinition } from "./definition.ts";
import { combo, files, float, output, socket } from "./definition.ts";

interface Loader {
  readonly className: string;
  readonly displayName: string;
  readonly module?: string;
  readonly schema?: NodeDefinition["schema"];
  readonly isOnlyInNew?: boolean;
  readonly required: InputTable;
  readonly optional?: InputTable;
  readonly outputs: string;
  /** Inputs that name a file, and the category it lies in. */
  readonly opens: Readonly<Record<string, string>>;
  /** Raises what the real loader raises for a good file of another kind. */
  readonly judge?: (file: ModelFile) => void;
}

const STRENGTH = float({ default: 1, min: -100, max: 100, step: 0.01 });

/** Tensor names of diffusion models, whatever their prefix. */
const DIFFUSION =
  /(?:^|\.)(?:diffusion_model|input_blocks|down_blocks|double_blocks|single_blocks|joint_blocks|transformer_blocks|single_transformer_blocks|double_layers|net\.blocks|blocks\.\d+|layers\.\d+)\b/;
const VAE = /(?:^|\.)(?:(?:de|en)coder\.|decoder_|taesd_|post_quant_conv|quant_conv)/;
const CONTROLNET =
  /(?:^|\.)(?:control_model|zero_convs|controlnet_|input_hint_block|lora_controlnet|adapter\.body|body\.\d+\.(?:in_conv|block1))/;
const VISION = /(?:vision_model|visual)\./;
const STYLE = /^style_embedding$/;
const GLIGEN = /(?:^|\.)(?:position_net|fuser)\./;

function mustHold(pattern: RegExp, failure: (file: ModelFile) => NodeError) {
  return (file: ModelFile) => {
    const names = file.header === undefined ? undefined : [...file.header.tensors.keys()];
    if (names !== undefined && !names.some((name) => pattern.test(name))) {
      throw failure(file);
    }
  };
}

const judgeDiffusion = mustHold(
  DIFFUSION,
  ({ path }) => new NodeError("RuntimeError", `ERROR: Could not detect model type of: ${path}`),
);
const judgeVae = mustHold(
  VAE,
  () =>
    new NodeError(
      "RuntimeError",
      "ERROR: VAE is invalid: None\n\nIf the VAE is from a checkpoint loader node your checkpoint does not contain a valid VAE.",
    ),
);
const judgeControlNet = mustHold(
  CONTROLNET,
  () =>
    new NodeError(
      "RuntimeError",
      "ERROR: controlnet file is invalid and does not contain a valid controlnet model.",
    ),
);
const judgeVision = mustHold(
  VISION,
  () =>
    new NodeError(
      "RuntimeError",
      "ERROR: clip vision file is invalid and does not contain a valid vision model.",
    ),
);
const judgeStyle = mustHold(
  STYLE,
  ({ path }) => new NodeError("Exception", `invalid style model ${path}`),
);
const judgeGligen = mustHold(
  GLIGEN,
  () =>
    new NodeError(
      "UnboundLocalError",
      "cannot access local variable 'w' where it is not associated with a value",
    ),
);

const CLIP_TYPES =
  "stable_diffusion stable_cascade sd3 stable_audio mochi ltxv pixart cosmos lumina2 wan hidream chroma ace omnigen2 qwen_image hunyuan_image flux2 ovis longcat_image cogvideox lens pixeldit ideogram4 boogu krea2 joyimage mage minimax".split(
    " ",
  );
const DUAL_CLIP_TYPES =
  "sdxl sd3 flux hunyuan_video hidream hunyuan_image hunyuan_video_15 kandinsky5 kandinsky5_image ltxv newbie ace".split(
    " ",
  );
const CLIP_DEVICE: InputTable = { device: combo(["default", "cpu"], { advanced: true }) };

/** VAEs that two files of `vae_approx` make up. */
const APPROXIMATE_VAES = ["taesd", "taesdxl", "taesd3", "taef1", "taef2"];

function approximateVaes(folders: EngineFolders): string[] {
  const names = folders.models.list("vae_approx");
  return APPROXIMATE_VAES.filter((vae) =>
    ["encoder", "decoder"].every((part) =>
      names.some((name) => name.startsWith(`${vae}_${part}.`)),
    ),
  );
}

const VAE_NAME: InputTable = {
  vae_name: {
    type: "COMBO",
    options: (folders) => [
      ...folders.models.list("vae"),
      ...approximateVaes(folders),
      "pixel_space",
    ],
    config: {},
  },
};

/** Values of `vae_name` that name no file of the `vae` folders. */
const FILELESS_VAES = new Set(["pixel_space", ...APPROXIMATE_VAES]);

function clips(count: number): InputTable {
  return Object.fromEntries(
    Array.from({ length: count }, (_, index) => [`clip_name${index + 1}`, files("text_encoders")]),
  );
}

function clipFiles(count: number): Record<string, string> {
  return Object.fromEntries(Object.keys(clips(count)).map((name) => [name, "text_encoders"]));
}

const CHECKPOINT = { ckpt_name: "checkpoints" };

const LOADERS: readonly Loader[] = [
  {
    className: "CheckpointLoaderSimple",
    displayName: "Load Checkpoint",
    required: { ckpt_name: files("checkpoints") },
    outputs: "MODEL CLIP VAE",
    opens: CHECKPOINT,
    judge: judgeDiffusion,
  },
  {
    className: "CheckpointLoader",
    displayName: "Load Checkpoint With Config (DEPRECATED)",
    required: { config_name: files("configs"), ckpt_name: files("checkpoints") },
    outputs: "MODEL CLIP VAE",
    opens: CHECKPOINT,
    judge: judgeDiffusion,
  },
  {
    className: "unCLIPCheckpointLoader",
    displayName: "Load unCLIP Checkpoint",
    required: { ckpt_name: files("checkpoints") },
    outputs: "MODEL CLIP VAE CLIP_VISION",
    opens: CHECKPOINT,
    judge: judgeDiffusion,
  },
  {
    className: "ImageOnlyCheckpointLoader",
    displayName: "Load Checkpoint Image Only (img2vid model)",
    module: "comfy_extras.nodes_video_model",
    required: { ckpt_name: files("checkpoints") },
    outputs: "MODEL CLIP_VISION VAE",
    opens: CHECKPOINT,
    judge: judgeDiffusion,
  },
  {
    className: "UNETLoader",
    displayName: "Load Diffusion Model",
    required: {
      unet_name: files("diffusion_models"),
      weight_dtype: combo(["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"], {
        advanced: true,
      }),
    },
    outputs: "MODEL",
    opens: { unet_name: "diffusion_models" },
    judge: judgeDiffusion,
  },
  {
    className: "VAELoader",
    displayName: "Load VAE",
    required: VAE_NAME,
    outputs: "VAE",
    opens: { vae_name: "vae" },
    judge: judgeVae,
  },
  {
    className: "LoraLoader",
    displayName: "Load LoRA (Model and CLIP)",
    required: {
      model: socket("MODEL"),
      clip: socket("CLIP"),
      lora_name: files("loras"),
      strength_model: STRENGTH,
      strength_clip: STRENGTH,
    },
    outputs: "MODEL CLIP",
    opens: { lora_name: "loras" },
  },
  {
    className: "LoraLoaderModelOnly",
    displayName: "Load LoRA",
    required: { model: socket("MODEL"), lora_name: files("loras"), strength_model: STRENGTH },
    outputs: "MODEL",
    opens: { lora_name: "loras" },
  },
  {
    className: "CLIPLoader",
    displayName: "Load CLIP",
    required: { clip_name: files("text_encoders"), type: combo(CLIP_TYPES) },
    optional: CLIP_DEVICE,
    outputs: "CLIP",
    opens: { clip_name: "text_encoders" },
  },
  {
    className: "DualCLIPLoader",
    displayName: "Load CLIP (Dual)",
    required: { ...clips(2), type: combo(DUAL_CLIP_TYPES) },
    optional: CLIP_DEVICE,
    outputs: "CLIP",
    opens: clipFiles(2),
  },
  {
    className: "TripleCLIPLoader",
    displayName: "Load CLIP (Triple)",
    module: "comfy_extras.nodes_sd3",
    schema: "v3",
    required: clips(3),
    outputs: "CLIP",
    opens: clipFiles(3),
  },
  {
    className: "QuadrupleCLIPLoader",
    displayName: "Load CLIP (Quadruple)",
    module: "comfy_extras.nodes_hidream",
    schema: "v3",
    required: clips(4),
    outputs: "CLIP",
    opens: clipFiles(4),
  },
  {
    className: "ControlNetLoader",
    displayName: "Load ControlNet Model",
    required: { control_net_name: files("controlnet") },
    outputs: "CONTROL_NET",
    opens: { control_net_name: "controlnet" },
    judge: judgeControlNet,
  },
  {
    className: "DiffControlNetLoader",
    displayName: "Load ControlNet Model (diff)",
    required: { model: socket("MODEL"), control_net_name: files("controlnet") },
    outputs: "CONTROL_NET",
    opens: { control_net_name: "controlnet" },
    judge: judgeControlNet,
  },
  {
    className: "CLIPVisionLoader",
    displayName: "Load CLIP Vision",
    required: { clip_name: files("clip_vision") },
    outputs: "CLIP_VISION",
    opens: { clip_name: "clip_vision" },
    judge: judgeVision,
  },
  {
    className: "StyleModelLoader",
    displayName: "Load Style Model",
    required: { style_model_name: files("style_models") },
    outputs: "STYLE_MODEL",
    opens: { style_model_name: "style_models" },
    judge: judgeStyle,
  },
  {
    className: "GLIGENLoader",
    displayName: "Load GLIGEN Model",
    required: { gligen_name: files("gligen") },
    outputs: "GLIGEN",
    opens: { gligen_name: "gligen" },
    judge: judgeGligen,
  },
  {
    className: "HypernetworkLoader",
    displayName: "Load Hypernetwork",
    module: "comfy_extras.nodes_hypernetwork",
    schema: "v3-new",
    required: {
      model: socket("MODEL"),
      hypernetwork_name: files("hypernetworks"),
      strength: float({ default: 1, min: -10, max: 10, step: 0.01 }),
    },
    outputs: "MODEL",
    opens: { hypernetwork_name: "hypernetworks" },
  },
  {
    className: "PhotoMakerLoader",
    displayName: "Load PhotoMaker Model",
    module: "comfy_extras.nodes_photomaker",
    schema: "v3",
    required: { photomaker_model_name: files("photomaker") },
    outputs: "PHOTOMAKER",
    opens: { photomaker_model_name: "photomaker" },
  },
  {
    className: "ModelPatchLoader",
    displayName: "Load Model Patch",
    module: "comfy_extras.nodes_model_patch",
    required: { name: files("model_patches") },
    outputs: "MODEL_PATCH",
    opens: { name: "model_patches" },
  },
  {
    className: "AudioEncoderLoader",
    displayName: "Load Audio Encoder",
    module: "comfy_extras.nodes_audio_encoder",
    schema: "v3",
    required: { audio_encoder_name: files("audio_encoders") },
    outputs: "AUDIO_ENCODER",
    opens: { audio_encoder_name: "audio_encoders" },
  },
  {
    className: "LatentUpscaleModelLoader",
    displayName: "Load Latent Upscale Model",
    module: "comfy_extras.nodes_hunyuan",
    schema: "v3",
    isOnlyInNew: true,
    required: { model_name: files("latent_upscale_models") },
    outputs: "LATENT_UPSCALE_MODEL",
    opens: { model_name: "latent_upscale_models" },
  },
];

/** Names of inputs that leave a LoRA unopened when both are 0. */
const STRENGTHS = ["strength_model", "strength_clip", "strength"];

function define(loader: Loader): NodeDefinition {
  const { opens, judge, outputs, ...rest } = loader;
  const types = outputs.split(" ");
  return {
    ...rest,
    category: "model/loaders",
    module: loader.module ?? "nodes",
    schema: loader.schema ?? "v1",
    outputs: types.map((type) => output(type)),
    run: (inputs, context) => {
      const strengths = STRENGTHS.filter((name) => inputs.has(name));
      const isIdle = strengths.length > 0 && strengths.every((name) => inputs.float(name) === 0);
      const opened = Object.entries(opens).map(([input, category]) => {
        const name = inputs.text(input);
        if (!isIdle && !(category === "vae" && FILELESS_VAES.has(name))) {
          const file = openModelFile(context.folders, category, name);
          judge?.(file);
        }
        return basename(name);
      });
      return { outputs: types.map((type) => new OpaqueModel(type, opened.join(", "))) };
    },
  };
}

export const loaderNodes: readonly NodeDefinition[] = LOADERS.map(define);
