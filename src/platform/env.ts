/**
 * The environment, parsed once into a frozen {@link Config}. The only reader of `process.env`; called by the
 * composition root, never at import. Every variable outsiders may set is a row of {@link EnvSchema}.
 */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { z } from "zod";
import { ConfigError } from "./errors.ts";
import { PROJECT_ROOT } from "./project-root.ts";
import { parseSize } from "./size.ts";

/** An empty variable means the same as an unset one: compose files and platforms set empty strings. */
const text = z.string().trim().optional();

/** A variable that is on when it is `1`, `true`, `yes` or `on`. */
const flag = z
  .string()
  .trim()
  .toLowerCase()
  .optional()
  .transform((value, context) => {
    if (value === undefined || ["0", "false", "no", "off"].includes(value)) {
      return false;
    }
    if (["1", "true", "yes", "on"].includes(value)) {
      return true;
    }
    context.addIssue({ code: "custom", message: "must be 1 or 0" });
    return z.NEVER;
  });

function size(fallback: string | undefined) {
  return z
    .string()
    .optional()
    .transform((value, context) => {
      const given = value ?? fallback;
      const bytes = given === undefined ? undefined : parseSize(given);
      if (given !== undefined && bytes === undefined) {
        context.addIssue({
          code: "custom",
          message: `"${given}" is no size; write for example 500GB or 1.5TiB`,
        });
        return z.NEVER;
      }
      return bytes;
    });
}

function positive(unit: string) {
  return z
    .string()
    .optional()
    .transform((value, context) => {
      if (value === undefined) {
        return undefined;
      }
      const number = Number(value);
      if (!Number.isFinite(number) || number <= 0) {
        context.addIssue({
          code: "custom",
          message: `"${value}" must be a number of ${unit} above 0`,
        });
        return z.NEVER;
      }
      return number;
    });
}

/** Words separated by white space. */
const words = z
  .string()
  .optional()
  .transform((value) => (value ?? "").split(/\s+/).filter((word) => word !== ""));

/** Words separated by commas or white space. */
const list = z
  .string()
  .optional()
  .transform((value) => (value ?? "").split(/[\s,]+/).filter((word) => word !== ""));

/** Paths separated by the platform's colon. A drive letter is not split off: `C:\models` stays whole. */
const paths = z
  .string()
  .optional()
  .transform((value) => (value ?? "").split(/(?<!^[A-Za-z]):/).filter((path) => path !== ""));

const EnvSchema = z.object({
  PORT: z
    .string()
    .optional()
    .transform((value, context) => {
      const port = Number(value ?? "5000");
      if (!Number.isInteger(port) || port < 0 || port > 65_535) {
        context.addIssue({ code: "custom", message: `"${value}" is no port; use 0 to 65535` });
        return z.NEVER;
      }
      return port;
    }),
  COG_WEIGHTS: text,
  BASE_MODEL_KIT: words,
  PRELOAD_WORKFLOW: words,
  PRELOAD_MODE: z.enum(["wait", "background", "lazy"]).default("wait"),
  WORKFLOW: text,
  WEIGHTS_POLICY: z.enum(["per-request", "fail", "download"]).default("per-request"),
  WEIGHTS_REQUEST_MAX_BYTES: size("60GB"),
  WEIGHTS_MIN_FREE_BYTES: size(undefined),
  WEIGHTS_IGNORE: list,
  WEIGHTS_MANIFEST: text,
  WEIGHTS_LOCK: text,
  WEIGHTS_CACHE_DIR: text,
  WEIGHTS_CACHE_MAX_BYTES: size(undefined),
  WEIGHTS_CACHE_MODE: z.enum(["auto", "link", "copy"]).default("auto"),
  WEIGHTS_LOCAL_MAX_BYTES: size(undefined),
  READY_REQUIRES_WEIGHTS: flag,
  WEIGHTS_ALLOWED_HOSTS: list,
  ALLOW_PRIVATE_NETWORK: list,
  WEBHOOK_ALLOW_PRIVATE: z.string().optional(),
  API_TOKEN: list,
  ADMIN_TOKEN: list,
  COMFYUI_PATH: text,
  COMFYUI_URL: text,
  COMFYUI_MODELS_DIR: paths,
  COMFYUI_EXTRA_MODEL_PATHS: paths,
  COMFYUI_ENGINE: z.enum(["auto", "real", "embedded"]).default("auto"),
  COMFYUI_PYTHON: text,
  WORK_DIR: text,
  COMFYUI_ARGS: words,
  COMFYUI_START_TIMEOUT: positive("seconds"),
  COMFYUI_ENV_PASS: list,
  COMFYUI_OFFLINE: z
    .enum(["0", "1", "true", "false"])
    .default("1")
    .transform((value) => value === "1" || value === "true"),
  PREDICT_TIMEOUT: positive("seconds"),
  STALL_TIMEOUT: positive("seconds"),
  WARMUP_WORKFLOW: text,
  HF_TOKEN: text,
  HF_ENDPOINT: text,
  CIVITAI_API_TOKEN: text,
  HTTP_PROXY: text,
  HTTPS_PROXY: text,
  NO_PROXY: text,
  /** When ComfyUI is told to give its memory back. */
  COMFYUI_FREE_AFTER: z.enum(["never", "prediction", "model-change"]).default("never"),
  OUTPUT_STORE_URL: text,
  OUTPUT_MAX_BYTES: size("10GB"),
  PREDICTION_STREAMING: flag,
  EXIT_WHEN_UNHEALTHY: flag,
  // 0 is a value here: never.
  ORPHAN_TIMEOUT: z
    .string()
    .regex(/^\d+(\.\d+)?$/, "must be a number of seconds, or 0 for never")
    .transform(Number)
    .optional(),
  // Cog's own (cog_protocol.md §18.2). Garbage in these falls back to a default with a warning, as there.
  COG_MAX_CONCURRENCY: text,
  COG_SETUP_TIMEOUT: text,
  COG_LOG_LEVEL: text,
  LOG_FORMAT: text,
  RUST_LOG: text,
  COG_THROTTLE_RESPONSE_INTERVAL: text,
  COG_STREAM_HISTORY_CAPACITY: text,
  WEBHOOK_AUTH_TOKEN: text,
  WEBHOOK_SIGNING_SECRET: text,
  COG_USER_AGENT: text,
  KUBERNETES_SERVICE_HOST: text,
});

type Env = z.output<typeof EnvSchema>;

/** Every variable this program reads, in the order of the table in README. */
export const ENV_NAMES: readonly string[] = Object.keys(EnvSchema.shape);

/** Settings of the whole process. Paths are absolute. */
export type Config = Readonly<
  Env & {
    /** Folders ComfyUI reads models from, all searched; the first writable one receives. */
    readonly modelsDirs: readonly string[];
    readonly workDir: string;
    readonly lockPath: string | undefined;
    /** The environment as it was given, for the child process's allow-list. */
    readonly env: Readonly<Record<string, string | undefined>>;
  }
>;

/** A path of a variable made absolute: relative ones are relative to the project, not to the caller's folder. */
export function fromProject(path: string): string {
  return isAbsolute(path) ? path : resolve(PROJECT_ROOT, path);
}

/** What the operator writes as a path is relative to the project; JSON text and addresses stay as they are. */
export function fromOperator(given: string): string {
  return /^\s*[[{]|^[a-z][a-z0-9+.-]*:/i.test(given) ? given : fromProject(given);
}

function modelsDirs(env: Env): string[] {
  if (env.COMFYUI_MODELS_DIR.length > 0) {
    return env.COMFYUI_MODELS_DIR.map(fromProject);
  }
  return [
    env.COMFYUI_PATH === undefined
      ? fromProject("models")
      : join(fromProject(env.COMFYUI_PATH), "models"),
  ];
}

function lockPath(env: Env): string | undefined {
  if (env.WEIGHTS_LOCK !== undefined) {
    return fromProject(env.WEIGHTS_LOCK);
  }
  const conventional = fromProject("weights.lock.json");
  return existsSync(conventional) ? conventional : undefined;
}

/**
 * Parses an environment.
 * @throws ConfigError naming every variable that is wrong and what it may be.
 */
export function parseEnv(env: Readonly<Record<string, string | undefined>>): Config {
  const given = Object.fromEntries(
    Object.entries(env).filter(([, value]) => value !== undefined && value.trim() !== ""),
  );
  // Proxy variables are lower-case by Unix custom; both spellings count.
  for (const name of ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]) {
    given[name] ??= given[name.toLowerCase()];
  }
  const parsed = EnvSchema.safeParse(given);
  if (!parsed.success) {
    const problems = parsed.error.issues.map(
      (issue) => `${issue.path.join(".")}: ${issue.message}`,
    );
    throw new ConfigError(
      "CONFIG_INVALID",
      `The environment is not usable. ${problems.join("; ")}`,
      {
        hint: "Correct or unset these variables; the table in README lists what each one takes.",
        details: { problems },
      },
    );
  }
  return Object.freeze({
    ...parsed.data,
    COMFYUI_PATH:
      parsed.data.COMFYUI_PATH === undefined ? undefined : fromProject(parsed.data.COMFYUI_PATH),
    modelsDirs: modelsDirs(parsed.data),
    workDir: parsed.data.WORK_DIR === undefined ? tmpdir() : fromProject(parsed.data.WORK_DIR),
    lockPath: lockPath(parsed.data),
    env: given,
  });
}

/** The configuration of this process. */
export function readConfig(): Config {
  return parseEnv(process.env);
}

/** The values that must never be printed. */
export function secretsOf(config: Config): (string | undefined)[] {
  return [
    config.HF_TOKEN,
    config.CIVITAI_API_TOKEN,
    config.WEBHOOK_AUTH_TOKEN,
    config.WEBHOOK_SIGNING_SECRET,
    ...config.API_TOKEN,
    ...config.ADMIN_TOKEN,
    config.env["AWS_SECRET_ACCESS_KEY"],
    config.env["AWS_SESSION_TOKEN"],
  ];
}
