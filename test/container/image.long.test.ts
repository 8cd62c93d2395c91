import { beforeAll, expect, test } from "bun:test";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { tempDir } from "../support/temp-dir.ts";
import {
  buildImage,
  Container,
  describeEngine,
  docker,
  IMAGE,
  must,
  ROOT,
  run,
  until,
} from "./engine.ts";

const BLEND = readFileSync(join(ROOT, "examples/api_workflows/blend.json"), "utf8");

/** The first bytes of a WebP file in a data URL: `RIFF`. */
const WEBP = /^data:image\/webp;base64,UklGR/;

/** Upscales a picture many times over: seconds of work on the built-in engine. */
function slowWorkflow(steps: number): string {
  const nodes: Record<string, unknown> = {
    "0": {
      class_type: "EmptyImage",
      inputs: { width: 512, height: 512, batch_size: 1, color: 255 },
    },
  };
  for (let step = 1; step <= steps; step += 1) {
    const side = step % 2 === 0 ? 2000 : 1500;
    nodes[String(step)] = {
      class_type: "ImageScale",
      inputs: {
        image: [String(step - 1), 0],
        upscale_method: "lanczos",
        width: side,
        height: side,
        crop: "disabled",
      },
    };
  }
  nodes["save"] = {
    class_type: "SaveImage",
    inputs: { images: [String(steps), 0], filename_prefix: "slow" },
  };
  return JSON.stringify(nodes);
}

const Inspect = z.object({
  Config: z.object({
    Labels: z.record(z.string(), z.string()),
    User: z.string(),
    Entrypoint: z.array(z.string()),
    Cmd: z.array(z.string()),
    WorkingDir: z.string(),
    ExposedPorts: z.record(z.string(), z.unknown()),
    Healthcheck: z.object({ Test: z.array(z.string()) }),
  }),
});

async function inspect(): Promise<z.output<typeof Inspect>["Config"]> {
  const text = await docker("image", "inspect", "--format", "{{json .}}", IMAGE);
  return Inspect.parse(JSON.parse(text)).Config;
}

describeEngine("the image", () => {
  beforeAll(buildImage, 600_000);

  test("is labelled, runs as uid 1000 under tini, listens on 5000 and has a health check", async () => {
    const { Labels, ...config } = await inspect();
    expect(config).toMatchObject({
      User: "1000:1000",
      Entrypoint: ["tini", "--"],
      Cmd: ["bun", "run", "/src/predict.ts"],
      WorkingDir: "/src",
      Healthcheck: { Test: ["CMD", "cog-comfyui-health"] },
    });
    expect(Object.keys(config.ExposedPorts)).toEqual(["5000/tcp"]);
    expect(JSON.parse(Labels["run.cog.config"] ?? "")).toEqual({ build: { gpu: false } });
    expect(Labels["org.opencontainers.image.revision"]).toMatch(/^[0-9a-f]{40}$/);
    expect(Labels["org.opencontainers.image.licenses"]).toBe("MIT");
  });

  test("has one and the same schema in its label, its .cog folder and on /openapi.json", async () => {
    await using container = await Container.start();
    expect((await container.settled()).status).toBe("READY");
    const served: unknown = await (await fetch(`${container.url}/openapi.json`)).json();
    const file: unknown = JSON.parse(
      await docker("exec", container.id, "cat", "/src/.cog/openapi_schema.json"),
    );
    const label: unknown = JSON.parse((await inspect()).Labels["run.cog.openapi_schema"] ?? "");
    expect(file).toEqual(served);
    expect(label).toEqual(served);
  });

  test("has no Python, no development dependency and no test in it", async () => {
    const listed = await docker(
      "run",
      "--rm",
      IMAGE,
      "sh",
      "-c",
      "ls -d /usr/bin/python3* /src/test /src/node_modules/typescript /src/node_modules/@biomejs 2>/dev/null; true",
    );
    expect(listed).toBe("");
  });

  test.each([
    ["as it is", []],
    [
      "with a read-only root, a tmpfs and no capabilities",
      [
        "--read-only",
        "--tmpfs",
        "/tmp:mode=1777",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
      ],
    ],
    ["as any uid", ["--user", "12345:12345"]],
    [
      "as any uid with a read-only root and a volume",
      [
        "--user",
        "12345:12345",
        "--read-only",
        "--tmpfs",
        "/tmp:mode=1777",
        "--volume",
        "/models",
        "--cap-drop",
        "ALL",
      ],
    ],
    ["as root", ["--user", "0:0"]],
    ["without network", ["--network", "none"]],
  ])("predicts %s", async (name, args) => {
    if (name === "without network") {
      const id = await docker("run", "-d", ...args, IMAGE);
      try {
        const status = await until("READY", async () => {
          const answer = await run(["docker", "exec", id, "cog-comfyui-health"]);
          return answer.out.trim() === "READY" ? "READY" : undefined;
        });
        expect(status).toBe("READY");
      } finally {
        await docker("rm", "--force", id);
      }
      return;
    }
    await using container = await Container.start(args);
    expect((await container.settled()).status).toBe("READY");
    const prediction = await container.predict({ workflow_json: BLEND });
    expect(prediction.error ?? "").toBe("");
    expect(prediction.status).toBe("succeeded");
    expect(prediction.output?.[0]).toMatch(WEBP);
  });

  test("answers health checks where no folder can be written, and says which one it needs", async () => {
    await using container = await Container.start(["--read-only"]);
    const health = await container.settled();
    const told = `${health.setup?.logs} ${await container.logs()}`;
    if (health.status !== "READY") {
      expect(health.status).toBe("SETUP_FAILED");
      expect(told).toMatch(/\/tmp|WORK_DIR/);
    }
  });

  test("is healthy to Docker once it is READY", async () => {
    await using container = await Container.start();
    const state = await until("Docker's own health", async () => {
      const status = await docker("inspect", "-f", "{{.State.Health.Status}}", container.id);
      return status === "starting" ? undefined : status;
    });
    expect(state).toBe("healthy");
  });

  test("speaks as the cog CLI expects when its command is replaced", async () => {
    const frozen = await docker("run", "--rm", IMAGE, "python", "-m", "pip", "freeze");
    expect(frozen).toBe("");
    const command = ["python", "--check-hash-based-pycs", "never", "-m", "cog.server.http"];
    await using container = await Container.start([], IMAGE, command);
    expect((await container.settled()).status).toBe("READY");
    const other = await run(["docker", "run", "--rm", IMAGE, "python", "-c", "print(1)"]);
    expect(other.code).toBe(127);
    expect(other.err).toContain("this image has no Python");
  });

  test("has the command line inside", async () => {
    const help = await run(["docker", "run", "--rm", IMAGE, "cog-comfyui", "--help"]);
    expect(help.out + help.err).toContain("weights");
    expect(help.code).toBe(0);
  });
});

describeEngine("logs", () => {
  beforeAll(buildImage, 600_000);

  test("are JSON lines by default", async () => {
    await using container = await Container.start();
    await container.settled();
    const lines = (await container.logs()).split("\n").filter((line) => line.trim() !== "");
    expect(lines.length).toBeGreaterThan(0);
    for (const line of lines) {
      expect(() => JSON.parse(line) as unknown).not.toThrow();
    }
  });

  test("are plain lines with LOG_FORMAT=console, and quiet with COG_LOG_LEVEL=error", async () => {
    await using plain = await Container.start(["--env", "LOG_FORMAT=console"]);
    await plain.settled();
    expect((await plain.logs()).trimStart().startsWith("{")).toBe(false);
    await using quiet = await Container.start(["--env", "COG_LOG_LEVEL=error"]);
    await quiet.settled();
    expect(await quiet.logs()).toBe("");
  });
});

describeEngine("stopping", () => {
  beforeAll(buildImage, 600_000);

  test("an idle container ends at once with exit code 0", async () => {
    await using container = await Container.start();
    await container.settled();
    await docker("stop", "--time", "20", container.id);
    expect(await container.ended()).toBe(0);
  });

  test("while STARTING ends with exit code 0", async () => {
    // A source of weights that never answers keeps setup going.
    const stall = "Bun.serve({ port: 9999, fetch: () => new Promise(() => undefined) })";
    await using container = await Container.start(
      ["--env", "COG_WEIGHTS=http://127.0.0.1:9999/w.tar"],
      IMAGE,
      ["sh", "-c", `bun -e '${stall}' & exec bun run /src/predict.ts`],
    );
    const { status } = await until("the first answer", () => container.health());
    expect(status).toBe("STARTING");
    await docker("stop", "--time", "20", container.id);
    expect(await container.ended()).toBe(0);
  });

  test("answers the prediction under way in full, then ends with its engine", async () => {
    await using container = await Container.start();
    await container.settled();
    const answer = container.predict({ workflow_json: slowWorkflow(6), output_format: "jpg" });
    await until("the prediction to run", async () =>
      (await container.health())?.status === "BUSY" ? true : undefined,
    );
    const stopped = docker("stop", "--time", "60", container.id);
    expect((await answer).status).toBe("succeeded");
    await stopped;
    expect(await container.ended()).toBe(0);
    const killed = await docker("inspect", "-f", "{{.State.OOMKilled}}", container.id);
    expect(killed).toBe("false");
  });

  test("leaves no process: the container of a shell that started the server is empty afterwards", async () => {
    const command = ["sh", "-c", "bun run /src/predict.ts & echo $! > /tmp/pid; wait; sleep 3600"];
    await using container = await Container.start([], IMAGE, command);
    await container.settled();
    await docker("exec", container.id, "sh", "-c", "kill -TERM $(cat /tmp/pid)");
    const left = await until("the server to end", async () => {
      const table = await docker("top", container.id, "-eo", "pid,comm");
      return table.includes("bun") ? undefined : table;
    });
    const names = left
      .split("\n")
      .slice(1)
      .map((row) => row.trim().split(/\s+/)[1]);
    // The shell goes on to its sleep; whether it is there yet says nothing about the server.
    expect(names.filter((name) => name !== "sleep").sort()).toEqual(["sh", "tini"]);
  });

  test("an engine that the kernel kills is told apart and started again; the server stays", async () => {
    await using container = await Container.start();
    await container.settled();
    const answer = container.predict({ workflow_json: slowWorkflow(40), output_format: "jpg" });
    await until("the prediction to run", async () =>
      (await container.health())?.status === "BUSY" ? true : undefined,
    );
    // The engine is the child: what the out-of-memory killer does to it, done by hand.
    await docker(
      "exec",
      container.id,
      "sh",
      "-c",
      "for p in /proc/[0-9]*; do if tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '[e]mbedded/main.ts'; then kill -KILL $(basename $p); fi; done",
    );
    const prediction = await answer;
    expect(prediction.status).toBe("failed");
    expect(prediction.error).toMatch(/kill|memory/i);
    const again = await container.predict({ workflow_json: BLEND });
    expect(again.status).toBe("succeeded");
  });
});

describeEngine("a container that cannot do its work", () => {
  beforeAll(buildImage, 600_000);

  /** Needs one weight at setup; the address is never asked, because the volume is looked at first. */
  const needsWeight = ["--env", "COG_WEIGHTS=/weights.tar"];

  async function weightsTar(folder: string, megabytes: number): Promise<string> {
    mkdirSync(join(folder, "tree/checkpoints"), { recursive: true });
    await Bun.write(
      join(folder, "tree/checkpoints/mine.bin"),
      new Uint8Array(megabytes * 1_000_000),
    );
    await must(["tar", "-cf", "weights.tar", "-C", "tree", "."], { cwd: folder });
    return join(folder, "weights.tar");
  }

  async function failure(args: readonly string[]): Promise<string> {
    await using container = await Container.start(args);
    const health = await container.settled();
    expect(health.status).toBe("SETUP_FAILED");
    return health.setup?.logs ?? "";
  }

  test("names the models folder that another uid owns", async () => {
    using folder = tempDir({ "models/.keep": "" });
    const tar = await weightsTar(folder.path, 1);
    const logs = await failure([
      ...needsWeight,
      "--volume",
      `${tar}:/weights.tar:ro`,
      "--volume",
      `${folder.join("models")}:/models`,
    ]);
    expect(logs).toMatch(/\/models/);
    expect(logs).toMatch(/writ|permi/i);
  });

  test("names the models folder that is mounted read-only", async () => {
    using folder = tempDir({ "models/.keep": "" });
    const tar = await weightsTar(folder.path, 1);
    const logs = await failure([
      ...needsWeight,
      "--volume",
      `${tar}:/weights.tar:ro`,
      "--volume",
      `${folder.join("models")}:/models:ro`,
    ]);
    expect(logs).toMatch(/\/models/);
    expect(logs).toMatch(/read-only|writ|permi/i);
  });

  test("says that the models volume is full, with the sizes", async () => {
    using folder = tempDir();
    const tar = await weightsTar(folder.path, 30);
    const logs = await failure([
      ...needsWeight,
      "--volume",
      `${tar}:/weights.tar:ro`,
      "--tmpfs",
      "/models:size=8m,mode=1777",
    ]);
    expect(logs).toMatch(/space|full|room/i);
    expect(logs).toMatch(/\d/);
  });

  test("asked for a real engine that it has not, says so and never takes the built-in one", async () => {
    const logs = await failure([
      "--env",
      "COMFYUI_ENGINE=real",
      "--env",
      "COMFYUI_PATH=/opt/ComfyUI",
    ]);
    expect(logs).toContain("There is no ComfyUI in /opt/ComfyUI");
  });

  test("names a variable that makes no sense", async () => {
    const { code, out, err } = await run([
      "docker",
      "run",
      "--rm",
      "--env",
      "WEIGHTS_POLICY=maybe",
      IMAGE,
    ]);
    expect(code).not.toBe(0);
    expect(out + err).toContain("WEIGHTS_POLICY");
  });
});
