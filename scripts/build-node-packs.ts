/**
 * Writes src/workflow/node-packs.json: which node pack brings a class, and at which commit custom_nodes.json pins it.
 * Facts only: names of classes and of repositories. Usage: bun scripts/build-node-packs.ts <extension-node-map.json…>,
 * ComfyUI-Manager's public map, oldest first (an old one still has packs that were taken down since).
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";

const ROOT = join(import.meta.dir, "..");
const TARGET = join(ROOT, "src/workflow/node-packs.json");

const NodeMap = z.record(
  z.string(),
  z.tuple([z.array(z.string()), z.looseObject({ nodename_pattern: z.string().optional() })]),
);
const CustomNodes = z.record(
  z.string(),
  z.array(z.object({ repo: z.string(), commit: z.string() })),
);
const Core = z.object({ nodes: z.record(z.string(), z.unknown()) });
const Implied = z.object({ rows: z.array(z.object({ class: z.string(), source: z.string() })) });

/** Packs beyond custom_nodes.json whose loaders src/workflow/loaders.ts knows. */
const FURTHER = [
  "city96/ComfyUI-GGUF",
  "yolain/ComfyUI-Easy-Use",
  "ltdrdata/ComfyUI-Impact-Subpack",
  "nunchaku-tech/ComfyUI-nunchaku",
  "pollockjj/ComfyUI-MultiGPU",
  "Shakker-Labs/ComfyUI-IPAdapter-Flux",
  "silveroxides/ComfyUI_bnb_nf4_fp4_Loaders",
  "calcuis/gguf",
  "willmiao/ComfyUI-Lora-Manager",
  "asagi4/comfyui-prompt-control",
  "kijai/ComfyUI-CogVideoXWrapper",
  "kijai/ComfyUI-CCSR",
  "kijai/ComfyUI-LivePortraitKJ",
  "kijai/ComfyUI-Marigold",
  "kijai/ComfyUI-KwaiKolorsWrapper",
  "mav-rik/facerestore_cf",
  "idrirap/ComfyUI-Lora-Auto-Trigger-Words",
  "numz/ComfyUI-SeedVR2_VideoUpscaler",
  "pythongosssss/ComfyUI-WD14-Tagger",
  "ArtVentureX/comfyui-animatediff",
  "cubiq/ComfyUI_FaceAnalysis",
];

/** Forks that custom_nodes.json pins bring what the repository beside them brings. */
const FORK_OF: Readonly<Record<string, string>> = {
  "fofr/comfyui_segment_anything": "storyicon/comfyui_segment_anything",
  "fofr/ComfyUI-BrushNet": "nullquant/ComfyUI-BrushNet",
  "fofr/ComfyUI_PuLID_Flux_ll": "lldacing/ComfyUI_PuLID_Flux_ll",
  "fofr/ComfyUI-AdvancedLivePortrait": "PowerHouseMan/ComfyUI-AdvancedLivePortrait",
};

/** Packs that no map has, read in their `NODE_CLASS_MAPPINGS`. */
const BY_HAND: Readonly<Record<string, readonly string[]>> = {
  "laksjdjf/attention-couple-ComfyUI": ["Attention couple"],
  "ostris/ComfyUI-Advanced-Vision": ["AdvancedVisionLoader"],
  "chengzeyi/Comfy-WaveSpeed": [
    "ApplyFBCacheOnModel",
    "ApplyFBCacheOnModelAdvanced",
    "EnhancedCompileModel",
    "EnhancedLoadDiffusionModel",
    "VelocatorCompileModel",
    "VelocatorLoadAndQuantizeClip",
    "VelocatorLoadAndQuantizeDiffusionModel",
    "VelocatorQuantizeModel",
  ],
  "TheMistoAI/MistoControlNet-Flux-dev": [
    "ApplyTheMistoFluxControlNet",
    "KSamplerTheMisto",
    "LoadTheMistoFluxControlNet",
  ],
  "shadel/ComfyUI-BiRefNet-ZHO": ["BiRefNet_ModelLoader_Zho", "BiRefNet_Zho"],
  "kijai/ComfyUI-MochiWrapper": [
    "DownloadAndLoadMochiModel",
    "MochiModelLoader",
    "MochiVAEEncoderLoader",
    "MochiVAELoader",
  ],
};

interface Pack {
  readonly repo: string;
  readonly classes: Set<string>;
  pattern?: string | undefined;
}

function read<T>(path: string, schema: z.ZodType<T>): T {
  return schema.parse(JSON.parse(readFileSync(path, "utf8")));
}

/** `owner/name` of a GitHub address, and of nothing else. */
function repoOf(address: string): string | undefined {
  return /^https:\/\/github\.com\/([^/]+\/[^/]+?)(?:\.git)?\/?$/.exec(address)?.[1];
}

/** All maps as one, by repository in lower case. */
function readMaps(paths: readonly string[]): Map<string, Pack> {
  const packs = new Map<string, Pack>();
  for (const path of paths) {
    for (const [address, [classes, about]] of Object.entries(read(path, NodeMap))) {
      const repo = repoOf(address);
      if (repo !== undefined) {
        const pack = packs.get(repo.toLowerCase()) ?? { repo, classes: new Set<string>() };
        for (const name of classes) {
          pack.classes.add(name);
        }
        pack.pattern = about.nodename_pattern ?? pack.pattern;
        packs.set(repo.toLowerCase(), pack);
      }
    }
  }
  return packs;
}

function main(paths: readonly string[]): void {
  const maps = readMaps(paths);
  const core = read(join(ROOT, "src/workflow/core-definitions.json"), Core).nodes;
  const implied = read(join(ROOT, "src/weights/implied-weights.json"), Implied).rows;
  const pinned = Object.values(read(join(ROOT, "custom_nodes.json"), CustomNodes)).flat();
  const commits = new Map(pinned.map(({ repo, commit }) => [repoOf(repo) ?? repo, commit]));
  const lines = [...new Set([...commits.keys(), ...FURTHER, ...Object.keys(BY_HAND)])].map(
    (repo) => {
      const found = maps.get((FORK_OF[repo] ?? repo).toLowerCase());
      const own = implied
        .filter(({ source }) => source.toLowerCase().startsWith(`${repo.toLowerCase()}@`))
        .map((row) => row.class);
      const classes = [...new Set([...(found?.classes ?? []), ...(BY_HAND[repo] ?? []), ...own])]
        .filter((name) => !Object.hasOwn(core, name))
        .sort();
      if (classes.length === 0 && found?.pattern === undefined) {
        throw new Error(`No class of ${repo} is known: give a map that has it, or a row by hand`);
      }
      const commit = commits.get(repo);
      const row = {
        ...(commit === undefined ? {} : { commit }),
        ...(found?.pattern === undefined ? {} : { pattern: found.pattern }),
        classes,
      };
      return `  ${JSON.stringify(repo)}: ${JSON.stringify(row)}`;
    },
  );
  void Bun.write(TARGET, `{\n${lines.join(",\n")}\n}\n`);
  process.stdout.write(`${lines.length} packs\n`);
}

if (import.meta.main) {
  main(process.argv.slice(2));
}
