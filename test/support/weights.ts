/** Small real weights, and an installer whose deadlines are short. */
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { AppError } from "../../src/platform/errors.ts";
import { AddressGuard } from "../../src/platform/guard.ts";
import type { InstallerOptions } from "../../src/weights/install.ts";
import { Installer } from "../../src/weights/install.ts";
import type { InstallJob } from "../../src/weights/plan-types.ts";
import type { Tuning } from "../../src/weights/tuning.ts";

/** A valid safetensors file of about this many bytes: one tensor of random bytes. */
export function safetensors(bytes: number): Buffer {
  const header = JSON.stringify({
    weight: { dtype: "U8", shape: [bytes], data_offsets: [0, bytes] },
  });
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([start, Buffer.from(header), randomBytes(bytes)]);
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

export function sha256File(path: string): string {
  return sha256(readFileSync(path));
}

/** How a run ended: `ok`, or the code of its error. What is none of ours is thrown on. */
export async function codeOf(run: Promise<unknown>): Promise<string> {
  try {
    await run;
    return "ok";
  } catch (error) {
    if (error instanceof AppError) {
      return error.code;
    }
    throw error;
  }
}

/** Everything that waits, shortened. */
export const QUICK: Partial<Tuning> = {
  chunkBytes: 64 * 1024,
  smallFileBytes: 64 * 1024,
  headersTimeoutMs: 400,
  stallTimeoutMs: 300,
  slowBytesPerSecond: 20 * 1024,
  slowWindowMs: 1000,
  attempts: 4,
  firstRetryDelayMs: 5,
  maxRetryDelayMs: 20,
  renewBeforeMs: 0,
  minStealBytes: 16 * 1024,
  rampIntervalMs: 20,
  tickMs: 20,
  busyPollMs: 20,
  busyPatienceMs: 2000,
  progressIntervalMs: 10,
};

/** Leases that run out while a test waits. */
export const LEASE_TIMES = { renewMs: 100, silentMs: 900 };

export interface QuickInstaller extends AsyncDisposable {
  readonly installer: Installer;
}

export function quickInstaller(
  modelsRoot: string,
  options: Partial<InstallerOptions> = {},
): Installer & AsyncDisposable {
  const installer = new Installer({
    modelsRoots: [modelsRoot],
    guard: new AddressGuard(["127.0.0.1"]),
    minFreeBytes: 0,
    ...options,
    tuning: { ...QUICK, ...options.tuning },
  });
  return Object.assign(installer, { [Symbol.asyncDispose]: () => installer.close() });
}

/** A job for one file from one or several addresses the operator gave. */
export function job(
  destination: string,
  urls: string | readonly string[],
  more: Partial<InstallJob> = {},
): InstallJob {
  return {
    name: destination.split("/").at(-1) ?? destination,
    category: "checkpoints",
    destination,
    sources: [urls].flat().map((url) => ({ url, trust: "operator" as const })),
    ...more,
  };
}
