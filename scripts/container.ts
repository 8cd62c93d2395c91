/**
 * The image's workbench: `build` makes it with all its labels, `trial` makes a copy of the project that builds
 * without GPU and ComfyUI, `test` runs the container suite on whatever engine can be had (`npm run test:container`).
 */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { z } from "zod";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { openHost } from "./container-host.ts";
import { trialCogYaml, trialDockerfile } from "./container-trial.ts";

const USAGE = `usage: bin/with-bun scripts/container.ts <command>
  build [--target gpu|embedded] [--tag NAME] [-- ARGS OF docker build]
  trial FOLDER       a copy of the project's files there, on the embedded engine, as a git repository
  test [FILES AND ARGS OF bun test]
`;

const Package = z.object({ name: z.string(), version: z.string() });

async function textOf(command: readonly string[]): Promise<string> {
  const child = Bun.spawn([...command], { cwd: PROJECT_ROOT, stdio: ["ignore", "pipe", 2] });
  const text = await new Response(child.stdout).text();
  if ((await child.exited) !== 0) {
    throw new Error(`\`${command.join(" ")}\` failed`);
  }
  return text.trimEnd();
}

async function run(
  command: readonly string[],
  env: Readonly<Record<string, string | undefined>> = process.env,
): Promise<number> {
  const child = Bun.spawn([...command], {
    cwd: PROJECT_ROOT,
    env: { ...env },
    stdio: ["ignore", "inherit", "inherit"],
  });
  return await child.exited;
}

/** The arguments of `docker build` that a plain one can't know: schema, version, commit. */
async function labelArguments(): Promise<string[]> {
  const { version } = Package.parse(
    JSON.parse(readFileSync(join(PROJECT_ROOT, "package.json"), "utf8")),
  );
  const schema = await textOf([process.execPath, "scripts/signature.ts", "--openapi"]);
  const revision = await textOf(["git", "rev-parse", "HEAD"]).catch(() => "");
  const values = [`OPENAPI_SCHEMA=${schema}`, `VERSION=${version}`, `REVISION=${revision}`];
  return values.flatMap((value) => ["--build-arg", value]);
}

async function build(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      target: { type: "string", default: "gpu" },
      tag: { type: "string", default: "cog-comfyui" },
    },
  });
  const chosen = ["--target", values.target, "--tag", values.tag];
  return await run([
    "docker",
    "build",
    ...chosen,
    ...(await labelArguments()),
    ...positionals,
    ".",
  ]);
}

/** Copies every file that git knows or would add, with the trial forms of the two that name the real engine. */
async function trial(target: string | undefined): Promise<number> {
  if (target === undefined) {
    process.stderr.write(USAGE);
    return 2;
  }
  const folder = resolve(target);
  const files = await textOf([
    "git",
    "ls-files",
    "--cached",
    "--others",
    "--exclude-standard",
    "--deduplicate",
  ]);
  for (const file of files.split("\n")) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    cpSync(join(PROJECT_ROOT, file), join(folder, file));
  }
  for (const [file, change] of [
    ["cog.yaml", trialCogYaml],
    ["Dockerfile", trialDockerfile],
  ] as const) {
    const path = join(folder, file);
    writeFileSync(path, change(readFileSync(path, "utf8")));
  }
  const git = ["git", "-C", folder, "-c", "user.name=trial", "-c", "user.email=trial@localhost"];
  await textOf([...git, "init", "--quiet"]);
  await textOf([...git, "add", "--all"]);
  await textOf([...git, "commit", "--quiet", "--message", "trial copy"]);
  return 0;
}

async function test(args: readonly string[]): Promise<number> {
  const found = await openHost();
  if ("reason" in found) {
    process.stdout.write(
      `skipped: the container suite: ${found.reason}\n0 passed, 0 failed, 1 skipped\n`,
    );
    return 0;
  }
  await using host = found;
  const isChosen = args.some((argument) => argument.endsWith(".long.test.ts"));
  const files = isChosen
    ? []
    : [...new Bun.Glob("test/container/*.long.test.ts").scanSync(PROJECT_ROOT)].sort();
  const env = {
    ...host.env,
    CONTAINER_TESTS: "1",
    ...(host.cog === undefined ? {} : { COG_CLI: host.cog }),
  };
  return await run(
    [process.execPath, "scripts/test.ts", "--long", ...args, ...files.map((file) => `./${file}`)],
    env,
  );
}

const [command, ...rest] = process.argv.slice(2);
switch (command) {
  case "build":
    process.exitCode = await build(rest);
    break;
  case "trial":
    process.exitCode = await trial(rest[0]);
    break;
  case "test":
    process.exitCode = await test(rest);
    break;
  default:
    process.stderr.write(USAGE);
    process.exitCode = 2;
}
