/** Progress of downloads: one line that is drawn over on a terminal, a line per phase elsewhere. */
import { formatSize } from "../platform/size.ts";
import type { InstallProgress } from "../weights/plan-types.ts";
import type { Terminal } from "./command.ts";

const BAR_WIDTH = 24;
/** Redrawing more often only flickers. */
const REDRAW_MS = 100;

export class ProgressBars implements Disposable {
  readonly #terminal: Terminal;
  readonly #states = new Map<string, InstallProgress>();
  readonly #toldPhases = new Set<string>();
  readonly #startedAt = performance.now();
  #drawnAt = 0;
  #isDrawn = false;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  show(progress: InstallProgress): void {
    this.#states.set(progress.name, progress);
    if (this.#terminal.isInteractive) {
      this.#draw();
    } else {
      this.#tell(progress);
    }
  }

  /** Takes the line away, so that results follow on a clean one. */
  clear(): void {
    if (this.#isDrawn) {
      this.#terminal.err("\r\u001b[2K");
      this.#isDrawn = false;
    }
  }

  [Symbol.dispose](): void {
    this.clear();
  }

  #draw(): void {
    const now = performance.now();
    if (now - this.#drawnAt < REDRAW_MS) {
      return;
    }
    this.#drawnAt = now;
    const states = [...this.#states.values()];
    const done = states.reduce((sum, state) => sum + state.doneBytes, 0);
    const total = states.reduce((sum, state) => sum + (state.totalBytes ?? state.doneBytes), 0);
    const share = total === 0 ? 0 : Math.min(1, done / total);
    const bar = "█".repeat(Math.round(share * BAR_WIDTH)).padEnd(BAR_WIDTH, "░");
    const rate = done / Math.max(0.1, (now - this.#startedAt) / 1000);
    const active = states.filter(({ phase }) => phase !== "done");
    const names = active.map(({ name, phase }) => `${name} ${phase}`).join(", ");
    this.#terminal.err(
      `\r\u001b[2K${bar} ${formatSize(done)} of ${formatSize(total)}, ${formatSize(rate)}/s  ${names.slice(0, 60)}`,
    );
    this.#isDrawn = true;
  }

  #tell({ name, phase, totalBytes }: InstallProgress): void {
    const key = `${name} ${phase}`;
    if (!this.#toldPhases.has(key)) {
      this.#toldPhases.add(key);
      const size = totalBytes === undefined ? "" : ` (${formatSize(totalBytes)})`;
      this.#terminal.err(`${name}: ${phase}${size}\n`);
    }
  }
}
