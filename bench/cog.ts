/**
 * Our protocol layer against Cog's own server, each with a model that does nothing, one process each, in turns:
 * `bun bench/cog.ts`. Ratios are ours ÷ theirs within this run; below 1 is ahead, for answers per second above 1.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { prepareReference, startReference } from "../scripts/cog-reference.ts";
import { healthStatus } from "../test/support/cog-scenario.ts";

const ROUNDS = 5;
const REQUESTS = { 1: 1_000, 16: 4_000, 64: 4_000 } as const;
const CONNECTIONS = [1, 16, 64] as const;
const WEBHOOKS = 1_000;
const SINK_MS = 20;
const CANCELS = 50;
const SLOTS = 64;
const TRIVIAL = join(import.meta.dir, "cog-trivial.ts");

interface Server extends AsyncDisposable {
  readonly port: number;
  readonly pid: number;
}

type Side = "ours" | "theirs";
const SIDES: readonly Side[] = ["ours", "theirs"];

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const port = server.port ?? 0;
  void server.stop(true);
  return port;
}

function startOurs(env: Record<string, string>): Server {
  const port = freePort();
  const child = Bun.spawn([process.execPath, TRIVIAL, "--host", "127.0.0.1"], {
    env: { PATH: process.env["PATH"] ?? "", PORT: String(port), ...env },
    stdio: ["ignore", "ignore", "ignore"],
  });
  return {
    port,
    pid: child.pid,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function start(side: Side, slots: number): Promise<Server> {
  const env = { COG_MAX_CONCURRENCY: String(slots) };
  if (side === "theirs") {
    const predictor = slots === 1 ? "TrivialPredictor" : "AsyncTrivialPredictor";
    return startReference({ env, predictor });
  }
  const server = startOurs(env);
  await until(server.port, (status) => status === "READY");
  return server;
}

async function until(port: number, isMet: (status: string) => boolean): Promise<void> {
  while (!isMet(await healthStatus(port))) {
    await Bun.sleep(1);
  }
}

function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

interface Load {
  readonly p50: number;
  readonly p99: number;
  readonly perSecond: number;
  /** Answers that were not 200. */
  readonly refused: number;
}

async function load(connections: number, total: number, ask: () => Promise<number>): Promise<Load> {
  const times: number[] = [];
  let left = total;
  let refused = 0;
  const began = performance.now();
  await Promise.all(
    Array.from({ length: connections }, async () => {
      while (left > 0) {
        left -= 1;
        const at = performance.now();
        const status = await ask();
        // A refusal is quick and no work: it counts neither in the times nor in the rate.
        if (status === 200) {
          times.push(performance.now() - at);
        } else {
          refused += 1;
        }
      }
    }),
  );
  const seconds = (performance.now() - began) / 1000;
  return {
    p50: quantile(times, 0.5),
    p99: quantile(times, 0.99),
    perSecond: times.length / seconds,
    refused,
  };
}

async function health(port: number): Promise<number> {
  const response = await fetch(`http://127.0.0.1:${port}/health-check`);
  await response.arrayBuffer();
  return response.status;
}

async function predict(port: number): Promise<number> {
  const response = await fetch(`http://127.0.0.1:${port}/predictions`, {
    method: "POST",
    body: '{"input":{}}',
    headers: { "content-type": "application/json" },
  });
  await response.arrayBuffer();
  return response.status;
}

/** Resident memory of a process and its children, in MB. */
function residentMb(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const own = Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024;
  const children = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => parentOf(Number(name)) === pid)
    .map((name) => residentMb(Number(name)));
  return own + children.reduce((sum, one) => sum + one, 0);
}

function parentOf(pid: number): number | undefined {
  try {
    return Number(/PPid:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
  } catch {
    return undefined;
  }
}

async function webhookSeconds(server: Server): Promise<number> {
  let seen = 0;
  const all = Promise.withResolvers<void>();
  const sink = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: async (request) => {
      await request.arrayBuffer();
      await Bun.sleep(SINK_MS);
      seen += 1;
      if (seen === WEBHOOKS) {
        all.resolve();
      }
      return new Response();
    },
  });
  const body = JSON.stringify({
    input: {},
    webhook: `http://127.0.0.1:${sink.port}/`,
    webhook_events_filter: ["completed"],
  });
  const began = performance.now();
  await load(16, WEBHOOKS, async () => {
    for (;;) {
      const response = await fetch(`http://127.0.0.1:${server.port}/predictions`, {
        method: "POST",
        body,
        headers: { "content-type": "application/json" },
      });
      await response.arrayBuffer();
      if (response.status === 200) {
        return 200;
      }
    }
  });
  await all.promise;
  void sink.stop(true);
  return (performance.now() - began) / 1000;
}

/** Milliseconds from the cancel request to the answer of the cancelled prediction. */
async function cancelMs(server: Server): Promise<number> {
  const times: number[] = [];
  const base = `http://127.0.0.1:${server.port}/predictions`;
  for (let n = 0; n < CANCELS; n += 1) {
    const id = `cancel-${n}`;
    const answer = fetch(`${base}/${id}`, {
      method: "PUT",
      body: '{"input":{"workflow_json":"wait"}}',
      headers: { "content-type": "application/json" },
    });
    await Bun.sleep(20);
    const at = performance.now();
    await (await fetch(`${base}/${id}/cancel`, { method: "POST" })).arrayBuffer();
    await (await answer).arrayBuffer();
    times.push(performance.now() - at);
  }
  return quantile(times, 0.5);
}

/** What was measured, by row and side; several values are rounds. */
const rows = new Map<string, Record<Side, number[]>>();

function note(row: string, side: Side, value: number): void {
  const values = rows.get(row) ?? { ours: [], theirs: [] };
  values[side].push(value);
  rows.set(row, values);
}

async function measureStarts(): Promise<void> {
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const side of SIDES) {
      const began = performance.now();
      await using server =
        side === "ours"
          ? startOurs({})
          : await startReference({ predictor: "TrivialPredictor", wait: false });
      await until(server.port, (status) => status !== "gone");
      note("start → first answer, ms", side, performance.now() - began);
      await until(server.port, (status) => status === "READY");
      note("start → READY, ms", side, performance.now() - began);
      await Bun.sleep(500);
      note("resident memory idle, MB", side, residentMb(server.pid));
    }
  }
}

async function measureLoad(side: Side, connections: (typeof CONNECTIONS)[number]): Promise<void> {
  await using server = await start(side, connections === 1 ? 1 : SLOTS);
  const { port } = server;
  const asks = [
    ["health", health],
    ["prediction", predict],
  ] as const;
  for (const [name, ask] of asks) {
    await load(connections, 200, () => ask(port));
    const result = await load(connections, REQUESTS[connections], () => ask(port));
    const row = `${name}, ${connections} connection${connections === 1 ? "" : "s"}`;
    note(`${row}: p50, ms`, side, result.p50);
    note(`${row}: p99, ms`, side, result.p99);
    note(`${row}: per second`, side, result.perSecond);
    note(`${row}: not 200`, side, result.refused);
  }
}

async function measureLoads(): Promise<void> {
  for (const connections of CONNECTIONS) {
    for (let round = 0; round < ROUNDS; round += 1) {
      for (const side of SIDES) {
        await measureLoad(side, connections);
      }
    }
  }
}

async function measureRest(): Promise<void> {
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const side of SIDES) {
      await using server = await start(side, SLOTS);
      note(
        `${WEBHOOKS} webhooks to a sink of ${SINK_MS} ms, s`,
        side,
        await webhookSeconds(server),
      );
      note("cancel → answer, ms", side, await cancelMs(server));
    }
  }
}

await prepareReference();
await measureStarts();
await measureLoads();
await measureRest();
console.log("| What | ours | coglet | ours ÷ theirs |\n|---|---|---|---|");
for (const [row, { ours, theirs }] of rows) {
  const [a, b] = [quantile(ours, 0.5), quantile(theirs, 0.5)];
  console.log(
    `| ${row} | ${a.toFixed(2)} | ${b.toFixed(2)} | ${b === 0 ? "–" : (a / b).toFixed(2)} |`,
  );
}
