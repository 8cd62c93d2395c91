/** Long rounds: fifty kills of a real process, a thousand downloads without a leak, 4 GiB and beyond. */
import { expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { listPartials, partialState } from "../../src/weights/journal.ts";
import { tar } from "../support/tar.ts";
import { tempDir } from "../support/temp-dir.ts";
import type { Content } from "../support/weight-server.ts";
import { file, isFetch, WeightServer } from "../support/weight-server.ts";
import { job, quickInstaller, safetensors, sha256, sha256File } from "../support/weights.ts";

const CHILD = join(import.meta.dir, "../support/install-child.ts");

test("D33: fifty SIGKILLs at random moments, each followed by a start that goes on; the last one ends whole", async () => {
  const body = safetensors(120_000_000);
  const hash = sha256(body);
  using server = await WeightServer.start();
  server.on("/w.safetensors", file(body, { bytesPerSecond: 300_000 }));
  using dir = tempDir();
  const destination = dir.join("checkpoints", "w.safetensors");
  let kept = 0;
  for (let round = 0; round < 50; round += 1) {
    const running = Bun.spawn(
      [process.execPath, CHILD, dir.path, server.url("/w.safetensors"), hash, destination],
      { stdout: "pipe" },
    );
    await running.stdout.getReader().read();
    await Bun.sleep(Math.random() * 400);
    running.kill("SIGKILL");
    await running.exited;
    expect(existsSync(destination)).toBe(false);
    const now = partialState(destination, [dir.path])?.doneBytes ?? 0;
    expect(now).toBeGreaterThanOrEqual(kept);
    kept = now;
  }
  expect(kept).toBeGreaterThan(0);
  server.on("/w.safetensors", file(body));
  const before = server.requests.length;
  await using installer = quickInstaller(dir.path);
  await installer.install([job(destination, server.url("/w.safetensors"), { sha256: hash })]);
  expect(sha256File(destination)).toBe(hash);
  expect(server.askedBytes("/w.safetensors", before)).toBe(body.length - kept);
  expect(listPartials([dir.path])).toEqual([]);
}, 240_000);

test("D33: thirty SIGKILLs while a tar comes in and its members go to their files; nothing that was recorded is fetched again", async () => {
  const members = {
    "w.safetensors": safetensors(30_000_000),
    "sub/v.safetensors": safetensors(9_000_000),
  };
  const bytes = tar([
    { name: "README", body: "hi" },
    ...Object.entries(members).map(([name, body]) => ({ name, body })),
  ]);
  const hash = sha256(members["w.safetensors"]);
  using server = await WeightServer.start();
  server.on("/w.tar", file(bytes, { bytesPerSecond: 300_000 }));
  using dir = tempDir();
  const folder = dir.join("checkpoints");
  let kept = 0;
  let inPlace = 0;
  for (let round = 0; round < 30; round += 1) {
    const running = Bun.spawn(
      [process.execPath, CHILD, dir.path, server.url("/w.tar"), hash, folder],
      { stdout: "pipe" },
    );
    await running.stdout.getReader().read();
    await Bun.sleep(Math.random() * 500);
    running.kill("SIGKILL");
    await running.exited;
    expect(existsSync(folder)).toBe(false);
    const state = partialState(join(folder, "w.safetensors"), [dir.path]);
    expect(state?.doneBytes ?? 0).toBeGreaterThanOrEqual(kept);
    kept = state?.doneBytes ?? 0;
    const journal = state === undefined ? "" : readFileSync(join(state.path, "journal"), "utf8");
    inPlace = journal.match(/^d /gm)?.length ?? 0;
  }
  expect(inPlace).toBeGreaterThan(0);
  server.on("/w.tar", file(bytes));
  const before = server.requests.length;
  await using installer = quickInstaller(dir.path);
  await installer.install([
    job(folder, server.url("/w.tar"), { name: "w.safetensors", unpack: "tar", sha256: hash }),
  ]);
  for (const [name, body] of Object.entries(members)) {
    expect(sha256File(join(folder, name))).toBe(sha256(body));
  }
  expect(server.askedBytes("/w.tar", before)).toBe(bytes.length - kept);
  expect(listPartials([dir.path])).toEqual([]);
}, 180_000);

test("a thousand downloads leave no file open, no rejection unheard and no memory behind", async () => {
  const body = safetensors(200_000);
  using server = await WeightServer.start();
  let asked = 0;
  server.on("/w.safetensors", (request, reply) => {
    asked += isFetch(request) ? 1 : 0;
    // Every tenth connection breaks.
    return asked % 10 === 9 ? reply.reset() : file(body)(request, reply);
  });
  using dir = tempDir();
  await using installer = quickInstaller(dir.path);
  let unheard = 0;
  process.on("unhandledRejection", () => {
    unheard += 1;
  });
  const round = async (from: number): Promise<void> => {
    for (let index = from; index < from + 200; index += 8) {
      await Promise.all(
        Array.from({ length: 8 }, (_, lane) =>
          installer.install([
            job(dir.join("loras", `${index + lane}.safetensors`), server.url("/w.safetensors")),
          ]),
        ),
      );
    }
    rmSync(dir.join("loras"), { recursive: true });
    rmSync(dir.join(".cog-partial"), { recursive: true });
    server.requests.length = 0;
  };
  await round(0);
  Bun.gc(true);
  const before = { fds: readdirSync("/proc/self/fd").length, rss: process.memoryUsage.rss() };
  for (let turn = 1; turn <= 5; turn += 1) {
    await round(turn * 200);
  }
  Bun.gc(true);
  expect(readdirSync("/proc/self/fd").length).toBeLessThan(before.fds + 40);
  expect(process.memoryUsage.rss() - before.rss).toBeLessThan(150 * 1024 * 1024);
  expect(unheard).toBe(0);
}, 240_000);

test("D60: a file beyond 4 GiB arrives whole, with memory that does not grow with it", async () => {
  const size = 2 ** 32 + 1;
  const block = Buffer.alloc(1024 * 1024, 0x5a);
  // The same megabyte over and over, so that nothing of it lies anywhere; the last byte is another one.
  const content: Content = {
    size,
    at: (start, end) => {
      const part = block.subarray(0, Math.min(block.length, end - start));
      return end === size
        ? Buffer.concat([part.subarray(0, end - start - 1), Buffer.from([1])])
        : part;
    },
  };
  using server = await WeightServer.start();
  server.on("/big.dat", file(content));
  using dir = tempDir();
  const destination = dir.join("misc", "big.dat");
  await using installer = quickInstaller(dir.path, {
    tuning: {
      chunkBytes: undefined,
      headersTimeoutMs: 15_000,
      stallTimeoutMs: 10_000,
      slowWindowMs: 20_000,
    },
  });
  const [installed] = await installer.install([job(destination, server.url("/big.dat"))]);
  expect(installed?.sizeBytes).toBe(size);
  const hasher = new Bun.CryptoHasher("sha256");
  for (let at = 0; at < size - 1; at += block.length) {
    hasher.update(block.subarray(0, Math.min(block.length, size - 1 - at)));
  }
  hasher.update(Buffer.from([1]));
  expect(installed?.sha256).toBe(hasher.digest("hex"));
}, 240_000);
