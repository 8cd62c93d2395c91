/**
 * The private folder of an engine, and what a killed predecessor left of its own: its folder is removed, and its
 * ComfyUI, if it still runs, ended. Who owned a folder stands in it; folders of other machines are left alone.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { fileError, removeTree } from "../platform/files.ts";
import { startTicks } from "../platform/process-start.ts";

const PREFIX = "cog-comfyui-engine-";
const OWNER_FILE = "owner.json";
const ENGINE_FILE = "engine.json";

const Owner = z.object({ host: z.string(), pid: z.number(), started: z.string() });
const Launched = z.object({ pid: z.number() });

/** Makes an engine's folder below `workDir`. @throws ConfigError PATH_UNWRITABLE */
export function makeWorkFolder(workDir: string): string {
  try {
    mkdirSync(workDir, { recursive: true });
    const root = mkdtempSync(join(workDir, PREFIX));
    const owner = { host: hostname(), pid: process.pid, started: startTicks(process.pid) ?? "" };
    writeFileSync(join(root, OWNER_FILE), JSON.stringify(owner));
    return root;
  } catch (error) {
    throw fileError(error, workDir, "make a folder for ComfyUI in");
  }
}

/** Notes the process that works in a folder. */
export function noteProcess(root: string, pid: number): void {
  writeFileSync(join(root, ENGINE_FILE), JSON.stringify({ pid }));
}

/** Ends and removes what owners that are gone have left. @returns how many folders */
export function sweepWorkFolders(workDir: string): number {
  const folders = list(workDir).filter((name) => name.startsWith(PREFIX));
  const left = folders.map((name) => join(workDir, name)).filter(isOrphan);
  for (const root of left) {
    endEngine(root);
    removeTree(root);
  }
  return left.length;
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    // Not there yet: nothing was left in it.
    return [];
  }
}

function isOrphan(root: string): boolean {
  const owner = read(join(root, OWNER_FILE), Owner);
  // A process id says nothing on another machine, or in another container.
  return (
    owner !== undefined && owner.host === hostname() && startTicks(owner.pid) !== owner.started
  );
}

function endEngine(root: string): void {
  const launched = read(join(root, ENGINE_FILE), Launched);
  // The number may belong to somebody else by now: only a process that was started on this folder is ours.
  if (launched !== undefined && commandOf(launched.pid).includes(root)) {
    try {
      process.kill(-launched.pid, "SIGKILL");
    } catch {
      // It ended in between.
    }
  }
}

function read<T>(file: string, schema: z.ZodType<T>): T | undefined {
  try {
    return schema.safeParse(JSON.parse(readFileSync(file, "utf8"))).data;
  } catch {
    // No such file, or a half written one: no claim.
    return undefined;
  }
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return "";
  }
}
