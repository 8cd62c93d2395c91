/** Files on their way in and out. */
import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import fc from "fast-check";
import { fromPercents, prepareFiles } from "../../src/cog/file-inputs.ts";
import { extensionOf, mimeOf } from "../../src/cog/mime.ts";
import { OutputFile } from "../../src/cog/predictor.ts";
import { chunksOf, chunkToJson, emitChunks } from "../../src/cog/uploads.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import { HttpClient } from "../../src/platform/http.ts";
import type { JsonObject, JsonValue } from "../../src/platform/json.ts";
import { tempDir } from "../support/temp-dir.ts";

const FILE = { type: "string", format: "uri" };
const SCHEMA: JsonObject = {
  properties: { file: FILE, files: { type: "array", items: FILE }, text: { type: "string" } },
};
const never = new AbortController().signal;

function serve(answer: (request: Request) => Response | Promise<Response>) {
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", idleTimeout: 0, fetch: answer });
  return {
    origin: `http://127.0.0.1:${server.port}`,
    [Symbol.dispose]: () => void server.stop(true),
  };
}

async function prepared(input: JsonObject, tempPath: string, maxFileBytes?: number) {
  const http = new HttpClient();
  return await prepareFiles(input, SCHEMA, { http, tempDir: tempPath, maxFileBytes }, never);
}

describe("file inputs", () => {
  test.each([
    ["/pictures/a%20b.png?x=1#y", "a b.png"],
    ["/%2e%2e%2fetc%2fpasswd", ".._etc_passwd"],
    ["/", ""],
    [`/${"n".repeat(300)}.jpeg`, `${"n".repeat(194)}~.jpeg`],
    ["/a%00b.png", "a_b.png"],
    ["/%C3%A9.webp", "é.webp"],
  ])("from %s are called tmp????????%s and deleted afterwards", async (path, name) => {
    using folder = tempDir();
    using server = serve(() => new Response("bytes"));
    const files = await prepared({ file: server.origin + path }, folder.path);
    const local = String(files.input["file"]);
    expect(basename(local)).toMatch(/^tmp[a-z0-9_]{8}/);
    expect(basename(local).slice("tmp????????".length)).toBe(name);
    expect(readFileSync(local, "utf8")).toBe("bytes");
    files[Symbol.dispose]();
    expect(existsSync(dirname(local))).toBe(false);
  });

  test.each([
    ["data:image/png;base64,aGk=", "file.png", "hi"],
    ["data:;base64,aGk=", "file.txt", "hi"],
    ["data:,h%69%20%", "file.txt", "hi %"],
    ["data:image/webp,x", "file.webp", "x"],
    ["data:application/x-unknown;base64,aGk", "file", "hi"],
    ["data:text/plain;charset=utf-8;base64,a%47k%3D", "file.txt", "hi"],
    ["DATA:image/jpeg;BASE64,aGk=", "file.jpg", "hi"],
  ])("decode %s", async (url, name, text) => {
    using folder = tempDir();
    await using files = await prepared({ file: url }, folder.path);
    const local = String(files.input["file"]);
    expect([basename(local).slice("tmp????????".length), readFileSync(local, "utf8")]).toEqual([
      name,
      text,
    ]);
  });

  test("in lists are fetched in place, and texts that look like addresses are left alone", async () => {
    using folder = tempDir();
    using server = serve((request) => new Response(new URL(request.url).pathname));
    await using files = await prepared(
      { files: [`${server.origin}/a`, "data:,b"], text: `${server.origin}/c` },
      folder.path,
    );
    const list = files.input["files"];
    expect(Array.isArray(list) && list.map((path) => readFileSync(String(path), "utf8"))).toEqual([
      "/a",
      "b",
    ]);
    expect(files.input["text"]).toBe(`${server.origin}/c`);
  });

  test.each([
    ["/etc/passwd", 'file is "/etc/passwd", which is neither an http(s) address nor a data URL'],
    ["file:///etc/passwd", "neither an http(s) address nor a data URL"],
    ["ftp://127.0.0.1/x", "neither an http(s) address nor a data URL"],
    ["data:nothing", "file is a data URL without a comma"],
    ["data:;base64,@@@", "holds no valid base64"],
    ["http://", "not a valid URL"],
  ])("refuse %s and leave nothing behind", async (url, reason) => {
    using folder = tempDir();
    await expect(prepared({ file: url }, folder.path)).rejects.toThrow(
      reason === "not a valid URL" ? /URL/ : reason,
    );
    expect(readdirSync(folder.path)).toEqual([]);
  });

  test("that answer 404 or are too large name the input and the address", async () => {
    using folder = tempDir();
    using server = serve(({ url }) =>
      url.endsWith("big") ? new Response("x".repeat(100)) : new Response("", { status: 404 }),
    );
    await expect(prepared({ file: `${server.origin}/x` }, folder.path)).rejects.toThrow(
      `file: ${server.origin}/x answered 404`,
    );
    await expect(prepared({ file: `${server.origin}/big` }, folder.path, 10)).rejects.toThrow(
      `file: ${server.origin}/big sends more than 10 B`,
    );
    expect(readdirSync(folder.path)).toEqual([]);
  });

  test("inside the network are refused by the guard, naming the variable", async () => {
    using folder = tempDir();
    const http = new HttpClient({ guard: new AddressGuard([]) });
    const input = { file: "http://127.0.0.1:1/x" };
    const options = { http, tempDir: folder.path };
    const refusal = prepareFiles(input, SCHEMA, options, never).catch((error) => error.describe());
    expect(await refusal).toContain("ALLOW_PRIVATE_NETWORK");
  });

  test("stop at once when the prediction is cancelled", async () => {
    using folder = tempDir();
    const asked = Promise.withResolvers<void>();
    using server = serve(() => {
      asked.resolve();
      return new Promise<Response>(() => undefined);
    });
    const abort = new AbortController();
    const running = prepareFiles(
      { file: `${server.origin}/x` },
      SCHEMA,
      { http: new HttpClient(), tempDir: folder.path },
      abort.signal,
    );
    await asked.promise;
    abort.abort();
    await expect(running).rejects.toMatchObject({ code: "CANCELED" });
    expect(readdirSync(folder.path)).toEqual([]);
  });

  test("percent-decode any bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        const text = [...bytes].map((byte) => `%${byte.toString(16).padStart(2, "0")}`).join("");
        expect([...fromPercents(text)]).toEqual([...bytes]);
      }),
    );
  });
});

function output(uploadUrl?: string, uploadTimeoutMs?: number) {
  return { http: new HttpClient(), uploadUrl, uploadTimeoutMs };
}

function convert(chunk: unknown, uploadUrl?: string, timeoutMs?: number): Promise<JsonValue> {
  return chunkToJson(chunk, output(uploadUrl, timeoutMs), "pred_1", never);
}

describe("outputs", () => {
  test.each([
    [undefined, []],
    [null, []],
    ["x", ["x"]],
    [
      ["a", "b"],
      ["a", "b"],
    ],
    [[], []],
    [{ a: 1 }, [{ a: 1 }]],
  ])("%p is the chunks %p", (value, chunks) => {
    expect(chunksOf(value)).toEqual(chunks);
  });

  test("files become data URLs by their extension, also deep inside; the rest plain JSON", async () => {
    using folder = tempDir({ "a.png": "hi", "b.unknown": "hi" });
    const value = {
      file: new OutputFile(folder.join("a.png")),
      list: [new OutputFile(folder.join("b.unknown")), 2n ** 60n, new Date(0), null, undefined],
    };
    expect(await convert(value, "http://127.0.0.1:1/")).toEqual({
      file: "data:image/png;base64,aGk=",
      list: [
        "data:application/octet-stream;base64,aGk=",
        2n ** 60n,
        "1970-01-01T00:00:00.000Z",
        null,
        null,
      ],
    });
  });

  test.each([
    [Number.NaN, "NaN"],
    [Number.POSITIVE_INFINITY, "Infinity"],
    [() => 1, "=>"],
  ])("that JSON can't hold fail: %p", async (value, word) => {
    const failure = convert([value]).catch((error) => error);
    expect(await failure).toMatchObject({ code: "OUTPUT_UNREADABLE" });
    expect(String(await failure)).toContain(word);
  });

  test("that can't be read fail and say which", async () => {
    using folder = tempDir();
    await expect(convert(new OutputFile(folder.join("gone.png")))).rejects.toThrow(
      "The output file gone.png can't be read",
    );
  });

  test("are PUT to the upload URL with type, id and length, and replaced by where they went", async () => {
    const seen: unknown[] = [];
    using folder = tempDir({ "a b#1.png": "hi" });
    using server = serve(async (request) => {
      seen.push([
        request.method,
        new URL(request.url).pathname,
        request.headers.get("content-type"),
        request.headers.get("x-prediction-id"),
        request.headers.get("authorization"),
        await request.text(),
      ]);
      return new Response("", { status: 201 });
    });
    expect(await convert(new OutputFile(folder.join("a b#1.png")), `${server.origin}/up`)).toBe(
      `${server.origin}/up/a%20b%231.png`,
    );
    expect(seen).toEqual([["PUT", "/up/a%20b%231.png", "image/png", "pred_1", null, "hi"]]);
  });

  test.each([
    ["https://cdn.example.com/a.png?sig=1#f", "https://cdn.example.com/a.png#f"],
    ["/stored/a.png?x=1", "/stored/a.png?x=1"],
  ])("take the Location %s as %s", async (location, value) => {
    using folder = tempDir({ "a.png": "hi" });
    using server = serve(() => new Response("", { status: 200, headers: { location } }));
    expect(await convert(new OutputFile(folder.join("a.png")), server.origin)).toBe(value);
  });

  test("fail loudly when the sink fails, hangs or is away", async () => {
    using folder = tempDir({ "a.png": "hi" });
    const file = new OutputFile(folder.join("a.png"));
    using broken = serve(() => new Response("", { status: 500 }));
    await expect(convert(file, broken.origin)).rejects.toThrow("it answered 500");
    using hanging = serve(() => new Promise<Response>(() => undefined));
    await expect(convert(file, hanging.origin, 50)).rejects.toThrow("no answer within 0.05 s");
    await expect(convert(file, "http://127.0.0.1:1/")).rejects.toMatchObject({
      code: "UPLOAD_FAILED",
    });
  });

  test("keep their order however long each takes, and stop at the first failure", async () => {
    const emitted: JsonValue[] = [];
    const waits = [30, 1, 20, 2, 10, 3, 1, 1, 1];
    await emitChunks(
      waits,
      async (wait) => {
        await Bun.sleep(Number(wait));
        return `${String(wait)}`;
      },
      (chunk) => emitted.push(chunk),
    );
    expect(emitted).toEqual(waits.map(String));
    const failing = emitChunks(
      [1, 2, 3, 4, 5, 6],
      (n) => (n === 2 ? Promise.reject(new Error("two")) : Promise.resolve(String(n))),
      () => undefined,
    );
    await expect(failing).rejects.toThrow("two");
  });

  test("know their types by extension, whatever its case", () => {
    expect([mimeOf("A.PNG"), mimeOf("x.jpeg"), mimeOf("none"), mimeOf("a.tar")]).toEqual([
      "image/png",
      "image/jpeg",
      "application/octet-stream",
      "application/x-tar",
    ]);
    expect([extensionOf("image/JPEG"), extensionOf("x/y")]).toEqual([".jpg", ""]);
  });
});
