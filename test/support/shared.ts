/**
 * The recorded truth beside the checkout (`../shared`). It is not part of the repository: where it isn't there, the
 * tests that need it are skipped, each counted once with its reason in the title.
 */
import { test } from "bun:test";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";

const SHARED = resolve(import.meta.dir, "../../../shared");

/** Absolute path of a file or folder under ../shared/cases (or ../shared/weights for `../weights/…`). */
export function casePath(...parts: string[]): string {
  return join(SHARED, "cases", ...parts);
}

/** True where the recorded cases are at hand. */
export function hasCases(...parts: string[]): boolean {
  return existsSync(casePath(...parts));
}

/** Registers tests that need `../shared/cases/<part>`, or one skipped test that says what is missing. */
export function describeCases(part: string, register: () => void): void {
  if (hasCases(part)) {
    register();
  } else {
    test.skip(`cases/${part}: skipped, ../shared/cases/${part} is not beside this checkout`, () =>
      undefined);
  }
}
