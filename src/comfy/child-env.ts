/**
 * The environment that ComfyUI's process gets: an allow-list. Tokens of the Hub, of Civitai, of clouds, of our own API
 * never reach it, since every custom node could read them; the operator passes further names with COMFYUI_ENV_PASS.
 */

type Env = Readonly<Record<string, string | undefined>>;

/** What an interpreter, a GPU driver and a C library need to run at all. */
const ALLOWED = new Set([
  "PATH",
  "HOME",
  "USER",
  "LOGNAME",
  "SHELL",
  "LANG",
  "LANGUAGE",
  "TZ",
  "TMPDIR",
  "TEMP",
  "TMP",
  "VIRTUAL_ENV",
  "HF_HOME",
  "HF_HUB_CACHE",
  "HUGGINGFACE_HUB_CACHE",
  "TRANSFORMERS_CACHE",
  "TORCH_HOME",
  "SSL_CERT_FILE",
  "SSL_CERT_DIR",
  "REQUESTS_CA_BUNDLE",
  "CURL_CA_BUNDLE",
  "NO_COLOR",
  "SYSTEMROOT",
]);

const ALLOWED_PREFIXES = [
  "LC_",
  "LD_",
  "DYLD_",
  "XDG_",
  "CUDA_",
  "NVIDIA_",
  "CUBLAS_",
  "CUDNN_",
  "NCCL_",
  "HIP_",
  "ROCR_",
  "ROCM_",
  "HSA_",
  "GPU_",
  "MIOPEN_",
  "ONEAPI_",
  "ZE_",
  "SYCL_",
  "PYTORCH_",
  "TORCH_",
  "TORCHINDUCTOR_",
  "TRITON_",
  "XFORMERS_",
  "OMP_",
  "MKL_",
  "KMP_",
  "OPENBLAS_",
  "NUMEXPR_",
  "NUMBA_",
  "MALLOC_",
  "PYTHON",
  "CONDA_",
];

/** An allowed prefix must not carry a credential along (`NVIDIA_API_KEY`, `CONDA_TOKEN`). */
const SECRET_NAME = /TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY$|_PAT$/i;

/** Needed only by nodes that may use the network. */
const NETWORK = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];

const ALWAYS = {
  PYTHONUNBUFFERED: "1",
  HF_HUB_DISABLE_TELEMETRY: "1",
  DISABLE_TELEMETRY: "1",
  DO_NOT_TRACK: "1",
  ANONYMIZED_TELEMETRY: "False",
  NO_ALBUMENTATIONS_UPDATE: "1",
} as const;

/** Makes the libraries that fetch by themselves fail at once, with the name of what they wanted. */
const OFFLINE = {
  HF_HUB_OFFLINE: "1",
  TRANSFORMERS_OFFLINE: "1",
  DIFFUSERS_OFFLINE: "1",
  HF_DATASETS_OFFLINE: "1",
} as const;

export interface ChildEnvOptions {
  /** False: its nodes may use the network. */
  readonly offline: boolean;
  /** Names that are passed on whatever they are. */
  readonly pass: readonly string[];
}

/** The environment of the child process, made from ours. */
export function childEnv(env: Env, options: ChildEnvOptions): Record<string, string> {
  const passed = new Set([...options.pass, ...(options.offline ? [] : NETWORK)]);
  const kept = Object.entries(env).filter(
    (entry): entry is [string, string] =>
      entry[1] !== undefined && (passed.has(entry[0]) || isHarmless(entry[0])),
  );
  // A uid without a name, as containers may run under, is fatal to libraries that ask who they are (torch).
  const name = env["USER"] ?? env["LOGNAME"] ?? "cog";
  const defaults: Record<string, string> = {
    USER: name,
    ...ALWAYS,
    ...(options.offline ? OFFLINE : {}),
  };
  // What the operator passes by name wins over our defaults.
  return { ...Object.fromEntries(kept), ...defaults, ...pick(env, options.pass) };
}

function isHarmless(name: string): boolean {
  return (
    (ALLOWED.has(name) || ALLOWED_PREFIXES.some((prefix) => name.startsWith(prefix))) &&
    !SECRET_NAME.test(name)
  );
}

function pick(env: Env, names: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    names.flatMap((name) => {
      const value = env[name];
      return value === undefined ? [] : [[name, value]];
    }),
  );
}
