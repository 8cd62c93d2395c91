/** The values a node was given, read by name and kind. What doesn't fit raises what PyTorch or Python would. */
import type { JsonValue } from "../../platform/json.ts";
import { NodeError, needsRealComfy } from "./node-error.ts";
import { toBool, toFloat, toInt, toText } from "./python.ts";
import type { NodeValue } from "./values.ts";
import { ImageTensor, isPlain, MaskTensor, OpaqueModel, UpscaleModel } from "./values.ts";

export class NodeInputs {
  readonly #values: ReadonlyMap<string, NodeValue>;
  readonly #originTypes: ReadonlyMap<string, string>;

  constructor(
    values: ReadonlyMap<string, NodeValue>,
    originTypes: ReadonlyMap<string, string> = new Map(),
  ) {
    this.#values = values;
    this.#originTypes = originTypes;
  }

  /** Type of the output that a linked input comes from; undefined for a literal. */
  originType(name: string): string | undefined {
    return this.#originTypes.get(name);
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  any(name: string): NodeValue {
    return this.#values.get(name) ?? null;
  }

  /** An IMAGE; a MASK is not taken for one. */
  image(name: string): ImageTensor {
    const value = this.#values.get(name);
    if (value instanceof ImageTensor) {
      return value;
    }
    throw this.#wrongKind(name, "IMAGE", value);
  }

  mask(name: string): MaskTensor {
    const value = this.#values.get(name);
    if (value instanceof MaskTensor) {
      return value;
    }
    throw this.#wrongKind(name, "MASK", value);
  }

  optionalMask(name: string): MaskTensor | undefined {
    return this.#values.has(name) ? this.mask(name) : undefined;
  }

  upscaleModel(name: string): UpscaleModel {
    const value = this.#values.get(name);
    if (value instanceof UpscaleModel) {
      return value;
    }
    throw this.#wrongKind(name, "UPSCALE_MODEL", value);
  }

  int(name: string): number {
    const cast = toInt(this.#plain(name, "INT"));
    if (typeof cast === "object") {
      throw new NodeError("ValueError", cast.failure);
    }
    return Number(cast);
  }

  float(name: string): number {
    const cast = toFloat(this.#plain(name, "FLOAT"));
    if (typeof cast === "object") {
      throw new NodeError("ValueError", cast.failure);
    }
    return cast;
  }

  text(name: string): string {
    return toText(this.#plain(name, "STRING"));
  }

  flag(name: string): boolean {
    return toBool(this.#plain(name, "BOOLEAN"));
  }

  #plain(name: string, kind: string): JsonValue {
    const value = this.#values.get(name);
    if (isPlain(value)) {
      return value;
    }
    throw this.#wrongKind(name, kind, value);
  }

  #wrongKind(name: string, kind: string, value: NodeValue | undefined): NodeError {
    if (value instanceof OpaqueModel) {
      return needsRealComfy(`Input "${name}" comes from ${value.file}.`);
    }
    const got = value === undefined ? "nothing" : (value?.constructor.name ?? "None");
    return new NodeError("TypeError", `input "${name}" must be ${kind}, got ${got}`);
  }
}
