import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { ENV_NAMES, parseEnv } from "../../src/platform/env.ts";
import { ConfigError } from "../../src/platform/errors.ts";
import { PROJECT_ROOT } from "../../src/platform/project-root.ts";

describe("parseEnv", () => {
  test("gives every default in an empty environment", () => {
    const config = parseEnv({});
    expect([
      config.PORT,
      config.BASE_MODEL_KIT,
      config.WEIGHTS_POLICY,
      config.PRELOAD_MODE,
    ]).toEqual([5000, [], "per-request", "wait"]);
    expect(config.modelsDirs).toEqual([join(PROJECT_ROOT, "models")]);
    expect(config.WEIGHTS_REQUEST_MAX_BYTES).toBe(60e9);
  });

  test("takes an empty variable as an unset one", () => {
    expect(parseEnv({ PORT: "", COG_WEIGHTS: " ", BASE_MODEL_KIT: "" })).toMatchObject({
      PORT: 5000,
      BASE_MODEL_KIT: [],
    });
  });

  test("splits kits and workflows at white space, folders at colons, hosts at commas", () => {
    const config = parseEnv({
      BASE_MODEL_KIT: "sd15 sdxl",
      PRELOAD_WORKFLOW: "/a.json https://h/b.json",
      COMFYUI_MODELS_DIR: "/a:/b",
      WEIGHTS_ALLOWED_HOSTS: "a.example, b.example",
    });
    expect(config.BASE_MODEL_KIT).toEqual(["sd15", "sdxl"]);
    expect(config.PRELOAD_WORKFLOW).toEqual(["/a.json", "https://h/b.json"]);
    expect(config.modelsDirs).toEqual(["/a", "/b"]);
    expect(config.WEIGHTS_ALLOWED_HOSTS).toEqual(["a.example", "b.example"]);
  });

  test("reads models where the ComfyUI install keeps them, relative paths from the project", () => {
    expect(parseEnv({ COMFYUI_PATH: "/opt/ComfyUI" }).modelsDirs).toEqual(["/opt/ComfyUI/models"]);
    expect(parseEnv({ COMFYUI_MODELS_DIR: "m" }).modelsDirs).toEqual([join(PROJECT_ROOT, "m")]);
  });

  test("understands sizes as people write them", () => {
    expect(parseEnv({ WEIGHTS_CACHE_MAX_BYTES: "1.5TiB" }).WEIGHTS_CACHE_MAX_BYTES).toBe(
      1.5 * 2 ** 40,
    );
    expect(parseEnv({ WEIGHTS_CACHE_MAX_BYTES: "500GB" }).WEIGHTS_CACHE_MAX_BYTES).toBe(500e9);
  });

  test("names every wrong variable at once and what it may be", () => {
    const wrong = () =>
      parseEnv({ PORT: "http", WEIGHTS_POLICY: "maybe", WEIGHTS_CACHE_MAX_BYTES: "lots" });
    expect(wrong).toThrow(ConfigError);
    expect(wrong).toThrow(
      /PORT: "http" is no port.*WEIGHTS_POLICY: .*per-request.*WEIGHTS_CACHE_MAX_BYTES: "lots"/s,
    );
  });

  test("takes a proxy in either spelling", () => {
    expect(parseEnv({ https_proxy: "http://p:1" }).HTTPS_PROXY).toBe("http://p:1");
  });

  test("lists its variables for the documentation", () => {
    expect(ENV_NAMES).toContain("PRELOAD_WORKFLOW");
  });
});
