/**
 * Is it there? Every reference looked up as ComfyUI would, and every file found checked at the price of a `stat`.
 * Synchronous, without network; what is missing is told with all that helps to fix it.
 */
import { join } from "node:path";
import { canonicalCategory, extensionOf } from "../models/categories.ts";
import type { FoundFile, ModelFolders } from "../models/folders.ts";
import type { Defect, InspectOptions, Verdict } from "../models/header.ts";
import { inspect as inspectShared } from "../models/header.ts";
import { statOf } from "../models/listing.ts";
import type { Manifest } from "./manifest.ts";
import { NearFinder } from "./near.ts";
import type { MissingWeight, PresentWeight, Validation, WeightRef } from "./refs.ts";
import { addressName } from "./request-source.ts";
import type { Resolution } from "./resolve.ts";
import { requestFileName } from "./resolve.ts";

export interface ValidateOptions {
  /** For synonyms, sizes and suggestions. */
  readonly manifest?: Manifest | undefined;
  /** Names never reported: exact, the last part alone, or with `*`. `_meta.ignored_weights` and WEIGHTS_IGNORE. */
  readonly ignore?: readonly string[] | undefined;
  /** Where a missing weight can be had, for the report: `(ref) => resolveWeight(ref, options)`. */
  readonly resolve?: ((missing: MissingWeight) => Resolution) | undefined;
  /** The exact size that a lock file pins. */
  readonly lockedSize?:
    | ((name: string, category: string | undefined) => number | undefined)
    | undefined;
  /** The process-wide inspector unless given. */
  readonly inspect?: ((path: string, options: InspectOptions) => Verdict) | undefined;
}

/** What a look at the disk gave for one weight. */
interface Look {
  readonly file?: string;
  readonly sizeBytes: number;
  readonly listedAs?: string;
  readonly defect?: Defect;
}

const NOT_THERE: Look = { sizeBytes: 0 };

/** Sorts references into present, missing, uncertain and ignored. Weights that several inputs name are told once. */
export function validateWeights(
  refs: readonly WeightRef[],
  folders: ModelFolders,
  options: ValidateOptions = {},
): Validation {
  return new Validator(folders, options).run(refs);
}

class Validator {
  readonly #folders: ModelFolders;
  readonly #options: ValidateOptions;
  readonly #ignored: (ref: WeightRef) => boolean;
  readonly #looks = new Map<string, Look>();
  readonly #near: NearFinder;

  constructor(folders: ModelFolders, options: ValidateOptions) {
    this.#folders = folders;
    this.#options = options;
    this.#ignored = ignoreRule(options.ignore ?? []);
    this.#near = new NearFinder(folders, options.manifest);
  }

  run(refs: readonly WeightRef[]): Validation {
    const present: PresentWeight[] = [];
    const ignored: WeightRef[] = [];
    const listed: WeightRef[] = [];
    const absent: WeightRef[] = [];
    for (const ref of refs) {
      const look = this.#look(ref);
      if (look.file !== undefined && look.defect === undefined) {
        const { file, sizeBytes, listedAs } = look;
        present.push({ ref, file, sizeBytes, ...(listedAs === undefined ? {} : { listedAs }) });
      } else if (this.#ignored(ref)) {
        ignored.push(ref);
      } else if (look.file === undefined && ref.listed === true) {
        listed.push(ref);
      } else {
        absent.push(ref);
      }
    }
    const told = withoutServedChoices(absent, present);
    return {
      present,
      missing: this.#tell(told.filter((ref) => ref.certain)),
      warnings: this.#tell(told.filter((ref) => !ref.certain)),
      ignored,
      ...(listed.length === 0 ? {} : { listed }),
    };
  }

  #look(ref: WeightRef): Look {
    const key = keyOf(ref);
    const known = this.#looks.get(key);
    if (known !== undefined) {
      return known;
    }
    const look = this.#lookUp(ref);
    this.#looks.set(key, look);
    return look;
  }

  #lookUp(ref: WeightRef): Look {
    const exact = this.#exact(ref);
    if (exact !== undefined) {
      return this.#check(ref, exact);
    }
    for (const listedAs of this.#otherNames(ref)) {
      const found = this.#inCategories(ref, listedAs);
      if (found !== undefined) {
        return { ...this.#check(ref, found), listedAs };
      }
    }
    const accepted = this.#accepted(ref);
    if (accepted !== undefined) {
      return this.#check(ref, accepted);
    }
    const link = categoriesOf(ref)
      .map((category) => this.#folders.danglingLink(category, ref.name))
      .find((path) => path !== undefined);
    return link === undefined ? NOT_THERE : { file: link, sizeBytes: 0, defect: "dangling_link" };
  }

  /** The file under the very name, in ComfyUI's order. */
  #exact(ref: WeightRef): FoundFile | undefined {
    if (ref.fromUrl === true) {
      return undefined;
    }
    for (const path of [ref.path, ref.altPath]) {
      const found = path === undefined ? undefined : this.#folders.findPath(path);
      if (found !== undefined) {
        return found;
      }
    }
    if (ref.path !== undefined) {
      return undefined;
    }
    return ref.category === undefined
      ? this.#anywhere(ref.name)
      : this.#inCategories(ref, ref.name);
  }

  #inCategories(ref: WeightRef, name: string): FoundFile | undefined {
    for (const category of categoriesOf(ref)) {
      const found = this.#folders.find(category, name);
      if (found !== undefined) {
        return found;
      }
    }
    return undefined;
  }

  /** A name of which nothing tells the folder: `category/name`, the manifest's places, else any folder. */
  #anywhere(name: string): FoundFile | undefined {
    const [category = "", ...rest] = name.split("/");
    const inFolder = rest.length > 0 ? this.#folders.find(category, rest.join("/")) : undefined;
    if (inFolder !== undefined) {
      return inFolder;
    }
    for (const row of this.#options.manifest?.find(name) ?? []) {
      const found =
        row.path === undefined
          ? this.#folders.find(row.category, name)
          : this.#folders.findPath(row.path);
      if (found !== undefined) {
        return found;
      }
    }
    for (const candidate of this.#folders.categories()) {
      const found = this.#folders.find(candidate, name);
      if (found !== undefined) {
        return found;
      }
    }
    return undefined;
  }

  /** Other spellings of the very same file: separators, the manifest's synonyms, a file fetched from an address. */
  #otherNames(ref: WeightRef): string[] {
    const slashed = ref.name.replaceAll("\\", "/");
    const synonym = this.#options.manifest?.synonym(slashed);
    const fetched = ref.hints
      .filter((hint) => hint.trust !== "operator")
      .map((hint) => addressName(hint.url, requestFileName(ref, hint)));
    return [
      ...(slashed === ref.name ? [] : [slashed]),
      ...(synonym === undefined ? [] : [synonym]),
      ...fetched,
    ];
  }

  /** Another file that the node takes as well. */
  #accepted(ref: WeightRef): FoundFile | undefined {
    if (ref.accepts === undefined || ref.category === undefined) {
      return undefined;
    }
    const pattern = new RegExp(ref.accepts, "i");
    const name = this.#folders.list(ref.category).find((candidate) => pattern.test(candidate));
    return name === undefined ? undefined : this.#folders.find(ref.category, name);
  }

  #check(ref: WeightRef, { path, stat }: FoundFile): Look {
    if (stat.isDirectory()) {
      return this.#checkFolder(ref, path);
    }
    const expectedSize = this.#options.lockedSize?.(ref.name, ref.category);
    const inspect = this.#options.inspect ?? inspectShared;
    const verdict = inspect(path, { stat, expectedSize });
    const { sizeBytes } = verdict;
    if (!verdict.ok) {
      return { file: path, sizeBytes, defect: verdict.defect };
    }
    return !verdict.complete && this.#isShort(ref, sizeBytes)
      ? { file: path, sizeBytes, defect: "truncated" }
      : { file: path, sizeBytes };
  }

  /**
   * Less than the manifest says, in a format that doesn't tell its own length. (More, or another size of a format
   * that is whole in itself, is another file of this name, which a user may have on purpose.)
   */
  #isShort(ref: WeightRef, sizeBytes: number): boolean {
    const { manifest } = this.#options;
    const row =
      ref.path === undefined ? manifest?.find(ref.name, ref.category)[0] : manifest?.at(ref.path);
    const expected = row?.size ?? ref.sizeBytes;
    return expected !== undefined && sizeBytes < expected;
  }

  /** A weight that is a folder: the files it must hold are there and whole. */
  #checkFolder(ref: WeightRef, path: string): Look {
    const isFolder =
      ref.folder !== undefined || ref.category === "diffusers" || extensionOf(ref.name) === "";
    if (!isFolder) {
      return { file: path, sizeBytes: 0, defect: "not_a_file" };
    }
    const inspect = this.#options.inspect ?? inspectShared;
    let sizeBytes = 0;
    for (const name of ref.folder?.files ?? []) {
      const stat = statOf(join(path, name));
      const verdict = stat === undefined ? undefined : inspect(join(path, name), { stat });
      if (verdict?.ok !== true) {
        return { file: path, sizeBytes, defect: "incomplete_folder" };
      }
      sizeBytes += verdict.sizeBytes;
    }
    return { file: path, sizeBytes };
  }

  /** One entry for every weight, whoever names it, with what helps to get it. */
  #tell(refs: readonly WeightRef[]): MissingWeight[] {
    return [...Map.groupBy(refs, keyOf).values()].flatMap((uses) => {
      const [ref] = uses;
      return ref === undefined ? [] : [this.#missing(ref, uses)];
    });
  }

  #missing(ref: WeightRef, uses: readonly WeightRef[]): MissingWeight {
    const { file, defect } = this.#look(ref);
    const missing: MissingWeight = {
      ref,
      ...(uses.length > 1 ? { uses } : {}),
      state: defect === undefined ? "missing" : "broken",
      ...(defect === undefined ? {} : { defect }),
      ...(file === undefined ? {} : { file }),
      searched: this.#searched(ref),
      near: defect === undefined && ref.fromUrl !== true ? this.#near.find(ref) : [],
    };
    const resolution = this.#options.resolve?.(missing);
    if (resolution === undefined || resolution.kind === "unknown") {
      return missing;
    }
    const refused = resolution.kind === "refused" ? { refused: resolution.reason } : {};
    // With a source at hand, another name out of the manifest is no help.
    const near = missing.near.filter((match) => match.onDisk !== false);
    return { ...missing, near, known: resolution.known, ...refused };
  }

  #searched(ref: WeightRef): readonly string[] {
    if (ref.path !== undefined) {
      return [ref.path, ref.altPath].flatMap((path) =>
        path === undefined ? [] : this.#folders.pathCandidates(path),
      );
    }
    return [...new Set(categoriesOf(ref).flatMap((category) => this.#folders.pathsFor(category)))];
  }
}

function categoriesOf(ref: WeightRef): readonly string[] {
  return ref.category === undefined
    ? []
    : [ref.category, ...(ref.otherCategories ?? [])].map(canonicalCategory);
}

/** Two references with one key mean the same file. */
function keyOf(ref: WeightRef): string {
  return `${ref.path ?? ""}|${ref.category ?? ""}|${ref.name}|${ref.fromUrl === true}`;
}

/** Where one option of a choice is there, the others aren't missed; where none is, only the preferred one is. */
function withoutServedChoices(
  absent: readonly WeightRef[],
  present: readonly PresentWeight[],
): WeightRef[] {
  const optionsWithGaps = new Set(
    absent.map((ref) => choiceKey(ref)).filter((key) => key !== undefined),
  );
  const served = new Set(
    present
      .filter(({ ref }) => !optionsWithGaps.has(choiceKey(ref) ?? ""))
      .map(({ ref }) => ref.oneOf?.group)
      .filter((group) => group !== undefined),
  );
  return absent.filter(
    ({ oneOf }) => oneOf === undefined || (!served.has(oneOf.group) && oneOf.preferred),
  );
}

function choiceKey({ oneOf }: WeightRef): string | undefined {
  return oneOf === undefined ? undefined : JSON.stringify([oneOf.group, oneOf.option]);
}

function ignoreRule(patterns: readonly string[]): (ref: WeightRef) => boolean {
  if (patterns.length === 0) {
    return () => false;
  }
  const rules = patterns.map((pattern) => {
    const source = pattern
      .split("*")
      .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"))
      .join(".*");
    return new RegExp(`^${source}$`);
  });
  return (ref) => {
    const base = ref.name.slice(ref.name.lastIndexOf("/") + 1);
    return rules.some((rule) => rule.test(ref.name) || rule.test(base));
  };
}
