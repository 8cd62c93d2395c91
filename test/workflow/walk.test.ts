import { describe, expect, test } from "bun:test";
import { NodeDefinitions } from "../../src/workflow/definitions.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { danglingLinks, findCycle, reachableNodes, walkInputs } from "../../src/workflow/walk.ts";

const isOutput = (classType: string) => NodeDefinitions.core().isOutput(classType);
const node = (classType: string, inputs = {}) => ({ class_type: classType, inputs });

describe("reachableNodes", () => {
  test("keeps what an output depends on, in the order of the file", () => {
    const graph: Graph = {
      c: node("SaveImage", { images: ["a", 0] }),
      b: node("LoraLoader", { model: ["a", 0] }),
      a: node("LoadImage"),
    };
    expect([...reachableNodes(graph, isOutput)]).toEqual(["c", "a"]);
  });

  test("takes an unknown class that nothing reads for an output", () => {
    const graph: Graph = {
      a: node("LoadImage"),
      b: node("SaveSomewhere", { images: ["a", 0] }),
      c: node("SaveImage"),
      d: node("MysteryLoader"),
      e: node("LoadImage", { x: ["d", 0] }),
    };
    expect([...reachableNodes(graph, isOutput)]).toEqual(["a", "b", "c"]);
  });

  test("keeps everything where no output is known", () => {
    const graph: Graph = { a: node("LoadImage"), b: node("LoadImage") };
    expect([...reachableNodes(graph, isOutput)]).toEqual(["a", "b"]);
  });

  test("ends on circles and on links to nowhere", () => {
    const graph: Graph = {
      a: node("SaveImage", { images: ["b", 0], more: ["nowhere", 0] }),
      b: node("ImageInvert", { image: ["a", 0] }),
    };
    expect([...reachableNodes(graph, isOutput)]).toEqual(["a", "b"]);
    expect(findCycle(graph)).toEqual(["b", "a"]);
    expect(danglingLinks(graph)).toEqual([{ nodeId: "a", input: "more", target: "nowhere" }]);
  });
});

test("findCycle passes a diamond and a chain of 15 000 nodes", () => {
  const diamond: Graph = {
    a: node("A", { l: ["b", 0], r: ["c", 0] }),
    b: node("B", { x: ["d", 0] }),
    c: node("C", { x: ["d", 0] }),
    d: node("D"),
  };
  const chain = Object.fromEntries(
    Array.from({ length: 15_000 }, (_none, id) => [id, node("A", { x: [String(id + 1), 0] })]),
  );
  expect(findCycle(diamond)).toBeUndefined();
  expect(findCycle(chain)).toBeUndefined();
});

test("walkInputs gives every value with its place, of the nodes asked for", () => {
  const graph: Graph = { a: node("A", { x: 1, y: ["b", 0] }), b: node("B", { z: "text" }) };
  const places = [...walkInputs(graph)].map(({ nodeId, input, value }) => [nodeId, input, value]);
  expect(places).toEqual([
    ["a", "x", 1],
    ["a", "y", ["b", 0]],
    ["b", "z", "text"],
  ]);
  expect([...walkInputs(graph, new Set(["b"]))].map(({ input }) => input)).toEqual(["z"]);
});
