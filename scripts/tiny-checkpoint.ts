/**
 * Writes a random checkpoint that ComfyUI takes for Stable Diffusion 1.5 and can sample on a CPU in seconds: one level of
 * the U-Net instead of four, a text encoder of zeros, no VAE. It makes no pictures worth seeing; it makes the real loader,
 * text encoder and sampler run, with real progress, previews and interrupts.
 *
 * usage: bun scripts/tiny-checkpoint.ts OUT.safetensors
 */
import { closeSync, ftruncateSync, openSync } from "node:fs";
import { writeFully } from "../src/platform/files.ts";

type Fill = "random" | "zeros" | "ones";

interface Tensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly fill: Fill;
}

/** Widths by which ComfyUI recognises the family: model channels, time embedding, text embedding. */
const CHANNELS = 320;
const TIME = 1280;
const TEXT = 768;
const LATENT = 4;
const VOCABULARY = 49_408;
const POSITIONS = 77;
const TEXT_LAYERS = 12;
const BYTES_PER_VALUE = 2;

function tensor(name: string, shape: readonly number[], fill: Fill = "random"): Tensor {
  return { name, shape, fill };
}

/** A weight and its bias. */
function layer(name: string, shape: readonly number[], fill: Fill = "random"): Tensor[] {
  return [tensor(`${name}.weight`, shape, fill), tensor(`${name}.bias`, [shape[0] ?? 1], "zeros")];
}

function norm(name: string, width: number): Tensor[] {
  return [tensor(`${name}.weight`, [width], "ones"), tensor(`${name}.bias`, [width], "zeros")];
}

function residual(name: string, incoming: number): Tensor[] {
  const skip =
    incoming === CHANNELS ? [] : layer(`${name}.skip_connection`, [CHANNELS, incoming, 1, 1]);
  return [
    ...norm(`${name}.in_layers.0`, incoming),
    ...layer(`${name}.in_layers.2`, [CHANNELS, incoming, 3, 3]),
    ...layer(`${name}.emb_layers.1`, [CHANNELS, TIME]),
    ...norm(`${name}.out_layers.0`, CHANNELS),
    ...layer(`${name}.out_layers.3`, [CHANNELS, CHANNELS, 3, 3]),
    ...skip,
  ];
}

function attention(name: string, context: number): Tensor[] {
  return [
    tensor(`${name}.to_q.weight`, [CHANNELS, CHANNELS]),
    tensor(`${name}.to_k.weight`, [CHANNELS, context]),
    tensor(`${name}.to_v.weight`, [CHANNELS, context]),
    ...layer(`${name}.to_out.0`, [CHANNELS, CHANNELS]),
  ];
}

function transformer(name: string): Tensor[] {
  const block = `${name}.transformer_blocks.0`;
  return [
    ...norm(`${name}.norm`, CHANNELS),
    ...layer(`${name}.proj_in`, [CHANNELS, CHANNELS, 1, 1]),
    ...attention(`${block}.attn1`, CHANNELS),
    ...attention(`${block}.attn2`, TEXT),
    ...layer(`${block}.ff.net.0.proj`, [8 * CHANNELS, CHANNELS]),
    ...layer(`${block}.ff.net.2`, [CHANNELS, 4 * CHANNELS]),
    ...["norm1", "norm2", "norm3"].flatMap((which) => norm(`${block}.${which}`, CHANNELS)),
    ...layer(`${name}.proj_out`, [CHANNELS, CHANNELS, 1, 1]),
  ];
}

function unet(root: string): Tensor[] {
  return [
    ...layer(`${root}.time_embed.0`, [TIME, CHANNELS]),
    ...layer(`${root}.time_embed.2`, [TIME, TIME]),
    ...layer(`${root}.input_blocks.0.0`, [CHANNELS, LATENT, 3, 3]),
    ...residual(`${root}.input_blocks.1.0`, CHANNELS),
    ...transformer(`${root}.input_blocks.1.1`),
    ...residual(`${root}.middle_block.0`, CHANNELS),
    ...transformer(`${root}.middle_block.1`),
    ...residual(`${root}.middle_block.2`, CHANNELS),
    ...["0", "1"].flatMap((index) => [
      ...residual(`${root}.output_blocks.${index}.0`, 2 * CHANNELS),
      ...transformer(`${root}.output_blocks.${index}.1`),
    ]),
    ...norm(`${root}.out.0`, CHANNELS),
    ...layer(`${root}.out.2`, [LATENT, CHANNELS, 3, 3]),
  ];
}

function textEncoder(root: string): Tensor[] {
  const layers = Array.from({ length: TEXT_LAYERS }, (_, index) => {
    const at = `${root}.encoder.layers.${index}`;
    return [
      ...["q_proj", "k_proj", "v_proj", "out_proj"].flatMap((name) =>
        layer(`${at}.self_attn.${name}`, [TEXT, TEXT], "zeros"),
      ),
      ...norm(`${at}.layer_norm1`, TEXT),
      ...norm(`${at}.layer_norm2`, TEXT),
      ...layer(`${at}.mlp.fc1`, [4 * TEXT, TEXT], "zeros"),
      ...layer(`${at}.mlp.fc2`, [TEXT, 4 * TEXT], "zeros"),
    ];
  });
  return [
    tensor(`${root}.embeddings.token_embedding.weight`, [VOCABULARY, TEXT], "zeros"),
    tensor(`${root}.embeddings.position_embedding.weight`, [POSITIONS, TEXT]),
    ...layers.flat(),
    ...norm(`${root}.final_layer_norm`, TEXT),
  ];
}

function sizeOf({ shape }: Tensor): number {
  return shape.reduce((product, side) => product * side, BYTES_PER_VALUE);
}

/** Numbers of the same spread as a fresh network's, the same ones in every run. */
function randomValues(count: number, seed: number): Float16Array {
  const values = new Float16Array(count);
  let state = (seed * 2_654_435_761 + 1) >>> 0;
  for (let index = 0; index < count; index += 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    values[index] = (state / 2 ** 32 - 0.5) * 0.07;
  }
  return values;
}

/** Writes the checkpoint. Zeros are holes in the file: 300 MB take 40 on the disk. */
export function writeTinyCheckpoint(path: string): { sizeBytes: number; tensors: number } {
  const tensors = [
    ...unet("model.diffusion_model"),
    ...textEncoder("cond_stage_model.transformer.text_model"),
  ];
  const header: Record<string, unknown> = {};
  let end = 0;
  for (const one of tensors) {
    const begin = end;
    end += sizeOf(one);
    header[one.name] = { dtype: "F16", shape: one.shape, data_offsets: [begin, end] };
  }
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, " ")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  const start = length.length + padded.length;
  const fd = openSync(path, "w");
  try {
    writeFully(fd, Buffer.concat([length, padded]), 0);
    let position = start;
    for (const [index, one] of tensors.entries()) {
      const count = sizeOf(one) / BYTES_PER_VALUE;
      if (one.fill !== "zeros") {
        const values =
          one.fill === "ones" ? new Float16Array(count).fill(1) : randomValues(count, index + 1);
        writeFully(fd, new Uint8Array(values.buffer), position);
      }
      position += sizeOf(one);
    }
    ftruncateSync(fd, start + end);
  } finally {
    closeSync(fd);
  }
  return { sizeBytes: start + end, tensors: tensors.length };
}

if (import.meta.main) {
  const [, , path] = process.argv;
  if (path === undefined) {
    console.error("usage: bun scripts/tiny-checkpoint.ts OUT.safetensors");
    process.exit(2);
  }
  const { sizeBytes, tensors } = writeTinyCheckpoint(path);
  console.log(`${path}: ${Math.round(sizeBytes / 1e6)} MB, ${tensors} tensors`);
}
