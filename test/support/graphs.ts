/** Small graphs of weight-free core nodes, which every engine runs. */
import type { Graph } from "../../src/workflow/graph.ts";

/** One picture (or a batch), inverted and saved. */
export function pictureGraph(
  options: { color?: number; batch?: number; prefix?: string } = {},
): Graph {
  const { color = 255, batch = 1, prefix = "pic" } = options;
  return {
    "1": {
      class_type: "EmptyImage",
      inputs: { width: 48, height: 32, batch_size: batch, color },
      _meta: { title: "Blank" },
    },
    "2": { class_type: "ImageInvert", inputs: { image: ["1", 0] }, _meta: { title: "Invert" } },
    "3": {
      class_type: "SaveImage",
      inputs: { images: ["2", 0], filename_prefix: prefix },
      _meta: { title: "Save" },
    },
  };
}

/** A chain of `steps` scalings between two sizes, saved at the end: slow in proportion, stoppable between nodes. */
export function slowGraph(steps: number, side: number, color = 1): Graph {
  const nodes: [string, Graph[string]][] = [
    [
      "1",
      {
        class_type: "EmptyImage",
        inputs: { width: side, height: side, batch_size: 1, color },
      },
    ],
  ];
  for (let step = 0; step < steps; step += 1) {
    const size = step % 2 === 0 ? Math.round(side * 1.5) : side;
    nodes.push([
      String(step + 2),
      {
        class_type: "ImageScale",
        inputs: {
          image: [String(step + 1), 0],
          upscale_method: "lanczos",
          width: size,
          height: size,
          crop: "disabled",
        },
      },
    ]);
  }
  nodes.push([
    String(steps + 2),
    {
      class_type: "SaveImage",
      inputs: { images: [String(steps + 1), 0], filename_prefix: "slow" },
    },
  ]);
  return Object.fromEntries(nodes);
}
