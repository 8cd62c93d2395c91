/** The model's own health check (cog_protocol.md §17.4): a time limit, one run shared by all who ask, Cog's texts. */
import { messageOf } from "../platform/errors.ts";
import { SingleFlight } from "../platform/limit.ts";
import { sleep } from "../platform/retry.ts";
import type { CogModel } from "./predictor.ts";

const DEFAULT_TIMEOUT_MS = 5_000;

export class UserHealthcheck {
  readonly #model: Pick<CogModel, "healthcheck">;
  readonly #timeoutMs: number;
  readonly #flight = new SingleFlight<string | undefined>();

  constructor(model: Pick<CogModel, "healthcheck">, timeoutMs = DEFAULT_TIMEOUT_MS) {
    this.#model = model;
    this.#timeoutMs = timeoutMs;
  }

  /** What is wrong; undefined when the model is well or has no check. */
  async run(): Promise<string | undefined> {
    return this.#model.healthcheck === undefined
      ? undefined
      : await this.#flight.run("check", () => this.#check());
  }

  async #check(): Promise<string | undefined> {
    const timer = new AbortController();
    try {
      const isHealthy = await Promise.race([
        this.#model.healthcheck?.(),
        sleep(this.#timeoutMs, timer.signal).then(() => "late" as const),
      ]);
      if (isHealthy === "late") {
        const seconds = (this.#timeoutMs / 1000).toFixed(1);
        return `Healthcheck failed: user-defined healthcheck timed out after ${seconds} seconds`;
      }
      return isHealthy === false
        ? "Healthcheck failed: user-defined healthcheck returned False"
        : undefined;
    } catch (error) {
      return `Healthcheck failed: ${messageOf(error)}`;
    } finally {
      timer.abort();
    }
  }
}
