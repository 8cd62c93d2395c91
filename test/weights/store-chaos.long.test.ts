/**
 * Twenty real processes at one store for a minute: random pulls, pins and evictions, kills and sleeps in between. What
 * must hold at every moment is looked at all the while.
 */
import { expect, test } from "bun:test";
import { existsSync, lstatSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { listPartials } from "../../src/weights/journal.ts";
import { StoreProcess } from "../support/store-process.ts";
import { tempDir } from "../support/temp-dir.ts";
import { file, WeightServer } from "../support/weight-server.ts";
import { safetensors, sha256 } from "../support/weights.ts";

const PROCESSES = 20;
const DURATION_MS = Number(process.env["CHAOS_SECONDS"] ?? 60) * 1000;
const SIZES = [300_000, 500_000, 700_000, 900_000];
const WEIGHTS = Array.from({ length: 12 }, (_, index) => {
  const body = safetensors(SIZES[index % SIZES.length] ?? 300_000);
  return { name: `${index}.safetensors`, body, sha256: sha256(body) };
});
const MAX_BYTES = 5_000_000;
/** So long that no living process is taken for dead because the machine is busy, and shorter than many a sleep. */
const LEASE = { renewMs: 200, silentMs: 3000 };
const LONGEST_SLEEP_MS = 6000;
/** Another file system, where there is one: symbolic links instead of hard ones. */
const OTHER_DISK = existsSync("/dev/shm") ? "/dev/shm" : undefined;

interface Actor {
  readonly models: string;
  process: StoreProcess;
  /** Confirmed pins of an unbroken life. */
  pins: Set<string>;
  stopped: boolean;
}

function pick<T>(list: readonly T[]): T {
  const one = list[Math.floor(Math.random() * list.length)];
  if (one === undefined) {
    throw new Error("nothing to pick from");
  }
  return one;
}

test(
  "no wrong byte is ever visible, the budget is kept, pins are kept, no link leads nowhere",
  async () => {
    using server = await WeightServer.start();
    for (const { name, body } of WEIGHTS) {
      server.on(`/${name}`, file(body, { bytesPerSecond: 3_000_000 }));
    }
    using dir = tempDir();
    const shm = OTHER_DISK === undefined ? undefined : join(OTHER_DISK, `cog-chaos-${process.pid}`);
    const store = dir.join("store");
    const problems: string[] = [];
    const counts = { brought: 0, fetched: 0, full: 0, evicted: 0, killed: 0, slept: 0, checks: 0 };
    // Every one that was ever started: an actor whose process was replaced twice at once would lose one otherwise.
    const started: StoreProcess[] = [];
    const start = async (models: string): Promise<StoreProcess> => {
      const child = new StoreProcess({
        store,
        models,
        maxBytes: MAX_BYTES,
        busyPatienceMs: 1500,
        lease: LEASE,
      });
      started.push(child);
      await child.next();
      return child;
    };
    const actors: Actor[] = await Promise.all(
      Array.from({ length: PROCESSES }, async (_, index) => {
        const models =
          shm !== undefined && index % 2 === 0 ? join(shm, `${index}`) : dir.join(`m${index}`);
        return { models, process: await start(models), pins: new Set<string>(), stopped: false };
      }),
    );
    const until = performance.now() + DURATION_MS;

    const act = async (actor: Actor): Promise<void> => {
      const weight = pick(WEIGHTS);
      const dice = Math.random();
      if (dice < 0.6) {
        const known = Math.random() < 0.5;
        const answer = await actor.process.ask({
          do: "bring",
          name: weight.name,
          url: server.url(`/${weight.name}`),
          ...(known ? { sha256: weight.sha256 } : {}),
        });
        if (answer["failed"] === "NO_SPACE") {
          counts.full += 1;
        } else if (answer["failed"] !== undefined) {
          problems.push(
            `bring ${weight.name}: ${String(answer["failed"])} ${String(answer["message"])}`,
          );
        } else if (answer["brought"] !== undefined) {
          counts.brought += 1;
          counts.fetched += JSON.stringify(answer).includes('"fetched":true') ? 1 : 0;
        }
      } else if (dice < 0.7) {
        const answer = await actor.process.ask({ do: "drop", name: weight.name });
        counts.evicted += answer["freed"] === true ? 1 : 0;
        if (answer["failed"] !== undefined) {
          problems.push(`drop: ${String(answer["failed"])} ${String(answer["message"])}`);
        }
      } else if (dice < 0.73) {
        const { process: asked } = actor;
        const answer = await asked.ask({ do: "pin", sha256: weight.sha256 });
        // A pin ends with its process, and the answer may be older than the kill.
        if (answer["there"] === true && actor.process === asked && asked.isRunning) {
          actor.pins.add(weight.sha256);
        }
      } else if (dice < 0.9) {
        const pinned = actor.pins.size === 0 ? weight.sha256 : pick([...actor.pins]);
        actor.pins.delete(pinned);
        await actor.process.ask({ do: "unpin", sha256: pinned });
      } else if (dice < 0.96) {
        const answer = await actor.process.ask({ do: "gc", maxBytes: MAX_BYTES / 2 });
        const evicted = answer["evicted"];
        counts.evicted += Array.isArray(evicted) ? evicted.length : 0;
        if (answer["failed"] !== undefined) {
          problems.push(`gc: ${String(answer["message"])}`);
        }
      } else if (dice < 0.98) {
        counts.killed += 1;
        actor.pins.clear();
        await actor.process.kill();
        actor.process = await start(actor.models);
      } else {
        counts.slept += 1;
        actor.pins.clear();
        actor.stopped = true;
        actor.process.signal("SIGSTOP");
        await Bun.sleep(Math.random() * LONGEST_SLEEP_MS);
        actor.process.signal("SIGCONT");
        // Its lease may have run out: what it has is checked again from its next answer on.
        await actor.process.ask({ do: "unpin", sha256: weight.sha256 });
        actor.stopped = false;
      }
    };
    /** Kills in mid-download, from outside of the actor's own order of things. */
    const assassin = async (): Promise<void> => {
      while (performance.now() < until) {
        await Bun.sleep(400);
        const victim = pick(actors);
        if (!victim.stopped && Math.random() < 0.5) {
          victim.pins.clear();
          victim.process.signal("SIGKILL");
          counts.killed += 1;
        }
      }
    };
    const live = async (actor: Actor): Promise<void> => {
      while (performance.now() < until) {
        const { process: mine } = actor;
        const isAlive = await Promise.race([
          act(actor).then(() => true),
          mine.exited.then(() => false),
        ]).catch(() => false);
        if (!isAlive && actor.process === mine) {
          actor.pins.clear();
          actor.process = await start(actor.models);
        }
      }
    };
    const look = async (): Promise<void> => {
      while (performance.now() < until) {
        counts.checks += 1;
        problems.push(...lookAtBlobs(store), ...lookAtBudget(store));
        for (const actor of actors) {
          problems.push(...lookAtLinks(actor, store), ...lookAtPins(actor, store));
        }
        await Bun.sleep(5);
      }
    };
    try {
      await Promise.all([...actors.map(live), assassin(), look()]);
      problems.push(...lookAtBlobs(store, true));
    } finally {
      await Promise.all(started.map((child) => child.kill()));
      if (shm !== undefined) {
        rmSync(shm, { recursive: true, force: true });
      }
    }
    process.stderr.write(`${JSON.stringify(counts)}\n`);
    expect([...new Set(problems)].slice(0, 20)).toEqual([]);
    expect(counts.brought).toBeGreaterThan(PROCESSES);
    expect(counts.killed).toBeGreaterThan(0);
  },
  DURATION_MS + 60_000,
);

function contentOf(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}

function blobsIn(store: string): string[] {
  return readdirSync(join(store, "blobs/sha256")).flatMap((shard) =>
    readdirSync(join(store, "blobs/sha256", shard)).map((name) =>
      join(store, "blobs/sha256", shard, name),
    ),
  );
}

function lookAtBlobs(store: string, all = false): string[] {
  const blobs = blobsIn(store);
  return (all || blobs.length === 0 ? blobs : [pick(blobs)]).flatMap((path) => {
    const content = contentOf(path);
    return content === undefined || sha256(content) === path.split("/").at(-1)
      ? []
      : [`wrong bytes in ${path}`];
  });
}

function lookAtBudget(store: string): string[] {
  const blobs = blobsIn(store).reduce(
    (sum, path) => sum + (statSync(path, { throwIfNoEntry: false })?.size ?? 0),
    0,
  );
  // Blobs first, then downloads: one that is published between the two looks counts once.
  const partials = listPartials([join(store, ".cog-partial")]).reduce(
    (sum, { allocatedBytes }) => sum + allocatedBytes,
    0,
  );
  // A partial file takes whole disk blocks.
  const slack = 20 * 8192;
  return blobs + partials > MAX_BYTES + slack ? [`over budget: ${blobs} + ${partials}`] : [];
}

function lookAtLinks({ models, stopped }: Actor, store: string): string[] {
  const folder = join(models, "loras");
  const names = existsSync(folder) ? readdirSync(folder).filter((name) => /^\d/.test(name)) : [];
  return names.flatMap((name) => {
    const path = join(folder, name);
    const wanted = WEIGHTS.find((weight) => weight.name === name);
    const content = contentOf(path);
    if (content !== undefined) {
      return wanted !== undefined && sha256(content) !== wanted.sha256
        ? [`wrong bytes at ${path}`]
        : [];
    }
    const entry = lstatSync(path, { throwIfNoEntry: false });
    // Gone between the two looks is fine, and so is a sleeper's: its lease ran out.
    const isNowhere = entry?.isSymbolicLink() === true && contentOf(path) === undefined;
    return isNowhere &&
      !stopped &&
      existsSync(store) &&
      lstatSync(path, { throwIfNoEntry: false }) !== undefined
      ? [`${path} leads nowhere`]
      : [];
  });
}

function lookAtPins({ pins, stopped }: Actor, store: string): string[] {
  return stopped
    ? []
    : [...pins].flatMap((sha) =>
        existsSync(join(store, "blobs/sha256", sha.slice(0, 2), sha))
          ? []
          : [`pinned ${sha} is gone`],
      );
}
