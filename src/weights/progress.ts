/** Progress of one file: throttled, with rate and time left; and a writer of lines for logs. */
import type { LogFields } from "../platform/log.ts";
import { formatSize } from "../platform/size.ts";
import type { InstallProgress } from "./plan-types.ts";

type Report = (progress: InstallProgress) => void;

/** The rate is taken over this long: steady enough to read, quick enough to show a stall. */
const RATE_WINDOW_MS = 3000;

export class ProgressReporter {
  readonly #name: string;
  readonly #intervalMs: number;
  readonly #report: Report;
  #totalBytes: number | undefined;
  #doneBytes = 0;
  #reportedAtMs = Number.NEGATIVE_INFINITY;
  #marks: { readonly atMs: number; readonly bytes: number }[] = [];

  constructor(name: string, intervalMs: number, report: Report) {
    this.#name = name;
    this.#intervalMs = intervalMs;
    this.#report = report;
  }

  phase(phase: InstallProgress["phase"], totalBytes?: number): void {
    this.#totalBytes = totalBytes ?? this.#totalBytes;
    if (phase === "downloading") {
      this.#marks = [];
    }
    this.#send(phase);
  }

  /** Called for every block; most calls only remember the number. */
  bytes(doneBytes: number): void {
    this.#doneBytes = doneBytes;
    if (performance.now() - this.#reportedAtMs >= this.#intervalMs) {
      this.#send("downloading");
    }
  }

  #send(phase: InstallProgress["phase"]): void {
    const now = performance.now();
    this.#reportedAtMs = now;
    this.#marks.push({ atMs: now, bytes: this.#doneBytes });
    while ((this.#marks[1]?.atMs ?? now) < now - RATE_WINDOW_MS) {
      this.#marks.shift();
    }
    this.#report({
      name: this.#name,
      doneBytes: this.#doneBytes,
      totalBytes: this.#totalBytes,
      phase,
      ...(phase === "downloading" ? this.#rate(now) : {}),
    });
  }

  #rate(now: number): { bytesPerSecond?: number; etaSeconds?: number } {
    const first = this.#marks[0];
    const seconds = first === undefined ? 0 : (now - first.atMs) / 1000;
    if (first === undefined || seconds <= 0) {
      return {};
    }
    const bytesPerSecond = (this.#doneBytes - first.bytes) / seconds;
    return this.#totalBytes === undefined || bytesPerSecond <= 0
      ? { bytesPerSecond }
      : { bytesPerSecond, etaSeconds: (this.#totalBytes - this.#doneBytes) / bytesPerSecond };
  }
}

/** A listener that writes one line per file and interval, and one when a file is done. */
export function progressLines(
  write: (message: string, fields?: LogFields) => void,
  intervalMs = 10_000,
): Report {
  const last = new Map<string, { atMs: number; phase: InstallProgress["phase"] }>();
  return (progress) => {
    const now = performance.now();
    const before = last.get(progress.name);
    const changed = before?.phase !== progress.phase && progress.phase !== "resolving";
    if (!changed && before !== undefined && now - before.atMs < intervalMs) {
      return;
    }
    last.set(progress.name, { atMs: now, phase: progress.phase });
    write(progressText(progress));
    if (progress.phase === "done") {
      last.delete(progress.name);
    }
  };
}

/** `flux1-dev.safetensors: 4.2 GB of 23.8 GB, 310 MB/s, 1 min left`. */
export function progressText(progress: InstallProgress): string {
  const { name, doneBytes, totalBytes, phase, bytesPerSecond, etaSeconds } = progress;
  if (phase !== "downloading") {
    return `${name}: ${phase}`;
  }
  const total = totalBytes === undefined ? "" : ` of ${formatSize(totalBytes)}`;
  const rate = bytesPerSecond === undefined ? "" : `, ${formatSize(bytesPerSecond)}/s`;
  const left = etaSeconds === undefined ? "" : `, ${durationText(etaSeconds)} left`;
  return `${name}: ${formatSize(doneBytes)}${total}${rate}${left}`;
}

function durationText(seconds: number): string {
  if (seconds < 90) {
    return `${Math.ceil(seconds)} s`;
  }
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Progress of a download as the data of an event. */
export function downloadState(progress: InstallProgress): Record<string, string | number | null> {
  const { name, phase, doneBytes, totalBytes } = progress;
  return { weight: name, phase, done_bytes: doneBytes, total_bytes: totalBytes ?? null };
}
