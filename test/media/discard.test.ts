import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { discardFiles, discardTemporary } from "../../src/media/discard.ts";
import { tempDir } from "../support/temp-dir.ts";

test("takes files and the folders they leave empty, up to the root and no further", () => {
  using dir = tempDir({ "out/run/job/a.png": "a", "out/run/b.png": "b", "out/other/c.png": "c" });
  discardFiles([dir.join("out/run/job/a.png")], [dir.join("out")]);
  expect([existsSync(dir.join("out/run/job")), existsSync(dir.join("out/run/b.png"))]).toEqual([
    false,
    true,
  ]);
  discardFiles(
    [dir.join("out/run/b.png"), dir.join("out/other/c.png"), dir.join("out/never.png")],
    [dir.join("out")],
  );
  expect([existsSync(dir.join("out/run")), existsSync(dir.join("out"))]).toEqual([false, true]);
});

test("takes temporary files that are not returned, and none outside of the folder", () => {
  using dir = tempDir({ "temp/a.png": "a", "temp/b.png": "b", "secret.png": "s" });
  const file = (filename: string, subfolder = "") => ({
    nodeId: "1",
    key: "images",
    filename,
    subfolder,
    type: "temp" as const,
  });
  const dirs = { input: dir.join("in"), output: dir.join("out"), temp: dir.join("temp") };
  discardTemporary([file("a.png"), file("b.png"), file("secret.png", "..")], dirs, [
    dir.join("temp/b.png"),
  ]);
  expect(
    ["temp/a.png", "temp/b.png", "secret.png"].map((path) => existsSync(dir.join(path))),
  ).toEqual([false, true, true]);
});
