/**
 * Builds the built-in manifest, weights.json, and its JSON Schema from the facts beside the checkout
 * (../shared/cases). Both are committed; run this only when facts or schema change: `bun scripts/build-manifest.ts`.
 */
import { resolve } from "node:path";
import { z } from "zod";
import { canonicalCategory, categoryRow, looksLikeWeight } from "../src/models/categories.ts";
import { manifestSchemaText } from "../src/weights/manifest.ts";

const ROOT = resolve(import.meta.dir, "..");
const CASES = resolve(ROOT, "../shared/cases");

/** Hosts that publish models themselves; catalogues' own buckets and mirrors of mirrors come and go. */
const HOSTS: ReadonlySet<string> = new Set([
  "huggingface.co",
  "github.com",
  "raw.githubusercontent.com",
  "civitai.com",
  "dl.fbaipublicfiles.com",
  "storage.googleapis.com",
  "openaipublic.azureedge.net",
  "weights.replicate.delivery",
]);

/** Categories of the tools that list a file, not of ComfyUI: nothing reads a folder of that name. */
const FOREIGN = new Set([
  "annotators",
  "miscellaneous",
  "misc",
  "face_restore",
  "rams",
  "RGT",
  "blip",
  "openai_clip",
  "seecoders",
  "safety_checker",
  "prompt_expansion",
  "instance_models",
  "depth",
  "deepbump",
  "mmdet",
]);

/** The original's list, with the names it left out and the ending it forgot (peers.md 5.3, 5.9 no. 36). */
const NON_COMMERCIAL: readonly RegExp[] = [
  /^(cocoamixxl_v4Stable|copaxTimelessxlSDXL1_v8|dreamshaperXL_(sfwV2|v21)TurboDPMSDE|epicrealismXL_v10)\./,
  /^(illustriousXL_v01|MODILL_XL_0\.27_RC|proteus_v02|RealVisXL_V3\.0_Turbo|turbovisionxl)/,
  /^(GPEN-BFR-(512|1024|2048)|inswapper_128(_fp16)?)\.onnx$/,
  /^RMBG-1\.4\/model\.pth$/,
  /^sd_xl_turbo_1\.0|^sd3\.5_large|^sd3_medium|^svd(_xt)?\.|^SUPIR-v0[FQ]/,
  /^(stable-cascade\/|stable_cascade_stage_)/,
  /^(models\/)?(antelopev2|buffalo_l)$/,
  // FLUX.1 [dev] and what is derived from it: "FLUX.1 [dev] Non-Commercial License".
  /^flux1-(.*-)?dev[-.]/,
];

const Fact = z.object({
  name: z.string(),
  category: z.string(),
  paths: z.array(z.string()).optional(),
  urls: z.array(z.string()).optional(),
  tar_urls: z.array(z.string()).optional(),
  sha256: z.string().optional(),
  sha256_for: z.array(z.string()).optional(),
  size_bytes: z.number().optional(),
  size_text: z.union([z.string(), z.array(z.string())]).optional(),
  license: z.union([z.string(), z.array(z.string())]).optional(),
  non_commercial: z.boolean().optional(),
  gated: z.boolean().optional(),
  conflicts: z.array(z.unknown()).optional(),
  kind: z.string().optional(),
  files: z.array(z.string()).optional(),
});
const KitFile = z.object({
  name: z.string(),
  category: z.string(),
  urls: z.array(z.string()),
  other_urls: z.array(z.string()).optional(),
  cog_tar_url: z.string().optional(),
  sha256: z.string().optional(),
  size_bytes: z.number().optional(),
  license: z.string().optional(),
  gated: z.boolean().optional(),
  non_commercial: z.boolean().optional(),
  optional: z.boolean().optional(),
});
const Kits = z.record(z.string(), z.object({ files: z.array(KitFile) }));
const Destination = z.object({ dest: z.string(), url: z.string() });
const WeightsMap = z.record(z.string(), z.union([Destination, z.array(Destination)]));
const SameName = z.object({
  category: z.string(),
  name: z.string(),
  name_also_used_for_other_bytes: z.boolean().optional(),
});
const Synonyms = z.object({
  proven_same: z.array(z.object({ names: z.array(SameName) })),
  suspected_source_errors: z.array(z.object({ names: z.array(SameName).optional() })),
  cog_comfyui: z.array(z.object({ from: z.string().optional(), to: z.string().optional() })),
});

type Fact = z.infer<typeof Fact>;
type KitFile = z.infer<typeof KitFile>;

interface Row {
  name: string;
  category: string;
  path?: string;
  urls: string[];
  mirrors?: string[];
  size?: number;
  approxSize?: number;
  sha256?: string;
  folder?: true;
  files?: string[];
  license?: string;
  nonCommercial?: true;
  gated?: true;
}

async function read<T>(name: string, schema: z.ZodType<T>): Promise<T> {
  return schema.parse(await Bun.file(resolve(CASES, name)).json());
}

const keyOf = (category: string, name: string) => `${category}\n${name}`;
const isOwnHost = (url: string) => HOSTS.has(new URL(url).hostname);

function approximate(text: Fact["size_text"]): number | undefined {
  const match = /^([\d.]+)\s*([KMGT])i?B?$/i.exec((Array.isArray(text) ? text[0] : text) ?? "");
  const power = "KMGT".indexOf((match?.[2] ?? "").toUpperCase()) + 1;
  return match === null ? undefined : Math.round(Number(match[1]) * 1000 ** power);
}

/** Addresses sorted by what is known: those the hash is stated for, and the others. */
function addresses(
  fact: Fact | undefined,
  tars: readonly string[],
): Pick<Row, "urls" | "mirrors" | "sha256"> {
  const upstream = [...new Set(fact?.urls ?? [])].filter(isOwnHost);
  const proven = fact?.conflicts === undefined ? (fact?.sha256_for ?? []).filter(isOwnHost) : [];
  const isProven = fact?.sha256 !== undefined && proven.length > 0;
  // Where sources disagree, what each address holds is unknown: only the original's archive, else one of them.
  const others =
    fact?.conflicts === undefined
      ? upstream.filter((url) => !proven.includes(url))
      : upstream.slice(0, 1);
  const known = isProven ? proven : [...tars, ...others].slice(0, 1);
  const rest = [...tars, ...others].filter((url) => !known.includes(url));
  const mirrors = fact?.conflicts === undefined ? rest : [];
  return {
    urls: [...known],
    ...(mirrors.length === 0 ? {} : { mirrors }),
    ...(isProven && fact.sha256 !== undefined ? { sha256: fact.sha256 } : {}),
  };
}

function factRow(
  fact: Fact | undefined,
  place: Pick<Row, "name" | "category" | "path">,
  tars: string[],
): Row {
  const license = Array.isArray(fact?.license) ? fact.license.join(", ") : fact?.license;
  const size = fact?.conflicts === undefined ? fact?.size_bytes : undefined;
  const about = size === undefined ? approximate(fact?.size_text) : undefined;
  return {
    ...place,
    ...addresses(fact, tars),
    ...(size === undefined ? {} : { size }),
    ...(about === undefined ? {} : { approxSize: about }),
    ...(fact?.kind === "directory" ? { folder: true } : {}),
    ...(fact?.files === undefined ? {} : { files: fact.files }),
    ...(license === undefined ? {} : { license }),
    ...(isNonCommercial(place.name, fact?.non_commercial) ? { nonCommercial: true } : {}),
    ...(fact?.gated === true ? { gated: true } : {}),
  };
}

function isNonCommercial(name: string, stated: boolean | undefined): boolean {
  return stated === true || NON_COMMERCIAL.some((pattern) => pattern.test(name));
}

/** Category, name and, where it isn't the folder that receives the category's downloads, the path. */
function placeFor(path: string): Pick<Row, "name" | "category" | "path"> {
  const [top, folder = "", ...rest] = path.split("/");
  if (top !== "models") {
    return { name: path.slice(path.lastIndexOf("/") + 1), category: "custom_nodes", path };
  }
  if (folder === "xlabs") {
    return { name: rest.slice(1).join("/"), category: `xlabs_${rest[0]}` };
  }
  const category = canonicalCategory(folder);
  const name = rest.join("/");
  const isDefault = categoryRow(category).dirs.includes(folder) && folder === category;
  return { name, category, ...(isDefault || folder === category ? {} : { path }) };
}

function cogRows(map: z.infer<typeof WeightsMap>, facts: readonly Fact[]): Row[] {
  const byTar = new Map(facts.flatMap((fact) => (fact.tar_urls ?? []).map((url) => [url, fact])));
  return Object.entries(map).flatMap(([key, entry]) =>
    (Array.isArray(entry) ? entry : [entry]).map(({ dest, url }) => {
      const folder = dest.replace(/^ComfyUI\//, "").replace(/\/$/, "");
      const place = placeFor(`${folder}/${key}`);
      const fact = byTar.get(url);
      const isFolder = !/\.[a-z0-9]{2,}$/i.test(
        key.replace(/-v\d+\.\d+$/, "").replace(/clipseg.*$/, "folder"),
      );
      const row = factRow(
        fact,
        { ...place, name: place.category === "custom_nodes" ? key : place.name },
        [url],
      );
      return isFolder || fact?.kind === "directory" ? { ...row, folder: true as const } : row;
    }),
  );
}

function upstreamRow(fact: Fact): Row[] {
  if (FOREIGN.has(fact.category) || fact.kind === "directory" || !looksLikeWeight(fact.name)) {
    return [];
  }
  const [path] = fact.paths ?? [];
  if (fact.category === "custom_nodes" && path === undefined) {
    return [];
  }
  const place =
    fact.category === "custom_nodes"
      ? placeFor(path ?? "")
      : { name: fact.name, category: canonicalCategory(fact.category) };
  const row = factRow(fact, place, []);
  return row.urls.length === 0 || row.category === "xlabs" ? [] : [row];
}

/** Two rows of one place: the original's name, the address that is known best, every other as a mirror. */
function merged(row: Row, known: Row | undefined): Row {
  if (known?.sha256 === undefined || row.sha256 !== undefined) {
    return row;
  }
  const mirrors = [...(known.mirrors ?? []), ...row.urls, ...(row.mirrors ?? [])];
  return {
    ...known,
    ...row,
    urls: known.urls,
    mirrors: [...new Set(mirrors)],
    sha256: known.sha256,
  };
}

function kitRow(file: KitFile, known: Row | undefined): Row {
  if (
    CONFLICTING.has(keyOf(file.category, file.name)) &&
    known?.urls[0]?.endsWith(".tar") === true
  ) {
    // What the kit's address holds isn't certain; the original's archive is what its workflows were made with.
    return known;
  }
  const hasHash = file.sha256 !== undefined && !CONFLICTING.has(keyOf(file.category, file.name));
  const urls = file.urls.filter(isOwnHost);
  const rest = [
    file.cog_tar_url,
    ...(file.other_urls ?? []),
    ...(known?.mirrors ?? []),
    ...(known?.urls ?? []),
  ]
    .filter((url) => url !== undefined)
    .filter((url) => isOwnHost(url) && !urls.includes(url));
  const mirrors = CONFLICTING.has(keyOf(file.category, file.name)) ? [] : [...new Set(rest)];
  return {
    ...(known ?? { name: file.name, category: file.category }),
    urls,
    ...(mirrors.length === 0 ? {} : { mirrors }),
    ...(hasHash && file.size_bytes !== undefined ? { size: file.size_bytes } : {}),
    ...(hasHash && file.sha256 !== undefined ? { sha256: file.sha256 } : {}),
    ...(file.license === undefined ? {} : { license: file.license }),
    ...(isNonCommercial(file.name, file.non_commercial) ? { nonCommercial: true as const } : {}),
    ...(file.gated === true ? { gated: true as const } : {}),
  };
}

function synonymsOf(
  facts: z.infer<typeof Synonyms>,
  original: ReadonlySet<string>,
): [string, string][] {
  const suspects = new Set(
    facts.suspected_source_errors.flatMap((group) =>
      (group.names ?? []).map((entry) => entry.name),
    ),
  );
  const isGeneric = (name: string) =>
    !looksLikeWeight(name) || /^(video_vae|model[_\d]*|openpose_pre)\./.test(name);
  const proven = facts.proven_same.flatMap(({ names }): [string, string][] => {
    const usable = names.filter(
      (entry) =>
        entry.name_also_used_for_other_bytes !== true &&
        !suspects.has(entry.name) &&
        !entry.name.includes("*") &&
        entry.category !== "insightface" &&
        looksLikeWeight(entry.name),
    );
    const target = usable.find((entry) => original.has(entry.name)) ?? usable[0];
    return usable
      .filter(
        (entry) =>
          !isGeneric(entry.name) &&
          entry.name !== target?.name &&
          entry.category === target?.category &&
          !original.has(entry.name),
      )
      .map((entry) => [entry.name, target?.name ?? ""]);
  });
  const stated = facts.cog_comfyui.flatMap(({ from, to }): [string, string][] =>
    from === undefined || to === undefined ? [] : [[from, to]],
  );
  return [...proven, ...stated];
}

const FIELDS = [
  "name",
  "category",
  "path",
  "urls",
  "mirrors",
  "size",
  "approxSize",
  "sha256",
  "folder",
  "files",
  "license",
  "nonCommercial",
  "gated",
] as const satisfies readonly (keyof Row)[];

/** A row as one line, its fields in the order of the schema. */
function rowText(row: Row): string {
  return JSON.stringify(Object.fromEntries(FIELDS.map((field) => [field, row[field]])));
}

/** The name alone where only one weight has it. */
function kitEntry(file: KitFile): string | { name: string; category: string } {
  const same = [...rows.values()].filter((row) => row.name === file.name);
  return same.length === 1 ? file.name : { name: file.name, category: file.category };
}

const facts = await read("model_facts.json", z.array(Fact));
const map = await read("cog_comfyui_weights_map.json", WeightsMap);
const kits = await read("kits_facts.json", Kits);
const synonyms = await read("synonyms_facts.json", Synonyms);
const CONFLICTING = new Set(
  facts
    .filter((fact) => fact.conflicts !== undefined)
    .map((fact) => keyOf(fact.category, fact.name)),
);

const rows = new Map<string, Row>();
for (const row of [...facts.flatMap(upstreamRow), ...cogRows(map, facts)]) {
  const place = row.path ?? keyOf(row.category, row.name);
  rows.set(place, merged(row, rows.get(place)));
}
for (const file of Object.values(kits).flatMap((kit) => kit.files)) {
  const key = keyOf(file.category, file.name);
  const row = kitRow(file, rows.get(key));
  // A kit's optional file that nothing vouches for adds nothing to what is known.
  if (row.urls.length > 0) {
    const { approxSize, ...exact } = row;
    rows.set(key, row.size === undefined && approxSize !== undefined ? row : exact);
  }
}
const order = new Intl.Collator("en", { numeric: false, sensitivity: "variant" });
const sorted = [...rows.values()].sort(
  (a, b) =>
    order.compare(a.category, b.category) ||
    order.compare(a.name, b.name) ||
    order.compare(a.path ?? "", b.path ?? ""),
);
const lines = (items: readonly string[]) => items.map((item) => `    ${item}`).join(",\n");
const kitLines = Object.entries(kits).map(([name, kit]) => {
  const required = kit.files.filter((file) => file.optional !== true);
  return `${JSON.stringify(name)}: ${JSON.stringify(required.map(kitEntry))}`;
});
const synonymLines = [...new Map(synonymsOf(synonyms, new Set(Object.keys(map))))]
  .sort(([a], [b]) => order.compare(a, b))
  .map(([from, to]) => `${JSON.stringify(from)}: ${JSON.stringify(to)}`);
await Bun.write(
  resolve(ROOT, "weights.json"),
  `{
  "$schema": "./weights.schema.json",
  "version": 2,
  "weights": [
${lines(sorted.map(rowText))}
  ],
  "kits": {
${lines(kitLines)}
  },
  "synonyms": {
${lines(synonymLines)}
  }
}
`,
);
await Bun.write(resolve(ROOT, "weights.schema.json"), manifestSchemaText());
console.log(`${rows.size} weights, ${kitLines.length} kits, ${synonymLines.length} synonyms`);
