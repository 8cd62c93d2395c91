/** What passes for a weight and what does not (downloader.md D, 57–60); and that nothing else can be published. */
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { AppError } from "../../src/platform/errors.ts";
import { publish } from "../../src/weights/publish.ts";
import { verify, verifyFile } from "../../src/weights/verify.ts";
import { tempDir } from "../support/temp-dir.ts";
import { safetensors, sha256 } from "../support/weights.ts";

function withHeader(header: unknown, dataBytes: number, declared?: bigint): Buffer {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(declared ?? BigInt(Buffer.byteLength(text)));
  return Buffer.concat([start, Buffer.from(text), Buffer.alloc(dataBytes, 1)]);
}

const tensor = (from: number, to: number) => ({
  dtype: "U8",
  shape: [to - from],
  data_offsets: [from, to],
});

async function verdict(name: string, content: Uint8Array | string): Promise<string> {
  using dir = tempDir({ [name]: content });
  try {
    await verifyFile(dir.join(name));
    return "ok";
  } catch (error) {
    return error instanceof AppError ? error.code : "not ours";
  }
}

describe("D58: safetensors", () => {
  const good = safetensors(1000);
  test.each([
    ["whole", good, "ok"],
    [
      "with metadata",
      withHeader({ __metadata__: { format: "pt" }, a: tensor(0, 4), b: tensor(4, 10) }, 10),
      "ok",
    ],
    [
      "with tensors listed out of order",
      withHeader({ b: tensor(4, 10), a: tensor(0, 4) }, 10),
      "ok",
    ],
    ["one byte short", good.subarray(0, good.length - 1), "FORMAT_INVALID"],
    ["one byte long", Buffer.concat([good, Buffer.alloc(1)]), "FORMAT_INVALID"],
    ["with a header of 2^63 bytes", withHeader({}, 10, 2n ** 63n), "FORMAT_INVALID"],
    ["with a header beyond the file", withHeader({}, 10, 5000n), "FORMAT_INVALID"],
    [
      "with overlapping tensors",
      withHeader({ a: tensor(0, 6), b: tensor(4, 10) }, 10),
      "FORMAT_INVALID",
    ],
    [
      "with a hole between tensors",
      withHeader({ a: tensor(0, 4), b: tensor(6, 10) }, 10),
      "FORMAT_INVALID",
    ],
    [
      "with one name twice",
      withHeader(`{"a":${JSON.stringify(tensor(0, 4))},"a":${JSON.stringify(tensor(0, 10))}}`, 10),
      "FORMAT_INVALID",
    ],
    ["with a header that is no JSON", withHeader("{not json}", 10), "FORMAT_INVALID"],
    [
      "with a header that is no UTF-8",
      Buffer.concat([withHeader("", 0, 4n), Buffer.from([0x7b, 0xff, 0xfe, 0x7d])]),
      "FORMAT_INVALID",
    ],
    ["that is a page", "<!DOCTYPE html><html></html>", "FORMAT_INVALID"],
    ["that is an LFS pointer", "version https://git-lfs.github.com/spec/v1\n", "FORMAT_INVALID"],
    ["that is a JSON message", '{"error":"not found"}', "FORMAT_INVALID"],
    ["that is empty", "", "FORMAT_INVALID"],
  ])("%s", async (_what, content, expected) => {
    expect(await verdict("w.safetensors", content)).toBe(expected);
  });
});

describe("other formats", () => {
  test.each([
    ["w.gguf", "GGUF\u0003\u0000\u0000\u0000", "ok"],
    ["w.gguf", "<Error><Code>AccessDenied</Code></Error>", "FORMAT_INVALID"],
    ["w.ckpt", `PK\u0003\u0004zip PK\u0005\u0006${"\u0000".repeat(18)}`, "ok"],
    ["w.ckpt", "PK\u0003\u0004 a zip that was cut", "FORMAT_INVALID"],
    ["w.pth", "hello world", "FORMAT_INVALID"],
    ["w.bin", '{"error":"Repository not found"}', "FORMAT_INVALID"],
    ["w.bin", Buffer.alloc(100, 7), "ok"],
    ["config.json", '{"error":"is a word like any other here"}', "ok"],
    ["w.onnx", "<html>", "FORMAT_INVALID"],
  ])("%s holding %p is %s", async (name, content, expected) => {
    expect(await verdict(name, content)).toBe(expected);
  });
});

describe("D59: hashes and sizes", () => {
  const body = safetensors(50);
  test("must match, capitals or not", async () => {
    using dir = tempDir({ "w.safetensors": body });
    const path = dir.join("w.safetensors");
    expect((await verifyFile(path, { sha256: sha256(body).toUpperCase() })).sha256).toBe(
      sha256(body),
    );
    expect(verifyFile(path, { sha256: "0".repeat(64) })).rejects.toMatchObject({
      code: "HASH_MISMATCH",
    });
    expect(verifyFile(path, { sizeBytes: 5 })).rejects.toMatchObject({ code: "SIZE_MISMATCH" });
    expect(verifyFile(dir.join("gone"))).rejects.toMatchObject({ code: "NOT_FOUND" });
    await Bun.sleep(0);
  });

  test("of a download that lost bytes on the disk do not pass", async () => {
    using dir = tempDir({ data: body.subarray(0, 60) });
    const partial = { path: dir.join("data"), sizeBytes: body.length, sha256: sha256(body) };
    const attempt = verify(partial, { name: "w", fileName: "w.safetensors" });
    expect(attempt).rejects.toMatchObject({ code: "SIZE_MISMATCH" });
    await attempt.catch(() => undefined);
  });
});

describe("only what was verified can be published", () => {
  test("at run time", async () => {
    using dir = tempDir({ "w.safetensors": safetensors(10) });
    const forged: object = { path: dir.join("w.safetensors"), sizeBytes: 10, sha256: undefined };
    const attempt = Reflect.apply(publish, undefined, [forged, dir.join("out.safetensors")]);
    expect(attempt).rejects.toMatchObject({ code: "INTERNAL" });
    await Promise.resolve(attempt).catch(() => undefined);
    expect(existsSync(dir.join("out.safetensors"))).toBe(false);
  });

  test("at compile time: neither a partial file nor a look-alike is accepted, and there is no constructor", async () => {
    const root = join(import.meta.dir, "../..");
    const tries = {
      "partial.ts": `declare const partial: PartialFile; await publish(partial, "/x");`,
      "lookalike.ts": `await publish({ path: "/x", sizeBytes: 1, sha256: undefined }, "/x");`,
      "path.ts": `await publish("/x", "/x");`,
      "construct.ts": `await publish(new VerifiedFile("/x", 1, undefined), "/x");`,
      "good.ts": `await publish(await verifyFile("/x"), "/x");`,
    };
    const head = `import { publish } from "${root}/src/weights/publish.ts";
import { verifyFile } from "${root}/src/weights/verify.ts";
import type { PartialFile, VerifiedFile } from "${root}/src/weights/verify.ts";
`;
    const config: unknown = JSON.parse(readFileSync(join(root, "tsconfig.json"), "utf8"));
    const options =
      typeof config === "object" && config !== null && "compilerOptions" in config
        ? config.compilerOptions
        : {};
    using dir = tempDir({
      ...Object.fromEntries(
        Object.entries(tries).map(([name, text]) => [name, `${head}${text}\nexport {};\n`]),
      ),
      "tsconfig.json": JSON.stringify({
        compilerOptions: {
          ...Object(options),
          typeRoots: [join(root, "node_modules")],
          noUnusedLocals: false,
        },
        include: ["*.ts"],
      }),
    });
    const compiler = Bun.spawn(
      [process.execPath, "x", "tsc", "--noEmit", "--pretty", "false", "-p", dir.path],
      {
        cwd: root,
        stdout: "pipe",
        stderr: "pipe",
      },
    );
    const output = await new Response(compiler.stdout).text();
    const refused = [
      ...new Set([...output.matchAll(/(?:^|\/)(\w+\.ts)\(/gm)].map((match) => match[1])),
    ].toSorted();
    expect(refused).toEqual(["construct.ts", "lookalike.ts", "partial.ts", "path.ts"]);
  }, 30_000);
});
