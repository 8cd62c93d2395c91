/**
 * Values of model inputs that are no file of the input's own category: ComfyUI's built-in choices, words for
 * "nothing", and choices that stand for several files.
 */

/** `VAELoader` offers these when `vae_approx` holds an encoder and a decoder whose names begin so. */
const TAESD_PAIRS: ReadonlySet<string> = new Set(["taesd", "taesdxl", "taesd3", "taef1", "taef2"]);

/** Single files of `vae_approx` that `VAELoader` loads by their exact stem (0.33). */
const APPROX_STEMS: ReadonlySet<string> = new Set([
  "taehv",
  "lighttaew2_2",
  "lighttaew2_1",
  "lighttaehy1_5",
  "taeltx_2",
  "taeh3",
]);

/** Words that node packs use for "no file". */
const NOTHING: ReadonlySet<string> = new Set([
  "",
  "none",
  "[none]",
  "off",
  "disabled",
  "disable",
  "null",
  "undefined",
  "default",
  "auto",
  "automatic",
  "baked vae",
  "use same",
]);

/** What a special value needs instead of a file of its own name. */
export type SpecialValue =
  | { readonly kind: "nothing" }
  /** The value stands for files of another category whose names begin so, one of each. */
  | { readonly kind: "prefixes"; readonly category: string; readonly prefixes: readonly string[] }
  /** The file lies in another category than the input's. */
  | { readonly kind: "elsewhere"; readonly category: string };

/** What a value of an input of this category stands for, or undefined when it simply names a file. */
export function specialValue(category: string, value: string): SpecialValue | undefined {
  if (isNothing(value) || (category === "vae" && value === "pixel_space")) {
    return { kind: "nothing" };
  }
  if (category !== "vae") {
    return undefined;
  }
  if (TAESD_PAIRS.has(value)) {
    return {
      kind: "prefixes",
      category: "vae_approx",
      prefixes: [`${value}_encoder.`, `${value}_decoder.`],
    };
  }
  const stem = value.replace(/\.[^.]+$/, "");
  return APPROX_STEMS.has(stem) ? { kind: "elsewhere", category: "vae_approx" } : undefined;
}

/** True for a word that means "no file". */
export function isNothing(value: string): boolean {
  return NOTHING.has(value.trim().toLowerCase());
}
