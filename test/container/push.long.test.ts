import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { tempDir } from "../support/temp-dir.ts";
import {
  buildImage,
  COG,
  Container,
  describeCog,
  describeEngine,
  docker,
  IMAGE,
  ROOT,
  run,
  trialCopy,
} from "./engine.ts";
import type { Registry } from "./registry.ts";
import { REGISTRY_PROGRAM, startRegistry } from "./registry.ts";

const WORKFLOW = readFileSync(join(ROOT, "examples/api_workflows/blend.json"), "utf8");

let registry: Registry;
let project: Awaited<ReturnType<typeof trialCopy>>;

describeEngine("docker push", () => {
  beforeAll(buildImage, 600_000);

  test.if(REGISTRY_PROGRAM !== null)(
    "an image pulled back from a registry is the same and runs",
    async () => {
      await using own = await startRegistry();
      const name = `${own.name}/me/predictor`;
      await docker("tag", IMAGE, name);
      await docker("push", "--quiet", name);
      const before = await docker("image", "inspect", "-f", "{{.Id}}", IMAGE);
      await docker("rmi", name);
      await docker("pull", "--quiet", name);
      expect(await docker("image", "inspect", "-f", "{{.Id}}", name)).toBe(before);
      await using container = await Container.start([], name);
      expect((await container.settled()).status).toBe("READY");
      await container[Symbol.asyncDispose]();
      await docker("rmi", name);
    },
  );
});

describeCog("cog push", () => {
  beforeAll(async () => {
    registry = await startRegistry();
    project = await trialCopy();
  }, 600_000);
  afterAll(async () => {
    await registry[Symbol.asyncDispose]();
    project[Symbol.dispose]();
  });

  test.each([
    ["the generated image", "generated", ["--use-cog-base-image=false"]],
    ["the lean image", "lean", ["--dockerfile", "Dockerfile"]],
  ])("%s can be pushed, and run by name where it is not", async (_title, name, flags) => {
    const image = `${registry.name}/me/${name}`;
    const pushed = await run([COG ?? "cog", "push", image, ...flags], { cwd: project.path });
    expect({ code: pushed.code, tail: pushed.code === 0 ? "" : pushed.err.slice(-3000) }).toEqual({
      code: 0,
      tail: "",
    });
    await docker("rmi", "--force", image);
    using elsewhere = tempDir({ "wf.json": WORKFLOW });
    const ran = await run(
      [COG ?? "cog", "run", image, "-i", "workflow_json=@wf.json", "-o", "got.webp"],
      { cwd: elsewhere.path },
    );
    expect({ code: ran.code, tail: ran.code === 0 ? "" : ran.err.slice(-3000) }).toEqual({
      code: 0,
      tail: "",
    });
    expect(readFileSync(elsewhere.join("got.0.webp")).subarray(0, 4).toString()).toBe("RIFF");
    await docker("rmi", "--force", image);
  });
});
