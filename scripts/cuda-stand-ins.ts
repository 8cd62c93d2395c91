/**
 * Makes the ordinary torch wheel importable without the 2.7 GB of CUDA wheels it is linked against: small libraries that
 * carry the names and versions it asks for and answer "no device" (100) to every call. On a CPU nothing else is ever
 * called. Needs gcc, nm and readelf.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const CUDA_LIBRARY = /^lib(cu|nccl|nv)/;
/** Names of CUDA's own functions, for those that are asked for without a version. */
const CUDA_FUNCTION =
  /^(__cuda|cuda|cublas|cufft|curand|cusparse|cusolver|cudnn|nccl|nvrtc|nvJitLink|nvshmem|nvjpeg|cupti|cuFile|cu[A-Z])/;
/** cudaErrorNoDevice. */
const NO_DEVICE = 100;

interface Wanted {
  readonly libraries: Set<string>;
  /** Version name → library that must define it. */
  readonly owners: Map<string, string>;
  /** `name@version`, or `name` alone. */
  readonly undefinedSymbols: Set<string>;
  readonly defined: Set<string>;
}

function run(...command: readonly string[]): string {
  const { stdout, stderr, exitCode } = Bun.spawnSync([...command]);
  if (exitCode !== 0) {
    throw new Error(`${command.join(" ")} failed: ${stderr.toString()}`);
  }
  return stdout.toString();
}

function readLibrary(path: string, wanted: Wanted): void {
  for (const [, name = ""] of run("readelf", "-W", "-d", path).matchAll(/NEEDED\).*\[(.+?)\]/g)) {
    if (CUDA_LIBRARY.test(name)) {
      wanted.libraries.add(name);
    }
  }
  let library: string | undefined;
  for (const line of run("readelf", "-W", "-V", path).split("\n")) {
    library = /File: (\S+)/.exec(line)?.[1] ?? library;
    const version = /Name: (\S+)\s+Flags/.exec(line)?.[1];
    if (version !== undefined && library !== undefined) {
      wanted.owners.set(version, library);
    }
  }
  for (const line of run("nm", "-D", path).split("\n")) {
    const [kind, name] = line.trim().split(/\s+/).slice(-2);
    if (kind === "U" || kind === "w") {
      wanted.undefinedSymbols.add((name ?? "").replace("@@", "@"));
    } else if (name !== undefined) {
      wanted.defined.add(name.split("@")[0] ?? "");
    }
  }
}

/** Which symbols each missing library must have, by version (`""`: none). */
function assign(wanted: Wanted, missing: readonly string[]): Map<string, Map<string, string[]>> {
  const plan = new Map(missing.map((name) => [name, new Map<string, string[]>()]));
  const put = (library: string | undefined, version: string, symbol?: string): void => {
    const versions = library === undefined ? undefined : plan.get(library);
    if (versions !== undefined) {
      versions.set(version, [
        ...(versions.get(version) ?? []),
        ...(symbol === undefined ? [] : [symbol]),
      ]);
    }
  };
  // A version must exist even where no symbol of it is used.
  for (const [version, library] of wanted.owners) {
    put(library, version);
  }
  // The plain one: wheels also bundle copies of their own under longer names.
  const runtime = missing.find((name) => name.startsWith("libcudart.so")) ?? missing[0];
  for (const one of [...wanted.undefinedSymbols].sort()) {
    const [symbol = "", version = ""] = one.split("@");
    if (wanted.defined.has(symbol)) {
      continue;
    }
    if (version !== "") {
      put(wanted.owners.get(version), version, symbol);
    } else if (CUDA_FUNCTION.test(symbol)) {
      put(runtime, "", symbol);
    }
  }
  return plan;
}

function compile(
  library: string,
  versions: ReadonlyMap<string, readonly string[]>,
  target: string,
): void {
  const folder = mkdtempSync(join(tmpdir(), "stand-in-"));
  try {
    const symbols = [...new Set([...versions.values()].flat())];
    const aliases = symbols.map(
      (name) => `long ${name}(void) __attribute__((alias("no_device")));`,
    );
    writeFileSync(
      join(folder, "code.c"),
      `long no_device(void) { return ${NO_DEVICE}; }\n${aliases.join("\n")}\n`,
    );
    const nodes = [...versions]
      .filter(([version]) => version !== "")
      .map(
        ([version, names]) =>
          `${version} { global: ${names.map((name) => `${name};`).join(" ")} };`,
      );
    writeFileSync(join(folder, "versions.map"), `${nodes.join("\n")}\n`);
    const script =
      nodes.length === 0 ? [] : [`-Wl,--version-script=${join(folder, "versions.map")}`];
    run(
      "gcc",
      "-w",
      "-shared",
      "-fPIC",
      "-fno-builtin",
      ...script,
      `-Wl,-soname,${library}`,
      "-o",
      target,
      join(folder, "code.c"),
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Writes the stand-ins beside torch's own libraries. @returns their names */
export function writeCudaStandIns(sitePackages: string): readonly string[] {
  const wanted: Wanted = {
    libraries: new Set(),
    owners: new Map(),
    undefinedSymbols: new Set(),
    defined: new Set(),
  };
  for (const pattern of ["torch/lib/*.so*", "torchaudio/**/*.so", "torchvision/**/*.so"]) {
    for (const name of new Bun.Glob(pattern).scanSync(sitePackages)) {
      readLibrary(join(sitePackages, name), wanted);
    }
  }
  const folder = join(sitePackages, "torch/lib");
  const missing = [...wanted.libraries].filter((name) => !existsSync(join(folder, name))).sort();
  for (const [library, versions] of assign(wanted, missing)) {
    compile(library, versions, join(folder, library));
  }
  return missing;
}
