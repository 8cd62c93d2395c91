import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { packsOf } from "../../scripts/container-nodes.ts";
import { casePath, describeCases } from "../support/shared.ts";
import { tempDir } from "../support/temp-dir.ts";

const ROOT = join(import.meta.dir, "../..");
const committed: unknown = JSON.parse(readFileSync(join(ROOT, "custom_nodes.json"), "utf8"));
const SCRIPT = join(ROOT, "scripts/container-nodes.ts");

async function shell(command: string, cwd: string): Promise<{ out: string; code: number }> {
  const child = Bun.spawn(["sh", "-c", command], { cwd, stdio: ["ignore", "pipe", "pipe"] });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { out: (out + err).trim(), code };
}

/** A git repository of two commits, and the first one's id. */
async function repository(folder: string): Promise<string> {
  const made = await shell(
    `git init -q . && git config user.name t && git config user.email t@localhost &&
     printf 'FIRST = 1\\n' > __init__.py && git add . && git commit -qm one && git rev-parse --short=7 HEAD &&
     printf 'SECOND = 2\\n' > __init__.py && git commit -qam two`,
    folder,
  );
  return made.out;
}

describe("the committed lists", () => {
  test("by default no pack is installed", () => {
    expect(packsOf(committed, "default")).toEqual([]);
  });

  test("cog-comfyui pins every pack to a commit", () => {
    expect(packsOf(committed, "cog-comfyui").length).toBeGreaterThan(60);
  });

  describeCases("cog_comfyui_custom_nodes.json", () => {
    test("cog-comfyui is the original's list, row by row", () => {
      const original: unknown = JSON.parse(
        readFileSync(casePath("cog_comfyui_custom_nodes.json"), "utf8"),
      );
      const rows = packsOf(original, "default").map(({ repo, commit }) => ({ repo, commit }));
      expect(packsOf(committed, "cog-comfyui")).toEqual(rows);
    });
  });
});

describe("reading a list", () => {
  test("names the lists there are when the asked one is missing", () => {
    expect(() => packsOf(committed, "mine")).toThrow(
      'custom_nodes.json has no list "mine"; it has: default, cog-comfyui. Set NODES to one of these.',
    );
  });

  test("shows the row that has no commit", () => {
    expect(() => packsOf([{ repo: "https://example.org/a", commit: "main" }], "default")).toThrow(
      '{"repo":"https://example.org/a","commit":"main"}',
    );
  });
});

describe("installing", () => {
  test("checks each pack out at its commit, without history", async () => {
    using folder = tempDir({ "pack/.keep": "" });
    const commit = await repository(folder.join("pack"));
    await Bun.write(
      folder.join("nodes.json"),
      JSON.stringify({ mine: [{ repo: `file://${folder.join("pack")}`, commit }] }),
    );
    const command = `"${process.execPath}" "${SCRIPT}" --file nodes.json --list mine --into custom_nodes`;
    const { out, code } = await shell(command, folder.path);
    expect({ last: out.split("\n").at(-1), code }).toEqual({
      last: 'custom nodes: 1 packs of the list "mine"',
      code: 0,
    });
    expect(readFileSync(folder.join("custom_nodes/pack/__init__.py"), "utf8")).toBe("FIRST = 1\n");
    expect(existsSync(folder.join("custom_nodes/pack/.git"))).toBe(false);
  });

  test("ends with one sentence naming the pack whose commit is not there", async () => {
    using folder = tempDir({ "pack/.keep": "" });
    await repository(folder.join("pack"));
    const repo = `file://${folder.join("pack")}`;
    await Bun.write(
      folder.join("nodes.json"),
      JSON.stringify([{ repo, commit: "0000000000000000000000000000000000000000" }]),
    );
    const command = `"${process.execPath}" "${SCRIPT}" --file nodes.json --into custom_nodes`;
    const { out, code } = await shell(command, folder.path);
    expect(code).toBe(1);
    expect(out).toContain(`Custom nodes ${repo} at 0000000`);
  });
});
