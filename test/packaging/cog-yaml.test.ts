import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { trialCogYaml, trialDockerfile } from "../../scripts/container-trial.ts";

const ROOT = join(import.meta.dir, "../..");
const read = (file: string): string => readFileSync(join(ROOT, file), "utf8");

const CogYaml = z.strictObject({
  build: z.strictObject({
    python_version: z.string(),
    gpu: z.boolean().optional(),
    cuda: z.string().optional(),
    system_packages: z.array(z.string()).optional(),
    run: z.array(z.string()),
  }),
  run: z.string(),
  environment: z.array(z.string()),
});
const Package = z.object({
  packageManager: z.string(),
  dependencies: z.record(z.string(), z.string()),
});

const text = read("cog.yaml");
const production = CogYaml.parse(Bun.YAML.parse(text));
const trial = CogYaml.parse(Bun.YAML.parse(trialCogYaml(text)));
const { packageManager, dependencies } = Package.parse(JSON.parse(read("package.json")));
const dockerfile = read("Dockerfile");

function argumentOf(name: string): string | undefined {
  return dockerfile.match(new RegExp(`^ARG ${name}=(.*)$`, "m"))?.[1];
}

describe("cog.yaml", () => {
  test("is the production form: a GPU, the real engine, models inside the checkout", () => {
    expect(production.build.gpu).toBe(true);
    expect(production.run).toBe("cog/signature.py:Predictor");
    expect(production.environment).toEqual([
      "PYTHONDONTWRITEBYTECODE=1",
      "COMFYUI_ENGINE=real",
      "COMFYUI_PATH=/opt/ComfyUI",
      "COMFYUI_MODELS_DIR=/src/models",
    ]);
  });

  test("installs exactly the dependencies of package.json, at their versions", () => {
    const line = production.build.run.find((command) => command.includes("bun add"));
    const pinned = [...(line ?? "").matchAll(/\S+@\d\S*/g)].map((match) => match[0]);
    expect(pinned.sort()).toEqual(
      Object.entries(dependencies)
        .map(([name, version]) => `${name}@${version}`)
        .sort(),
    );
  });

  test("installs the Bun of package.json", () => {
    const version = packageManager.replace("bun@", "");
    const line = production.build.run.find((command) => command.includes("npm pack"));
    const named = [...(line ?? "").matchAll(/\b1\.\d+\.\d+\b/g)].map((match) => match[0]);
    expect(named).toEqual([version, version, version]);
  });

  test("has the ComfyUI commit and torch versions of the Dockerfile", () => {
    const lines = production.build.run.join("\n");
    expect(lines).toContain(` ${argumentOf("COMFYUI_COMMIT")} `);
    expect(lines).toContain(` ${argumentOf("COMFYUI_REPO")} `);
    expect(lines).toContain(` torch==${argumentOf("TORCH_VERSION")} `);
    expect(lines).toContain(` torchvision==${argumentOf("TORCHVISION_VERSION")} `);
    expect(lines).toContain(` torchaudio==${argumentOf("TORCHAUDIO_VERSION")} `);
  });

  test("has no command over several lines, which the cog CLI refuses", () => {
    expect(production.build.run.filter((command) => command.includes("\n"))).toEqual([]);
  });
});

describe("the trial copy", () => {
  test("drops the GPU and ComfyUI lines, sets the embedded engine, and differs in nothing else", () => {
    const { gpu, cuda, system_packages, ...build } = production.build;
    expect({ gpu, cuda, system_packages }).toEqual({
      gpu: true,
      cuda: expect.any(String),
      system_packages: expect.any(Array),
    });
    expect(trial).toEqual({
      ...production,
      build: { ...build, run: build.run.filter((command) => !command.includes("/opt/ComfyUI")) },
      environment: production.environment
        .filter((line) => !line.startsWith("COMFYUI_PATH="))
        .map((line) => (line === "COMFYUI_ENGINE=real" ? "COMFYUI_ENGINE=embedded" : line)),
    });
    expect(trial.build.run).toHaveLength(2);
  });

  test("keeps every line that is not between the marks, in its place", () => {
    const lines = text.split("\n");
    const kept = trialCogYaml(text)
      .split("\n")
      .map((line) => line.replace("ENGINE=embedded", "ENGINE=real"));
    const positions = kept.map((line) => lines.indexOf(line));
    expect(positions.filter((position) => position === -1)).toEqual([]);
  });

  test("is refused where the marks don't pair up", () => {
    expect(() => trialCogYaml(text.replace("# <<< real engine", "#"))).toThrow("marks");
    expect(() => trialCogYaml(text.replace("COMFYUI_ENGINE=real", "X=y"))).toThrow("0 times");
  });

  test("of the Dockerfile differs in the default target only", () => {
    const before = dockerfile.split("\n");
    const after = trialDockerfile(dockerfile).split("\n");
    const changed = after.filter((line, index) => line !== before[index]);
    expect(changed).toEqual(["ARG TARGET=embedded"]);
    expect(after).toHaveLength(before.length);
  });
});

describe("Dockerfile", () => {
  test("takes the Bun of package.json", () => {
    expect(argumentOf("BUN_IMAGE")).toBe(`oven/bun:${packageManager.replace("bun@", "")}-slim`);
  });

  test("pins ComfyUI to a whole commit", () => {
    expect(argumentOf("COMFYUI_COMMIT")).toMatch(/^[0-9a-f]{40}$/);
  });

  test("labels both images for the cog CLI with JSON", () => {
    const configs = [...dockerfile.matchAll(/run\.cog\.config='([^']*)'/g)].map((match) =>
      JSON.parse(match[1] ?? ""),
    );
    expect(configs).toEqual([{ build: { gpu: false } }, { build: { gpu: true } }]);
  });

  test("names an engine in each image and leaves none to be guessed", () => {
    expect(dockerfile.match(/COMFYUI_ENGINE=\w+/g)).toEqual([
      "COMFYUI_ENGINE=embedded",
      "COMFYUI_ENGINE=real",
    ]);
  });

  test("runs as an ordinary user in every final stage", () => {
    const users = [...dockerfile.matchAll(/^USER (.*)$/gm)].map((match) => match[1]);
    expect(users).toEqual(["1000:1000", "root", "1000:1000"]);
  });

  test("needs no front end from a registry", () => {
    expect(dockerfile).not.toMatch(/^#\s*syntax=/m);
  });
});

describe("ignore files", () => {
  const dockerIgnored = read(".dockerignore").split("\n");
  const gitIgnored = read(".gitignore").split("\n");

  test.each([".git", "node_modules", "models", ".cog", "test", "**/__pycache__", "**/.env"])(
    "%s stays out of images",
    (entry) => {
      expect(dockerIgnored).toContain(entry);
    },
  );

  test.each(["node_modules/", "/models/", "/.cog/", "/output.*", "__pycache__/", ".tools/"])(
    "%s stays out of git",
    (entry) => {
      expect(gitIgnored).toContain(entry);
    },
  );
});
