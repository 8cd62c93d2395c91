/** How far a run is, told from events: nodes finished, and steps within the node that runs now. */
import type { Graph } from "../workflow/graph.ts";
import { nodeOf } from "../workflow/graph-read.ts";
import { reachableNodes } from "../workflow/walk.ts";
import type { RunProgress } from "./engine.ts";
import type { ComfyEvent } from "./events.ts";

export class ProgressTracker {
  readonly #graph: Graph;
  readonly #report: (progress: RunProgress) => void;
  readonly #total: number;
  readonly #finished = new Set<string>();
  #current: string | undefined;
  /** Newer versions send both forms; the older one is then ignored. */
  #hasStates = false;
  #last = "";

  constructor(graph: Graph, report: (progress: RunProgress) => void) {
    this.#graph = graph;
    this.#report = report;
    this.#total = reachableNodes(graph, () => undefined).size;
  }

  see(event: ComfyEvent): void {
    switch (event.type) {
      case "execution_cached":
        for (const node of event.data.nodes) {
          this.#finish(node);
        }
        return;
      case "executing":
        this.#start(event.data.display_node ?? event.data.node ?? undefined);
        return;
      case "progress":
        if (!this.#hasStates && typeof event.data.node === "string") {
          this.#step(event.data.node, event.data.value, event.data.max);
        }
        return;
      case "progress_state":
        this.#seeStates(event.data.nodes);
        return;
      default:
        return;
    }
  }

  #seeStates(nodes: Extract<ComfyEvent, { type: "progress_state" }>["data"]["nodes"]): void {
    this.#hasStates = true;
    for (const [id, state] of Object.entries(nodes)) {
      const node = state.display_node_id ?? id;
      if (state.state === "finished" && node === id) {
        this.#finish(node);
      } else if (state.state === "running" && (state.max > 1 || state.value > 0)) {
        this.#step(node, state.value, state.max);
      }
    }
  }

  #start(node: string | undefined): void {
    if (this.#current !== undefined && node !== this.#current) {
      this.#finish(this.#current);
    }
    this.#current = node;
    if (node !== undefined) {
      this.#tell(node);
    }
  }

  #finish(node: string): void {
    if (nodeOf(this.#graph, node) !== undefined) {
      this.#finished.add(node);
    }
  }

  #step(node: string, value: number, max: number): void {
    this.#current = node;
    this.#tell(node, { value, max });
  }

  #tell(nodeId: string, steps: { value: number; max: number } | undefined = undefined): void {
    const node = nodeOf(this.#graph, nodeId);
    const classType = node?.class_type ?? "?";
    const progress: RunProgress = {
      nodeId,
      nodeTitle: node?._meta?.title ?? classType,
      classType,
      ...steps,
      finished: Math.min(this.#finished.size, this.#total),
      total: this.#total,
    };
    const key = JSON.stringify(progress);
    if (key !== this.#last) {
      this.#last = key;
      this.#report(progress);
    }
  }
}
