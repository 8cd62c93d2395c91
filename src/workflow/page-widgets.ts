/** Inputs that come from the page's own code for a class and stand in no definition: facts, one row each. */
import type { JsonValue } from "../platform/json.ts";
import type { InputDefinition } from "./definitions.ts";

/** Inputs that the page adds to a class, always with this value. */
const ADDED_INPUTS: Readonly<Record<string, Readonly<Record<string, JsonValue>>>> = {
  Preview3D: { image: "" },
  SaveGLB: { image: "" },
};

/** Widgets that show something and send the same whatever the file holds. */
const CONSTANT_BY_TYPE: Readonly<Record<string, JsonValue>> = {
  COMPOSITOR: {},
  IMAGECOMPARE: { __value__: ["", ""] },
};

/** Classes whose widgets grow on the page: names of the values behind the declared ones, the last one numbered. */
const GROWING: Readonly<
  Record<string, { readonly first: readonly string[]; readonly numbered: string }>
> = {
  CustomCombo: { first: ["index"], numbered: "option" },
};

/** The value that a widget of this kind always sends, or undefined for an ordinary one. */
export function constantValue(input: InputDefinition): JsonValue | undefined {
  return Object.hasOwn(CONSTANT_BY_TYPE, input.type) ? CONSTANT_BY_TYPE[input.type] : undefined;
}

/** Name and value of every input that the page adds, given the saved values behind the declared widgets. */
export function addedInputs(
  classType: string,
  rest: readonly JsonValue[],
): (readonly [string, JsonValue])[] {
  const added = Object.hasOwn(ADDED_INPUTS, classType) ? ADDED_INPUTS[classType] : undefined;
  const growing = Object.hasOwn(GROWING, classType) ? GROWING[classType] : undefined;
  if (growing === undefined) {
    return Object.entries(added ?? {});
  }
  const { first, numbered } = growing;
  return rest.map((value, index) => [
    first[index] ?? `${numbered}${index - first.length + 1}`,
    value,
  ]);
}
