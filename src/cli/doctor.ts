/** `doctor`: is this machine and its configuration fit to serve? One line each, with what to do. */
import { accessSync, constants, existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { chooseEngine } from "../comfy/start.ts";
import { messageOf } from "../platform/errors.ts";
import { freeSpace } from "../platform/files.ts";
import { stringifyJson } from "../platform/json.ts";
import { formatSize } from "../platform/size.ts";
import type { Command } from "./command.ts";
import { EXIT } from "./command.ts";
import type { CliServices } from "./services.ts";
import { jobsFor, readyWeights } from "./targets.ts";

interface Finding {
  readonly check: string;
  readonly ok: boolean;
  readonly says: string;
}

export const doctor: Command<CliServices> = {
  name: "doctor",
  summary: "Check this machine and its configuration, and say what to do",
  usage: "",
  run: async ({ json }, services, { out }) => {
    const findings = [
      runtime(),
      engine(services),
      ...models(services),
      await finding("manifest", async () => {
        const { weights } = await readyWeights(services);
        const { manifest } = weights;
        return `${manifest.weights.length} weights, kits ${[...manifest.kits.keys()].join(", ")}`;
      }),
      await finding("shared store", () => Promise.resolve(store(services))),
      await finding("preloaded weights", () => preloaded(services)),
    ];
    if (json) {
      out(`${stringifyJson({ findings }, 2)}\n`);
    } else {
      for (const { check, ok, says } of findings) {
        out(`${ok ? "ok  " : "BAD "} ${check}: ${says}\n`);
      }
    }
    return findings.every(({ ok }) => ok) ? EXIT.done : EXIT.failed;
  },
};

function store({ config, predictor }: CliServices): string {
  const shared = predictor().weights.store;
  if (shared === undefined) {
    return "none configured (WEIGHTS_CACHE_DIR)";
  }
  const { blobs, bytes } = shared.usage();
  const budget = config.WEIGHTS_CACHE_MAX_BYTES;
  const limit = budget === undefined ? "no budget" : `of ${formatSize(budget)}`;
  const how = shared.mode === "copy" ? "copied to the local disk" : "linked";
  const access = shared.writable ? "" : ", read-only: nothing is added";
  return `${shared.root}: ${blobs.length} weights, ${formatSize(bytes)} (${limit}), ${how}${access}`;
}

function runtime(): Finding {
  return {
    check: "runtime",
    ok: true,
    says: `Bun ${Bun.version} on ${process.platform}/${process.arch}`,
  };
}

function engine({ config }: CliServices): Finding {
  try {
    const choice = chooseEngine(config);
    if (choice.kind === "real") {
      const main = join(choice.path, "main.py");
      const ok = existsSync(main);
      return {
        check: "engine",
        ok,
        says: ok
          ? `ComfyUI at ${choice.path}`
          : `COMFYUI_PATH=${choice.path} holds no main.py: point it at a ComfyUI checkout`,
      };
    }
    const says =
      choice.kind === "remote"
        ? `ComfyUI at ${choice.url}`
        : "embedded: image nodes and small upscalers only. Set COMFYUI_PATH to a ComfyUI checkout to run everything";
    return { check: "engine", ok: true, says };
  } catch (error) {
    return { check: "engine", ok: false, says: messageOf(error) };
  }
}

function models({ config }: CliServices): Finding[] {
  return config.modelsDirs.map((dir, index) => {
    try {
      mkdirSync(dir, { recursive: true });
      accessSync(dir, constants.W_OK);
      const { freeBytes } = freeSpace(dir);
      return {
        check: `models folder ${dir}`,
        ok: true,
        says: `writable, ${formatSize(freeBytes)} free`,
      };
    } catch (error) {
      // Only the first one receives downloads; the others may be read-only.
      return {
        check: `models folder ${dir}`,
        ok: index > 0,
        says: `not writable: ${messageOf(error)}`,
      };
    }
  });
}

async function preloaded(services: CliServices): Promise<string> {
  const { BASE_MODEL_KIT: kits, PRELOAD_WORKFLOW: workflows, WORKFLOW: served } = services.config;
  const wanted = [...kits, ...workflows, ...(served === undefined ? [] : [served])];
  if (wanted.length === 0) {
    return "none configured (BASE_MODEL_KIT, PRELOAD_WORKFLOW, WORKFLOW)";
  }
  const jobs = await jobsFor(wanted, services);
  return `${wanted.join(", ")}: ${jobs.length} weight${jobs.length === 1 ? "" : "s"} with a source`;
}

async function finding(check: string, look: () => Promise<string>): Promise<Finding> {
  try {
    return { check, ok: true, says: await look() };
  } catch (error) {
    return { check, ok: false, says: messageOf(error) };
  }
}
