import { describe, expect, test } from "bun:test";
import { sniff, sniffFile } from "../../src/media/sniff.ts";
import { tempDir } from "../support/temp-dir.ts";

function latin(text: string): Uint8Array {
  return Buffer.from(text, "latin1");
}

const SAMPLES: readonly (readonly [string, string, Uint8Array])[] = [
  ["png", "image", latin("\x89PNG\r\n\x1a\n\0\0\0\rIHDR")],
  ["jpg", "image", latin("\xff\xd8\xff\xe0\0\x10JFIF")],
  ["gif", "image", latin("GIF89a\x01\0")],
  ["webp", "image", latin("RIFF\x24\0\0\0WEBPVP8 ")],
  ["tiff", "image", latin("II*\0\x08\0\0\0")],
  ["bmp", "image", Buffer.concat([latin("BM\x46\0\0\0\0\0\0\0\x36\0\0\0"), Buffer.alloc(20)])],
  ["avif", "image", latin("\0\0\0\x20ftypavif\0\0\0\0")],
  ["svg", "image", latin('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')],
  ["mp4", "video", latin("\0\0\0\x20ftypisom\0\0\x02\0")],
  ["mov", "video", latin("\0\0\0\x14ftypqt  \0\0\0\0")],
  ["webm", "video", latin("\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm")],
  ["mkv", "video", latin("\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x88matroska")],
  ["avi", "video", latin("RIFF\x24\0\0\0AVI LIST")],
  ["wav", "audio", latin("RIFF\x24\0\0\0WAVEfmt ")],
  ["mp3", "audio", latin("ID3\x04\0\0\0\0\0\0")],
  ["mp3", "audio", latin("\xff\xfb\x90\x64\0\0\0\0")],
  ["aac", "audio", latin("\xff\xf1\x50\x80\0\0\0\0")],
  ["flac", "audio", latin("fLaC\0\0\0\x22")],
  ["opus", "audio", latin("OggS\0\x02\0\0\0\0\0\0\0\0OpusHead")],
  ["m4a", "audio", latin("\0\0\0\x20ftypM4A \0\0\0\0")],
  ["glb", "3d", latin("glTF\x02\0\0\0")],
  ["zip", "archive", latin("PK\x03\x04\x14\0\0\0")],
  ["tar.gz", "archive", latin("\x1f\x8b\x08\0\0\0\0\0")],
  ["safetensors", "tensors", latin('\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32"')],
  ["html", "html", latin("\n <!DOCTYPE html><html><body>Sign in</body></html>")],
  ["", "text", latin("v 1.0 2.0 3.0\nf 1 2 3\n")],
  ["", "other", latin("\0\x01\x02\x03\x04\x05")],
  ["", "empty", new Uint8Array()],
];

describe("sniffing", () => {
  test.each(SAMPLES)("knows %s as %s", (extension, kind, bytes) => {
    expect(sniff(bytes)).toMatchObject({ extension, kind });
  });

  test("never throws, whatever a file is cut to", () => {
    for (const [, , bytes] of SAMPLES) {
      for (let length = 0; length <= bytes.byteLength; length += 1) {
        expect(typeof sniff(bytes.subarray(0, length)).kind).toBe("string");
      }
    }
  });

  test("reads only the beginning of a file", () => {
    using dir = tempDir({ "a.txt": latin("\x89PNG\r\n\x1a\n".padEnd(100_000, "x")) });
    expect(sniffFile(dir.join("a.txt")).extension).toBe("png");
  });
});
