/** Cog's own variables (cog_protocol.md §18.2), where garbage means the default and a warning, as there. */
import type { Config } from "../platform/env.ts";
import type { Logger } from "../platform/log.ts";
import { DEFAULT_HISTORY } from "./event-log.ts";
import { DEFAULT_THROTTLE_MS } from "./webhook.ts";

/** The variables read here; any parsed environment has them. */
export type CogVariables = Pick<
  Config,
  | "COG_MAX_CONCURRENCY"
  | "COG_SETUP_TIMEOUT"
  | "COG_THROTTLE_RESPONSE_INTERVAL"
  | "COG_STREAM_HISTORY_CAPACITY"
>;

export interface CogSettings {
  readonly slots: number;
  readonly setupTimeoutMs: number | undefined;
  readonly throttleMs: number;
  readonly historyCapacity: number;
}

/** More slots than anybody has use for; a typo must not allocate millions. */
const MAX_SLOTS = 10_000;

export function cogSettings(variables: CogVariables, logger: Logger): CogSettings {
  const number = (
    name: keyof CogVariables,
    isValid: (value: number) => boolean,
  ): number | undefined => {
    const text = variables[name];
    if (text === undefined) {
      return undefined;
    }
    const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
    if (!isValid(value)) {
      logger.warn(`${name}="${text}" is not usable; its default is used`);
      return undefined;
    }
    return value;
  };
  const isCount = (value: number): boolean => Number.isInteger(value) && value >= 1;
  const setupSeconds = number("COG_SETUP_TIMEOUT", isCount);
  const throttleSeconds = number("COG_THROTTLE_RESPONSE_INTERVAL", Number.isFinite);
  return {
    slots: number("COG_MAX_CONCURRENCY", (value) => isCount(value) && value <= MAX_SLOTS) ?? 1,
    setupTimeoutMs: setupSeconds === undefined ? undefined : setupSeconds * 1000,
    throttleMs: throttleSeconds === undefined ? DEFAULT_THROTTLE_MS : throttleSeconds * 1000,
    historyCapacity: number("COG_STREAM_HISTORY_CAPACITY", Number.isInteger) ?? DEFAULT_HISTORY,
  };
}
