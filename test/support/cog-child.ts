/** A server in a child process: started, waited for until it is ready, its end observed. */
import { join } from "node:path";
import type { Target } from "./cog-scenario.ts";
import { untilNot } from "./cog-scenario.ts";

export interface Child extends Target, AsyncDisposable {
  readonly pid: number;
}

const MAIN = join(import.meta.dir, "cog-twin-main.ts");

/** Starts the twin with these flags and variables. */
export async function startChild(
  flags: readonly string[],
  env: Readonly<Record<string, string>> = {},
  options: { readonly wait?: boolean; readonly main?: string; readonly log?: Bun.BunFile } = {},
): Promise<Child> {
  const main = options.main === undefined ? MAIN : join(import.meta.dir, options.main);
  const child = Bun.spawn([process.execPath, main, "--host", "127.0.0.1", ...flags], {
    env: { PATH: process.env["PATH"] ?? "", PORT: "0", ALLOW_PRIVATE_NETWORK: "1", ...env },
    stdio: ["ignore", "pipe", options.log ?? "ignore"],
  });
  const port = await firstLine(child.stdout);
  if (options.wait !== false) {
    await untilNot(port, "STARTING");
  }
  return {
    port,
    pid: child.pid,
    signal: (name) => child.kill(name),
    exited: child.exited.then(() => ({
      code: child.exitCode,
      signal: child.signalCode === null ? null : String(child.signalCode),
    })),
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function firstLine(stream: ReadableStream<Uint8Array>): Promise<number> {
  let text = "";
  for await (const chunk of stream) {
    text += new TextDecoder().decode(chunk);
    if (text.includes("\n")) {
      return Number(text.trim());
    }
  }
  throw new Error(`the server said no port: ${text}`);
}
