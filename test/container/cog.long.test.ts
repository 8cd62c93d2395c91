import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { tempDir } from "../support/temp-dir.ts";
import type { Result } from "./engine.ts";
import {
  buildImage,
  COG,
  describeCog,
  docker,
  IMAGE,
  must,
  run,
  trialCopy,
  until,
} from "./engine.ts";

const WORKFLOW = "workflow_json=@examples/api_workflows/blend.json";
/** Cog's own base images can't be had everywhere; the Python base is what the CLI falls back to. */
const PLAIN_BASE = "--use-cog-base-image=false";
const BUILT = "cog-comfyui-test:generated";

let project: Awaited<ReturnType<typeof trialCopy>>;

function cog(...args: string[]): Promise<Result> {
  return run([COG ?? "cog", ...args], { cwd: project.path });
}

/** What a checkout shows after a command: files that git would add. */
async function litter(): Promise<string[]> {
  const status = await must(["git", "status", "--porcelain", "--untracked-files=all"], {
    cwd: project.path,
  });
  return status.split("\n").filter((line) => line !== "");
}

function isWebp(path: string): boolean {
  return readFileSync(path).subarray(0, 4).toString() === "RIFF";
}

describeCog("the cog CLI in a fresh checkout", () => {
  beforeAll(async () => {
    project = await trialCopy();
    mkdirSync(join(project.path, "out"));
  }, 600_000);
  afterAll(() => project[Symbol.dispose]());

  test("knows the inputs without building anything", async () => {
    const { err, code } = await cog("run", "-i", "nosuch=1");
    expect(code).toBe(1);
    expect(err).toContain('unknown input "nosuch"; valid inputs are: ');
    for (const name of ["workflow_json", "input_file", "output_format", "skip_weight_check"]) {
      expect(err).toContain(name);
    }
  });

  test.each([
    ["output_quality=101", "must be at most 100"],
    ["output_format=gif", "must be one of"],
    ["randomise_seeds=perhaps", "expected boolean"],
  ])("refuses -i %s in one sentence", async (input, sentence) => {
    const { err, code } = await cog("run", "-i", input);
    expect(code).toBe(1);
    expect(err).toContain(sentence);
  });

  test.each(["predict", "run"])(
    "cog %s writes the picture and leaves the checkout clean",
    async (command) => {
      const before = readdirSync(project.path);
      const { err, code } = await cog(command, "-i", WORKFLOW, "-o", "out/picture.webp");
      expect({ code, tail: code === 0 ? "" : err.slice(-3000) }).toEqual({ code: 0, tail: "" });
      expect(isWebp(join(project.path, "out/picture.0.webp"))).toBe(true);
      expect(await litter()).toEqual([]);
      const added = readdirSync(project.path).filter((name) => !before.includes(name));
      expect(added.filter((name) => ![".cog", "models", "out"].includes(name))).toEqual([]);
    },
  );

  test("reports a failed prediction with our words and exit code 1", async () => {
    const broken = '{"1":{"class_type":"NoSuchNode","inputs":{}}}';
    const { err, code } = await cog("run", "-i", `workflow_json=${broken}`);
    expect(code).toBe(1);
    expect(err).toContain('Prediction failed with status "failed"');
    expect(err).toContain("NoSuchNode");
  });

  test("cog exec runs our command line", async () => {
    const { out, err, code } = await cog("exec", "bun", "predict.ts", "--help");
    expect(code).toBe(0);
    expect(out + err).toContain("weights");
  });

  test("cog serve answers on its port and stops when asked", async () => {
    const port = "8397";
    const child = Bun.spawn([COG ?? "cog", "serve", "-p", port], {
      cwd: project.path,
      stdio: ["ignore", "ignore", "ignore"],
    });
    try {
      await until("cog serve to be READY", async () => {
        const answer = await fetch(`http://127.0.0.1:${port}/health-check`).catch(() => undefined);
        const text = (await answer?.text()) ?? "";
        return text.includes('"READY"') ? true : undefined;
      });
      const input = {
        workflow_json: readFileSync(join(project.path, WORKFLOW.split("@")[1] ?? ""), "utf8"),
      };
      const answer = await fetch(`http://127.0.0.1:${port}/predictions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ input }),
      });
      expect(await answer.text()).toContain('"succeeded"');
      await fetch(`http://127.0.0.1:${port}/shutdown`, { method: "POST" });
      await until("the container to end", async () => {
        const answer = await fetch(`http://127.0.0.1:${port}/health-check`).catch(() => undefined);
        return answer === undefined ? true : undefined;
      });
    } finally {
      child.kill("SIGTERM");
      await child.exited;
    }
    expect(await litter()).toEqual([]);
  });

  test("cog doctor finds nothing", async () => {
    const { out, err, code } = await cog("doctor");
    expect(code).toBe(0);
    expect(out + err).toMatch(/no issues found/i);
  });

  test("cog build makes an image that cog run runs from anywhere", async () => {
    const built = await cog("build", "-t", BUILT, PLAIN_BASE);
    expect({ code: built.code, tail: built.code === 0 ? "" : built.err.slice(-3000) }).toEqual({
      code: 0,
      tail: "",
    });
    using elsewhere = tempDir({
      "wf.json": readFileSync(join(project.path, "examples/api_workflows/blend.json"), "utf8"),
    });
    const ran = await run(
      [COG ?? "cog", "run", BUILT, "-i", "workflow_json=@wf.json", "-o", "got.webp"],
      { cwd: elsewhere.path },
    );
    expect(ran.code).toBe(0);
    expect(isWebp(elsewhere.join("got.0.webp"))).toBe(true);
  });

  test("cog build --dockerfile makes the lean image, with labels and schema", async () => {
    const tag = "cog-comfyui-test:by-cog";
    const built = await cog("build", "--dockerfile", "Dockerfile", "-t", tag);
    expect({ code: built.code, tail: built.code === 0 ? "" : built.err.slice(-3000) }).toEqual({
      code: 0,
      tail: "",
    });
    const labels = await docker("image", "inspect", "-f", "{{json .Config.Labels}}", tag);
    expect(labels).toContain("run.cog.openapi_schema");
    expect(labels).toContain("workflow_json");
    const ran = await cog("run", tag, "-i", WORKFLOW, "-o", "out/lean.webp");
    expect(ran.code).toBe(0);
    expect(isWebp(join(project.path, "out/lean.0.webp"))).toBe(true);
    expect(await docker("run", "--rm", tag, "id", "-u")).toBe("1000");
  });

  test("cog build hands the concurrency of cog.yaml on to the server", async () => {
    const path = join(project.path, "cog.yaml");
    const before = readFileSync(path, "utf8");
    writeFileSync(path, `${before}concurrency:\n  max: 3\n`);
    const built = await cog("build", "-t", BUILT, PLAIN_BASE);
    writeFileSync(path, before);
    expect(built.code).toBe(0);
    const { out } = await run(["docker", "run", "--rm", BUILT, "printenv", "COG_MAX_CONCURRENCY"]);
    expect(out.trim()).toBe("3");
  });

  test("what a container downloaded is still there for the next one, in an ignored folder", async () => {
    const write = "mkdir -p /src/models/checkpoints && echo x > /src/models/checkpoints/kept.bin";
    expect((await cog("exec", "sh", "-c", write)).code).toBe(0);
    expect(existsSync(join(project.path, "models/checkpoints/kept.bin"))).toBe(true);
    const listed = await cog(
      "exec",
      "sh",
      "-c",
      "echo $COMFYUI_MODELS_DIR; ls /src/models/checkpoints",
    );
    expect(listed.out).toContain("/src/models");
    expect(listed.out).toContain("kept.bin");
    expect(await litter()).toEqual([]);
  });

  test("the schema that the CLI makes of the signature has the server's Input", async () => {
    const made: unknown = JSON.parse(
      readFileSync(join(project.path, ".cog/openapi_schema.json"), "utf8"),
    );
    const ours: unknown = JSON.parse(
      await must([process.execPath, "scripts/signature.ts", "--openapi"]),
    );
    expect(inputsOf(made)).toEqual(inputsOf(ours));
  });
});

const Schemas = z.object({
  components: z.object({ schemas: z.record(z.string(), z.unknown()) }),
});

/** `Input` and the components of its choices. */
function inputsOf(document: unknown): Record<string, unknown> {
  const { components } = Schemas.parse(document);
  return { Input: components.schemas["Input"], output_format: components.schemas["output_format"] };
}

describeCog("an image of ours under the cog CLI", () => {
  beforeAll(buildImage, 600_000);

  test("cog predict IMAGE writes the picture", async () => {
    using folder = tempDir({
      "wf.json": readFileSync("examples/api_workflows/blend.json", "utf8"),
    });
    const { code, err } = await run(
      [COG ?? "cog", "predict", IMAGE, "-i", "workflow_json=@wf.json", "-o", "got"],
      { cwd: folder.path },
    );
    expect({ code, tail: code === 0 ? "" : err.slice(-2000) }).toEqual({ code: 0, tail: "" });
    expect(isWebp(folder.join("got.0.webp"))).toBe(true);
    expect(statSync(folder.join("got.0.webp")).size).toBeGreaterThan(100);
  });

  test("refuses an unknown input by its label, before a container starts", async () => {
    using folder = tempDir();
    const began = performance.now();
    const { code, err } = await run([COG ?? "cog", "run", IMAGE, "-i", "nosuch=1"], {
      cwd: folder.path,
    });
    expect(code).toBe(1);
    expect(err).toContain('unknown input "nosuch"');
    expect(err).not.toContain("Starting Docker image");
    expect(performance.now() - began).toBeLessThan(10_000);
  });
});

/** Our image with a source of weights inside that never answers: setup goes on until the end. */
async function stallingImage(): Promise<string> {
  const tag = "cog-comfyui-test:stalling";
  using folder = tempDir({
    "stall.sh": [
      "#!/bin/sh",
      "bun -e 'Bun.serve({ port: 9999, fetch: () => new Promise(() => undefined) })' &",
      "exec bun run /src/predict.ts",
      "",
    ].join("\n"),
    Dockerfile: [
      `FROM ${IMAGE}`,
      "COPY --chmod=755 stall.sh /stall.sh",
      "ENV COG_WEIGHTS=http://127.0.0.1:9999/w.tar ORPHAN_TIMEOUT=3",
      'CMD ["/stall.sh"]',
      "",
    ].join("\n"),
  });
  await docker("build", "--quiet", "--tag", tag, folder.path);
  return tag;
}

describeCog("a container that the cog CLI forgot", () => {
  beforeAll(buildImage, 600_000);

  test("ends by itself after the CLI was killed during setup", async () => {
    const image = await stallingImage();
    using folder = tempDir();
    const child = Bun.spawn([COG ?? "cog", "run", image, "-i", "workflow_json={}"], {
      cwd: folder.path,
      stdio: ["ignore", "ignore", "ignore"],
    });
    const running = (): Promise<string> => docker("ps", "--quiet", "--filter", `ancestor=${image}`);
    const id = await until("the container to start", async () => (await running()) || undefined);
    // Setup is under way as soon as it waits for its weights; the CLI has asked for its health by then.
    await until("setup to begin", async () => {
      const { out } = await run(["docker", "exec", id, "cog-comfyui-health"]);
      return out.includes("STARTING") ? true : undefined;
    });
    child.kill("SIGKILL");
    await child.exited;
    expect(await running()).toBe(id);
    await until("the container to end by itself", async () =>
      (await running()) === "" ? true : undefined,
    );
  });
});

describeCog("wrong edits of cog.yaml", () => {
  beforeAll(async () => {
    project = await trialCopy();
  }, 600_000);
  afterAll(() => project[Symbol.dispose]());

  test.each([
    [
      "a predictor that is not Python",
      'cog/signature.py:Predictor"',
      'predict.ts:Predictor"',
      "must be in the form 'run.py:Runner'",
    ],
    ["a missing signature", "cog/signature.py", "cog/gone.py", "gone.py"],
    ["a Python too old for Cog", 'python_version: "3.11"', 'python_version: "3.7"', "3.10"],
  ])("%s is told in one sentence", async (_name, from, to, sentence) => {
    const path = join(project.path, "cog.yaml");
    const before = readFileSync(path, "utf8");
    writeFileSync(path, before.replaceAll(from, to));
    const { err, out, code } = await cog("run", "-i", "workflow_json={}");
    writeFileSync(path, before);
    expect(code).toBe(1);
    expect(err + out).toContain(sentence);
  });
});
