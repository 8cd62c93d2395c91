/** Files that may be the one meant: other case, separators, ending, sub-folder, folder, or a slip of the keyboard. */
import { extensionOf } from "../models/categories.ts";
import type { ModelFolders } from "../models/folders.ts";
import type { Manifest } from "./manifest.ts";
import type { NearMatch, WeightRef } from "./refs.ts";

/** More suggestions help nobody. */
const MAX_MATCHES = 3;
/** Edits beyond which two names are different names: a share of the length, within bounds. */
const EDIT_SHARE = 0.2;
const MAX_EDITS = 6;
/** Names compared letter by letter at most; the cheap rules see all of them. */
const MAX_COMPARED = 5000;

/** A name taken apart, in lower case. */
interface Name {
  readonly spelled: string;
  readonly whole: string;
  readonly base: string;
  readonly ending: string;
  /** Separators inside names are mixed up as easily as letters: `sd_xl base` is `sd-xl_base`. */
  readonly stem: string;
}

function split(spelled: string): Name {
  const whole = spelled.replaceAll("\\", "/").toLowerCase();
  const base = whole.slice(whole.lastIndexOf("/") + 1);
  const ending = extensionOf(base);
  const stem = base.slice(0, base.length - ending.length).replace(/[\s_.-]+/g, "-");
  return { spelled, whole, base, ending, stem };
}

function whyNear(wanted: Name, other: Name): NearMatch["why"] | undefined {
  if (other.whole === wanted.whole) {
    return wanted.spelled.replaceAll("\\", "/") === other.spelled ? "separator" : "case";
  }
  if (other.base === wanted.base) {
    return "subfolder";
  }
  if (other.stem === wanted.stem) {
    return other.ending === wanted.ending ? "separator" : "extension";
  }
  return undefined;
}

/** Two rows of the table, used again by every comparison: a report of many weights makes thousands of them. */
let above = new Uint16Array(256);
let below = new Uint16Array(256);

/** Levenshtein distance, given up beyond `limit`. */
export function editDistance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) > limit) {
    return limit + 1;
  }
  if (above.length <= b.length) {
    above = new Uint16Array(b.length * 2);
    below = new Uint16Array(b.length * 2);
  }
  for (let j = 0; j <= b.length; j += 1) {
    above[j] = j;
  }
  for (let i = 1; i <= a.length; i += 1) {
    const letter = a.charCodeAt(i - 1);
    let last = i;
    let least = i;
    below[0] = i;
    for (let j = 1; j <= b.length; j += 1) {
      const change = (above[j - 1] ?? 0) + (letter === b.charCodeAt(j - 1) ? 0 : 1);
      last = Math.min(change, (above[j] ?? 0) + 1, last + 1);
      below[j] = last;
      least = Math.min(least, last);
    }
    if (least > limit) {
      return limit + 1;
    }
    [above, below] = [below, above];
  }
  return above[b.length] ?? limit + 1;
}

function misspelt(wanted: Name, names: readonly Name[]): Name[] {
  const limit = Math.min(MAX_EDITS, Math.max(1, Math.floor(wanted.stem.length * EDIT_SHARE)));
  const found: { name: Name; edits: number }[] = [];
  for (const name of names.slice(0, MAX_COMPARED)) {
    const edits = editDistance(wanted.stem, name.stem, limit);
    if (edits <= limit) {
      found.push({ name, edits });
    }
  }
  return found.sort((a, b) => a.edits - b.edits).map(({ name }) => name);
}

const ORDER: readonly NearMatch["why"][] = ["separator", "case", "extension", "subfolder"];

/** Names of a manifest by category, taken apart once: they don't change. */
const manifestNames = new WeakMap<Manifest, ReadonlyMap<string, readonly Name[]>>();

/** Finds what is near to missing names; made for one validation, it looks at each folder once. */
export class NearFinder {
  readonly #folders: ModelFolders;
  readonly #manifest: Manifest | undefined;
  readonly #names = new Map<string, readonly Name[]>();
  #byBase:
    | ReadonlyMap<string, readonly { category: string; name: string; base: string }[]>
    | undefined;

  constructor(folders: ModelFolders, manifest?: Manifest) {
    this.#folders = folders;
    this.#manifest = manifest;
  }

  /** The files on disk, else the names in the manifest, that are nearest to a missing name. */
  find(ref: WeightRef): NearMatch[] {
    const wanted = split(ref.name);
    const own = [ref.category, ...(ref.otherCategories ?? [])].filter((name) => name !== undefined);
    const inFolder = own.flatMap((category) =>
      this.#namesOf(category).flatMap((other) => {
        const why = whyNear(wanted, other);
        return why === undefined ? [] : [{ name: other.spelled, category, why }];
      }),
    );
    inFolder.sort((a, b) => ORDER.indexOf(a.why) - ORDER.indexOf(b.why));
    const sure = unique([...inFolder, ...this.#elsewhere(wanted, own)]);
    if (sure.length > 0) {
      return sure.slice(0, MAX_MATCHES);
    }
    const slips = own.flatMap((category) =>
      misspelt(wanted, this.#namesOf(category)).map(
        ({ spelled }): NearMatch => ({ name: spelled, category, why: "spelling" }),
      ),
    );
    return (slips.length > 0 ? slips : this.#inManifest(wanted, own)).slice(0, MAX_MATCHES);
  }

  #namesOf(category: string): readonly Name[] {
    const known = this.#names.get(category);
    if (known !== undefined) {
      return known;
    }
    const names = this.#folders.list(category).map(split);
    this.#names.set(category, names);
    return names;
  }

  /** The same file name in a folder that isn't searched for this one. */
  #elsewhere(wanted: Name, own: readonly string[]): NearMatch[] {
    this.#byBase ??= Map.groupBy(
      this.#folders
        .categories()
        .flatMap((category) =>
          this.#namesOf(category).map(({ spelled, base }) => ({ category, name: spelled, base })),
        ),
      ({ base }) => base,
    );
    const searched = new Set(own.flatMap((category) => this.#folders.pathsFor(category)));
    return (this.#byBase.get(wanted.base) ?? [])
      .filter(
        ({ category }) => !this.#folders.pathsFor(category).every((path) => searched.has(path)),
      )
      .map(({ category, name }) => ({ name, category, why: "other_folder" }));
  }

  #inManifest(wanted: Name, own: readonly string[]): NearMatch[] {
    const manifest = this.#manifest;
    if (manifest === undefined || manifest.find(wanted.spelled).length > 0) {
      return [];
    }
    return own.flatMap((category) => {
      const names = namesIn(manifest, category);
      const same = names.filter(({ stem }) => stem === wanted.stem);
      return (same.length > 0 ? same : misspelt(wanted, names)).map(
        ({ spelled }): NearMatch => ({ name: spelled, category, why: "spelling", onDisk: false }),
      );
    });
  }
}

function namesIn(manifest: Manifest, category: string): readonly Name[] {
  let known = manifestNames.get(manifest);
  if (known === undefined) {
    const rows = Map.groupBy(manifest.weights, (row) => row.category);
    known = new Map([...rows].map(([name, group]) => [name, group.map((row) => split(row.name))]));
    manifestNames.set(manifest, known);
  }
  return known.get(category) ?? [];
}

function unique(matches: readonly NearMatch[]): NearMatch[] {
  return [...new Map(matches.map((match) => [`${match.category}/${match.name}`, match])).values()];
}
