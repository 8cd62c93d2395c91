import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { executionError, partialRefusalError, refusalError } from "../../src/comfy/errors.ts";
import { ExecutionErrorFacts, PromptRefusal, PromptReply } from "../../src/comfy/wire.ts";
import type { Graph } from "../../src/workflow/graph.ts";
import { casePath, describeCases } from "../support/shared.ts";

const GRAPH: Graph = {
  "4": {
    class_type: "KSampler",
    inputs: { seed: 1 },
    _meta: { title: "Sample" },
  },
};

function failed(facts: Partial<ExecutionErrorFacts>) {
  return executionError(
    GRAPH,
    ExecutionErrorFacts.parse({ node_id: "4", node_type: "KSampler", ...facts }),
  );
}

describe("a node that failed", () => {
  test.each([
    ["torch.OutOfMemoryError", "Allocation on device"],
    ["torch.cuda.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"],
    ["RuntimeError", "HIP out of memory. Tried to allocate 1 GiB"],
    ["RuntimeError", "MPS backend out of memory"],
  ])("for want of memory is told as that: %s", (exceptionType, exceptionMessage) => {
    const error = failed({ exception_type: exceptionType, exception_message: exceptionMessage });
    expect(error.code).toBe("OUT_OF_MEMORY");
    expect(error.message).toStartWith('node 4 "Sample" (KSampler) ran out of memory');
  });

  test("for want of disk is told as that", () => {
    const error = failed({
      exception_type: "OSError",
      exception_message: "[Errno 28] No space left on device\n",
    });
    expect(error.code).toBe("NO_SPACE");
  });

  test.each([
    [
      "huggingface_hub.errors.LocalEntryNotFoundError",
      "Cannot find an appropriate cached snapshot folder for the specified revision on the local disk and outgoing traffic has been disabled. To enable repo look-ups and downloads online, set HF_HUB_OFFLINE=0. https://huggingface.co/api/models/lllyasviel/Annotators/revision/main",
      "lllyasviel/Annotators",
    ],
    [
      "OSError",
      "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files. 'openai/clip-vit-large-patch14' is not the path to a directory",
      "openai/clip-vit-large-patch14",
    ],
    [
      "huggingface_hub.errors.OfflineModeIsEnabled",
      "Cannot reach https://huggingface.co/depth-anything/Depth-Anything-V2-Small/resolve/main/a.pth: offline mode is enabled.",
      "depth-anything/Depth-Anything-V2-Small",
    ],
  ])(
    "because it wanted the network is told with the repository: %s",
    (exceptionType, exceptionMessage, repository) => {
      const error = failed({ exception_type: exceptionType, exception_message: exceptionMessage });
      expect(error.code).toBe("NODE_FAILED");
      expect(error.details["repository"]).toBe(repository);
      expect(error.message).toContain(`tried to fetch the model ${repository} by itself`);
      expect(error.hint).toContain("COMFYUI_OFFLINE=0");
    },
  );

  test("is told without its traceback and without megabytes of tensors", () => {
    const error = failed({
      exception_type: "ValueError",
      exception_message: `bad ${"x".repeat(100_000)}`,
      traceback: ['  File "/srv/secret/nodes.py", line 1'],
      current_inputs: { image: ["y".repeat(5_000_000)], seed: [1, 2] },
    });
    const json = JSON.stringify(error);
    expect(json.length).toBeLessThan(6000);
    expect(json).not.toContain("/srv/secret");
  });

  test("without a message is told by its exception", () => {
    const error = failed({ exception_type: "EOFError", exception_message: "\n" });
    expect(error.message).toBe('node 4 "Sample" (KSampler) failed: EOFError: no message');
  });
});

describe("a refusal", () => {
  test("names up to ten allowed values, and counts the rest", () => {
    const options = Array.from({ length: 20 }, (_, index) => `model-${index}.safetensors`);
    const refusal = PromptRefusal.parse({
      error: { type: "prompt_outputs_failed_validation", message: "", details: "", extra_info: {} },
      node_errors: {
        "4": {
          class_type: "KSampler",
          errors: [
            {
              type: "value_not_in_list",
              message: "Value not in list",
              details: "",
              extra_info: {
                input_name: "ckpt_name",
                input_config: ["COMBO", { options }],
                received_value: "a.safetensors",
              },
            },
          ],
        },
      },
    });
    const error = refusalError(GRAPH, refusal);
    expect(error.message).toContain('ckpt_name is "a.safetensors", which is not among');
    expect(error.message).toContain("model-9.safetensors and 10 more");
    expect(error.details["nodes"]).toMatchObject([
      {
        nodeId: "4",
        errors: [{ input: "ckpt_name", received: "a.safetensors", allowed: options }],
      },
    ]);
  });

  test("in a form nobody expected is still told", () => {
    const error = refusalError(GRAPH, PromptRefusal.parse({ error: "Out of order" }));
    expect(error.message).toBe("ComfyUI refused the workflow: Out of order");
  });

  describeCases("comfy_transcripts", () => {
    const recorded = ["0.3.64", "0.33.0"].flatMap((version) =>
      [
        "err_envelope",
        "err_missing_input",
        "err_missing_model",
        "err_numbers",
        "err_unknown_class",
        "err_value_not_in_list",
        "partial_validation_200",
      ].map((name) => `${version}/${name}.json`),
    );

    test.each(recorded)("of the recording %s names a node, or says what is wrong", (file) => {
      const { steps } = JSON.parse(readFileSync(casePath("comfy_transcripts", file), "utf8"));
      for (const step of steps) {
        const graph = step.request_json?.prompt;
        if (
          step.path !== "/prompt" ||
          typeof graph !== "object" ||
          graph === null ||
          Array.isArray(graph)
        ) {
          continue;
        }
        if (step.status === 400) {
          const error = refusalError(graph, PromptRefusal.parse(step.response_json));
          expect(error.code).toBe("PROMPT_REJECTED");
          const ids = Object.keys(step.response_json.node_errors ?? {});
          expect(ids.filter((id) => !error.message.includes(`node ${id} `))).toEqual([]);
          expect(error.message.length).toBeGreaterThan(40);
          expect(error.message).not.toContain("undefined");
        }
        if (step.status === 200 && step.response_json?.node_errors !== undefined) {
          const { node_errors } = PromptReply.parse(step.response_json);
          if (Object.keys(node_errors).length > 0) {
            expect(partialRefusalError(graph, node_errors).details["partial"]).toBe(true);
          }
        }
      }
    });
  });
});
