/** Nodes that make and change masks, and paste pictures through them. */
import { NodeError } from "../node-error.ts";
import { roundHalfEven } from "../python.ts";
import { scale } from "../resample.ts";
import { ImageTensor, MaskTensor } from "../values.ts";
import type { NodeContext, NodeDefinition, NodeOutcome } from "./definition.ts";
import { combo, flag, float, int, MAX_RESOLUTION, output, socket } from "./definition.ts";
import { maskToImage } from "./io.ts";

const MASK = output("MASK");
const SIDE = { default: 512, min: 1, max: MAX_RESOLUTION, step: 1 };
const OFFSET = { default: 0, min: 0, max: MAX_RESOLUTION, step: 1 };
const MODULE = {
  category: "image/mask",
  module: "comfy_extras.nodes_mask",
  schema: "v3-new",
} as const;

function single(mask: MaskTensor): NodeOutcome {
  return { outputs: [mask] };
}

function mapped(mask: MaskTensor, change: (value: number) => number): MaskTensor {
  const result = new MaskTensor(mask.size());
  for (let index = 0; index < result.data.length; index++) {
    result.data[index] = change(mask.data[index] ?? 0);
  }
  return result;
}

function copyOf(mask: MaskTensor): MaskTensor {
  return new MaskTensor(mask.size(), mask.data.slice());
}

export const solidMask: NodeDefinition = {
  ...MODULE,
  className: "SolidMask",
  displayName: "Create Solid Mask",
  required: {
    value: float({ default: 1, min: 0, max: 1, step: 0.01 }),
    width: int(SIDE),
    height: int(SIDE),
  },
  outputs: [MASK],
  run: (inputs) => {
    const size = { batch: 1, width: inputs.int("width"), height: inputs.int("height") };
    const mask = new MaskTensor(size);
    mask.data.fill(inputs.float("value"));
    return single(mask);
  },
};

export const invertMask: NodeDefinition = {
  ...MODULE,
  className: "InvertMask",
  displayName: "Invert Mask",
  required: { mask: socket("MASK") },
  outputs: [MASK],
  run: (inputs) => single(mapped(inputs.mask("mask"), (value) => 1 - value)),
};

export const maskToImageNode: NodeDefinition = {
  ...MODULE,
  className: "MaskToImage",
  displayName: "Convert Mask to Image",
  required: { mask: socket("MASK") },
  outputs: [output("IMAGE")],
  run: (inputs) => ({ outputs: [maskToImage(inputs.mask("mask"))] }),
};

const CHANNELS = ["red", "green", "blue", "alpha"];

export const imageToMask: NodeDefinition = {
  ...MODULE,
  className: "ImageToMask",
  displayName: "Convert Image to Mask",
  required: { image: socket("IMAGE"), channel: combo(CHANNELS) },
  outputs: [MASK],
  run: (inputs) => {
    const image = inputs.image("image");
    const channel = CHANNELS.indexOf(inputs.text("channel"));
    if (channel >= image.channels) {
      throw new NodeError(
        "IndexError",
        `index ${channel} is out of bounds for dimension 3 with size ${image.channels}`,
      );
    }
    const mask = new MaskTensor(image.size());
    for (let index = 0; index < mask.data.length; index++) {
      mask.data[index] = image.data[index * image.channels + channel] ?? 0;
    }
    return single(mask);
  },
};

export const cropMask: NodeDefinition = {
  ...MODULE,
  className: "CropMask",
  displayName: "Crop Mask",
  required: {
    mask: socket("MASK"),
    x: int(OFFSET),
    y: int(OFFSET),
    width: int(SIDE),
    height: int(SIDE),
  },
  outputs: [MASK],
  run: (inputs) => {
    const mask = inputs.mask("mask");
    const [x, y] = [inputs.int("x"), inputs.int("y")];
    const width = Math.max(0, Math.min(inputs.int("width"), mask.width - x));
    const height = Math.max(0, Math.min(inputs.int("height"), mask.height - y));
    const result = new MaskTensor({ batch: mask.batch, width, height });
    for (let line = 0; line < mask.batch * height; line++) {
      const [picture, row] = [Math.floor(line / height), line % height];
      const from = (picture * mask.height + y + row) * mask.width + x;
      result.data.set(mask.data.subarray(from, from + width), line * width);
    }
    return single(result);
  },
};

function asFlag(value: number): number {
  return roundHalfEven(value) === 0 ? 0 : 1;
}

const OPERATIONS: Readonly<Record<string, (a: number, b: number) => number>> = {
  multiply: (a, b) => a * b,
  add: (a, b) => a + b,
  subtract: (a, b) => a - b,
  and: (a, b) => asFlag(a) & asFlag(b),
  or: (a, b) => asFlag(a) | asFlag(b),
  xor: (a, b) => asFlag(a) ^ asFlag(b),
};

/** Batches must be equal, or one of them 1, as in every broadcast. */
function broadcast(first: number, second: number): void {
  if (first !== second && first !== 1 && second !== 1) {
    throw new NodeError(
      "RuntimeError",
      `The size of tensor a (${first}) must match the size of tensor b (${second}) at non-singleton dimension 0`,
    );
  }
}

export const maskComposite: NodeDefinition = {
  ...MODULE,
  className: "MaskComposite",
  displayName: "Combine Masks",
  required: {
    destination: socket("MASK"),
    source: socket("MASK"),
    x: int(OFFSET),
    y: int(OFFSET),
    operation: combo(Object.keys(OPERATIONS)),
  },
  outputs: [MASK],
  run: (inputs) => {
    const [destination, source] = [inputs.mask("destination"), inputs.mask("source")];
    const [left, top] = [inputs.int("x"), inputs.int("y")];
    const combine = OPERATIONS[inputs.text("operation")];
    broadcast(destination.batch, source.batch);
    const width = Math.min(source.width, destination.width - left);
    const height = Math.min(source.height, destination.height - top);
    const result = mapped(destination, (value) => value);
    for (let picture = 0; picture < destination.batch; picture++) {
      const plane = (picture % source.batch) * source.width * source.height;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const at = (picture * result.height + top + y) * result.width + left + x;
          const other = source.data[plane + y * source.width + x] ?? 0;
          result.data[at] = combine?.(result.data[at] ?? 0, other) ?? 0;
        }
      }
    }
    return single(mapped(result, (value) => Math.min(Math.max(value, 0), 1)));
  },
};

/** Multiplies one column (or row) of every plane. */
function fade(mask: MaskTensor, along: "x" | "y", position: number, factor: number): void {
  const isColumn = along === "x";
  const length = isColumn ? mask.height : mask.width;
  for (let picture = 0; picture < mask.batch; picture++) {
    for (let step = 0; step < length; step++) {
      const [x, y] = isColumn ? [position, step] : [step, position];
      const at = (picture * mask.height + y) * mask.width + x;
      mask.data[at] = (mask.data[at] ?? 0) * factor;
    }
  }
}

export const featherMask: NodeDefinition = {
  ...MODULE,
  className: "FeatherMask",
  displayName: "Feather Mask",
  required: {
    mask: socket("MASK"),
    left: int(OFFSET),
    top: int(OFFSET),
    right: int(OFFSET),
    bottom: int(OFFSET),
  },
  outputs: [MASK],
  run: (inputs, context) => {
    const mask = copyOf(inputs.mask("mask"));
    // 0.3.64 counts from the far edge by -i, so that its first step hits the near edge.
    const far = (size: number, step: number) =>
      context.compat === "0.3.64" ? (size - step) % size : size - 1 - step;
    const near = (_size: number, step: number) => step;
    const edges = [
      { name: "left", along: "x", size: mask.width, at: near },
      { name: "right", along: "x", size: mask.width, at: far },
      { name: "top", along: "y", size: mask.height, at: near },
      { name: "bottom", along: "y", size: mask.height, at: far },
    ] as const;
    for (const { name, along, size, at } of edges) {
      const steps = Math.min(inputs.int(name), size);
      for (let step = 0; step < steps; step++) {
        fade(mask, along, at(size, step), Math.fround((step + 1) / steps));
      }
    }
    return single(mask);
  },
};

/** One step of a grey dilation (or erosion) with a 3×3 neighbourhood; undefined when nothing changed. */
function grow(mask: MaskTensor, isTapered: boolean, pick: (a: number, b: number) => number) {
  const result = copyOf(mask);
  let hasChanged = false;
  for (let line = 0; line < mask.batch * mask.height; line++) {
    const y = line % mask.height;
    for (let x = 0; x < mask.width; x++) {
      const at = line * mask.width + x;
      let value = mask.data[at] ?? 0;
      for (let step = 0; step < 9; step++) {
        const [dx, dy] = [(step % 3) - 1, Math.floor(step / 3) - 1];
        const isOutside = x + dx < 0 || x + dx >= mask.width || y + dy < 0 || y + dy >= mask.height;
        if (!isOutside && !(isTapered && dx !== 0 && dy !== 0)) {
          value = pick(value, mask.data[at + dy * mask.width + dx] ?? 0);
        }
      }
      hasChanged ||= value !== mask.data[at];
      result.data[at] = value;
    }
  }
  return hasChanged ? result : undefined;
}

export const growMask: NodeDefinition = {
  ...MODULE,
  className: "GrowMask",
  displayName: "Grow Mask",
  required: {
    mask: socket("MASK"),
    expand: int({ default: 0, min: -MAX_RESOLUTION, max: MAX_RESOLUTION, step: 1 }),
    tapered_corners: flag({ advanced: true, default: true }),
  },
  outputs: [MASK],
  run: async (inputs, context) => {
    const expand = inputs.int("expand");
    const pick = expand < 0 ? Math.min : Math.max;
    let mask = inputs.mask("mask");
    for (let step = 0; step < Math.abs(expand); step++) {
      const next = grow(mask, inputs.flag("tapered_corners"), pick);
      if (next === undefined) {
        break;
      }
      mask = next;
      await context.breathe();
    }
    return single(mask);
  },
};

export const thresholdMask: NodeDefinition = {
  ...MODULE,
  className: "ThresholdMask",
  displayName: "Threshold Mask",
  required: {
    mask: socket("MASK"),
    value: float({ default: 0.5, min: 0, max: 1, step: 0.01 }),
  },
  outputs: [MASK],
  run: (inputs) => {
    const threshold = Math.fround(inputs.float("value"));
    return single(mapped(inputs.mask("mask"), (value) => (value > threshold ? 1 : 0)));
  },
};

/** Gives the source as many channels as the destination has. */
function withChannels(source: ImageTensor, channels: number): ImageTensor {
  if (source.channels === channels) {
    return source;
  }
  const result = new ImageTensor({ ...source.size(), channels });
  for (let index = 0; index < result.data.length; index++) {
    const channel = index % channels;
    const from = Math.floor(index / channels) * source.channels + channel;
    result.data[index] = channel < source.channels ? (source.data[from] ?? 0) : 1;
  }
  return result;
}

async function fitted(
  source: ImageTensor,
  size: { width: number; height: number },
  context: NodeContext,
) {
  return source.width === size.width && source.height === size.height
    ? source
    : await scale(source, { ...size, method: "bilinear" }, () => context.breathe());
}

export const imageCompositeMasked: NodeDefinition = {
  ...MODULE,
  className: "ImageCompositeMasked",
  displayName: "Image Composite Masked",
  category: "image/compositing",
  required: {
    destination: socket("IMAGE"),
    source: socket("IMAGE"),
    x: int(OFFSET),
    y: int(OFFSET),
    resize_source: flag({ default: false }),
  },
  optional: { mask: socket("MASK") },
  outputs: [output("IMAGE")],
  run: async (inputs, context) => {
    const destination = inputs.image("destination");
    const given = withChannels(inputs.image("source"), destination.channels);
    const source = inputs.flag("resize_source") ? await fitted(given, destination, context) : given;
    const mask = inputs.optionalMask("mask");
    const shape = mask === undefined ? undefined : await fitted(mask.asImage(), source, context);
    const result = new ImageTensor(destination.size(), destination.data.slice());
    pasteMasked(result, source, shape, { x: inputs.int("x"), y: inputs.int("y") });
    return { outputs: [result] };
  },
};

function pasteMasked(
  target: ImageTensor,
  source: ImageTensor,
  mask: ImageTensor | undefined,
  place: { x: number; y: number },
): void {
  const width = Math.min(source.width, target.width - place.x);
  const height = Math.min(source.height, target.height - place.y);
  for (let picture = 0; picture < target.batch; picture++) {
    const from = source.at(picture % source.batch);
    const weights = mask?.at(picture % mask.batch);
    const into = target.at(picture);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const weight = weights?.data[y * source.width + x] ?? 1;
        for (let channel = 0; channel < target.channels; channel++) {
          const at = ((y + place.y) * target.width + x + place.x) * target.channels + channel;
          const value = from.data[(y * source.width + x) * source.channels + channel] ?? 0;
          into.data[at] = weight * value + (1 - weight) * (into.data[at] ?? 0);
        }
      }
    }
  }
}
