/** Nodes that read pictures from the input folder and write them. */
import { mkdirSync, readdirSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { basename, dirname, extname, join, normalize, relative, resolve } from "node:path";
import { systemCode } from "../../../platform/errors.ts";
import type { JsonObject, JsonValue } from "../../../platform/json.ts";
import type { EngineFolders, FileArea } from "../folders.ts";
import { isWithin } from "../folders.ts";
import { NodeError } from "../node-error.ts";
import { decodePicture } from "../picture.ts";
import { encodePng } from "../png.ts";
import { dumps } from "../python.ts";
import { toBytes } from "../resample.ts";
import { ImageTensor, MaskTensor } from "../values.ts";
import type { InputSpec, NodeContext, NodeDefinition, NodeOutcome } from "./definition.ts";
import { combo, output, randomLetters, socket, text } from "./definition.ts";

const PICTURE_ENDINGS = new Set(
  ".apng .avif .bmp .gif .ico .jfif .jpe .jpeg .jpg .png .svg .tif .tiff .webp".split(" "),
);

/** Files at the top of the input folder, as the widget of the node lists them. */
function inputPictures(folders: EngineFolders): string[] {
  try {
    return readdirSync(folders.area("input"), { withFileTypes: true })
      .filter((entry) => entry.isFile() && PICTURE_ENDINGS.has(extname(entry.name).toLowerCase()))
      .map((entry) => entry.name)
      .sort((a, b) => (a < b ? -1 : Number(a > b)));
  } catch {
    return [];
  }
}

const PICTURE_INPUT: InputSpec = {
  type: "COMBO",
  options: inputPictures,
  config: { image_upload: true },
};

function checkPicture(values: Readonly<Record<string, JsonValue>>, folders: EngineFolders) {
  const name = String(values["image"]);
  return folders.inputFile(name) === undefined ? `Invalid image file: ${name}` : undefined;
}

/** sha256 of the file, so that another picture under the same name isn't taken from the cache. */
async function pictureFingerprint(
  values: Readonly<Record<string, JsonValue>>,
  folders: EngineFolders,
): Promise<string> {
  const path = folders.inputFile(String(values["image"])) ?? "";
  const hash = new Bun.CryptoHasher("sha256");
  for await (const chunk of Bun.file(path).stream()) {
    hash.update(chunk);
  }
  return hash.digest("hex");
}

async function readPicture(name: string, context: NodeContext) {
  const path = context.folders.inputFile(name);
  if (path === undefined) {
    throw new NodeError("FileNotFoundError", `[Errno 2] No such file or directory: '${name}'`);
  }
  const picture = await decodePicture(path);
  if (picture !== undefined) {
    return picture;
  }
  throw context.compat === "0.3.64"
    ? new NodeError("PIL.UnidentifiedImageError", `cannot identify image file '${path}'`)
    : new NodeError(
        "av.error.InvalidDataError",
        `[Errno 1094995529] Invalid data found when processing input: '${path}'`,
      );
}

/** Side of the mask of a picture without alpha. */
const NO_ALPHA_SIDE = 64;

export const loadImage: NodeDefinition = {
  className: "LoadImage",
  displayName: "Load Image",
  category: "image",
  module: "nodes",
  schema: "v1",
  required: { image: PICTURE_INPUT },
  outputs: [output("IMAGE"), output("MASK")],
  check: { names: ["image"], run: checkPicture },
  fingerprint: pictureFingerprint,
  run: async (inputs, context) => {
    const picture = await readPicture(inputs.text("image"), context);
    const { width, height, frames: batch } = picture;
    const image = new ImageTensor({ batch, width, height, channels: 3 });
    const side = { width: NO_ALPHA_SIDE, height: NO_ALPHA_SIDE };
    const isOld = context.compat === "0.3.64";
    // 0.33 has one plane per frame, 0.3.64 a single one.
    const planes = isOld ? 1 : batch;
    const mask =
      picture.hasAlpha || (picture.isDecodedWithAlpha && !isOld)
        ? new MaskTensor({ batch, width, height })
        : new MaskTensor({ batch: planes, ...side });
    for (let pixel = 0; pixel < batch * width * height; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        image.data[pixel * 3 + channel] = (picture.rgba[pixel * 4 + channel] ?? 0) / 255;
      }
      if (picture.hasAlpha) {
        mask.data[pixel] = 1 - Math.fround((picture.rgba[pixel * 4 + 3] ?? 0) / 255);
      }
    }
    return { outputs: [image, mask] };
  },
};

const CHANNELS = ["alpha", "red", "green", "blue"];

export const loadImageMask: NodeDefinition = {
  className: "LoadImageMask",
  displayName: "Load Image (as Mask)",
  category: "image",
  module: "nodes",
  schema: "v1",
  required: { image: PICTURE_INPUT, channel: combo(CHANNELS) },
  outputs: [output("MASK")],
  check: { names: ["image"], run: checkPicture },
  fingerprint: pictureFingerprint,
  run: async (inputs, context) => {
    const picture = await readPicture(inputs.text("image"), context);
    const channel = inputs.text("channel");
    if (channel === "alpha" && !picture.hasAlpha) {
      const side = { width: NO_ALPHA_SIDE, height: NO_ALPHA_SIDE };
      return { outputs: [new MaskTensor({ batch: 1, ...side })] };
    }
    const offset = { red: 0, green: 1, blue: 2, alpha: 3 }[channel] ?? 3;
    const mask = new MaskTensor({ batch: 1, width: picture.width, height: picture.height });
    for (let pixel = 0; pixel < mask.data.length; pixel++) {
      const value = Math.fround((picture.rgba[pixel * 4 + offset] ?? 0) / 255);
      mask.data[pixel] = offset === 3 ? 1 - value : value;
    }
    return { outputs: [mask] };
  },
};

export interface SavePlace {
  readonly folder: string;
  readonly subfolder: string;
  readonly base: string;
  readonly counter: number;
}

/** Words that the server itself replaces in a prefix. */
function expandPrefix(prefix: string, size: { width: number; height: number }): string {
  const now = new Date();
  const two = (value: number) => String(value).padStart(2, "0");
  const words = new Map([
    ["width", String(size.width)],
    ["height", String(size.height)],
    ["year", String(now.getFullYear())],
    ["month", two(now.getMonth() + 1)],
    ["day", two(now.getDate())],
    ["hour", two(now.getHours())],
    ["minute", two(now.getMinutes())],
    ["second", two(now.getSeconds())],
  ]);
  return prefix.replace(/%(\w+)%/g, (whole, word) => words.get(word) ?? whole);
}

/**
 * The number in a name that begins with `base_`: up to the next `_` (0.33 also stops at a dot). `searched` is what
 * ComfyUI cuts names by; where it isn't the base's own length (a prefix that ends in `/`), nothing is found.
 */
function counterOf(
  name: string,
  base: string,
  searched: number,
  isOld: boolean,
): number | undefined {
  if (name.slice(0, searched) !== base || name[searched] !== "_") {
    return undefined;
  }
  const digits = name.slice(searched + 1).split(isOld ? "_" : /[_.]/)[0] ?? "";
  return /^\d+$/.test(digits) ? Number(digits) : 0;
}

/** Folder, name and first free number of files to be saved. @throws NodeError for a place outside of the folder. */
export function savePlace(
  prefix: string,
  area: FileArea,
  size: { width: number; height: number },
  context: Pick<NodeContext, "folders" | "compat">,
): SavePlace {
  const root = context.folders.area(area);
  const expanded = expandPrefix(prefix, size);
  const path = normalize(expanded).replace(/\/$/, "");
  const base = basename(path);
  const searched = expanded.length - expanded.lastIndexOf("/") - 1;
  const folder = resolve(root, dirname(path));
  if (!isWithin(root, folder)) {
    const common =
      context.compat === "0.3.64" ? `\n         commonpath: ${commonPath(root, folder)}` : "";
    throw new NodeError(
      "Exception",
      `**** ERROR: Saving image outside the output folder is not allowed.\n full_output_folder: ${folder}\n         output_dir: ${root}${common}`,
    );
  }
  mkdirSync(folder, { recursive: true });
  const subfolder = relative(root, folder);
  const isOld = context.compat === "0.3.64";
  const counters = readdirSync(folder).flatMap(
    (name) => counterOf(name, base, searched, isOld) ?? [],
  );
  return { folder, subfolder, base, counter: Math.max(0, ...counters) + 1 };
}

function commonPath(first: string, second: string): string {
  const other = second.split("/");
  const shared = first.split("/").filter((part, index) => other[index] === part);
  return shared.join("/") || "/";
}

/** The text chunks of a saved picture. */
function textChunks({ metadata }: NodeContext): [string, string][] {
  if (metadata === undefined) {
    return [];
  }
  const extra = Object.entries(metadata.extra).map(([key, value]): [string, string] => [
    key,
    dumps(value),
  ]);
  return [["prompt", dumps(metadata.prompt)], ...extra];
}

/** The bytes of one picture of a batch. @throws NodeError for what Pillow refuses. */
export async function pngOf(
  image: ImageTensor,
  context: NodeContext,
  options: { level?: number; text?: [string, string][] } = {},
): Promise<Uint8Array> {
  const { width, height, channels } = image;
  if (channels !== 3 && channels !== 4) {
    throw new NodeError("TypeError", `Cannot handle this data type: (1, 1, ${channels}), |u1`);
  }
  if (width * height === 0) {
    throw new NodeError("ValueError", "cannot write empty image");
  }
  return await encodePng(
    { width, height, channels, data: toBytes(image.data) },
    { level: options.level ?? 4, text: options.text ?? [], breathe: () => context.breathe() },
  );
}

function diskError(error: unknown, path: string): unknown {
  return systemCode(error) === "ENOSPC"
    ? new NodeError("OSError", `[Errno 28] No space left on device: '${path}'`, { cause: error })
    : error;
}

interface SaveOptions {
  readonly area: FileArea;
  readonly prefix: string;
  readonly level: number;
}

/** Writes every picture of a batch and says where. */
export async function saveBatch(
  images: ImageTensor,
  context: NodeContext,
  options: SaveOptions,
): Promise<JsonObject[]> {
  const place = savePlace(options.prefix, options.area, images, context);
  const saved: JsonObject[] = [];
  for (let index = 0; index < images.batch; index++) {
    const name = place.base.replaceAll("%batch_num%", String(index));
    const filename = `${name}_${String(place.counter + index).padStart(5, "0")}_.png`;
    const bytes = await pngOf(images.at(index), context, {
      level: options.level,
      text: textChunks(context),
    });
    const path = join(place.folder, filename);
    try {
      await writeFile(path, bytes);
    } catch (error) {
      throw diskError(error, path);
    }
    saved.push({ filename, subfolder: place.subfolder, type: options.area });
  }
  return saved;
}

async function preview(
  images: ImageTensor,
  context: NodeContext,
  how: { letters: string; level: number },
) {
  const prefix = `ComfyUI_temp_${how.letters}`;
  return await saveBatch(images, context, { area: "temp", prefix, level: how.level });
}

export const saveImage: NodeDefinition = {
  className: "SaveImage",
  displayName: "Save Image",
  category: "image",
  module: "nodes",
  schema: "v1",
  required: { images: socket("IMAGE"), filename_prefix: text({ default: "ComfyUI" }) },
  hidden: ["PROMPT", "EXTRA_PNGINFO"],
  outputs: [output("IMAGE", "images")],
  isOutput: true,
  endsGraphInOld: true,
  run: async (inputs, context) => {
    const images = inputs.image("images");
    const prefix = inputs.text("filename_prefix");
    const saved = await saveBatch(images, context, { area: "output", prefix, level: 4 });
    return { outputs: [images], ui: { images: saved } };
  },
};

export const previewImage: NodeDefinition = {
  className: "PreviewImage",
  displayName: "Preview Image",
  category: "image",
  module: "nodes",
  schema: "v1",
  required: { images: socket("IMAGE") },
  hidden: ["PROMPT", "EXTRA_PNGINFO"],
  outputs: [output("IMAGE", "images")],
  isOutput: true,
  endsGraphInOld: true,
  run: async (inputs, context) => {
    const images = inputs.image("images");
    const saved = await preview(images, context, { letters: context.tempSuffix(), level: 1 });
    return { outputs: [images], ui: { images: saved } };
  },
};

/** A mask as a grey picture. */
export function maskToImage(mask: MaskTensor): ImageTensor {
  const image = new ImageTensor({ ...mask.size(), channels: 3 });
  for (let index = 0; index < image.data.length; index++) {
    image.data[index] = mask.data[Math.floor(index / 3)] ?? 0;
  }
  return image;
}

export const maskPreview: NodeDefinition = {
  className: "MaskPreview",
  displayName: "Preview Mask",
  category: "image/mask",
  module: "comfy_extras.nodes_mask",
  schema: "v3-new",
  required: { mask: socket("MASK") },
  hidden: ["PROMPT", "EXTRA_PNGINFO"],
  outputs: [output("MASK", "mask")],
  isOutput: true,
  endsGraphInOld: true,
  run: async (inputs, context): Promise<NodeOutcome> => {
    const mask = inputs.mask("mask");
    const how = { letters: randomLetters(), level: 4 };
    const images = await preview(maskToImage(mask), context, how);
    const isOld = context.compat === "0.3.64";
    return { outputs: [mask], ui: { images, ...(isOld ? {} : { animated: [false] }) } };
  },
};

export const saveImageWebsocket: NodeDefinition = {
  className: "SaveImageWebsocket",
  displayName: "Save Image (Websocket)",
  category: "image",
  module: "custom_nodes.websocket_image_save",
  schema: "v1",
  required: { images: socket("IMAGE") },
  outputs: [],
  isOutput: true,
  run: async (inputs, context) => {
    const images = inputs.image("images");
    for (let index = 0; index < images.batch; index++) {
      context.progress(index, images.batch, await pngOf(images.at(index), context));
      await context.breathe();
    }
    return { outputs: [] };
  },
};

/** Pictures side by side in memory, as sharp wants the pages of an animation: one below the other. */
function stacked(images: ImageTensor): Uint8Array {
  return toBytes(images.data);
}

export const saveAnimatedWebp: NodeDefinition = {
  className: "SaveAnimatedWEBP",
  displayName: "Save Animated WEBP",
  category: "image",
  module: "comfy_extras.nodes_images",
  schema: "v3-new",
  required: {
    images: socket("IMAGE"),
    filename_prefix: text({ default: "ComfyUI", multiline: false }),
    fps: { type: "FLOAT", config: { default: 6, min: 0.01, max: 1000, step: 0.01 } },
    lossless: { type: "BOOLEAN", config: { default: true } },
    quality: { type: "INT", config: { default: 80, min: 0, max: 100 } },
    method: combo(["default", "fastest", "slowest"]),
  },
  hidden: ["PROMPT", "EXTRA_PNGINFO"],
  outputs: [output("IMAGE", "images")],
  isOutput: true,
  endsGraphInOld: true,
  run: async (inputs, context) => {
    const images = inputs.image("images");
    const { default: sharp } = await import("sharp");
    const { width, height, channels, batch } = images;
    if (channels !== 3 && channels !== 4) {
      throw new NodeError("TypeError", `Cannot handle this data type: (1, 1, ${channels}), |u1`);
    }
    const prefix = inputs.text("filename_prefix");
    const place = savePlace(prefix, "output", images, context);
    const filename = `${place.base}_${String(place.counter).padStart(5, "0")}_.webp`;
    const effort = { default: 4, fastest: 0, slowest: 6 }[inputs.text("method")] ?? 4;
    await sharp(stacked(images), {
      raw: {
        width,
        height: height * batch,
        channels,
        ...(batch > 1 ? { pageHeight: height } : {}),
      },
    })
      .webp({
        lossless: inputs.flag("lossless"),
        quality: Math.max(1, inputs.int("quality")),
        effort,
        delay: Array.from({ length: batch }, () => Math.trunc(1000 / inputs.float("fps"))),
      })
      .toFile(join(place.folder, filename));
    const saved = { filename, subfolder: place.subfolder, type: "output" };
    return { outputs: [images], ui: { images: [saved], animated: [true] } };
  },
};
