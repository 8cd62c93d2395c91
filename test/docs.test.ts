/** What the documents say is what the program does. */
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ComfyUI } from "../comfyui.ts";
import { Predictor } from "../predict.ts";
import { COMMANDS } from "../src/cli/commands.ts";
import { ENV_NAMES } from "../src/platform/env.ts";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { WeightsDownloader } from "../weights_downloader.ts";

function read(path: string): string {
  return readFileSync(join(PROJECT_ROOT, path), "utf8");
}

const README = read("README.md");

describe("README", () => {
  test("has a line for every variable that is read, and for no other", () => {
    const table = /<!-- env -->([\s\S]*)<!-- \/env -->/.exec(README)?.[1] ?? "";
    const documented = table
      .split("\n")
      .flatMap((line) =>
        [...(line.split("|")[1] ?? "").matchAll(/`([A-Z][A-Z0-9_]+)`/g)].map((match) => match[1]),
      );
    expect(documented.sort()).toEqual([...ENV_NAMES].sort());
  });

  test("names only commands that exist", () => {
    const named = [...README.matchAll(/bin\/cog-comfyui ([a-z]+(?: [a-z]+)?)/g)].map(
      (match) => match[1] ?? "",
    );
    const known = COMMANDS.map(({ name }) => name);
    expect(
      named.filter((text) => !known.some((name) => text === name || text.startsWith(`${name} `))),
    ).toEqual([]);
  });

  test("names only scripts that package.json has", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    const named = [...README.matchAll(/npm (?:run )?([a-z:]+)/g)].map((match) => match[1] ?? "");
    expect(named.filter((name) => name !== "test" && !Object.hasOwn(scripts, name))).toEqual([]);
  });
});

describe("links", () => {
  test.each([
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/README.md",
  ])("in %s lead to files that are there", (file) => {
    const targets = [...read(file).matchAll(/\]\((?!https?:|#)([^)#]+)/g)].map(
      (match) => match[1] ?? "",
    );
    const missing = targets.filter(
      (target) => !existsSync(join(PROJECT_ROOT, dirname(file), target)),
    );
    expect(missing).toEqual([]);
  });

  test("files that ARCHITECTURE.md and CONTRIBUTING.md name exist", () => {
    const named = [read("ARCHITECTURE.md"), read("CONTRIBUTING.md")]
      .flatMap((text) => [
        ...text.matchAll(/`((?:src|test|bench|scripts)\/[\w./-]+\.(?:ts|json))`/g),
      ])
      .map((match) => match[1] ?? "");
    expect(named.length).toBeGreaterThan(5);
    expect(named.filter((path) => !existsSync(join(PROJECT_ROOT, path)))).toEqual([]);
  });
});

describe("the root classes", () => {
  test.each([
    [
      "Predictor",
      Predictor,
      [
        "setup",
        "predict",
        "preload_base_kit",
        "preload_workflow_weights",
        "handle_user_weights",
        "handle_input_file",
      ],
    ],
    [
      "ComfyUI",
      ComfyUI,
      [
        "start_server",
        "load_workflow",
        "extract_required_weights",
        "validate_weights_exist",
        "weight_exists",
        "handle_weights",
        "handle_inputs",
        "run_workflow",
        "randomise_seeds",
        "reset_execution_cache",
        "get_files",
        "cleanup",
      ],
    ],
    ["WeightsDownloader", WeightsDownloader, ["download_weights", "weight_exists"]],
  ] as const)("%s has the methods that outsiders rely on", (_name, owner, methods) => {
    const own = Object.getOwnPropertyNames(owner.prototype);
    expect(methods.filter((method) => !own.includes(method))).toEqual([]);
  });
});
