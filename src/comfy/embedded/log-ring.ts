/** The last lines of the log, for `/internal/logs` and for clients that watch it. */
import type { LogRecord } from "../../platform/log.ts";

/** As many as ComfyUI keeps. */
const MAX_ENTRIES = 300;

export interface LogEntry {
  /** ISO time. */
  readonly t: string;
  readonly m: string;
}

export class LogRing {
  readonly #entries: LogEntry[] = [];
  readonly #watchers = new Set<string>();
  #notify: ((clientId: string, entry: LogEntry) => void) | undefined;

  /** Takes a line, as `observe` of a logger. */
  add({ at, message }: LogRecord): void {
    const entry = { t: at.toISOString(), m: `${message}\n` };
    this.#entries.push(entry);
    if (this.#entries.length > MAX_ENTRIES) {
      this.#entries.shift();
    }
    for (const clientId of this.#watchers) {
      this.#notify?.(clientId, entry);
    }
  }

  /** Who tells watchers of a new line. */
  onEntry(notify: (clientId: string, entry: LogEntry) => void): void {
    this.#notify = notify;
  }

  subscribe(clientId: string, isOn: boolean): void {
    if (isOn) {
      this.#watchers.add(clientId);
    } else {
      this.#watchers.delete(clientId);
    }
  }

  entries(): readonly LogEntry[] {
    return this.#entries;
  }

  text(): string {
    return this.#entries.map(({ t, m }) => `${t} - ${m}`).join("");
  }
}
