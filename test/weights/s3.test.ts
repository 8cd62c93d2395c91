/**
 * s3:// against a real S3-compatible server, versitygw (`go install github.com/versity/versitygw/cmd/versitygw@latest`),
 * where it is on PATH or named by `VERSITYGW`.
 */
import { describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { AppError } from "../../src/platform/errors.ts";
import type { S3Settings } from "../../src/weights/sources.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { tempDir } from "../support/temp-dir.ts";
import { job, quickInstaller, safetensors, sha256, sha256File } from "../support/weights.ts";

const program = process.env["VERSITYGW"] ?? Bun.which("versitygw") ?? undefined;
const KEYS = {
  accessKeyId: "weights-reader",
  secretAccessKey: "a-secret-of-the-test",
  region: "us-east-1",
};

async function startGateway(dir: TempDir): Promise<AsyncDisposable & { endpoint: string }> {
  const probe = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("") });
  const { port } = probe;
  await probe.stop(true);
  const gateway = Bun.spawn(
    [
      program ?? "",
      "--access",
      KEYS.accessKeyId,
      "--secret",
      KEYS.secretAccessKey,
      "--port",
      `127.0.0.1:${port}`,
      "posix",
      dir.join("store"),
    ],
    { stdout: "ignore", stderr: "ignore" },
  );
  const endpoint = `http://127.0.0.1:${port}`;
  for (let tries = 0; tries < 200; tries += 1) {
    const answers = await fetch(endpoint).then(
      () => true,
      () => false,
    );
    if (answers) {
      break;
    }
    await Bun.sleep(25);
  }
  return {
    endpoint,
    [Symbol.asyncDispose]: async () => {
      gateway.kill();
      await gateway.exited;
    },
  };
}

if (program === undefined) {
  test.skip("s3:// against versitygw: skipped, versitygw is not on PATH", () => undefined);
} else {
  describe("s3:// against versitygw", () => {
    const body = safetensors(900_000);

    async function fetchWith(
      settings: (endpoint: string) => S3Settings,
      key = "models/w 1.safetensors",
    ): Promise<string> {
      using dir = tempDir();
      mkdirSync(dir.join("store", "weights", "models"), { recursive: true });
      writeFileSync(dir.join("store", "weights", "models", "w 1.safetensors"), body);
      await using gateway = await startGateway(dir);
      await using installer = quickInstaller(dir.join("models"), {
        s3: settings(gateway.endpoint),
        tuning: { headersTimeoutMs: 5000 },
      });
      const destination = dir.join("models", "checkpoints", "w.safetensors");
      try {
        await installer.install([job(destination, `s3://weights/${key}`)]);
      } catch (error) {
        return error instanceof AppError ? error.code : "not ours";
      }
      return sha256File(destination) === sha256(body) ? "installed" : "wrong bytes";
    }

    test("fetches with signed ranges", async () => {
      expect(await fetchWith((endpoint) => ({ ...KEYS, endpoint }))).toBe("installed");
    }, 20_000);

    test("says that a wrong secret and an absent object are just that", async () => {
      const wrong = (endpoint: string) => ({ ...KEYS, secretAccessKey: "not it", endpoint });
      expect(await fetchWith(wrong)).toBe("AUTH_FORBIDDEN");
      expect(await fetchWith((endpoint) => ({ ...KEYS, endpoint }), "models/gone")).toBe(
        "NOT_FOUND",
      );
    }, 20_000);

    test("asks anonymously without keys, and is told no where that is not allowed", async () => {
      expect(await fetchWith((endpoint) => ({ endpoint }))).toBe("AUTH_FORBIDDEN");
    }, 20_000);
  });
}
