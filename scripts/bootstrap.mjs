// Brings the pinned Bun (package.json: packageManager) and the locked dependencies into this checkout, then
// replaces itself by that Bun running the given arguments. Plain JavaScript: it runs on Node >= 20 and on any Bun,
// before anything is installed. It starts the binary inside @oven/bun-<platform> itself, so it does not
// depend on npm running install scripts.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const version = manifest.packageManager.replace(/^bun@/, "");

/** True where the C library is musl (Alpine): its Bun is another package. */
function isMusl() {
  return (
    process.platform === "linux" &&
    existsSync(`/lib/ld-musl-${process.arch === "arm64" ? "aarch64" : "x86_64"}.so.1`)
  );
}

/** Bun's ordinary x64 build needs AVX2; older processors get the baseline build. */
function needsBaseline() {
  if (process.platform !== "linux" || process.arch !== "x64") {
    return false;
  }
  try {
    return !/\bavx2\b/.test(readFileSync("/proc/cpuinfo", "utf8"));
  } catch {
    return false;
  }
}

function bunPackage() {
  const os = { linux: "linux", darwin: "darwin", win32: "windows" }[process.platform];
  const cpu = { x64: "x64", arm64: "aarch64" }[process.arch];
  if (!os || !cpu) {
    fail(`Bun has no build for ${process.platform}/${process.arch}.`);
  }
  return `@oven/bun-${os}-${cpu}${isMusl() ? "-musl" : ""}${needsBaseline() ? "-baseline" : ""}`;
}

function fail(message) {
  process.stderr.write(`cog-comfyui-bun: ${message}\n`);
  process.exit(1);
}

function run(command, args, cwd, what) {
  // npm's progress goes to stderr: stdout belongs to the command that the user asked for.
  const done = spawnSync(command, args, {
    cwd,
    stdio: ["ignore", 2, 2],
    env: {
      ...process.env,
      npm_config_loglevel: "error",
      npm_config_update_notifier: "false",
      NODE_ENV: "",
    },
    shell: process.platform === "win32",
  });
  if (done.status !== 0) {
    fail(
      `could not install ${what}: \`${command} ${args.join(" ")}\` ended with ${done.status ?? done.error}.`,
    );
  }
}

/** The pinned Bun's path; installs it into .tools/ on the first call. */
function pinnedBun() {
  const name = bunPackage();
  const home = join(root, ".tools", `bun-${version}`);
  const binary = join(
    home,
    "node_modules",
    name,
    "bin",
    process.platform === "win32" ? "bun.exe" : "bun",
  );
  if (existsSync(binary)) {
    return binary;
  }
  if (globalThis.Bun?.version === version) {
    return process.execPath;
  }
  process.stderr.write(`Installing Bun ${version} into ${home} …\n`);
  rmSync(home, { recursive: true, force: true });
  mkdirSync(home, { recursive: true });
  writeFileSync(
    join(home, "package.json"),
    JSON.stringify({ private: true, dependencies: { [name]: version } }),
  );
  if (globalThis.Bun) {
    run(process.execPath, ["install", "--no-save"], home, `Bun ${version}`);
  } else {
    run(
      "npm",
      ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"],
      home,
      `Bun ${version}`,
    );
  }
  if (!existsSync(binary)) {
    fail(`${name}@${version} was installed but ${binary} is not there.`);
  }
  return binary;
}

/** Installs the locked dependencies unless the ones in node_modules were made from this very lock file. */
function installDependencies(bun) {
  const lock = createHash("sha256")
    .update(readFileSync(join(root, "bun.lock")))
    .update(`${process.platform}-${process.arch}`)
    .digest("hex");
  const stamp = join(root, "node_modules", ".cog-comfyui-lock");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === lock) {
    return;
  }
  process.stderr.write("Installing the locked dependencies …\n");
  run(bun, ["install", "--frozen-lockfile", "--ignore-scripts"], root, "the dependencies");
  writeFileSync(stamp, lock);
}

const bun = pinnedBun();
installDependencies(bun);

// A child rather than exec (Node has none): signals are passed on, the exit code is the child's.
const child = spawn(bun, process.argv.slice(2), { stdio: "inherit" });
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, () => child.kill(signal));
}
child.on("error", (error) => fail(`could not start ${bun}: ${error.message}`));
child.on("exit", (code, signal) =>
  process.exit(signal ? 128 + (constants.signals[signal] ?? 0) : code),
);
