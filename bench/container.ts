/**
 * The image: size by layer, build cold and cached, and container start → first answer → READY, beside a minimal Python
 * Cog image that the cog CLI builds on the same machine. `bun bench/container.ts`; without a cog CLI only ours.
 * A smaller number is better everywhere; the ratios are ours ÷ theirs within this run.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openHost } from "../scripts/container-host.ts";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";

const OURS = "cog-comfyui-bench:embedded";
const THEIRS = "cog-comfyui-bench:python";
const ROUNDS = 8;
const POLL_MS = 5;
const START_LIMIT_MS = 60_000;

type Env = Readonly<Record<string, string | undefined>>;

async function run(command: readonly string[], env: Env, cwd = PROJECT_ROOT): Promise<string> {
  const child = Bun.spawn([...command], {
    cwd,
    env: { ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (code !== 0) {
    throw new Error(`${command.slice(0, 4).join(" ")} ended with ${code}: ${err.slice(-2000)}`);
  }
  return out.trim();
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return (performance.now() - began) / 1000;
}

function buildOurs(env: Env, ...more: string[]): Promise<string> {
  const script = ["scripts/container.ts", "build", "--target", "embedded", "--tag", OURS];
  return run([process.execPath, ...script, "--", ...more], env);
}

/** The smallest Python model there can be, by the book. */
async function buildTheirs(env: Env, cog: string, folder: string): Promise<void> {
  writeFileSync(
    join(folder, "cog.yaml"),
    'build:\n  python_version: "3.11"\nrun: "predict.py:Predictor"\n',
  );
  writeFileSync(
    join(folder, "predict.py"),
    [
      "from cog import BasePredictor, Input",
      "",
      "",
      "class Predictor(BasePredictor):",
      '    def run(self, text: str = Input(default="")) -> str:',
      "        return text",
      "",
    ].join("\n"),
  );
  await run([cog, "build", "-t", THEIRS, "--use-cog-base-image=false"], env, folder);
}

interface Start {
  readonly firstAnswerMs: number;
  readonly readyMs: number;
}

async function startOnce(image: string, env: Env): Promise<Start> {
  const began = performance.now();
  const id = await run(["docker", "run", "-d", "-p", "127.0.0.1::5000", image], env);
  try {
    const port = await run(["docker", "port", id, "5000/tcp"], env);
    const url = `http://${port.split("\n")[0]}/health-check`;
    let firstAnswerMs: number | undefined;
    while (performance.now() - began < START_LIMIT_MS) {
      const answer = await fetch(url).catch(() => undefined);
      const text = await answer?.text().catch(() => "");
      if (text !== undefined && text !== "") {
        firstAnswerMs ??= performance.now() - began;
        if (text.includes('"READY"')) {
          return { firstAnswerMs, readyMs: performance.now() - began };
        }
      }
      await Bun.sleep(POLL_MS);
    }
    throw new Error(`${image} was not READY within ${START_LIMIT_MS / 1000} s`);
  } finally {
    await run(["docker", "rm", "--force", "--volumes", id], env);
  }
}

/** Starts the images in turn, so that whatever else the machine does meets both; the best of each. */
async function starts(images: readonly string[], env: Env): Promise<Map<string, Start>> {
  const best = new Map<string, Start>();
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const image of images) {
      const now = await startOnce(image, env);
      const before = best.get(image) ?? now;
      best.set(image, {
        firstAnswerMs: Math.min(before.firstAnswerMs, now.firstAnswerMs),
        readyMs: Math.min(before.readyMs, now.readyMs),
      });
    }
  }
  return best;
}

async function sizeOf(image: string, env: Env): Promise<number> {
  return Number(await run(["docker", "image", "inspect", "-f", "{{.Size}}", image], env)) / 1e6;
}

async function memoryOf(image: string, env: Env): Promise<string> {
  const id = await run(["docker", "run", "-d", image], env);
  try {
    // Long enough for either to have finished its setup.
    await Bun.sleep(3_000);
    return await run(["docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", id], env);
  } finally {
    await run(["docker", "rm", "--force", id], env);
  }
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function compare(what: string, ours: number, theirs: number | undefined, unit: string): void {
  const ratio =
    theirs === undefined
      ? ""
      : `   Python Cog ${theirs.toFixed(1)} ${unit}   ratio ${(ours / theirs).toFixed(2)}`;
  print(`${what.padEnd(34)} ours ${ours.toFixed(1)} ${unit}${ratio}`);
}

async function main(): Promise<number> {
  const host = await openHost();
  if ("reason" in host) {
    print(`nothing measured: ${host.reason}`);
    return 0;
  }
  await using _ = host;
  const { env, cog } = host;
  const folder = mkdtempSync(join(tmpdir(), "cog-comfyui-bench-"));
  try {
    print(
      `build, nothing cached              ${(await seconds(() => buildOurs(env, "--no-cache"))).toFixed(1)} s`,
    );
    print(
      `build, unchanged                   ${(await seconds(() => buildOurs(env))).toFixed(1)} s`,
    );
    if (cog !== undefined) {
      await buildTheirs(env, cog, folder);
    }
    const has = cog !== undefined;
    compare("image", await sizeOf(OURS, env), has ? await sizeOf(THEIRS, env) : undefined, "MB");
    print("layers of ours, newest first:");
    const format = "{{.Size}}\t{{.CreatedBy}}";
    const history = await run(["docker", "history", "--format", format, OURS], env);
    for (const line of history.split("\n").filter((row) => !row.startsWith("0B"))) {
      print(`  ${line.slice(0, 100)}`);
    }
    const best = await starts(has ? [OURS, THEIRS] : [OURS], env);
    const [ours, theirs] = [best.get(OURS), best.get(THEIRS)];
    if (ours !== undefined) {
      compare("start to first health answer", ours.firstAnswerMs, theirs?.firstAnswerMs, "ms");
      compare("start to READY", ours.readyMs, theirs?.readyMs, "ms");
    }
    print(`memory when idle: ours ${await memoryOf(OURS, env)}`);
    if (has) {
      print(`memory when idle: Python Cog ${await memoryOf(THEIRS, env)}`);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return 0;
}

process.exitCode = await main();
