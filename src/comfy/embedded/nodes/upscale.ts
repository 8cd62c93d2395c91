/** The pair of nodes that computes with a weight: load an upscaling network, and enlarge pictures with it. */
import { CompactNetwork, isCompact } from "../compact.ts";
import { openModelFile } from "../model-file.ts";
import { NodeError, needsRealComfy } from "../node-error.ts";
import { readTensors } from "../safetensors.ts";
import { upscale } from "../upscale.ts";
import { UpscaleModel } from "../values.ts";
import type { NodeDefinition } from "./definition.ts";
import { files, output, socket } from "./definition.ts";

export const upscaleModelLoader: NodeDefinition = {
  className: "UpscaleModelLoader",
  displayName: "Load Upscale Model",
  category: "model/loaders",
  module: "comfy_extras.nodes_upscale_model",
  schema: "v3",
  required: { model_name: files("upscale_models") },
  outputs: [output("UPSCALE_MODEL")],
  run: async (inputs, context) => {
    const name = inputs.text("model_name");
    const file = openModelFile(context.folders, "upscale_models", name);
    if (file.header === undefined) {
      throw needsRealComfy(`${name} is a pickle; only safetensors files are read here.`);
    }
    if (!isCompact(file.header.tensors.keys())) {
      // The real exception has no text either; the log and our launcher explain it.
      throw new NodeError("spandrel.__helpers.registry.UnsupportedModelError", "");
    }
    const tensors = await readTensors(file.path, file.header);
    const network = tensors === undefined ? undefined : CompactNetwork.from(tensors);
    if (network === undefined) {
      throw new NodeError(
        "RuntimeError",
        "Error(s) in loading state_dict for SRVGGNetCompact: its tensors don't fit together.",
      );
    }
    return { outputs: [new UpscaleModel(network)] };
  },
};

export const imageUpscaleWithModel: NodeDefinition = {
  className: "ImageUpscaleWithModel",
  displayName: "Upscale Image (using Model)",
  category: "image/upscaling",
  module: "comfy_extras.nodes_upscale_model",
  schema: "v3",
  required: { upscale_model: socket("UPSCALE_MODEL"), image: socket("IMAGE") },
  outputs: [output("IMAGE")],
  run: async (inputs, context) => {
    const { network } = inputs.upscaleModel("upscale_model");
    const image = await upscale(network, inputs.image("image"), {
      breathe: () => context.breathe(),
      onTile: (done, total) => context.progress(done, total),
    });
    return { outputs: [image] };
  },
};
