/**
 * How each kind of engine is started: the command, and a table of the arguments we give it. Arguments are a list, never
 * a shell line; one that this version of ComfyUI doesn't know is left out (an unknown flag ends it at once).
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, EngineError, messageOf } from "../platform/errors.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import type { EngineDirs } from "../workflow/engine-files.ts";

/** Something that can be started as ComfyUI. */
export interface Installation {
  readonly kind: "real" | "embedded";
  /** Program and first arguments. */
  readonly command: readonly string[];
  readonly cwd: string;
}

/** Folders of one engine process. All of them are ours alone. */
export interface LaunchFolders {
  readonly dirs: EngineDirs;
  /** What `--temp-directory` takes: ComfyUI appends `/temp` by itself. */
  readonly tempBase: string;
  readonly user: string;
  readonly database: string;
  /** An empty folder: the web page is not served, and the package with it not needed. */
  readonly emptyFrontEnd: string;
  readonly extraModelPaths: readonly string[];
}

export interface LaunchContext {
  readonly port: number;
  readonly folders: LaunchFolders;
  /** From `COMFYUI_ARGS`. */
  readonly userArguments: readonly string[];
}

interface ArgumentRow {
  readonly flag: string;
  readonly values: (context: LaunchContext) => readonly string[];
  /** The engine can't be driven without it; any other is left out where it is unknown. */
  readonly needed?: boolean;
}

const NONE = (): readonly string[] => [];

const ARGUMENTS: readonly ArgumentRow[] = [
  { flag: "--listen", values: () => ["127.0.0.1"], needed: true },
  { flag: "--port", values: ({ port }) => [String(port)], needed: true },
  { flag: "--input-directory", values: ({ folders }) => [folders.dirs.input], needed: true },
  { flag: "--output-directory", values: ({ folders }) => [folders.dirs.output], needed: true },
  { flag: "--temp-directory", values: ({ folders }) => [folders.tempBase], needed: true },
  { flag: "--user-directory", values: ({ folders }) => [folders.user] },
  { flag: "--database-url", values: ({ folders }) => [`sqlite:///${folders.database}`] },
  { flag: "--extra-model-paths-config", values: ({ folders }) => folders.extraModelPaths },
  { flag: "--front-end-root", values: ({ folders }) => [folders.emptyFrontEnd] },
  { flag: "--disable-auto-launch", values: NONE },
  // Paid remote nodes: slower start, calls home.
  { flag: "--disable-api-nodes", values: NONE },
];

/** What we choose, so that the operator's arguments can't. */
const OWNED = new Set(ARGUMENTS.filter((row) => row.needed === true).map((row) => row.flag));

/**
 * The arguments for one start. `known` are the flags this installation has; undefined: all.
 * @throws ConfigError for an argument of the operator that we choose ourselves
 */
export function launchArguments(
  context: LaunchContext,
  known: ReadonlySet<string> | undefined,
): string[] {
  const given = new Set(context.userArguments.map((argument) => argument.split("=")[0] ?? ""));
  for (const flag of given) {
    if (OWNED.has(flag)) {
      throw new ConfigError("CONFIG_INVALID", `COMFYUI_ARGS holds ${flag}, which is chosen here`, {
        hint: `Remove ${flag} from COMFYUI_ARGS.`,
      });
    }
  }
  const ours = ARGUMENTS.filter(
    ({ flag, needed }) =>
      !given.has(flag) && (needed === true || known === undefined || known.has(flag)),
  ).flatMap((row) => {
    const values = row.values(context);
    return row.values !== NONE && values.length === 0 ? [] : [row.flag, ...values];
  });
  return [...ours, ...context.userArguments];
}

/** The built-in engine, run by the Bun that runs us. */
export function embeddedInstallation(): Installation {
  return {
    kind: "embedded",
    command: [process.execPath, join(PROJECT_ROOT, "src/comfy/embedded/main.ts")],
    cwd: PROJECT_ROOT,
  };
}

/**
 * The ComfyUI in a folder, with the Python beside it unless one is given.
 * @throws EngineError ENGINE_UNAVAILABLE when it is not there
 */
export function realInstallation(path: string, python: string | undefined): Installation {
  if (!existsSync(join(path, "main.py"))) {
    throw new EngineError("ENGINE_UNAVAILABLE", `There is no ComfyUI in ${path}: no main.py`, {
      hint: "Set COMFYUI_PATH to the folder of a ComfyUI, or COMFYUI_ENGINE=embedded.",
    });
  }
  const own = [".venv", "venv"]
    .map((name) => join(path, name, "bin/python"))
    .find((candidate) => existsSync(candidate));
  return { kind: "real", command: [python ?? own ?? "python3", "main.py"], cwd: path };
}

/** Reading the flags takes Python 0.1 s; a cold disk takes longer, a hung interpreter for ever. */
const HELP_TIMEOUT_MS = 60_000;

/**
 * The flags that an installation knows, by its `--help` (which needs no torch).
 * @throws EngineError ENGINE_UNAVAILABLE when it can't be run
 */
export async function probeFlags(
  installation: Installation,
  env: Readonly<Record<string, string>>,
): Promise<ReadonlySet<string>> {
  let text: string;
  try {
    const child = Bun.spawn([...installation.command, "--help"], {
      cwd: installation.cwd,
      env: { ...env },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: HELP_TIMEOUT_MS,
    });
    const [out, err, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    if (code !== 0) {
      throw new EngineError("ENGINE_UNAVAILABLE", `it ends with exit code ${code}: ${tail(err)}`);
    }
    text = out;
  } catch (cause) {
    const command = [...installation.command, "--help"].join(" ");
    throw new EngineError(
      "ENGINE_UNAVAILABLE",
      `ComfyUI can't be run (${command} in ${installation.cwd}): ${messageOf(cause)}`,
      { cause, hint: "Set COMFYUI_PYTHON to the Python that has ComfyUI's requirements." },
    );
  }
  return new Set(text.match(/--[a-z][a-z0-9-]+/g) ?? []);
}

function tail(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
