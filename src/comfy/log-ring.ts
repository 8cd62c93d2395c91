/**
 * What ComfyUI prints, made into lines: forwarded one by one, the last ones kept for error reports. Colours are taken
 * off, and of a progress bar that redraws itself with carriage returns only the last state counts.
 */

/** As many as ComfyUI's reports are long: a Python traceback through custom nodes fills a hundred. */
const KEPT_LINES = 200;
/** A single line beyond this is cut: nodes print whole tensors. */
const MAX_LINE_LENGTH = 2000;

// biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences begin with a control character
const ANSI = /\u001b\[[0-9;?]*[ -/]*[@-~]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)/g;

/** Text without colours and other terminal sequences: ComfyUI 0.33 writes them even into a pipe. */
export function withoutAnsi(text: string): string {
  return text.replace(ANSI, "");
}

export class LogRing {
  readonly #lines: string[] = [];
  readonly #forward: (line: string) => void;

  constructor(forward: (line: string) => void) {
    this.#forward = forward;
  }

  /** The last lines, oldest first. */
  lines(): readonly string[] {
    return [...this.#lines];
  }

  add(raw: string): void {
    const text = withoutAnsi(raw).trimEnd();
    const drawn = text.slice(text.lastIndexOf("\r") + 1);
    if (drawn.trim() === "") {
      return;
    }
    const line = drawn.length > MAX_LINE_LENGTH ? `${drawn.slice(0, MAX_LINE_LENGTH)}…` : drawn;
    this.#lines.push(line);
    if (this.#lines.length > KEPT_LINES) {
      this.#lines.shift();
    }
    this.#forward(line);
  }

  /** Reads a stream of bytes to its end. A pipe that nobody reads stops the process that writes to it. */
  async drain(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    let pending = "";
    for await (const chunk of stream) {
      const parts = (pending + decoder.decode(chunk, { stream: true })).split("\n");
      pending = parts.pop() ?? "";
      for (const part of parts) {
        this.add(part);
      }
      // A bar redrawn for an hour has no line end: keep only its last state.
      const redrawn = pending.lastIndexOf("\r", pending.length - 2);
      pending = redrawn === -1 ? pending.slice(-MAX_LINE_LENGTH * 4) : pending.slice(redrawn + 1);
    }
    this.add(pending);
  }
}
