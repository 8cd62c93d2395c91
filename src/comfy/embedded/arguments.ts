/** The command line of ComfyUI, as far as the embedded engine has use for it; other known flags are accepted. */
import { join, resolve } from "node:path";
import { ConfigError } from "../../platform/errors.ts";
import type { CacheMode } from "./cache.ts";
import type { Compat } from "./nodes/definition.ts";

export interface EngineArguments {
  readonly host: string;
  readonly port: number;
  readonly input: string;
  readonly output: string;
  /** `--temp-directory X` means `X/temp`. */
  readonly temp: string;
  readonly modelsDir: string;
  readonly extraModelPaths: readonly string[];
  readonly compat: Compat;
  readonly cache: CacheMode;
  readonly withoutMetadata: boolean;
  readonly maxUploadBytes: number;
  readonly isVerbose: boolean;
  readonly isHelp: boolean;
}

/** Flags that take one value, or several. */
const VALUED = new Set(
  "--listen --port --input-directory --output-directory --temp-directory --user-directory --models-directory --base-directory --extra-model-paths-config --database-url --front-end-version --front-end-root --max-upload-size --preview-method --preview-size --cache-lru --cache-ram --default-hashing-function --verbose --tls-keyfile --tls-certfile --enable-cors-header --comfy-api-base --whitelist-custom-nodes --cuda-device --default-device --reserve-vram --vram-headroom --async-offload --fast --feature-flag --directml --compat".split(
    " ",
  ),
);
/** Flags that take none. */
const SWITCHES = new Set(
  "--disable-auto-launch --auto-launch --disable-all-custom-nodes --disable-api-nodes --disable-metadata --dont-print-server --cpu --cpu-vae --gpu-only --highvram --lowvram --novram --disable-smart-memory --deterministic --force-fp32 --force-fp16 --cache-classic --cache-none --multi-user --log-stdout --quick-test-for-ci --enable-compress-response-body --mmap-torch-files --disable-mmap --enable-manager --disable-manager-ui --enable-manager-legacy-ui --windows-standalone-build --enable-assets --enable-asset-hashing --disable-async-offload --disable-pinned-memory --disable-xformers --high-ram --fast-disk --use-pytorch-cross-attention --enable-dynamic-vram --disable-dynamic-vram --debug-hang --help -h".split(
    " ",
  ),
);

export const USAGE = [
  "usage: bun src/comfy/embedded/main.ts [flags of ComfyUI's main.py]",
  "",
  "The embedded engine of cog-comfyui: image nodes and RealESRGAN-Compact upscalers behind ComfyUI's API.",
  "",
  "flags with a value (most others of ComfyUI are accepted and ignored):",
  ...[...VALUED].map((flag) => `  ${flag}`),
  "switches:",
  ...[...SWITCHES].map((flag) => `  ${flag}`),
  "",
  "--compat 0.33.0|0.3.64 chooses the version whose behaviour is shown.",
].join("\n");

function collect(argv: readonly string[]): ReadonlyMap<string, readonly string[]> {
  const found = new Map<string, string[]>();
  let current: string[] | undefined;
  for (const word of argv) {
    const [flag = "", inline] = word.startsWith("--") ? word.split(/=(.*)/s) : [word];
    if (VALUED.has(flag)) {
      current = found.get(flag) ?? [];
      found.set(flag, current);
      if (inline !== undefined) {
        current.push(inline);
      }
    } else if (SWITCHES.has(word)) {
      found.set(word, []);
      current = undefined;
    } else if (current !== undefined && !word.startsWith("--")) {
      current.push(word);
    } else {
      throw new ConfigError("CONFIG_INVALID", `unrecognized arguments: ${word}`, {
        hint: "Run with --help to see the flags.",
      });
    }
  }
  return found;
}

function wholeNumber(flag: string, text: string | undefined, fallback: number): number {
  const number = Number(text ?? fallback);
  if (!Number.isFinite(number) || number < 0) {
    throw new ConfigError("CONFIG_INVALID", `argument ${flag}: invalid value: '${text}'`);
  }
  return number;
}

function cacheMode(found: ReadonlyMap<string, readonly string[]>, compat: Compat): CacheMode {
  if (found.has("--cache-none")) {
    return { kind: "none" };
  }
  const entries = Number(found.get("--cache-lru")?.at(-1) ?? 0);
  if (entries > 0) {
    return { kind: "lru", entries };
  }
  return found.has("--cache-classic") || compat === "0.3.64"
    ? { kind: "classic" }
    : { kind: "ram" };
}

function compatOf(text: string | undefined): Compat {
  if (text === undefined || text === "0.33.0" || text === "0.3.64") {
    return text ?? "0.33.0";
  }
  throw new ConfigError("CONFIG_INVALID", `argument --compat: invalid choice: '${text}'`, {
    hint: "Use 0.33.0 or 0.3.64.",
  });
}

const MEGABYTE = 1024 ** 2;

/** Reads the command line. @throws ConfigError for a flag that ComfyUI doesn't have. */
export function parseArguments(argv: readonly string[], cwd: string): EngineArguments {
  const found = collect(argv);
  const last = (flag: string) => found.get(flag)?.at(-1);
  const base = resolve(cwd, last("--base-directory") ?? ".");
  const folder = (flag: string, fallback: string) =>
    resolve(cwd, last(flag) ?? join(base, fallback));
  const compat = compatOf(last("--compat"));
  // A bare --listen means every address.
  const listen = found.has("--listen") ? (last("--listen") ?? "0.0.0.0") : "127.0.0.1";
  return {
    host: listen.split(",")[0] ?? "127.0.0.1",
    port: wholeNumber("--port", last("--port"), 8188),
    input: folder("--input-directory", "input"),
    output: folder("--output-directory", "output"),
    temp: join(folder("--temp-directory", "."), "temp"),
    modelsDir: folder("--models-directory", "models"),
    extraModelPaths: (found.get("--extra-model-paths-config") ?? []).map((file) =>
      resolve(cwd, file),
    ),
    compat,
    cache: cacheMode(found, compat),
    withoutMetadata: found.has("--disable-metadata"),
    maxUploadBytes: Math.round(
      wholeNumber("--max-upload-size", last("--max-upload-size"), 100) * MEGABYTE,
    ),
    isVerbose: found.has("--verbose") && (last("--verbose") ?? "DEBUG") === "DEBUG",
    isHelp: found.has("--help") || found.has("-h"),
  };
}
