/** Tar archives byte by byte, also such as no decent program would make. */

export interface TarEntry {
  readonly name: string;
  readonly body?: Uint8Array | string;
  /** `0` file, `1` hard link, `2` symbolic link, `5` folder, `3` device, `6` fifo, `S` sparse, … */
  readonly type?: string;
  readonly link?: string;
  readonly mode?: number;
  /** Written instead of the body's length. */
  readonly sizeField?: Uint8Array;
  /** A wrong checksum. */
  readonly broken?: boolean;
}

const BLOCK = 512;

function octal(value: number, length: number): string {
  return `${value.toString(8).padStart(length - 1, "0")}\0`;
}

export function tarEntry(entry: TarEntry): Buffer {
  const body = Buffer.from(entry.body ?? "");
  const header = Buffer.alloc(BLOCK);
  header.write(entry.name, 0, 100, "utf8");
  header.write(octal(entry.mode ?? 0o644, 8), 100);
  header.write(octal(0, 8), 108);
  header.write(octal(0, 8), 116);
  header.write(octal(body.length, 12), 124);
  if (entry.sizeField !== undefined) {
    header.set(entry.sizeField, 124);
  }
  header.write(octal(0, 12), 136);
  header.write("        ", 148);
  header.write(entry.type ?? "0", 156);
  header.write(entry.link ?? "", 157, 100, "utf8");
  header.write("ustar\0" + "00", 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(octal(entry.broken === true ? sum + 1 : sum, 7), 148);
  const padding = Buffer.alloc((BLOCK - (body.length % BLOCK)) % BLOCK);
  return Buffer.concat([header, body, padding]);
}

/** A PAX header that names the next entry. */
export function paxEntry(fields: Readonly<Record<string, string>>): Buffer {
  const lines = Object.entries(fields).map(([key, value]) => {
    const text = ` ${key}=${value}\n`;
    let length = Buffer.byteLength(text) + 1;
    while (String(length).length + Buffer.byteLength(text) !== length) {
      length = String(length).length + Buffer.byteLength(text);
    }
    return `${length}${text}`;
  });
  return tarEntry({ name: "PaxHeader", type: "x", body: lines.join("") });
}

export const TAR_END = Buffer.alloc(2 * BLOCK);

export function tar(entries: readonly (TarEntry | Buffer)[], end = true): Buffer {
  const parts = entries.map((entry) => (Buffer.isBuffer(entry) ? entry : tarEntry(entry)));
  return Buffer.concat(end ? [...parts, TAR_END] : parts);
}
