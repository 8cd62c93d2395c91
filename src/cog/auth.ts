/** Bearer tokens in front of the routes: off unless the operator lists some, as Cog itself knows none. */
import { createHash, timingSafeEqual } from "node:crypto";
import { AppError } from "../platform/errors.ts";

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

/** Checks `Authorization` values against a list, in a time that does not depend on which or how much matches. */
export class BearerCheck {
  readonly #digests: readonly Buffer[];
  readonly #variable: string;

  /** `variable`: where the operator lists them, for the hint. */
  constructor(tokens: readonly string[], variable = "API_TOKEN") {
    this.#variable = variable;
    this.#digests = tokens.map(digest);
  }

  /** @throws AppError UNAUTHORIZED */
  require(authorization: string | null): void {
    const [, token = ""] = /^Bearer +(\S+) *$/i.exec(authorization ?? "") ?? [];
    const given = digest(token);
    let isKnown = false;
    for (const known of this.#digests) {
      isKnown = timingSafeEqual(known, given) || isKnown;
    }
    if (!isKnown) {
      throw new AppError("UNAUTHORIZED", "This server needs a bearer token", {
        hint: `Send the header "Authorization: Bearer <token>" with one of the operator's ${this.#variable}s.`,
      });
    }
  }
}
