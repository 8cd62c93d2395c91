/** Tiny but real safetensors files. */

/** A file with these tensors of float16 zeros: name → shape. */
export function safetensors(tensors: Readonly<Record<string, readonly number[]>>): Uint8Array {
  let end = 0;
  const header = Object.fromEntries(
    Object.entries(tensors).map(([name, shape]) => {
      const start = end;
      end += 2 * shape.reduce((product, length) => product * length, 1);
      return [name, { dtype: "F16", shape, data_offsets: [start, end] }];
    }),
  );
  const text = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + end);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}
