import { describe, expect, test } from "bun:test";
import { existsSync, lstatSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import type { PlaceInputsOptions } from "../../src/media/inputs.ts";
import { placeInputs } from "../../src/media/inputs.ts";
import { InputShelf } from "../../src/media/shelf.ts";
import { AppError } from "../../src/platform/errors.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import { HttpClient } from "../../src/platform/http.ts";
import type { JsonValue } from "../../src/platform/json.ts";
import { silentLogger } from "../../src/platform/log.ts";
import type { EngineFiles } from "../../src/workflow/engine-files.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { folderEngine } from "../support/folder-engine.ts";
import { tar } from "../support/tar.ts";
import { tempDir } from "../support/temp-dir.ts";

const PNG = Buffer.from("89504e470d0a1a0a0000000d49484452", "hex");
const JPG = Buffer.from("ffd8ffe000104a464946000101", "hex");
const MP4 = Buffer.from("0000002066747970" + "69736f6d00000200", "hex");

/** Nodes that load, each feeding a save, by id. */
function graphOf(
  loads: Readonly<Record<string, readonly [string, Readonly<Record<string, JsonValue>>]>>,
): Graph {
  return Object.fromEntries(
    Object.entries(loads).map(([id, [classType, inputs]]) => [
      id,
      { class_type: classType, inputs },
    ]),
  );
}

function setUp(options: { guard?: AddressGuard } = {}) {
  const dir = tempDir();
  const engine = folderEngine(dir.path);
  const shelf = new InputShelf(engine);
  const http = new HttpClient({ guard: options.guard ?? AddressGuard.open });
  const place = (graph: Graph, more: Partial<PlaceInputsOptions> = {}) =>
    placeInputs(graph, { shelf, http, log: silentLogger, ...more });
  return {
    dir,
    engine,
    shelf,
    place,
    input: (name: JsonValue | undefined) => join(engine.dirs.input, String(name)),
    async [Symbol.asyncDispose]() {
      await http.close();
      dir[Symbol.dispose]();
    },
  };
}

function serve(files: Readonly<Record<string, () => Response>>) {
  const asked: string[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request) {
      const { pathname } = new URL(request.url);
      asked.push(pathname);
      return files[pathname]?.() ?? new Response("no", { status: 404 });
    },
  });
  return {
    url: (path: string) => `http://127.0.0.1:${server.port}${path}`,
    asked,
    async [Symbol.asyncDispose]() {
      await server.stop(true);
    },
  };
}

async function failure(job: Promise<unknown>): Promise<AppError> {
  const error = await job.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (error instanceof AppError) {
    return error;
  }
  throw new Error(`expected an AppError, got ${String(error)}`);
}

function tarOf(files: Readonly<Record<string, Uint8Array>>): Buffer {
  return tar(Object.entries(files).map(([name, body]) => ({ name, body })));
}

describe("the input file", () => {
  test("becomes input.<ending> by its bytes, whatever it is called, and every loader of it is told", async () => {
    await using at = setUp();
    writeFileSync(at.dir.join("photo.dat"), PNG);
    using placed = await at.place(
      graphOf({
        "1": ["LoadImage", { image: "input.png" }],
        "2": ["LoadImageMask", { image: "input.png [input]", channel: "alpha" }],
        "3": ["CLIPTextEncode", { text: "input.png" }],
      }),
      { inputFile: at.dir.join("photo.dat") },
    );
    const name = placed.graph["1"]?.inputs["image"];
    expect(String(name)).toMatch(/^[0-9a-f]{20}\/input\.png$/);
    expect(placed.graph["2"]?.inputs["image"]).toBe(String(name));
    expect(placed.graph["3"]?.inputs["text"]).toBe("input.png");
    expect(readFileSync(at.input(name))).toEqual(PNG);
    expect(lstatSync(at.input(name)).isSymbolicLink()).toBe(false);
  });

  test("is used for input.png also when it is a JPEG", async () => {
    await using at = setUp();
    writeFileSync(at.dir.join("a"), JPG);
    using placed = await at.place(graphOf({ "1": ["LoadImage", { image: "input.png" }] }), {
      inputFile: at.dir.join("a"),
    });
    expect(String(placed.graph["1"]?.inputs["image"])).toEndWith("/input.jpg");
  });

  test("is given as a path to loaders that take one", async () => {
    await using at = setUp();
    writeFileSync(at.dir.join("clip"), MP4);
    using placed = await at.place(graphOf({ "1": ["VHS_LoadVideoPath", { video: "input.mp4" }] }), {
      inputFile: at.dir.join("clip"),
    });
    const value = String(placed.graph["1"]?.inputs["video"]);
    expect(value).toStartWith(at.engine.dirs.input);
    expect(existsSync(value)).toBe(true);
  });

  test("lies where old versions of Load3D look when it is a 3D model", async () => {
    await using at = setUp();
    writeFileSync(at.dir.join("a"), "glTF\u0002\0\0\0");
    using placed = await at.place(graphOf({ "1": ["Load3D", { model_file: "input.glb" }] }), {
      inputFile: at.dir.join("a"),
    });
    const name = placed.graph["1"]?.inputs["model_file"];
    expect(String(name)).toMatch(/^3d\/[0-9a-f]{20}\/input\.glb$/);
    expect(existsSync(at.input(name))).toBe(true);
    placed[Symbol.dispose]();
    expect(existsSync(at.input(name))).toBe(false);
  });

  test("is unpacked with its tree when it is an archive", async () => {
    await using at = setUp();
    const packed = tarOf({ "a.png": PNG, "frames/001.png": PNG, "frames/deep/a.png": JPG });
    for (const [name, bytes] of [
      ["in.tar", packed],
      ["in.tar.gz", gzipSync(packed)],
    ] as const) {
      writeFileSync(at.dir.join(name), bytes);
      using placed = await at.place(
        graphOf({
          "1": ["LoadImage", { image: "a.png" }],
          "2": ["LoadImage", { image: "frames\\deep\\a.png" }],
          "3": ["VHS_LoadImages", { directory: "frames" }],
        }),
        { inputFile: at.dir.join(name) },
      );
      const { graph } = placed;
      expect(readFileSync(at.input(graph["1"]?.inputs["image"]))).toEqual(PNG);
      expect(readFileSync(at.input(graph["2"]?.inputs["image"]))).toEqual(JPG);
      expect(readdirSync(at.input(graph["3"]?.inputs["directory"])).toSorted()).toEqual([
        "001.png",
        "deep",
      ]);
    }
  });

  test("is refused when it is empty, a web page, or an archive that leads out", async () => {
    await using at = setUp();
    const bad = tarOf({ "../evil.png": PNG });
    const cases = [
      ["empty", new Uint8Array(), "INPUT_INVALID"],
      ["page", Buffer.from("<!doctype html><html></html>"), "INPUT_INVALID"],
      ["tar", bad, "ARCHIVE_UNSAFE"],
    ] as const;
    for (const [name, bytes, code] of cases) {
      writeFileSync(at.dir.join(name), bytes);
      const error = await failure(at.place(graphOf({}), { inputFile: at.dir.join(name) }));
      expect(error.code).toBe(code);
    }
    expect(readdirSync(at.engine.dirs.input).filter((name) => name !== ".incoming")).toEqual([]);
    expect(readdirSync(at.input(".incoming"))).toEqual([]);
  });
});

describe("addresses", () => {
  test("are fetched once, replaced everywhere, and never collide by name", async () => {
    await using at = setUp();
    await using origin = serve({
      "/one/a.png": () => new Response(PNG),
      "/two/a.png": () => new Response(JPG),
    });
    using placed = await at.place(
      graphOf({
        "1": ["LoadImage", { image: origin.url("/one/a.png") }],
        "2": ["LoadImage", { image: origin.url("/two/a.png") }],
        "3": ["LoadImageMask", { image: origin.url("/one/a.png"), channel: "red" }],
      }),
    );
    const [one, two, three] = ["1", "2", "3"].map((id) => placed.graph[id]?.inputs["image"]);
    expect(readFileSync(at.input(one))).toEqual(PNG);
    expect(readFileSync(at.input(two))).toEqual(JPG);
    expect(String(two)).toEndWith("/a.jpg");
    expect(three).toBe(String(one));
    expect(origin.asked.toSorted()).toEqual(["/one/a.png", "/two/a.png"]);
  });

  test("may be data URLs, in base64 or percent-encoded", async () => {
    await using at = setUp();
    const percent = [...PNG].map((byte) => `%${byte.toString(16).padStart(2, "0")}`).join("");
    using placed = await at.place(
      graphOf({
        "1": ["LoadImage", { image: `data:image/png;base64,${PNG.toString("base64")}` }],
        "2": ["LoadImage", { image: `data:image/png,${percent}` }],
      }),
    );
    expect(readFileSync(at.input(placed.graph["1"]?.inputs["image"]))).toEqual(PNG);
    expect(placed.graph["2"]?.inputs["image"]).toBe(String(placed.graph["1"]?.inputs["image"]));
  });

  test("never become paths: queries, slashes and dots stay out of names", async () => {
    await using at = setUp();
    await using origin = serve({
      "/": () => new Response(PNG),
      "/%2e%2e%2f%2e%2e%2fetc%2fpasswd": () => new Response(PNG),
      "/x": () => new Response(PNG),
    });
    const urls = ["/?sig=abc", "/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/x?name=../../y"];
    for (const path of urls) {
      using placed = await at.place(graphOf({ "1": ["LoadImage", { image: origin.url(path) }] }));
      const name = String(placed.graph["1"]?.inputs["image"]);
      expect(name).toMatch(/^[0-9a-f]{20}\/[A-Za-z0-9._-]+\.png$/);
      expect(name).not.toContain("..");
      expect(existsSync(at.input(name))).toBe(true);
    }
  });

  test("in prompts and in inputs that load nothing are left alone", async () => {
    await using at = setUp();
    const graph = graphOf({
      "1": ["CLIPTextEncode", { text: "http://127.0.0.1:1/a.png" }],
      "2": ["LoadImageFromUrl", { image: "http://127.0.0.1:1/a.png" }],
    });
    using placed = await at.place(graph);
    expect(placed.graph).toEqual(graph);
  });

  test("are refused where the guard says so", async () => {
    await using at = setUp({ guard: new AddressGuard([]) });
    const error = await failure(
      at.place(graphOf({ "1": ["LoadImage", { image: "http://127.0.0.1:9/a.png" }] })),
    );
    expect(error.code).toBe("FETCH_REFUSED");
    expect(error.hint).toContain("ALLOW_PRIVATE_NETWORK");
  });

  test.each([
    ["a missing file", () => new Response("x", { status: 404 }), "answers 404"],
    ["a web page", () => new Response("<html>login</html>"), "gave a web page"],
    ["nothing", () => new Response(""), "gave an empty file"],
    ["too much", () => new Response(new Uint8Array(2000)), "larger than 1.0 kB"],
  ])("that give %s are refused with the address and the reason", async (_what, answer, words) => {
    await using at = setUp();
    await using origin = serve({ "/a.png": answer });
    const error = await failure(
      at.place(graphOf({ "1": ["LoadImage", { image: origin.url("/a.png?token=hush") }] }), {
        limits: { maxBytes: 1000 },
      }),
    );
    expect(error.code).toBe("FETCH_FAILED");
    expect(error.message).toContain(words);
    expect(error.message).not.toContain("hush");
    expect(readdirSync(at.input(".incoming"))).toEqual([]);
  });

  test("that never end are given up at the deadline, or when the run is called off", async () => {
    await using at = setUp();
    await using origin = serve({
      "/slow": () => new Response(new ReadableStream({ start: (one) => one.enqueue(PNG) })),
    });
    const graph = graphOf({ "1": ["LoadImage", { image: origin.url("/slow") }] });
    const late = await failure(at.place(graph, { limits: { timeoutMs: 50 } }));
    expect(late.message).toContain("did not arrive in time");
    const cancel = new AbortController();
    const job = at.place(graph, { signal: cancel.signal });
    const settled = failure(job);
    cancel.abort();
    expect((await settled).code).toBe("CANCELED");
    expect(readdirSync(at.input(".incoming"))).toEqual([]);
  });

  test("that fail are all named", async () => {
    await using at = setUp();
    await using origin = serve({});
    const error = await failure(
      at.place(
        graphOf({
          "4": ["LoadImage", { image: origin.url("/a.png") }],
          "7": ["LoadAudio", { audio: origin.url("/b.mp3") }],
        }),
      ),
    );
    expect(error.message).toContain("node 4 (image)");
    expect(error.message).toContain("node 7 (audio)");
  });
});

describe("files that should be there", () => {
  test("are all named at once when they are not, with what was given", async () => {
    await using at = setUp();
    writeFileSync(at.dir.join("a"), MP4);
    const error = await failure(
      at.place(
        graphOf({
          "1": ["LoadImage", { image: "cat.png" }],
          "2": ["LoadVideo", { file: "input.mp4" }],
          "3": ["LoadAudio", { audio: "song.mp3 [output]" }],
          "4": ["Load3D", { model_file: "none" }],
        }),
        { inputFile: at.dir.join("a") },
      ),
    );
    expect(error.code).toBe("INPUT_INVALID");
    expect(error.message).toStartWith("2 input files are missing: ");
    expect(error.message).toContain('node 1 "LoadImage" (LoadImage) loads image = "cat.png"');
    expect(error.message).toContain('audio = "song.mp3 [output]"');
    expect(error.message).toContain("input_file gave input.mp4");
    expect(error.details["missing"]).toHaveLength(2);
  });

  test("may lie in the input, output or temp folder, by annotation", async () => {
    await using at = setUp();
    writeFileSync(join(at.engine.dirs.input, "a.png"), PNG);
    writeFileSync(join(at.engine.dirs.output, "b.png"), PNG);
    writeFileSync(join(at.engine.dirs.temp, "c.png"), PNG);
    const graph = graphOf({
      "1": ["LoadImage", { image: "a.png" }],
      "2": ["LoadImage", { image: "b.png [output]" }],
      "3": ["LoadImage", { image: "c.png [temp]" }],
      "4": ["LoadImageOutput", { image: "b.png" }],
    });
    using placed = await at.place(graph);
    expect(placed.graph).toEqual(graph);
  });

  test("must not lie outside of those folders", async () => {
    await using at = setUp();
    writeFileSync(at.dir.join("secret.png"), PNG);
    for (const value of ["../secret.png", "/etc/hostname", "../secret.png [output]"]) {
      const error = await failure(at.place(graphOf({ "1": ["LoadImage", { image: value }] })));
      expect(error.message).toContain("leads out of ComfyUI's");
    }
  });

  test("don't matter where no output needs them", async () => {
    await using at = setUp();
    const graph: Graph = {
      ...graphOf({ "2": ["SaveImage", { images: ["1", 0] }] }),
      "1": { class_type: "EmptyImage", inputs: {} },
      "9": { class_type: "LoadImage", inputs: { image: "gone.png" } },
    };
    using placed = await at.place(graph, {
      definitions: (await import("../../src/workflow/definitions.ts")).NodeDefinitions.core(),
    });
    expect(placed.graph).toEqual(graph);
  });
});

describe("the shelf", () => {
  test("keeps what two runs share until both are over, under one name", async () => {
    await using at = setUp();
    writeFileSync(at.dir.join("a"), PNG);
    const graph = graphOf({ "1": ["LoadImage", { image: "input.png" }] });
    const one = await at.place(graph, { inputFile: at.dir.join("a") });
    const two = await at.place(graph, { inputFile: at.dir.join("a") });
    const name = one.graph["1"]?.inputs["image"];
    expect(two.graph["1"]?.inputs["image"]).toBe(String(name));
    one[Symbol.dispose]();
    expect(existsSync(at.input(name))).toBe(true);
    two[Symbol.dispose]();
    two[Symbol.dispose]();
    expect(existsSync(at.input(name))).toBe(false);
    expect(existsSync(at.dir.join("a"))).toBe(true);
  });

  test("sends files to an engine elsewhere, and uses the names it answers", async () => {
    using dir = tempDir({ a: PNG });
    const sent: string[] = [];
    const engine: EngineFiles = {
      dirs: undefined,
      putInput: (_path, name) => {
        sent.push(name);
        return Promise.resolve(`renamed/${name}`);
      },
      fetchFile: () => Promise.reject(new Error("not asked for")),
    };
    await using http = { client: new HttpClient(), [Symbol.asyncDispose]: () => Promise.resolve() };
    using placed = await placeInputs(graphOf({ "1": ["LoadImage", { image: "input.png" }] }), {
      shelf: new InputShelf(engine),
      http: http.client,
      log: silentLogger,
      inputFile: dir.join("a"),
    });
    expect(sent).toHaveLength(1);
    expect(placed.graph["1"]?.inputs["image"]).toBe(`renamed/${sent[0]}`);
  });
});
