/**
 * What a ComfyUI must do for us, whoever provides it: the same suite runs on the embedded engine and on real ones. Each
 * behaviour is asked of the engine itself, and again through a proxy that breaks the conversation while a run is active.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { pbkdf2 } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import sharp from "sharp";
import { samplePicture } from "../../scripts/picture.ts";
import type { Engine, RunProgress } from "../../src/comfy/engine.ts";
import { prefixOutputs } from "../../src/comfy/prefix.ts";
import { RemoteEngine } from "../../src/comfy/remote.ts";
import type { RunOptions } from "../../src/comfy/run.ts";
import { runWorkflow } from "../../src/comfy/run.ts";
import { placeInputs } from "../../src/media/inputs.ts";
import { collectOutputs } from "../../src/media/outputs.ts";
import { InputShelf } from "../../src/media/shelf.ts";
import { AppError } from "../../src/platform/errors.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { createLogger, silentLogger } from "../../src/platform/log.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import type { ProxyHooks } from "./engine-proxy.ts";
import { cutOff, proxyTo } from "./engine-proxy.ts";
import { pictureGraph, slowGraph } from "./graphs.ts";
import { tempDir } from "./temp-dir.ts";

/** Short where the defaults are patient; nothing here decides a test, it only makes it fast. */
const QUICK: Omit<RunOptions, "signal"> = {
  log: silentLogger,
  times: { pollMs: 50, greetTimeoutMs: 1000 },
  eventTimes: { reconnectDelayMs: 10 },
  cancelTimes: { pollMs: 10 },
};

export interface ContractEngine {
  start(): Promise<Engine>;
  /** A graph that takes some seconds, and can be stopped in between. */
  readonly slow: Graph;
  /** Time for one test that starts or restarts the engine. */
  readonly startTimeoutMs: number;
}

export async function failure(run: Promise<unknown>): Promise<AppError> {
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

/** A prefix nobody used before: save nodes are never cached. */
function fresh(graph: Graph): Graph {
  return prefixOutputs(graph, crypto.randomUUID());
}

/** Resolves when a run of `graph` reports progress in the engine, with the promise of its end. */
async function running(
  engine: Engine,
  graph: Graph,
  options: Partial<RunOptions> = {},
): Promise<{ end: Promise<unknown> }> {
  const begun = Promise.withResolvers<void>();
  const end = runWorkflow(engine, graph, {
    ...QUICK,
    ...options,
    onProgress: () => begun.resolve(),
  });
  end.catch(() => undefined);
  await Promise.race([begun.promise, end]);
  return { end };
}

export function comfyContract(label: string, contract: ContractEngine): void {
  describe(label, () => {
    let engine: Engine;
    beforeAll(async () => {
      engine = await contract.start();
    }, contract.startTimeoutMs);
    afterAll(async () => {
      await engine?.[Symbol.asyncDispose]();
    });

    const run = (graph: Graph, options: Partial<RunOptions> = {}) =>
      runWorkflow(engine, graph, { ...QUICK, ...options });

    test("runs a graph and reports its files in node and batch order", async () => {
      const graph = fresh({
        ...pictureGraph({ batch: 2, prefix: "b" }),
        "10": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "z" } },
        "9": { class_type: "PreviewImage", inputs: { images: ["1", 0] } },
      });
      const result = await run(graph);
      expect(result.files.map(({ nodeId, type }) => `${nodeId} ${type}`)).toEqual([
        "3 output",
        "3 output",
        "9 temp",
        "9 temp",
        "10 output",
        "10 output",
      ]);
      expect(result.files[0]?.filename).toBe("b_00001_.png");
      expect(result.files[1]?.filename).toBe("b_00002_.png");
      expect(result.executionMs).toBeGreaterThanOrEqual(0);
    });

    test("puts the files where it says, in the run's own folder", async () => {
      const id = crypto.randomUUID();
      const result = await run(prefixOutputs(pictureGraph({ prefix: "../a/" }), id));
      const [file] = result.files;
      expect(file?.subfolder).toBe(`${id}/a`);
      const { dirs } = engine;
      expect(
        dirs && existsSync(join(dirs.output, file?.subfolder ?? "", file?.filename ?? "")),
      ).toBe(true);
    });

    test("answers from the cache, and computes anew when the cache is reset", async () => {
      const graph = pictureGraph({ color: 4711 });
      await run(fresh(graph));
      const second = await run(fresh(graph));
      expect(second.cachedNodes.toSorted()).toEqual(["1", "2"]);
      const ran = new Set<string>();
      const third = await run(fresh(graph), {
        resetCache: true,
        onProgress: ({ nodeId }) => ran.add(nodeId),
      });
      expect(third.cachedNodes).toEqual([]);
      expect([...ran].toSorted()).toEqual(["1", "2", "3"]);
    });

    test("resets the cache also behind a run that is still going on", async () => {
      const graph = pictureGraph({ color: 4715 });
      await run(fresh(graph));
      const first = await running(engine, fresh(slowGraph(3, 300, 22)));
      const second = await run(fresh(graph), { resetCache: true });
      expect(second.cachedNodes).toEqual([]);
      await first.end;
    });

    test("makes previews anew in every run: those of an earlier one may be gone", async () => {
      const graph: Graph = {
        ...pictureGraph({ color: 4714 }),
        "4": { class_type: "PreviewImage", inputs: { images: ["2", 0] } },
        "5": { class_type: "SolidMask", inputs: { value: 1, width: 8, height: 8 } },
        "6": { class_type: "MaskPreview", inputs: { mask: ["5", 0] } },
      };
      const first = await run(fresh(graph));
      const second = await run(fresh(graph));
      expect(second.cachedNodes.toSorted()).toEqual(["1", "2", "5"]);
      const names = [first, second].flatMap(({ files }) =>
        files.map(({ filename, subfolder }) => join(subfolder, filename)),
      );
      expect(new Set(names).size).toBe(6);
    });

    test("gives the old files of a run that is cached as a whole", async () => {
      const graph = fresh(pictureGraph({ color: 4712 }));
      const first = await run(graph);
      const second = await run(graph);
      expect(second.files).toEqual(first.files);
      expect(second.cachedNodes.toSorted()).toEqual(["1", "2", "3"]);
    });

    test("tells progress by node, with titles, until all are done", async () => {
      const seen: RunProgress[] = [];
      await run(fresh(pictureGraph({ color: 4713 })), { onProgress: (at) => seen.push(at) });
      expect(seen.map(({ nodeTitle }) => nodeTitle)).toEqual(["Blank", "Invert", "Save"]);
      expect(seen.map(({ finished, total }) => `${finished}/${total}`)).toEqual([
        "0/3",
        "1/3",
        "2/3",
      ]);
    });

    test("loads what was placed in its input folder, and sees it again in the cache", async () => {
      using dir = tempDir({ "photo.bin": await samplePicture(24, 16) });
      const http = new HttpClient();
      const graph: Graph = {
        "1": { class_type: "LoadImage", inputs: { image: "input.png" } },
        "2": { class_type: "LoadImageMask", inputs: { image: "input.png", channel: "red" } },
        "3": { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "same" } },
        "4": { class_type: "MaskPreview", inputs: { mask: ["2", 0] } },
      };
      const cached: string[][] = [];
      for (let round = 0; round < 2; round += 1) {
        using placed = await placeInputs(graph, {
          shelf: new InputShelf(engine),
          http,
          log: silentLogger,
          inputFile: dir.join("photo.bin"),
        });
        const result = await run(fresh(placed.graph));
        cached.push(result.cachedNodes.toSorted());
        const [saved] = await collectOutputs(engine, result, {
          returnTempFiles: false,
          folder: dir.join("out"),
          log: silentLogger,
        });
        const pixels = async (path: string) => await sharp(path).removeAlpha().raw().toBuffer();
        const [given, made] = [await pixels(dir.join("photo.bin")), await pixels(saved ?? "")];
        expect(made.equals(given)).toBe(true);
      }
      expect(cached).toEqual([[], ["1", "2"]]);
      await http.close();
    });

    test("keeps integers beyond 2^53 digit for digit", async () => {
      await using proxy = proxyTo(engine.url);
      await using remote = await RemoteEngine.connect(proxy.url, new HttpClient());
      const graph = fresh(pictureGraph());
      await runWorkflow(
        remote,
        { ...graph, "7": { class_type: "PrimitiveInt", inputs: { value: 9007199254740993n } } },
        QUICK,
      );
      expect(proxy.prompts[0]).toContain('"value":9007199254740993}');
    });

    describe("refusals", () => {
      test("names a class that is missing and the node that needs it", async () => {
        const graph: Graph = {
          ...pictureGraph(),
          "2": {
            class_type: "NoSuchNode",
            inputs: { image: ["1", 0] },
            _meta: { title: "Magic" },
          },
        };
        const error = await failure(run(graph));
        expect(error.code).toBe("PROMPT_REJECTED");
        expect(error.message).toContain("NoSuchNode");
        expect(error.details["missingClass"]).toMatchObject({ classType: "NoSuchNode" });
      });

      test("names node, input, value and what was allowed", async () => {
        const graph: Graph = {
          ...pictureGraph(),
          "2": {
            class_type: "ImageScale",
            inputs: {
              image: ["1", 0],
              upscale_method: "bogus",
              width: 8,
              height: 8,
              crop: "disabled",
            },
            _meta: { title: "Shrink" },
          },
        };
        const error = await failure(run(graph));
        expect(error.code).toBe("PROMPT_REJECTED");
        expect(error.message).toContain('node 2 "Shrink" (ImageScale): upscale_method is "bogus"');
        expect(error.message).toContain("nearest-exact");
      });

      test("takes an answer that accepts only a part as a failure, and runs nothing of it", async () => {
        const graph: Graph = {
          ...fresh(pictureGraph({ color: 88 })),
          "8": {
            class_type: "ImageScale",
            inputs: {
              image: ["1", 0],
              upscale_method: "bogus",
              width: 4,
              height: 4,
              crop: "disabled",
            },
          },
          "9": { class_type: "SaveImage", inputs: { images: ["8", 0], filename_prefix: "x" } },
        };
        const error = await failure(run(graph));
        expect(error.code).toBe("PROMPT_REJECTED");
        expect(error.details["partial"]).toBe(true);
        const queue = await engine.client.queue();
        expect([...queue.queue_running, ...queue.queue_pending]).toEqual([]);
      });

      test("names an input that is missing", async () => {
        const graph: Graph = {
          ...pictureGraph(),
          "1": { class_type: "EmptyImage", inputs: { width: 8, height: 8, batch_size: 1 } },
          "2": { class_type: "ImageInvert", inputs: {} },
        };
        const error = await failure(run(graph));
        expect(error.message).toContain("node 2");
        expect(error.message).toContain("image");
      });
    });

    test("tells which node failed while running, with exception and message", async () => {
      const graph: Graph = {
        ...fresh(pictureGraph()),
        "1": {
          class_type: "EmptyImage",
          inputs: { width: 10, height: 10, batch_size: 1, color: 0 },
        },
        "2": {
          class_type: "ImageScaleBy",
          inputs: { image: ["1", 0], upscale_method: "area", scale_by: 0.01 },
        },
      };
      const error = await failure(run(graph));
      expect(error.code).toBe("NODE_FAILED");
      expect(error.message).toStartWith('node 3 "Save" (SaveImage) failed: ');
      expect(error.details).toMatchObject({ nodeId: "3", classType: "SaveImage", title: "Save" });
      expect(JSON.stringify(error)).not.toContain("Traceback");
    });

    describe("cancelling", () => {
      const next = async (): Promise<void> => {
        const result = await run(fresh(pictureGraph({ color: Math.floor(Math.random() * 1e6) })));
        expect(result.files).toHaveLength(1);
      };

      test("stops a run and is confirmed before it is told; the next one is untouched", async () => {
        const cancel = new AbortController();
        const { end } = await running(engine, fresh(contract.slow), { signal: cancel.signal });
        cancel.abort();
        expect((await failure(end)).code).toBe("CANCELED");
        const queue = await engine.client.queue();
        expect([...queue.queue_running, ...queue.queue_pending]).toEqual([]);
        await next();
      });

      test("takes a waiting run out of the queue and lets the running one finish", async () => {
        const first = await running(engine, fresh(slowGraph(3, 256, 5)));
        const cancel = new AbortController();
        const second = runWorkflow(engine, fresh(pictureGraph({ color: 6 })), {
          ...QUICK,
          signal: cancel.signal,
        });
        second.catch(() => undefined);
        cancel.abort();
        expect((await failure(second)).code).toBe("CANCELED");
        await first.end;
      });

      test("does nothing when it comes before the run, or after its end", async () => {
        expect((await failure(run(pictureGraph(), { signal: AbortSignal.abort() }))).code).toBe(
          "CANCELED",
        );
        const cancel = new AbortController();
        await run(fresh(pictureGraph()), { signal: cancel.signal });
        cancel.abort();
        await next();
      });

      test("leaves nothing behind, at whatever moment it comes", async () => {
        // A moment is a request or a frame: each of them is, in turn, when the cancel comes.
        for (let moment = 1; ; moment += 1) {
          let count = 0;
          const cancel = new AbortController();
          const tick = (): void => {
            count += 1;
            if (count === moment) {
              cancel.abort();
            }
          };
          const hooks: ProxyHooks = {
            frame: (frame, send) => {
              tick();
              send(frame);
            },
            request: () => {
              tick();
              return undefined;
            },
          };
          await using proxy = proxyTo(engine.url, hooks);
          await using remote = await RemoteEngine.connect(proxy.url, new HttpClient());
          if (cancel.signal.aborted) {
            continue;
          }
          const graph = fresh(pictureGraph({ color: moment }));
          const end = runWorkflow(remote, graph, { ...QUICK, signal: cancel.signal });
          const outcome = await end.catch((error: unknown) => error);
          const queue = await engine.client.queue();
          expect([...queue.queue_running, ...queue.queue_pending]).toEqual([]);
          if (!cancel.signal.aborted) {
            expect(outcome).toMatchObject({ files: [{ nodeId: "3" }] });
            break;
          }
          if (outcome instanceof Error) {
            expect(outcome).toMatchObject({ code: "CANCELED" });
          }
        }
        await next();
      }, 30_000);

      test("of another kind, an interrupt that was not for it, does not end a run", async () => {
        const { end } = await running(engine, fresh(slowGraph(4, 400, 21)));
        // Without an id it hits whatever runs: what an unlucky race would look like.
        await fetch(`${engine.url}/interrupt`, { method: "POST", body: "{}" });
        expect(await end).toMatchObject({ files: [{ type: "output" }] });
      }, 30_000);

      test("ends one of several runs alone", async () => {
        const cancel = new AbortController();
        const runs = [1, 2, 3, 4].map((color) =>
          runWorkflow(engine, fresh(slowGraph(2, 128, color)), {
            ...QUICK,
            ...(color === 3 ? { signal: cancel.signal } : {}),
          }),
        );
        cancel.abort();
        const ends = await Promise.allSettled(runs);
        expect(ends.map(({ status }) => status)).toEqual([
          "fulfilled",
          "fulfilled",
          "rejected",
          "fulfilled",
        ]);
      });
    });

    describe("a broken conversation", () => {
      const faults: readonly (readonly [string, () => ProxyHooks])[] = [
        ["no event arrives", () => ({ frame: () => undefined })],
        ["sockets are refused", () => ({ refuseSockets: true })],
        [
          "every event arrives twice",
          () => ({
            frame: (frame, send) => {
              send(frame);
              send(frame);
            },
          }),
        ],
        [
          "events arrive in pairs that are swapped",
          () => {
            let held: string | ArrayBuffer | undefined;
            return {
              frame: (frame, send) => {
                if (held === undefined) {
                  held = frame;
                } else {
                  send(frame);
                  send(held);
                  held = undefined;
                }
              },
            };
          },
        ],
        [
          "every second event is lost",
          () => {
            let count = 0;
            return {
              frame: (frame, send) => {
                count += 1;
                if (count % 2 === 0) {
                  send(frame);
                }
              },
            };
          },
        ],
        [
          "events arrive late",
          () => ({
            frame: (frame, send) => {
              setTimeout(send, 100, frame);
            },
          }),
        ],
        [
          "strange messages come in between",
          () => ({
            frame: (frame, send) => {
              send("not json");
              send('{"type":"crystools.monitor","data":{"cpu":NaN}}');
              send('{"type":"executing","data":{"node":null,"prompt_id":"another"}}');
              send('{"type":"execution_error","data":{"prompt_id":"another","node_id":"1"}}');
              send(new Uint8Array([0, 0, 0, 9, 1]).buffer);
              send(frame);
            },
          }),
        ],
      ];

      test.each(faults)("still brings the picture when %s", async (_what, hooks) => {
        await using proxy = proxyTo(engine.url, hooks());
        await using remote = await RemoteEngine.connect(proxy.url, new HttpClient());
        const result = await runWorkflow(remote, fresh(slowGraph(2, 64)), QUICK);
        using dir = tempDir();
        const target = dir.join("out.png");
        const [file] = result.files;
        expect(file).toBeDefined();
        if (file !== undefined) {
          await remote.fetchFile(file, target);
        }
        expect(Buffer.from(await Bun.file(target).bytes()).toString("latin1", 1, 4)).toBe("PNG");
      });

      test("fetches no more of a file than it may, and leaves nothing of it", async () => {
        await using remote = await RemoteEngine.connect(engine.url, new HttpClient());
        const result = await runWorkflow(remote, fresh(slowGraph(1, 64, 5)), QUICK);
        using dir = tempDir();
        const target = dir.join("out.png");
        const [file] = result.files;
        if (file === undefined) {
          throw new Error("the run reported no file");
        }
        // With every thread busy, a file that is opened in one of them appears late.
        const busy = Array.from({ length: 8 }, () =>
          promisify(pbkdf2)("", "", 20_000, 32, "sha256"),
        );
        const fetching = remote.fetchFile(file, target, { maxBytes: 10 });
        await expect(fetching).rejects.toMatchObject({ code: "OUTPUT_TOO_LARGE" });
        await Promise.all(busy);
        await Bun.sleep(20);
        expect(existsSync(target)).toBe(false);
      });

      test("still brings the picture when the socket is cut again and again", async () => {
        await using proxy = proxyTo(engine.url);
        proxy.hooks.frame = (frame, send) => {
          send(frame);
          proxy.cutSockets();
        };
        await using remote = await RemoteEngine.connect(proxy.url, new HttpClient());
        const result = await runWorkflow(remote, fresh(slowGraph(2, 64, 9)), QUICK);
        expect(result.files).toHaveLength(1);
        expect(proxy.requests.filter((path) => path === "WS /ws").length).toBeGreaterThan(1);
      });

      test("gives a result, and says so, when the cache won't be reset", async () => {
        await using proxy = proxyTo(engine.url, {
          request: (path) => (path === "/free" ? new Response(null) : undefined),
        });
        await using remote = await RemoteEngine.connect(proxy.url, new HttpClient());
        const graph = pictureGraph({ color: 32 });
        await run(fresh(graph));
        const lines: string[] = [];
        const log = createLogger({
          write: () => undefined,
          observe: ({ message }) => lines.push(message),
        });
        const options = { ...QUICK, log, resetCache: true };
        const result = await runWorkflow(remote, fresh(graph), options);
        expect(result.cachedNodes).toContain("1");
        expect(result.files).toHaveLength(1);
        expect(lines.filter((line) => line.startsWith("Running the workflow again"))).toHaveLength(
          2,
        );
        expect(lines.at(-1)).toContain("although it was reset: ");
      });

      test("finds its run when the answer to the request is lost", async () => {
        let lost = 0;
        await using proxy = proxyTo(engine.url, {
          request: async (path, request) => {
            if (path !== "/prompt" || lost > 0) {
              return undefined;
            }
            lost += 1;
            await fetch(`${engine.url}/prompt`, { method: "POST", body: await request.text() });
            return cutOff();
          },
        });
        await using remote = await RemoteEngine.connect(proxy.url, new HttpClient());
        const result = await runWorkflow(remote, fresh(pictureGraph({ color: 31 })), QUICK);
        expect(result.files).toHaveLength(1);
        expect(proxy.requests.filter((path) => path === "POST /prompt")).toHaveLength(1);
      });

      test("says so when somebody deletes the run from the queue", async () => {
        const cancel = new AbortController();
        const first = await running(engine, fresh(contract.slow), { signal: cancel.signal });
        await using proxy = proxyTo(engine.url);
        await using remote = await RemoteEngine.connect(proxy.url, new HttpClient());
        const second = runWorkflow(remote, fresh(pictureGraph({ color: 78 })), QUICK);
        second.catch(() => undefined);
        for (;;) {
          const { queue_pending } = await engine.client.queue();
          if (queue_pending.length > 0) {
            await engine.client.deleteQueued(queue_pending);
            break;
          }
          await Bun.sleep(1);
        }
        const error = await failure(second);
        expect(error.code).toBe("ENGINE_PROTOCOL");
        expect(error.message).toContain("vanished");
        cancel.abort();
        await failure(first.end);
      });
    });

    describe("deadlines", () => {
      test("end a run that takes too long, and free the engine", async () => {
        const error = await failure(run(fresh(contract.slow), { deadlines: { totalMs: 200 } }));
        expect(error.code).toBe("ENGINE_TIMEOUT");
        expect(await run(fresh(pictureGraph()))).toMatchObject({ files: [{ nodeId: "3" }] });
      }, 30_000);
    });

    describe("the process", () => {
      const pidOf = (): number => {
        if (!("pid" in engine) || typeof engine.pid !== "number") {
          throw new Error("this engine has no process");
        }
        return engine.pid;
      };

      test(
        "ends the run at once with the reason when it is killed, and comes back",
        async () => {
          const { end } = await running(engine, fresh(contract.slow));
          process.kill(pidOf(), "SIGKILL");
          const error = await failure(end);
          expect(error.code).toBe("ENGINE_DIED");
          expect(error.message).toContain("SIGKILL");
          const result = await run(fresh(pictureGraph({ color: 12 })));
          expect(result.files).toHaveLength(1);
          expect(engine.unhealthy).toBeUndefined();
        },
        contract.startTimeoutMs,
      );

      test(
        "is replaced when it is frozen and a stall deadline passes",
        async () => {
          const frozen = pidOf();
          const { end } = await running(engine, fresh(contract.slow), {
            deadlines: { stallMs: 300 },
            times: { pollMs: 50, lookTimeoutMs: 200 },
            cancelTimes: { pollMs: 10, confirmTimeoutMs: 300 },
          });
          process.kill(frozen, "SIGSTOP");
          const error = await failure(end);
          expect(error.code).toBe("ENGINE_TIMEOUT");
          const result = await run(fresh(pictureGraph({ color: 13 })));
          expect(result.files).toHaveLength(1);
          expect(pidOf()).not.toBe(frozen);
        },
        contract.startTimeoutMs,
      );

      test(
        "is replaced when it is frozen and the run is cancelled",
        async () => {
          const frozen = pidOf();
          const cancel = new AbortController();
          const { end } = await running(engine, fresh(contract.slow), {
            signal: cancel.signal,
            cancelTimes: { pollMs: 10, confirmTimeoutMs: 300 },
          });
          process.kill(frozen, "SIGSTOP");
          cancel.abort();
          expect((await failure(end)).code).toBe("CANCELED");
          const result = await run(fresh(pictureGraph({ color: 14 })));
          expect(result.files).toHaveLength(1);
          expect(pidOf()).not.toBe(frozen);
        },
        contract.startTimeoutMs,
      );

      test.each(["a cancel", "a deadline"])(
        "is replaced when it is frozen before it took the run, after %s",
        async (what) => {
          const frozen = pidOf();
          process.kill(frozen, "SIGSTOP");
          const cancel = new AbortController();
          const log = createLogger({
            write: () => undefined,
            observe: ({ message }) => {
              if (what === "a cancel" && message.startsWith("Queueing")) {
                cancel.abort();
              }
            },
          });
          const end = run(fresh(pictureGraph()), {
            log,
            signal: cancel.signal,
            deadlines: what === "a deadline" ? { totalMs: 300 } : {},
            times: { ...QUICK.times, greetTimeoutMs: 50 },
            cancelTimes: { pollMs: 10, confirmTimeoutMs: 200 },
          });
          expect((await failure(end)).code).toBe(
            what === "a cancel" ? "CANCELED" : "ENGINE_TIMEOUT",
          );
          const result = await run(fresh(pictureGraph({ color: 15 })));
          expect(result.files).toHaveLength(1);
          expect(pidOf()).not.toBe(frozen);
        },
        contract.startTimeoutMs,
      );
    });
  });
}
