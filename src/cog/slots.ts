/** Units of concurrency (cog_protocol.md §9): no queue, a slot is free or it is not; letting go twice counts once. */

/** The right to run one prediction. Give it back with `using`, or by disposing of it. */
export interface Slot extends Disposable {
  readonly index: number;
}

export class Slots {
  readonly size: number;
  readonly #free: number[];

  constructor(size: number) {
    this.size = size;
    this.#free = Array.from({ length: size }, (_, index) => size - 1 - index);
  }

  get free(): number {
    return this.#free.length;
  }

  /** A slot, or undefined when all are taken. */
  take(): Slot | undefined {
    const index = this.#free.pop();
    if (index === undefined) {
      return undefined;
    }
    let isHeld = true;
    return {
      index,
      [Symbol.dispose]: () => {
        if (isHeld) {
          isHeld = false;
          this.#free.push(index);
        }
      },
    };
  }
}
