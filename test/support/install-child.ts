/** A process that installs one weight, to be killed at any moment. Arguments: models folder, address, sha256, options. */
import { Installer } from "../../src/weights/install.ts";
import { QUICK } from "./weights.ts";

const [modelsRoot = "", url = "", sha256 = "", destination = ""] = process.argv.slice(2);
const installer = new Installer({ modelsRoots: [modelsRoot], minFreeBytes: 0, tuning: QUICK });
process.stdout.write("started\n");
const archive = url.endsWith(".tar");
const [installed] = await installer.install([
  {
    name: archive ? "w.safetensors" : (destination.split("/").at(-1) ?? ""),
    category: "checkpoints",
    destination,
    sources: [{ url, trust: "operator" }],
    sha256,
    ...(archive ? { unpack: "tar" as const } : {}),
  },
]);
process.stdout.write(`installed ${installed?.fetched}\n`);
await installer.close();
