/** Docker and the cog CLI as the container tests use them: commands, containers that end with their scope, builds. */
import { describe, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { z } from "zod";

export const ROOT = join(import.meta.dir, "../..");

/** The image under test: the embedded target. `npm run test:container` sets everything up for it. */
export const IMAGE = "cog-comfyui-test:embedded";

/** A first build downloads packages; everything else takes seconds. */
const BUILD_LIMIT_MS = 540_000;

const POLL_MS = 50;

export interface Result {
  readonly out: string;
  readonly err: string;
  readonly code: number;
}

interface RunOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly limitMs?: number;
}

/** Runs a command to its end. */
export async function run(command: readonly string[], options: RunOptions = {}): Promise<Result> {
  const child = Bun.spawn([...command], {
    cwd: options.cwd ?? ROOT,
    env: { ...process.env, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: options.limitMs ?? BUILD_LIMIT_MS,
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { out, err, code };
}

/** Runs a command that must succeed. */
export async function must(command: readonly string[], options: RunOptions = {}): Promise<string> {
  const { out, err, code } = await run(command, options);
  if (code !== 0) {
    throw new Error(`${command.join(" ").slice(0, 400)} ended with ${code}: ${out}${err}`);
  }
  return out.trim();
}

export function docker(...args: string[]): Promise<string> {
  return must(["docker", ...args]);
}

const hasEngine =
  Bun.which("docker") !== null &&
  Bun.spawnSync(["docker", "info"], { stdio: ["ignore", "ignore", "ignore"] }).exitCode === 0;

/** Registers tests that need a Docker engine, or one skipped test that says so. */
export function describeEngine(title: string, register: () => void): void {
  if (hasEngine) {
    describe(title, register);
  } else {
    test.skip(`${title}: skipped, no Docker engine answers; npm run test:container brings one where that can be had`, () =>
      undefined);
  }
}

/** Path of the cog CLI. */
export const COG = process.env["COG_CLI"] ?? Bun.which("cog") ?? undefined;

/** Registers tests that need the engine and the cog CLI. */
export function describeCog(title: string, register: () => void): void {
  if (hasEngine && COG === undefined) {
    test.skip(`${title}: skipped, there is no cog CLI; put it on PATH or set COG_CLI`, () =>
      undefined);
  } else {
    describeEngine(title, register);
  }
}

/** A trial copy of the project as a git repository of its own; gone with the scope. */
export async function trialCopy(): Promise<Disposable & { readonly path: string }> {
  const path = mkdtempSync(join(tmpdir(), "cog-comfyui-trial-"));
  await must([process.execPath, "scripts/container.ts", "trial", path]);
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

let build: Promise<void> | undefined;

/** Builds {@link IMAGE}, once per run. */
export function buildImage(): Promise<void> {
  build ??= must([
    process.execPath,
    "scripts/container.ts",
    "build",
    "--target",
    "embedded",
    "--tag",
    IMAGE,
  ]).then(() => undefined);
  return build;
}

const Health = z.object({
  status: z.string(),
  setup: z.object({ status: z.string(), logs: z.string().optional() }).optional(),
});
type Health = z.output<typeof Health>;

const Prediction = z.object({
  status: z.string(),
  output: z.array(z.string()).nullish(),
  error: z.string().nullish(),
  logs: z.string().optional(),
});
type Prediction = z.output<typeof Prediction>;

/** Waits for a condition; the limit is generous, because only a defect reaches it. */
export async function until<T>(
  what: string,
  probe: () => Promise<T | undefined>,
  limitMs = 60_000,
): Promise<T> {
  const end = Date.now() + limitMs;
  for (;;) {
    const value = await probe();
    if (value !== undefined) {
      return value;
    }
    if (Date.now() > end) {
      throw new Error(`gave up waiting for ${what}`);
    }
    await Bun.sleep(POLL_MS);
  }
}

/** A running container of ours. */
export class Container implements AsyncDisposable {
  readonly id: string;
  readonly url: string;

  private constructor(id: string, url: string) {
    this.id = id;
    this.url = url;
  }

  /** Starts an image with further `docker run` arguments; `command` replaces the image's own. */
  static async start(
    args: readonly string[] = [],
    image = IMAGE,
    command: readonly string[] = [],
  ): Promise<Container> {
    const id = await docker("run", "-d", "-p", "127.0.0.1::5000", ...args, image, ...command);
    const port = await must(["docker", "port", id, "5000/tcp"]).catch(async (error: unknown) => {
      throw new Error(`the container ended at once: ${await logsOf(id)}`, { cause: error });
    });
    return new Container(id, `http://${port.split("\n")[0]}`);
  }

  async health(): Promise<Health | undefined> {
    const response = await fetch(`${this.url}/health-check`).catch(() => undefined);
    return response?.ok === true ? Health.parse(await response.json()) : undefined;
  }

  /** Waits until setup is over; the status it ended in. */
  async settled(): Promise<Health> {
    return await until(`setup of ${this.id.slice(0, 12)}`, async () => {
      const health = await this.health();
      return health === undefined || health.status === "STARTING" ? undefined : health;
    });
  }

  async predict(input: Readonly<Record<string, unknown>>): Promise<Prediction> {
    const response = await fetch(`${this.url}/predictions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ input }),
    });
    return Prediction.parse(await response.json());
  }

  logs(): Promise<string> {
    return logsOf(this.id);
  }

  /** Waits for the end of the process; its exit code. */
  async ended(): Promise<number> {
    return Number(await docker("wait", this.id));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await run(["docker", "rm", "--force", "--volumes", this.id]);
  }
}

async function logsOf(id: string): Promise<string> {
  const { out, err } = await run(["docker", "logs", id]);
  return out + err;
}
