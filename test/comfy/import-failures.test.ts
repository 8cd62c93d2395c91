import { expect, test } from "bun:test";
import { importFailures } from "../../src/comfy/import-failures.ts";

test("packs that did not load are found in ComfyUI's log, with the reason where it is still there", () => {
  const lines = [
    "Traceback (most recent call last):",
    "ModuleNotFoundError: No module named 'insightface'",
    "Cannot import /opt/ComfyUI/custom_nodes/ComfyUI_InstantID module for custom nodes: No module named 'insightface'",
    "",
    "Import times for custom nodes:",
    "   0.0 seconds: /opt/ComfyUI/custom_nodes/websocket_image_save.py",
    "   0.1 seconds (IMPORT FAILED): /opt/ComfyUI/custom_nodes/ComfyUI_InstantID",
    "   0.2 seconds (IMPORT FAILED): C:\\ComfyUI\\custom_nodes\\other-pack",
    "WARNING: some comfy_extras/ nodes did not import correctly.",
    "IMPORT FAILED: nodes_audio.py",
  ];
  expect(importFailures(lines)).toEqual([
    { folder: "ComfyUI_InstantID", line: lines[2] ?? "" },
    {
      folder: "other-pack",
      line: "0.2 seconds (IMPORT FAILED): C:\\ComfyUI\\custom_nodes\\other-pack",
    },
    { folder: "nodes_audio.py", line: "IMPORT FAILED: nodes_audio.py" },
  ]);
});

test("lines of a real ComfyUI 0.33 are told without its colours", () => {
  // As it came through /internal/logs/raw.
  const line =
    "\u001b[1m\u001b[33m[WARNING]\u001b[0m Cannot import /c/custom_nodes/ComfyUI-KJNodes module for custom nodes: No module named 'x'\n";
  expect(importFailures([line])).toEqual([
    {
      folder: "ComfyUI-KJNodes",
      line: "[WARNING] Cannot import /c/custom_nodes/ComfyUI-KJNodes module for custom nodes: No module named 'x'",
    },
  ]);
});
