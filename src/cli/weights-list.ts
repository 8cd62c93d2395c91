/** `weights list`: the weights that lie in the models folders, and whether each is whole. */
import { statSync } from "node:fs";
import { DEFECT_TEXT, inspect } from "../models/header.ts";
import { stringifyJson } from "../platform/json.ts";
import { formatSize } from "../platform/size.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
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
  usage: "[CATEGORY…]",
  words: [0, Number.POSITIVE_INFINITY],
  run: async ({ words, json }, services, { out }) => {
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
