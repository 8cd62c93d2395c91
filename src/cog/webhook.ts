/**
 * Webhooks (cog_protocol.md §11): which events go out, the throttle on logs, the retries of the last one. Delivery runs
 * beside the prediction and never holds its slot. With a signing secret every delivery is signed (Standard Webhooks).
 */
import { AppError, CanceledError, InputError, messageOf } from "../platform/errors.ts";
import type { AddressGuard } from "../platform/guard.ts";
import type { HttpClient } from "../platform/http.ts";
import type { Logger } from "../platform/log.ts";
import { redactUrl } from "../platform/redact.ts";
import { sleep } from "../platform/retry.ts";
import type { WebhookEvent } from "./envelope.ts";
import type { StreamEvent } from "./event-log.ts";
import { writeJson } from "./json-writer.ts";
import type { Prediction } from "./prediction.ts";

/** 100 ms × 2^min(k, 10) for k = 1…12: Cog's own schedule, 409 s in all. */
export const RETRY_DELAYS_MS: readonly number[] = Array.from(
  { length: 12 },
  (_, k) => 100 * 2 ** Math.min(k + 1, 10),
);
const RETRIED_STATUSES = new Set([429, 500, 502, 503, 504]);
/** Time limit of one delivery. */
const DELIVERY_MS = 30_000;
export const DEFAULT_THROTTLE_MS = 500;
/** A name server that says nothing for so long must not hold up a creation; delivery checks the address again. */
const ADDRESS_CHECK_MS = 5_000;

export interface WebhookOptions {
  readonly http: HttpClient;
  /** Which addresses a client may name. */
  readonly guard: AddressGuard;
  readonly userAgent: string;
  readonly authToken?: string | undefined;
  readonly signingSecret?: string | undefined;
  readonly throttleMs?: number | undefined;
  readonly retryDelaysMs?: readonly number[] | undefined;
  readonly deliveryTimeoutMs?: number | undefined;
  readonly logger: Logger;
}

/** What a request said about webhooks. */
export interface WebhookOrder {
  readonly url: string;
  readonly events: readonly WebhookEvent[];
  /** `traceparent` and `tracestate` of the creating request. */
  readonly trace: Readonly<Record<string, string>>;
}

interface Delivery {
  readonly url: string;
  readonly body: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Identifies the event for receivers that check signatures; the same for each attempt. */
  readonly messageId: string;
}

const EVENT_NAMES: Readonly<Partial<Record<StreamEvent["name"], WebhookEvent>>> = {
  start: "start",
  output: "output",
  log: "logs",
  completed: "completed",
};

export class WebhookSender {
  readonly #options: WebhookOptions;
  readonly #terminal = new Set<Promise<void>>();
  readonly #stop = new AbortController();

  constructor(options: WebhookOptions) {
    this.#options = options;
  }

  /**
   * Refuses an address inside the operator's network when a prediction is created, not later in silence.
   * What is no http address at all is accepted, as in Cog; it fails at delivery.
   * @throws InputError WEBHOOK_REFUSED
   */
  async checkAddress(url: string): Promise<void> {
    if (!/^https?:\/\//i.test(url) || !URL.canParse(url)) {
      return;
    }
    const timer = new AbortController();
    try {
      const late = sleep(ADDRESS_CHECK_MS, timer.signal).catch(() => undefined);
      await Promise.race([this.#options.guard.check(url), late]);
    } catch (error) {
      if (error instanceof AppError && error.code === "FETCH_REFUSED") {
        throw new InputError("WEBHOOK_REFUSED", `The webhook ${error.describe()}`, {
          cause: error,
        });
      }
    } finally {
      timer.abort();
    }
  }

  /** Sends what the order asks for from now on. */
  attach(prediction: Prediction, order: WebhookOrder): void {
    const throttleMs = this.#options.throttleMs ?? DEFAULT_THROTTLE_MS;
    let lastSentAt = Number.NEGATIVE_INFINITY;
    let count = 0;
    prediction.observe((event) => {
      const name = EVENT_NAMES[event.name];
      if (name === undefined || !order.events.includes(name)) {
        return;
      }
      const now = performance.now();
      if (name === "logs" && now - lastSentAt < throttleMs) {
        return;
      }
      lastSentAt = now;
      count += 1;
      const delivery = this.#delivery(prediction, order, count);
      if (name === "completed") {
        this.#track(this.#deliverFinally(delivery, prediction.id));
      } else {
        void this.#deliverOnce(delivery, prediction.id);
      }
    });
  }

  /** Waits until the last webhooks are delivered or given up, at most `graceMs`; then gives the rest up. */
  async drain(graceMs: number): Promise<void> {
    const all = Promise.allSettled([...this.#terminal]);
    const timer = new AbortController();
    try {
      await Promise.race([all, sleep(graceMs, timer.signal).catch(() => undefined)]);
    } finally {
      timer.abort();
      this.#stop.abort();
    }
    await Promise.allSettled([...this.#terminal]);
  }

  #track(delivery: Promise<void>): void {
    this.#terminal.add(delivery);
    void delivery.finally(() => this.#terminal.delete(delivery));
  }

  #delivery(prediction: Prediction, order: WebhookOrder, count: number): Delivery {
    const { userAgent, authToken } = this.#options;
    return {
      url: order.url,
      body: writeJson(prediction.snapshot()),
      messageId: `msg_${prediction.id}_${count}`,
      headers: {
        "content-type": "application/json",
        accept: "*/*",
        "user-agent": userAgent,
        ...(authToken === undefined ? {} : { authorization: `Bearer ${authToken}` }),
        ...order.trace,
      },
    };
  }

  async #deliverOnce(delivery: Delivery, id: string): Promise<void> {
    try {
      const status = await this.#send(delivery);
      if (status < 200 || status > 299) {
        this.#warn(delivery, id, `it answered ${status}`);
      }
    } catch (error) {
      this.#warn(delivery, id, messageOf(error));
    }
  }

  async #deliverFinally(delivery: Delivery, id: string): Promise<void> {
    const delays = this.#options.retryDelaysMs ?? RETRY_DELAYS_MS;
    for (const delayMs of [...delays, undefined]) {
      const failure = await this.#tryOnce(delivery);
      if (failure === undefined) {
        return;
      }
      if (!failure.retry || delayMs === undefined || this.#stop.signal.aborted) {
        this.#options.logger.error(
          `The last webhook of ${id} was not delivered to ${redactUrl(delivery.url)}: ${failure.reason}`,
          { prediction_id: id },
        );
        return;
      }
      this.#warn(delivery, id, `${failure.reason}; trying again in ${delayMs / 1000} s`);
      await sleep(delayMs, this.#stop.signal).catch(() => undefined);
    }
  }

  async #tryOnce(
    delivery: Delivery,
  ): Promise<{ readonly retry: boolean; readonly reason: string } | undefined> {
    try {
      const status = await this.#send(delivery);
      return status >= 200 && status <= 299
        ? undefined
        : { retry: RETRIED_STATUSES.has(status), reason: `it answered ${status}` };
    } catch (error) {
      const isHopeless = error instanceof InputError && !error.retryable;
      return { retry: !isHopeless, reason: messageOf(error) };
    }
  }

  async #send(delivery: Delivery): Promise<number> {
    if (!URL.canParse(delivery.url) || !/^https?:/i.test(delivery.url)) {
      throw new InputError("INPUT_INVALID", "it is no http address");
    }
    const limitMs = this.#options.deliveryTimeoutMs ?? DELIVERY_MS;
    const deadline = AbortSignal.timeout(limitMs);
    try {
      const response = await this.#options.http.request(delivery.url, {
        method: "POST",
        headers: { ...delivery.headers, ...(await this.#signature(delivery)) },
        body: delivery.body,
        headersTimeoutMs: limitMs,
        signal: AbortSignal.any([deadline, this.#stop.signal]),
      });
      await response.discard();
      return response.status;
    } catch (error) {
      if (deadline.aborted) {
        throw new CanceledError(`no answer within ${limitMs / 1000} s`, { cause: error });
      }
      throw error;
    }
  }

  async #signature(delivery: Delivery): Promise<Record<string, string>> {
    const secret = this.#options.signingSecret;
    if (secret === undefined) {
      return {};
    }
    const { Webhook } = await import("standardwebhooks");
    const at = new Date();
    return {
      "webhook-id": delivery.messageId,
      "webhook-timestamp": String(Math.floor(at.getTime() / 1000)),
      "webhook-signature": new Webhook(secret).sign(delivery.messageId, at, delivery.body),
    };
  }

  #warn(delivery: Delivery, id: string, reason: string): void {
    this.#options.logger.warn(
      `A webhook of ${id} was not delivered to ${redactUrl(delivery.url)}: ${reason}`,
      { prediction_id: id },
    );
  }
}
