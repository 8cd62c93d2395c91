/**
 * What we installed and when: the memory by which a broken file of ours (set aside and fetched again) is told from
 * somebody else's (reported, never touched).
 */
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { entryAt, writeAtomically } from "../platform/files.ts";
import { partialKey } from "./journal.ts";

const RecordSchema = z.object({
  v: z.literal(1),
  name: z.string(),
  destination: z.string(),
  sizeBytes: z.number(),
  sha256: z.string().nullable(),
  source: z.string(),
  /** Of the file as we published it: another inode is another file, put there by somebody else. */
  inode: z.number(),
  installedAt: z.string(),
});

export type InstallRecord = z.output<typeof RecordSchema>;

function recordPath(partialRoot: string, destination: string): string {
  return join(partialRoot, "installed", `${partialKey(destination)}.json`);
}

/** Remembers a file that now lies at its destination. */
export function remember(
  partialRoot: string,
  facts: Omit<InstallRecord, "v" | "inode" | "installedAt">,
): void {
  const record: InstallRecord = {
    v: 1,
    ...facts,
    inode: entryAt(facts.destination)?.ino ?? 0,
    installedAt: new Date().toISOString(),
  };
  writeAtomically(recordPath(partialRoot, facts.destination), `${JSON.stringify(record)}\n`);
}

/** What we know of having installed `destination`; undefined when that was not us. */
export function recall(partialRoot: string, destination: string): InstallRecord | undefined {
  try {
    const parsed = RecordSchema.safeParse(
      JSON.parse(readFileSync(recordPath(partialRoot, destination), "utf8")),
    );
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}

/** True when the very file that lies there is the one we put there. */
export function isOurs(partialRoot: string, destination: string): boolean {
  const record = recall(partialRoot, destination);
  return record !== undefined && entryAt(destination)?.ino === record.inode;
}

/** Forgets a file that was removed. */
export function forget(partialRoot: string, destination: string): void {
  rmSync(recordPath(partialRoot, destination), { force: true });
}

/** The names under which earlier broken versions of a file were set aside. */
export function setAsideNames(destination: string): string[] {
  const prefix = `${basename(destination)}.broken-`;
  try {
    return readdirSync(dirname(destination))
      .filter((name) => name.startsWith(prefix))
      .map((name) => join(dirname(destination), name));
  } catch {
    return [];
  }
}
