/**
 * Which inputs name model files, and in which folder each is looked up. Adding a loader is adding a row. Core rows hold
 * for ComfyUI 0.3.64 and 0.33.0; those of node packs were read in the packs. A running engine knows more: its
 * `/object_info` refines this table, never contradicts it.
 */

/**
 * Input → category. `#` stands for a number (`lora_name_#`). Two categories (`clip_vision|text_encoders`): the file may
 * lie in either, looked up in this order.
 */
type LoaderInputs = Readonly<Record<string, string>>;

/** Classes that load what another class loads, under one table row. */
type LoaderTable = Readonly<Record<string, LoaderInputs>>;

const CHECKPOINT: LoaderInputs = { ckpt_name: "checkpoints" };
const LORA: LoaderInputs = { lora_name: "loras" };

export const CORE_LOADERS: LoaderTable = {
  AudioEncoderLoader: { audio_encoder_name: "audio_encoders" },
  CheckpointLoader: { ckpt_name: "checkpoints", config_name: "configs" },
  CheckpointLoaderSimple: CHECKPOINT,
  CLIPLoader: { clip_name: "text_encoders" },
  CLIPVisionLoader: { clip_name: "clip_vision" },
  ControlNetLoader: { control_net_name: "controlnet" },
  CreateHookLora: LORA,
  CreateHookLoraModelOnly: LORA,
  CreateHookModelAsLora: CHECKPOINT,
  CreateHookModelAsLoraModelOnly: CHECKPOINT,
  DiffControlNetLoader: { control_net_name: "controlnet" },
  DiffusersLoader: { model_path: "diffusers" },
  DualCLIPLoader: { "clip_name#": "text_encoders" },
  FrameInterpolationModelLoader: { model_name: "frame_interpolation" },
  GLIGENLoader: { gligen_name: "gligen" },
  HypernetworkLoader: { hypernetwork_name: "hypernetworks" },
  ImageOnlyCheckpointLoader: CHECKPOINT,
  LatentUpscaleModelLoader: { model_name: "latent_upscale_models" },
  LoadBackgroundRemovalModel: { bg_removal_name: "background_removal" },
  LoadDA3Model: { model_name: "geometry_estimation" },
  LoadMediaPipeFaceLandmarker: { model_name: "detection" },
  LoadMoGeModel: { model_name: "geometry_estimation" },
  LoraLoader: LORA,
  LoraLoaderBypass: LORA,
  LoraLoaderBypassModelOnly: LORA,
  LoraLoaderModelOnly: LORA,
  LTXAVTextEncoderLoader: { text_encoder: "text_encoders", ckpt_name: "checkpoints" },
  LTXVAudioVAELoader: CHECKPOINT,
  ModelPatchLoader: { name: "model_patches" },
  OpticalFlowLoader: { model_name: "optical_flow" },
  PhotoMakerLoader: { photomaker_model_name: "photomaker" },
  QuadrupleCLIPLoader: { "clip_name#": "text_encoders" },
  StyleModelLoader: { style_model_name: "style_models" },
  TrainLoraNode: { existing_lora: "loras" },
  TripleCLIPLoader: { "clip_name#": "text_encoders" },
  unCLIPCheckpointLoader: CHECKPOINT,
  UNETLoader: { unet_name: "diffusion_models" },
  UpscaleModelLoader: { model_name: "upscale_models" },
  VAELoader: { vae_name: "vae" },
};

/** ReActor's swap models lie by kind in one of these. */
const SWAP_MODELS = "insightface|reswapper|hyperswap";
const EFFICIENT: LoaderInputs = {
  ckpt_name: "checkpoints",
  base_ckpt_name: "checkpoints",
  refiner_ckpt_name: "checkpoints",
  vae_name: "vae",
  lora_name: "loras",
};
const TINY_TERRA: LoaderInputs = {
  ckpt_name: "checkpoints",
  vae_name: "vae",
  refiner_ckpt_name: "checkpoints",
  refiner_vae_name: "vae",
  "lora#_name": "loras",
  lora_name: "loras",
  unet_name: "diffusion_models",
  clip_name: "text_encoders",
  "clip_name#": "text_encoders",
  control_net_name: "controlnet",
};
const WAN_MODEL: LoaderInputs = { model: "diffusion_models|unet_gguf" };

export const PACK_LOADERS: LoaderTable = {
  // ComfyUI-AnimateDiff-Evolved
  ADE_AnimateDiffLoaderWithContext: { model_name: "animatediff_models" },
  ADE_AnimateDiffLoaderGen1: { model_name: "animatediff_models" },
  ADE_AnimateDiffLoaderV1Advanced: { model_name: "animatediff_models" },
  ADE_LoadAnimateDiffModel: { model_name: "animatediff_models" },
  ADE_LoadAnimateDiffModelWithCameraCtrl: {
    model_name: "animatediff_models",
    camera_ctrl: "animatediff_models",
  },
  ADE_LoadAnimateLCMI2VModel: { model_name: "animatediff_models" },
  ADE_InjectI2VIntoAnimateDiffModel: { model_name: "animatediff_models" },
  ADE_InjectPIAIntoAnimateDiffModel: { model_name: "animatediff_models" },
  ADE_AnimateDiffLoRALoader: {
    lora_name: "animatediff_motion_lora",
    name: "animatediff_motion_lora",
  },
  AnimateDiffLoaderV1: { model_name: "animatediff_models" },
  AnimateDiffModuleLoader: { model_name: "animatediff_models" },
  CheckpointLoaderSimpleWithNoiseSelect: CHECKPOINT,
  // ComfyUI-Advanced-ControlNet
  ControlNetLoaderAdvanced: { control_net_name: "controlnet", cnet: "controlnet" },
  DiffControlNetLoaderAdvanced: { control_net_name: "controlnet", cnet: "controlnet" },
  "ACN_ControlNet++LoaderSingle": { name: "controlnet" },
  "ACN_ControlNet++LoaderAdvanced": { name: "controlnet" },
  ACN_CtrLoRALoader: { base: "controlnet", lora: "controlnet" },
  ACN_SparseCtrlLoaderAdvanced: { sparsectrl_name: "controlnet" },
  ACN_SparseCtrlMergedLoaderAdvanced: {
    sparsectrl_name: "controlnet",
    control_net_name: "controlnet",
  },
  // ComfyUI_IPAdapter_plus and relatives
  IPAdapterModelLoader: { ipadapter_file: "ipadapter" },
  IPAdapterSD3Loader: { ipadapter: "ipadapter" },
  IPAdapterFluxLoader: { ipadapter: "ipadapter-flux" },
  InstantIDModelLoader: { instantid_file: "instantid" },
  PulidModelLoader: { pulid_file: "pulid" },
  PulidFluxModelLoader: { pulid_file: "pulid" },
  PhotoMakerLoaderPlus: { photomaker_model_name: "photomaker" },
  // x-flux-comfyui, Misto
  LoadFluxControlNet: { controlnet_path: "xlabs_controlnets" },
  // The pack itself spells the input so.
  LoadFluxIPAdapter: { ipadatper: "xlabs_ipadapters", clip_vision: "clip_vision" },
  FluxLoraLoader: { lora_name: "xlabs_loras" },
  LoadTheMistoFluxControlNet: { model_name: "TheMisto_model" },
  // ComfyUI-GGUF, NF4
  UnetLoaderGGUF: { unet_name: "unet_gguf" },
  UnetLoaderGGUFAdvanced: { unet_name: "unet_gguf" },
  CLIPLoaderGGUF: { clip_name: "clip_gguf" },
  DualCLIPLoaderGGUF: { "clip_name#": "clip_gguf" },
  TripleCLIPLoaderGGUF: { "clip_name#": "clip_gguf" },
  QuadrupleCLIPLoaderGGUF: { "clip_name#": "clip_gguf" },
  LoaderGGUF: { gguf_name: "unet_gguf" },
  ClipLoaderGGUF: { clip_name: "clip_gguf" },
  CheckpointLoaderNF4: CHECKPOINT,
  UNETLoaderNF4: { unet_name: "diffusion_models" },
  // Impact Pack, Impact Subpack, Inspire Pack
  UltralyticsDetectorProvider: { model_name: "ultralytics" },
  SAMLoader: { model_name: "sams" },
  ONNXDetectorProvider: { model_name: "onnx" },
  MMDetDetectorProvider: { model_name: "mmdets" },
  "LoraLoaderBlockWeight //Inspire": LORA,
  "LoraBlockInfo //Inspire": LORA,
  // efficiency-nodes-comfyui
  "Efficient Loader": EFFICIENT,
  "Eff. Loader SDXL": EFFICIENT,
  "LoRA Stacker": { "lora_name_#": "loras" },
  "XY Input: LoRA": { "lora_name_#": "loras" },
  "XY Input: Checkpoint": { "ckpt_name_#": "checkpoints", "vae_name_#": "vae" },
  // tinyterraNodes
  "ttN pipeLoader": TINY_TERRA,
  "ttN pipeLoader_v2": TINY_TERRA,
  "ttN pipeLoaderSDXL": TINY_TERRA,
  "ttN pipeLoaderSDXL_v2": TINY_TERRA,
  "ttN tinyLoader": TINY_TERRA,
  "ttN pipeLoraStack": { "lora_#_name": "loras", "lora#_name": "loras" },
  "ttN pipeKSampler": { lora_name: "loras", upscale_model_name: "upscale_models" },
  "ttN hiresfixScale": { model_name: "upscale_models" },
  // rgthree-comfy (the Power Lora Loader's inputs are objects: {on, lora, strength})
  "Power Lora Loader (rgthree)": { "lora_#": "loras" },
  "Lora Loader Stack (rgthree)": { "lora_#": "loras" },
  // ComfyUI-Custom-Scripts (values may be objects: {content, image})
  "LoraLoader|pysssss": LORA,
  "CheckpointLoader|pysssss": CHECKPOINT,
  // ComfyUI-Easy-Use
  "easy fullLoader": { ...TINY_TERRA, config_name: "configs" },
  "easy a1111Loader": TINY_TERRA,
  "easy comfyLoader": TINY_TERRA,
  "easy fluxLoader": TINY_TERRA,
  "easy sd3Loader": TINY_TERRA,
  "easy zero123Loader": TINY_TERRA,
  "easy svdLoader": TINY_TERRA,
  "easy cascadeLoader": {
    stage_c: "diffusion_models",
    stage_b: "diffusion_models",
    stage_a: "vae",
    clip_name: "text_encoders",
    lora_name: "loras",
  },
  "easy controlnetLoader": TINY_TERRA,
  "easy controlnetLoaderADV": TINY_TERRA,
  "easy controlnetLoader++": TINY_TERRA,
  "easy loraStack": { "lora_#_name": "loras" },
  "easy controlnetStack": { "controlnet_#": "controlnet" },
  "easy hiresFix": { model_name: "upscale_models" },
  // Comfyroll
  "CR LoRA Stack": { "lora_name_#": "loras" },
  "CR Load LoRA": LORA,
  "CR Multi-ControlNet Stack": { "controlnet_#": "controlnet" },
  "CR Upscale Image": { upscale_model: "upscale_models" },
  "CR Multi Upscale Stack": { "upscale_model_#": "upscale_models" },
  "CR Model List": { "ckpt_name#": "checkpoints" },
  // WAS Node Suite
  "Load Lora": LORA,
  "Lora Loader": LORA,
  "Checkpoint Loader": { ckpt_name: "checkpoints", config_name: "configs" },
  "Checkpoint Loader (Simple)": CHECKPOINT,
  "unCLIP Checkpoint Loader": CHECKPOINT,
  "Upscale Model Loader": { model_name: "upscale_models" },
  "Diffusers Model Loader": { model_path: "diffusers" },
  // ComfyUI-KJNodes
  CheckpointLoaderKJ: CHECKPOINT,
  DiffusionModelLoaderKJ: { model_name: "diffusion_models" },
  DiffusionModelSelector: { model_name: "diffusion_models" },
  VAELoaderKJ: { vae_name: "vae|vae_approx" },
  LoadResAdapterNormalization: { resadapter_path: "checkpoints" },
  GGUFLoaderKJ: { model_name: "unet_gguf", extra_model_name: "unet_gguf" },
  // Kijai's wrappers
  WanVideoModelLoader: WAN_MODEL,
  WanVideoVAELoader: { model_name: "vae" },
  WanVideoTinyVAELoader: { model_name: "vae_approx" },
  LoadWanVideoT5TextEncoder: { model_name: "text_encoders" },
  WanVideoTextEncodeCached: { model_name: "text_encoders" },
  LoadWanVideoClipTextEncoder: { model_name: "clip_vision|text_encoders" },
  WanVideoLoraSelect: { lora: "loras" },
  WanVideoLoraSelectMulti: { "lora_#": "loras" },
  WanVideoVACEModelSelect: { vace_model: "diffusion_models|unet_gguf" },
  WanVideoExtraModelSelect: { extra_model: "diffusion_models|unet_gguf" },
  WanVideoControlnetLoader: { model: "controlnet" },
  FantasyTalkingModelLoader: { model: "diffusion_models" },
  FantasyPortraitModelLoader: { model: "diffusion_models" },
  MultiTalkModelLoader: WAN_MODEL,
  HyVideoModelLoader: { model: "diffusion_models" },
  HyVideoVAELoader: { model_name: "vae" },
  HyVideoLoraSelect: { lora: "loras" },
  MochiModelLoader: { model_name: "diffusion_models" },
  MochiVAELoader: { model_name: "vae" },
  MochiVAEEncoderLoader: { model_name: "vae" },
  CogVideoXModelLoader: { model: "diffusion_models" },
  CogVideoXVAELoader: { model_name: "vae" },
  CogVideoLoraSelect: { lora: "loras" },
  FramePackModelLoader: { model: "diffusion_models" },
  LoadFramePackModel: { model: "diffusion_models" },
  LoadAndApplyICLightUnet: { model_path: "diffusion_models" },
  SUPIR_Upscale: { supir_model: "checkpoints", sdxl_model: "checkpoints" },
  SUPIR_model_loader: { supir_model: "checkpoints", sdxl_model: "checkpoints" },
  SUPIR_model_loader_v2: { supir_model: "checkpoints" },
  SUPIR_model_loader_v2_clip: { supir_model: "checkpoints" },
  CCSR_Model_Select: { ckpt_name: "checkpoints" },
  Florence2ModelLoader: { model: "LLM", lora: "loras" },
  // Inpainting
  BrushNetLoader: { brushnet: "inpaint" },
  PowerPaintCLIPLoader: { base: "text_encoders", powerpaint: "inpaint" },
  INPAINT_LoadFooocusInpaint: { head: "inpaint", patch: "inpaint" },
  INPAINT_LoadInpaintModel: { model_name: "inpaint" },
  // Kolors (MinusZone)
  MZ_ChatGLM3Loader: { chatglm3_checkpoint: "LLM" },
  MZ_ChatGLM3: { chatglm3_checkpoint: "LLM" },
  MZ_KolorsUNETLoader: { unet_name: "diffusion_models" },
  MZ_KolorsUNETLoaderV2: { unet_name: "diffusion_models" },
  // Faces
  ReActorFaceSwap: { swap_model: SWAP_MODELS, face_restore_model: "facerestore_models" },
  ReActorFaceSwapOpt: { swap_model: SWAP_MODELS, face_restore_model: "facerestore_models" },
  ReActorFaceBoost: { boost_model: "facerestore_models" },
  ReActorRestoreFace: { model: "facerestore_models" },
  ReActorRestoreFaceAdvanced: { model: "facerestore_models" },
  ReActorMaskHelper: {
    bbox_model_name: "ultralytics",
    segm_model_name: "ultralytics",
    sam_model_name: "sams",
  },
  FaceRestoreModelLoader: { model_name: "facerestore_models" },
  // Other
  LoadBLoRA: LORA,
  LoraLoaderVanilla: LORA,
  LoraLoaderStackedVanilla: LORA,
  LoraLoaderAdvanced: LORA,
  LoraLoaderStackedAdvanced: LORA,
  NunchakuFluxLoraLoader: LORA,
  NunchakuFluxDiTLoader: { model_path: "diffusion_models" },
  NunchakuTextEncoderLoader: { "text_encoder#": "text_encoders" },
  NunchakuTextEncoderLoaderV2: { "text_encoder#": "text_encoders" },
  NunchakuQwenImageDiTLoader: { model_name: "diffusion_models" },
};

/** Packs that repeat core loaders under a longer name (ComfyUI-MultiGPU). */
const REPEATED_SUFFIX = /(DisTorch2?)?MultiGPU$/;

/** Where a node reads a LoRA's name out of its text: `<lora:NAME:1>`. */
const LORA_TEXT_INPUTS: Readonly<Record<string, readonly string[]>> = {
  ImpactWildcardEncode: ["populated_text"],
  "WildcardEncode //Inspire": ["populated_text"],
  LoraTagLoader: ["text"],
  "Lora Loader (LoraManager)": ["text"],
  "LoRA Text Loader (LoraManager)": ["lora_syntax"],
  PCLazyTextEncode: ["text"],
  PCLazyTextEncodeAdvanced: ["text"],
  PCLazyLoraLoader: ["text"],
  PCLazyLoraLoaderAdvanced: ["text"],
  PCLoraHooksFromText: ["text"],
  "easy wildcards": ["text", "populated_text"],
  "ttN pipeLoader_v2": ["loras"],
  "ttN pipeLoaderSDXL_v2": ["loras"],
  "ttN tinyLoader": ["loras"],
};

/** Rows of a stack that are off: by a count input, or by a switch beside each. */
interface StackRule {
  /** Input that says how many rows count. */
  readonly count?: string;
  /** Switch of row `#`, and the value that turns it off. */
  readonly switch?: string;
  readonly off?: string;
  /** An input of the whole node that turns all rows off when it is false. */
  readonly toggle?: string;
}

const STACKS: Readonly<Record<string, StackRule>> = {
  "LoRA Stacker": { count: "lora_count" },
  "XY Input: LoRA": { count: "lora_count" },
  "XY Input: Checkpoint": { count: "ckpt_count" },
  "CR LoRA Stack": { switch: "switch_#", off: "Off" },
  "CR Multi-ControlNet Stack": { switch: "switch_#", off: "Off" },
  "CR Multi Upscale Stack": { switch: "switch_#", off: "Off" },
  "easy loraStack": { count: "num_loras", toggle: "toggle" },
  "easy controlnetStack": { count: "num_controlnet", toggle: "toggle" },
  "ttN pipeLoraStack": { count: "num_loras", toggle: "toggle" },
};

/** Inputs that take a file name which is no model, whatever it ends with. */
const NO_MODEL_INPUTS: Readonly<Record<string, readonly string[]>> = {
  LoadImage: ["image"],
  LoadImageMask: ["image"],
  LoadImageOutput: ["image"],
  LoadAudio: ["audio"],
  LoadVideo: ["file"],
  LoadLatent: ["latent"],
  Load3D: ["model_file"],
  Load3DAnimation: ["model_file"],
  Load3DAdvanced: ["model_file"],
  // Fetches the file from Hugging Face or a URL by itself.
  HFHubLoraLoader: ["repo_id", "subfolder", "filename"],
  LoraLoaderFromURL: ["url"],
};

const NUMBER = /\d+/;

function ownRow<T>(table: Readonly<Record<string, T>>, key: string): T | undefined {
  return Object.hasOwn(table, key) ? table[key] : undefined;
}

function inputsOf(classType: string): LoaderInputs | undefined {
  return (
    ownRow(CORE_LOADERS, classType) ??
    ownRow(PACK_LOADERS, classType) ??
    (REPEATED_SUFFIX.test(classType) ? inputsOf(classType.replace(REPEATED_SUFFIX, "")) : undefined)
  );
}

/** Categories in which the file named by this input is looked up, first match wins; undefined when no row knows it. */
export function loaderCategories(classType: string, input: string): readonly string[] | undefined {
  const inputs = inputsOf(classType);
  const found =
    inputs === undefined
      ? undefined
      : (ownRow(inputs, input) ?? ownRow(inputs, input.replace(NUMBER, "#")));
  return found?.split("|");
}

/** Inputs in which the node reads `<lora:NAME:1>`. */
export function loraTextInputs(classType: string): readonly string[] {
  return ownRow(LORA_TEXT_INPUTS, classType) ?? [];
}

/** True for a row of a stack that the node itself passes over (beyond its count, or switched off). */
export function isSwitchedOff(
  classType: string,
  input: string,
  inputs: Readonly<Record<string, unknown>>,
): boolean {
  const rule = ownRow(STACKS, classType);
  const index = NUMBER.exec(input)?.[0];
  if (rule === undefined || index === undefined) {
    return false;
  }
  const count = rule.count === undefined ? undefined : inputs[rule.count];
  if (typeof count === "number" && Number(index) > count) {
    return true;
  }
  if (
    rule.toggle !== undefined &&
    [false, "False"].some((off) => inputs[rule.toggle ?? ""] === off)
  ) {
    return true;
  }
  return rule.switch !== undefined && inputs[rule.switch.replace("#", index)] === rule.off;
}

/** True for an input that takes a name which can't be a model of a folder, though it may look like one. */
export function isNoModelInput(classType: string, input: string): boolean {
  return ownRow(NO_MODEL_INPUTS, classType)?.includes(input) ?? false;
}

/** Input names by which an unknown node's folder is guessed, first match wins. */
const NAME_HINTS: readonly (readonly [RegExp, string])[] = [
  [/^(.*_)?(ckpt|checkpoint)(_name)?(_?\d+)?$/i, "checkpoints"],
  [/^(.*_)?loras?(_?\d+)?(_name)?(_?\d+)?$/i, "loras"],
  [/^(.*_)?vae(_name)?(_?\d+)?$/i, "vae"],
  [/^(.*_)?(unet|diffusion_model)(_name)?(_?\d+)?$/i, "diffusion_models"],
  [/^clip_vision(_name)?$/i, "clip_vision"],
  [/^(.*_)?(clip|text_encoder|t5)(_name)?(_?\d+)?$/i, "text_encoders"],
  [/^(.*_)?(control_?net|control_net)(_name|_path)?(_?\d+)?$/i, "controlnet"],
  [/^(.*_)?upscale_model(_name)?(_?\d+)?$/i, "upscale_models"],
  [/^(.*_)?style_model(_name)?$/i, "style_models"],
  [/^(.*_)?gligen(_name)?$/i, "gligen"],
  [/^(.*_)?ip_?adapter(_file|_name)?$/i, "ipadapter"],
  [/^(.*_)?sam_model(_name)?$/i, "sams"],
  [/^(.*_)?embedding(_name)?$/i, "embeddings"],
];

/** The category that an input's name suggests. */
export function hintedCategory(input: string): string | undefined {
  return NAME_HINTS.find(([pattern]) => pattern.test(input))?.[1];
}

/** Names of inputs that hold free text or a place to write to: never a model's name by its ending alone. */
const TEXT_INPUT =
  /(^|_)(text|texts|prompt|prompts|positive|negative|string|str|caption|description|note|notes|title|label|comment|wildcards?|instruction|instructions|query|message|content|prefix|suffix|separator|delimiter|url|urls|output|save|script|code|expression|regex|json|format)(_|\d|$)/i;

/** True when an unknown node's input is, by its name, free text rather than a choice of a file. */
export function isTextInput(input: string): boolean {
  return TEXT_INPUT.test(input);
}
