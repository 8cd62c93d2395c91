/**
 * Takes credentials out of anything that may be read by people: log lines, error messages, journals, lock files.
 * Every URL passes through {@link redactUrl} and every log line through {@link Redactor} before it leaves the process.
 */

/** Query parameters that carry a credential or a signature (Civitai, S3/R2/GCS, CloudFront, Azure). */
const SECRET_PARAMETER =
  /^(token|key|api[-_]?key|access[-_]?token|auth|authorization|password|secret|sig|signature|policy|expires|key-pair-id|x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|se|sp|sv|sr|st|skoid|sktid)$/i;

const MASK = "***";

/** The address with user info and secret query values masked; text that is no URL comes back unchanged. */
export function redactUrl(text: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    return text;
  }
  if (url.protocol === "data:") {
    return `${text.slice(0, text.indexOf(",") + 1 || 32)}…`;
  }
  if (url.username === "" && url.password === "" && url.search === "") {
    return text;
  }
  url.username = url.username === "" ? "" : MASK;
  url.password = url.password === "" ? "" : MASK;
  for (const name of [...url.searchParams.keys()]) {
    if (SECRET_PARAMETER.test(name)) {
      url.searchParams.set(name, MASK);
    }
  }
  return url.href.replaceAll(encodeURIComponent(MASK), MASK);
}

/** The address without user info, query and fragment: what may be written into a journal or a lock file. */
export function bareUrl(text: string): string {
  try {
    const url = new URL(text);
    url.username = "";
    url.password = "";
    url.search = "";
    url.hash = "";
    return url.href;
  } catch {
    return text;
  }
}

const URL_IN_TEXT = /\b(?:https?|s3|hf|data):[^\s"'<>`]+/gi;
const BEARER = /\b(bearer|basic|token)\s+[A-Za-z0-9._~+/=-]{6,}/gi;
/** Tokens recognisable by their own form: Hugging Face, Replicate, AWS access keys. */
const KNOWN_TOKEN = /\b(hf_[A-Za-z0-9]{10,}|r8_[A-Za-z0-9]{10,}|AKIA[A-Z0-9]{12,})\b/g;

/** Masks known secret values wherever they occur, and everything that looks like a credential. */
export class Redactor {
  readonly #secrets = new Set<string>();

  constructor(secrets: Iterable<string | undefined> = []) {
    for (const secret of secrets) {
      this.add(secret);
    }
  }

  /** From now on `secret` is masked in every text. Values under 6 characters would mask ordinary words: ignored. */
  add(secret: string | undefined): void {
    if (secret !== undefined && secret.length >= 6) {
      this.#secrets.add(secret);
    }
  }

  /** Forgets a secret that was only valid for one request. */
  remove(secret: string): void {
    this.#secrets.delete(secret);
  }

  text(text: string): string {
    let clean = text
      .replace(URL_IN_TEXT, redactUrl)
      .replace(BEARER, `$1 ${MASK}`)
      .replace(KNOWN_TOKEN, MASK);
    for (const secret of this.#secrets) {
      clean = clean.replaceAll(secret, MASK);
    }
    return clean;
  }
}
