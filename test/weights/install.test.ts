import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { AppError } from "../../src/platform/errors.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import { listPartials, partialState } from "../../src/weights/journal.ts";
import { describePlan, planInstall } from "../../src/weights/plan.ts";
import type { InstallProgress } from "../../src/weights/plan-types.ts";
import { tar } from "../support/tar.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, isFetch, WeightServer, when } from "../support/weight-server.ts";
import { job, quickInstaller, safetensors, sha256, sha256File } from "../support/weights.ts";

const BODY = safetensors(600_000);
const SHA = sha256(BODY);
const PATH = "/w.safetensors";

let server: WeightServer;
let dir: TempDir;
let destination: string;

beforeEach(async () => {
  server = await WeightServer.start();
  server.on(PATH, file(BODY));
  dir = tempDir();
  destination = dir.join("checkpoints", "w.safetensors");
});

afterEach(() => {
  server[Symbol.dispose]();
  dir[Symbol.dispose]();
});

async function failureOf(run: Promise<unknown>): Promise<AppError> {
  try {
    await run;
  } catch (error) {
    if (error instanceof AppError) {
      return error;
    }
    throw error;
  }
  throw new Error("it did not fail");
}

function put(path: string, content: Uint8Array | string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
}

describe("an installation", () => {
  test("leaves the finished file and nothing of the work on it", async () => {
    await using installer = quickInstaller(dir.path);
    const events: InstallProgress[] = [];
    const [installed] = await installer.install(
      [job(destination, server.url(PATH), { sha256: SHA })],
      {
        onProgress: (event) => events.push(event),
      },
    );
    expect(installed).toMatchObject({
      file: destination,
      sha256: SHA,
      sizeBytes: BODY.length,
      fetched: true,
    });
    expect(statSync(destination).mode & 0o777).toBe(0o644);
    expect(readdirSync(join(dir.path, ".cog-partial"))).toEqual(["installed"]);
    expect([...new Set(events.map((event) => event.phase))]).toEqual([
      "resolving",
      "downloading",
      "verifying",
      "done",
    ]);
    expect(events.at(-1)).toMatchObject({ doneBytes: BODY.length, totalBytes: BODY.length });
  });

  test("of what is there already touches no network", async () => {
    await using installer = quickInstaller(dir.path);
    put(destination, BODY);
    server[Symbol.dispose]();
    const [installed] = await installer.install([job(destination, server.url(PATH))]);
    expect(installed).toMatchObject({ fetched: false, sizeBytes: BODY.length });
  });

  test("brings one file once, however many ask for it at the same time", async () => {
    await using installer = quickInstaller(dir.path);
    const wanted = job(destination, server.url(PATH));
    const all = await Promise.all([1, 2, 3, 4].map(() => installer.install([wanted])));
    expect(all.map(([one]) => one?.file)).toEqual([
      destination,
      destination,
      destination,
      destination,
    ]);
    expect(server.fetches(PATH).filter((one) => one.range?.start === 0)).toHaveLength(1);
  });

  test("goes on for the second asker when the first one cancels, and ends when the last one does", async () => {
    server.on(PATH, file(BODY, { bytesPerSecond: 400_000 }));
    await using installer = quickInstaller(dir.path, { tuning: { slowBytesPerSecond: 0 } });
    const first = new AbortController();
    const second = new AbortController();
    const wanted = job(destination, server.url(PATH));
    const one = installer.install([wanted], {
      signal: first.signal,
      onProgress: ({ doneBytes }) => doneBytes > 0 && first.abort(),
    });
    const two = installer.install([wanted], { signal: second.signal });
    expect((await failureOf(one)).code).toBe("CANCELED");
    expect((await two)[0]?.fetched).toBe(true);
    expect(sha256File(destination)).toBe(SHA);
  });

  test("that is cancelled keeps its bytes, and the next one goes on from there", async () => {
    server.on(PATH, file(BODY, { bytesPerSecond: 1_000_000 }));
    await using installer = quickInstaller(dir.path, { tuning: { connectionsPerFile: 2 } });
    const wanted = job(destination, server.url(PATH), { sha256: SHA });
    const controller = new AbortController();
    const cut = installer.install([wanted], {
      signal: controller.signal,
      onProgress: ({ doneBytes }) => doneBytes > 300_000 && controller.abort(),
    });
    expect((await failureOf(cut)).code).toBe("CANCELED");
    expect(existsSync(destination)).toBe(false);
    const state = partialState(destination, [dir.path]);
    expect(state?.doneBytes).toBeGreaterThan(100_000);
    const before = server.requests.length;
    server.on(PATH, file(BODY));
    await installer.install([wanted]);
    expect(sha256File(destination)).toBe(SHA);
    const again = server.askedBytes(PATH, before);
    expect(again).toBe(BODY.length - (state?.doneBytes ?? 0));
    expect(listPartials([dir.path])).toEqual([]);
  });

  test("D34: ends at once when it is called off, also when the server has fallen silent", async () => {
    server.on(
      PATH,
      when(
        isFetch,
        async (_request, reply) => {
          reply.head(206, { "content-length": 600_076, "content-range": "bytes 0-600075/600076" });
          await reply.silence();
        },
        file(BODY),
      ),
    );
    // With these deadlines it would hang beyond the test's own.
    const patient = { headersTimeoutMs: 60_000, stallTimeoutMs: 60_000, chunkBytes: 2 ** 20 };
    await using installer = quickInstaller(dir.path, { tuning: patient });
    const controller = new AbortController();
    const running = installer.install([job(destination, server.url(PATH))], {
      signal: controller.signal,
    });
    running.catch(() => undefined);
    while (server.requests.filter(isFetch).length === 0) {
      await Bun.sleep(5);
    }
    controller.abort();
    expect((await failureOf(running)).code).toBe("CANCELED");
  });

  test("of files with one SHA-256 fetches one and links the others", async () => {
    await using installer = quickInstaller(dir.path);
    const other = dir.join("vae", "copy.safetensors");
    const jobs = [
      job(destination, server.url(PATH), { sha256: SHA }),
      job(other, server.url("/elsewhere"), { sha256: SHA }),
    ];
    const installed = await installer.install(jobs);
    expect(installed.map((one) => one.file)).toEqual([destination, other]);
    expect(sha256File(other)).toBe(SHA);
    expect(server.requests.every((request) => request.path === PATH)).toBe(true);
  });

  test("of one address for two places fetches it once, also without a hash", async () => {
    await using installer = quickInstaller(dir.path);
    const other = dir.join("vae", "other.safetensors");
    await installer.install([job(destination, server.url(PATH)), job(other, server.url(PATH))]);
    expect(sha256File(other)).toBe(SHA);
    expect(server.fetches(PATH).filter((one) => one.range?.start === 0)).toHaveLength(1);
  });

  test("waits for a server that is busy when it is first asked", async () => {
    let left = 6;
    server.on(PATH, (request, reply) => {
      left -= 1;
      return left > 0 ? reply.send(503) : file(BODY)(request, reply);
    });
    await using installer = quickInstaller(dir.path, { tuning: { attempts: 8 } });
    await installer.install([job(destination, server.url(PATH))]);
    expect(sha256File(destination)).toBe(SHA);
  });

  test("reports every weight that no source gives, together and before anything is fetched", async () => {
    await using installer = quickInstaller(dir.path);
    server.on("/private", (_request, reply) => reply.send(401));
    const error = await failureOf(
      installer.install([
        job(destination, server.url(PATH)),
        job(dir.join("loras", "gone.safetensors"), server.url("/gone")),
        job(dir.join("loras", "private.safetensors"), server.url("/private")),
      ]),
    );
    expect(error.message).toContain("gone.safetensors");
    expect(error.message).toContain("private.safetensors");
    expect(server.requests.filter(isFetch)).toEqual([]);
    expect(existsSync(destination)).toBe(false);
  });

  test("takes the next mirror when the first is down", async () => {
    await using installer = quickInstaller(dir.path);
    const [installed] = await installer.install([
      job(destination, [server.url("/gone"), server.url(PATH)], { sha256: SHA }),
    ]);
    expect(installed?.source).toBe(server.url(PATH));
  });

  test("refuses before the download when manifest and server state different sizes or hashes", async () => {
    await using installer = quickInstaller(dir.path);
    const size = await failureOf(
      installer.install([job(destination, server.url(PATH), { sizeBytes: 5 })]),
    );
    expect(size.code).toBe("SIZE_MISMATCH");
    server.on(PATH, file(BODY, { headers: { "x-linked-etag": `"${"a".repeat(64)}"` } }));
    const hash = await failureOf(
      installer.install([job(destination, server.url(PATH), { sha256: SHA })]),
    );
    expect(hash.code).toBe("HASH_MISMATCH");
    expect(server.requests.filter(isFetch)).toEqual([]);
  });

  test("accepts a SHA-256 in capitals", async () => {
    await using installer = quickInstaller(dir.path);
    await installer.install([job(destination, server.url(PATH), { sha256: SHA.toUpperCase() })]);
    expect(sha256File(destination)).toBe(SHA);
  });

  test("checks what the Hub's redirect states when the manifest knows no hash", async () => {
    await using installer = quickInstaller(dir.path);
    const lie = sha256(Buffer.from("something else"));
    server.on("/go", (_request, reply) =>
      reply.redirect(PATH, 302, { "x-linked-etag": `"${lie}"` }),
    );
    expect((await failureOf(installer.install([job(destination, server.url("/go"))]))).code).toBe(
      "HASH_MISMATCH",
    );
    expect(existsSync(destination)).toBe(false);
  });

  test("copies a local file by the same road", async () => {
    await using installer = quickInstaller(dir.path);
    put(dir.join("source.safetensors"), BODY);
    await installer.install([
      job(destination, `file://${dir.join("source.safetensors")}`, { sha256: SHA }),
    ]);
    expect(sha256File(destination)).toBe(SHA);
    expect(existsSync(dir.join("source.safetensors"))).toBe(true);
  });

  test("needs no more than one request at a time where the limits say so", async () => {
    let open = 0;
    let most = 0;
    server.on(PATH, async (request, reply) => {
      open += 1;
      most = Math.max(most, open);
      await file(BODY)(request, reply);
      open -= 1;
    });
    await using installer = quickInstaller(dir.path, { tuning: { connectionsTotal: 1 } });
    await installer.install([job(destination, server.url(PATH))]);
    expect(most).toBe(1);
  });
});

describe("what lies at the destination", () => {
  test("D50: a broken file of somebody else's is reported and left as it is, before anything is fetched", async () => {
    put(destination, "<html>not a model</html>");
    await using installer = quickInstaller(dir.path);
    const error = await failureOf(installer.install([job(destination, server.url(PATH))]));
    expect(error.code).toBe("CONFLICT");
    expect(error.hint).toContain("weights repair");
    expect(readFileSync(destination, "utf8")).toStartWith("<html>");
    expect(server.requests).toEqual([]);
  });

  test("D50: a folder and a dangling link are conflicts too", async () => {
    await using installer = quickInstaller(dir.path);
    mkdirSync(destination, { recursive: true });
    expect((await failureOf(installer.install([job(destination, server.url(PATH))]))).code).toBe(
      "CONFLICT",
    );
    const link = dir.join("checkpoints", "link.safetensors");
    symlinkSync(dir.join("nowhere"), link);
    expect((await failureOf(installer.install([job(link, server.url(PATH))]))).code).toBe(
      "CONFLICT",
    );
    expect(lstatSync(link).isSymbolicLink()).toBe(true);
  });

  test("a broken file of ours is set aside, one per name", async () => {
    await using installer = quickInstaller(dir.path);
    const wanted = job(destination, server.url(PATH), { sha256: SHA });
    for (let round = 0; round < 3; round += 1) {
      await installer.install([wanted]);
      truncateSync(destination, 1000 + round);
    }
    await installer.install([wanted]);
    expect(sha256File(destination)).toBe(SHA);
    const aside = readdirSync(dirname(destination)).filter((name) => name.includes(".broken-"));
    expect(aside).toHaveLength(1);
  });

  test("a file of ours that somebody replaced is not ours any more", async () => {
    await using installer = quickInstaller(dir.path);
    const wanted = job(destination, server.url(PATH));
    await installer.install([wanted]);
    put(`${destination}.theirs`, "broken in another way");
    await Bun.$`mv ${destination}.theirs ${destination}`;
    expect((await failureOf(installer.install([wanted]))).code).toBe("CONFLICT");
  });

  test("repair replaces it, whoever put it there", async () => {
    put(destination, "<html>not a model</html>");
    await using installer = quickInstaller(dir.path);
    await installer.install([job(destination, server.url(PATH))], { repair: true });
    expect(sha256File(destination)).toBe(SHA);
  });

  test("the same file put there meanwhile by another is success", async () => {
    await using installer = quickInstaller(dir.path);
    let placed = false;
    server.on(PATH, async (request, reply) => {
      if (isFetch(request) && !placed) {
        placed = true;
        put(destination, BODY);
      }
      await file(BODY)(request, reply);
    });
    const [installed] = await installer.install([
      job(destination, server.url(PATH), { sha256: SHA }),
    ]);
    expect(installed?.file).toBe(destination);
  });

  test("another file put there meanwhile is a conflict", async () => {
    await using installer = quickInstaller(dir.path);
    server.on(PATH, async (request, reply) => {
      if (isFetch(request) && !existsSync(destination)) {
        put(destination, safetensors(10));
      }
      await file(BODY)(request, reply);
    });
    const error = await failureOf(
      installer.install([job(destination, server.url(PATH), { sha256: SHA })]),
    );
    expect(error.code).toBe("CONFLICT");
    expect(statSync(destination).size).toBeLessThan(1000);
  });
});

describe("archive sources", () => {
  const folder = (): string => dir.join("upscale_models");
  const member = safetensors(300_000);

  test("are unpacked into the folder, the wanted file checked against its hash", async () => {
    server.on("/x.tar", file(tar([{ name: "x.safetensors", body: member }])));
    await using installer = quickInstaller(dir.path);
    const [installed] = await installer.install([
      job(folder(), server.url("/x.tar"), {
        name: "x.safetensors",
        unpack: "tar",
        sha256: sha256(member),
      }),
    ]);
    expect(installed).toMatchObject({
      file: join(folder(), "x.safetensors"),
      sha256: sha256(member),
    });
    expect(sha256File(join(folder(), "x.safetensors"))).toBe(sha256(member));
    expect(readdirSync(join(dir.path, ".cog-partial"))).toEqual(["installed"]);
  });

  test("give the one file that is wanted where the job names a file", async () => {
    server.on(
      "/x.tar",
      file(
        tar([
          { name: "deep/w.safetensors", body: member },
          { name: "README", body: "hi" },
        ]),
      ),
    );
    await using installer = quickInstaller(dir.path);
    await installer.install([job(destination, server.url("/x.tar"), { sha256: sha256(member) })]);
    expect(sha256File(destination)).toBe(sha256(member));
    expect(readdirSync(dirname(destination))).toEqual(["w.safetensors"]);
  });

  test("may hold a whole folder, which appears in one step", async () => {
    server.on(
      "/x.tar",
      file(
        tar([
          { name: "antelopev2/a.onnx", body: Buffer.from([8, 7, 6]) },
          { name: "antelopev2/b.onnx", body: Buffer.from([8, 1, 2]) },
        ]),
      ),
    );
    await using installer = quickInstaller(dir.path);
    const wanted = job(dir.join("insightface", "models"), server.url("/x.tar"), {
      name: "models/antelopev2",
      unpack: "tar",
    });
    const [installed] = await installer.install([wanted]);
    expect(readdirSync(dir.join("insightface", "models", "antelopev2")).toSorted()).toEqual([
      "a.onnx",
      "b.onnx",
    ]);
    expect(installed?.file).toBe(dir.join("insightface", "models", "antelopev2"));
    expect((await installer.install([wanted]))[0]?.fetched).toBe(false);
  });

  test("with a wrong member, a cut, a link outside or a page install nothing", async () => {
    await using installer = quickInstaller(dir.path);
    const whole = tar([{ name: "x.safetensors", body: member }]);
    const cases = [
      ["HASH_MISMATCH", tar([{ name: "x.safetensors", body: safetensors(300_000) }])],
      ["FORMAT_INVALID", tar([{ name: "x.safetensors", body: member.subarray(0, 1000) }])],
      ["ARCHIVE_TRUNCATED", whole.subarray(0, 200_000)],
      ["ARCHIVE_UNSAFE", tar([{ name: "../x.safetensors", body: member }])],
      ["FORMAT_INVALID", Buffer.alloc(200_000, "not a tar ")],
    ] as const;
    for (const [code, bytes] of cases) {
      server.on("/x.tar", file(bytes));
      const attempt = installer.install([
        job(folder(), server.url("/x.tar"), {
          name: "x.safetensors",
          unpack: "tar",
          sha256: sha256(member),
        }),
      ]);
      expect((await failureOf(attempt)).code).toBe(code);
      expect(existsSync(folder())).toBe(false);
      expect(listPartials([dir.path])).toEqual([]);
    }
  });

  test("keep what they have when they are cut off, and unpack from disk at the next start", async () => {
    server.on(
      "/x.tar",
      when(
        (request) => isFetch(request) && (request.range?.start ?? 0) > 150_000,
        (_request, reply) => reply.send(500),
        file(tar([{ name: "x.safetensors", body: member }])),
      ),
    );
    await using installer = quickInstaller(dir.path);
    const wanted = job(folder(), server.url("/x.tar"), { name: "x.safetensors", unpack: "tar" });
    expect((await failureOf(installer.install([wanted]))).code).toBe("SERVER_ERROR");
    expect(existsSync(folder())).toBe(false);
    expect(listPartials([dir.path])[0]?.doneBytes).toBeGreaterThan(100_000);
    server.on("/x.tar", file(tar([{ name: "x.safetensors", body: member }])));
    const before = server.requests.length;
    await installer.install([wanted]);
    expect(sha256File(join(folder(), "x.safetensors"))).toBe(sha256(member));
    expect(
      server.requests
        .slice(before)
        .filter(isFetch)
        .every(({ range }) => (range?.start ?? 0) > 100_000),
    ).toBe(true);
  });

  test("leave files beside them alone", async () => {
    put(join(folder(), "other.safetensors"), BODY);
    server.on("/x.tar", file(tar([{ name: "x.safetensors", body: member }])));
    await using installer = quickInstaller(dir.path);
    await installer.install([
      job(folder(), server.url("/x.tar"), { name: "x.safetensors", unpack: "tar" }),
    ]);
    expect(readdirSync(folder()).toSorted()).toEqual(["other.safetensors", "x.safetensors"]);
  });
});

describe("what a request may bring", () => {
  const request = (url: string) => ({ sources: [{ url, trust: "request" as const }] });

  test("is a safetensors file over a guarded connection, without the operator's tokens", async () => {
    await using installer = quickInstaller(dir.path);
    await installer.install([job(destination, [], request(server.url(PATH)))]);
    expect(sha256File(destination)).toBe(SHA);
  });

  test("is nothing inside of the machine's network unless the operator opened it", async () => {
    await using installer = quickInstaller(dir.path, { guard: new AddressGuard([]) });
    const error = await failureOf(
      installer.install([job(destination, [], request(server.url(PATH)))]),
    );
    expect(error.code).toBe("FETCH_REFUSED");
    expect(server.requests).toEqual([]);
  });

  test("is nothing inside even after a redirect", async () => {
    await using installer = quickInstaller(dir.path, { guard: new AddressGuard([]) });
    // A public name can't be asked here; the hop itself is what is checked.
    const error = await failureOf(
      installer.install([job(destination, [], request("http://169.254.169.254/x.safetensors"))]),
    );
    expect(error.code).toBe("FETCH_REFUSED");
  });

  test("is no pickle, no archive, and no more than the limit", async () => {
    await using installer = quickInstaller(dir.path);
    const pickle = await failureOf(
      installer.install([job(dir.join("checkpoints", "w.ckpt"), [], request(server.url(PATH)))]),
    );
    expect(pickle.code).toBe("DOWNLOAD_REFUSED");
    const large = await failureOf(
      installer.install([job(destination, [], request(server.url(PATH)))], { maxBytes: 1000 }),
    );
    expect(large.code).toBe("DOWNLOAD_REFUSED");
    expect(large.message).toContain("600 kB");
    expect(server.requests.filter(isFetch)).toEqual([]);
  });
});

describe("plans", () => {
  test("D36: a disk that is too small is told with need and have, before the first byte", async () => {
    await using installer = quickInstaller(dir.path, { minFreeBytes: 1e18 });
    const error = await failureOf(installer.install([job(destination, server.url(PATH))]));
    expect(error.code).toBe("NO_SPACE");
    expect(error.message).toMatch(/600 kB are needed/);
    expect(server.requests.filter(isFetch)).toEqual([]);
  });

  test("drop double jobs, know what is there, and add up the rest", async () => {
    put(destination, BODY);
    const lora = dir.join("loras", "l.safetensors");
    const tarred = dir.join("upscale_models");
    const plan = await planInstall(
      [
        job(destination, "https://h/w.safetensors", { sizeBytes: BODY.length }),
        job(lora, ["https://h/l.safetensors", "https://m/l.safetensors"], { sizeBytes: 2e9 }),
        job(lora, "https://h/l.safetensors", { sizeBytes: 2e9 }),
        job(tarred, "https://h/u.pth.tar", { name: "u.pth", unpack: "tar", sizeBytes: 1e9 }),
        job(dir.join("vae", "v.safetensors"), "https://h/v.safetensors"),
      ],
      { roots: [dir.path], minFreeBytes: 0 },
    );
    expect(plan.steps.map((step) => step.action)).toEqual(["present", "fetch", "fetch", "fetch"]);
    expect(plan.totalBytes).toBe(3e9);
    expect(plan.unsized.map((one) => one.name)).toEqual(["v.safetensors"]);
    // The tar and its content lie there together for a while.
    expect(plan.fileSystems[0]?.peakBytes).toBe(4e9);
    expect(describePlan(plan)).toContain(
      "l.safetensors: 2.0 GB from https://h/l.safetensors, 1 more source",
    );
  });

  test("two different files for one place are a conflict", async () => {
    const jobs = ["a", "b"].map((letter) =>
      job(destination, "https://h/w", { sha256: letter.repeat(64) }),
    );
    expect((await failureOf(Promise.resolve().then(() => planInstall(jobs)))).code).toBe(
      "CONFLICT",
    );
  });

  test("an unsized file counts with what its server says", async () => {
    await using installer = quickInstaller(dir.path);
    const plan = await installer.plan([job(destination, server.url(PATH))]);
    expect(plan.totalBytes).toBe(BODY.length);
    expect(plan.unsized).toEqual([]);
  });
});
