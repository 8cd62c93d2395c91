/**
 * A process that uses a store, driven line by line over its standard input, so that tests can stop, kill and question
 * it. Arguments: a JSON document of settings.
 */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { ModelFolders } from "../../src/models/folders.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { bringWeights, removeWeight } from "../../src/weights/bring.ts";
import { DigestBook } from "../../src/weights/digests.ts";
import { WeightStore } from "../../src/weights/store.ts";
import { LEASE_TIMES, quickInstaller } from "./weights.ts";

interface Settings {
  readonly store: string;
  readonly models: string;
  readonly maxBytes?: number;
  readonly mode?: "link" | "copy" | "auto";
  /** How far this machine's clock is off. */
  readonly skewMs?: number;
  readonly lease?: { readonly renewMs: number; readonly silentMs: number };
  readonly busyPatienceMs?: number;
}

const settings: Settings = JSON.parse(process.argv[2] ?? "{}");
if (settings.skewMs !== undefined) {
  const { now } = Date;
  const offset = settings.skewMs;
  Date.now = () => now() + offset;
}

const digests = new DigestBook([settings.models]);
const store = new WeightStore({
  root: settings.store,
  modelsRoots: [settings.models],
  digests,
  log: silentLogger,
  mode: settings.mode ?? "link",
  maxBytes: settings.maxBytes,
  minFreeBytes: 0,
  leaseTimes: settings.lease ?? LEASE_TIMES,
});
digests.vouch = (path, sha) => store.vouches(path, sha);
const installer = quickInstaller(settings.models, {
  store: () => store,
  tuning: { busyPatienceMs: settings.busyPatienceMs ?? 30_000 },
});
const around = {
  installer,
  folders: ModelFolders.fromDirs({ modelsDirs: [settings.models] }),
  modelsRoots: [settings.models],
  digests,
  lock: undefined,
  store,
};
const pins = new Map<string, Disposable>();

function say(answer: unknown): void {
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

say({ ready: process.pid });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  try {
    if (order.do === "bring") {
      const { name, url, sha256 } = order;
      const job = {
        name,
        category: "loras",
        destination: `${settings.models}/loras/${name}`,
        sources: [{ url, trust: "operator" as const }],
        ...(sha256 === undefined ? {} : { sha256 }),
      };
      const began = performance.now();
      const [brought] = await bringWeights([job], around, {
        onProgress: (progress) => order.progress && say({ progress }),
      });
      say({ brought, ms: performance.now() - began });
    } else if (order.do === "pin") {
      pins.get(order.sha256)?.[Symbol.dispose]();
      pins.set(order.sha256, store.pin([order.sha256], "test"));
      // One whose eviction was announced before is given back, but may be away for a moment.
      const isGoing = readdirSync(join(settings.store, "evicting")).some((name) =>
        name.startsWith(order.sha256),
      );
      say({ pinned: order.sha256, there: !isGoing && store.has(order.sha256) });
    } else if (order.do === "unpin") {
      pins.get(order.sha256)?.[Symbol.dispose]();
      say({ unpinned: order.sha256 });
    } else if (order.do === "drop") {
      const path = `${settings.models}/loras/${order.name}`;
      say({ freed: existsSync(path) && removeWeight(path, around) });
    } else if (order.do === "gc") {
      say({ evicted: store.gc({ maxBytes: order.maxBytes }) });
    } else if (order.do === "end") {
      store[Symbol.dispose]();
      await installer.close();
      say({ ended: true });
      process.exit(0);
    }
  } catch (error) {
    const own = error as Error & { code?: string; details?: unknown };
    say({ failed: own.code ?? own.name, message: own.message, details: own.details });
  }
}
