/** Pictures and videos as ComfyUI saves them, as small as they can be: only the parts that hold a workflow. */
import { deflateSync } from "node:zlib";

const PNG_SIGNATURE = Buffer.from("89504e470d0a1a0a", "hex");

export function pngChunk(type: string, body: Uint8Array): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(body.length, 0);
  head.write(type, 4, "latin1");
  // The reader doesn't check sums: a picture that opens nowhere else may still hold a workflow.
  return Buffer.concat([head, body, Buffer.alloc(4)]);
}

export function textChunk(key: string, text: string): Buffer {
  return pngChunk("tEXt", Buffer.from(`${key}\0${text}`, "utf8"));
}

export function compressedChunk(key: string, text: string): Buffer {
  return pngChunk("zTXt", Buffer.concat([Buffer.from(`${key}\0\0`), deflateSync(text)]));
}

export function internationalChunk(key: string, text: string, isPacked: boolean): Buffer {
  const head = Buffer.from(`${key}\0${isPacked ? "\x01" : "\0"}\0en\0\0`, "latin1");
  return pngChunk("iTXt", Buffer.concat([head, isPacked ? deflateSync(text) : Buffer.from(text)]));
}

export function png(...chunks: Buffer[]): Buffer {
  const header = pngChunk("IHDR", Buffer.alloc(13));
  return Buffer.concat([PNG_SIGNATURE, header, ...chunks, pngChunk("IEND", Buffer.alloc(0))]);
}

/** EXIF with text tags `KEY:TEXT`, as ComfyUI writes it into WebP. */
export function exif(texts: Readonly<Record<string, string>>, isLittle = true): Buffer {
  const entries = Object.entries(texts).map(([key, text]) => Buffer.from(`${key}:${text}\0`));
  const ordered = (bytes: Buffer) => (isLittle ? bytes : bytes.reverse());
  const u16 = (value: number) => {
    const bytes = Buffer.alloc(2);
    bytes.writeUInt16LE(value);
    return ordered(bytes);
  };
  const u32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return ordered(bytes);
  };
  let offset = 8 + 2 + entries.length * 12 + 4;
  const rows = entries.map((body, index) => {
    const row = Buffer.concat([u16(0x110 - index), u16(2), u32(body.length), u32(offset)]);
    offset += body.length;
    return row;
  });
  const head = Buffer.concat([Buffer.from(isLittle ? "II" : "MM"), u16(42), u32(8)]);
  return Buffer.concat([head, u16(entries.length), ...rows, u32(0), ...entries]);
}

export function webp(block: Buffer): Buffer {
  const chunk = (type: string, body: Buffer) => {
    const size = Buffer.alloc(4);
    size.writeUInt32LE(body.length);
    return Buffer.concat([Buffer.from(type), size, body, Buffer.alloc(body.length % 2)]);
  };
  const body = Buffer.concat([chunk("VP8 ", Buffer.alloc(11)), chunk("EXIF", block)]);
  const size = Buffer.alloc(4);
  size.writeUInt32LE(body.length + 4);
  return Buffer.concat([Buffer.from("RIFF"), size, Buffer.from("WEBP"), body]);
}

export function jpeg(block: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from("Exif\0\0"), block]);
  const size = Buffer.alloc(2);
  size.writeUInt16BE(body.length + 2);
  return Buffer.concat([Buffer.from("ffd8ffe1", "hex"), size, body, Buffer.from("ffda", "hex")]);
}

export function box(type: string, ...parts: Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  const head = Buffer.alloc(8);
  head.writeUInt32BE(body.length + 8, 0);
  head.write(type, 4, "latin1");
  return Buffer.concat([head, body]);
}

/** An MP4 whose metadata has these keys (`mdta` names), as ComfyUI's SaveVideo writes it. */
export function mp4(texts: Readonly<Record<string, string>>): Buffer {
  const u32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value);
    return bytes;
  };
  const names = Object.keys(texts);
  const keys = names.map((name) => box("mdta", Buffer.from(name)));
  const items = Object.values(texts).map((text, index) =>
    box(u32(index + 1).toString("latin1"), box("data", u32(1), u32(0), Buffer.from(text))),
  );
  const meta = box(
    "meta",
    u32(0),
    box("hdlr", Buffer.alloc(25)),
    box("keys", u32(0), u32(names.length), ...keys),
    box("ilst", ...items),
  );
  return Buffer.concat([
    box("ftyp", Buffer.from("isom")),
    box("moov", box("udta", meta)),
    box("mdat", Buffer.alloc(32)),
  ]);
}

/** A WebM whose tags have these names; ffmpeg writes them in capitals. */
export function webm(texts: Readonly<Record<string, string>>): Buffer {
  const element = (id: string, ...parts: Uint8Array[]) => {
    const body = Buffer.concat(parts);
    const size = Buffer.alloc(8);
    size.writeBigUInt64BE(BigInt(body.length) | (1n << 56n));
    return Buffer.concat([Buffer.from(id, "hex"), size, body]);
  };
  const tags = Object.entries(texts).map(([name, text]) =>
    element(
      "7373",
      element("67c8", element("45a3", Buffer.from(name)), element("4487", Buffer.from(text))),
    ),
  );
  const segment = Buffer.concat([element("ec", Buffer.alloc(9)), element("1254c367", ...tags)]);
  const endless = Buffer.concat([Buffer.from("1853806701ffffffffffffff", "hex"), segment]);
  return Buffer.concat([element("1a45dfa3", Buffer.from("4282847765626d", "hex")), endless]);
}
