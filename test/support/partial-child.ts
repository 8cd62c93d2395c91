/**
 * A process that opens one download's folder over and over, beside others that do the same. Whatever it holds must stay
 * until it lets go. Arguments: the `.cog-partial` folder, and for how many milliseconds.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { openPartial } from "../../src/weights/journal.ts";

const [root = "", durationMs = "0"] = process.argv.slice(2);
const identity = {
  sizeBytes: 10,
  etag: '"1"',
  lastModified: null,
  sha256: null,
  url: "https://example.org/w",
};
const until = performance.now() + Number(durationMs);
let held = 0;
const vanished: string[] = [];

while (performance.now() < until) {
  const folder = await openPartial({ root, name: "w", destination: "/w", identity });
  if ("busy" in folder) {
    await Bun.sleep(Math.random());
    continue;
  }
  held += 1;
  await Bun.sleep(Math.random());
  for (const name of ["owner", "data", "journal"]) {
    if (!existsSync(join(folder.path, name))) {
      vanished.push(name);
    }
  }
  if (Math.random() < 0.7) {
    folder.remove();
  } else {
    folder[Symbol.dispose]();
  }
}
process.stdout.write(JSON.stringify({ held, vanished }));
