/**
 * Has the kernel write out what came in while more comes in, so that the flush before publishing finds little left. Off
 * this thread, one at a time; its errors are found by the flush that counts.
 */
import { fdatasync } from "node:fs";

/** Enough for the disk to write in long runs, little enough to be done soon after the last byte. */
const WRITEBACK_BYTES = 64 * 1024 * 1024;

export class Writeback {
  readonly #fd: number;
  #syncedBytes = 0;
  #running: Promise<void> | undefined;

  constructor(fd: number) {
    this.#fd = fd;
  }

  note(bytes: number): void {
    if (this.#running === undefined && bytes - this.#syncedBytes >= WRITEBACK_BYTES) {
      this.#syncedBytes = bytes;
      this.#running = new Promise<void>((resolve) => fdatasync(this.#fd, () => resolve())).finally(
        () => {
          this.#running = undefined;
        },
      );
    }
  }

  /** Before the file is closed: a late call must not hit another file under the same number. */
  async settle(): Promise<void> {
    await this.#running;
  }
}
