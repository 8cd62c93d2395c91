/** The rules of ARCHITECTURE.md that a reader must be able to trust: who imports whom, and that importing does nothing. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, normalize, resolve } from "node:path";

const ROOT = resolve(import.meta.dir, "..");

/** Rooms from the bottom up; a room may import the rooms named beside it, and itself. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  platform: [],
  models: ["platform"],
  workflow: ["platform", "models"],
  weights: ["platform", "models", "workflow"],
  comfy: ["platform", "models", "workflow"],
  media: ["platform", "models", "workflow"],
  cog: ["platform"],
  routes: ["platform", "models", "workflow", "weights", "comfy", "media", "cog"],
  cli: ["platform", "models", "workflow", "weights", "comfy", "media", "cog", "routes"],
};

/** The only files that may import a library, by the specifier's start. */
const ONLY_IN: readonly (readonly [RegExp, RegExp])[] = [
  [/^hono(\/|$)/, /^src\/(cog|routes)\//],
  [/^undici\/index\.js$/, /^src\/platform\/http\.ts$/],
  [/^undici$/, /^never$/],
  [/^tar-stream$/, /^src\/platform\/archive\.ts$/],
];

const ROOT_FILES = ["predict.ts", "comfyui.ts", "weights_downloader.ts"];
const ROOT_MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  "weights_downloader.ts": [],
  "comfyui.ts": ["weights_downloader.ts"],
  "predict.ts": ["comfyui.ts", "weights_downloader.ts"],
};

const sources = [...new Bun.Glob("src/**/*.ts").scanSync(ROOT)].sort();

/** Every import of a file, type imports included: Bun's own scanner drops those, so lines are matched. */
function importsOf(file: string): string[] {
  const text = readFileSync(join(ROOT, file), "utf8");
  const statements = text.matchAll(
    /^(?:import|export)\s[^;]*?from\s+"([^"]+)"|^import\s+"([^"]+)"|\bimport\("([^"]+)"\)/gm,
  );
  return [...statements].map((match) => match[1] ?? match[2] ?? match[3] ?? "");
}

function targetOf(file: string, specifier: string): string {
  return normalize(join(dirname(file), specifier));
}

describe("layers", () => {
  test.each(sources)("%s imports only rooms below its own", (file) => {
    const room = file.split("/")[1] ?? "";
    expect(Object.keys(MAY_IMPORT)).toContain(room);
    const outside = importsOf(file)
      .filter((specifier) => specifier.startsWith("."))
      .map((specifier) => targetOf(file, specifier))
      .filter((target) => target.endsWith(".ts"))
      .filter((target) => {
        const [top = "", other = ""] = target.split("/");
        return top !== "src" || (other !== room && !(MAY_IMPORT[room] ?? []).includes(other));
      });
    expect(outside).toEqual([]);
  });

  test.each(ROOT_FILES)("%s imports only the root files below it", (file) => {
    const roots = importsOf(file)
      .map((specifier) => targetOf(file, specifier))
      .filter((target) => ROOT_FILES.includes(target));
    expect(roots.filter((target) => !(ROOT_MAY_IMPORT[file] ?? []).includes(target))).toEqual([]);
  });

  test.each([...sources, ...ROOT_FILES])("%s uses each library only where it belongs", (file) => {
    const misplaced = importsOf(file).filter((specifier) =>
      ONLY_IN.some(([library, place]) => library.test(specifier) && !place.test(file)),
    );
    expect(misplaced).toEqual([]);
  });

  test.each([...sources, ...ROOT_FILES])("%s reads the environment only through env.ts", (file) => {
    const text = readFileSync(join(ROOT, file), "utf8");
    const reads = /\b(process|Bun)\.env\b/.test(text.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, ""));
    expect(reads).toBe(file === "src/platform/env.ts");
  });
});

test.each([...sources, ...ROOT_FILES])("%s removes folders with removeTree", (file) => {
  // Bun's own goes round for ever in a folder of a network file system in which a file is open.
  expect(readFileSync(join(ROOT, file), "utf8")).not.toMatch(/\brm(Sync)?\([^;]*recursive: true/);
});

describe("importing", () => {
  test("any module in an empty environment prints nothing, leaves nothing open and exits 0", async () => {
    const modules = [...sources, ...ROOT_FILES].filter((file) => !file.endsWith("/main.ts"));
    const program = modules
      .map((file) => `await import(${JSON.stringify(join(ROOT, file))});`)
      .join("\n");
    const child = Bun.spawn([process.execPath, "-e", program], {
      cwd: "/",
      env: {},
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [out, err, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    expect({ out, err, code }).toEqual({ out: "", err: "", code: 0 });
  });
});

describe("files", () => {
  test.each([...sources, ...ROOT_FILES])("%s begins by saying its job", (file) => {
    const text = readFileSync(join(ROOT, file), "utf8").replace(/^#!.*\n/, "");
    expect(text.startsWith("/**")).toBe(true);
  });

  test("no file is called utils, helpers, common or types", () => {
    expect(sources.filter((file) => /\/(utils?|helpers?|common|types)\.ts$/.test(file))).toEqual(
      [],
    );
  });
});
