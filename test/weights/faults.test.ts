/**
 * The transport faults of the fault list (downloader.md D, 1–32), each against a scripted origin: every one ends in the
 * right bytes, or in the right error with nothing visible at the destination.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { AppError } from "../../src/platform/errors.ts";
import { createLogger } from "../../src/platform/log.ts";
import { Credentials } from "../../src/weights/credentials.ts";
import type { InstallerOptions } from "../../src/weights/install.ts";
import type { InstallJob } from "../../src/weights/plan-types.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import type { Handler, WeightRequest } from "../support/weight-server.ts";
import {
  contentOf,
  file,
  isFetch,
  isProbe,
  pour,
  WeightServer,
  when,
} from "../support/weight-server.ts";
import { job, quickInstaller, safetensors, sha256, sha256File } from "../support/weights.ts";

const BODY = safetensors(1_000_000);
const SHA = sha256(BODY);
const OTHER = safetensors(1_000_000);
const PATH = "/w.safetensors";
const good = file(BODY);

let server: WeightServer;
let mirror: WeightServer;
let dir: TempDir;

beforeEach(async () => {
  server = await WeightServer.start();
  mirror = await WeightServer.start();
  dir = tempDir();
});

afterEach(() => {
  server[Symbol.dispose]();
  mirror[Symbol.dispose]();
  dir[Symbol.dispose]();
});

interface Outcome {
  readonly result: "installed" | string;
  readonly error: AppError | undefined;
}

/** Installs one weight from the given addresses and holds the invariant: right bytes, or an error and nothing there. */
async function attempt(
  urls: string | readonly string[] = server.url(PATH),
  more: Partial<InstallJob> = {},
  options: Partial<InstallerOptions> = {},
): Promise<Outcome> {
  const destination = dir.join("models", "checkpoints", "w.safetensors");
  await using installer = quickInstaller(dir.join("models"), options);
  try {
    await installer.install([job(destination, urls, { sha256: SHA, ...more })]);
  } catch (error) {
    if (!(error instanceof AppError)) {
      throw error;
    }
    expect(existsSync(destination)).toBe(false);
    return { result: error.code, error };
  }
  expect(sha256File(destination)).toBe(SHA);
  return { result: "installed", error: undefined };
}

/** `fault` for the nth fetch (0 = the first), the good file otherwise. */
function onNth(nth: number, fault: Handler): Handler {
  let seen = 0;
  return (request, reply) => {
    if (isProbe(request)) {
      return good(request, reply);
    }
    seen += 1;
    return seen - 1 === nth ? fault(request, reply) : good(request, reply);
  };
}

/** Always `fault` for fetches; the probe is answered well. */
function always(fault: Handler): Handler {
  return when(isFetch, fault, good);
}

function rangeOf(request: WeightRequest): { start: number; end: number } {
  const { start, end } = request.range ?? { start: 0, end: BODY.length - 1 };
  return { start, end: Math.min(end, BODY.length - 1) };
}

/** Headers of a right answer to a range. */
function partHeaders(request: WeightRequest): Record<string, string | number> {
  const { start, end } = rangeOf(request);
  return {
    "content-length": end - start + 1,
    "content-range": `bytes ${start}-${end}/${BODY.length}`,
    etag: `"${BODY.length}-v1"`,
  };
}

describe("connections that break", () => {
  const half: Record<string, (cut: (reply: Parameters<Handler>[1]) => void) => Handler> = {
    part: (cut) => async (request, reply) => {
      const { start, end } = rangeOf(request);
      reply.head(206, partHeaders(request));
      await reply.write(BODY.subarray(start, start + Math.floor((end - start) / 2)));
      await Bun.sleep(5);
      cut(reply);
    },
  };

  test("D1: a reset in the middle of a range is fetched again", async () => {
    server.on(
      PATH,
      onNth(
        1,
        half["part"]!((reply) => reply.reset()),
      ),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D2: an end short of the promised length is fetched again", async () => {
    server.on(
      PATH,
      onNth(
        1,
        half["part"]!((reply) => reply.close()),
      ),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D3: a chunked body that is cut is fetched again", async () => {
    server.on(
      PATH,
      onNth(0, async (request, reply) => {
        const { "content-length": _length, ...headers } = partHeaders(request);
        reply.head(206, { ...headers, "transfer-encoding": "chunked" });
        await reply.chunk(BODY.subarray(rangeOf(request).start, rangeOf(request).start + 1000));
        reply.close();
      }),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D4: a body without length that just ends is refused, since a cut could not be seen", async () => {
    server.on(PATH, async (_request, reply) => {
      reply.head(200, { connection: "close" });
      await reply.write(BODY.subarray(0, 5000));
      reply.close();
    });
    expect((await attempt(undefined, { sizeBytes: BODY.length })).result).toBe("SHORT_BODY");
  });

  test("D4b: a chunked body without length is taken, since its end is marked", async () => {
    server.on(PATH, async (_request, reply) => {
      reply.head(200, { "transfer-encoding": "chunked" });
      for (let at = 0; at < BODY.length; at += 100_000) {
        await reply.chunk(BODY.subarray(at, at + 100_000));
      }
      await reply.write("0\r\n\r\n");
    });
    expect((await attempt()).result).toBe("installed");
  });

  test("D5: an empty 206 is fetched again", async () => {
    server.on(
      PATH,
      onNth(0, (request, reply) =>
        reply.send(206, "", { ...partHeaders(request), "content-length": 0 }),
      ),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D6: a connection that never answers is given up and its bytes fetched by another", async () => {
    server.on(
      PATH,
      onNth(1, (_request, reply) => reply.silence()),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D6b: a server that never answers fails with STALLED", async () => {
    server.on(PATH, (_request, reply) => reply.silence());
    expect((await attempt(undefined, {}, { tuning: { headersTimeoutMs: 100 } })).result).toBe(
      "STALLED",
    );
  });

  test("D7: headers and then silence are given up and fetched again", async () => {
    server.on(
      PATH,
      onNth(0, async (request, reply) => {
        reply.head(206, partHeaders(request));
        await reply.silence();
      }),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D7b: every range silent fails with STALLED and keeps the partial file", async () => {
    server.on(
      PATH,
      always(async (request, reply) => {
        reply.head(206, partHeaders(request));
        await reply.silence();
      }),
    );
    const outcome = await attempt(undefined, {}, { tuning: { stallTimeoutMs: 80, attempts: 2 } });
    expect(outcome.result).toBe("STALLED");
  });

  test("D8, D9: one crawling connection is replaced while the others run", async () => {
    server.on(
      PATH,
      onNth(2, async (request, reply) => {
        reply.head(206, partHeaders(request));
        for (
          let at = rangeOf(request).start;
          reply.isOpen && at <= rangeOf(request).end;
          at += 10
        ) {
          await reply.write(BODY.subarray(at, at + 10));
          await Bun.sleep(20);
        }
      }),
    );
    const started = performance.now();
    expect((await attempt()).result).toBe("installed");
    // At its own pace that one range alone would have taken over two minutes.
    expect(performance.now() - started).toBeLessThan(20_000);
  });

  test("D30: a server that resets all but two connections is served by two", async () => {
    let open = 0;
    server.on(PATH, async (request, reply) => {
      if (open >= 2 && isFetch(request)) {
        reply.reset();
        return;
      }
      open += 1;
      await good(request, reply);
      await Bun.sleep(2);
      open -= 1;
    });
    expect((await attempt(undefined, {}, { tuning: { attempts: 50 } })).result).toBe("installed");
  });

  test("D31: a kept-alive socket that closes between two requests costs nothing", async () => {
    server.on(PATH, async (request, reply) => {
      await good(request, reply);
      reply.close();
    });
    expect((await attempt()).result).toBe("installed");
  });
});

describe("ranges that lie", () => {
  const whole: Handler = file(BODY, { ranges: false });

  test("D10: a server without ranges is read as one stream", async () => {
    server.on(PATH, whole);
    expect((await attempt()).result).toBe("installed");
    expect(server.fetches(PATH)).toHaveLength(1);
  });

  test("D11: a whole body for the k-th range only is asked again", async () => {
    server.on(PATH, onNth(3, whole));
    expect((await attempt()).result).toBe("installed");
  });

  test("D11b: a server that stops doing ranges is read as one stream", async () => {
    server.on(PATH, always(whole));
    expect((await attempt()).result).toBe("installed");
  });

  const shifted: Handler = async (request, reply) => {
    const { start, end } = rangeOf(request);
    await reply.send(206, BODY.subarray(start, end + 1), {
      "content-range": `bytes ${start + 1}-${end + 1}/${BODY.length}`,
    });
  };

  test("D12: a shifted range is never written", async () => {
    server.on(PATH, onNth(2, shifted));
    expect((await attempt()).result).toBe("installed");
    server.on(PATH, always(shifted));
    expect((await attempt(server.url(PATH), { name: "again.safetensors" })).result).toBe(
      "installed",
    );
  });

  test("D12b: shifted ranges only end with RANGE_INVALID", async () => {
    server.on(PATH, always(shifted));
    expect((await attempt()).result).toBe("RANGE_INVALID");
  });

  test("D13: more bytes than the range has are thrown away with the range", async () => {
    server.on(
      PATH,
      onNth(0, async (request, reply) => {
        const { start, end } = rangeOf(request);
        const { "content-length": _length, ...headers } = partHeaders(request);
        reply.head(206, { ...headers, "transfer-encoding": "chunked" });
        await reply.chunk(OTHER.subarray(start, end + 1));
        await reply.chunk(Buffer.from("surplus"));
        await reply.write("0\r\n\r\n");
      }),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D13b: fewer bytes than the range has are completed", async () => {
    server.on(
      PATH,
      onNth(0, async (request, reply) => {
        const { start } = rangeOf(request);
        const { "content-length": _length, ...headers } = partHeaders(request);
        reply.head(206, { ...headers, "transfer-encoding": "chunked" });
        await reply.chunk(BODY.subarray(start, start + 500));
        await reply.write("0\r\n\r\n");
      }),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D14: another total length means another file", async () => {
    server.on(
      PATH,
      always(async (request, reply) => {
        const { start, end } = rangeOf(request);
        await reply.send(206, BODY.subarray(start, end + 1), {
          "content-range": `bytes ${start}-${end}/${BODY.length + 7}`,
        });
      }),
    );
    expect((await attempt()).result).toBe("SOURCE_CHANGED");
  });

  test("D14b: a total of * in the ranges is accepted", async () => {
    server.on(
      PATH,
      always(async (request, reply) => {
        const { start, end } = rangeOf(request);
        await reply.send(206, BODY.subarray(start, end + 1), {
          "content-range": `bytes ${start}-${end}/*`,
        });
      }),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D15: a multipart answer is refused", async () => {
    server.on(
      PATH,
      always((request, reply) =>
        reply.send(206, "--x\r\n\r\nabc\r\n--x--", {
          ...partHeaders(request),
          "content-length": 19,
          "content-type": "multipart/byteranges; boundary=x",
        }),
      ),
    );
    expect((await attempt()).result).toBe("RANGE_INVALID");
  });

  test("D16: 416 on a valid range is asked again, and ends with RANGE_INVALID when it stays", async () => {
    server.on(
      PATH,
      onNth(1, (_request, reply) => reply.send(416)),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D16b: 416 for ever ends with RANGE_INVALID", async () => {
    server.on(
      PATH,
      always((_request, reply) => reply.send(416)),
    );
    expect((await attempt()).result).toBe("RANGE_INVALID");
  });
});

describe("files that change", () => {
  function flipping(after: number, before: Handler, then: Handler): Handler {
    let fetches = 0;
    return (request, reply) => {
      fetches += isFetch(request) ? 1 : 0;
      return fetches > after ? then(request, reply) : before(request, reply);
    };
  }

  test("D17: a new ETag midway starts over with the new file, never mixing the two", async () => {
    server.on(PATH, flipping(3, file(OTHER, { etag: '"old"' }), file(BODY, { etag: '"new"' })));
    expect((await attempt()).result).toBe("installed");
  });

  test("D17b: without If-Range support the new ETag is seen in the answer", async () => {
    const careless =
      (bytes: Buffer, etag: string): Handler =>
      (request, reply) =>
        file(bytes, { etag })({ ...request, headers: {} }, reply);
    server.on(PATH, flipping(3, careless(OTHER, '"old"'), careless(BODY, '"new"')));
    expect((await attempt()).result).toBe("installed");
  });

  test("D17c: a file that changes for ever fails with SOURCE_CHANGED", async () => {
    let version = 0;
    server.on(PATH, (request, reply) => {
      version += 1;
      return file(BODY, { etag: `"v${version}"` })(request, reply);
    });
    expect((await attempt()).result).toBe("SOURCE_CHANGED");
  });

  test("D17d: a weak ETag is not used as a validator; the bytes still arrive", async () => {
    server.on(PATH, file(BODY, { etag: 'W/"weak"' }));
    expect((await attempt()).result).toBe("installed");
    expect(server.requests.every((request) => request.headers["if-range"] === undefined)).toBe(
      true,
    );
  });

  test("D17d: a weak ETag that changes midway starts over all the same", async () => {
    server.on(PATH, flipping(2, file(OTHER, { etag: 'W/"old"' }), file(BODY, { etag: 'W/"new"' })));
    expect((await attempt()).result).toBe("installed");
  });

  test("D17e: without an ETag a changed Last-Modified starts over", async () => {
    const dated = (bytes: Buffer, lastModified: string): Handler =>
      file(bytes, { etag: null, lastModified });
    server.on(
      PATH,
      flipping(
        2,
        dated(OTHER, "Mon, 01 Jan 2024 00:00:00 GMT"),
        dated(BODY, "Tue, 02 Jan 2024 00:00:00 GMT"),
      ),
    );
    expect((await attempt()).result).toBe("installed");
  });

  test("D17f: the same ETag over other bytes is caught by the hash", async () => {
    server.on(PATH, file(OTHER, { etag: '"same"' }));
    const { result, error } = await attempt();
    expect(result).toBe("HASH_MISMATCH");
    expect(error?.hint).toContain("out of date");
  });

  test("D39: a flipped bit on the way is caught, and the second try brings the right bytes", async () => {
    const flipped = Buffer.from(BODY);
    flipped[500_000] = (flipped[500_000] ?? 0) ^ 1;
    let probes = 0;
    server.on(PATH, (request, reply) => {
      probes += isProbe(request) ? 1 : 0;
      return file(probes > 1 ? BODY : flipped)(request, reply);
    });
    expect((await attempt()).result).toBe("installed");
  });

  test("D32: a mirror with another version is never mixed in", async () => {
    let fetches = 0;
    server.on(PATH, (request, reply) => {
      fetches += isFetch(request) ? 1 : 0;
      return fetches > 4 ? reply.send(404) : file(OTHER, { etag: '"other"' })(request, reply);
    });
    mirror.on(PATH, file(BODY, { etag: '"good"' }));
    expect((await attempt([server.url(PATH), mirror.url(PATH)])).result).toBe("installed");
    const total = mirror
      .fetches(PATH)
      .reduce((sum, { range }) => sum + (range?.end ?? 0) + 1 - (range?.start ?? 0), 0);
    expect(total).toBeGreaterThanOrEqual(BODY.length);
  });
});

describe("encodings", () => {
  test("D18: gzip although identity was asked is refused", async () => {
    server.on(PATH, (_request, reply) =>
      reply.send(200, gzipSync(BODY), { "content-encoding": "gzip" }),
    );
    expect((await attempt()).result).toBe("ENCODED_BODY");
  });

  test("D18b: identity spelled out is fine", async () => {
    server.on(PATH, file(BODY, { headers: { "content-encoding": "identity" } }));
    expect((await attempt()).result).toBe("installed");
    expect(server.requests.every((one) => one.headers["accept-encoding"] === "identity")).toBe(
      true,
    );
  });
});

describe("servers that are busy or broken", () => {
  for (const [name, headers] of [
    ["in seconds", { "retry-after": "0" }],
    ["as a date", { "retry-after": new Date(Date.now() - 1000).toUTCString() }],
    ["negative", { "retry-after": "-5" }],
    ["as a RateLimit header", { ratelimit: '"resolvers";r=0;t=0' }],
  ] as const) {
    test(`D19: 429 with Retry-After ${name} waits and goes on`, async () => {
      server.on(
        PATH,
        onNth(1, (_request, reply) => reply.send(429, "", headers)),
      );
      expect((await attempt()).result).toBe("installed");
    });
  }

  test("D19b: while an origin asked for rest, nobody asks it", async () => {
    const times: number[] = [];
    let limited = 0;
    server.on(PATH, (request, reply) => {
      times.push(performance.now());
      if (isFetch(request) && limited === 0) {
        limited = performance.now();
        return reply.send(429, "", { "retry-after": "1" });
      }
      return good(request, reply);
    });
    expect(
      (await attempt(undefined, {}, { tuning: { startConnections: 1, connectionsPerFile: 1 } }))
        .result,
    ).toBe("installed");
    const next = times.find((time) => time > limited);
    expect((next ?? 0) - limited).toBeGreaterThan(900);
  });

  test("D20: 503 for a while, then fine", async () => {
    let left = 5;
    server.on(PATH, (request, reply) => {
      left -= isFetch(request) ? 1 : 0;
      return isFetch(request) && left > 0 ? reply.send(503) : good(request, reply);
    });
    expect((await attempt(undefined, {}, { tuning: { attempts: 10 } })).result).toBe("installed");
  });

  test("D21: 500 on one range for ever goes to the mirror", async () => {
    server.on(PATH, (request, reply) =>
      isFetch(request) && request.range?.start === 5 * 65_536
        ? reply.send(500)
        : good(request, reply),
    );
    mirror.on(PATH, good);
    expect((await attempt([server.url(PATH), mirror.url(PATH)])).result).toBe("installed");
    expect(mirror.requests.length).toBeGreaterThan(0);
  });

  test("D21b: without a mirror it fails with SERVER_ERROR", async () => {
    server.on(PATH, (request, reply) =>
      isFetch(request) && request.range?.start === 5 * 65_536
        ? reply.send(500)
        : good(request, reply),
    );
    expect((await attempt()).result).toBe("SERVER_ERROR");
  });
});

describe("redirects", () => {
  for (const status of [301, 302, 303, 307, 308]) {
    test(`D22: ${status} is followed, once per file and not once per range`, async () => {
      server.on("/go", (_request, reply) => reply.redirect(PATH, status)).on(PATH, good);
      expect((await attempt(server.url("/go"))).result).toBe("installed");
      expect(server.requests.filter((request) => request.path === "/go")).toHaveLength(1);
    });
  }

  test("D22b: a redirect without a target is an error", async () => {
    server.on("/go", (_request, reply) => reply.send(302));
    expect((await attempt(server.url("/go"))).result).toBe("NETWORK");
  });

  test("D22c: a loop ends", async () => {
    server.on("/go", (_request, reply) => reply.redirect("/go"));
    const { result, error } = await attempt(server.url("/go"));
    expect(result).toBe("NETWORK");
    expect(error?.message).toContain("more than 10 times");
  });

  test("D22d: a redirect to another scheme is not followed", async () => {
    server.on("/go", (_request, reply) => reply.redirect("file:///etc/passwd"));
    expect((await attempt(server.url("/go"))).result).toBe("NETWORK");
  });

  test("D23: the token goes to its own host, and not to where that redirects", async () => {
    server.on("/org/repo/resolve/main/w.safetensors", (_request, reply) =>
      reply.redirect(mirror.url(PATH)),
    );
    mirror.on(PATH, good);
    const credentials = new Credentials({
      operator: { huggingFace: "hf_secretsecretsecret" },
      hfEndpoint: server.origin,
    });
    expect((await attempt("hf://org/repo/w.safetensors", {}, { credentials })).result).toBe(
      "installed",
    );
    expect(server.requests[0]?.headers["authorization"]).toBe("Bearer hf_secretsecretsecret");
    for (const request of mirror.requests) {
      expect(request.headers["authorization"]).toBeUndefined();
      expect(request.headers["cookie"]).toBeUndefined();
      expect(request.query.get("token")).toBeNull();
    }
  });

  test("D23b: a redirect on the same host keeps the token", async () => {
    server
      .on("/old/name/resolve/main/w.safetensors", (_request, reply) =>
        reply.redirect("/new/name/resolve/main/w.safetensors", 307),
      )
      .on("/new/name/resolve/main/w.safetensors", good);
    const credentials = new Credentials({
      operator: { huggingFace: "hf_secretsecretsecret" },
      hfEndpoint: server.origin,
    });
    expect((await attempt("hf://old/name/w.safetensors", {}, { credentials })).result).toBe(
      "installed",
    );
    expect(server.requests.every((one) => one.headers["authorization"] !== undefined)).toBe(true);
  });

  test("D23c: user and password in the address stay with its host", async () => {
    server.on("/go", (_request, reply) => reply.redirect(mirror.url(PATH)));
    mirror.on(PATH, good);
    const url = server.url("/go").replace("http://", "http://anna:geheim99@");
    expect((await attempt(url)).result).toBe("installed");
    expect(server.requests[0]?.headers["authorization"]).toStartWith("Basic ");
    expect(mirror.requests.every((one) => one.headers["authorization"] === undefined)).toBe(true);
  });

  /** Signed storage: every redirect gives a key that is good for `uses` requests. */
  function signed(uses: number, storage: () => Handler): void {
    let key = 0;
    let used = 0;
    server.on("/go", (_request, reply) => {
      key += 1;
      used = 0;
      return reply.redirect(`${mirror.url(PATH)}?X-Amz-Signature=key${key}`);
    });
    mirror.on(PATH, (request, reply) => {
      used += 1;
      if (request.query.get("X-Amz-Signature") !== `key${key}` || used > uses) {
        return reply.send(403, "<Error><Message>Request has expired</Message></Error>");
      }
      return storage()(request, reply);
    });
  }

  test("D24: a signed address that runs out midway is renewed, and the bytes so far are kept", async () => {
    signed(6, () => good);
    expect((await attempt(server.url("/go"))).result).toBe("installed");
    const fetched = mirror.requests.filter(isFetch).filter((one) => one.range !== undefined);
    expect(server.requests.length).toBeGreaterThan(1);
    expect(fetched.length).toBeLessThan(60);
  });

  test("D25: a renewed address that leads to another object starts over", async () => {
    signed(6, () =>
      server.requests.length > 1 ? file(BODY, { etag: '"new"' }) : file(OTHER, { etag: '"old"' }),
    );
    // What was fetched under the old key is of another file; the restart gets the new one whole.
    const outcome = await attempt(server.url("/go"), {}, { tuning: { renewals: 100 } });
    expect(outcome.result).toBe("installed");
  });

  test("a moving revision is pinned: a renewal asks for the commit of the first answer", async () => {
    const commit = "c".repeat(40);
    let resolved = 0;
    let used = 0;
    const hand =
      (key: string): Handler =>
      (_request, reply) => {
        resolved += 1;
        used = 0;
        return reply.redirect(`${mirror.url(PATH)}?${key}`, 302, { "x-repo-commit": commit });
      };
    server.on("/o/r/resolve/main/w.safetensors", hand("main"));
    server.on(`/o/r/resolve/${commit}/w.safetensors`, hand("commit"));
    mirror.on(PATH, (request, reply) => {
      used += 1;
      return used > 8 ? reply.send(403) : good(request, reply);
    });
    const credentials = new Credentials({ hfEndpoint: server.origin });
    const outcome = await attempt("hf://o/r/w.safetensors", {}, { credentials });
    expect(outcome.result).toBe("installed");
    expect(resolved).toBeGreaterThan(1);
    expect(server.requests.map((request) => request.path)).toEqual([
      "/o/r/resolve/main/w.safetensors",
      ...Array.from({ length: resolved - 1 }, () => `/o/r/resolve/${commit}/w.safetensors`),
    ]);
  });

  test("D24b: an address that is refused afresh each time ends with URL_EXPIRED", async () => {
    server.on("/go", (_request, reply) => reply.redirect(mirror.url(PATH)));
    mirror.on(
      PATH,
      when(isFetch, (_request, reply) => reply.send(403), good),
    );
    expect((await attempt(server.url("/go"))).result).toBe("URL_EXPIRED");
  });
});

describe("answers that are no files", () => {
  test("D26: nothing is ever asked by HEAD", async () => {
    server.on(PATH, (request, reply) =>
      request.method === "GET" ? good(request, reply) : reply.silence(),
    );
    expect((await attempt()).result).toBe("installed");
    expect(new Set(server.requests.map((request) => request.method))).toEqual(new Set(["GET"]));
  });

  for (const [what, body, type] of [
    ["a login page", "<!DOCTYPE html><html>Sign in</html>", "text/html"],
    ["a JSON message", '{"error":"Unauthorized","message":"log in"}', "application/json"],
    [
      "an LFS pointer",
      "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
      "text/plain",
    ],
    [
      "an XML error",
      "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
      "application/xml",
    ],
  ] as const) {
    test(`D27: ${what} with status 200 is never taken for a weight`, async () => {
      server.on(PATH, (_request, reply) => reply.send(200, body, { "content-type": type }));
      expect((await attempt()).result).toBe("FORMAT_INVALID");
    });
  }

  for (const [status, code] of [
    [401, "AUTH_REQUIRED"],
    [403, "AUTH_FORBIDDEN"],
    [404, "NOT_FOUND"],
    [410, "NOT_FOUND"],
    [451, "NOT_FOUND"],
  ] as const) {
    test(`${status} is told as ${code}, within one round trip`, async () => {
      server.on(PATH, (_request, reply) => reply.send(status));
      expect((await attempt()).result).toBe(code);
      expect(server.requests).toHaveLength(1);
    });
  }

  test("a gated repository says which page to visit", async () => {
    server.on("/org/repo/resolve/main/w.safetensors", (_request, reply) =>
      reply.send(403, "", { "x-error-code": "GatedRepo" }),
    );
    const credentials = new Credentials({ hfEndpoint: server.origin });
    const { result, error } = await attempt("hf://org/repo/w.safetensors", {}, { credentials });
    expect(result).toBe("GATED");
    expect(error?.hint).toContain(`${server.origin}/org/repo`);
    expect(error?.hint).toContain("HF_TOKEN");
  });

  test("a private or absent repository is told as not found, though the status is 401", async () => {
    server.on("/org/repo/resolve/main/w.safetensors", (_request, reply) =>
      reply.send(401, "", { "x-error-code": "RepoNotFound" }),
    );
    const credentials = new Credentials({ hfEndpoint: server.origin });
    const { result, error } = await attempt("hf://org/repo/w.safetensors", {}, { credentials });
    expect(result).toBe("NOT_FOUND");
    expect(error?.message).toContain("repo");
    expect(error?.hint).toContain("HF_TOKEN");
  });

  test("D28: a hostile Content-Disposition changes nothing", async () => {
    for (const disposition of [
      'attachment; filename="../../evil"',
      'attachment; filename="/etc/evil"',
      "attachment; filename*=UTF-8''%2e%2e%2fevil",
      `attachment; filename="${"x".repeat(300)}"`,
    ]) {
      server.on(PATH, file(BODY, { headers: { "content-disposition": disposition } }));
      expect((await attempt(undefined, {})).result).toBe("installed");
      expect(existsSync(dir.join("evil"))).toBe(false);
    }
  });

  test("D29: a refused connection is NETWORK, an unknown host too", async () => {
    const { port } = server;
    server[Symbol.dispose]();
    expect((await attempt(`http://127.0.0.1:${port}${PATH}`)).result).toBe("NETWORK");
    expect((await attempt("http://no-such-host.invalid/w.safetensors")).result).toBe("NETWORK");
  });

  test("D60: sizes at the edges of a chunk arrive whole", async () => {
    const chunk = 65_536;
    for (const size of [1, chunk - 1, chunk, chunk + 1, 3 * chunk]) {
      const bytes = Buffer.alloc(size, 7);
      server.on("/b.dat", file(bytes));
      await using installer = quickInstaller(dir.path);
      const destination = dir.join("misc", `${size}.dat`);
      await installer.install([job(destination, server.url("/b.dat"))]);
      expect(sha256File(destination)).toBe(sha256(bytes));
    }
  });

  test("D60b: an empty file is no weight", async () => {
    server.on(PATH, file(Buffer.alloc(0)));
    expect((await attempt()).result).toBe("FORMAT_INVALID");
  });
});

test("no secret is in a log line, a journal, a record or an error", async () => {
  const lines: string[] = [];
  const log = createLogger({ level: "debug", write: (line) => lines.push(line) });
  const token = "hf_verysecrettoken1234";
  const credentials = new Credentials({
    operator: { huggingFace: token },
    hfEndpoint: server.origin,
  });
  server.on("/org/repo/resolve/main/w.safetensors", (_request, reply) =>
    reply.redirect(`${mirror.url(PATH)}?X-Amz-Signature=signaturesecret&token=tokensecret`),
  );
  mirror.on(PATH, async (request, reply) => {
    if (isFetch(request) && (request.range?.start ?? 0) > 300_000) {
      await reply.send(500);
      return;
    }
    await pour(reply, contentOf(BODY), 0, 0);
    await good(request, reply);
  });
  const failed = await attempt("hf://org/repo/w.safetensors", {}, { credentials, log });
  expect(failed.result).toBe("SERVER_ERROR");
  mirror.on(PATH, good);
  expect((await attempt("hf://org/repo/w.safetensors", {}, { credentials, log })).result).toBe(
    "installed",
  );
  const journals = await Array.fromAsync(
    new Bun.Glob("**/{journal,owner,*.json}").scan({ cwd: dir.path, dot: true, absolute: true }),
  );
  const texts = await Promise.all(journals.map((path) => Bun.file(path).text()));
  const everything = [
    ...lines,
    ...texts,
    JSON.stringify(failed.error),
    String(failed.error?.stack),
  ].join("\n");
  for (const secret of [token, "signaturesecret", "tokensecret"]) {
    expect(everything).not.toContain(secret);
  }
});
