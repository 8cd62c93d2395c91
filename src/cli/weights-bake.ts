/** `weights bake`: the weights of kits and workflows as image layers. */
import { readdirSync, statSync } from "node:fs";
import { join, relative, resolve, sep } from "node:path";
import { isInside } from "../platform/files.ts";
import { stringifyJson } from "../platform/json.ts";
import { formatSize } from "../platform/size.ts";
import type { BakeFile } from "../weights/bake.ts";
import { bake } from "../weights/bake.ts";
import type { InstalledWeight } from "../weights/plan-types.ts";
import type { Command } from "./command.ts";
import { EXIT, UsageError } from "./command.ts";
import { ProgressBars } from "./progress-bars.ts";
import type { CliServices } from "./services.ts";
import { allJobsFor } from "./targets.ts";

/** Where this project's image looks for baked weights. */
const DEFAULT_PREFIX = "/opt/models";

export const bakeWeights: Command<CliServices> = {
  name: "weights bake",
  summary: "Write weights as image layers: an OCI image layout and a Dockerfile",
  usage: "KIT|WORKFLOW|WEIGHT… -o DIR [--prefix PATH]",
  words: [1, Number.POSITIVE_INFINITY],
  options: {
    output: { type: "string", short: "o", value: "DIR", help: "folder to write" },
    prefix: {
      type: "string",
      value: "PATH",
      help: `models folder in the image (${DEFAULT_PREFIX})`,
    },
  },
  examples: ["bin/cog-comfyui weights bake sdxl my_workflow.json -o layers"],
  run: async ({ words, json, text }, services, terminal) => {
    const out = text("output");
    if (out === undefined) {
      throw new UsageError("Say where to write with -o DIR");
    }
    const prefix = text("prefix") ?? DEFAULT_PREFIX;
    if (!prefix.startsWith("/") || prefix.split("/").includes("..")) {
      throw new UsageError(`"${prefix}" must be an absolute path of the image`);
    }
    const jobs = await allJobsFor(words, services);
    const { weights } = services.predictor();
    using bars = new ProgressBars(terminal);
    const { signal } = services;
    const installed = await weights.install(jobs, { signal, onProgress: (one) => bars.show(one) });
    bars.clear();
    const files: BakeFile[] = [];
    for (const weight of installed) {
      files.push(...(await filesOf(weight, services)));
    }
    const layers = await bake(files, {
      out: resolve(out),
      prefix,
      signal,
      onLayer: ({ digest, size, paths }) => {
        if (!json) {
          terminal.out(`${digest}  ${formatSize(size)}  ${paths.join(", ")}\n`);
        }
      },
    });
    terminal.out(
      json
        ? `${stringifyJson({ out: resolve(out), prefix, layers }, 2)}\n`
        : `${layers.length} layer${layers.length === 1 ? "" : "s"} in ${resolve(out)}: an OCI image layout, and a Dockerfile\n`,
    );
    return EXIT.done;
  },
};

/** A weight's files with their digests; a folder's are all below it. */
async function filesOf(weight: InstalledWeight, services: CliServices): Promise<BakeFile[]> {
  const { digests, folders } = services.predictor().weights;
  const isFolder = statSync(weight.file).isDirectory();
  const paths = isFolder
    ? readdirSync(weight.file, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() || entry.isSymbolicLink())
        .map((entry) => join(entry.parentPath, entry.name))
    : [weight.file];
  const root = folders.modelsDirs.find((dir) => isInside(dir, weight.file));
  return await Promise.all(
    paths.map(async (file) => ({
      file,
      path:
        root === undefined
          ? `${weight.category}/${weight.name}`
          : relative(root, file).replaceAll(sep, "/"),
      size: statSync(file).size,
      sha256: await digests.of(file, services.signal),
    })),
  );
}
