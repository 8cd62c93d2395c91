/** Which node runs next: ready ones only, and among them what shows a result soonest, as in ComfyUI. */
import type { JsonObject } from "../../platform/json.ts";
import { isJsonObject } from "../../platform/json.ts";
import { linkOf } from "../../workflow/graph.ts";

export interface ScheduleOptions {
  readonly prompt: JsonObject;
  isOutput(id: string): boolean;
  isCached(id: string): boolean;
}

/** Ids that a node's inputs come from, once each. */
export function originsOf(prompt: JsonObject, id: string): readonly string[] {
  const node = prompt[id];
  const inputs = isJsonObject(node) && isJsonObject(node["inputs"]) ? node["inputs"] : {};
  return [
    ...new Set(
      Object.values(inputs).flatMap((value) => {
        const link = linkOf(value);
        return link === undefined ? [] : [link.nodeId];
      }),
    ),
  ];
}

export class Schedule {
  readonly #options: ScheduleOptions;
  /** Nodes to run, in the order they were found, each with what it waits for. */
  readonly #waiting = new Map<string, Set<string>>();
  readonly #dependents = new Map<string, string[]>();

  constructor(options: ScheduleOptions, outputs: readonly string[]) {
    this.#options = options;
    for (const id of outputs) {
      this.#add(id);
    }
  }

  /** Visits every node that is to run. */
  each(visit: (id: string) => void): void {
    for (const id of this.#waiting.keys()) {
      visit(id);
    }
  }

  /** Takes the next node; undefined when none is left, or only a cycle. */
  next(): string | undefined {
    const ready = [...this.#waiting].filter(([, origins]) => origins.size === 0).map(([id]) => id);
    const picked = this.#pick(ready);
    if (picked !== undefined) {
      this.#waiting.delete(picked);
    }
    return picked;
  }

  done(id: string): void {
    for (const dependent of this.#dependents.get(id) ?? []) {
      this.#waiting.get(dependent)?.delete(id);
    }
  }

  #pick(ready: readonly string[]): string | undefined {
    const feeds = (id: string) => this.#dependents.get(id) ?? [];
    return (
      ready.find((id) => this.#options.isOutput(id)) ??
      ready.find((id) => feeds(id).some((next) => this.#options.isOutput(next))) ??
      ready.find((id) =>
        feeds(id).some((next) => feeds(next).some((last) => this.#options.isOutput(last))),
      ) ??
      ready[0]
    );
  }

  #add(first: string): void {
    const stack = [first];
    for (let id = stack.pop(); id !== undefined; id = stack.pop()) {
      if (this.#waiting.has(id)) {
        continue;
      }
      // A cached node stands in the list only as an output: it needs nothing then.
      const origins = this.#options.isCached(id)
        ? []
        : originsOf(this.#options.prompt, id).filter((origin) => !this.#options.isCached(origin));
      this.#waiting.set(id, new Set(origins));
      for (const origin of origins) {
        this.#dependents.set(origin, [...(this.#dependents.get(origin) ?? []), id]);
        stack.push(origin);
      }
    }
  }
}
