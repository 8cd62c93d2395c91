/** `/view` and `/upload/*`: files in and out, never outside of their folders. */
import { existsSync, mkdirSync, statSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { basename, dirname, extname, resolve } from "node:path";
import { isJsonObject } from "../../platform/json.ts";
import type { EngineFolders, FileArea } from "./folders.ts";
import { isWithin, splitAnnotation } from "./folders.ts";
import type { Compat } from "./nodes/definition.ts";
import { decodePicture } from "./picture.ts";
import { encodePng } from "./png.ts";
import { bare, crash, json } from "./replies.ts";

const TYPES: Readonly<Record<string, string>> = {
  ".png": "image/png",
  ".jpg": "image/jpeg",
  ".jpeg": "image/jpeg",
  ".gif": "image/gif",
  ".bmp": "image/bmp",
  ".tif": "image/tiff",
  ".tiff": "image/tiff",
  ".webp": "image/webp",
  ".avif": "image/avif",
  ".svg": "image/svg+xml",
  ".mp4": "video/mp4",
  ".webm": "video/webm",
  ".mp3": "audio/mpeg",
  ".flac": "audio/x-flac",
  ".wav": "audio/x-wav",
  ".txt": "text/plain",
  ".json": "application/json",
};
const ANY_TYPE = "application/octet-stream";

/** Types that a browser would run; they are handed out as plain bytes. */
const ACTIVE = new Set([".html", ".htm", ".js", ".css", ".svg", ".xml"]);

function areaOf(name: string): FileArea | undefined {
  return name === "input" || name === "output" || name === "temp" ? name : undefined;
}

function refusedName(filename: string): boolean {
  return filename === "" || filename.startsWith("/") || filename.includes("..");
}

async function asPng(path: string, channel: string): Promise<Uint8Array | undefined> {
  const picture = await decodePicture(path);
  if (picture === undefined) {
    return undefined;
  }
  const { width, height, rgba } = picture;
  const isAlpha = channel === "a";
  const channels = isAlpha ? 4 : 3;
  const data = new Uint8Array(width * height * channels);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let at = 0; at < 3; at++) {
      data[pixel * channels + at] = isAlpha ? 0 : (rgba[pixel * 4 + at] ?? 0);
    }
    if (isAlpha) {
      data[pixel * 4 + 3] = rgba[pixel * 4 + 3] ?? 0;
    }
  }
  return await encodePng({ width, height, channels, data });
}

async function previewOf(path: string, request: string): Promise<Response> {
  const [format, quality] = request.split(";");
  const { default: sharp } = await import("sharp");
  const options = { quality: Math.min(Math.max(Number(quality) || 90, 1), 100) };
  const image = sharp(path);
  const isJpeg = format === "jpeg";
  const bytes = await (isJpeg ? image.jpeg(options) : image.webp(options)).toBuffer();
  return new Response(new Uint8Array(bytes), {
    headers: {
      "content-type": isJpeg ? "image/jpeg" : "image/webp",
      "content-disposition": `filename="${basename(path)}"`,
    },
  });
}

/** `GET /view`. */
export async function viewFile(
  folders: EngineFolders,
  query: URLSearchParams,
  compat: Compat,
): Promise<Response> {
  const given = query.get("filename");
  if (given === null) {
    return bare(404);
  }
  const hasBracket = /\[(?:output|input|temp)\]$/.test(given);
  const { name, area: annotated } = splitAnnotation(given);
  const area = hasBracket ? annotated : areaOf(query.get("type") ?? "output");
  if (refusedName(name) || area === undefined) {
    return bare(400);
  }
  const root = folders.area(area);
  const folder = resolve(root, query.get("subfolder") ?? "");
  if (!isWithin(root, folder)) {
    return bare(403);
  }
  const path = resolve(folder, basename(name));
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) {
    return bare(404);
  }
  return await answerFile(path, query, compat);
}

async function answerFile(path: string, query: URLSearchParams, compat: Compat): Promise<Response> {
  const channel = query.get("channel") ?? "rgba";
  const preview = query.get("preview");
  const ending = extname(path).toLowerCase();
  if (preview !== null) {
    return await previewOf(path, preview);
  }
  const disposition = `filename="${basename(path)}"`;
  if (channel === "rgb" || channel === "a") {
    const png = await asPng(path, channel);
    return png === undefined
      ? crash()
      : new Response(new Uint8Array(png), {
          headers: { "content-type": "image/png", "content-disposition": disposition },
        });
  }
  const isActive = ACTIVE.has(ending);
  const isNew = compat === "0.33.0";
  return new Response(Bun.file(path), {
    headers: {
      "content-type": isActive ? ANY_TYPE : (TYPES[ending] ?? ANY_TYPE),
      "content-disposition": isActive && isNew ? `attachment; ${disposition}` : disposition,
      ...(isNew ? { "x-content-type-options": "nosniff" } : {}),
    },
  });
}

interface Upload {
  readonly bytes: Uint8Array;
  readonly filename: string;
  readonly area: FileArea;
  readonly subfolder: string;
  readonly path: string;
  readonly isOverwriting: boolean;
}

/** What Bun makes of a multipart body. */
export type UploadForm = Awaited<ReturnType<Request["formData"]>>;

function textOf(form: UploadForm, name: string): string | undefined {
  const value = form.get(name);
  return typeof value === "string" ? value : undefined;
}

/** A part's file name as it was sent: `File` objects may have lost their folders. */
async function readUpload(folders: EngineFolders, form: UploadForm): Promise<Upload | Response> {
  const file = form.get("image");
  if (file === null || typeof file === "string" || file.name === "") {
    return bare(400);
  }
  const area = areaOf(textOf(form, "type") ?? "input");
  if (area === undefined) {
    return crash();
  }
  const subfolder = textOf(form, "subfolder") ?? "";
  const path = folders.inArea(area, subfolder, file.name);
  const folder = folders.inArea(area, subfolder, "");
  if (path === undefined || folder === undefined) {
    return bare(400);
  }
  mkdirSync(folder, { recursive: true });
  if (!existsSync(dirname(path))) {
    return crash();
  }
  const overwrite = textOf(form, "overwrite");
  const isOverwriting = overwrite === "true" || overwrite === "1";
  return { bytes: await file.bytes(), filename: file.name, area, subfolder, path, isOverwriting };
}

/** A name that is free, or that of a file with these very bytes. */
async function freePlace(
  upload: Upload,
): Promise<{ filename: string; path: string; isThere: boolean }> {
  let { filename, path } = upload;
  const ending = extname(upload.filename);
  const stem = upload.filename.slice(0, upload.filename.length - ending.length);
  for (let copy = 1; !upload.isOverwriting && existsSync(path); copy++) {
    if (Buffer.compare(await readFile(path), upload.bytes) === 0) {
      return { filename, path, isThere: true };
    }
    filename = `${stem} (${copy})${ending}`;
    path = resolve(dirname(upload.path), basename(filename));
  }
  return { filename, path, isThere: false };
}

/** `POST /upload/image`. */
export async function uploadImage(folders: EngineFolders, form: UploadForm): Promise<Response> {
  const upload = await readUpload(folders, form);
  if (upload instanceof Response) {
    return upload;
  }
  const { filename, path, isThere } = await freePlace(upload);
  if (!isThere) {
    await writeFile(path, upload.bytes);
  }
  return json({ name: filename, subfolder: upload.subfolder, type: upload.area });
}

function originalOf(folders: EngineFolders, form: UploadForm): string | undefined {
  const reference: unknown = JSON.parse(textOf(form, "original_ref") ?? "null");
  if (!isJsonObject(reference)) {
    return undefined;
  }
  const { filename, subfolder, type } = reference;
  const area = areaOf(typeof type === "string" ? type : "output");
  return typeof filename === "string" && area !== undefined && !refusedName(filename)
    ? folders.inArea(area, typeof subfolder === "string" ? subfolder : "", basename(filename))
    : undefined;
}

/** `POST /upload/mask`: the original picture with the alpha of the uploaded one. */
export async function uploadMask(folders: EngineFolders, form: UploadForm): Promise<Response> {
  const upload = await readUpload(folders, form);
  if (upload instanceof Response) {
    return upload;
  }
  const original = originalOf(folders, form);
  if (original === undefined || !existsSync(original)) {
    return bare(400);
  }
  const [base, mask] = [await decodePicture(original), await decodePicture(upload.bytes)];
  if (
    base === undefined ||
    mask === undefined ||
    base.width !== mask.width ||
    base.height !== mask.height
  ) {
    return crash();
  }
  const data = base.rgba.slice(0, base.width * base.height * 4);
  for (let at = 3; at < data.length; at += 4) {
    data[at] = mask.rgba[at] ?? 0;
  }
  const { filename, path } = await freePlace(upload);
  await writeFile(
    path,
    await encodePng({ width: base.width, height: base.height, channels: 4, data }),
  );
  return json({ name: filename, subfolder: upload.subfolder, type: upload.area });
}
