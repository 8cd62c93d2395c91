/**
 * A process that has run out of file descriptors installs one weight, then again with enough of them. Run it with a low
 * `ulimit -n`. Arguments: models folder, address, sha256, destination, how many descriptors are left.
 */
import { closeSync, existsSync, openSync } from "node:fs";
import { AppError } from "../../src/platform/errors.ts";
import { Installer } from "../../src/weights/install.ts";
import { QUICK } from "./weights.ts";

const [modelsRoot = "", url = "", sha256 = "", destination = "", left = "0"] =
  process.argv.slice(2);
const installer = new Installer({ modelsRoots: [modelsRoot], minFreeBytes: 0, tuning: QUICK });

async function attempt(): Promise<string> {
  try {
    const source = { url, trust: "operator" as const };
    const job = { name: "w.safetensors", category: "checkpoints", destination, sha256 };
    await installer.install([{ ...job, sources: [source] }]);
    return "installed";
  } catch (error) {
    return error instanceof AppError ? `${error.code}: ${error.message}` : `untyped: ${error}`;
  }
}

const taken: number[] = [];
try {
  for (;;) {
    taken.push(openSync("/dev/null", "r"));
  }
} catch {
  for (const fd of taken.splice(0, Number(left))) {
    closeSync(fd);
  }
}
const first = await attempt();
const visible = existsSync(destination);
for (const fd of taken.splice(0)) {
  closeSync(fd);
}
process.stdout.write(JSON.stringify({ first, visible, second: await attempt() }));
await installer.close();
