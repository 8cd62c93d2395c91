/** `weights verify`: reads every byte of the weights that a SHA-256 is known for, and looks into the others. */

import { messageOf } from "../platform/errors.ts";
import { stringifyJson } from "../platform/json.ts";
import { verifyFile } from "../weights/verify.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
import type { CliServices, WeightsPort } from "./services.ts";
import { readyWeights } from "./targets.ts";

interface Checked {
  readonly category: string;
  readonly name: string;
  readonly file: string;
  /** `sha256`: every byte compared; `format`: no hash is known, size and header were looked at. */
  readonly by: "sha256" | "format";
  readonly problem: string | null;
}

const NO_WEIGHTS = new Set(["custom_nodes", "configs", "datasets"]);

export const verifyWeights: Command<CliServices> = {
  name: "weights verify",
  summary: "Check every byte of the weights that are there against the known SHA-256",
  usage: "[CATEGORY/NAME…]",
  words: [0, Number.POSITIVE_INFINITY],
  run: async ({ words, json }, services, terminal) => {
    const { weights } = await readyWeights(services);
    const results: Checked[] = [];
    for (const { category, name, file } of chosen(weights, words)) {
      const result = await check(weights, { category, name, file }, services.signal);
      results.push(result);
      if (!json) {
        terminal.out(
          `${result.problem === null ? "ok     " : "BROKEN "} ${category}/${name}${result.problem === null ? ` (${result.by === "sha256" ? "SHA-256" : "format only, no SHA-256 is known"})` : `: ${result.problem}`}\n`,
        );
      }
    }
    if (json) {
      terminal.out(`${stringifyJson({ weights: results }, 2)}\n`);
    }
    const broken = results.filter(({ problem }) => problem !== null).length;
    if (!json) {
      terminal.out(`${results.length} checked, ${broken} broken\n`);
    }
    return broken === 0 ? EXIT.done : EXIT.failed;
  },
};

function chosen(
  { folders }: WeightsPort,
  words: readonly string[],
): { category: string; name: string; file: string }[] {
  return folders
    .categories()
    .filter((category) => !NO_WEIGHTS.has(category))
    .flatMap((category) =>
      folders.list(category).flatMap((name) => {
        const file = folders.locate(category, name);
        const isWanted =
          words.length === 0 || words.includes(`${category}/${name}`) || words.includes(name);
        return file === undefined || !isWanted ? [] : [{ category, name, file }];
      }),
    );
}

async function check(
  { manifest }: WeightsPort,
  weight: { readonly category: string; readonly name: string; readonly file: string },
  signal: AbortSignal,
): Promise<Checked> {
  const row = manifest.find(weight.name, weight.category)[0];
  const by = row?.sha256 === undefined ? "format" : "sha256";
  try {
    await verifyFile(
      weight.file,
      { name: weight.name, sizeBytes: row?.size, sha256: row?.sha256 },
      signal,
    );
    return { ...weight, by, problem: null };
  } catch (error) {
    signal.throwIfAborted();
    return { ...weight, by, problem: messageOf(error) };
  }
}
