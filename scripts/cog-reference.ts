/**
 * Cog's own server, for tests and benches that compare ours with it: brings the real one from PyPI into the ignored
 * `.tools/` of this checkout, writes the model's schema beside a copy of the Python twin, and starts it from there.
 * Run directly it prepares it and writes test/contract/cog-answers.json anew.
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { writeJson } from "../src/cog/json-writer.ts";
import { openApiDocument } from "../src/cog/openapi.ts";
import { COG_VERSION } from "../src/cog/service.ts";
import type { Child } from "../test/support/cog-child.ts";
import { oddAnswers } from "../test/support/cog-odd.ts";
import { healthStatus } from "../test/support/cog-scenario.ts";
import type { Story } from "../test/support/cog-stories.ts";
import { STORIES, Stage } from "../test/support/cog-stories.ts";
import { plain, receiverOf } from "../test/support/cog-story-run.ts";
import { TwinInput } from "../test/support/cog-twin.ts";

const ROOT = resolve(import.meta.dir, "..");
const VENV = join(ROOT, ".tools", `cog-${COG_VERSION}`);
const PYTHON = join(VENV, "bin", "python");
const TWIN = join(ROOT, "test", "support", "cog-reference", "predict.py");
export const ANSWERS = join(ROOT, "test", "contract", "cog-answers.json");
export const STORY_ANSWERS = join(ROOT, "test", "contract", "cog-stories.json");
const READY_MS = 30_000;

export interface ReferenceOptions {
  readonly flags?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly predictor?:
    | "Predictor"
    | "StreamingPredictor"
    | "AsyncPredictor"
    | "TrivialPredictor"
    | "AsyncTrivialPredictor";
  /** False does not wait until it is ready. */
  readonly wait?: boolean;
}

/** Installs the real server where it is missing. @throws Error with pip's words */
export async function prepareReference(): Promise<void> {
  if (existsSync(join(VENV, "done"))) {
    return;
  }
  mkdirSync(VENV, { recursive: true });
  await must(["python3", "-m", "venv", VENV]);
  await must([PYTHON, "-m", "pip", "install", "--quiet", `cog==${COG_VERSION}`]);
  writeFileSync(join(VENV, "done"), "");
}

async function must(command: readonly string[]): Promise<string> {
  const child = Bun.spawn([...command], { cwd: tmpdir(), stdio: ["ignore", "pipe", "pipe"] });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (code !== 0) {
    throw new Error(`${command.join(" ")} failed:\n${err}`);
  }
  return out.trim();
}

/** Where Python finds `coglet`: proof that it is the real one and not the shadow package of this checkout. */
export function referenceHome(): Promise<string> {
  return must([PYTHON, "-P", "-c", "import cog.server.http, coglet; print(coglet.__file__)"]);
}

/** Starts the real server with the Python twin, from a folder of its own. */
export async function startReference(options: ReferenceOptions = {}): Promise<Child> {
  const predictor = options.predictor ?? "Predictor";
  const folder = mkdtempSync(join(tmpdir(), "cog-reference-"));
  cpSync(TWIN, join(folder, "predict.py"));
  mkdirSync(join(folder, ".cog"));
  const isStreaming = predictor === "StreamingPredictor";
  const document = openApiDocument(
    {
      inputs: TwinInput,
      output: {
        type: "array",
        items: { type: "string", format: "uri" },
        ...(isStreaming ? { "x-cog-array-type": "iterator" } : {}),
      },
      streaming: isStreaming,
    },
    COG_VERSION,
  );
  writeFileSync(join(folder, ".cog", "openapi_schema.json"), writeJson(document));
  const port = freePort();
  const child = Bun.spawn(
    [PYTHON, "-P", "-m", "cog.server.http", "--host", "127.0.0.1", ...(options.flags ?? [])],
    {
      cwd: folder,
      env: {
        // Its worker is started as plain `python`.
        PATH: `${join(VENV, "bin")}${delimiter}${process.env["PATH"] ?? ""}`,
        PORT: String(port),
        COG_PREDICT_TYPE_STUB: `predict.py:${predictor}`,
        ...options.env,
      },
      stdio: ["ignore", "ignore", "ignore"],
    },
  );
  await untilItAnswers(port, options.wait !== false);
  return {
    port,
    pid: child.pid,
    signal: (name) => child.kill(name),
    exited: child.exited.then(() => ({
      code: child.exitCode,
      signal: child.signalCode === null ? null : String(child.signalCode),
    })),
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const { port } = server;
  void server.stop(true);
  return port ?? 0;
}

async function untilItAnswers(port: number, untilSetup: boolean): Promise<void> {
  const until = performance.now() + READY_MS;
  while (performance.now() < until) {
    const status = await healthStatus(port);
    if (status !== "gone" && !(untilSetup && status === "STARTING")) {
      return;
    }
    await Bun.sleep(20);
  }
  throw new Error(`Cog's own server did not answer within ${READY_MS / 1000} s`);
}

/** Plays a story on the real server, started for it. */
export async function playOnReference(story: Story): Promise<unknown> {
  using receiver = receiverOf(story);
  const isAsync = (story.slots ?? 1) > 1;
  const sync = story.streaming === true ? "StreamingPredictor" : "Predictor";
  await using server = await startReference({
    predictor: isAsync ? "AsyncPredictor" : sync,
    flags: story.uploads === true ? ["--upload-url", `${receiver.origin}/up/77x/`] : [],
    wait: story.setup !== "held",
    env: {
      ...story.env,
      COG_MAX_CONCURRENCY: String(story.slots ?? 1),
      ...(story.setup === undefined ? {} : { TWIN_SETUP_URL: `${receiver.origin}/setup` }),
    },
  });
  const target = story.ends === true ? server : { port: server.port };
  return plain(await story.play(new Stage(target, receiver)));
}

if (import.meta.main) {
  await prepareReference();
  console.log(`Cog's own server: ${await referenceHome()}`);
  await using server = await startReference();
  const answers = await oddAnswers(server.port);
  writeFileSync(ANSWERS, `${JSON.stringify(answers, null, 1)}\n`);
  console.log(`${Object.keys(answers).length} answers written to ${ANSWERS}`);
  const stories: Record<string, unknown> = {};
  for (const story of STORIES) {
    stories[story.name] = await playOnReference(story);
  }
  writeFileSync(STORY_ANSWERS, `${JSON.stringify(stories, null, 1)}\n`);
  console.log(`${STORIES.length} stories written to ${STORY_ANSWERS}`);
}
