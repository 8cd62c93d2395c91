/** Sound, 3D and latents through a real ComfyUI: what our media room places, its loaders take; what it saves, we collect. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { prefixOutputs } from "../../src/comfy/prefix.ts";
import { runWorkflow } from "../../src/comfy/run.ts";
import { startEngine } from "../../src/comfy/start.ts";
import { placeInputs } from "../../src/media/inputs.ts";
import { collectOutputs } from "../../src/media/outputs.ts";
import { InputShelf } from "../../src/media/shelf.ts";
import { sniffFile } from "../../src/media/sniff.ts";
import { parseEnv } from "../../src/platform/env.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { silentLogger } from "../../src/platform/log.ts";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { describeReal, REAL_START_TIMEOUT_MS } from "../support/real-comfy.ts";
import { tempDir } from "../support/temp-dir.ts";

/** A second of a tone, 8 kHz mono. */
function tone(): Buffer {
  const samples = 8000;
  const wav = Buffer.alloc(44 + samples * 2);
  wav.write("RIFF", 0);
  wav.writeUInt32LE(wav.length - 8, 4);
  wav.write("WAVEfmt ", 8);
  wav.writeUInt32LE(16, 16);
  wav.writeUInt16LE(1, 20);
  wav.writeUInt16LE(1, 22);
  wav.writeUInt32LE(8000, 24);
  wav.writeUInt32LE(16_000, 28);
  wav.writeUInt16LE(2, 32);
  wav.writeUInt16LE(16, 34);
  wav.write("data", 36);
  wav.writeUInt32LE(samples * 2, 40);
  for (let at = 0; at < samples; at += 1) {
    wav.writeInt16LE(Math.round(Math.sin(at / 3) * 8000), 44 + at * 2);
  }
  return wav;
}

describeReal("media in a real ComfyUI", ({ env }) => {
  describe("media in a real ComfyUI", () => {
    const dir = tempDir({ "tone.bin": tone() });
    const http = new HttpClient();
    let engine: Awaited<ReturnType<typeof startEngine>>;
    let definitions: NodeDefinitions;
    beforeAll(async () => {
      engine = await startEngine({
        config: parseEnv({
          ...env,
          COMFYUI_MODELS_DIR: dir.join("models"),
          WORK_DIR: dir.join("work"),
        }),
        log: silentLogger,
      });
      definitions = NodeDefinitions.fromObjectInfo(await engine.client.objectInfo());
    }, REAL_START_TIMEOUT_MS);
    afterAll(async () => {
      await engine?.[Symbol.asyncDispose]();
      await http.close();
      dir[Symbol.dispose]();
    });

    async function run(graph: Graph, inputFile?: string): Promise<string[]> {
      using placed = await placeInputs(graph, {
        shelf: new InputShelf(engine),
        http,
        log: silentLogger,
        definitions,
        inputFile,
      });
      const prefixed = prefixOutputs(placed.graph, crypto.randomUUID());
      const result = await runWorkflow(engine, prefixed, { log: silentLogger });
      return await collectOutputs(engine, result, {
        returnTempFiles: true,
        folder: dir.join("out"),
        log: silentLogger,
      });
    }

    test("sound is loaded, saved, and previewed anew each time", async () => {
      const graph: Graph = {
        "1": { class_type: "LoadAudio", inputs: { audio: "input.wav" } },
        "2": { class_type: "SaveAudio", inputs: { audio: ["1", 0], filename_prefix: "tone" } },
        "3": { class_type: "PreviewAudio", inputs: { audio: ["1", 0] } },
      };
      const first = await run(graph, dir.join("tone.bin"));
      const second = await run(graph, dir.join("tone.bin"));
      expect(first.map((path) => sniffFile(path).kind)).toEqual(["audio", "audio"]);
      expect(new Set([...first, ...second]).size).toBe(4);
    });

    test("moving pictures are saved under any key, and latents come back in", async () => {
      const [webp, latent] = await run({
        "1": {
          class_type: "EmptyImage",
          inputs: { width: 32, height: 32, batch_size: 3, color: 200 },
        },
        "2": {
          class_type: "SaveAnimatedWEBP",
          inputs: {
            images: ["1", 0],
            filename_prefix: "moves",
            fps: 6,
            lossless: true,
            quality: 80,
            method: "default",
          },
        },
        "3": {
          class_type: "EmptyLatentImage",
          inputs: { width: 64, height: 64, batch_size: 1 },
        },
        "4": { class_type: "SaveLatent", inputs: { samples: ["3", 0], filename_prefix: "l" } },
      });
      expect(sniffFile(webp ?? "").extension).toBe("webp");
      const address = `data:application/octet-stream;base64,${readFileSync(latent ?? "").toString("base64")}`;
      const again = await run({
        "1": { class_type: "LoadLatent", inputs: { latent: address } },
        "2": { class_type: "SaveLatent", inputs: { samples: ["1", 0], filename_prefix: "again" } },
      });
      expect(again).toHaveLength(1);
    });

    test("a 3D model is found by the loader that lists only its own folder", async () => {
      await Bun.write(dir.join("mesh.bin"), Buffer.from("glTF\u0002\0\0\0\u000c\0\0\0", "latin1"));
      using placed = await placeInputs(
        { "1": { class_type: "Load3D", inputs: { model_file: "input.glb" } } },
        {
          shelf: new InputShelf(engine),
          http,
          log: silentLogger,
          definitions,
          inputFile: dir.join("mesh.bin"),
        },
      );
      const name = placed.graph["1"]?.inputs["model_file"];
      const info = NodeDefinitions.fromObjectInfo(await engine.client.objectInfo());
      expect(info.input("Load3D", "model_file")?.choices).toContain(name ?? "");
    });
  });
});
