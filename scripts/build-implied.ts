/**
 * Builds src/weights/implied-weights.json from the facts beside the checkout (../shared/cases). The result is
 * committed; run this only when the facts change: `bun scripts/build-implied.ts`.
 */
import { join, resolve } from "node:path";
import { z } from "zod";

const CASES = resolve(import.meta.dir, "../../shared/cases");
const TARGET = resolve(import.meta.dir, "../src/weights/implied-weights.json");

const Condition = z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]));
const FactWeight = z.object({
  name: z.string(),
  path: z.string().optional(),
  url: z.string().optional(),
  url_candidates: z.array(z.string()).optional(),
  sha256: z.string().optional(),
  size_bytes: z.number().optional(),
  match: z.string().optional(),
  alt_path: z.string().optional(),
  kind: z.string().optional(),
  hf_repo: z.string().optional(),
  files: z.array(z.string()).optional(),
  file_facts: z.record(z.string(), z.object({ size_bytes: z.number().optional() })).optional(),
});
const FactRow = z.object({
  pack: z.string(),
  node_class: z.string(),
  condition: Condition,
  weights: z.array(FactWeight),
  certain: z.boolean(),
  source: z.string(),
  note: z.string().optional(),
  base_model: z.string().optional(),
  since: z.string().optional(),
  until: z.string().optional(),
});
const Facts = z.object({
  rows: z.array(FactRow),
  helper_versus_node: z.array(z.object({ node_class: z.string() })),
});
const Destination = z.object({ dest: z.string() });
const WeightsMap = z.record(z.string(), z.union([Destination, z.array(Destination)]));
const Packs = z.array(z.object({ repo: z.string(), commit: z.string() }));

type Row = z.infer<typeof FactRow>;
type Weight = z.infer<typeof FactWeight>;

async function read<T>(name: string, schema: z.ZodType<T>): Promise<T> {
  return schema.parse(await Bun.file(join(CASES, name)).json());
}

function pathOf(weight: Weight): string {
  return weight.path ?? `hf-cache:${weight.hf_repo ?? weight.name}`;
}

function sourceOf(weight: Weight): readonly string[] {
  if (weight.kind === "directory" && weight.hf_repo !== undefined) {
    return [`hf://${weight.hf_repo}`];
  }
  return weight.url === undefined ? [] : [weight.url];
}

function factsOf(weight: Weight): Record<string, unknown> {
  const sizes = Object.values(weight.file_facts ?? {}).map((fact) => fact.size_bytes);
  const folderSize = sizes.every((size) => size !== undefined)
    ? sizes.reduce((sum, size) => sum + (size ?? 0), 0)
    : undefined;
  const urls = sourceOf(weight);
  return {
    ...(urls.length === 0 ? {} : { urls }),
    ...(weight.size_bytes === undefined ? {} : { size: weight.size_bytes }),
    ...(weight.sha256 === undefined ? {} : { sha256: weight.sha256 }),
    ...(weight.kind === "directory"
      ? {
          folder: true,
          files: weight.files ?? [],
          ...(sizes.length > 0 ? { size: folderSize } : {}),
        }
      : {}),
    ...(weight.match === undefined ? {} : { accepts: weight.match }),
    ...(weight.alt_path === undefined ? {} : { altPath: weight.alt_path }),
  };
}

/** A row in which the helper of the original fetches what the node never reads. */
function isHelperOnly(row: Row, contradicted: ReadonlySet<string>): boolean {
  return (
    !row.certain && contradicted.has(row.node_class) && /helper fetches all/.test(row.note ?? "")
  );
}

/** True when the row describes the version of the pack that cog-comfyui installs. */
function isPinned(row: Row, packs: z.infer<typeof Packs>): boolean {
  const commit = /^([^@]+)@([0-9a-f]+):/.exec(row.source);
  return (
    row.source.startsWith("replicate/cog-comfyui@") ||
    packs.some(
      (pack) => pack.repo.endsWith(`/${commit?.[1] ?? ""}`) && commit?.[2]?.startsWith(pack.commit),
    )
  );
}

function unlessOf(note: string | undefined): Record<string, string> | undefined {
  const match = /only when (\w+) is not "(\w+)"/.exec(note ?? "");
  return match?.[1] === undefined || match[2] === undefined ? undefined : { [match[1]]: match[2] };
}

function toRow(row: Row, packs: z.infer<typeof Packs>): Record<string, unknown> {
  const version = row.since === undefined ? row.until && "older" : "newer";
  const unless = unlessOf(row.note);
  return {
    class: row.node_class,
    ...(Object.keys(row.condition).length === 0 ? {} : { when: row.condition }),
    ...(unless === undefined ? {} : { unless }),
    ...(row.base_model === undefined ? {} : { baseModel: row.base_model }),
    ...(version === undefined
      ? {}
      : { version, ...(isPinned(row, packs) ? { preferred: true } : {}) }),
    ...(row.certain ? {} : { certain: false }),
    needs: row.weights.map(pathOf),
    source: row.source,
  };
}

/** Classes that run another class's code, so that its rows hold for them; the facts have them for one only. */
const SAME_CODE: Readonly<Record<string, string>> = { ReActorFaceSwap: "ReActorFaceSwapOpt" };

/** The rows, and the same ones for every class that shares the code and has none for that condition. */
function withTwins(rows: readonly Row[]): Row[] {
  const seen = new Set(rows.map((row) => `${row.node_class} ${JSON.stringify(row.condition)}`));
  return rows.flatMap((row) => {
    const twin = SAME_CODE[row.node_class];
    const isNew = twin !== undefined && !seen.has(`${twin} ${JSON.stringify(row.condition)}`);
    return isNew ? [row, { ...row, node_class: twin }] : [row];
  });
}

/** Where cog-comfyui keeps a Hugging Face repository that a node reads through the hub's cache. */
function cachedCopy(path: string, map: z.infer<typeof WeightsMap>): string | undefined {
  const repository = /^hf-cache:([^/]+)\/([^/]+)$/.exec(path);
  const name = `models--${repository?.[1]}--${repository?.[2]}`;
  const entry = Object.hasOwn(map, name) ? map[name] : undefined;
  return entry !== undefined && !Array.isArray(entry)
    ? `${entry.dest.replace(/^ComfyUI\//, "")}/${name}`
    : undefined;
}

const facts = await read("implied_weights_facts.json", Facts);
const packs = await read("cog_comfyui_custom_nodes.json", Packs);
const contradicted = new Set(facts.helper_versus_node.map((entry) => entry.node_class));
const map = await read("cog_comfyui_weights_map.json", WeightsMap);
const rows = withTwins(
  facts.rows.filter((row) => row.weights.length > 0 && !isHelperOnly(row, contradicted)),
);
const weights = new Map<string, Record<string, unknown>>();
for (const weight of rows.flatMap((row) => row.weights)) {
  const path = pathOf(weight);
  const copy = cachedCopy(path, map);
  weights.set(path, {
    ...weights.get(path),
    ...factsOf(weight),
    ...(copy === undefined ? {} : { altPath: copy }),
  });
}
const lines = (items: readonly string[]) => items.map((item) => `    ${item}`).join(",\n");
const sorted = [...weights].sort(([a], [b]) => (a < b ? -1 : 1));
await Bun.write(
  TARGET,
  `{
  "version": 1,
  "weights": {
${lines(sorted.map(([path, fact]) => `${JSON.stringify(path)}: ${JSON.stringify(fact)}`))}
  },
  "rows": [
${lines(rows.map((row) => JSON.stringify(toRow(row, packs))))}
  ]
}
`,
);
console.log(`${rows.length} rows, ${weights.size} weights → ${TARGET}`);
