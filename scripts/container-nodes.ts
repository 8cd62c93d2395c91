/**
 * Installs the custom node packs of one list of custom_nodes.json at their pinned commits, with their Python
 * requirements; run while the image is built. It stands alone (no dependency is installed there).
 */
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { parseArgs } from "node:util";

interface Pack {
  readonly repo: string;
  readonly commit: string;
}

interface Request {
  /** Path of custom_nodes.json. */
  readonly file: string;
  /** Name of a list in it. */
  readonly list: string;
  /** ComfyUI's custom_nodes folder. */
  readonly into: string;
  /** The environment's pip; without it no requirements are installed. */
  readonly pip: string | undefined;
  readonly constraints: string | undefined;
}

class NodesError extends Error {}

function isPack(value: unknown): value is Pack {
  return (
    typeof value === "object" &&
    value !== null &&
    "repo" in value &&
    typeof value.repo === "string" &&
    "commit" in value &&
    typeof value.commit === "string" &&
    /^[0-9a-f]{7,40}$/.test(value.commit)
  );
}

/** The packs of a list. A plain array, as cog-comfyui's file is, is the list `default`. */
export function packsOf(document: unknown, list: string): readonly Pack[] {
  const lists =
    Array.isArray(document) || typeof document !== "object" || document === null
      ? { default: document }
      : document;
  const found = new Map(Object.entries(lists)).get(list);
  if (found === undefined) {
    throw new NodesError(
      `custom_nodes.json has no list "${list}"; it has: ${Object.keys(lists).join(", ")}. Set NODES to one of these.`,
    );
  }
  const wrong = Array.isArray(found) ? found.find((row) => !isPack(row)) : found;
  if (!(Array.isArray(found) && found.every(isPack))) {
    throw new NodesError(
      `custom_nodes.json, list "${list}": every row needs "repo" and a "commit" of 7 to 40 hex digits; this has not: ${JSON.stringify(wrong)}.`,
    );
  }
  return found;
}

async function run(command: readonly string[], cwd: string): Promise<void> {
  const child = Bun.spawn([...command], { cwd, stdio: ["ignore", "inherit", "inherit"] });
  const code = await child.exited;
  if (code !== 0) {
    throw new NodesError(`\`${command.join(" ")}\` ended with ${code}.`);
  }
}

async function installPack(pack: Pack, request: Request): Promise<void> {
  const folder = join(request.into, basename(pack.repo).replace(/\.git$/, ""));
  await run(
    ["git", "clone", "-q", "--filter=blob:none", "--no-checkout", pack.repo, folder],
    request.into,
  );
  await run(["git", "-c", "advice.detachedHead=false", "checkout", "-q", pack.commit], folder);
  await run(["git", "submodule", "update", "-q", "--init", "--recursive", "--depth", "1"], folder);
  rmSync(join(folder, ".git"), { recursive: true });
  const requirements = join(folder, "requirements.txt");
  if (request.pip !== undefined && existsSync(requirements)) {
    const limits = request.constraints === undefined ? [] : ["-c", request.constraints];
    await run([request.pip, "install", "--no-compile", ...limits, "-r", requirements], ".");
  }
}

/** Installs every pack of the list, in its order; the first one that fails ends it, by name. */
async function installNodes(request: Request): Promise<number> {
  const packs = packsOf(JSON.parse(readFileSync(request.file, "utf8")), request.list);
  mkdirSync(request.into, { recursive: true });
  for (const pack of packs) {
    process.stderr.write(`${pack.repo} at ${pack.commit}\n`);
    try {
      await installPack(pack, request);
    } catch (error) {
      throw new NodesError(
        `Custom nodes ${pack.repo} at ${pack.commit} could not be installed: ${String(error)}`,
        {
          cause: error,
        },
      );
    }
  }
  return packs.length;
}

if (import.meta.main) {
  const text = { type: "string" } as const;
  const { values } = parseArgs({
    options: { file: text, list: text, into: text, pip: text, constraints: text },
  });
  try {
    const count = await installNodes({
      file: values.file ?? "custom_nodes.json",
      list: values.list ?? "default",
      into: resolve(values.into ?? "custom_nodes"),
      pip: values.pip,
      constraints: values.constraints,
    });
    process.stderr.write(`custom nodes: ${count} packs of the list "${values.list}"\n`);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  }
}
