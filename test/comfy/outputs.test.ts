import { describe, expect, test } from "bun:test";
import { LogRing } from "../../src/comfy/log-ring.ts";
import { readOutputs } from "../../src/comfy/outputs.ts";
import { prefixOutputs } from "../../src/comfy/prefix.ts";
import type { Graph } from "../../src/workflow/graph.ts";

function save(prefix: Graph[string]["inputs"][string], classType = "SaveImage"): Graph {
  return { "1": { class_type: classType, inputs: { images: ["0", 0], filename_prefix: prefix } } };
}

describe("reading what nodes reported", () => {
  const graph: Graph = {
    "2": { class_type: "A", inputs: {} },
    "10": { class_type: "B", inputs: {} },
    "57:3": { class_type: "C", inputs: {} },
  };
  const image = (filename: string) => ({ filename, subfolder: "s", type: "output" });

  test("keeps node and batch order, whatever order the history has", () => {
    const { files } = readOutputs(
      graph,
      {
        "57:3": { images: [image("z")] },
        "10": { gifs: [image("v")], images: [image("b"), image("a")] },
        "2": { images: [image("y")] },
      },
      undefined,
    );
    expect(files.map(({ filename, nodeId }) => `${nodeId}:${filename}`)).toEqual([
      "2:y",
      "10:v",
      "10:b",
      "10:a",
      "57:3:z",
    ]);
  });

  test("takes anything with a file name for a file, and nothing else", () => {
    const { files, texts } = readOutputs(
      graph,
      {
        "2": {
          images: [{ filename: "a.mp4" }, null, 3, { filename: "" }, { filename: 7 }],
          animated: [true],
          text: ["hello", 5],
          result: ["mesh.glb", { camera: 1 }],
          single: { filename: "b.wav", type: "temp" },
          text_other: ["not told"],
        },
        "10": { text: "alone" },
      },
      undefined,
    );
    expect(files).toEqual([
      { nodeId: "2", key: "images", filename: "a.mp4", subfolder: "", type: "output" },
      { nodeId: "2", key: "single", filename: "b.wav", subfolder: "", type: "temp" },
    ]);
    expect(texts).toEqual([
      { nodeId: "2", text: "hello" },
      { nodeId: "10", text: "alone" },
    ]);
  });

  test("gives nodes made while running to the node that made them", () => {
    const { files } = readOutputs(
      graph,
      { "10.0.0.1": { images: [image("x")] }, "2": { images: [image("a")] } },
      { "10.0.0.1": { display_node: "10" } },
    );
    expect(files.map(({ nodeId }) => nodeId)).toEqual(["2", "10"]);
  });

  test("counts a file once, for the first node that reports it", () => {
    const { files } = readOutputs(
      graph,
      { "10": { images: [image("a")] }, "2": { images: [image("a")] } },
      undefined,
    );
    expect(files).toHaveLength(1);
    expect(files[0]?.nodeId).toBe("2");
  });
});

describe("prefixes of a run", () => {
  test.each([
    ["ComfyUI", "id/ComfyUI"],
    ["a/b", "id/a/b"],
    ["", "id/ComfyUI"],
    ["sub/", "id/sub/ComfyUI"],
    ["../../etc/x", "id/etc/x"],
    ["/abs/x", "id/abs/x"],
    ["win\\x", "id/win/x"],
    ["%date:yyyy%/x", "id/%date:yyyy%/x"],
  ])("make %j into %j", (given, expected) => {
    const graph = prefixOutputs(save(given, "SaveVideo"), "id");
    expect(graph["1"]?.inputs["filename_prefix"]).toBe(expected);
  });

  test("leave links alone, and the given graph", () => {
    const graph = save(["7", 0]);
    expect(prefixOutputs(graph, "id")).toEqual(graph);
    const other = save("a");
    prefixOutputs(other, "id");
    expect(other).toEqual(save("a"));
  });
});

describe("the log of a process", () => {
  async function linesOf(...chunks: readonly string[]): Promise<readonly string[]> {
    const forwarded: string[] = [];
    const ring = new LogRing((line) => forwarded.push(line));
    await ring.drain(new Blob([chunks.join("")]).stream());
    expect(ring.lines()).toEqual(forwarded.slice(-200));
    return forwarded;
  }

  test("loses its colours and its empty lines", async () => {
    expect(await linesOf("\u001b[32m[INFO]\u001b[0m up\n\n  \n\u001b]0;title\u0007x")).toEqual([
      "[INFO] up",
      "x",
    ]);
  });

  test("keeps the last state of a bar that redraws itself", async () => {
    expect(await linesOf("  0%|  |\r 50%|# |\r100%|##|\ndone\n")).toEqual(["100%|##|", "done"]);
  });

  test("keeps the last 200 lines, cut where they are endless", async () => {
    const lines = await linesOf(
      Array.from({ length: 300 }, (_, index) => `line ${index}\n`).join(""),
      `${"x".repeat(1_000_000)}\n`,
    );
    expect(lines).toHaveLength(301);
    expect(lines.at(-1)?.length).toBeLessThan(9000);
  });
});
