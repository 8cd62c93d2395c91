import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { gzipSync } from "node:zlib";
import { createLogger } from "../../src/platform/log.ts";
import type { UserWeights } from "../../src/weights/user-weights.ts";
import { installUserWeights } from "../../src/weights/user-weights.ts";
import { tar } from "../support/tar.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, WeightServer } from "../support/weight-server.ts";
import { codeOf, quickInstaller, safetensors } from "../support/weights.ts";

const LORA = safetensors(2000);
const VAE = safetensors(3000);

let dir: TempDir;
let lines: string[];

beforeEach(() => {
  dir = tempDir();
  lines = [];
});
afterEach(() => dir[Symbol.dispose]());

async function unpack(sources: string | readonly string[]): Promise<UserWeights> {
  await using installer = quickInstaller(dir.join("models"));
  return await installUserWeights(sources, {
    installer,
    modelsRoot: dir.join("models"),
    base: dir.path,
    log: createLogger({ format: "plain", write: (line) => lines.push(line) }),
  });
}

function pack(name: string, entries: Parameters<typeof tar>[0]): string {
  writeFileSync(dir.join(name), tar(entries));
  return dir.join(name);
}

function tree(): string[] {
  return readdirSync(dir.join("models"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.parentPath.includes(".cog-partial"))
    .map((entry) => `${entry.parentPath}/${entry.name}`.slice(dir.join("models").length + 1))
    .toSorted();
}

describe("the tree of an archive is kept", () => {
  const wanted = ["loras/sub/a.safetensors", "vae/b.safetensors"];
  for (const [what, prefix] of [
    ["as it is", ""],
    ["below models/", "models/"],
    ["below ./ComfyUI/models/", "./ComfyUI/models/"],
    ["below weights/", "weights/"],
    ["below a folder of its own", "my-stuff/"],
  ] as const) {
    test(what, async () => {
      const result = await unpack(
        pack("w.tar", [
          { name: `${prefix}loras/sub/a.safetensors`, body: LORA },
          { name: `${prefix}vae/b.safetensors`, body: VAE },
        ]),
      );
      expect(tree()).toEqual(wanted);
      expect(result.files.toSorted()).toEqual(wanted.map((path) => dir.join("models", path)));
      expect(readdirSync(dir.join("models", ".cog-partial")).toSorted()).toEqual([
        "installed",
        "user-weights",
      ]);
    });
  }

  test("with folders that are no category of ours too", async () => {
    await unpack(pack("w.tar", [{ name: "my_node_models/x.bin", body: Buffer.alloc(9, 5) }]));
    expect(tree()).toEqual(["my_node_models/x.bin"]);
  });

  test("from a relative path, a file address, gzip, and several archives at once", async () => {
    pack("one two.tar", [{ name: "loras/a.safetensors", body: LORA }]);
    await unpack("one two.tar");
    writeFileSync(dir.join("b.tar.gz"), gzipSync(tar([{ name: "vae/b.safetensors", body: VAE }])));
    pack("c.tar", [{ name: "loras/c.safetensors", body: LORA }]);
    await unpack(`b.tar.gz file://${dir.join("c.tar")}`);
    expect(tree()).toEqual(["loras/a.safetensors", "loras/c.safetensors", "vae/b.safetensors"]);
  });
});

describe("beside the weights", () => {
  test("the weights.json inside is handed back and not installed", async () => {
    const manifest = { LORAS: ["a.safetensors"] };
    const result = await unpack(
      pack("w.tar", [
        { name: "weights.json", body: JSON.stringify(manifest) },
        { name: "loras/a.safetensors", body: LORA },
      ]),
    );
    expect(result.manifests).toEqual([{ source: dir.join("w.tar"), content: manifest }]);
    expect(tree()).toEqual(["loras/a.safetensors"]);
    // Also at the next start, when nothing is unpacked any more.
    expect((await unpack(dir.join("w.tar"))).manifests).toHaveLength(1);
  });

  test("a weights.json that is no JSON is an error that names the archive", async () => {
    const path = pack("w.tar", [
      { name: "weights.json", body: "{" },
      { name: "loras/a.safetensors", body: LORA },
    ]);
    expect(await codeOf(unpack(path))).toBe("MANIFEST_INVALID");
  });

  test("weights in no folder are told, litter is left out", async () => {
    const result = await unpack(
      pack("w.tar", [
        { name: "stray.safetensors", body: LORA },
        { name: "README.md", body: "hello" },
        { name: "loras/._a.safetensors", body: "mac" },
        { name: "loras/.DS_Store", body: "mac" },
        { name: "loras/a.safetensors", body: LORA },
      ]),
    );
    expect(result.unplaced).toEqual(["stray.safetensors"]);
    expect(lines.join("\n")).toContain("stray.safetensors");
    expect(tree()).toEqual(["loras/a.safetensors"]);
  });
});

describe("what is there already", () => {
  const entry = { name: "loras/a.safetensors", body: LORA };

  test("is not unpacked again while the archive is the same", async () => {
    const path = pack("w.tar", [entry]);
    await unpack(path);
    lines = [];
    expect((await unpack(path)).files).toEqual([dir.join("models", "loras/a.safetensors")]);
    expect(lines.join("\n")).not.toContain("Unpacked");
  });

  test("is replaced by a newer archive when it came from an older one, though the length is the same", async () => {
    await unpack(pack("w.tar", [entry]));
    const retrained = safetensors(2000);
    pack("w.tar", [{ ...entry, body: retrained }]);
    utimesSync(dir.join("w.tar"), new Date(), new Date(Date.now() + 5000));
    await unpack(dir.join("w.tar"));
    expect(readFileSync(dir.join("models", entry.name)).equals(retrained)).toBe(true);
    expect(tree()).toEqual([entry.name]);
  });

  test("of somebody else is left as it is, and told", async () => {
    const path = dir.join("models", entry.name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, VAE);
    const result = await unpack(pack("w.tar", [entry]));
    expect(result.kept).toEqual([path]);
    expect(readFileSync(path).equals(VAE)).toBe(true);
    expect(lines.join("\n")).toContain("left as it is");
  });

  test("is brought back when it was deleted", async () => {
    const path = pack("w.tar", [entry]);
    await unpack(path);
    await Bun.file(dir.join("models", entry.name)).delete();
    await unpack(path);
    expect(tree()).toEqual([entry.name]);
  });
});

describe("from an address", () => {
  const bytes = tar([{ name: "models/loras/a.safetensors", body: LORA }]);

  test("is fetched once, asked about at the next start, and used as it is when nobody answers", async () => {
    using server = await WeightServer.start();
    server.on("/w.tar", file(bytes));
    const address = server.url("/w.tar");
    await unpack(address);
    expect(tree()).toEqual(["loras/a.safetensors"]);
    const before = server.requests.length;
    await unpack(address);
    expect(server.requests.length).toBe(before + 1);
    server[Symbol.dispose]();
    expect((await unpack(address)).files).toHaveLength(1);
    expect(lines.join("\n")).toContain("can't be asked");
  });

  test("that is not there, or no archive, says so and installs nothing", async () => {
    using server = await WeightServer.start();
    server.on("/page.tar", file(Buffer.from("not an archive at all ".repeat(100))));
    expect(await codeOf(unpack(server.url("/gone.tar")))).toBe("NOT_FOUND");
    expect(await codeOf(unpack(server.url("/page.tar")))).toBe("FORMAT_INVALID");
    expect(tree()).toEqual([]);
  });
});

describe("refused archives leave nothing", () => {
  test.each([
    [
      "a name that climbs",
      [
        { name: "loras/a.safetensors", body: LORA },
        { name: "../../evil.bin", body: "x" },
      ],
      "ARCHIVE_UNSAFE",
    ],
    [
      "a link that leaves",
      [
        { name: "loras/a.safetensors", body: LORA },
        { name: "loras/l", type: "2", link: "/etc/passwd" },
      ],
      "ARCHIVE_UNSAFE",
    ],
    [
      "a weight that was cut",
      [{ name: "loras/a.safetensors", body: LORA.subarray(0, 900) }],
      "FORMAT_INVALID",
    ],
  ] as const)("with %s", async (_what, entries, code) => {
    mkdirSync(dir.join("models"));
    expect(await codeOf(unpack(pack("w.tar", entries)))).toBe(code);
    expect(tree()).toEqual([]);
    expect(existsSync(dir.join("evil.bin"))).toBe(false);
  });

  test("a path that is not there is an error that says what to set", async () => {
    expect(await codeOf(unpack("gone.tar"))).toBe("CONFIG_INVALID");
  });
});
