import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ReportedResult } from "../../src/media/outputs.ts";
import { collectOutputs } from "../../src/media/outputs.ts";
import { silentLogger } from "../../src/platform/log.ts";
import type { EngineFiles, ReportedFile } from "../../src/workflow/engine-files.ts";
import { folderEngine } from "../support/folder-engine.ts";
import { tempDir } from "../support/temp-dir.ts";

function file(name: string, more: Partial<ReportedFile> = {}): ReportedFile {
  return { nodeId: "9", key: "images", filename: name, subfolder: "", type: "output", ...more };
}

function result(
  files: readonly ReportedFile[],
  texts: ReportedResult["texts"] = [],
): ReportedResult {
  return { files, texts };
}

function setUp() {
  const dir = tempDir();
  const engine = folderEngine(dir.path);
  const options = { returnTempFiles: false, folder: dir.join("made"), log: silentLogger };
  return {
    engine,
    dir,
    collect: (reported: ReportedResult, returnTempFiles = false) =>
      collectOutputs(engine, reported, { ...options, returnTempFiles }),
    [Symbol.dispose]: () => dir[Symbol.dispose](),
  };
}

describe("collecting outputs", () => {
  test("gives what was reported, in that order, temporary files only when asked", async () => {
    using at = setUp();
    const { output, temp } = at.engine.dirs;
    mkdirSync(join(output, "run"));
    writeFileSync(join(output, "run/b.png"), "b");
    writeFileSync(join(output, "a.mp4"), "a");
    writeFileSync(join(output, "not-reported.png"), "x");
    writeFileSync(join(temp, "t.png"), "t");
    const reported = result([
      file("b.png", { subfolder: "run" }),
      file("t.png", { type: "temp" }),
      file("a.mp4", { key: "gifs" }),
      file("in.png", { type: "input" }),
    ]);
    expect(await at.collect(reported)).toEqual([join(output, "run/b.png"), join(output, "a.mp4")]);
    expect(await at.collect(reported, true)).toEqual([
      join(output, "run/b.png"),
      join(temp, "t.png"),
      join(output, "a.mp4"),
    ]);
  });

  test("names a reported file that isn't there", async () => {
    using at = setUp();
    await expect(at.collect(result([file("gone.png", { subfolder: "x" })]))).rejects.toMatchObject({
      code: "OUTPUT_MISSING",
      message: "ComfyUI reported x/gone.png (node 9), but it isn't there",
    });
  });

  test("hands out nothing from outside the folder, by name or by link", async () => {
    using at = setUp();
    writeFileSync(at.dir.join("secret"), "s");
    symlinkSync(at.dir.join("secret"), join(at.engine.dirs.output, "link.png"));
    mkdirSync(join(at.engine.dirs.output, "folder.png"));
    for (const bad of [
      file("link.png"),
      file("secret", { subfolder: ".." }),
      file("../secret"),
      file("folder.png"),
    ]) {
      await expect(at.collect(result([bad]))).rejects.toMatchObject({ code: "OUTPUT_UNREADABLE" });
    }
  });

  test("explains a result without files", async () => {
    using at = setUp();
    await expect(at.collect(result([]))).rejects.toMatchObject({
      code: "OUTPUT_MISSING",
      message: "The workflow ran, but no node reported a file",
    });
    const onlyTemp = result([file("t.png", { type: "temp" }), file("u.png", { type: "temp" })]);
    await expect(at.collect(onlyTemp)).rejects.toMatchObject({
      message: "The workflow only made 2 temporary file(s) (node 9), which are not returned",
      hint: expect.stringContaining("return_temp_files"),
    });
  });

  test("writes texts down when they are all there is", async () => {
    using at = setUp();
    const texts = [
      { nodeId: "5:2", text: "one" },
      { nodeId: "7", text: "zwei ü" },
    ];
    const paths = await at.collect(result([], texts));
    expect(paths.map((path) => readFileSync(path, "utf8"))).toEqual(["one", "zwei ü"]);
    writeFileSync(join(at.engine.dirs.output, "a.png"), "a");
    expect(await at.collect(result([file("a.png")], texts))).toEqual([
      join(at.engine.dirs.output, "a.png"),
    ]);
  });

  test("fetches from an engine elsewhere, equal names apart", async () => {
    using dir = tempDir();
    const engine: EngineFiles = {
      dirs: undefined,
      putInput: () => Promise.reject(new Error("not asked for")),
      fetchFile: ({ subfolder }, target) => {
        writeFileSync(target, subfolder);
        return Promise.resolve();
      },
    };
    const paths = await collectOutputs(
      engine,
      result([file("a.png", { subfolder: "one" }), file("a.png", { subfolder: "two" })]),
      { returnTempFiles: false, folder: dir.join("made"), log: silentLogger },
    );
    expect(paths.map((path) => readFileSync(path, "utf8"))).toEqual(["one", "two"]);
    expect(paths.every((path) => path.endsWith("/a.png"))).toBe(true);
  });

  test("that add up to more than is allowed are an error, and don't stay", async () => {
    using at = setUp();
    const { output } = at.engine.dirs;
    const reported = result([file("a.png"), file("b.png")]);
    const write = () => {
      writeFileSync(join(output, "a.png"), Buffer.alloc(600));
      writeFileSync(join(output, "b.png"), Buffer.alloc(600));
    };
    const options = { returnTempFiles: false, folder: at.dir.join("made"), log: silentLogger };
    write();
    await expect(
      collectOutputs(at.engine, reported, { ...options, maxBytes: 1_199 }),
    ).rejects.toMatchObject({
      code: "OUTPUT_TOO_LARGE",
      message: expect.stringContaining("2 file"),
    });
    expect(existsSync(join(output, "a.png")) || existsSync(join(output, "b.png"))).toBe(false);
    write();
    expect(await collectOutputs(at.engine, reported, { ...options, maxBytes: 1_200 })).toHaveLength(
      2,
    );
  });
});
