/** Which files this process needs at the moment, and why: what must not be removed while it is so. */
export class Pins {
  readonly #files = new Map<string, string[]>();

  /** The files stay until the result is disposed. */
  pin(files: readonly string[], reason: string): Disposable {
    for (const file of files) {
      this.#files.set(file, [...(this.#files.get(file) ?? []), reason]);
    }
    let pinned = true;
    return {
      [Symbol.dispose]: () => {
        if (pinned) {
          pinned = false;
          for (const file of files) {
            this.#release(file, reason);
          }
        }
      },
    };
  }

  /** Why a file must stay; none: it may go. */
  reasons(file: string): readonly string[] {
    return [...new Set(this.#files.get(file))];
  }

  #release(file: string, reason: string): void {
    const reasons = this.#files.get(file) ?? [];
    const at = reasons.indexOf(reason);
    const left = at === -1 ? reasons : reasons.toSpliced(at, 1);
    if (left.length === 0) {
      this.#files.delete(file);
    } else {
      this.#files.set(file, left);
    }
  }
}
