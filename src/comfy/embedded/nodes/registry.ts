/** Every node class of the embedded engine, and what `/object_info` says about it. */
import type { JsonObject, JsonValue } from "../../../platform/json.ts";
import type { EngineFolders } from "../folders.ts";
import type { Compat, InputSpec, InputTable, NodeDefinition } from "./definition.ts";
import { isV3, outputsOf } from "./definition.ts";
import * as image from "./image.ts";
import * as io from "./io.ts";
import { loaderNodes } from "./loaders.ts";
import * as mask from "./mask.ts";
import { modelNodes } from "./models.ts";
import * as primitives from "./primitives.ts";
import { imageUpscaleWithModel, upscaleModelLoader } from "./upscale.ts";

const ALL: readonly NodeDefinition[] = [
  image.emptyImage,
  image.imageScale,
  image.imageScaleBy,
  image.imageInvert,
  image.imageBatch,
  image.imageBlend,
  image.imageCrop,
  image.imagePadForOutpaint,
  image.repeatImageBatch,
  image.imageFromBatch,
  image.imageFlip,
  image.imageRotate,
  image.getImageSize,
  io.loadImage,
  io.loadImageMask,
  io.saveImage,
  io.previewImage,
  io.maskPreview,
  io.saveImageWebsocket,
  io.saveAnimatedWebp,
  mask.solidMask,
  mask.invertMask,
  mask.maskToImageNode,
  mask.imageToMask,
  mask.cropMask,
  mask.maskComposite,
  mask.featherMask,
  mask.growMask,
  mask.thresholdMask,
  mask.imageCompositeMasked,
  primitives.primitiveInt,
  primitives.primitiveFloat,
  primitives.primitiveString,
  primitives.primitiveStringMultiline,
  primitives.primitiveBoolean,
  primitives.previewAny,
  upscaleModelLoader,
  imageUpscaleWithModel,
  ...loaderNodes,
  ...modelNodes,
];

export type NodeRegistry = ReadonlyMap<string, NodeDefinition>;

/** The classes that exist in one version. */
export function createRegistry(compat: Compat): NodeRegistry {
  return new Map(
    ALL.filter((node) => compat === "0.33.0" || node.isOnlyInNew !== true).map((node) => [
      node.className,
      node,
    ]),
  );
}

/** `[type, config]`, where a classic combo has its options for a type. */
export function inputConfig(
  input: InputSpec,
  isNewSchema: boolean,
  folders: EngineFolders,
): readonly [JsonValue, JsonObject] {
  if (input.options === undefined) {
    return [input.type, input.config];
  }
  const options = [...input.options(folders)];
  return isNewSchema
    ? ["COMBO", { ...input.config, multiselect: false, options }]
    : [options, input.config];
}

function tableInfo(table: InputTable, isNewSchema: boolean, folders: EngineFolders): JsonObject {
  return Object.fromEntries(
    Object.entries(table).map(([name, input]) => [
      name,
      [...inputConfig(input, isNewSchema, folders)],
    ]),
  );
}

/** One entry of `/object_info`. */
export function nodeInfo(node: NodeDefinition, folders: EngineFolders, compat: Compat): JsonObject {
  const isNewSchema = isV3(node, compat);
  const hidden = node.hidden ?? [];
  const outputs = outputsOf(node, compat);
  const isNew = compat === "0.33.0";
  return {
    input: {
      required: tableInfo(node.required, isNewSchema, folders),
      ...(node.optional === undefined
        ? {}
        : { optional: tableInfo(node.optional, isNewSchema, folders) }),
      ...(hidden.length === 0
        ? {}
        : {
            hidden: Object.fromEntries(
              hidden.map((name) => [name.toLowerCase(), isNewSchema ? [name] : name]),
            ),
          }),
    },
    input_order: {
      required: Object.keys(node.required),
      ...(node.optional === undefined ? {} : { optional: Object.keys(node.optional) }),
      ...(hidden.length === 0 ? {} : { hidden: hidden.map((name) => name.toLowerCase()) }),
    },
    ...(isNew ? { is_input_list: false } : {}),
    output: outputs.map(({ type }) => type),
    output_is_list: outputs.map(() => false),
    output_name: outputs.map(({ type, name }) => name ?? type),
    ...(isNewSchema && isNew ? { output_matchtypes: null } : {}),
    name: node.className,
    display_name: node.displayName,
    description: node.description ?? "",
    python_module: node.module,
    category: node.category,
    output_node: node.isOutput === true,
    ...(isNewSchema
      ? {
          deprecated: false,
          experimental: false,
          ...(isNew ? { dev_only: false } : {}),
          api_node: false,
        }
      : {}),
    ...(isNewSchema && isNew ? { essentials_category: null } : {}),
    ...(isNew ? { has_intermediate_output: false } : {}),
  };
}
