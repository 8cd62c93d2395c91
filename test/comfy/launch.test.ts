import { describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { childEnv } from "../../src/comfy/child-env.ts";
import type { LaunchFolders } from "../../src/comfy/launch.ts";
import { launchArguments, probeFlags, realInstallation } from "../../src/comfy/launch.ts";
import { chooseEngine } from "../../src/comfy/start.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { tempDir } from "../support/temp-dir.ts";

const FOLDERS: LaunchFolders = {
  dirs: { input: "/w/input", output: "/w/output", temp: "/w/temp" },
  tempBase: "/w",
  user: "/w/user",
  database: "/w/comfyui.db",
  emptyFrontEnd: "/w/no-front-end",
  extraModelPaths: ["/w/models.json", "/etc/extra.yaml"],
};

function argumentsFor(
  userArguments: readonly string[] = [],
  known?: ReadonlySet<string>,
): string[] {
  return launchArguments({ port: 4711, folders: FOLDERS, userArguments }, known);
}

describe("launch arguments", () => {
  test("listen on loopback alone, with folders of our own", () => {
    expect(argumentsFor(["--cpu"])).toEqual([
      "--listen",
      "127.0.0.1",
      "--port",
      "4711",
      "--input-directory",
      "/w/input",
      "--output-directory",
      "/w/output",
      "--temp-directory",
      "/w",
      "--user-directory",
      "/w/user",
      "--database-url",
      "sqlite:////w/comfyui.db",
      "--extra-model-paths-config",
      "/w/models.json",
      "/etc/extra.yaml",
      "--front-end-root",
      "/w/no-front-end",
      "--disable-auto-launch",
      "--disable-api-nodes",
      "--cpu",
    ]);
  });

  test("leave out what this version doesn't know, and what the operator sets", () => {
    const known = new Set(["--listen", "--port", "--front-end-root", "--disable-auto-launch"]);
    const made = argumentsFor(["--front-end-root=/srv/web"], known);
    expect(made).toContain("--temp-directory");
    expect(made).not.toContain("--database-url");
    expect(made).not.toContain("--disable-api-nodes");
    expect(made.filter((argument) => argument.startsWith("--front-end-root"))).toEqual([
      "--front-end-root=/srv/web",
    ]);
  });

  test.each(["--port", "--listen=0.0.0.0", "--output-directory"])("refuse %s", (flag) => {
    expect(() => argumentsFor([flag])).toThrow(flag.split("=")[0]);
  });
});

describe("the flags of an installation", () => {
  test("are read from its help", async () => {
    using dir = tempDir({
      "main.py": "",
      "fake-python": "#!/bin/sh\necho '  --cpu  x [--port N]'\n",
    });
    Bun.spawnSync(["chmod", "+x", dir.join("fake-python")]);
    const installation = realInstallation(dir.path, dir.join("fake-python"));
    expect(await probeFlags(installation, {})).toEqual(new Set(["--cpu", "--port"]));
  });

  test("that can't be read name the command, the reason and the cure", async () => {
    using dir = tempDir({
      "main.py": "",
      "fake-python":
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'yaml'\" >&2\nexit 1\n",
    });
    Bun.spawnSync(["chmod", "+x", dir.join("fake-python")]);
    for (const python of [dir.join("fake-python"), dir.join("no-such-python")]) {
      const error = await probeFlags(realInstallation(dir.path, python), {}).catch(
        (thrown: unknown) => thrown,
      );
      expect(error).toMatchObject({
        code: "ENGINE_UNAVAILABLE",
        message: expect.stringContaining(python),
        hint: expect.stringContaining("COMFYUI_PYTHON"),
      });
    }
  });

  test("come from the Python beside it unless one is given", () => {
    using dir = tempDir({ "main.py": "" });
    expect(realInstallation(dir.path, undefined).command).toEqual(["python3", "main.py"]);
    mkdirSync(dir.join("venv/bin"), { recursive: true });
    writeFileSync(dir.join("venv/bin/python"), "");
    expect(realInstallation(dir.path, undefined).command[0]).toBe(dir.join("venv/bin/python"));
    expect(realInstallation(dir.path, "/opt/python").command[0]).toBe("/opt/python");
  });
});

describe("the choice of an engine", () => {
  const choose = (env: Record<string, string>) => chooseEngine(parseEnv(env));

  test("follows COMFYUI_ENGINE, then the address, then the path, and says when it falls back", () => {
    expect(choose({})).toEqual({ kind: "embedded", isFallback: true });
    expect(choose({ COMFYUI_ENGINE: "embedded", COMFYUI_PATH: "/c" })).toEqual({
      kind: "embedded",
      isFallback: false,
    });
    expect(choose({ COMFYUI_PATH: "/c" })).toEqual({ kind: "real", path: "/c" });
    expect(choose({ COMFYUI_PATH: "/c", COMFYUI_URL: "http://gpu:8188" })).toEqual({
      kind: "remote",
      url: "http://gpu:8188",
    });
  });

  test("never falls back where the real one is asked for", () => {
    expect(() => choose({ COMFYUI_ENGINE: "real" })).toThrow("COMFYUI_PATH");
    expect(() => realInstallation("/no/such/folder", undefined)).toThrow("no main.py");
  });
});

describe("the environment of the process", () => {
  const env = {
    PATH: "/bin",
    HOME: "/root",
    LC_ALL: "C",
    CUDA_VISIBLE_DEVICES: "0",
    PYTORCH_CUDA_ALLOC_CONF: "x",
    HF_TOKEN: "hf_secret",
    HF_HOME: "/hf",
    CIVITAI_API_TOKEN: "c",
    AWS_SECRET_ACCESS_KEY: "a",
    API_TOKEN: "t",
    WEBHOOK_SIGNING_SECRET: "w",
    NVIDIA_API_KEY: "n",
    CONDA_TOKEN: "n",
    HTTPS_PROXY: "http://user:pass@proxy",
    SOMETHING: "else",
    MY_NODE_KEY: "k",
  };

  test("holds no token, whatever it is called", () => {
    const made = childEnv(env, { offline: true, pass: [] });
    const text = JSON.stringify(made);
    for (const secret of ["hf_secret", "NVIDIA_API_KEY", "CONDA_TOKEN", "pass@", "SOMETHING"]) {
      expect(text).not.toContain(secret);
    }
    expect(made).toMatchObject({
      PATH: "/bin",
      LC_ALL: "C",
      CUDA_VISIBLE_DEVICES: "0",
      HF_HOME: "/hf",
      HF_HUB_OFFLINE: "1",
      TRANSFORMERS_OFFLINE: "1",
      PYTHONUNBUFFERED: "1",
    });
  });

  test("gets what the operator passes by name, over our defaults", () => {
    const made = childEnv(
      { ...env, HF_HUB_OFFLINE: "0" },
      {
        offline: true,
        pass: ["MY_NODE_KEY", "HF_HUB_OFFLINE", "NOT_SET"],
      },
    );
    expect(made["MY_NODE_KEY"]).toBe("k");
    expect(made["HF_HUB_OFFLINE"]).toBe("0");
    expect("NOT_SET" in made).toBe(false);
  });

  test("may use the network where the operator says so", () => {
    const made = childEnv(env, { offline: false, pass: [] });
    expect(made["HF_HUB_OFFLINE"]).toBeUndefined();
    expect(made["HTTPS_PROXY"]).toBe("http://user:pass@proxy");
    expect(made["HF_TOKEN"]).toBeUndefined();
  });
});
