/** `weights verify`: reads every byte of the weights that a SHA-256 is known for, and looks into the others. */
import { stringifyJson } from "../platform/json.ts";
import type { VerifiedPresent } from "../weights/verify-present.ts";
import { verifyPresent } from "../weights/verify-present.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
import type { CliServices } from "./services.ts";
import { readyWeights } from "./targets.ts";

export const verifyWeights: Command<CliServices> = {
  name: "weights verify",
  summary: "Check every byte of the weights that are there against the known SHA-256",
  usage: "[CATEGORY/NAME…]",
  words: [0, Number.POSITIVE_INFINITY],
  run: async ({ words, json }, services, terminal) => {
    const { weights } = await readyWeights(services);
    const results: VerifiedPresent[] = [];
    for await (const result of verifyPresent(weights, words, services.signal)) {
      results.push(result);
      if (!json) {
        terminal.out(`${lineOf(result)}\n`);
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

function lineOf({ category, name, by, problem }: VerifiedPresent): string {
  const how = by === "sha256" ? "SHA-256" : "format only, no SHA-256 is known";
  return problem === null
    ? `ok      ${category}/${name} (${how})`
    : `BROKEN  ${category}/${name}: ${problem}`;
}
