/** Nodes that hold a value, and the one that shows any. */
import { isJsonObject } from "../../../platform/json.ts";
import { dumps, repr, reprFloat } from "../python.ts";
import type { NodeValue } from "../values.ts";
import { describeValue, isPlain } from "../values.ts";
import type { InputSpec, NodeDefinition } from "./definition.ts";
import { flag, float, int, output, socket, text } from "./definition.ts";

function primitive(
  className: string,
  displayName: string,
  type: string,
  value: InputSpec,
): NodeDefinition {
  return {
    className,
    displayName,
    category: "utilities/primitive",
    module: "comfy_extras.nodes_primitive",
    schema: "v3",
    required: { value },
    outputs: [output(type)],
    run: (inputs) => ({ outputs: [inputs.any("value")] }),
  };
}

const LIMIT = 9_223_372_036_854_775_807n;

export const primitiveInt = primitive(
  "PrimitiveInt",
  "Int",
  "INT",
  int({ min: -LIMIT, max: LIMIT, control_after_generate: "fixed" }),
);
export const primitiveFloat = primitive(
  "PrimitiveFloat",
  "Float",
  "FLOAT",
  float({ min: -LIMIT, max: LIMIT, step: 0.1 }),
);
export const primitiveString = primitive(
  "PrimitiveString",
  "Text",
  "STRING",
  text({ multiline: false }),
);
export const primitiveStringMultiline = primitive(
  "PrimitiveStringMultiline",
  "Text (Multiline)",
  "STRING",
  text({ multiline: true }),
);
export const primitiveBoolean = primitive("PrimitiveBoolean", "Boolean", "BOOLEAN", flag({}));

/** The text that the node shows for a value. */
function shown(value: NodeValue, isOld: boolean): string {
  if (!isPlain(value)) {
    return describeValue(value) ?? "";
  }
  if (typeof value === "string") {
    return value;
  }
  return Array.isArray(value) || isJsonObject(value)
    ? dumps(value, isOld ? {} : { indent: 4, keepUnicode: true })
    : repr(value);
}

export const previewAny: NodeDefinition = {
  className: "PreviewAny",
  displayName: "Preview as Text",
  category: "utilities",
  module: "comfy_extras.nodes_preview_any",
  schema: "v1",
  required: { source: socket("*") },
  outputs: [output("STRING")],
  isOutput: true,
  endsGraphInOld: true,
  run: (inputs, context) => {
    const source = inputs.any("source");
    // Only the output it comes from tells that a whole number is a float.
    const isFloat = typeof source === "number" && inputs.originType("source") === "FLOAT";
    const text = isFloat ? reprFloat(source) : shown(source, context.compat === "0.3.64");
    return { outputs: [text], ui: { text: [text] } };
  },
};
