/**
 * Which token goes to which host. Asked anew for every hop of a redirect chain: what isn't meant for a host never
 * reaches it, and a request's sources never get the operator's tokens.
 */
import type { Trust } from "./plan-types.ts";

export interface Tokens {
  readonly huggingFace?: string | undefined;
  readonly civitai?: string | undefined;
}

export interface CredentialSettings {
  readonly operator?: Tokens | undefined;
  /** `HF_ENDPOINT`; the Hub's own address unless given. */
  readonly hfEndpoint?: string | undefined;
  /** Further origins that speak Civitai's API (a mirror of the operator). */
  readonly civitaiOrigins?: readonly string[] | undefined;
}

export const HUGGING_FACE = "https://huggingface.co";

/** Exactly these: the storage behind them is signed and rejects a second credential. */
const CIVITAI_ORIGINS: readonly string[] = [
  "https://civitai.com",
  "https://www.civitai.com",
  "https://civitai.red",
  "https://www.civitai.red",
];

export type Provider = "hugging_face" | "civitai" | "other";

export class Credentials {
  readonly hfEndpoint: string;
  readonly #operator: Tokens;
  readonly #request: Tokens;
  readonly #settings: CredentialSettings;
  readonly #civitai: ReadonlySet<string>;

  constructor(settings: CredentialSettings = {}, request: Tokens = {}) {
    this.#settings = settings;
    this.#operator = settings.operator ?? {};
    this.#request = request;
    this.hfEndpoint = (settings.hfEndpoint ?? HUGGING_FACE).replace(/\/+$/, "");
    this.#civitai = new Set([...CIVITAI_ORIGINS, ...(settings.civitaiOrigins ?? [])]);
  }

  /** The same, plus the tokens that one request brought; they win over the operator's. */
  withRequest(tokens: Tokens): Credentials {
    return new Credentials(this.#settings, tokens);
  }

  providerOf(url: string): Provider {
    const { origin } = new URL(url);
    if (origin === new URL(this.hfEndpoint).origin) {
      return "hugging_face";
    }
    return this.#civitai.has(origin) ? "civitai" : "other";
  }

  /** Headers that prove who we are to this address; none for a host that no token belongs to. */
  headersFor(url: string, trust: Trust): Record<string, string> {
    const token = this.#tokenFor(this.providerOf(url), trust);
    // `replace` keeps a token with a line break in it from becoming a second header.
    return token === undefined ? {} : { authorization: `Bearer ${token.replace(/\s+/g, "")}` };
  }

  #tokenFor(provider: Provider, trust: Trust): string | undefined {
    const operator = trust === "operator" ? this.#operator : {};
    switch (provider) {
      case "hugging_face":
        return nonEmpty(this.#request.huggingFace) ?? nonEmpty(operator.huggingFace);
      case "civitai":
        return nonEmpty(this.#request.civitai) ?? nonEmpty(operator.civitai);
      case "other":
        return undefined;
    }
  }
}

function nonEmpty(text: string | undefined): string | undefined {
  return text === undefined || text.trim() === "" ? undefined : text;
}
