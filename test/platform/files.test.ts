/** Reading a file in blocks: what is asked for, opened no earlier than that, and closed whatever happens. Removing trees. */
import { describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, symlinkSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { AppError } from "../../src/platform/errors.ts";
import type { BlockRange } from "../../src/platform/files.ts";
import { fileBlocks, removeTree } from "../../src/platform/files.ts";
import { tempDir } from "../support/temp-dir.ts";

async function textOf(path: string, range: BlockRange = {}): Promise<string> {
  const blocks: Uint8Array[] = [];
  for await (const block of fileBlocks(path, range)) {
    blocks.push(block);
  }
  return Buffer.concat(blocks).toString();
}

function isOpen(path: string): boolean {
  return readdirSync("/proc/self/fd").some((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path;
    } catch {
      return false;
    }
  });
}

describe("the blocks of a file", () => {
  test("are its bytes, whole or from one place up to another", async () => {
    using dir = tempDir({ large: "0123456789".repeat(60_000), empty: "" });
    expect(await textOf(dir.join("large"))).toBe("0123456789".repeat(60_000));
    expect(await textOf(dir.join("large"), { start: 299_998, end: 300_003 })).toBe("89012");
    expect(await textOf(dir.join("large"), { start: 599_999, end: 700_000 })).toBe("9");
    expect(await textOf(dir.join("empty"))).toBe("");
  });

  test("that nobody asks for open nothing, and complain of nothing when the file goes", async () => {
    using dir = tempDir({ file: "x" });
    const blocks = fileBlocks(dir.join("file"));
    await pause(5);
    expect(isOpen(dir.join("file"))).toBe(false);
    rmSync(dir.join("file"));
    await pause(5);
    await expect(blocks.next()).rejects.toBeInstanceOf(AppError);
  });

  test("end with the one who reads them: broken off, called off, or past a failure, the file is closed", async () => {
    using dir = tempDir({ file: "x".repeat(600_000) });
    const path = dir.join("file");
    for await (const _ of fileBlocks(path)) {
      expect(isOpen(path)).toBe(true);
      break;
    }
    expect(isOpen(path)).toBe(false);
    const ending = new AbortController();
    const reading = (async () => {
      for await (const _ of fileBlocks(path, { signal: ending.signal })) {
        ending.abort();
      }
    })();
    await expect(reading).rejects.toHaveProperty("name", "AbortError");
    expect(isOpen(path)).toBe(false);
    await expect(textOf(dir.path)).rejects.toMatchObject({ code: "IO_ERROR" });
    expect(isOpen(dir.path)).toBe(false);
  });
});

describe("removing a tree", () => {
  test("takes everything below it, follows no link, and minds nothing that isn't there", () => {
    using dir = tempDir({ "tree/a/b/c": "1", "tree/d": "2", "outside/e": "3" });
    mkdirSync(dir.join("tree/empty"));
    symlinkSync(dir.join("outside"), dir.join("tree/a/link"));
    symlinkSync("/nowhere", dir.join("tree/dangling"));
    removeTree(dir.join("tree"));
    removeTree(dir.join("tree"));
    expect(readdirSync(dir.path)).toEqual(["outside"]);
    expect(readFileSync(dir.join("outside/e"), "utf8")).toBe("3");
    removeTree(dir.join("outside/e"));
    expect(readdirSync(dir.join("outside"))).toEqual([]);
  });
});
