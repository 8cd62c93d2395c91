/** `weights list`: the weights that lie in the models folders, and whether each is whole. */
import { statSync } from "node:fs";
import { DEFECT_TEXT, inspect } from "../models/header.ts";
import { stringifyJson } from "../platform/json.ts";
import { formatSize } from "../platform/size.ts";
import type { Command } from "./command.ts";
import { EXIT, UsageError } from "./command.ts";
import type { CliServices } from "./services.ts";
import { readyWeights } from "./targets.ts";

interface ListedWeight {
  readonly category: string;
  readonly name: string;
  readonly file: string;
  readonly size: number;
  readonly problem: string | null;
}

/** Folders whose files are no weights. */
const NO_WEIGHTS = new Set(["custom_nodes", "configs", "datasets"]);

export const listWeights: Command<CliServices> = {
  name: "weights list",
  summary: "List the weights that are there",
  usage: "[CATEGORY…] [--store]",
  words: [0, Number.POSITIVE_INFINITY],
  options: {
    store: { type: "boolean", help: "list the shared store: size, last use, and who needs what" },
  },
  run: async ({ words, json, flag }, services, { out }) => {
    if (flag("store")) {
      return listStore(services, json, out);
    }
    const { weights } = await readyWeights(services);
    const { folders } = weights;
    const wanted =
      words.length === 0 ? folders.categories().filter((name) => !NO_WEIGHTS.has(name)) : words;
    const found = wanted.flatMap((category) =>
      folders
        .list(category)
        .flatMap((name) => listed(category, name, folders.locate(category, name))),
    );
    if (json) {
      out(`${stringifyJson({ weights: found }, 2)}\n`);
      return EXIT.done;
    }
    for (const { category, name, size, problem } of found) {
      out(
        `${category}/${name}  ${formatSize(size)}${problem === null ? "" : `  BROKEN: it ${problem}`}\n`,
      );
    }
    const total = found.reduce((sum, { size }) => sum + size, 0);
    out(
      `${found.length} weight${found.length === 1 ? "" : "s"}, ${formatSize(total)}, in ${folders.modelsDirs.join(", ")}\n`,
    );
    return EXIT.done;
  },
};

function listStore(services: CliServices, json: boolean, out: (text: string) => void): number {
  const { store } = services.predictor().weights;
  if (store === undefined) {
    throw new UsageError("There is no shared store", "Set WEIGHTS_CACHE_DIR to its folder.");
  }
  const blobs = store.list().toSorted((one, other) => other.usedMs - one.usedMs);
  if (json) {
    out(`${stringifyJson({ store: store.root, weights: blobs }, 2)}\n`);
    return EXIT.done;
  }
  for (const { name, category, size, usedMs, pins, sha256 } of blobs) {
    const used = new Date(usedMs).toISOString().slice(0, 16).replace("T", " ");
    const needed = pins.length === 0 ? "may be evicted" : `pinned: ${pins.join("; ")}`;
    out(
      `${category}/${name}  ${formatSize(size)}  last used ${used}  ${sha256.slice(0, 12)}  ${needed}\n`,
    );
  }
  const { bytes } = store.usage();
  const { WEIGHTS_CACHE_MAX_BYTES: budget } = services.config;
  out(
    `${blobs.length} weight${blobs.length === 1 ? "" : "s"}, ${formatSize(bytes)}${budget === undefined ? "" : ` of ${formatSize(budget)}`}, in ${store.root}\n`,
  );
  return EXIT.done;
}

function listed(category: string, name: string, file: string | undefined): ListedWeight[] {
  if (file === undefined) {
    return [];
  }
  const stat = statSync(file, { throwIfNoEntry: false });
  if (stat === undefined || stat.isDirectory()) {
    return [];
  }
  const verdict = inspect(file);
  return [
    {
      category,
      name,
      file,
      size: stat.size,
      problem: verdict.ok ? null : DEFECT_TEXT[verdict.defect],
    },
  ];
}
