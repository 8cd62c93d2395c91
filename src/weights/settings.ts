/** What the environment says about weights, in the forms that the parts of this room take. */
import { readFile } from "node:fs/promises";
import type { FolderSources } from "../models/folders.ts";
import type { Config } from "../platform/env.ts";
import { fromProject } from "../platform/env.ts";
import { messageOf, WeightError } from "../platform/errors.ts";
import type { HttpClient, ProxySettings } from "../platform/http.ts";
import { redactUrl } from "../platform/redact.ts";
import { Credentials } from "./credentials.ts";
import { Manifest } from "./manifest.ts";
import type { S3Settings } from "./sources.ts";

/** A manifest with ten thousand rows has a few megabytes. */
const MAX_MANIFEST_BYTES = 32 * 2 ** 20;

export function folderSources(config: Config): FolderSources {
  return {
    modelsDirs: config.modelsDirs,
    comfyDir: config.COMFYUI_PATH,
    extraModelPaths: config.COMFYUI_EXTRA_MODEL_PATHS.map(fromProject),
    env: config.env,
    hfHome: config.env["HF_HOME"],
  };
}

export function credentialsOf(config: Config): Credentials {
  return new Credentials({
    operator: { huggingFace: config.HF_TOKEN, civitai: config.CIVITAI_API_TOKEN },
    hfEndpoint: config.HF_ENDPOINT,
  });
}

export function proxyOf(config: Config): ProxySettings {
  return { http: config.HTTP_PROXY, https: config.HTTPS_PROXY, no: config.NO_PROXY };
}

export function s3Of({ env }: Config): S3Settings {
  return {
    accessKeyId: env["AWS_ACCESS_KEY_ID"],
    secretAccessKey: env["AWS_SECRET_ACCESS_KEY"],
    sessionToken: env["AWS_SESSION_TOKEN"],
    region: env["AWS_REGION"] ?? env["AWS_DEFAULT_REGION"],
    endpoint: env["AWS_ENDPOINT_URL_S3"] ?? env["AWS_ENDPOINT_URL"],
  };
}

/** The operator's manifest, from a path or an address. @throws WeightError MANIFEST_INVALID */
export async function readManifest(
  source: string,
  http: HttpClient,
  signal?: AbortSignal,
): Promise<Manifest> {
  return Manifest.parseText(await readText(source, http, signal), redactUrl(source));
}

async function readText(
  source: string,
  http: HttpClient,
  signal: AbortSignal | undefined,
): Promise<string> {
  try {
    if (!/^https?:\/\//i.test(source)) {
      return await readFile(fromProject(source), "utf8");
    }
    const response = await http.request(source, { signal });
    if (response.status !== 200) {
      await response.discard();
      throw new Error(`it answers ${response.status}`);
    }
    return await response.text(MAX_MANIFEST_BYTES);
  } catch (cause) {
    throw new WeightError(
      "MANIFEST_INVALID",
      `The manifest ${redactUrl(source)} can't be read: ${messageOf(cause)}`,
      { cause, hint: "Set WEIGHTS_MANIFEST to the path or address of a manifest." },
    );
  }
}
