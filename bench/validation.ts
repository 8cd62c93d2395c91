/**
 * What validation costs per file, integrity included: 200 safetensors files of 600 tensors each, warm (every file seen
 * before) and cold (nothing remembered), beside a bare `existsSync`. Aim (DESIGN §7): ≤ 20 µs warm, ≤ 200 µs cold.
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ModelFolders } from "../src/models/folders.ts";
import { Inspector } from "../src/models/header.ts";
import { Manifest } from "../src/weights/manifest.ts";
import type { WeightRef } from "../src/weights/refs.ts";
import { validateWeights } from "../src/weights/validate.ts";

const FILES = 200;
const TENSORS = 600;
const ROUNDS = 60;

/** A real header of a diffusion model's size, and the bytes it describes. */
function safetensors(): Uint8Array {
  const header: Record<string, unknown> = {};
  for (let index = 0; index < TENSORS; index += 1) {
    header[`model.diffusion_model.input_blocks.${index}.0.in_layers.0.weight`] = {
      dtype: "F16",
      shape: [1, 1],
      data_offsets: [index * 2, index * 2 + 2],
    };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + TENSORS * 2);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}

function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

/** Microseconds per file of every round, sorted. */
function measure(round: () => void): number[] {
  return Array.from({ length: ROUNDS }, () => {
    const start = performance.now();
    round();
    return ((performance.now() - start) * 1000) / FILES;
  }).sort((a, b) => a - b);
}

const root = mkdtempSync(join(tmpdir(), "bench-validation-"));
try {
  const modelsDir = join(root, "models");
  mkdirSync(join(modelsDir, "checkpoints"), { recursive: true });
  const content = safetensors();
  const refs = Array.from({ length: FILES }, (_, index): WeightRef => {
    const name = `model-${index}.safetensors`;
    writeFileSync(join(modelsDir, "checkpoints", name), content);
    return {
      name,
      category: "checkpoints",
      nodeId: String(index),
      classType: "CheckpointLoaderSimple",
      input: "ckpt_name",
      reason: "loader",
      certain: true,
      hints: [],
    };
  });
  const folders = ModelFolders.fromDirs({ modelsDirs: [modelsDir] });
  const inspector = new Inspector();
  const options = {
    manifest: Manifest.builtIn(),
    inspect: inspector.inspect.bind(inspector),
  };
  const validate = () => {
    const { present } = validateWeights(refs, folders, options);
    if (present.length !== FILES) {
      throw new Error(`${FILES - present.length} files were not found`);
    }
  };
  validate();
  const warm = measure(validate);
  const cold = measure(() => {
    inspector.forget();
    validate();
  });
  const bare = measure(() => {
    for (const ref of refs) {
      existsSync(join(modelsDir, "checkpoints", ref.name));
    }
  });
  const p50 = percentile(bare, 0.5);
  console.log(
    `validation of ${FILES} files, ${TENSORS} tensors each, ${ROUNDS} rounds; µs per file`,
  );
  for (const [name, times, aim] of [
    ["warm", warm, "≤ 20"],
    ["cold", cold, "≤ 200"],
    ["existsSync", bare, ""],
  ] as const) {
    const [half, most] = [percentile(times, 0.5), percentile(times, 0.99)];
    console.log(
      `  ${name.padEnd(11)} p50 ${half.toFixed(1).padStart(7)}  p99 ${most.toFixed(1).padStart(7)}  ÷ existsSync ${(half / p50).toFixed(1).padStart(6)}  ${aim}`,
    );
  }
} finally {
  rmSync(root, { recursive: true, force: true });
}
