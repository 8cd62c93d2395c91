/**
 * The shared store: what N real processes cost the origin and how long they take beside one process and beside N × aria2,
 * a cold start with a warm store, the eviction of a thousand blobs, and two bakes.
 *
 *   bun bench/store.ts [--mb 1024] [--processes 8] [--rounds 3]
 */
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ModelFolders } from "../src/models/folders.ts";
import { silentLogger } from "../src/platform/log.ts";
import { bake } from "../src/weights/bake.ts";
import { bringWeights } from "../src/weights/bring.ts";
import { DigestBook } from "../src/weights/digests.ts";
import { Installer } from "../src/weights/install.ts";
import type { InstallJob } from "../src/weights/plan-types.ts";
import { WeightStore } from "../src/weights/store.ts";

const { values } = parseArgs({
  options: {
    mb: { type: "string", default: "1024" },
    processes: { type: "string", default: "8" },
    rounds: { type: "string", default: "3" },
    child: { type: "string" },
  },
});

const BLOCK_BYTES = 1024 * 1024;
/** Gates of the project: our time or bytes ÷ theirs. */
const GATES = { originBytes: 1.0, timeVsOne: 1.15, coldStartMs: 50 };

interface ChildSettings {
  readonly store: string;
  readonly models: string;
  readonly jobs: readonly Pick<InstallJob, "name" | "sources" | "sha256">[];
}

function user(store: string, models: string) {
  const digests = new DigestBook([models]);
  const made = new WeightStore({
    root: store,
    modelsRoots: [models],
    digests,
    log: silentLogger,
    mode: "link",
    minFreeBytes: 0,
  });
  digests.vouch = (path, sha) => made.vouches(path, sha);
  const installer = new Installer({ modelsRoots: [models], minFreeBytes: 0, store: () => made });
  const around = {
    installer,
    folders: ModelFolders.fromDirs({ modelsDirs: [models] }),
    modelsRoots: [models],
    digests,
    lock: undefined,
    store: made,
  };
  return {
    store: made,
    bring: (jobs: ChildSettings["jobs"]) =>
      bringWeights(
        jobs.map((job) => ({
          ...job,
          category: "checkpoints",
          destination: join(models, "checkpoints", job.name),
        })),
        around,
      ),
    [Symbol.asyncDispose]: async () => {
      made[Symbol.dispose]();
      await installer.close();
    },
  };
}

async function child(text: string): Promise<void> {
  const settings: ChildSettings = JSON.parse(text);
  await using one = user(settings.store, settings.models);
  // All begin at one time, so that the start of the runtime is not what is measured.
  process.stdout.write("ready\n");
  for await (const _go of Bun.stdin.stream()) {
    break;
  }
  await one.bring(settings.jobs);
}

/** A file of pseudo-random bytes, and its digest. */
function makeFile(path: string, bytes: number): string {
  const hasher = new Bun.CryptoHasher("sha256");
  const block = new Uint8Array(BLOCK_BYTES);
  crypto.getRandomValues(block.subarray(0, 65_536));
  const fd = openSync(path, "w");
  for (let at = 0; at < bytes; at += BLOCK_BYTES) {
    new DataView(block.buffer).setFloat64(0, at);
    const part = block.subarray(0, Math.min(BLOCK_BYTES, bytes - at));
    writeSync(fd, part);
    hasher.update(part);
  }
  closeSync(fd);
  return hasher.digest("hex");
}

/** Serves a folder with ranges, and counts what it sends. */
function serve(folder: string) {
  let sentBytes = 0;
  let exact = false;
  /** Counts what really goes out: slower, so only where a client asks for more than it takes. */
  async function* counted(blob: Blob): AsyncGenerator<Uint8Array> {
    for await (const block of blob.stream()) {
      sentBytes += block.byteLength;
      yield block;
    }
  }
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    idleTimeout: 0,
    fetch(request) {
      const name = new URL(request.url).pathname.slice(1);
      const file = Bun.file(join(folder, name));
      const etag = `"${name}"`;
      const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
      const from = Number(range?.[1] ?? 0);
      const last = file.size - 1;
      const to = Math.min(
        last,
        range?.[2] === undefined || range[2] === "" ? last : Number(range[2]),
      );
      const body = file.slice(from, to + 1);
      sentBytes += exact ? 0 : to - from + 1;
      return new Response(exact ? counted(body) : body, {
        status: range === null ? 200 : 206,
        headers: {
          etag,
          "accept-ranges": "bytes",
          "content-length": String(to - from + 1),
          ...(range === null ? {} : { "content-range": `bytes ${from}-${to}/${file.size}` }),
        },
      });
    },
  });
  return {
    url: (name: string) => `${server.url}${name}`,
    take: () => {
      const bytes = sentBytes;
      sentBytes = 0;
      return bytes;
    },
    count: (value: boolean) => {
      exact = value;
    },
    stop: () => server.stop(true),
  };
}

async function run(commands: readonly (readonly string[])[]): Promise<number> {
  const children = commands.map((command) =>
    Bun.spawn([...command], { stdio: ["pipe", "pipe", "inherit"] }),
  );
  if (commands.some((command) => command.includes("--child"))) {
    await Promise.all(children.map((one) => one.stdout.getReader().read()));
  }
  const began = performance.now();
  for (const { stdin } of children) {
    stdin.write("go\n");
    void stdin.end();
  }
  const codes = await Promise.all(children.map((one) => one.exited));
  if (codes.some((code) => code !== 0)) {
    throw new Error(`a process ended with ${codes.join(", ")}`);
  }
  return (performance.now() - began) / 1000;
}

function median(numbers: readonly number[]): number {
  return numbers.toSorted((one, other) => one - other)[Math.floor(numbers.length / 2)] ?? 0;
}

function line(name: string, value: string, gate?: boolean): void {
  const verdict = gate === true ? "  ok" : "  MISSED";
  process.stdout.write(`${name.padEnd(58)} ${value}${gate === undefined ? "" : verdict}\n`);
}

async function several(root: string): Promise<void> {
  const bytes = Number(values.mb) * BLOCK_BYTES;
  const count = Number(values.processes);
  const sha256 = makeFile(join(root, "w.bin"), bytes);
  const origin = serve(root);
  const source = { url: origin.url("w.bin"), trust: "operator" as const };
  const times = { one: [] as number[], all: [] as number[], aria: [] as number[] };
  const sent = { all: [] as number[], aria: [] as number[] };
  const work = join(root, "work");
  const ours = (processes: number) =>
    Array.from({ length: processes }, (_, index) => [
      process.execPath,
      import.meta.path,
      "--child",
      JSON.stringify({
        store: join(work, "store"),
        models: join(work, `m${index}`),
        jobs: [{ name: "w.bin", sources: [source], sha256 }],
      }),
    ]);
  const theirs = Array.from({ length: count }, (_, index) => [
    "aria2c",
    "-q",
    "-x8",
    "-s8",
    "-d",
    join(work, `a${index}`),
    "-o",
    "w.bin",
    origin.url("w.bin"),
  ]);
  const clean = (): void => rmSync(work, { recursive: true, force: true });
  for (let round = 0; round < Number(values.rounds); round += 1) {
    clean();
    times.one.push(await run(ours(1)));
    clean();
    origin.take();
    times.all.push(await run(ours(count)));
    sent.all.push(origin.take() / bytes);
    clean();
    if (Bun.which("aria2c") !== null) {
      times.aria.push(await run(theirs));
      clean();
    }
  }
  if (Bun.which("aria2c") !== null) {
    origin.take();
    origin.count(true);
    await run(theirs);
    sent.aria.push(origin.take() / bytes);
    clean();
  }
  await origin.stop();
  const ratio = median(sent.all);
  line(
    `origin bytes ÷ weight, ${count} processes, one store`,
    ratio.toFixed(4),
    ratio < GATES.originBytes + 0.005,
  );
  if (sent.aria.length > 0) {
    line(`origin bytes ÷ weight, ${count} × aria2 -x8`, median(sent.aria).toFixed(4));
  }
  line("seconds, one process", median(times.one).toFixed(2));
  const slower = median(times.all) / median(times.one);
  line(
    `seconds, ${count} processes`,
    `${median(times.all).toFixed(2)} (× ${slower.toFixed(2)} of one)`,
    slower <= GATES.timeVsOne,
  );
  if (times.aria.length > 0) {
    const against = median(times.all) / median(times.aria);
    line(
      `seconds, ${count} × aria2 -x8, nothing verified`,
      `${median(times.aria).toFixed(2)} (ours ÷ theirs ${against.toFixed(2)})`,
    );
  }
}

async function coldStart(root: string): Promise<void> {
  const folder = join(root, "ten");
  mkdirSync(folder);
  const jobs = Array.from({ length: 10 }, (_, index) => {
    const name = `${index}.bin`;
    const sha256 = makeFile(join(folder, name), 2 * BLOCK_BYTES);
    return { name, sha256 };
  });
  const origin = serve(folder);
  const known = jobs.map(({ name, sha256 }) => ({
    name,
    sha256,
    sources: [{ url: origin.url(name), trust: "operator" as const }],
  }));
  {
    await using first = user(join(root, "store10"), join(root, "first"));
    await first.bring(known);
  }
  await origin.stop();
  const times: number[] = [];
  for (let round = 0; round < 7; round += 1) {
    const began = performance.now();
    await using next = user(join(root, "store10"), join(root, `cold${round}`));
    await next.bring(known);
    times.push(performance.now() - began);
  }
  line(
    "ms, cold start with a warm store, 10 weights",
    median(times).toFixed(1),
    median(times) <= GATES.coldStartMs,
  );
}

function eviction(root: string): void {
  const made = user(join(root, "store1000"), join(root, "m1000"));
  const home = join(root, "store1000/blobs/sha256");
  for (let index = 0; index < 1000; index += 1) {
    const body = `blob ${index}`;
    const sha = new Bun.CryptoHasher("sha256").update(body).digest("hex");
    mkdirSync(join(home, sha.slice(0, 2)), { recursive: true });
    writeFileSync(join(home, sha.slice(0, 2), sha), body);
  }
  const began = performance.now();
  const evicted = made.store.gc({ maxBytes: 0 });
  line(`ms, eviction of ${evicted.length} blobs`, (performance.now() - began).toFixed(0));
  made.store[Symbol.dispose]();
}

async function baking(root: string): Promise<void> {
  const size = 512 * BLOCK_BYTES;
  const file = join(root, "bake.bin");
  const sha256 = makeFile(file, size);
  const names: string[][] = [];
  const times: number[] = [];
  for (const out of ["bake1", "bake2"].map((name) => join(root, name))) {
    const began = performance.now();
    await bake([{ path: "checkpoints/bake.bin", file, size, sha256 }], {
      out,
      prefix: "/opt/models",
    });
    times.push((performance.now() - began) / 1000);
    names.push(readdirSync(join(out, "blobs/sha256")).sort());
  }
  line(
    "two bakes: the same digests",
    String(Bun.deepEquals(names[0], names[1])),
    Bun.deepEquals(names[0], names[1]),
  );
  line("MB/s, baking a weight of 512 MiB (flushed)", (size / 1e6 / median(times)).toFixed(0));
}

if (values.child !== undefined) {
  await child(values.child);
} else {
  const root = mkdtempSync(join(tmpdir(), "cog-bench-store-"));
  try {
    process.stdout.write(
      `load ${loadavg()[0]?.toFixed(1)}, ${values.mb} MiB, median of ${values.rounds}\n`,
    );
    await several(root);
    await coldStart(root);
    eviction(root);
    await baking(root);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}
