/**
 * How fast weights arrive: this program against aria2, curl, pget, cp and tar, on loopback, within one run. Prints wall
 * time, CPU and memory of each, and the ratios next to the gates of the project. What is not installed is named and left
 * out.
 *
 *   bun bench/download.ts [--mb 1024] [--rounds 3] [--only uncapped,capped,sick,tar,kill]
 */
import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import type { Socket } from "node:net";
import { createServer } from "node:net";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { AddressGuard } from "../src/platform/guard.ts";
import { ConnectionBudget } from "../src/weights/connections.ts";
import { Credentials } from "../src/weights/credentials.ts";
import { download, identityOf } from "../src/weights/download.ts";
import { Frontier } from "../src/weights/frontier.ts";
import { Installer } from "../src/weights/install.ts";
import { listPartials, openPartial } from "../src/weights/journal.ts";
import { probe } from "../src/weights/probe.ts";
import { addressOf } from "../src/weights/sources.ts";
import { FetchTransport, Road } from "../src/weights/transport.ts";
import { DEFAULT_TUNING } from "../src/weights/tuning.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mb: { type: "string", default: "1024" },
    rounds: { type: "string", default: "3" },
    only: { type: "string", default: "uncapped,capped,sick,tar,kill" },
  },
});

const MIB = 1024 * 1024;
const CAP_BYTES = 50 * MIB;

interface Run {
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly rssMb: number;
}

interface Method {
  readonly name: string;
  readonly command: readonly string[];
  /** What must hold the right bytes afterwards. */
  readonly output: string;
}

// --- our side, as a process of its own ---------------------------------------------------------------------------

/** The whole product: probe, reserve, fetch, digest, verify, flush, publish. */
async function childInstall(
  url: string,
  out: string,
  sha256: string,
  connections: number,
): Promise<void> {
  const isArchive = url.endsWith(".tar");
  const installer = new Installer({
    modelsRoots: [join(out, "..")],
    minFreeBytes: 0,
    tuning: { connectionsPerFile: connections, connectionsPerOrigin: connections },
  });
  await installer.install(
    [
      {
        name: "w.bin",
        category: "checkpoints",
        destination: out,
        sources: [{ url, trust: "operator" }],
        ...(isArchive ? { unpack: "tar" as const } : { sha256 }),
      },
    ],
    {
      onProgress: ({ doneBytes }) => void process.stdout.write(`${doneBytes}\n`),
    },
  );
  await installer.close();
}

/** The data plane alone: no digest, no flush, no name. */
async function childBare(url: string, out: string, connections: number): Promise<void> {
  const road = new Road({
    direct: new FetchTransport(),
    guarded: new FetchTransport(),
    guard: AddressGuard.open,
    credentials: new Credentials(),
    headersTimeoutMs: 15_000,
  });
  const { signal } = new AbortController();
  const address = () => addressOf({ url, trust: "operator" }, { credentials: new Credentials() });
  const found = await probe(address(), road, { signal, stallTimeoutMs: 15_000 });
  const folder = await openPartial({
    root: join(out, "..", ".cog-partial"),
    name: "w",
    destination: out,
    identity: identityOf(found),
  });
  if ("busy" in folder) {
    throw new Error("the partial file is in use");
  }
  await download(found, folder, {
    road,
    budget: new ConnectionBudget({ total: connections, perOrigin: connections }),
    tuning: { ...DEFAULT_TUNING, connectionsPerFile: connections },
    signal,
    readdress: address,
    frontier: new Frontier(),
    onBytes: () => undefined,
    digest: false,
    lasting: false,
  });
  await Bun.write(`${out}.path`, folder.dataPath);
  folder[Symbol.dispose]();
}

/** `cp` and `fsync` in one process, as the floor. */
function childCopy(from: string, out: string): void {
  const result = Bun.spawnSync(["cp", from, out]);
  const fd = openSync(out, "r+");
  fsyncSync(fd);
  closeSync(fd);
  process.exitCode = result.exitCode;
}

// --- measuring ---------------------------------------------------------------------------------------------------

async function measure(method: Method): Promise<Run> {
  Bun.spawnSync(["sync"]);
  const started = performance.now();
  const child = Bun.spawn([...method.command], { stdout: "ignore", stderr: "pipe" });
  const code = await child.exited;
  const seconds = (performance.now() - started) / 1000;
  if (code !== 0) {
    throw new Error(`${method.name} failed: ${await new Response(child.stderr).text()}`);
  }
  const usage = child.resourceUsage();
  return {
    seconds,
    cpuSeconds: Number(usage?.cpuTime.total ?? 0) / 1e6,
    rssMb: Number(usage?.maxRSS ?? 0) / MIB,
  };
}

function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((one, other) => one - other);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

function shuffled<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, key: Math.random() }))
    .toSorted((one, other) => one.key - other.key)
    .map(({ item }) => item);
}

async function compare(
  title: string,
  methods: readonly Method[],
  expected: string,
  rounds: number,
): Promise<Map<string, Run>> {
  const runs = new Map<string, Run[]>();
  for (let round = 0; round < rounds; round += 1) {
    for (const method of shuffled(methods)) {
      const run = await measure(method);
      requireRight(method, expected);
      runs.set(method.name, [...(runs.get(method.name) ?? []), run]);
    }
  }
  const result = new Map<string, Run>();
  console.log(`\n${title} (median of ${rounds})`);
  console.log(
    `  ${"".padEnd(34)}${"wall s".padStart(9)}${"CPU s".padStart(9)}${"RSS MB".padStart(9)}`,
  );
  for (const { name } of methods) {
    const all = runs.get(name) ?? [];
    const middle = {
      seconds: median(all.map((run) => run.seconds)),
      cpuSeconds: median(all.map((run) => run.cpuSeconds)),
      rssMb: median(all.map((run) => run.rssMb)),
    };
    result.set(name, middle);
    console.log(
      `  ${name.padEnd(34)}${middle.seconds.toFixed(2).padStart(9)}${middle.cpuSeconds.toFixed(2).padStart(9)}${middle.rssMb.toFixed(0).padStart(9)}`,
    );
  }
  return result;
}

/** Outside of the measured time: a fast wrong answer is no answer. */
function requireRight(method: Method, expected: string): void {
  const path = existsSync(`${method.output}.path`)
    ? readFileSync(`${method.output}.path`, "utf8")
    : method.output;
  // In another process: this one must stay small, or its children inherit its size as their peak.
  const sum = Bun.spawnSync(["openssl", "dgst", "-sha256", "-r", path]).stdout.toString();
  if (!sum.startsWith(expected)) {
    throw new Error(`${method.name} brought the wrong bytes`);
  }
  rmSync(join(method.output, ".."), { recursive: true, force: true });
  mkdirSync(join(method.output, ".."), { recursive: true });
}

function gate(
  name: string,
  ours: number | undefined,
  theirs: number | undefined,
  limit: number,
): void {
  if (ours === undefined || theirs === undefined) {
    console.log(`  gate ${name}: left out`);
    return;
  }
  const ratio = ours / theirs;
  console.log(
    `  gate ${name}: ${ratio.toFixed(2)} (must be ≤ ${limit}) ${ratio <= limit ? "ok" : "MISSED"}`,
  );
}

// --- the origin --------------------------------------------------------------------------------------------------

interface Origin extends AsyncDisposable {
  readonly url: string;
  readonly what: string;
}

async function startOrigin(root: string): Promise<Origin> {
  const probeServer = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("") });
  const { port } = probeServer;
  await probeServer.stop(true);
  if (Bun.which("nginx") === null) {
    throw new Error("nginx is not on PATH: a fair origin is needed (apt-get install nginx-light)");
  }
  const serve = `sendfile on; tcp_nopush on; root ${root};`;
  writeFileSync(
    join(root, "nginx.conf"),
    `worker_processes 1; daemon off; pid ${root}/nginx.pid; error_log ${root}/error.log; user root;
events { worker_connections 512; }
http { access_log off; client_body_temp_path ${root}/tmp; proxy_temp_path ${root}/tmp; fastcgi_temp_path ${root}/tmp; uwsgi_temp_path ${root}/tmp; scgi_temp_path ${root}/tmp;
  server { listen 127.0.0.1:${port}; ${serve} location /capped/ { alias ${root}/; limit_rate 50m; sendfile_max_chunk 256k; } } }
`,
  );
  const nginx = Bun.spawn(["nginx", "-c", join(root, "nginx.conf")], {
    stdout: "ignore",
    stderr: "ignore",
  });
  for (let tries = 0; tries < 100; tries += 1) {
    try {
      await fetch(`http://127.0.0.1:${port}/nginx.pid`);
      break;
    } catch {
      await Bun.sleep(20);
    }
  }
  return {
    url: `http://127.0.0.1:${port}`,
    what: "nginx, one worker, the same two cores",
    [Symbol.asyncDispose]: async () => {
      nginx.kill();
      await nginx.exited;
    },
  };
}

/** An origin that gives every connection a rate, and the third one a twenty-fifth of it. */
function startSickOrigin(body: Buffer, bytesPerSecond: number): Promise<Origin> {
  let connections = 0;
  const server = createServer((socket: Socket) => {
    connections += 1;
    const rate = connections === 3 ? bytesPerSecond / 25 : bytesPerSecond;
    socket.on("error", () => undefined);
    let busy = Promise.resolve();
    socket.on("data", (data) => {
      const range = /range: bytes=(\d+)-(\d+)/i.exec(String(data));
      busy = busy.then(() =>
        pace(
          socket,
          body,
          { start: Number(range?.[1] ?? 0), end: Number(range?.[2] ?? body.length - 1) },
          rate,
        ),
      );
    });
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      const port = typeof address === "object" && address !== null ? address.port : 0;
      resolve({
        url: `http://127.0.0.1:${port}`,
        what: "paced sockets",
        [Symbol.asyncDispose]: async () => void server.close(),
      });
    });
  });
}

async function pace(
  socket: Socket,
  body: Buffer,
  asked: { readonly start: number; readonly end: number },
  rate: number,
): Promise<void> {
  const { start } = asked;
  const end = Math.min(asked.end, body.length - 1);
  socket.write(
    `HTTP/1.1 206 x\r\ncontent-length: ${end - start + 1}\r\ncontent-range: bytes ${start}-${end}/${body.length}\r\netag: "x"\r\n\r\n`,
  );
  const began = performance.now();
  for (let at = start; at <= end && !socket.destroyed; ) {
    const due = start + ((performance.now() - began) / 1000) * rate;
    const upTo = Math.min(end + 1, Math.floor(due) + 1);
    if (upTo > at) {
      socket.write(body.subarray(at, upTo));
      at = upTo;
    }
    await Bun.sleep(5);
  }
}

// --- the scenes --------------------------------------------------------------------------------------------------

interface Stage {
  readonly root: string;
  readonly origin: Origin;
  readonly sha256: string;
  readonly bytes: number;
  readonly rounds: number;
}

function out(stage: Stage): string {
  return join(stage.root, "out", "w.bin");
}

function ours(stage: Stage, mode: string, path: string, connections: number): string[] {
  return [
    process.execPath,
    import.meta.path,
    "child",
    mode,
    `${stage.origin.url}${path}`,
    out(stage),
    stage.sha256,
    String(connections),
  ];
}

function aria(stage: Stage, path: string, connections: number, checksum = false): string[] {
  return [
    "aria2c",
    "-q",
    `-x${connections}`,
    `-s${connections}`,
    "-k1M",
    "--file-allocation=none",
    "-d",
    join(stage.root, "out"),
    "-o",
    "w.bin",
    ...(checksum ? [`--checksum=sha-256=${stage.sha256}`] : []),
    `${stage.origin.url}${path}`,
  ];
}

function peers(methods: readonly Method[]): Method[] {
  return methods.filter(({ name, command }) => {
    const program =
      command[0] === "sh" ? (/^\s*(\S+)/.exec(command[2] ?? "")?.[1] ?? "sh") : (command[0] ?? "");
    const there = existsSync(program) || Bun.which(program) !== null;
    if (!there) {
      console.log(`  left out, not on PATH: ${name}`);
    }
    return there;
  });
}

async function uncapped(stage: Stage): Promise<void> {
  const source = join(stage.root, "w.bin");
  const self = [process.execPath, import.meta.path, "child"];
  const output = out(stage);
  const rows = await compare(
    `Uncapped, ${stage.bytes / MIB} MiB`,
    peers([
      { name: "cp", command: ["cp", source, output], output },
      { name: "cp + fsync", command: [...self, "copy", source, output], output },
      {
        name: "cp + fsync + openssl sha256",
        command: [
          "sh",
          "-c",
          `cp ${source} ${output} && sync ${output} && openssl dgst -sha256 ${output}`,
        ],
        output,
      },
      { name: "curl", command: ["curl", "-s", "-o", output, `${stage.origin.url}/w.bin`], output },
      { name: "pget", command: ["pget", `${stage.origin.url}/w.bin`, output], output },
      { name: "aria2 -x8", command: aria(stage, "/w.bin", 8), output },
      { name: "aria2 -x16", command: aria(stage, "/w.bin", 16), output },
      { name: "aria2 -x8 --checksum", command: aria(stage, "/w.bin", 8, true), output },
      { name: "ours x8, bytes only", command: ours(stage, "bare", "/w.bin", 8), output },
      {
        name: "ours x8, verified and published",
        command: ours(stage, "install", "/w.bin", 8),
        output,
      },
      {
        name: "ours x16, verified and published",
        command: ours(stage, "install", "/w.bin", 16),
        output,
      },
    ]),
    stage.sha256,
    stage.rounds,
  );
  const time = (name: string): number | undefined => rows.get(name)?.seconds;
  gate("bytes only vs aria2 -x8", time("ours x8, bytes only"), time("aria2 -x8"), 0.55);
  gate("bytes only vs cp", time("ours x8, bytes only"), time("cp"), 3);
  gate("bytes only vs cp + fsync", time("ours x8, bytes only"), time("cp + fsync"), 1.6);
  gate(
    "verified, published vs cp + fsync + openssl",
    time("ours x8, verified and published"),
    time("cp + fsync + openssl sha256"),
    1.6,
  );
  gate(
    "verified, published vs aria2 --checksum",
    time("ours x8, verified and published"),
    time("aria2 -x8 --checksum"),
    0.45,
  );
  gate(
    "memory at 16 connections, MB of 200",
    rows.get("ours x16, verified and published")?.rssMb,
    200,
    1,
  );
  const cpu = rows.get("ours x8, verified and published")?.cpuSeconds ?? Number.NaN;
  console.log(
    `  CPU per GiB, verified and published: ${((cpu * 1024 * MIB) / stage.bytes).toFixed(2)} s`,
  );
}

async function capped(stage: Stage): Promise<void> {
  const output = out(stage);
  const rows = await compare(
    `50 MiB/s per connection, ${stage.bytes / MIB} MiB`,
    peers([
      { name: "aria2 -x8", command: aria(stage, "/capped/w.bin", 8), output },
      { name: "aria2 -x16", command: aria(stage, "/capped/w.bin", 16), output },
      { name: "ours x8, bytes only", command: ours(stage, "bare", "/capped/w.bin", 8), output },
      {
        name: "ours x8, verified and published",
        command: ours(stage, "install", "/capped/w.bin", 8),
        output,
      },
      {
        name: "ours x16, verified and published",
        command: ours(stage, "install", "/capped/w.bin", 16),
        output,
      },
    ]),
    stage.sha256,
    stage.rounds,
  );
  const time = (name: string): number | undefined => rows.get(name)?.seconds;
  gate(
    "x16 verified vs aria2 -x16",
    time("ours x16, verified and published"),
    time("aria2 -x16"),
    0.85,
  );
  gate("x8 bytes only vs aria2 -x8", time("ours x8, bytes only"), time("aria2 -x8"), 0.85);
  const ideal = stage.bytes / (8 * CAP_BYTES);
  console.log(
    `  efficiency at x8: ${((100 * ideal) / (time("ours x8, bytes only") ?? Number.NaN)).toFixed(0)} % (must be ≥ 85 %)`,
  );
  gate(
    "sha256 and fsync at 400 MiB/s",
    time("ours x8, verified and published"),
    time("ours x8, bytes only"),
    1.1,
  );
}

async function sick(stage: Stage): Promise<void> {
  const rate = 25 * MIB;
  const body = readFileSync(join(stage.root, "w.bin")).subarray(
    0,
    Math.min(stage.bytes, 256 * MIB),
  );
  const sha256 = createHash("sha256").update(body).digest("hex");
  const seconds: number[] = [];
  for (let round = 0; round < stage.rounds; round += 1) {
    await using origin = await startSickOrigin(body, rate);
    const method = {
      name: "ours x8",
      command: ours({ ...stage, origin, sha256 }, "bare", "/w.bin", 8),
      output: out(stage),
    };
    seconds.push((await measure(method)).seconds);
    requireRight(method, sha256);
  }
  console.log(`\nOne of 8 connections at 1/25 of 25 MiB/s, ${body.length / MIB} MiB`);
  gate("vs ideal", median(seconds), body.length / (7.04 * rate), 1.35);
}

async function tarred(stage: Stage): Promise<void> {
  const folder = join(stage.root, "out");
  const output = join(folder, "w.bin");
  const url = `${stage.origin.url}/w.tar`;
  const rows = await compare(
    `A tar of ${stage.bytes / MIB} MiB, unpacked`,
    peers([
      {
        name: "curl | tar -x",
        command: ["sh", "-c", `curl -s ${url} | tar -x -C ${folder}`],
        output,
      },
      {
        name: "aria2 -x8, then tar -x",
        command: [
          "sh",
          "-c",
          `aria2c -q -x8 -s8 -k1M --file-allocation=none -d ${folder} -o w.tar ${url} && tar -xf ${folder}/w.tar -C ${folder}`,
        ],
        output,
      },
      {
        name: "ours x8, verified and published",
        command: [process.execPath, import.meta.path, "child", "install", url, folder, "", "8"],
        output,
      },
    ]),
    stage.sha256,
    stage.rounds,
  );
  gate(
    "vs curl | tar -x",
    rows.get("ours x8, verified and published")?.seconds,
    rows.get("curl | tar -x")?.seconds,
    1.15,
  );
}

async function killed(stage: Stage): Promise<void> {
  console.log("\nSIGKILL in the middle, then once more");
  const lost: number[] = [];
  for (let round = 0; round < stage.rounds; round += 1) {
    const child = Bun.spawn(ours(stage, "install", "/capped/w.bin", 8), {
      stdout: "pipe",
      stderr: "ignore",
    });
    let received = 0;
    for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
      received = Math.max(received, Number(text.trim().split("\n").at(-1)));
      if (received > stage.bytes / 2) {
        child.kill("SIGKILL");
      }
    }
    await child.exited;
    const kept = listPartials([join(stage.root, "out")])[0]?.doneBytes ?? 0;
    lost.push(received - kept);
    const method = {
      name: "resumed",
      command: ours(stage, "install", "/capped/w.bin", 8),
      output: out(stage),
    };
    const run = await measure(method);
    console.log(
      `  ${(received / MIB).toFixed(0)} MiB received, ${(kept / MIB).toFixed(0)} kept, the rest in ${run.seconds.toFixed(2)} s`,
    );
    requireRight(method, stage.sha256);
  }
  gate("received but fetched again, MiB of 64", median(lost) / MIB, 64, 1);
}

async function main(): Promise<void> {
  const bytes = Number(values.mb) * MIB;
  const rounds = Number(values.rounds);
  const root = mkdtempSync(join(tmpdir(), "cog-bench-"));
  try {
    mkdirSync(join(root, "out"));
    const hash = createHash("sha256");
    const fd = openSync(join(root, "w.bin"), "w");
    for (let at = 0; at < bytes; at += MIB) {
      const block = crypto.getRandomValues(new Uint8Array(65_536));
      for (let part = 0; part < MIB; part += block.length) {
        writeSync(fd, block);
        hash.update(block);
      }
    }
    closeSync(fd);
    Bun.spawnSync(["tar", "-cf", join(root, "w.tar"), "-C", root, "w.bin"]);
    await using origin = await startOrigin(root);
    const stage = { root, origin, sha256: hash.digest("hex"), bytes, rounds };
    console.log(`Origin: ${origin.what}. Times are of whole commands, from fork to exit.`);
    const [load = 0] = loadavg();
    if (load > 0.5) {
      console.log(
        `Others are at work here (load ${load.toFixed(1)}): wall times and their ratios are noise.`,
      );
    }
    // `sick` makes this process large, and children inherit that as their peak: after what measures memory.
    const scenes = { uncapped, capped, tar: tarred, sick, kill: killed };
    for (const [name, scene] of Object.entries(scenes)) {
      if (values.only.split(",").includes(name)) {
        await scene(stage);
      }
    }
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

const [role, mode = "", first = "", second = "", third = "", fourth = "8"] = positionals;
if (role !== "child") {
  await main();
} else if (mode === "install") {
  await childInstall(first, second, third, Number(fourth));
} else if (mode === "bare") {
  await childBare(first, second, Number(fourth));
} else {
  childCopy(first, second);
}
