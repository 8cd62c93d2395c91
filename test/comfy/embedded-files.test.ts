/** Pictures and files of the embedded engine: reading, saving, names, and staying inside the folders. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import sharp from "sharp";
import { samplePicture } from "../../scripts/picture.ts";
import { encodePng } from "../../src/comfy/embedded/png.ts";
import type { TestGraph } from "../support/embedded.ts";
import { TestEngine } from "../support/embedded.ts";

let engine: TestEngine;
beforeAll(async () => {
  engine = new TestEngine({
    "input/plain.png": await samplePicture(12, 8),
    "input/sub/inner.png": await samplePicture(5, 4),
    "input/note.txt": "no picture",
    "secret.png": await samplePicture(3, 3),
  });
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
});

const load = (image: string): TestGraph => ({
  "1": ["LoadImage", { image }],
  "2": ["MaskToImage", { mask: ["1", 1] }],
});

/** Text chunks of a PNG file. */
function textChunks(file: Uint8Array): Record<string, string> {
  const view = new DataView(file.buffer, file.byteOffset);
  const found: Record<string, string> = {};
  for (let at = 8; at < file.length; at += 12 + view.getUint32(at)) {
    const body = file.subarray(at + 8, at + 8 + view.getUint32(at));
    if (Buffer.from(file.subarray(at + 4, at + 8)).toString() === "tEXt") {
      const [key = "", text = ""] = Buffer.from(body).toString("latin1").split("\0");
      found[key] = text;
    }
  }
  return found;
}

describe("LoadImage", () => {
  test("gives the pixels as they are, and a mask of 64×64 where there is no alpha", async () => {
    const picture = await engine.picture(load("plain.png"), ["1", 0]);
    const { data } = await sharp(await samplePicture(12, 8))
      .ensureAlpha()
      .raw()
      .toBuffer({
        resolveWithObject: true,
      });
    expect(Buffer.from(picture.rgba)).toEqual(data);
    const mask = await engine.picture(load("plain.png"), ["2", 0]);
    expect([mask.width, mask.height, mask.rgba[0]]).toEqual([64, 64, 0]);
  });

  test("turns alpha into a mask of its opposite, colours untouched", async () => {
    const data = Uint8Array.of(200, 100, 50, 0, 10, 20, 30, 255, 1, 2, 3, 127);
    const png = await encodePng({ width: 3, height: 1, channels: 4, data });
    writeFileSync(engine.dir.join("input", "alpha.png"), png);
    const { rgba } = await engine.picture(load("alpha.png"), ["1", 0]);
    expect([...rgba]).toEqual([200, 100, 50, 255, 10, 20, 30, 255, 1, 2, 3, 255]);
    expect(await engine.reds(load("alpha.png"), ["2", 0])).toEqual([[255, 0, 127]]);
  });

  test("turns a picture upright as its EXIF says", async () => {
    const side = await sharp(await samplePicture(12, 8))
      .withMetadata({ orientation: 6 })
      .jpeg()
      .toBuffer();
    writeFileSync(engine.dir.join("input", "side.jpg"), side);
    const { width, height } = await engine.picture(load("side.jpg"), ["1", 0]);
    expect([width, height]).toEqual([8, 12]);
  });

  test("reads grey, 16-bit, palette and animated files", async () => {
    const dark = sharp(await samplePicture(6, 4));
    const files = {
      "grey.png": await dark.clone().greyscale().png().toBuffer(),
      "deep.png": await dark.clone().toColourspace("rgb16").png().toBuffer(),
      "palette.png": await dark.clone().png({ palette: true }).toBuffer(),
      "anim.gif": await sharp(
        [
          await samplePicture(6, 4),
          await encodePng({ width: 6, height: 4, channels: 3, data: new Uint8Array(72) }),
        ],
        { join: { animated: true } },
      )
        .gif()
        .toBuffer(),
    };
    for (const [name, bytes] of Object.entries(files)) {
      writeFileSync(engine.dir.join("input", name), bytes);
      const { width, height } = await engine.picture(load(name), ["1", 0]);
      expect([name, width, height]).toEqual([name, 6, 4]);
    }
    const { outputs } = await engine.run({
      ...load("anim.gif"),
      "3": ["PreviewImage", { images: ["1", 0] }],
    });
    expect(outputs["3"].images.length).toBe(2);
  });

  test.each([
    ["plain.png [input]", true],
    ["sub/inner.png", true],
    ["nope.png", false],
    ["../secret.png", false],
    ["linked.png", false],
    ["plain.png[input]", false],
    ["", true],
  ])("accepts %j: %p", async (image, isAccepted) => {
    if (!existsSync(engine.dir.join("input", "linked.png"))) {
      symlinkSync(engine.dir.join("secret.png"), engine.dir.join("input", "linked.png"));
    }
    const prompt = {
      "1": { class_type: "LoadImage", inputs: { image } },
      "2": { class_type: "PreviewImage", inputs: { images: ["1", 0] } },
    };
    const { status, body } = await engine.post("/prompt", { prompt });
    expect(status).toBe(isAccepted ? 200 : 400);
    if (!isAccepted) {
      expect(body.node_errors["1"].errors).toEqual([
        {
          type: "custom_validation_failed",
          message: "Custom validation failed for node",
          details: `image - Invalid image file: ${image}`,
          extra_info: { input_name: "image" },
        },
      ]);
    }
  });

  test("what is no picture fails while it runs", async () => {
    const { status } = await engine.run({
      "1": ["LoadImage", { image: "note.txt" }],
      "2": ["PreviewImage", { images: ["1", 0] }],
    });
    expect(status.messages.at(-1)[1].exception_type).toBe("av.error.InvalidDataError");
  });

  test("LoadImageMask takes one channel", async () => {
    const graph = (channel: string): TestGraph => ({
      "1": ["LoadImageMask", { image: "alpha.png", channel }],
      "2": ["MaskToImage", { mask: ["1", 0] }],
    });
    expect(await engine.reds(graph("green"), ["2", 0])).toEqual([[100, 20, 2]]);
    expect(await engine.reds(graph("alpha"), ["2", 0])).toEqual([[255, 0, 127]]);
  });
});

describe("SaveImage", () => {
  const save = (filenamePrefix: string, batchSize = 1): TestGraph => ({
    "1": ["EmptyImage", { width: 20, height: 10, batch_size: batchSize, color: batchSize }],
    "2": ["SaveImage", { images: ["1", 0], filename_prefix: filenamePrefix }],
  });
  const names = async (graph: TestGraph) =>
    (await engine.run(graph)).outputs["2"].images.map(
      ({ subfolder, filename }: { subfolder: string; filename: string }) =>
        `${subfolder}|${filename}`,
    );

  test("counts on from the files that are there", async () => {
    writeFileSync(engine.dir.join("output", "count_00041_.png"), "");
    writeFileSync(engine.dir.join("output", "count_00007.png"), "");
    writeFileSync(engine.dir.join("output", "count_x_.png"), "");
    writeFileSync(engine.dir.join("output", "counted_00099_.png"), "");
    expect(await names(save("count", 2))).toEqual(["|count_00042_.png", "|count_00043_.png"]);
  });

  test.each([
    ["deep/er/name", ["deep/er|name_00001_.png"]],
    ["%width%x%height%", ["|20x10_00001_.png"]],
    ["%constructor%", ["|%constructor%_00001_.png"]],
    ["%date:yyyy%", ["|%date:yyyy%_00001_.png"]],
    ["a/../b", ["|b_00001_.png"]],
    ["back\\slash", ["|back\\slash_00001_.png"]],
    ["", ["|._00001_.png"]],
  ])("prefix %j", async (prefix, expected) => {
    expect(await names(save(prefix))).toEqual(expected);
  });

  test("%batch_num% counts within the batch, and always from 1 on disk", async () => {
    const expected = ["|n0_00001_.png", "|n1_00002_.png"];
    expect(await names(save("n%batch_num%", 2))).toEqual(expected);
    await engine.post("/free", { free_memory: true });
    expect(await names(save("n%batch_num%", 2))).toEqual(expected);
  });

  test("a prefix that ends in / overwrites", async () => {
    expect(await names(save("dir/"))).toEqual(["|dir_00001_.png"]);
    await engine.post("/free", { free_memory: true });
    expect(await names(save("dir/"))).toEqual(["|dir_00001_.png"]);
  });

  test("writes prompt and workflow as JSON the way Python dumps it", async () => {
    const graph = save("chunks/ü");
    await engine.run(graph, { extra_data: { extra_pnginfo: { workflow: { nodes: ["ä", 1] } } } });
    const chunks = textChunks(readFileSync(engine.dir.join("output/chunks/ü_00001_.png")));
    expect(Object.keys(chunks)).toEqual(["prompt", "workflow"]);
    expect(chunks["workflow"]).toBe('{"nodes": ["\\u00e4", 1]}');
    expect(chunks["prompt"]).toStartWith(
      '{"1": {"class_type": "EmptyImage", "inputs": {"width": 20, "height": 10,',
    );
    expect(JSON.parse(chunks["prompt"] ?? "")["2"].inputs.filename_prefix).toBe("chunks/ü");
  });

  test("--disable-metadata writes none", async () => {
    await using bare = new TestEngine({}, ["--disable-metadata"]);
    await bare.run(save("bare"));
    expect(textChunks(readFileSync(bare.dir.join("output/bare_00001_.png")))).toEqual({});
  });

  test("a place outside of the folder is an error of the node", async () => {
    const { status } = await engine.run(save("../out"));
    expect(status.messages.at(-1)[1].exception_message).toStartWith(
      "**** ERROR: Saving image outside the output folder is not allowed.",
    );
    expect(existsSync(engine.dir.join("out_00001_.png"))).toBe(false);
  });
});

describe("PNG files", () => {
  test.each([1, 3, 4] as const)("of %d channels are read back bit by bit", async (channels) => {
    const [width, height] = [17, 9];
    const data = Uint8Array.from(
      { length: width * height * channels },
      (_, at) => (at * 37) ^ (at >> 3),
    );
    const png = await encodePng({ width, height, channels, data });
    const { data: read, info } = await (channels === 1
      ? sharp(png).toColourspace("b-w")
      : sharp(png)
    )
      .raw()
      .toBuffer({ resolveWithObject: true });
    expect([info.width, info.height, info.channels]).toEqual([width, height, channels]);
    expect(new Uint8Array(read)).toEqual(data);
  });
});

describe("/view", () => {
  test.each([
    ["filename=plain.png&type=input", 200],
    ["filename=plain.png%20[input]", 200],
    ["filename=inner.png&type=input&subfolder=sub", 200],
    ["filename=sub/inner.png&type=input", 404],
    ["filename=plain.png", 404],
    ["type=input", 404],
    ["filename=&type=input", 400],
    ["filename=/etc/passwd&type=input", 400],
    ["filename=../secret.png&type=input", 400],
    ["filename=plain.png&type=nonsense", 400],
    ["filename=secret.png&type=input&subfolder=..", 403],
  ])("%s: %d", async (query, status) => {
    expect((await engine.request(`/view?${query}`)).status).toBe(status);
  });

  test("converts for previews and takes channels apart", async () => {
    const of = async (query: string) =>
      await sharp(
        await (await engine.request(`/view?filename=alpha.png&type=input&${query}`)).bytes(),
      ).metadata();
    expect((await of("preview=webp;90")).format).toBe("webp");
    expect((await of("preview=jpeg;80")).format).toBe("jpeg");
    expect((await of("channel=rgb")).hasAlpha).toBe(false);
    expect((await of("channel=a")).hasAlpha).toBe(true);
  });

  test("hands out nothing that a browser would run", async () => {
    writeFileSync(engine.dir.join("output", "page.html"), "<script>");
    const response = await engine.request("/view?filename=page.html");
    expect(response.headers.get("content-type")).toBe("application/octet-stream");
    expect(response.headers.get("content-disposition")).toStartWith("attachment");
  });
});
