/** A ComfyUI that runs elsewhere (`COMFYUI_URL`): reached by its API alone, never started or stopped by us. */
import { EngineError, messageOf } from "../platform/errors.ts";
import type { HttpClient } from "../platform/http.ts";
import { redactUrl } from "../platform/redact.ts";
import type { FetchFileLimits, ReportedFile } from "../workflow/engine-files.ts";
import { ComfyClient } from "./client.ts";
import type { Engine, EngineExit } from "./engine.ts";

export class RemoteEngine implements Engine {
  readonly kind = "remote";
  readonly url: string;
  readonly client: ComfyClient;
  readonly dirs = undefined;
  readonly exited = new Promise<EngineExit>(() => undefined);
  readonly unhealthy = undefined;
  readonly #http: HttpClient;

  private constructor(url: string, http: HttpClient) {
    this.url = url.replace(/\/+$/, "");
    this.#http = http;
    this.client = new ComfyClient({ url: this.url, http });
  }

  /** Asks it once whether it is a ComfyUI. @throws EngineError ENGINE_UNAVAILABLE */
  static async connect(url: string, http: HttpClient, signal?: AbortSignal): Promise<RemoteEngine> {
    const engine = new RemoteEngine(url, http);
    try {
      await engine.client.systemStats(signal);
    } catch (cause) {
      await http.close();
      throw cause instanceof EngineError
        ? new EngineError(
            "ENGINE_UNAVAILABLE",
            `COMFYUI_URL (${redactUrl(url)}) is no ComfyUI that answers: ${messageOf(cause)}`,
            { cause, hint: "Start ComfyUI there, or correct or unset COMFYUI_URL." },
          )
        : cause;
    }
    return engine;
  }

  onExit(): () => void {
    return () => undefined;
  }

  lastLog(): readonly string[] {
    return [];
  }

  ready(): Promise<void> {
    return Promise.resolve();
  }

  noteSuccess(): void {
    // Its deaths are not ours to count.
  }

  recycle(): Promise<void> {
    return Promise.resolve();
  }

  async putInput(localPath: string, name: string, signal?: AbortSignal): Promise<string> {
    return await this.client.upload(localPath, name, signal);
  }

  async fetchFile(file: ReportedFile, target: string, limits?: FetchFileLimits): Promise<void> {
    await this.client.download(file, target, limits);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#http.close();
  }
}
