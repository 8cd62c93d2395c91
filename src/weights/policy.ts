/**
 * What to do about missing weights: the operator's `WEIGHTS_POLICY` and what a request asks for, decided in one pure
 * function (DESIGN §4, Policy).
 */
import type { Config } from "../platform/env.ts";

export type WeightsPolicy = Config["WEIGHTS_POLICY"];

export type PolicyDecision =
  | { readonly action: "download" }
  /** `why` completes the report: what would have made a download happen. */
  | { readonly action: "fail"; readonly why: string };

/** Decides for a request that misses something. `asks`: its `download_missing_weights`. */
export function decideDownload(policy: WeightsPolicy, asks: boolean): PolicyDecision {
  switch (policy) {
    case "download":
      return { action: "download" };
    case "fail":
      return {
        action: "fail",
        why: asks
          ? "This server does not download for requests (WEIGHTS_POLICY=fail), so download_missing_weights was refused."
          : "This server does not download for requests (WEIGHTS_POLICY=fail).",
      };
    case "per-request":
      return asks
        ? { action: "download" }
        : {
            action: "fail",
            why: "Set download_missing_weights to true to let this request fetch them.",
          };
  }
}
