/**
 * Writes src/workflow/core-definitions.json from an `/object_info`: facts about ComfyUI's own nodes (names, kinds,
 * ranges, choices), no help texts. Usage: bun scripts/build-definitions.ts <object_info.json>
 */
import { join } from "node:path";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type JsonRecord = Record<string, Json>;

/** Options of an input that the program reads; everything else is for the page. */
const KEPT_OPTIONS = [
  "default",
  "min",
  "max",
  "step",
  "multiline",
  "dynamicPrompts",
  "forceInput",
  "widgetType",
  "control_after_generate",
  "image_upload",
  "audio_upload",
  "video_upload",
  "file_upload",
  "options",
  "template",
];

/** Kept inside a growing group. */
const KEPT_TEMPLATE = ["input", "prefix", "names", "min", "max", "template_id", "allowed_types"];

/** A default longer than this is a text of somebody's, not a fact. */
const LONGEST_DEFAULT = 160;

/** Lists shorter than this cost less in place than a reference does. */
const SHORTEST_SHARED_LIST = 4;

/** Classes that ComfyUI's page (1.49) names otherwise than its server: the page has a table of its own. */
const PAGE_NAMES: Readonly<Record<string, string>> = {
  ByteDance2ReferenceNode: "ByteDance Seedance 2.5 Reference to Video",
  ByteDanceSeedreamNodeV2: "ByteDance Seedream 4.5 & 5.0",
  IdeogramPImage: "Ideogram P-Image",
  LTXVConcatAVLatent: "LTXVConcatAVLatent",
  LTXVSeparateAVLatent: "LTXVSeparateAVLatent",
  TopazImageEnhance: "Topaz Image Enhance",
};

const isRecord = (value: Json | undefined): value is JsonRecord =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Lists of choices seen so far, by their text; the table stores each once. */
class ListTable {
  readonly lists: Json[][] = [];
  readonly #numbers = new Map<string, number>();

  refer(list: Json[]): Json {
    if (list.length < SHORTEST_SHARED_LIST || isRecord(list[0])) {
      return list;
    }
    const key = JSON.stringify(list);
    const known = this.#numbers.get(key) ?? this.lists.push(list) - 1;
    this.#numbers.set(key, known);
    return known;
  }
}

function compactSections(input: Json | undefined, table: ListTable, order?: Json): JsonRecord {
  const sections: JsonRecord = {};
  for (const name of ["required", "optional"]) {
    const specs = isRecord(input) ? input[name] : undefined;
    if (!isRecord(specs)) {
      continue;
    }
    const listed = isRecord(order) ? order[name] : undefined;
    const names =
      Array.isArray(listed) && listed.length > 0 ? listed.map(String) : Object.keys(specs);
    sections[name] = Object.fromEntries(
      names.flatMap((key) => {
        const spec = specs[key];
        return Array.isArray(spec) ? [[key, compactSpec(spec, table)]] : [];
      }),
    );
  }
  return sections;
}

function compactSpec([kind = "*", options]: Json[], table: ListTable): Json {
  const kept: JsonRecord = {};
  for (const key of KEPT_OPTIONS) {
    const value = isRecord(options) ? options[key] : undefined;
    const isNoise =
      value === undefined ||
      (value === false && key !== "control_after_generate" && key !== "default");
    if (!isNoise) {
      kept[key] = compactOption(key, value, table);
    }
  }
  if (typeof kept["default"] === "string" && kept["default"].length > LONGEST_DEFAULT) {
    delete kept["default"];
  }
  if (Array.isArray(kind)) {
    // The two spellings of a combo mean the same.
    return ["COMBO", { ...kept, options: table.refer(kind) }];
  }
  return Object.keys(kept).length === 0 ? [kind] : [kind, kept];
}

function compactOption(key: string, value: Json, table: ListTable): Json {
  if (key === "options" && Array.isArray(value)) {
    return isRecord(value[0])
      ? value.filter(isRecord).map((option) => ({
          key: option["key"] ?? "",
          inputs: compactSections(option["inputs"], table),
        }))
      : table.refer(value);
  }
  if (key === "template" && isRecord(value)) {
    const kept = KEPT_TEMPLATE.filter((name) => value[name] !== undefined);
    return Object.fromEntries(
      kept.map((name) => [
        name,
        name === "input" ? compactSections(value[name], table) : (value[name] ?? null),
      ]),
    );
  }
  return value;
}

function compactNode(classType: string, node: JsonRecord, table: ListTable): JsonRecord {
  const displayName = PAGE_NAMES[classType] ?? node["display_name"];
  const names = JSON.stringify(node["output_name"]);
  return {
    ...(typeof displayName === "string" && displayName !== classType
      ? { display_name: displayName }
      : {}),
    input: compactSections(node["input"], table, node["input_order"]),
    output: node["output"] ?? [],
    ...(names === JSON.stringify(node["output"]) ? {} : { output_name: node["output_name"] ?? [] }),
    ...(node["output_node"] === true ? { output_node: true } : {}),
    ...(node["api_node"] === true ? { api_node: true } : {}),
  };
}

async function main(): Promise<void> {
  const source = process.argv[2];
  if (source === undefined) {
    console.error("Usage: bun scripts/build-definitions.ts <object_info.json>");
    process.exit(2);
  }
  const info: Json = JSON.parse(await Bun.file(source).text());
  const table = new ListTable();
  const nodes = Object.entries(isRecord(info) ? info : {}).flatMap(([classType, node]) =>
    isRecord(node) ? [[classType, compactNode(classType, node, table)] as const] : [],
  );
  // One class a line, so that a new version of ComfyUI reads well in a diff.
  const lines = nodes.map(([name, node]) => `${JSON.stringify(name)}: ${JSON.stringify(node)}`);
  const lists = table.lists.map((list) => JSON.stringify(list));
  const text = `{"lists": [\n${lists.join(",\n")}\n],\n"nodes": {\n${lines.join(",\n")}\n}}\n`;
  const target = join(import.meta.dir, "../src/workflow/core-definitions.json");
  await Bun.write(target, text);
  console.log(`${nodes.length} classes, ${lists.length} shared lists, ${text.length} bytes`);
}

if (import.meta.main) {
  await main();
}
