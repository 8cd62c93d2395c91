/**
 * Nodes that compute with a diffusion model. The embedded engine knows what they look like, so that a workflow is
 * checked to the end, and says how to get a real ComfyUI once one of them should run.
 */
import { needsRealComfy } from "../node-error.ts";
import { EmptyLatent } from "../values.ts";
import type { InputTable, NodeDefinition } from "./definition.ts";
import { combo, float, int, MAX_RESOLUTION, output, socket, text } from "./definition.ts";

const SAMPLERS =
  "euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2".split(
    " ",
  );
const SCHEDULERS =
  "simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal".split(
    " ",
  );

const SEED = int({
  default: 0,
  min: 0,
  max: 18_446_744_073_709_551_615n,
  control_after_generate: true,
});
const STEPS = int({ default: 20, min: 1, max: 10_000 });
const CFG = float({ default: 8, min: 0, max: 100, step: 0.1, round: 0.01 });
const FRACTION = float({ default: 1, min: 0, max: 1, step: 0.01 });
const CONDITIONING = socket("CONDITIONING");
const LATENT = socket("LATENT");
const LATENT_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"];
const SAMPLING = "comfy_extras.nodes_custom_sampler";

function latentSide(fallback: number, min: number, step: number) {
  return int({ default: fallback, min, max: MAX_RESOLUTION, step });
}

/** One of these nodes: class, title and category in one line, then what it takes and gives. */
function unsupported(
  [className, displayName, category, module = "nodes"]: readonly [string, string, string, string?],
  required: InputTable,
  outputs: string,
  more: Partial<NodeDefinition> = {},
): NodeDefinition {
  return {
    className,
    displayName,
    category,
    module,
    schema: "v1",
    required,
    outputs: outputs.split(" ").map((word) => {
      const [type = "", name] = word.split("=");
      return output(type, name);
    }),
    run: () => {
      throw needsRealComfy(`Node "${className}" can't run here.`);
    },
    ...more,
  };
}

function emptyLatent(
  head: readonly [string, string, string, string?],
  sides: readonly [fallback: number, step: number, channels: number],
  schema: "v1" | "v3-new",
): NodeDefinition {
  const [fallback, step, channels] = sides;
  const required = {
    width: latentSide(fallback, 16, step),
    height: latentSide(fallback, 16, step),
    batch_size: int({ default: 1, min: 1, max: 4096 }),
  };
  return unsupported(head, required, "LATENT", {
    schema,
    run: (inputs) => {
      const [height, width] = ["height", "width"].map((name) => Math.floor(inputs.int(name) / 8));
      const shape = [inputs.int("batch_size"), channels, height ?? 0, width ?? 0];
      return { outputs: [new EmptyLatent(shape)] };
    },
  });
}

const samplerInputs: InputTable = {
  sampler_name: combo(SAMPLERS),
  scheduler: combo(SCHEDULERS),
};

export const modelNodes: readonly NodeDefinition[] = [
  emptyLatent(["EmptyLatentImage", "Empty Latent Image", "model/latent"], [512, 8, 4], "v1"),
  emptyLatent(
    [
      "EmptySD3LatentImage",
      "EmptySD3LatentImage",
      "model/latent/stable diffusion",
      "comfy_extras.nodes_sd3",
    ],
    [1024, 16, 16],
    "v3-new",
  ),
  unsupported(
    ["CLIPTextEncode", "CLIP Text Encode (Prompt)", "model/conditioning"],
    { text: text({ multiline: true, dynamicPrompts: true }), clip: socket("CLIP") },
    "CONDITIONING",
  ),
  unsupported(
    ["CLIPSetLastLayer", "CLIP Set Last Layer", "model/conditioning"],
    {
      clip: socket("CLIP"),
      stop_at_clip_layer: int({ default: -1, min: -24, max: -1, step: 1, advanced: true }),
    },
    "CLIP",
  ),
  unsupported(
    ["CLIPVisionEncode", "CLIP Vision Encode", "model/conditioning"],
    { clip_vision: socket("CLIP_VISION"), image: socket("IMAGE"), crop: combo(["center", "none"]) },
    "CLIP_VISION_OUTPUT",
  ),
  unsupported(
    ["KSampler", "KSampler", "model/sampling"],
    {
      model: socket("MODEL"),
      seed: SEED,
      steps: STEPS,
      cfg: CFG,
      ...samplerInputs,
      positive: CONDITIONING,
      negative: CONDITIONING,
      latent_image: LATENT,
      denoise: FRACTION,
    },
    "LATENT",
  ),
  unsupported(
    ["KSamplerAdvanced", "KSampler (Advanced)", "model/sampling"],
    {
      model: socket("MODEL"),
      add_noise: combo(["enable", "disable"], { advanced: true }),
      noise_seed: SEED,
      steps: STEPS,
      cfg: CFG,
      ...samplerInputs,
      positive: CONDITIONING,
      negative: CONDITIONING,
      latent_image: LATENT,
      start_at_step: int({ default: 0, min: 0, max: 10_000, advanced: true }),
      end_at_step: int({ default: 10_000, min: 0, max: 10_000, advanced: true }),
      return_with_leftover_noise: combo(["disable", "enable"], { advanced: true }),
    },
    "LATENT",
  ),
  unsupported(
    ["KSamplerSelect", "KSamplerSelect", "model/sampling/samplers", SAMPLING],
    { sampler_name: combo(SAMPLERS) },
    "SAMPLER",
    { schema: "v3-new" },
  ),
  unsupported(
    ["BasicScheduler", "BasicScheduler", "model/sampling/schedulers", SAMPLING],
    {
      model: socket("MODEL"),
      scheduler: combo(SCHEDULERS),
      steps: STEPS,
      denoise: FRACTION,
    },
    "SIGMAS",
    { schema: "v3-new" },
  ),
  unsupported(
    ["BasicGuider", "Basic Guider", "model/sampling/guiders", SAMPLING],
    { model: socket("MODEL"), conditioning: CONDITIONING },
    "GUIDER",
    { schema: "v3-new" },
  ),
  unsupported(
    ["RandomNoise", "RandomNoise", "model/sampling/noise", SAMPLING],
    { noise_seed: SEED },
    "NOISE",
    { schema: "v3-new" },
  ),
  unsupported(
    ["SamplerCustomAdvanced", "SamplerCustomAdvanced", "model/sampling/custom", SAMPLING],
    {
      noise: socket("NOISE"),
      guider: socket("GUIDER"),
      sampler: socket("SAMPLER"),
      sigmas: socket("SIGMAS"),
      latent_image: LATENT,
    },
    "LATENT=output LATENT=denoised_output",
    { schema: "v3-new" },
  ),
  unsupported(
    ["VAEDecode", "VAE Decode", "model/latent"],
    { samples: LATENT, vae: socket("VAE") },
    "IMAGE",
  ),
  unsupported(
    ["VAEEncode", "VAE Encode", "model/latent"],
    { pixels: socket("IMAGE"), vae: socket("VAE") },
    "LATENT",
  ),
  unsupported(
    ["VAEEncodeForInpaint", "VAE Encode (for Inpainting)", "model/latent"],
    {
      pixels: socket("IMAGE"),
      vae: socket("VAE"),
      mask: socket("MASK"),
      grow_mask_by: int({ default: 6, min: 0, max: 64, step: 1 }),
    },
    "LATENT",
  ),
  unsupported(
    ["LatentUpscale", "Upscale Latent", "model/latent"],
    {
      samples: LATENT,
      upscale_method: combo(LATENT_METHODS),
      width: latentSide(512, 0, 8),
      height: latentSide(512, 0, 8),
      crop: combo(["disabled", "center"]),
    },
    "LATENT",
  ),
  unsupported(
    ["LatentUpscaleBy", "Upscale Latent By", "model/latent"],
    {
      samples: LATENT,
      upscale_method: combo(LATENT_METHODS),
      scale_by: float({ default: 1.5, min: 0.01, max: 8, step: 0.01 }),
    },
    "LATENT",
  ),
  unsupported(
    ["ControlNetApplyAdvanced", "Apply ControlNet", "model/conditioning/controlnet"],
    {
      positive: CONDITIONING,
      negative: CONDITIONING,
      control_net: socket("CONTROL_NET"),
      image: socket("IMAGE"),
      strength: float({ default: 1, min: 0, max: 10, step: 0.01 }),
      start_percent: float({ default: 0, min: 0, max: 1, step: 0.001 }),
      end_percent: float({ default: 1, min: 0, max: 1, step: 0.001 }),
    },
    "CONDITIONING=positive CONDITIONING=negative",
    { optional: { vae: socket("VAE") } },
  ),
  unsupported(
    ["ConditioningCombine", "Conditioning (Combine)", "model/conditioning/transform"],
    { conditioning_1: CONDITIONING, conditioning_2: CONDITIONING },
    "CONDITIONING",
  ),
  unsupported(
    ["ConditioningZeroOut", "Conditioning Zero Out", "model/conditioning/transform"],
    { conditioning: CONDITIONING },
    "CONDITIONING",
  ),
  unsupported(
    ["FluxGuidance", "FluxGuidance", "model/conditioning/flux", "comfy_extras.nodes_flux"],
    { conditioning: CONDITIONING, guidance: float({ default: 3.5, min: 0, max: 100, step: 0.1 }) },
    "CONDITIONING",
    { schema: "v3-new" },
  ),
  unsupported(
    [
      "ModelSamplingSD3",
      "ModelSamplingSD3",
      "model/patch/stable diffusion",
      "comfy_extras.nodes_model_advanced",
    ],
    { model: socket("MODEL"), shift: float({ default: 3, min: 0, max: 100, step: 0.01 }) },
    "MODEL",
  ),
  unsupported(
    ["SaveLatent", "Save Latent", "model/latent"],
    { samples: LATENT, filename_prefix: text({ default: "latents/ComfyUI" }) },
    "LATENT=samples",
    { isOutput: true, endsGraphInOld: true, hidden: ["PROMPT", "EXTRA_PNGINFO"] },
  ),
];
