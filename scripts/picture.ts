/** Draws a picture by program, for the demo and the tests: a sunset of gradients and plain shapes. */
import { encodePng } from "../src/comfy/embedded/png.ts";

type Color = readonly [red: number, green: number, blue: number];

/** Coordinates run from 0 to 1 in both directions, whatever the size. */
type Shape = (x: number, y: number) => boolean;

const SKY: readonly [top: Color, bottom: Color] = [
  [28, 38, 92],
  [250, 164, 96],
];
const WATER: readonly [top: Color, bottom: Color] = [
  [96, 78, 120],
  [14, 22, 48],
];
const HORIZON = 0.62;

function mix(from: Color, to: Color, share: number): Color {
  const [red, green, blue] = from.map((value, index) => value + ((to[index] ?? 0) - value) * share);
  return [red ?? 0, green ?? 0, blue ?? 0];
}

function disc(centerX: number, centerY: number, radius: number): Shape {
  return (x, y) => (x - centerX) ** 2 + (y - centerY) ** 2 < radius ** 2;
}

function triangle(left: number, right: number, peak: number): Shape {
  const middle = (left + right) / 2;
  return (x, y) =>
    y < HORIZON && y > peak + (Math.abs(x - middle) / (right - middle)) * (HORIZON - peak);
}

function stripe(top: number, bottom: number, half: number): Shape {
  return (x, y) => y > top && y < bottom && Math.abs(x - 0.68) < half;
}

/** Later shapes lie on top. */
const SHAPES: readonly (readonly [Shape, Color])[] = [
  [disc(0.68, 0.4, 0.13), [255, 226, 142]],
  [triangle(-0.1, 0.55, 0.28), [58, 48, 96]],
  [triangle(0.3, 0.95, 0.45), [82, 62, 112]],
  [stripe(0.66, 0.675, 0.12), [255, 206, 130]],
  [stripe(0.72, 0.732, 0.09), [240, 180, 118]],
  [stripe(0.79, 0.8, 0.06), [214, 148, 106]],
];

function background(y: number): Color {
  return y < HORIZON
    ? mix(SKY[0], SKY[1], y / HORIZON)
    : mix(WATER[0], WATER[1], (y - HORIZON) / (1 - HORIZON));
}

function colorAt(x: number, y: number): Color {
  return SHAPES.findLast(([shape]) => shape(x, y))?.[1] ?? background(y);
}

/** The bytes of a PNG file: always the same for one size. */
export async function samplePicture(width: number, height: number): Promise<Uint8Array> {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      data.set(colorAt((x + 0.5) / width, (y + 0.5) / height), (y * width + x) * 3);
    }
  }
  return await encodePng({ width, height, channels: 3, data });
}

if (import.meta.main) {
  const [width, height, path] = process.argv.slice(2);
  if (path === undefined || !(Number(width) > 0) || !(Number(height) > 0)) {
    console.error("usage: bun scripts/picture.ts WIDTH HEIGHT FILE");
    process.exit(2);
  }
  await Bun.write(path, await samplePicture(Number(width), Number(height)));
}
