import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import sharp from "sharp";
import type { OptimiseOptions } from "../../src/media/optimise.ts";
import { optimiseOutputs } from "../../src/media/optimise.ts";
import type { LogRecord } from "../../src/platform/log.ts";
import { createLogger, silentLogger } from "../../src/platform/log.ts";
import { tempDir } from "../support/temp-dir.ts";

function options(more: Partial<OptimiseOptions> = {}): OptimiseOptions {
  return { format: "webp", quality: 95, log: silentLogger, ...more };
}

/** A picture of one colour; half transparent with `alpha`. */
function picture(width = 16, height = 8, alpha = 1) {
  const background = { r: 200, g: 30, b: 60, alpha };
  return sharp({ create: { width, height, channels: 4, background } });
}

async function png(width?: number, height?: number, alpha?: number): Promise<Buffer> {
  return await picture(width, height, alpha).png().toBuffer();
}

/** Two frames of different colour. */
async function animation(format: "gif" | "webp"): Promise<Buffer> {
  const frame = (r: number) =>
    sharp({ create: { width: 8, height: 8, channels: 3, background: { r, g: 0, b: 0 } } })
      .png()
      .toBuffer();
  const joined = sharp([await frame(0), await frame(255)], { join: { animated: true } });
  return await (format === "gif" ? joined.gif() : joined.webp()).toBuffer();
}

/** A PNG whose chunks say that it moves. */
async function animatedPng(): Promise<Buffer> {
  const still = await png();
  const chunk = Buffer.alloc(20);
  chunk.writeUInt32BE(8, 0);
  chunk.write("acTL", 4, "latin1");
  chunk.writeUInt32BE(2, 8);
  chunk.writeUInt32BE(Bun.hash.crc32(chunk.subarray(4, 16)), 16);
  return Buffer.concat([still.subarray(0, 33), chunk, still.subarray(33)]);
}

describe("converting outputs", () => {
  test.each(["webp", "jpg"] as const)("makes %s of a PNG, and keeps the order", async (format) => {
    using dir = tempDir({ "a.png": await png(), "b.png": await png(20, 20), "c.mp4": "video" });
    const paths = ["b.png", "c.mp4", "a.png"].map((name) => dir.join(name));
    const made = await optimiseOutputs(paths, options({ format }));
    expect(made.map((path) => basename(path))).toEqual([`b.${format}`, "c.mp4", `a.${format}`]);
    const { format: is, width } = await sharp(made[0]).metadata();
    expect([is, width]).toEqual([format === "jpg" ? "jpeg" : format, 20]);
    expect(readdirSync(dir.path).toSorted()).toEqual(
      [`a.${format}`, `b.${format}`, "c.mp4"].toSorted(),
    );
  });

  test("leaves bytes alone where nothing needs doing", async () => {
    const bytes = await png();
    using dir = tempDir({
      "a.png": bytes,
      "b.wav": "RIFF1234WAVE",
      "c.svg": "<svg/>",
      "d.png": "",
    });
    const paths = ["a.png", "b.wav", "c.svg", "d.png"].map((name) => dir.join(name));
    expect(await optimiseOutputs(paths, options({ format: "png", quality: 10 }))).toEqual(paths);
    expect(readFileSync(dir.join("a.png")).equals(bytes)).toBe(true);
  });

  test("goes by bytes, not by names", async () => {
    using dir = tempDir({ "a.png": await picture().webp().toBuffer(), "B.PNG": await png() });
    const made = await optimiseOutputs([dir.join("a.png"), dir.join("B.PNG")], options());
    expect(made.map((path) => basename(path))).toEqual(["a.png", "B.webp"]);
  });

  test("puts transparency on white for jpg, and keeps it for webp", async () => {
    using dir = tempDir({ "a.png": await png(4, 4, 0), "b.png": await png(4, 4, 0) });
    const [jpg] = await optimiseOutputs([dir.join("a.png")], options({ format: "jpg" }));
    const { data } = await sharp(jpg).raw().toBuffer({ resolveWithObject: true });
    expect([...data.subarray(0, 3)]).toEqual([255, 255, 255]);
    const [webp] = await optimiseOutputs([dir.join("b.png")], options());
    expect((await sharp(webp).metadata()).hasAlpha).toBe(true);
  });

  test("keeps animations: as webp where that can move, else untouched", async () => {
    const files = {
      "a.gif": await animation("gif"),
      "b.webp": await animation("webp"),
      "c.png": await animatedPng(),
    };
    using dir = tempDir(files);
    const paths = Object.keys(files).map((name) => dir.join(name));
    expect(await optimiseOutputs(paths, options({ format: "jpg" }))).toEqual(paths);
    const made = await optimiseOutputs(paths, options());
    expect(made.map((path) => basename(path))).toEqual(["a.webp", "b.webp", "c.png"]);
    expect((await sharp(made[0], { animated: true }).metadata()).pages).toBe(2);
  });

  test("gives every file a name of its own", async () => {
    using dir = tempDir({
      "b.png": await png(),
      "b.jpg": await picture().jpeg().toBuffer(),
      "b.webp": "not a picture, but in the way",
    });
    const made = await optimiseOutputs([dir.join("b.png"), dir.join("b.jpg")], options());
    expect(made.map((path) => basename(path)).toSorted()).toEqual(["b-1.webp", "b-2.webp"]);
    expect(readFileSync(dir.join("b.webp"), "utf8")).toStartWith("not a picture");
  });

  test("keeps the original and says so when a picture can't be converted", async () => {
    const whole = await png(64, 64);
    using dir = tempDir({ "cut.png": whole.subarray(0, whole.length / 2), "ok.png": await png() });
    const records: LogRecord[] = [];
    const log = createLogger({ write: () => undefined, observe: (one) => records.push(one) });
    const made = await optimiseOutputs([dir.join("cut.png"), dir.join("ok.png")], options({ log }));
    expect(made.map((path) => basename(path))).toEqual(["cut.png", "ok.webp"]);
    expect(records.map(({ message }) => message)).toEqual([
      expect.stringContaining("cut.png could not be converted to webp and is returned as it is"),
    ]);
    expect(readdirSync(dir.path).toSorted()).toEqual(["cut.png", "ok.webp"]);
  });

  test("takes 16-bit pictures, and refuses sides that WebP can't hold", async () => {
    const deep = await sharp(Buffer.alloc(8 * 8 * 6), {
      raw: { width: 8, height: 8, channels: 3, premultiplied: false },
    })
      .toColourspace("rgb16")
      .png()
      .toBuffer();
    using dir = tempDir({ "deep.png": deep, "wide.png": await png(16_400, 1) });
    const made = await optimiseOutputs([dir.join("deep.png"), dir.join("wide.png")], options());
    expect(made.map((path) => basename(path))).toEqual(["deep.webp", "wide.png"]);
  });

  test.each([0, 1, 50, 100])("takes quality %i", async (quality) => {
    using dir = tempDir({ "a.png": await png(), "b.png": await png() });
    const [webp] = await optimiseOutputs([dir.join("a.png")], options({ quality }));
    const [jpg] = await optimiseOutputs([dir.join("b.png")], options({ quality, format: "jpg" }));
    expect([webp, jpg].every((path) => existsSync(path ?? ""))).toBe(true);
    expect(basename(webp ?? "")).toBe("a.webp");
    expect(basename(jpg ?? "")).toBe("b.jpg");
  });

  test("stops between files when it is called off", async () => {
    using dir = tempDir({ "a.png": await png() });
    const job = optimiseOutputs([dir.join("a.png")], options({ signal: AbortSignal.abort() }));
    await expect(job).rejects.toMatchObject({ code: "CANCELED" });
    expect(readdirSync(dir.path)).toEqual(["a.png"]);
  });
});
