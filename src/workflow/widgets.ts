/**
 * `widgets_values` → named values, as ComfyUI's page reads them: by the order of the class's widgets, with the extra
 * positions that control and upload widgets take. Values pass unchanged: the page neither coerces nor repairs.
 */
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { InputDefinition, NodeDefinition } from "./definitions.ts";
import { own } from "./graph-read.ts";
import { MAX_WIDGETS_PER_NODE } from "./limits.ts";
import { addedInputs, constantValue } from "./page-widgets.ts";
import type { UiInput, UiNode } from "./ui-schema.ts";

/** A widget of a node with the value it has. */
export interface Widget {
  readonly name: string;
  readonly value: JsonValue;
  readonly definition: InputDefinition | undefined;
}

/** Types of inputs that the page shows as a widget; any other is a socket. */
const WIDGET_TYPES: ReadonlySet<string> = new Set([
  "COMBO",
  "INT",
  "FLOAT",
  "STRING",
  "BOOLEAN",
  "COMFY_DYNAMICCOMBO_V3",
  "COLOR",
  "COLORS",
  "BOUNDING_BOX",
  "BOUNDING_BOXES",
  "CURVE",
  "RANGE",
  "LOAD_3D",
  "LOAD_3D_ANIMATION",
  "PREVIEW_3D",
  "WEBCAM",
  "AUDIO_RECORD",
  "IMAGECOMPARE",
  "COMPOSITOR",
  "MARKDOWN",
  "IMAGEUPLOAD",
  "MULTISELECT",
  "TREE_SELECT",
  "CHART",
  "GALLERIA",
  "PAINTER",
]);

/** True when the page makes a widget of the input. */
export function isWidget(input: InputDefinition): boolean {
  return input.forceInput !== true && WIDGET_TYPES.has(input.widgetType ?? input.type);
}

/** Names of integer inputs that get a control widget though their definition doesn't ask for one. */
const IMPLICIT_SEEDS: ReadonlySet<string> = new Set(["seed", "noise_seed"]);

/** Positions in `widgets_values` behind the input's own that hold no value of the prompt. */
function extraPositions(input: InputDefinition, isNested: boolean): number {
  const type = input.widgetType ?? input.type;
  if (type === "BOUNDING_BOX") {
    return 4; // x, y, width, height as widgets of their own
  }
  const isImplicit = input.control === undefined && !isNested && IMPLICIT_SEEDS.has(input.name);
  const hasControl = typeof input.control === "string" || input.control === true;
  if (type === "INT") {
    return hasControl || isImplicit ? 1 : 0;
  }
  // The control of a combo brings a filter text.
  return type === "COMBO" && hasControl ? 2 : 0;
}

/** The widgets of a class as it starts, each with the number of positions behind it that hold no value. */
export function positionsOf(definition: NodeDefinition): { name: string; extra: number }[] {
  return layOut(definition, () => undefined).map((widget) => ({
    name: widget.name,
    extra: widget.definition === undefined ? 0 : extraPositions(widget.definition, false),
  }));
}

/** The value the page gives a new widget. */
export function defaultOf(input: InputDefinition): JsonValue {
  if (input.default !== undefined) {
    return input.default;
  }
  switch (input.widgetType ?? input.type) {
    case "COMBO":
      return input.choices?.[0] ?? null;
    case "COMFY_DYNAMICCOMBO_V3":
      return input.variants?.[0]?.key ?? null;
    case "INT":
    case "FLOAT":
      return 0;
    case "BOOLEAN":
      return false;
    case "STRING":
    case "MARKDOWN":
      return "";
    default:
      return null;
  }
}

/** A value set on a widget from outside (a primitive, a subgraph's host), or undefined. */
export type SetValue = (name: string) => JsonValue | undefined;

/** The widgets of a node of a known class, filled from what the file stores and what is set from outside. */
export function readWidgets(
  definition: NodeDefinition,
  values: UiNode["values"],
  isSet: SetValue,
): Widget[] {
  const { widgets, rest } = isJsonObject(values)
    ? { widgets: fillByName(definition, (name) => own(values, name)), rest: [] }
    : fillByPosition(definition, dropDummies(definition, values ?? []));
  const laidOut = widgets.some(({ name }) => isSet(name) !== undefined)
    ? refill(definition, widgets, isSet)
    : widgets;
  const added = addedInputs(definition.classType, rest).map(([name, value]) => ({
    name,
    value: isSet(name) ?? value,
    definition: undefined,
  }));
  return [...laidOut, ...added];
}

/** A value from outside may choose another option of a dynamic combo, so the widgets are laid out again, by name. */
function refill(definition: NodeDefinition, widgets: readonly Widget[], isSet: SetValue): Widget[] {
  const byName = new Map(widgets.map(({ name, value }) => [name, value]));
  return fillByName(definition, (name) => isSet(name) ?? byName.get(name));
}

/** Lays out the widgets of a class; `ask` gives the value of each in turn, and chooses the options that follow. */
function layOut(
  definition: NodeDefinition,
  ask: (name: string, input: InputDefinition, isNested: boolean) => JsonValue | undefined,
): Widget[] {
  const widgets: Widget[] = [];
  const visit = (inputs: readonly InputDefinition[], prefix: string): void => {
    for (const input of inputs) {
      if (!isWidget(input) || widgets.length >= MAX_WIDGETS_PER_NODE) {
        continue;
      }
      const name = prefix + input.name;
      const given = ask(name, input, prefix !== "");
      const value = constantValue(input) ?? (given === undefined ? defaultOf(input) : given);
      widgets.push({ name, value, definition: input });
      const variant = input.variants?.find((option) => option.key === value);
      if (variant !== undefined) {
        visit(variant.inputs, `${name}.`);
      }
    }
  };
  visit(definition.inputs, "");
  return widgets;
}

function fillByName(definition: NodeDefinition, ask: SetValue): Widget[] {
  return layOut(definition, ask);
}

function fillByPosition(
  definition: NodeDefinition,
  values: readonly JsonValue[],
): { widgets: Widget[]; rest: readonly JsonValue[] } {
  let position = 0;
  const widgets = layOut(definition, (_name, input, isNested) => {
    const value = values[position];
    position += 1 + extraPositions(input, isNested);
    return value;
  });
  return { widgets, rest: values.slice(position) };
}

/** Words that a control widget holds; they tell its position in a file whose class nobody knows. */
const CONTROL_WORDS: ReadonlySet<JsonValue> = new Set([
  "fixed",
  "increment",
  "decrement",
  "randomize",
  "increment-wrap",
]);

/**
 * The widgets of a node of an unknown class, as far as the file names them: since 2025 the page saves every widget
 * among the inputs, in order. Undefined when names and values don't fit together beyond doubt.
 */
export function readUnknownWidgets(node: UiNode, isSet: SetValue): Widget[] | undefined {
  const byName = node.namedValues ?? (isJsonObject(node.values) ? node.values : undefined);
  const named = node.inputs.filter((input) => input.widget !== undefined);
  const pairs =
    byName === undefined && !isJsonObject(node.values)
      ? pairUp(named, node.values ?? [])
      : pairsByName(byName ?? {});
  return pairs?.map(([name, value]) => ({
    name,
    value: isSet(name) ?? value,
    definition: undefined,
  }));
}

/** Members of an object of values that only the page uses. */
const PAGE_ONLY_VALUES: ReadonlySet<string> = new Set([
  "audiopreview",
  "control_after_generate",
  "control_filter_list",
  "upload",
  "videopreview",
]);

function pairsByName(values: JsonObject): [string, JsonValue][] {
  return Object.entries(values).filter(([name]) => !PAGE_ONLY_VALUES.has(name));
}

function pairUp(
  named: readonly UiInput[],
  values: readonly JsonValue[],
): [string, JsonValue][] | undefined {
  const pairs: [string, JsonValue][] = [];
  let position = 0;
  for (const input of named) {
    const value = values[position];
    if (value === undefined || !fitsType(value, input.type)) {
      return undefined;
    }
    pairs.push([input.widget ?? input.name, value]);
    position += 1;
    const next = values[position];
    const isControl = input.type === "INT" && next !== undefined && CONTROL_WORDS.has(next);
    position += isControl ? 1 : 0;
  }
  return values.slice(position).every(isPageOnly) ? pairs : undefined;
}

/** Values behind the last widget: buttons and previews, which hold nothing, or the word of an upload button. */
function isPageOnly(value: JsonValue): boolean {
  return value === null || value === "" || value === "image" || isJsonObject(value);
}

function fitsType(value: JsonValue, type: string): boolean {
  switch (type) {
    case "INT":
    case "FLOAT":
      return typeof value === "number" || typeof value === "bigint";
    case "BOOLEAN":
      return typeof value === "boolean";
    case "STRING":
      return typeof value === "string";
    default:
      return true;
  }
}

/** Old files hold a dummy value for every `forceInput` input; told by a count that fits only with them. */
function dropDummies(
  definition: NodeDefinition,
  values: readonly JsonValue[],
): readonly JsonValue[] {
  const positions = definition.inputs.flatMap((input) => {
    if (isWidget(input)) {
      return [true, ...Array<boolean>(extraPositions(input, false)).fill(true)];
    }
    return input.forceInput === true ? [false] : [];
  });
  return positions.includes(false) && positions.length === values.length
    ? values.filter((_value, index) => positions[index])
    : values;
}
