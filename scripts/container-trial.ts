/**
 * The trial copies of cog.yaml and Dockerfile: the committed files are the production ones and name a GPU and a
 * ComfyUI that no plain machine can build. What is tried elsewhere differs from them by exactly what is dropped here.
 */

const OPENING = /^\s*# >>> real engine$/;
const CLOSING = /^\s*# <<< real engine$/;
const ENGINE = "- COMFYUI_ENGINE=real";
const TARGET = "ARG TARGET=gpu";

class TrialError extends Error {}

function replaceOnce(text: string, what: string, by: string, file: string): string {
  const count = text.split(what).length - 1;
  if (count !== 1) {
    throw new TrialError(`${file} holds "${what}" ${count} times; a trial copy needs it once.`);
  }
  return text.replace(what, by);
}

/** cog.yaml without its `real engine` parts, on the embedded engine. */
export function trialCogYaml(text: string): string {
  const kept: string[] = [];
  let isInside = false;
  for (const line of text.split("\n")) {
    if (OPENING.test(line) || CLOSING.test(line)) {
      if (isInside === OPENING.test(line)) {
        throw new TrialError("cog.yaml: the `real engine` marks don't pair up.");
      }
      isInside = !isInside;
    } else if (!isInside) {
      kept.push(line);
    }
  }
  if (isInside) {
    throw new TrialError("cog.yaml: a `real engine` mark is not closed.");
  }
  return replaceOnce(kept.join("\n"), ENGINE, "- COMFYUI_ENGINE=embedded", "cog.yaml");
}

/** The Dockerfile with the embedded image as what a plain build makes: `cog build` can't choose a target. */
export function trialDockerfile(text: string): string {
  return replaceOnce(text, TARGET, "ARG TARGET=embedded", "Dockerfile");
}
