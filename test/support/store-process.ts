/** Drives a process of `store-child.ts`. */
import { join } from "node:path";

type Answer = Readonly<Record<string, unknown>>;

export class StoreProcess implements AsyncDisposable {
  readonly #child: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #answers: Answer[] = [];
  readonly #waiting: ((answer: Answer) => void)[] = [];
  readonly progress: Answer[] = [];
  #killed = false;

  constructor(settings: Readonly<Record<string, unknown>>, as: { readonly uid?: number } = {}) {
    this.#child = Bun.spawn(
      [process.execPath, join(import.meta.dir, "store-child.ts"), JSON.stringify(settings)],
      { stdin: "pipe", stdout: "pipe", stderr: "inherit", ...as },
    );
    void this.#read();
  }

  get exited(): Promise<number> {
    return this.#child.exited;
  }

  /** False from the moment a killing signal was sent. */
  get isRunning(): boolean {
    return !this.#killed && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** The next answer; progress is kept apart. */
  next(): Promise<Answer> {
    const answer = this.#answers.shift();
    return answer === undefined
      ? new Promise((resolve) => this.#waiting.push(resolve))
      : Promise.resolve(answer);
  }

  send(order: Readonly<Record<string, unknown>>): void {
    this.#child.stdin.write(`${JSON.stringify(order)}\n`);
    void this.#child.stdin.flush();
  }

  async ask(order: Readonly<Record<string, unknown>>): Promise<Answer> {
    this.send(order);
    return await this.next();
  }

  signal(name: NodeJS.Signals): void {
    // One that has ended by itself, or by another's hand, gets none.
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#killed ||= name === "SIGKILL";
      this.#child.kill(name);
    }
  }

  async kill(): Promise<void> {
    this.#killed = true;
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  async #read(): Promise<void> {
    let rest = "";
    for await (const chunk of this.#child.stdout) {
      rest += new TextDecoder().decode(chunk);
      const lines = rest.split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines.filter((one) => one !== "")) {
        this.#take(JSON.parse(line));
      }
    }
    for (const waiting of this.#waiting.splice(0)) {
      waiting({ ended: true });
    }
  }

  #take(answer: Answer): void {
    if (answer["progress"] !== undefined) {
      this.progress.push(answer);
      return;
    }
    const waiting = this.#waiting.shift();
    if (waiting === undefined) {
      this.#answers.push(answer);
    } else {
      waiting(answer);
    }
  }
}
