/** ComfyUI's `extra_model_paths.yaml`: reading it by ComfyUI's own rules, and writing one for folders of ours. */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { ConfigError, messageOf } from "../platform/errors.ts";
import { isJsonObject } from "../platform/json.ts";
import { CATEGORIES, canonicalCategory } from "./categories.ts";

/** One folder that a yaml file adds to a category. */
export interface ExtraPath {
  readonly category: string;
  readonly path: string;
  /** Goes in front of what is there instead of behind it. */
  readonly first: boolean;
}

function expand(path: string, env: Readonly<Record<string, string | undefined>>): string {
  const home = path.replace(/^~(?=\/|$)/, homedir());
  // As os.path.expandvars: an unknown variable stays as it is written.
  return home.replace(
    /\$(?:\{([^}]*)\}|(\w+))/g,
    (whole, braced, bare) => env[braced ?? bare] ?? whole,
  );
}

function linesOf(value: unknown): string[] {
  return typeof value === "string" ? value.split("\n").filter((line) => line !== "") : [];
}

function groupPaths(
  group: Readonly<Record<string, unknown>>,
  baseDir: string,
  env: Readonly<Record<string, string | undefined>>,
): ExtraPath[] {
  const given = group["base_path"];
  const base =
    typeof given === "string" && given !== "" ? resolve(baseDir, expand(given, env)) : baseDir;
  const first = group["is_default"] === true || group["is_default"] === "true";
  return Object.entries(group)
    .filter(([key]) => key !== "base_path" && key !== "is_default")
    .flatMap(([key, value]) =>
      linesOf(value).map((line) => ({
        category: canonicalCategory(key),
        path: isAbsolute(line) ? resolve(line) : resolve(base, line),
        first,
      })),
    );
}

/**
 * The folders that a yaml file names, in the order ComfyUI adds them.
 * @throws ConfigError when the text is no yaml or not groups of folders.
 */
export function parseExtraPaths(
  text: string,
  file: string,
  env: Readonly<Record<string, string | undefined>> = {},
): ExtraPath[] {
  let parsed: unknown;
  try {
    parsed = Bun.YAML.parse(text);
  } catch (error) {
    throw new ConfigError("CONFIG_INVALID", `${file} is no YAML: ${messageOf(error)}`, {
      hint: "Correct the file that COMFYUI_EXTRA_MODEL_PATHS names.",
      cause: error,
    });
  }
  if (parsed === null || parsed === undefined) {
    return [];
  }
  if (!isJsonObject(parsed)) {
    throw new ConfigError("CONFIG_INVALID", `${file} holds no groups of folders.`, {
      hint: "Write it as ComfyUI's extra_model_paths.yaml.example: a group name, then category: folder.",
    });
  }
  return Object.entries(parsed).flatMap(([name, group]) => {
    if (group === null) {
      return [];
    }
    if (!isJsonObject(group)) {
      throw new ConfigError("CONFIG_INVALID", `${file}: group "${name}" holds no folders.`, {
        hint: "Write each entry of a group as category: folder.",
      });
    }
    const list = Object.entries(group).find(([, value]) => Array.isArray(value));
    if (list !== undefined) {
      throw new ConfigError(
        "CONFIG_INVALID",
        `${file}: "${name}.${list[0]}" is a list, on which ComfyUI stops at start-up.`,
        { hint: "Write several folders as one text, one a line (`|`)." },
      );
    }
    return groupPaths(group, dirname(resolve(file)), env);
  });
}

/** Reads a yaml file. @throws ConfigError when it can't be read or is wrong. */
export function readExtraPaths(
  file: string,
  env: Readonly<Record<string, string | undefined>> = {},
): ExtraPath[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new ConfigError("CONFIG_INVALID", `${file} can't be read: ${messageOf(error)}`, {
      hint: "Correct COMFYUI_EXTRA_MODEL_PATHS, or unset it.",
      cause: error,
    });
  }
  return parseExtraPaths(text, file, env);
}

/** The text of a yaml file (JSON is YAML) that makes ComfyUI search these models folders, the first one first. */
export function extraPathsText(modelsDirs: readonly string[], first: boolean): string {
  const groups = modelsDirs.map((dir, index) => {
    const categories = Object.entries(CATEGORIES).map(([category, row]) => {
      // With is_default each line goes in front of the one before, so the last line is searched first.
      const dirs = first ? row.dirs.toReversed() : row.dirs;
      return [category, dirs.map((name) => join(dir, name)).join("\n")];
    });
    return [
      `models_${index}`,
      { ...(first ? { is_default: true } : {}), ...Object.fromEntries(categories) },
    ];
  });
  // Later groups with is_default go in front of earlier ones.
  return JSON.stringify(Object.fromEntries(first ? groups.toReversed() : groups), undefined, 2);
}
