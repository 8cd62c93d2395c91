/**
 * What the container checks run on: a Docker engine (the one that runs here, or one brought into .tools/container
 * where that can be had), the base images, and the cog CLI if there is one. Says why where something is missing.
 */
import { existsSync, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";

/** Ignored by git and docker; kept between runs, so that only the first one downloads. */
const HOME = join(PROJECT_ROOT, ".tools/container");
const ENGINE = join(PROJECT_ROOT, "scripts/container-engine.sh");
const BASES = join(PROJECT_ROOT, "scripts/container-bases.sh");

export interface ContainerHost extends AsyncDisposable {
  /** The environment in which `docker` and `cog` reach this engine. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Path of the cog CLI. */
  readonly cog: string | undefined;
}

type Env = Readonly<Record<string, string | undefined>>;

/** Runs a command to its end; its output goes to standard error unless `isQuiet`. */
async function succeeds(command: readonly string[], env: Env, isQuiet: boolean): Promise<boolean> {
  const output = isQuiet ? "ignore" : 2;
  const child = Bun.spawn([...command], {
    cwd: PROJECT_ROOT,
    env: { ...env },
    stdio: ["ignore", output, output],
  });
  return (await child.exited) === 0;
}

function isRunning(env: Env): Promise<boolean> {
  return Bun.which("docker", { PATH: env["PATH"] ?? "" }) === null
    ? Promise.resolve(false)
    : succeeds(["docker", "info"], env, true);
}

/** Why no engine can be brought here, or undefined where one can. */
function whyNoEngine(): string | undefined {
  if (process.platform !== "linux" || process.getuid?.() !== 0) {
    return "no Docker engine answers, and bringing one needs root on Linux; start Docker, or set DOCKER_HOST";
  }
  const release = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
  if (
    !/^VERSION_CODENAME=(bookworm|trixie)$/m.test(release) ||
    !existsSync("/etc/apt/sources.list.d/debian.sources")
  ) {
    return "no Docker engine answers, and one can be brought only to Debian 12 or 13; start Docker, or set DOCKER_HOST";
  }
  return undefined;
}

/** The environment of an engine of our own. Its clients come last on PATH: what the machine has goes first. */
function ownEnv(): Env {
  return {
    ...process.env,
    DOCKER_HOST: `unix://${HOME}/docker.sock`,
    DOCKER_CONFIG: join(HOME, "config"),
    PATH: [process.env["PATH"] ?? "", join(HOME, "root/usr/bin")].join(delimiter),
  };
}

async function makeBases(env: Env, kind: "product" | "cog"): Promise<boolean> {
  return await succeeds(["bash", BASES, HOME, process.execPath, kind], env, false);
}

/** Why the container checks can't run here. */
interface NoHost {
  readonly reason: string;
}

/** Finds the engine, or brings one. */
export async function openHost(): Promise<ContainerHost | NoHost> {
  const cog = process.env["COG_CLI"] ?? Bun.which("cog") ?? undefined;
  if (await isRunning(process.env)) {
    return { env: process.env, cog, [Symbol.asyncDispose]: () => Promise.resolve() };
  }
  const reason = whyNoEngine();
  if (reason !== undefined) {
    return { reason };
  }
  const env = ownEnv();
  const wasRunning = await isRunning(env);
  process.stderr.write(`No Docker engine answers; using one of our own in ${HOME} …\n`);
  if (!(wasRunning || (await succeeds(["bash", ENGINE, HOME, "start"], env, false)))) {
    return {
      reason: "a Docker engine was brought but did not start; see .tools/container/dockerd.log",
    };
  }
  const stop = async (): Promise<void> => {
    if (!wasRunning) {
      await succeeds(["bash", ENGINE, HOME, "stop"], env, false);
    }
  };
  if (!(await makeBases(env, "product"))) {
    await stop();
    return { reason: "the base images could not be made from Debian's packages" };
  }
  const hasCogBases = cog !== undefined && (await makeBases(env, "cog"));
  return { env, cog: hasCogBases ? cog : undefined, [Symbol.asyncDispose]: stop };
}
