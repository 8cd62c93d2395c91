/** What a file says of itself: each kind of broken download is told from a weight. */
import { describe, expect, test } from "bun:test";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { DEFECT_TEXT, DEFECTS, Inspector } from "../../src/models/header.ts";
import { statOf } from "../../src/models/listing.ts";
import { safetensors } from "../support/safetensors.ts";
import { tempDir } from "../support/temp-dir.ts";

const ZIP = new Uint8Array([
  0x50,
  0x4b,
  3,
  4,
  ...new Array<number>(80).fill(0),
  0x50,
  0x4b,
  5,
  6,
  ...new Array<number>(18).fill(0),
]);
const PICKLE = new Uint8Array([0x80, 2, 0x8a, 10, 1, 2, 3]);
const LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";

function header(text: string, body = 0): Uint8Array {
  const bytes = new Uint8Array(8 + text.length + body);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(new TextEncoder().encode(text), 8);
  return bytes;
}

const cases: readonly (readonly [string, string, string | Uint8Array, string])[] = [
  ["a whole safetensors file", "a.safetensors", safetensors({ w: [2, 2] }), "ok"],
  ["a safetensors file called .sft", "a.sft", safetensors({ w: [1] }), "ok"],
  ["one with metadata only", "a.safetensors", header('{"__metadata__":{"a":"b"}}'), "ok"],
  ["an empty file", "a.safetensors", "", "empty"],
  ["seven bytes", "a.safetensors", "1234567", "truncated"],
  ["one cut in its header", "a.safetensors", safetensors({ w: [9] }).subarray(0, 30), "truncated"],
  ["one cut in its data", "a.safetensors", safetensors({ w: [99] }).subarray(0, -1), "truncated"],
  [
    "one with a tail",
    "a.safetensors",
    new Uint8Array([...safetensors({ w: [1] }), 0]),
    "oversized",
  ],
  ["a header that is no JSON", "a.safetensors", header('{"a":', 4), "bad_header"],
  ["a header without offsets", "a.safetensors", header('{"w":{"dtype":"F16"}}'), "bad_header"],
  [
    "offsets that run backwards",
    "a.safetensors",
    header('{"w":{"data_offsets":[4,2]}}', 4),
    "bad_header",
  ],
  ["garbage", "a.safetensors", "x".repeat(600), "not_safetensors"],
  [
    "a pickle under a safetensors name",
    "a.safetensors",
    new Uint8Array([...PICKLE, ...new Array<number>(9).fill(9)]),
    "not_safetensors",
  ],
  ["a web page", "a.safetensors", "<!DOCTYPE html><html></html>", "html"],
  ["a web page behind blank lines", "a.ckpt", "\n\n  <html>", "html"],
  ["an XML error of a bucket", "a.pth", '<?xml version="1.0"?><Error/>', "html"],
  ["an LFS pointer", "a.safetensors", LFS, "lfs_pointer"],
  ["an LFS pointer of any ending", "a.onnx", LFS, "lfs_pointer"],
  ["a zip of PyTorch", "a.pth", ZIP, "ok"],
  ["a zip that was cut off", "a.pth", ZIP.subarray(0, 40), "truncated"],
  ["an old pickle", "a.ckpt", PICKLE, "ok"],
  ["text called .pth", "a.pth", "hello", "wrong_format"],
  ["text called .bin, which may be right", "a.bin", "hello", "ok"],
  ["a GGUF file", "a.gguf", "GGUF\u0003", "ok"],
  ["no GGUF file", "a.gguf", "nope", "wrong_format"],
  ["an ONNX file", "a.onnx", new Uint8Array([8, 7, 18, 3]), "ok"],
  ["no ONNX file", "a.onnx", "nope", "wrong_format"],
  ["a file of an ending we know nothing of", "a.yaml", "a: b", "ok"],
];

describe("inspect", () => {
  test.each(
    cases.map(([what, name, content, expected]) => [what, name, expected, content] as const),
  )("%s (%s) is %s", (_, name, expected, content) => {
    using dir = tempDir({ [name]: content });
    const verdict = new Inspector().inspect(dir.join(name));
    expect(verdict.ok ? "ok" : verdict.defect).toBe(expected);
  });

  test("tells folders and links to nowhere from files", () => {
    using dir = tempDir();
    mkdirSync(dir.join("a.safetensors"));
    expect(new Inspector().inspect(dir.join("a.safetensors"))).toMatchObject({
      defect: "not_a_file",
    });
    expect(new Inspector().inspect(dir.join("gone"))).toMatchObject({ defect: "dangling_link" });
  });

  test("compares with a known size", () => {
    const content = safetensors({ w: [1] });
    using dir = tempDir({ "a.safetensors": content });
    const inspector = new Inspector();
    const path = dir.join("a.safetensors");
    expect(inspector.inspect(path, { expectedSize: content.length }).ok).toBe(true);
    expect(inspector.inspect(path, { expectedSize: 1 })).toMatchObject({ defect: "wrong_size" });
  });

  test("says whether the format proves that nothing is cut off", () => {
    using dir = tempDir({
      "a.safetensors": safetensors({ w: [1] }),
      "a.ckpt": PICKLE,
      "a.pth": ZIP,
    });
    const complete = ["a.safetensors", "a.ckpt", "a.pth"].map((name) => {
      const verdict = new Inspector().inspect(dir.join(name));
      return verdict.ok && verdict.complete;
    });
    expect(complete).toEqual([true, false, true]);
  });

  test("reads a file once, and again when it changed", () => {
    using dir = tempDir({ "a.safetensors": safetensors({ w: [50] }) });
    const path = dir.join("a.safetensors");
    const inspector = new Inspector();
    expect(inspector.inspect(path).ok).toBe(true);
    const stat = statOf(path);
    truncateSync(path, 40);
    // A stat from before the change is answered from memory: nothing is read.
    expect(inspector.inspect(path, { stat }).ok).toBe(true);
    expect(inspector.inspect(path)).toMatchObject({ defect: "truncated" });
    writeFileSync(path, safetensors({ w: [3] }));
    expect(inspector.inspect(path).ok).toBe(true);
  });

  test("has words for every defect", () => {
    expect(Object.keys(DEFECT_TEXT).sort()).toEqual([...DEFECTS].sort());
  });
});
