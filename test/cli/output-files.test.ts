import { describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { basename } from "node:path";
import { ensureWritable, writeOutputs } from "../../src/cli/output-files.ts";
import { tempDir } from "../support/temp-dir.ts";

describe("writeOutputs", () => {
  test.each([
    ["out/", ["output.0.png", "output.1.webp"]],
    ["there", ["output.0.png", "output.1.webp"]],
    ["pic.jpg", ["pic.0.jpg", "pic.1.jpg"]],
    ["pic", ["pic.0.png", "pic.1.webp"]],
  ])("writes -o %s as %p", (given, names) => {
    using dir = tempDir({ "a.png": "a", "b.webp": "b", "there/keep": "" });
    const target = dir.join(given) + (given.endsWith("/") ? "/" : "");
    ensureWritable(target);
    const written = writeOutputs([dir.join("a.png"), dir.join("b.webp")], target);
    expect(written.map((path) => basename(path))).toEqual(names);
  });

  test("says before any work that the place is not writable", () => {
    using dir = tempDir({ file: "" });
    expect(() => ensureWritable(dir.join("file/x/out"))).toThrow("not writable");
    expect(readdirSync(dir.path)).toEqual(["file"]);
  });
});
