/**
 * Manifests: which weights are known, where they can be had, what they must look like, which kits and synonyms there
 * are. One strict schema for the built-in weights.json and the user's own; the original's `{CATEGORY: [names]}` is
 * read too. Later manifests win; everything in them is the operator's word.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { canonicalCategory, looksLikeWeight } from "../models/categories.ts";
import { messageOf, WeightError } from "../platform/errors.ts";
import { isJsonObject } from "../platform/json.ts";
import { PROJECT_ROOT } from "../platform/project-root.ts";

/** A relative path with forward slashes that stays below its folder. */
const RelativePath = z
  .string()
  .min(1)
  .max(1024)
  .refine((path) => !/^\/|^[A-Za-z]:|\\|(^|\/)\.{0,2}(\/|$)|\p{Cc}/u.test(path), {
    message: "must be a relative path with forward slashes, without . or ..",
  });

const Address = z
  .string()
  .refine((url) => /^(https?|hf|s3|file):\/\/\S+$/i.test(url) || url.startsWith("/"), {
    message: "must be an https://, http://, hf://, s3:// or file:// address or an absolute path",
  });

const Sha256 = z
  .string()
  .regex(/^[0-9a-fA-F]{64}$/, "must be 64 hexadecimal digits")
  .transform((hash) => hash.toLowerCase());

export const ManifestWeight = z.strictObject({
  name: RelativePath.describe("Name as loaders spell it, relative to the category's folder"),
  category: z
    .string()
    .regex(/^[A-Za-z0-9_.+-]+(\/[A-Za-z0-9_.+-]+)*$/, "must be a folder name such as checkpoints")
    .refine((category) => !category.split("/").includes(".."), { message: "must not hold .." })
    .describe("ComfyUI's folder: checkpoints, loras, vae, …"),
  path: RelativePath.describe(
    "Place relative to ComfyUI's folder, where it isn't models/<category>/<name>",
  ).exactOptional(),
  urls: z
    .array(Address)
    .min(1)
    .describe("Addresses of this very file, tried in order; sha256 and size hold for each of them"),
  mirrors: z
    .array(Address)
    .describe(
      "Further addresses, tried when urls fail, which nobody vouches for: sha256 and size are not demanded of them",
    )
    .exactOptional(),
  size: z
    .int()
    .positive()
    .describe("Bytes of the file, never of an archive around it")
    .exactOptional(),
  approxSize: z
    .int()
    .positive()
    .describe("Rounded size in bytes, for reports only")
    .exactOptional(),
  sha256: Sha256.describe("Of the file, never of an archive around it").exactOptional(),
  unpack: z
    .literal("tar")
    .describe("The sources are archives although their addresses don't end in .tar")
    .exactOptional(),
  folder: z.boolean().describe("The weight is a folder").exactOptional(),
  files: z.array(RelativePath).describe("Files that must be in the folder").exactOptional(),
  license: z.string().exactOptional(),
  nonCommercial: z.boolean().exactOptional(),
  gated: z
    .boolean()
    .describe("The source asks for a token and an accepted licence")
    .exactOptional(),
  note: z.string().exactOptional(),
});

const KitEntry = z.union([z.string(), z.strictObject({ name: z.string(), category: z.string() })]);

export const ManifestDocument = z.strictObject({
  $schema: z.string().exactOptional(),
  version: z.literal(2),
  weights: z.array(ManifestWeight).default([]),
  kits: z.record(z.string(), z.array(KitEntry).min(1)).default({}),
  synonyms: z
    .record(z.string(), z.string())
    .describe("Other name → name in this manifest")
    .default({}),
});

/** The original's form: category in capitals → names (`{"CHECKPOINTS": ["a.safetensors"]}`). */
const OriginalDocument = z.record(z.string().regex(/^[A-Z0-9_-]+$/), z.array(z.string()));

export type ManifestWeight = z.infer<typeof ManifestWeight>;
export type ManifestDocument = z.infer<typeof ManifestDocument>;

/** The JSON Schema of weights.json, for editors. */
export function manifestSchemaText(): string {
  const schema = z.toJSONSchema(ManifestDocument, { io: "input", target: "draft-7" });
  return `${JSON.stringify({ title: "Weights of cog-comfyui-bun", ...schema }, undefined, 2)}\n`;
}

/** Where the original's archives lie, and the folders whose names it doesn't lower-case. */
const ORIGINAL_BASE = "https://weights.replicate.delivery/default/comfy-ui";
const ORIGINAL_FOLDERS: Readonly<Record<string, string>> = {
  BIREFNET: "BiRefNet",
  FLASHVSR: "FlashVSR",
  LLM: "LLM",
  FBCNN: "FBCNN",
};

function originalWeight(group: string, name: string): ManifestWeight {
  const folder = ORIGINAL_FOLDERS[group] ?? group.toLowerCase();
  return {
    name,
    category: canonicalCategory(folder),
    urls: [`${ORIGINAL_BASE}/${folder}/${name}.tar`],
    ...(looksLikeWeight(name) ? {} : { folder: true }),
    // The one weight that stays in the folder with the old name: its only reader looks nowhere else.
    ...(name === "clip-vit-large-patch14" ? { path: `models/clip/${name}` } : {}),
  };
}

/** A problem as people read it: `weights[12] (a.safetensors).sha256: must be …`. */
function describeIssue(issue: z.core.$ZodIssue, document: unknown): string {
  const [group, index, ...rest] = issue.path;
  const rows = isJsonObject(document) && typeof group === "string" ? document[group] : undefined;
  const row = Array.isArray(rows) && typeof index === "number" ? rows[index] : undefined;
  const name = isJsonObject(row) && typeof row["name"] === "string" ? ` (${row["name"]})` : "";
  const place =
    typeof index === "number"
      ? `${String(group)}[${index}]${name}${rest.map((part) => `.${String(part)}`).join("")}`
      : issue.path.map(String).join(".");
  return `${place === "" ? "the document" : place}: ${issue.message}`;
}

function invalid(where: string, problems: readonly string[], cause?: unknown): WeightError {
  const shown = problems.slice(0, 20);
  const more = problems.length > shown.length ? `; and ${problems.length - shown.length} more` : "";
  return new WeightError(
    "MANIFEST_INVALID",
    `${where} is no manifest. ${shown.join("; ")}${more}`,
    {
      hint: "Correct these fields; weights.schema.json describes them, and editors check against it.",
      details: { problems },
      cause,
    },
  );
}

function isOriginalForm(document: unknown): boolean {
  return (
    isJsonObject(document) &&
    !Object.hasOwn(document, "version") &&
    !Object.hasOwn(document, "weights")
  );
}

/** Weights, kits and synonyms of one or several manifests. Immutable. */
export class Manifest {
  static #builtIn: Manifest | undefined;
  readonly weights: readonly ManifestWeight[];
  readonly kits: ReadonlyMap<string, ManifestDocument["kits"][string]>;
  readonly synonyms: ReadonlyMap<string, string>;
  /** True for the original's form, which adds names and overrules nothing. */
  readonly isAdditive: boolean;
  #byName: ReadonlyMap<string, readonly ManifestWeight[]> | undefined;
  #byPath: ReadonlyMap<string, ManifestWeight> | undefined;
  #hosts: ReadonlySet<string> | undefined;

  private constructor(document: ManifestDocument, isAdditive = false) {
    this.weights = document.weights;
    this.kits = new Map(Object.entries(document.kits));
    this.synonyms = new Map(Object.entries(document.synonyms));
    this.isAdditive = isAdditive;
  }

  /** The manifest that ships with the program; read at the first use, once. */
  static builtIn(): Manifest {
    const file = join(PROJECT_ROOT, "weights.json");
    Manifest.#builtIn ??= Manifest.parseText(readFileSync(file, "utf8"), "weights.json");
    return Manifest.#builtIn;
  }

  static empty(): Manifest {
    return new Manifest({ version: 2, weights: [], kits: {}, synonyms: {} });
  }

  /** @throws WeightError MANIFEST_INVALID when the text is not JSON or not a manifest. */
  static parseText(text: string, where: string): Manifest {
    let document: unknown;
    try {
      document = JSON.parse(text);
    } catch (cause) {
      throw invalid(where, [`it is not JSON: ${messageOf(cause)}`], cause);
    }
    return Manifest.parse(document, where);
  }

  /** @throws WeightError MANIFEST_INVALID naming every row and field that is wrong. */
  static parse(document: unknown, where: string): Manifest {
    if (isOriginalForm(document)) {
      const original = OriginalDocument.safeParse(document);
      if (!original.success) {
        throw invalid(where, [
          'it has neither "version": 2 nor the form {"CHECKPOINTS": ["a.safetensors"], …}',
        ]);
      }
      const weights = Object.entries(original.data).flatMap(([group, names]) =>
        [...new Set(names)].map((name) => originalWeight(group, name)),
      );
      return new Manifest({ version: 2, weights, kits: {}, synonyms: {} }, true);
    }
    const parsed = ManifestDocument.safeParse(document);
    if (!parsed.success) {
      throw invalid(
        where,
        parsed.error.issues.map((issue) => describeIssue(issue, document)),
      );
    }
    return new Manifest(parsed.data);
  }

  /** This manifest with another one merged over it: rows of the same place are replaced, kits and synonyms added. */
  with(other: Manifest): Manifest {
    const rows = new Map(this.weights.map((row) => [weightPath(row), row]));
    for (const row of other.weights) {
      if (!other.isAdditive || !this.#knows(row)) {
        rows.set(weightPath(row), row);
      }
    }
    return new Manifest({
      version: 2,
      weights: [...rows.values()],
      kits: Object.fromEntries([...this.kits, ...other.kits]),
      synonyms: Object.fromEntries([...this.synonyms, ...other.synonyms]),
    });
  }

  /** Rows of this name, those of the category first; without a row of the category: those of others. */
  find(name: string, category?: string): readonly ManifestWeight[] {
    this.#byName ??= Map.groupBy(this.weights, (row) => row.name);
    const rows = this.#byName.get(name) ?? [];
    if (category === undefined) {
      return rows;
    }
    const wanted = canonicalCategory(category);
    return rows.filter((row) => canonicalCategory(row.category) === wanted);
  }

  /** The row whose file lies at this path relative to ComfyUI's folder. */
  at(path: string): ManifestWeight | undefined {
    this.#byPath ??= new Map(this.weights.map((row) => [weightPath(row), row]));
    return this.#byPath.get(path);
  }

  /** The name that stands for another one, if the manifest says so. */
  synonym(name: string): string | undefined {
    return this.synonyms.get(name);
  }

  /** @throws WeightError KIT_UNKNOWN naming the known ones, MANIFEST_INVALID for a kit with an unknown weight. */
  kit(name: string): readonly ManifestWeight[] {
    const entries = this.kits.get(name);
    if (entries === undefined) {
      const known = [...this.kits.keys()];
      throw new WeightError(
        "KIT_UNKNOWN",
        `"${name}" is no kit. Known: ${known.join(", ")}, none`,
        {
          hint: "Set BASE_MODEL_KIT to one of these, or add the kit to WEIGHTS_MANIFEST.",
          details: { kit: name, known },
        },
      );
    }
    return entries.map((entry) => {
      const wanted = typeof entry === "string" ? { name: entry, category: undefined } : entry;
      const [row] = this.find(wanted.name, wanted.category);
      if (row === undefined) {
        throw invalid(`Kit "${name}"`, [`it needs ${wanted.name}, which no row describes`]);
      }
      return row;
    });
  }

  /** Kits whose required weights include this one. */
  kitsWith(row: ManifestWeight): readonly string[] {
    return [...this.kits]
      .filter(([, entries]) =>
        entries.some((entry) =>
          typeof entry === "string"
            ? entry === row.name && this.find(entry)[0] === row
            : entry.name === row.name && canonicalCategory(entry.category) === row.category,
        ),
      )
      .map(([name]) => name);
  }

  /** Hosts of every source: what a request's own addresses may name too. */
  hosts(): ReadonlySet<string> {
    this.#hosts ??= this.#readHosts();
    return this.#hosts;
  }

  #readHosts(): ReadonlySet<string> {
    const hosts = new Set<string>();
    for (const url of this.weights.flatMap((row) => [...row.urls, ...(row.mirrors ?? [])])) {
      const host = /^https?:\/\/([^/:?#]+)/i.exec(url)?.[1];
      if (host !== undefined) {
        hosts.add(host.toLowerCase());
      } else if (url.startsWith("hf://")) {
        hosts.add("huggingface.co");
      }
    }
    return hosts;
  }

  #knows(row: ManifestWeight): boolean {
    return this.find(row.name, row.category).length > 0;
  }
}

/** Where the weight lies, relative to ComfyUI's folder. */
export function weightPath(row: ManifestWeight): string {
  return row.path ?? `models/${canonicalCategory(row.category)}/${row.name}`;
}
