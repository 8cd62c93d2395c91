/**
 * `npm run test:real`: the contract and the real-weights runs on a real ComfyUI, on a CPU. COMFYUI_PATH names its source
 * tree, which stays as it is; the Python environment is made from PyPI in `.tools/real-python` (0.8 GB, some minutes,
 * once), unless COMFYUI_PYTHON names one. Without COMFYUI_PATH there is nothing to test: it says so and succeeds.
 *
 * torch is pinned: its newest wheels no longer fit torchaudio's, which ComfyUI imports unconditionally.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { writeCudaStandIns } from "./cuda-stand-ins.ts";

const TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"];
/** Packages whose declared dependencies would bring a second torch, or what runs without. */
const WITHOUT_DEPENDENCIES = [
  "torchsde==0.2.6",
  "trampoline==0.1.2",
  "spandrel==0.4.2",
  "kornia==0.9.0",
  "kornia_rs==0.2.0",
];
/** What torch would have brought, and what older versions import without asking for it. */
const OF_TORCH = [
  "filelock",
  "typing-extensions",
  "sympy",
  "networkx",
  "jinja2",
  "fsspec",
  "setuptools",
  "requests",
];
/** Not needed without a page, or installed above. */
const LEFT_OUT =
  /^(torch|torchvision|torchaudio|torchsde|comfyui-workflow-templates|comfyui-embedded-docs|comfyui-frontend-package|comfy-angle|PyOpenGL|spandrel|kornia)\b/;
const SUITES = [
  "./test/contract/real-media.long.test.ts",
  "./test/contract/comfy-real.long.test.ts",
  "./test/contract/real-weights.long.test.ts",
];

const environment = join(PROJECT_ROOT, ".tools/real-python");
const python = join(environment, "bin/python");

function run(...command: readonly string[]): void {
  console.log(`$ ${command.map((part) => part.replace(`${PROJECT_ROOT}/`, "")).join(" ")}`);
  const { exitCode } = Bun.spawnSync([...command], { stdio: ["ignore", "inherit", "inherit"] });
  if (exitCode !== 0) {
    throw new Error(`${command[0]} ended with ${exitCode}`);
  }
}

function output(...command: readonly string[]): string | undefined {
  try {
    const { stdout, exitCode } = Bun.spawnSync([...command], { stderr: "ignore" });
    return exitCode === 0 ? stdout.toString().trim() : undefined;
  } catch {
    // No such program.
    return undefined;
  }
}

/** The newest Python that these wheels exist for. */
function findPython(): string {
  const candidates = ["python3.12", "python3.13", "python3.11", "python3.10", "python3"];
  const version = "import sys; print('%d.%d' % sys.version_info[:2])";
  const found = candidates.find((name) => /^3\.1[0-3]$/.test(output(name, "-c", version) ?? ""));
  if (found === undefined) {
    throw new Error("No Python from 3.10 to 3.13 is on PATH; ComfyUI needs one.");
  }
  return found;
}

function requirements(comfyPath: string): string[] {
  return readFileSync(join(comfyPath, "requirements.txt"), "utf8")
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#") && !LEFT_OUT.test(line));
}

function prepare(comfyPath: string): void {
  const wanted = requirements(comfyPath);
  const stamp = JSON.stringify([TORCH, WITHOUT_DEPENDENCIES, OF_TORCH, wanted]);
  const stampFile = join(environment, "prepared.json");
  if (existsSync(stampFile) && readFileSync(stampFile, "utf8") === stamp) {
    return;
  }
  for (const tool of ["gcc", "nm", "readelf"]) {
    if (output(tool, "--version") === undefined) {
      throw new Error(`${tool} is missing (Debian: apt-get install gcc binutils).`);
    }
  }
  rmSync(environment, { recursive: true, force: true });
  run(findPython(), "-m", "venv", environment);
  const install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
  run(...install, "--no-deps", ...TORCH);
  const site = output(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])");
  const standIns = writeCudaStandIns(site ?? "");
  console.log(`${standIns.length} stand-ins for CUDA libraries`);
  // pip complains about the CUDA wheels that are missing on purpose.
  run(...install, ...wanted, ...OF_TORCH);
  run(...install, "--no-deps", ...WITHOUT_DEPENDENCIES);
  run(python, "-c", "import torch, torchvision, torchaudio; print('torch', torch.__version__)");
  writeFileSync(stampFile, stamp);
}

const given = process.env["COMFYUI_PATH"];
if (given === undefined || given === "") {
  console.log("0 passed, 0 failed, 1 skipped: COMFYUI_PATH does not name a ComfyUI source tree");
} else {
  const comfyPath = resolve(PROJECT_ROOT, given);
  if (process.env["COMFYUI_PYTHON"] === undefined) {
    prepare(comfyPath);
  }
  const child = Bun.spawn(
    [process.execPath, join(PROJECT_ROOT, "scripts/test.ts"), "--long", ...SUITES],
    {
      cwd: PROJECT_ROOT,
      env: {
        ...process.env,
        COMFYUI_PATH: comfyPath,
        COMFYUI_PYTHON: process.env["COMFYUI_PYTHON"] ?? python,
      },
      stdio: ["ignore", "inherit", "inherit"],
    },
  );
  process.exitCode = await child.exited;
}
