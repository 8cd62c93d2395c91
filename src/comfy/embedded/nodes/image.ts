/** Nodes that make and change pictures. */
import { NodeError } from "../node-error.ts";
import { roundHalfEven } from "../python.ts";
import type { ScaleMethod, ScaleTarget } from "../resample.ts";
import { SCALE_METHODS, scale, slice } from "../resample.ts";
import { ImageTensor, MaskTensor } from "../values.ts";
import type { NodeDefinition, NodeOutcome } from "./definition.ts";
import { combo, float, int, MAX_RESOLUTION, output, socket } from "./definition.ts";

const IMAGE = output("IMAGE");
const SIDE = { default: 512, min: 1, max: MAX_RESOLUTION, step: 1 };
const OFFSET = { default: 0, min: 0, max: MAX_RESOLUTION, step: 1 };
const CROPS = ["disabled", "center"];
const BLEND_MODES = ["normal", "multiply", "screen", "overlay", "soft_light", "difference"];

function single(image: ImageTensor): NodeOutcome {
  return { outputs: [image] };
}

/** A picture of the same size whose numbers are computed one by one. */
function mapped(image: ImageTensor, change: (value: number) => number): ImageTensor {
  const result = new ImageTensor(image.size());
  for (let index = 0; index < result.data.length; index++) {
    result.data[index] = change(image.data[index] ?? 0);
  }
  return result;
}

function methodOf(name: string): ScaleMethod {
  const method = SCALE_METHODS.find((known) => known === name);
  if (method === undefined) {
    throw new NodeError("NotImplementedError", `Input Error: unknown interpolation mode ${name}`);
  }
  return method;
}

export const emptyImage: NodeDefinition = {
  className: "EmptyImage",
  displayName: "Empty Image",
  category: "image",
  module: "nodes",
  schema: "v1",
  required: {
    width: int(SIDE),
    height: int(SIDE),
    batch_size: int({ default: 1, min: 1, max: 4096 }),
    color: int({ default: 0, min: 0, max: 0xff_ff_ff, step: 1, display: "color" }),
  },
  outputs: [IMAGE],
  run: (inputs) => {
    const image = new ImageTensor({
      batch: inputs.int("batch_size"),
      height: inputs.int("height"),
      width: inputs.int("width"),
      channels: 3,
    });
    const color = inputs.int("color");
    const channels = [16, 8, 0].map((shift) => ((color >> shift) & 0xff) / 255);
    for (let index = 0; index < image.data.length; index++) {
      image.data[index] = channels[index % 3] ?? 0;
    }
    return single(image);
  },
};

/** A side of 0 follows from the other one. */
function keepAspect(
  image: ImageTensor,
  width: number,
  height: number,
): { width: number; height: number } {
  if (width === 0) {
    return { width: Math.max(1, roundHalfEven((image.width * height) / image.height)), height };
  }
  return height === 0
    ? { width, height: Math.max(1, roundHalfEven((image.height * width) / image.width)) }
    : { width, height };
}

export const imageScale: NodeDefinition = {
  className: "ImageScale",
  displayName: "Upscale Image",
  category: "image/upscaling",
  module: "nodes",
  schema: "v1",
  required: {
    image: socket("IMAGE"),
    upscale_method: combo(SCALE_METHODS),
    width: int({ ...SIDE, min: 0 }),
    height: int({ ...SIDE, min: 0 }),
    crop: combo(CROPS),
  },
  outputs: [IMAGE],
  run: async (inputs, context) => {
    const image = inputs.image("image");
    const [width, height] = [inputs.int("width"), inputs.int("height")];
    if (width === 0 && height === 0) {
      return single(image);
    }
    const target: ScaleTarget = {
      ...keepAspect(image, width, height),
      method: methodOf(inputs.text("upscale_method")),
      crop: inputs.text("crop") === "center" ? "center" : "disabled",
    };
    return single(await scale(image, target, () => context.breathe()));
  },
};

export const imageScaleBy: NodeDefinition = {
  className: "ImageScaleBy",
  displayName: "Upscale Image By",
  category: "image/upscaling",
  module: "nodes",
  schema: "v1",
  required: {
    image: socket("IMAGE"),
    upscale_method: combo(SCALE_METHODS),
    scale_by: float({ default: 1, min: 0.01, max: 8, step: 0.01 }),
  },
  outputs: [IMAGE],
  run: async (inputs, context) => {
    const image = inputs.image("image");
    const factor = inputs.float("scale_by");
    const target: ScaleTarget = {
      width: roundHalfEven(image.width * factor),
      height: roundHalfEven(image.height * factor),
      method: methodOf(inputs.text("upscale_method")),
    };
    return single(await scale(image, target, () => context.breathe()));
  },
};

export const imageInvert: NodeDefinition = {
  className: "ImageInvert",
  displayName: "Invert Image Colors",
  category: "image/color",
  module: "nodes",
  schema: "v1",
  required: { image: socket("IMAGE") },
  outputs: [IMAGE],
  run: (inputs) => single(mapped(inputs.image("image"), (value) => 1 - value)),
};

/** Adds an opaque alpha channel. */
function withAlpha(image: ImageTensor): ImageTensor {
  const result = new ImageTensor({ ...image.size(), channels: image.channels + 1 });
  result.data.fill(1);
  for (let pixel = 0; pixel * image.channels < image.data.length; pixel++) {
    const from = pixel * image.channels;
    result.data.set(image.data.subarray(from, from + image.channels), pixel * result.channels);
  }
  return result;
}

function sameChannels(
  first: ImageTensor,
  second: ImageTensor,
  isOld: boolean,
): [ImageTensor, ImageTensor] {
  if (first.channels === second.channels) {
    return [first, second];
  }
  if (isOld) {
    throw new NodeError(
      "RuntimeError",
      `Sizes of tensors must match except in dimension 0. Expected size ${first.channels} but got size ${second.channels} for tensor number 1 in the list.`,
    );
  }
  return first.channels < second.channels ? [withAlpha(first), second] : [first, withAlpha(second)];
}

function concatenate(first: ImageTensor, second: ImageTensor): ImageTensor {
  const result = new ImageTensor({ ...first.size(), batch: first.batch + second.batch });
  result.data.set(first.data);
  result.data.set(second.data, first.data.length);
  return result;
}

export const imageBatch: NodeDefinition = {
  className: "ImageBatch",
  displayName: "Batch Images (DEPRECATED)",
  category: "image/batch",
  module: "nodes",
  schema: "v1",
  required: { image1: socket("IMAGE"), image2: socket("IMAGE") },
  outputs: [IMAGE],
  run: async (inputs, context) => {
    const isOld = context.compat === "0.3.64";
    const [first, second] = sameChannels(inputs.image("image1"), inputs.image("image2"), isOld);
    const fits = first.width === second.width && first.height === second.height;
    const target = {
      width: first.width,
      height: first.height,
      method: "bilinear",
      crop: "center",
    } as const;
    const resized = fits ? second : await scale(second, target, () => context.breathe());
    return single(concatenate(first, resized));
  },
};

function softLight(a: number, b: number): number {
  const bright = a <= 0.25 ? ((16 * a - 12) * a + 4) * a : Math.sqrt(a);
  return b <= 0.5 ? a - (1 - 2 * b) * a * (1 - a) : a + (2 * b - 1) * (bright - a);
}

const BLENDS: Readonly<Record<string, (a: number, b: number) => number>> = {
  normal: (_a, b) => b,
  multiply: (a, b) => a * b,
  screen: (a, b) => 1 - (1 - a) * (1 - b),
  overlay: (a, b) => (a <= 0.5 ? 2 * a * b : 1 - 2 * (1 - a) * (1 - b)),
  soft_light: softLight,
  difference: (a, b) => a - b,
};

export const imageBlend: NodeDefinition = {
  className: "ImageBlend",
  displayName: "Blend Images",
  category: "image/filters",
  module: "comfy_extras.nodes_post_processing",
  schema: "v3",
  required: {
    image1: socket("IMAGE"),
    image2: socket("IMAGE"),
    blend_factor: float({ default: 0.5, min: 0, max: 1, step: 0.01 }),
    blend_mode: combo(BLEND_MODES),
  },
  outputs: [IMAGE],
  run: async (inputs, context) => {
    const [first, given] = sameChannels(inputs.image("image1"), inputs.image("image2"), false);
    const factor = Math.fround(inputs.float("blend_factor"));
    const blend = BLENDS[inputs.text("blend_mode")];
    if (blend === undefined) {
      throw new NodeError("ValueError", `Unsupported blend mode: ${inputs.text("blend_mode")}`);
    }
    const fits = first.width === given.width && first.height === given.height;
    const target = {
      width: first.width,
      height: first.height,
      method: "bicubic",
      crop: "center",
    } as const;
    const second = fits ? given : await scale(given, target, () => context.breathe());
    const batch = Math.max(first.batch, second.batch);
    const result = new ImageTensor({ ...first.size(), batch });
    for (let index = 0; index < result.data.length; index++) {
      const a = first.data[index % first.data.length] ?? 0;
      const mixed = Math.fround(blend(a, second.data[index % second.data.length] ?? 0));
      const value = Math.fround(a * (1 - factor)) + Math.fround(mixed * factor);
      result.data[index] = Math.min(Math.max(value, 0), 1);
    }
    return single(result);
  },
};

export const imageCrop: NodeDefinition = {
  className: "ImageCrop",
  displayName: "Crop Image (DEPRECATED)",
  category: "image/transform",
  module: "comfy_extras.nodes_images",
  schema: "v3-new",
  required: {
    image: socket("IMAGE"),
    width: int(SIDE),
    height: int(SIDE),
    x: int(OFFSET),
    y: int(OFFSET),
  },
  outputs: [IMAGE],
  run: (inputs) => {
    const image = inputs.image("image");
    const x = Math.min(inputs.int("x"), image.width - 1);
    const y = Math.min(inputs.int("y"), image.height - 1);
    const width = Math.min(inputs.int("width"), image.width - x);
    const height = Math.min(inputs.int("height"), image.height - y);
    return single(slice(image, { x, y, width, height }));
  },
};

interface Margins {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

/** 1 over the padding, falling off inside the picture over `feathering` pixels. */
function paddingMask(image: ImageTensor, margins: Margins, feathering: number): MaskTensor {
  const { left, top, right, bottom } = margins;
  const mask = new MaskTensor({
    batch: 1,
    height: image.height + top + bottom,
    width: image.width + left + right,
  });
  mask.data.fill(1);
  const isSoft = feathering > 0 && feathering * 2 < image.height && feathering * 2 < image.width;
  // Sides that weren't padded are as far as can be.
  const far = image.height + image.width;
  for (let y = 0; y < image.height; y++) {
    const nearY = Math.min(top === 0 ? far : y, bottom === 0 ? far : image.height - y);
    for (let x = 0; x < image.width; x++) {
      const nearX = Math.min(left === 0 ? far : x, right === 0 ? far : image.width - x);
      const depth = Math.max(0, feathering - Math.min(nearX, nearY)) / Math.max(feathering, 1);
      mask.data[(y + top) * mask.width + x + left] = isSoft ? depth * depth : 0;
    }
  }
  return mask;
}

export const imagePadForOutpaint: NodeDefinition = {
  className: "ImagePadForOutpaint",
  displayName: "Pad Image for Outpainting",
  category: "image/transform",
  module: "nodes",
  schema: "v1",
  required: {
    image: socket("IMAGE"),
    left: int({ ...OFFSET, step: 8 }),
    top: int({ ...OFFSET, step: 8 }),
    right: int({ ...OFFSET, step: 8 }),
    bottom: int({ ...OFFSET, step: 8 }),
    feathering: int({ default: 40, min: 0, max: MAX_RESOLUTION, step: 1, advanced: true }),
  },
  outputs: [IMAGE, output("MASK")],
  run: (inputs) => {
    const image = inputs.image("image");
    const margins = {
      left: inputs.int("left"),
      top: inputs.int("top"),
      right: inputs.int("right"),
      bottom: inputs.int("bottom"),
    };
    const padded = new ImageTensor({
      ...image.size(),
      height: image.height + margins.top + margins.bottom,
      width: image.width + margins.left + margins.right,
    });
    padded.data.fill(0.5);
    paste(padded, image, margins.left, margins.top);
    return { outputs: [padded, paddingMask(image, margins, inputs.int("feathering"))] };
  },
};

/** Copies a whole picture into a bigger one of the same batch. */
function paste(target: ImageTensor, image: ImageTensor, x: number, y: number): void {
  const row = image.width * image.channels;
  for (let line = 0; line < image.batch * image.height; line++) {
    const picture = Math.floor(line / image.height);
    const targetLine = picture * target.height + y + (line % image.height);
    target.data.set(
      image.data.subarray(line * row, (line + 1) * row),
      (targetLine * target.width + x) * image.channels,
    );
  }
}

export const repeatImageBatch: NodeDefinition = {
  className: "RepeatImageBatch",
  displayName: "Repeat Image Batch",
  category: "image/batch",
  module: "comfy_extras.nodes_images",
  schema: "v3-new",
  required: { image: socket("IMAGE"), amount: int({ default: 1, min: 1, max: 4096 }) },
  outputs: [IMAGE],
  run: (inputs) => {
    const image = inputs.image("image");
    const amount = inputs.int("amount");
    const result = new ImageTensor({ ...image.size(), batch: image.batch * amount });
    for (let copy = 0; copy < amount; copy++) {
      result.data.set(image.data, copy * image.data.length);
    }
    return single(result);
  },
};

export const imageFromBatch: NodeDefinition = {
  className: "ImageFromBatch",
  displayName: "Get Image from Batch",
  category: "image/batch",
  module: "comfy_extras.nodes_images",
  schema: "v3-new",
  required: {
    image: socket("IMAGE"),
    batch_index: int({ default: 0, min: -MAX_RESOLUTION, max: MAX_RESOLUTION }),
    length: int({ default: 1, min: 1, max: 4096 }),
  },
  outputs: [IMAGE],
  run: (inputs) => {
    const image = inputs.image("image");
    const given = inputs.int("batch_index");
    const first = Math.max(0, Math.min(given < 0 ? image.batch + given : given, image.batch - 1));
    const batch = Math.min(inputs.int("length"), image.batch - first);
    const data = image.data.slice(first * image.stride, (first + batch) * image.stride);
    return single(new ImageTensor({ ...image.size(), batch }, data));
  },
};

/** A picture whose pixels are taken from elsewhere in the source. */
function rearranged(
  image: ImageTensor,
  size: { width: number; height: number },
  from: (x: number, y: number) => readonly [x: number, y: number],
): ImageTensor {
  const result = new ImageTensor({ ...image.size(), ...size });
  const { channels } = image;
  for (let picture = 0; picture < image.batch; picture++) {
    for (let y = 0; y < size.height; y++) {
      for (let x = 0; x < size.width; x++) {
        const [sourceX, sourceY] = from(x, y);
        const source = ((picture * image.height + sourceY) * image.width + sourceX) * channels;
        const target = ((picture * size.height + y) * size.width + x) * channels;
        for (let channel = 0; channel < channels; channel++) {
          result.data[target + channel] = image.data[source + channel] ?? 0;
        }
      }
    }
  }
  return result;
}

export const imageFlip: NodeDefinition = {
  className: "ImageFlip",
  displayName: "Flip Image",
  category: "image/transform",
  module: "comfy_extras.nodes_images",
  schema: "v3-new",
  required: {
    image: socket("IMAGE"),
    flip_method: combo(["x-axis: vertically", "y-axis: horizontally"]),
  },
  outputs: [IMAGE],
  run: (inputs) => {
    const image = inputs.image("image");
    const { width, height } = image;
    const isVertical = inputs.text("flip_method").startsWith("x");
    return single(
      rearranged(image, { width, height }, (x, y) =>
        isVertical ? [x, height - 1 - y] : [width - 1 - x, y],
      ),
    );
  },
};

export const imageRotate: NodeDefinition = {
  className: "ImageRotate",
  displayName: "Rotate Image",
  category: "image/transform",
  module: "comfy_extras.nodes_images",
  schema: "v3-new",
  required: {
    image: socket("IMAGE"),
    rotation: combo(["none", "90 degrees", "180 degrees", "270 degrees"]),
  },
  outputs: [IMAGE],
  run: (inputs) => {
    const image = inputs.image("image");
    const { width, height } = image;
    const turned = { width: height, height: width };
    const rotation = inputs.text("rotation");
    if (rotation.startsWith("90")) {
      return single(rearranged(image, turned, (x, y) => [y, height - 1 - x]));
    }
    if (rotation.startsWith("180")) {
      return single(
        rearranged(image, { width, height }, (x, y) => [width - 1 - x, height - 1 - y]),
      );
    }
    return single(
      rotation.startsWith("270") ? rearranged(image, turned, (x, y) => [width - 1 - y, x]) : image,
    );
  },
};

export const getImageSize: NodeDefinition = {
  className: "GetImageSize",
  displayName: "Get Image Size",
  category: "image",
  module: "comfy_extras.nodes_images",
  schema: "v3-new",
  required: { image: socket("IMAGE") },
  hidden: ["UNIQUE_ID"],
  outputs: [output("INT", "width"), output("INT", "height"), output("INT", "batch_size")],
  run: (inputs, context) => {
    const { width, height, batch } = inputs.image("image");
    context.showText(`width: ${width}, height: ${height}\n batch size: ${batch}`);
    return { outputs: [width, height, batch] };
  },
};
