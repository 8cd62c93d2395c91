/** Which node pack brings a class that isn't ComfyUI's own: as the file itself says, else by a committed table of facts. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { PROJECT_ROOT } from "../platform/project-root.ts";
import type { NodePack } from "./graph.ts";

/** A pack, as a report names it. */
export const PackFacts = z.object({
  name: z.string().describe("owner/repository, else its id in ComfyUI's registry"),
  repo: z.string().optional().describe("Address of its repository"),
  commit: z.string().optional().describe("The commit to take"),
  version: z.string().optional().describe("What the workflow was made with"),
  toldBy: z.enum(["workflow", "table"]),
});
export type PackFacts = z.infer<typeof PackFacts>;

const Table = z.record(
  z.string(),
  z.object({
    commit: z.string().optional(),
    pattern: z.string().optional(),
    classes: z.array(z.string()),
  }),
);

interface Tables {
  readonly commits: ReadonlyMap<string, string | undefined>;
  readonly byClass: ReadonlyMap<string, string>;
  readonly byFolder: ReadonlyMap<string, string>;
  readonly patterns: readonly (readonly [RegExp, string])[];
}

let tables: Tables | undefined;

/** Read once, when a class is unknown for the first time. */
function readTables(): Tables {
  const text = readFileSync(join(PROJECT_ROOT, "src/workflow/node-packs.json"), "utf8");
  const packs = Object.entries(Table.parse(JSON.parse(text)));
  return {
    commits: new Map(packs.map(([repo, { commit }]) => [repo, commit])),
    byClass: new Map(packs.flatMap(([repo, { classes }]) => classes.map((name) => [name, repo]))),
    byFolder: new Map(packs.map(([repo]) => [folderKey(repo), repo])),
    patterns: packs.flatMap(([repo, { pattern }]) =>
      pattern === undefined ? [] : [[new RegExp(pattern), repo] as const],
    ),
  };
}

/** What names of a pack have in common: the folder it is cloned into, its repository, its id in the registry. */
export function folderKey(name: string): string {
  const last = name.slice(name.lastIndexOf("/") + 1);
  return last
    .toLowerCase()
    .replace(/\.(git|py|disabled)$/, "")
    .replaceAll(/[_. ]/g, "-");
}

const COMMIT = /^[0-9a-f]{7,40}$/;
const REPOSITORY = /^[\w.-]+\/[\w.-]+$/;

/** The pack of a class; `declared` is what the workflow's file says. Undefined where nobody knows. */
export function packOfClass(
  classType: string,
  declared: NodePack | undefined,
): PackFacts | undefined {
  tables ??= readTables();
  if (declared !== undefined) {
    return declaredPack(declared, tables);
  }
  const repo =
    tables.byClass.get(classType) ??
    tables.patterns.find(([pattern]) => pattern.test(classType))?.[1];
  return repo === undefined ? undefined : withCommit(repo, { toldBy: "table" }, tables);
}

function declaredPack(declared: NodePack, known: Tables): PackFacts | undefined {
  const { cnrId, auxId, version } = declared;
  const told = { toldBy: "workflow" as const, ...(version === undefined ? {} : { version }) };
  const repo =
    auxId !== undefined && REPOSITORY.test(auxId)
      ? auxId
      : known.byFolder.get(folderKey(cnrId ?? ""));
  if (repo !== undefined) {
    return withCommit(repo, told, known);
  }
  const name = cnrId ?? auxId;
  return name === undefined ? undefined : { name, ...told };
}

/** The commit that the workflow was made with goes before the one that custom_nodes.json pins. */
function withCommit(
  repo: string,
  told: Pick<PackFacts, "toldBy" | "version">,
  known: Tables,
): PackFacts {
  const commit =
    told.version !== undefined && COMMIT.test(told.version)
      ? told.version
      : known.commits.get(repo);
  return {
    name: repo,
    repo: `https://github.com/${repo}`,
    ...(commit === undefined ? {} : { commit }),
    ...told,
  };
}

/** The row of custom_nodes.json that adds a pack; where no commit is known, one has to be chosen. */
export function customNodesRow({ repo, commit }: PackFacts): string | undefined {
  return repo === undefined
    ? undefined
    : `{ "repo": "${repo}", "commit": "${commit ?? "<commit>"}" }`;
}
