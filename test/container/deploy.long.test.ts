import { beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { tempDir } from "../support/temp-dir.ts";
import { buildImage, describeEngine, IMAGE, must, ROOT, run } from "./engine.ts";

/** Kubernetes' own schemas as a Python package; pinned, because a newer one may know a newer Kubernetes. */
const VALIDATOR = "kubernetes-validate==1.37.0";

const hasCompose =
  Bun.which("docker") !== null &&
  Bun.spawnSync(["docker", "compose", "version"], { stdio: ["ignore", "ignore", "ignore"] })
    .exitCode === 0;
const python = Bun.which("python3");

const EMBEDDED = ["-f", "compose.yaml", "-f", "docs/deploy/compose.embedded.yaml"];

describeEngine("compose.yaml", () => {
  beforeAll(buildImage, 600_000);

  test.if(hasCompose)("is valid to docker compose, with and without a GPU", async () => {
    await must(["docker", "compose", "config", "--quiet"]);
    const embedded = await must(["docker", "compose", ...EMBEDDED, "config"]);
    expect(embedded).not.toContain("nvidia");
    expect(embedded).toContain("cap_drop");
  });

  test.if(hasCompose)("brings the service up and healthy, hardened as it is", async () => {
    const project = ["docker", "compose", "--project-name", "cog-comfyui-test", ...EMBEDDED];
    const env = { IMAGE, TARGET: "embedded", HOST_PORT: "0" };
    try {
      const up = await run([...project, "up", "--detach", "--wait", "--no-build"], { env });
      expect({ code: up.code, err: up.code === 0 ? "" : up.err }).toEqual({ code: 0, err: "" });
      const address = await must([...project, "port", "predictor", "5000"], { env });
      const health = await (await fetch(`http://${address}/health-check`)).text();
      expect(health).toContain('"READY"');
      const ready = await fetch(`http://${address}/readyz`);
      expect(ready.status).toBe(200);
    } finally {
      await run([...project, "down", "--volumes", "--timeout", "20"], { env });
    }
  });
});

test.if(python !== null)(
  "kubernetes.yaml is valid to Kubernetes' schemas, nothing unknown in it",
  async () => {
    using folder = tempDir();
    await must([python ?? "python3", "-m", "venv", folder.join("venv")]);
    const installed = await run([folder.join("venv/bin/pip"), "install", "--quiet", VALIDATOR]);
    if (installed.code !== 0) {
      throw new Error(`${VALIDATOR} can't be installed here: ${installed.err}`);
    }
    const manifests = join(ROOT, "docs/deploy/kubernetes.yaml");
    const { out, err, code } = await run([
      folder.join("venv/bin/kubernetes-validate"),
      "--strict",
      manifests,
    ]);
    expect({ code, problems: code === 0 ? "" : out + err }).toEqual({ code: 0, problems: "" });
  },
);
