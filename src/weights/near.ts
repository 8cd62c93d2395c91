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

interface Name {
  readonly whole: string;
  readonly base: string;
  readonly stem: string;
}

function split(name: string): Name {
  const whole = name.replaceAll("\\", "/").toLowerCase();
  const base = whole.slice(whole.lastIndexOf("/") + 1);
  const ending = extensionOf(base);
  // Separators inside names are mixed up as easily as letters: `sd_xl base` is `sd-xl_base`.
  const stem = base.slice(0, base.length - ending.length).replace(/[\s_.-]+/g, "-");
  return { whole, base, stem };
}

function whyNear(wanted: Name, spelled: string, name: string): NearMatch["why"] | undefined {
  const other = split(name);
  if (other.whole === wanted.whole) {
    return spelled.replaceAll("\\", "/") === name ? "separator" : "case";
  }
  if (other.base === wanted.base) {
    return "subfolder";
  }
  if (other.stem === wanted.stem) {
    return extensionOf(name) === extensionOf(spelled) ? "separator" : "extension";
  }
  return undefined;
}

/** Levenshtein distance, given up beyond `limit`. */
export function editDistance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) > limit) {
    return limit + 1;
  }
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const change = (row[j - 1] ?? 0) + Number(a[i - 1] !== b[j - 1]);
      next.push(Math.min(change, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    if (Math.min(...next) > limit) {
      return limit + 1;
    }
    row = next;
  }
  return row[b.length] ?? limit + 1;
}

function misspelt(wanted: Name, names: Iterable<string>): string[] {
  const limit = Math.min(MAX_EDITS, Math.max(1, Math.floor(wanted.stem.length * EDIT_SHARE)));
  const found: { name: string; edits: number }[] = [];
  let compared = 0;
  for (const name of names) {
    compared += 1;
    if (compared > MAX_COMPARED) {
      break;
    }
    const edits = editDistance(wanted.stem, split(name).stem, limit);
    if (edits <= limit) {
      found.push({ name, edits });
    }
  }
  return found.sort((a, b) => a.edits - b.edits).map(({ name }) => name);
}

const ORDER: readonly NearMatch["why"][] = ["separator", "case", "extension", "subfolder"];

/** The files on disk, else the names in the manifest, that are nearest to a missing name. */
export function nearMatches(
  ref: WeightRef,
  folders: ModelFolders,
  manifest?: Manifest,
): NearMatch[] {
  const wanted = split(ref.name);
  const own = [ref.category, ...(ref.otherCategories ?? [])].filter((name) => name !== undefined);
  const inFolder = own.flatMap((category) =>
    folders.list(category).flatMap((name) => {
      const why = whyNear(wanted, ref.name, name);
      return why === undefined ? [] : [{ name, category, why }];
    }),
  );
  inFolder.sort((a, b) => ORDER.indexOf(a.why) - ORDER.indexOf(b.why));
  const elsewhere = otherFolders(wanted, own, folders);
  const sure = unique([...inFolder, ...elsewhere]);
  if (sure.length > 0) {
    return sure.slice(0, MAX_MATCHES);
  }
  const slips = own.flatMap((category) =>
    misspelt(wanted, folders.list(category)).map(
      (name): NearMatch => ({ name, category, why: "spelling" }),
    ),
  );
  return (slips.length > 0 ? slips : inManifest(ref.name, wanted, own, manifest)).slice(
    0,
    MAX_MATCHES,
  );
}

function otherFolders(wanted: Name, own: readonly string[], folders: ModelFolders): NearMatch[] {
  const searched = new Set(own.flatMap((category) => folders.pathsFor(category)));
  return folders
    .categories()
    .filter(
      (category) =>
        !own.includes(category) && !folders.pathsFor(category).every((path) => searched.has(path)),
    )
    .flatMap((category) =>
      folders
        .list(category)
        .filter((name) => split(name).base === wanted.base)
        .map((name): NearMatch => ({ name, category, why: "other_folder" })),
    );
}

function inManifest(
  spelled: string,
  wanted: Name,
  own: readonly string[],
  manifest: Manifest | undefined,
): NearMatch[] {
  if (manifest === undefined || own.length === 0 || manifest.find(spelled).length > 0) {
    return [];
  }
  const rows = manifest.weights.filter((row) => own.includes(row.category));
  const same = rows.filter((row) => split(row.name).stem === wanted.stem).map((row) => row.name);
  const names =
    same.length > 0
      ? same
      : misspelt(
          wanted,
          rows.map((row) => row.name),
        );
  return names.map((name) => ({
    name,
    category: own[0] ?? "",
    why: "spelling" as const,
    onDisk: false,
  }));
}

function unique(matches: readonly NearMatch[]): NearMatch[] {
  return [...new Map(matches.map((match) => [`${match.category}/${match.name}`, match])).values()];
}
