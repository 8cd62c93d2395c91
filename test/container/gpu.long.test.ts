import { beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Container, describeEngine, must, ROOT } from "./engine.ts";

const IMAGE = "cog-comfyui-test:gpu";
const BLEND = readFileSync(join(ROOT, "examples/api_workflows/blend.json"), "utf8");

/** Gigabytes are downloaded: only where somebody asks for it, with a git address of ComfyUI that can be reached. */
const repo = process.env["CONTAINER_TEST_COMFYUI_REPO"];
const commit = process.env["CONTAINER_TEST_COMFYUI_COMMIT"];

async function buildGpuImage(): Promise<void> {
  const chosen = [
    ...(repo === undefined ? [] : [`COMFYUI_REPO=${repo}`]),
    ...(commit === undefined ? [] : [`COMFYUI_COMMIT=${commit}`]),
  ];
  const script = ["scripts/container.ts", "build", "--target", "gpu", "--tag", IMAGE, "--"];
  const network = ["--network", "host"];
  await must([
    process.execPath,
    ...script,
    ...network,
    ...chosen.flatMap((argument) => ["--build-arg", argument]),
  ]);
}

function register(): void {
  beforeAll(buildGpuImage, 600_000);

  test("without a GPU says so in one line, and never takes the built-in engine", async () => {
    await using container = await Container.start([], IMAGE);
    const { status, setup } = await container.settled();
    expect(status).toBe("SETUP_FAILED");
    expect(setup?.logs).toContain("There is no usable GPU");
    expect(setup?.logs).not.toContain("Traceback");
  });

  test("runs a workflow on the real ComfyUI, as any uid, with nothing writable but volumes", async () => {
    const hardened = ["--read-only", "--tmpfs", "/tmp:mode=1777", "--cap-drop", "ALL"];
    const args = [...hardened, "--user", "12345:12345", "--volume", "/models"];
    await using container = await Container.start(["--env", "COMFYUI_ARGS=--cpu", ...args], IMAGE);
    expect((await container.settled()).status).toBe("READY");
    const prediction = await container.predict({ workflow_json: BLEND });
    expect(prediction.status).toBe("succeeded");
    expect(prediction.output?.[0]).toStartWith("data:image/webp;base64,UklGR");
    expect(await container.logs()).toContain("Prompt executed");
  });
}

if (repo === undefined && process.env["CONTAINER_TEST_GPU"] !== "1") {
  test.skip("the gpu image: skipped, it downloads gigabytes; set CONTAINER_TEST_GPU=1, or CONTAINER_TEST_COMFYUI_REPO and _COMMIT", () =>
    undefined);
} else {
  describeEngine("the gpu image on a CPU", register);
}
