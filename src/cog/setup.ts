/**
 * The model's setup as `/health-check` shows it (cog_protocol.md §17): started, finished or failed, with a log that can
 * be read from the first moment.
 */
import type { JsonObject } from "../platform/json.ts";

export type SetupStatus = "starting" | "succeeded" | "failed";

/** Characters of the setup log that are kept: the beginning says what was planned, so the middle is what goes. */
const MAX_LOG_CHARACTERS = 1_000_000;

export class SetupRecord {
  readonly #startedAt = new Date();
  readonly #lines: string[] = [];
  #length = 0;
  #dropped = 0;
  #status: SetupStatus = "starting";
  #completedAt: Date | undefined;
  /** Health is asked often and the log may be long: what no longer changes is made once. */
  #final: JsonObject | undefined;

  get status(): SetupStatus {
    return this.#status;
  }

  add(target: string, message: string): void {
    const line = `[${target}] ${message.replace(/\n$/, "")}`;
    this.#lines.push(line);
    this.#length += line.length + 1;
    while (this.#length > MAX_LOG_CHARACTERS && this.#lines.length > 2) {
      const [gone = ""] = this.#lines.splice(Math.floor(this.#lines.length / 2), 1);
      this.#length -= gone.length + 1;
      this.#dropped += 1;
    }
  }

  finish(status: "succeeded" | "failed"): void {
    this.#status = status;
    this.#completedAt = new Date();
  }

  /** In Cog's order of members, which is not sorted. */
  toJson(): JsonObject {
    if (this.#completedAt === undefined) {
      return this.#toJson();
    }
    this.#final ??= this.#toJson();
    return this.#final;
  }

  #toJson(): JsonObject {
    const logs = this.#text();
    return {
      started_at: timestamp(this.#startedAt),
      ...(this.#completedAt === undefined ? {} : { completed_at: timestamp(this.#completedAt) }),
      status: this.#status,
      ...(logs === "" ? {} : { logs }),
    };
  }

  #text(): string {
    if (this.#dropped === 0) {
      return this.#lines.join("\n");
    }
    const middle = Math.floor(this.#lines.length / 2);
    return this.#lines.toSpliced(middle, 0, `… (${this.#dropped} lines left out) …`).join("\n");
  }
}

/** RFC 3339 with `+00:00`, as chrono writes UTC. */
function timestamp(date: Date): string {
  return date.toISOString().replace("Z", "+00:00");
}
