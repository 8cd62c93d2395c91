/** Reads picture files through sharp (loaded on first use): upright, 8 bits, every frame, colours as stored. */
import { messageOf } from "../../platform/errors.ts";

export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly frames: number;
  readonly hasAlpha: boolean;
  /** True for formats that 0.33's decoder always gives an alpha channel: palette PNG, WebP, CMYK. */
  readonly isDecodedWithAlpha: boolean;
  /** Four bytes a pixel, frames one after the other. */
  readonly rgba: Uint8Array;
}

/** ComfyUI itself lifts Pillow's limit; this one only stops decompression bombs. */
const MAX_PIXELS = 16_384 * 16_384;

/** Undefined when the file is no picture. */
export async function decodePicture(source: string | Uint8Array): Promise<Picture | undefined> {
  const { default: sharp } = await import("sharp");
  try {
    const options = { ignoreIcc: true, limitInputPixels: MAX_PIXELS, failOn: "none" } as const;
    const meta = await sharp(source, { ...options, animated: true }).metadata();
    const isAnimated = (meta.pages ?? 1) > 1;
    // Turning upright works on one page only; formats with several carry no orientation.
    const image = isAnimated
      ? sharp(source, { ...options, animated: true })
      : sharp(source, options).autoOrient();
    const { data, info } = await image
      .toColourspace("srgb")
      .ensureAlpha()
      .raw({ depth: "uchar" })
      .toBuffer({ resolveWithObject: true });
    const frames = isAnimated ? (info.pages ?? meta.pages ?? 1) : 1;
    const height = info.pageHeight ?? info.height / frames;
    return {
      width: info.width,
      height,
      frames,
      hasAlpha: meta.hasAlpha === true,
      isDecodedWithAlpha:
        meta.format === "webp" ||
        meta.space === "cmyk" ||
        (meta.format === "png" && meta.isPalette === true),
      rgba: data,
    };
  } catch (error) {
    if (/memory|too large|exceeds pixel limit/i.test(messageOf(error))) {
      throw error;
    }
    return undefined;
  }
}
