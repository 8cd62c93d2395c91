/**
 * One ComfyUI process: started on a free loopback port with folders of its own, watched until it answers or dies,
 * stopped with its whole process group. What it prints is forwarded and the last lines are kept.
 */
import { join } from "node:path";
import { extraPathsText } from "../models/extra-paths.ts";
import { CanceledError, EngineError, messageOf } from "../platform/errors.ts";
import { makeFolder, removeTree, writeAtomically } from "../platform/files.ts";
import type { HttpClient } from "../platform/http.ts";
import type { Logger } from "../platform/log.ts";
import { sleep, within } from "../platform/retry.ts";
import { ComfyClient } from "./client.ts";
import type { EngineExit } from "./engine.ts";
import type { Installation, LaunchFolders } from "./launch.ts";
import { launchArguments } from "./launch.ts";
import { LogRing } from "./log-ring.ts";

export interface ProcessTimes {
  /** How long it may take to answer while it lives. */
  readonly startTimeoutMs: number;
  /** The longest pause between two looks; the first ones follow quickly, for engines that boot in a blink. */
  readonly probeIntervalMs: number;
  /** After SIGINT, and again after SIGTERM. */
  readonly stopGraceMs: number;
}

/** Half an hour: dozens of node packs have been seen to take nine minutes (comfyui.md §9). */
export const DEFAULT_PROCESS_TIMES: ProcessTimes = {
  startTimeoutMs: 30 * 60_000,
  probeIntervalMs: 200,
  stopGraceMs: 5000,
};

const FIRST_PROBE_PAUSE_MS = 8;
const EAGER_MS = 500;

export interface ProcessOptions {
  readonly installation: Installation;
  /** Flags the installation knows; undefined: all. */
  readonly flags: ReadonlySet<string> | undefined;
  readonly folders: LaunchFolders;
  readonly userArguments: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly http: HttpClient;
  readonly log: Logger;
  readonly times?: Partial<ProcessTimes> | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Another program may take a port between our look and ComfyUI's bind. */
const PORT_TRIES = 5;
const PORT_TAKEN = /address already in use|already in use/i;
/** Lines of its log that a message quotes. */
const LAST_WORDS = 12;
/** A probe that takes longer is asked again; importing torch blocks the interpreter for seconds. */
const PROBE_TIMEOUT_MS = 2000;

/**
 * Makes the private folders of an engine below `root` and the file that tells it where models lie.
 * @throws ConfigError PATH_UNWRITABLE
 */
export function prepareFolders(
  root: string,
  modelsDirs: readonly string[],
  extraModelPaths: readonly string[],
): LaunchFolders {
  const ours = join(root, "models.json");
  const folders: LaunchFolders = {
    dirs: { input: join(root, "input"), output: join(root, "output"), temp: join(root, "temp") },
    tempBase: root,
    user: join(root, "user"),
    database: join(root, "comfyui.db"),
    emptyFrontEnd: join(root, "no-front-end"),
    // As in src/models/folders.ts: ours first; of the operator's files those with is_default go in front of it.
    extraModelPaths: [ours, ...extraModelPaths],
  };
  const { input, output, temp } = folders.dirs;
  for (const folder of [input, output, temp, folders.user, folders.emptyFrontEnd]) {
    makeFolder(folder);
  }
  writeAtomically(ours, extraPathsText(modelsDirs, true));
  return folders;
}

/**
 * Starts an engine and resolves when it answers.
 * @throws EngineError ENGINE_UNAVAILABLE with its last words when it dies, or does not answer in time; CanceledError
 */
export async function startProcess(options: ProcessOptions): Promise<EngineProcess> {
  for (let attempt = 1; ; attempt += 1) {
    const started = new EngineProcess(options, freePort());
    try {
      await started.untilReady(options.signal);
      return started;
    } catch (error) {
      await started.stop();
      const isPortTaken = started
        .lastLog()
        .slice(-LAST_WORDS)
        .some((line) => PORT_TAKEN.test(line));
      if (attempt >= PORT_TRIES || !isPortTaken || options.signal?.aborted === true) {
        throw error;
      }
    }
  }
}

function freePort(): number {
  const listener = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { data: () => undefined },
  });
  const { port } = listener;
  listener.stop(true);
  return port;
}

export class EngineProcess {
  readonly url: string;
  readonly pid: number;
  readonly exited: Promise<EngineExit>;
  readonly folders: LaunchFolders;
  readonly #child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly #guard: Bun.Subprocess | undefined;
  readonly #ring: LogRing;
  readonly #times: ProcessTimes;
  readonly #client: ComfyClient;
  readonly #installation: Installation;
  /** Why we end it; undefined when it ends by itself. */
  #stopReason: string | undefined;

  constructor(options: ProcessOptions, port: number) {
    this.url = `http://127.0.0.1:${port}`;
    this.folders = options.folders;
    this.#times = { ...DEFAULT_PROCESS_TIMES, ...options.times };
    this.#installation = options.installation;
    this.#client = new ComfyClient({ url: this.url, http: options.http });
    const log = options.log.child("comfyui");
    // What Python says while it is interrupted looks like a failure, and is none.
    this.#ring = new LogRing((line) =>
      this.#stopReason === undefined ? log.info(line) : log.debug(line),
    );
    const { folders, userArguments, installation } = options;
    const context = { port, folders, userArguments };
    try {
      this.#child = Bun.spawn(
        [...installation.command, ...launchArguments(context, options.flags)],
        {
          cwd: installation.cwd,
          env: { ...options.env },
          stdio: ["ignore", "pipe", "pipe"],
          // A process group of its own: what custom nodes start ends with it.
          detached: true,
        },
      );
    } catch (cause) {
      throw cannotStart(installation, messageOf(cause), [], cause);
    }
    this.pid = this.#child.pid;
    this.#guard = guardGroup(this.pid);
    this.exited = this.#watch();
  }

  lastLog(): readonly string[] {
    return this.#ring.lines();
  }

  /** Resolves when it answers as the process we started. */
  async untilReady(signal: AbortSignal | undefined): Promise<void> {
    const began = Date.now();
    const deadline = began + this.#times.startTimeoutMs;
    const death = new AbortController();
    const exit = this.exited.then((how) => {
      death.abort();
      return how;
    });
    const either = signal === undefined ? death.signal : AbortSignal.any([signal, death.signal]);
    let pauseMs = FIRST_PROBE_PAUSE_MS;
    while (!(await this.#answers(either))) {
      if (death.signal.aborted) {
        const how = await exit;
        throw cannotStart(this.#installation, how.reason, this.lastLog());
      }
      if (signal?.aborted) {
        throw new CanceledError("Starting ComfyUI was called off");
      }
      if (Date.now() > deadline) {
        const seconds = Math.round(this.#times.startTimeoutMs / 1000);
        throw new EngineError(
          "ENGINE_UNAVAILABLE",
          `ComfyUI runs, but does not answer after ${seconds} s.${quote(this.lastLog())}`,
          { hint: "Raise COMFYUI_START_TIMEOUT (seconds), or look into its log." },
        );
      }
      const next = Math.min(pauseMs, this.#times.probeIntervalMs);
      await sleep(next, either).catch(() => undefined);
      // The embedded engine is there in a moment and is met at once; a real one takes its time.
      pauseMs *= Date.now() - began < EAGER_MS ? 1 : 1.3;
    }
  }

  /** Ends it: SIGINT, SIGTERM, SIGKILL, each to the whole group, with time between them. */
  async stop(): Promise<EngineExit> {
    this.#stopReason = "ComfyUI was stopped";
    for (const name of ["SIGINT", "SIGTERM"] as const) {
      this.#signalGroup(name);
      if (await within(this.exited, this.#times.stopGraceMs)) {
        return await this.exited;
      }
    }
    return await this.kill();
  }

  /** Ends it at once, whatever state it is in (also a stopped one). */
  async kill(reason = "ComfyUI was stopped"): Promise<EngineExit> {
    this.#stopReason = reason;
    this.#signalGroup("SIGKILL");
    return await this.exited;
  }

  async #answers(signal: AbortSignal): Promise<boolean> {
    try {
      const stats = await this.#client.systemStats(signal, PROBE_TIMEOUT_MS);
      // Somebody else's ComfyUI may have taken the port: ours repeats the folder that only we know.
      return stats.system.argv === undefined || stats.system.argv.includes(this.folders.tempBase);
    } catch {
      return false;
    }
  }

  async #watch(): Promise<EngineExit> {
    const pumps = Promise.all([
      this.#ring.drain(this.#child.stdout),
      this.#ring.drain(this.#child.stderr),
    ]);
    const code = await this.#child.exited;
    // Before the number of the group can belong to anybody else.
    this.#guard?.kill("SIGKILL");
    // Children that outlive it hold its GPU memory and its pipes.
    this.#signalGroup("SIGKILL");
    await within(
      pumps.catch(() => undefined),
      this.#times.stopGraceMs,
    );
    const { signalCode } = this.#child;
    const signal = signalCode === null ? null : String(signalCode);
    return {
      code: signal === null ? code : null,
      signal,
      reason: this.#stopReason ?? exitReason(code, signal),
    };
  }

  #signalGroup(name: NodeJS.Signals): void {
    try {
      process.kill(-this.#child.pid, name);
    } catch {
      // ESRCH: the group is gone already, which is what was wanted.
    }
  }
}

/**
 * Ends a process group when we end, however we end: a killed server must not leave a ComfyUI that holds the GPU. The
 * guard waits for the end of a pipe that only we hold.
 */
function guardGroup(group: number): Bun.Subprocess | undefined {
  try {
    const script = 'read -r _; kill -9 "-$1"';
    const guard = Bun.spawn(["sh", "-c", script, "sh", String(group)], {
      env: {},
      stdio: ["pipe", "ignore", "ignore"],
      // Ctrl-C goes to our own group: the guard must outlive it.
      detached: true,
    });
    guard.unref();
    return guard;
  } catch {
    // No shell here: what is left behind is swept by the next start (work-folder.ts).
    return undefined;
  }
}

/** A process's end in words. */
export function exitReason(code: number | null, signal: string | null): string {
  if (signal === "SIGKILL" || code === 137) {
    return "ComfyUI was killed (SIGKILL): most likely this machine ran out of memory";
  }
  if (signal === "SIGSEGV" || signal === "SIGABRT" || signal === "SIGBUS" || signal === "SIGILL") {
    return `ComfyUI crashed (${signal}): a fault in native code, such as a driver`;
  }
  return signal === null
    ? `ComfyUI ended with exit code ${code}`
    : `ComfyUI was ended by ${signal}`;
}

interface KnownDeath {
  readonly pattern: RegExp;
  readonly hint: string;
}

/** Last words that have a known cure. */
const KNOWN_DEATHS: readonly KnownDeath[] = [
  {
    pattern: /No module named '([^']+)'/,
    hint: "A Python module is missing: install ComfyUI's requirements for the Python that COMFYUI_PYTHON names.",
  },
  {
    pattern: /not compiled with CUDA|no NVIDIA driver|No CUDA GPUs|No HIP GPUs/i,
    hint: "There is no usable GPU: set COMFYUI_ARGS=--cpu to run without one, or pass the GPU into the container.",
  },
  {
    pattern: /unrecognized arguments: (.*)/,
    hint: "Remove the arguments that this ComfyUI doesn't know from COMFYUI_ARGS.",
  },
  { pattern: PORT_TAKEN, hint: "Free some ports, and try again." },
];

function cannotStart(
  installation: Installation,
  reason: string,
  log: readonly string[],
  cause?: unknown,
): EngineError {
  const words = log.slice(-LAST_WORDS).join("\n");
  const known = KNOWN_DEATHS.find(({ pattern }) => pattern.test(words));
  const what = installation.kind === "embedded" ? "The embedded engine" : "ComfyUI";
  return new EngineError(
    "ENGINE_UNAVAILABLE",
    `${what} could not be started in ${installation.cwd}: ${reason}.${known === undefined ? quote(log) : ` It said: ${lineWith(known.pattern, log)}`}`,
    {
      cause,
      hint: known?.hint ?? `Run it by hand to see more: ${installation.command.join(" ")}`,
      details: { log: log.slice(-LAST_WORDS) },
    },
  );
}

/** The one line of its last words that tells why. */
function lineWith(pattern: RegExp, log: readonly string[]): string {
  return log.findLast((line) => pattern.test(line))?.trim() ?? "";
}

/** Its last words as lines of their own; empty when it said nothing. */
export function quote(log: readonly string[]): string {
  const words = log.slice(-LAST_WORDS);
  return words.length === 0 ? "" : ` It said:\n${words.map((line) => `  ${line}`).join("\n")}`;
}

/** Removes an engine's private folders. */
export function removeFolders(root: string): void {
  removeTree(root);
}
