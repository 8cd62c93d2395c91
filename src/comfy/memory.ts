/** When ComfyUI lets go of models: never by itself, after each prediction, or when another base model comes. */
import type { Graph } from "../workflow/graph.ts";
import { walkInputs } from "../workflow/walk.ts";
import type { Engine } from "./engine.ts";

export type FreeAfter = "never" | "prediction" | "model-change";

/** Inputs that name the model everything else hangs on. */
const BASE_MODEL_INPUTS = new Set(["ckpt_name", "unet_name", "model_path"]);

/** Unloads models and forgets results; what runs now is finished first. */
export async function freeMemory(engine: Engine, signal?: AbortSignal): Promise<void> {
  await engine.client.free({ unloadModels: true, freeMemory: true }, signal);
}

/** Applies one policy over the predictions of a process. */
export class MemoryPolicy {
  readonly #mode: FreeAfter;
  #lastModels: string | undefined;

  constructor(mode: FreeAfter) {
    this.#mode = mode;
  }

  /** Called before a graph is queued. */
  async before(engine: Engine, graph: Graph, signal?: AbortSignal): Promise<void> {
    const models = baseModels(graph);
    const isOther = this.#lastModels !== undefined && models !== this.#lastModels;
    if (models !== "") {
      this.#lastModels = models;
    }
    if (this.#mode === "model-change" && models !== "" && isOther) {
      await freeMemory(engine, signal);
    }
  }

  /** Called after a run, however it ended. */
  async after(engine: Engine): Promise<void> {
    if (this.#mode === "prediction") {
      await freeMemory(engine);
    }
  }
}

function baseModels(graph: Graph): string {
  const names = [...walkInputs(graph)].flatMap(({ input, value }) =>
    BASE_MODEL_INPUTS.has(input) && typeof value === "string" ? [value] : [],
  );
  return [...new Set(names)].toSorted().join("\n");
}
