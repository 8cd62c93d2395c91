/** MIME types by file extension and back: the extension alone decides, as in Cog (cog_protocol.md §13, §14.2). */
import { extname } from "node:path";

export const DEFAULT_MIME = "application/octet-stream";

/** The first extension of a type is the one a data URL of that type becomes. */
const EXTENSIONS: Readonly<Record<string, readonly string[]>> = {
  "image/png": ["png"],
  "image/jpeg": ["jpg", "jpeg", "jpe"],
  "image/webp": ["webp"],
  "image/gif": ["gif"],
  "image/bmp": ["bmp"],
  "image/tiff": ["tiff", "tif"],
  "image/svg+xml": ["svg"],
  "image/avif": ["avif"],
  "image/heic": ["heic"],
  "image/x-icon": ["ico"],
  "image/vnd.microsoft.icon": ["ico"],
  "video/mp4": ["mp4", "m4v"],
  "video/webm": ["webm"],
  "video/quicktime": ["mov"],
  "video/x-msvideo": ["avi"],
  "video/x-matroska": ["mkv"],
  "video/mpeg": ["mpeg", "mpg"],
  "audio/mpeg": ["mp3"],
  "audio/wav": ["wav"],
  "audio/x-wav": ["wav"],
  "audio/flac": ["flac"],
  "audio/x-flac": ["flac"],
  "audio/ogg": ["ogg", "oga"],
  "audio/opus": ["opus"],
  "audio/mp4": ["m4a"],
  "audio/aac": ["aac"],
  "text/plain": ["txt", "log"],
  "text/html": ["html", "htm"],
  "text/css": ["css"],
  "text/csv": ["csv"],
  "text/markdown": ["md"],
  "application/json": ["json"],
  "application/pdf": ["pdf"],
  "application/xml": ["xml"],
  "text/xml": ["xml"],
  "application/zip": ["zip"],
  "application/x-zip-compressed": ["zip"],
  "application/x-tar": ["tar"],
  "application/gzip": ["gz"],
  "application/x-yaml": ["yaml", "yml"],
  "model/gltf-binary": ["glb"],
  "model/gltf+json": ["gltf"],
  "model/obj": ["obj"],
  "model/stl": ["stl"],
};

const BY_EXTENSION = new Map(
  Object.entries(EXTENSIONS)
    .flatMap(([mime, extensions]) => extensions.map((extension) => [extension, mime] as const))
    // Where two types share an extension the first one listed is the usual one.
    .toReversed(),
);

/** The type of a file, by its name. */
export function mimeOf(path: string): string {
  return BY_EXTENSION.get(extname(path).slice(1).toLowerCase()) ?? DEFAULT_MIME;
}

/** The usual extension of a type, with its dot; "" for an unknown one. */
export function extensionOf(mime: string): string {
  const extension = EXTENSIONS[mime.toLowerCase()]?.[0];
  return extension === undefined ? "" : `.${extension}`;
}
