/**
 * `cog/signature.py`: the predictor's inputs in the form that the cog CLI reads, generated from the same OpenAPI
 * document that the server serves, and so from the zod object in predict.ts. Without arguments it is written;
 * `--check` fails when the committed file differs; `--openapi` prints the document. `--workflow FILE`: for a build that
 * serves this one workflow (`WORKFLOW`).
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { z } from "zod";
import { openApiDocument } from "../src/cog/openapi.ts";
import { COG_VERSION } from "../src/cog/service.ts";
import { ServedWorkflow } from "../src/media/served.ts";
import type { JsonObject } from "../src/platform/json.ts";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";
import { parseWorkflow } from "../src/workflow/parse.ts";

const SIGNATURE_PATH = join(PROJECT_ROOT, "cog/signature.py");

const HEADER = `"""The inputs, for the cog CLI, which reads this file and never runs it. Generated: bun scripts/signature.ts."""

from typing import List, Optional

from cog import BasePredictor, Input, Path, Secret


class Predictor(BasePredictor):
    async def run(
        self,
`;

const FOOTER = `    ) -> List[Path]:
        raise NotImplementedError("the server is predict.ts; cog/server/http.py starts it")
`;

const Choices = z.object({ enum: z.array(z.union([z.string(), z.number()])), type: z.string() });

const Property = z.object({
  type: z.string().optional(),
  format: z.string().optional(),
  title: z.string().optional(),
  description: z.string().optional(),
  default: z.unknown().optional(),
  nullable: z.boolean().optional(),
  deprecated: z.boolean().optional(),
  minimum: z.number().optional(),
  maximum: z.number().optional(),
  minLength: z.number().optional(),
  maxLength: z.number().optional(),
  pattern: z.string().optional(),
  allOf: z.array(z.object({ $ref: z.string() })).optional(),
  "x-cog-secret": z.boolean().optional(),
  "x-cog-accept": z.string().optional(),
  "x-order": z.number(),
});
type Property = z.output<typeof Property>;

const OpenApi = z.object({
  components: z.object({
    schemas: z.looseObject({ Input: z.object({ properties: z.record(z.string(), Property) }) }),
  }),
});
type OpenApi = z.output<typeof OpenApi>;

/** JSON Schema keyword → argument of Cog's `Input()`, in the order in which they are written. */
const ARGUMENTS: readonly (readonly [keyof Property, string])[] = [
  ["description", "description"],
  ["default", "default"],
  ["minimum", "ge"],
  ["maximum", "le"],
  ["minLength", "min_length"],
  ["maxLength", "max_length"],
  ["pattern", "regex"],
  ["deprecated", "deprecated"],
  ["x-cog-accept", "accept"],
];

const PYTHON_TYPES: Readonly<Record<string, string>> = {
  string: "str",
  integer: "int",
  number: "float",
  boolean: "bool",
};

/** The cog CLI takes what stands between the quotes as it is, escapes too: a text is written without any. */
function pythonText(text: string): string {
  const isLong = text.includes("\n");
  const quotes = isLong ? ['"""', "'''"] : ['"', "'"];
  const quote = quotes.find((one) => !text.includes(one.charAt(0)));
  const isRaw = text.includes("\\");
  if (quote === undefined || (isLong && isRaw)) {
    throw new TypeError(
      `cog/signature.py cannot express this text for the cog CLI; use one kind of quotes, and no backslash beside line breaks: ${text}`,
    );
  }
  return `${isRaw ? "r" : ""}${quote}${text}${quote}`;
}

function pythonLiteral(value: unknown): string {
  if (typeof value === "string") {
    return pythonText(value);
  }
  if (typeof value === "boolean") {
    return value ? "True" : "False";
  }
  // JSON's numbers are written the same in Python.
  return value === null ? "None" : JSON.stringify(value);
}

function choicesOf(property: Property, document: OpenApi): z.output<typeof Choices> | undefined {
  const name = property.allOf?.[0]?.$ref.split("/").at(-1);
  return name === undefined ? undefined : Choices.parse(document.components.schemas[name]);
}

function pythonType(property: Property, jsonType: string | undefined): string {
  if (property["x-cog-secret"] === true) {
    return "Secret";
  }
  const plain = property.format === "uri" ? "Path" : PYTHON_TYPES[jsonType ?? ""];
  if (plain === undefined) {
    throw new TypeError(`cog/signature.py cannot express an input of type ${jsonType ?? "none"}`);
  }
  return property.nullable === true ? `Optional[${plain}]` : plain;
}

function parameter(name: string, property: Property, document: OpenApi): string {
  const choices = choicesOf(property, document);
  const given = ARGUMENTS.filter(([keyword]) => property[keyword] !== undefined).map(
    ([keyword, argument]) => `            ${argument}=${pythonLiteral(property[keyword])},\n`,
  );
  const listed =
    choices === undefined
      ? []
      : [`            choices=[${choices.enum.map(pythonLiteral).join(", ")}],\n`];
  const type = pythonType(property, choices?.type ?? property.type);
  return `        ${name}: ${type} = Input(\n${[...given, ...listed].join("")}        ),\n`;
}

/** The Python text for an OpenAPI document as the server serves it. */
export function renderSignature(document: unknown): string {
  const parsed = OpenApi.parse(document);
  const inputs = Object.entries(parsed.components.schemas.Input.properties).sort(
    ([, one], [, other]) => one["x-order"] - other["x-order"],
  );
  return `${HEADER}${inputs.map(([name, property]) => parameter(name, property, parsed)).join("")}${FOOTER}`;
}

/** The document that the server serves in an empty environment. */
export async function committedDocument(): Promise<JsonObject> {
  const { PredictInput } = await import("../predict.ts");
  const files = { type: "array", items: { type: "string", format: "uri" } };
  return openApiDocument({ inputs: PredictInput, output: files, streaming: false }, COG_VERSION);
}

/** The document of a server that serves this workflow (`WORKFLOW`), as far as can be told without its engine. */
export async function servedDocument(path: string): Promise<JsonObject> {
  const { servedInputs } = await import("../predict.ts");
  const served = new ServedWorkflow(parseWorkflow(readFileSync(path)));
  const files = { type: "array", items: { type: "string", format: "uri" } };
  const inputs = servedInputs(served);
  return openApiDocument({ inputs, output: files, streaming: false }, COG_VERSION);
}

async function main(argv: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      check: { type: "boolean" },
      openapi: { type: "boolean" },
      workflow: { type: "string" },
    },
  });
  const document =
    values.workflow === undefined
      ? await committedDocument()
      : await servedDocument(values.workflow);
  if (values.openapi === true) {
    process.stdout.write(`${JSON.stringify(document)}\n`);
    return 0;
  }
  const text = renderSignature(document);
  if (values.check === true) {
    const isSame = readFileSync(SIGNATURE_PATH, "utf8") === text;
    process.stderr.write(isSame ? "" : "cog/signature.py is stale: run bun scripts/signature.ts\n");
    return isSame ? 0 : 1;
  }
  writeFileSync(SIGNATURE_PATH, text);
  return 0;
}

if (import.meta.main) {
  process.exitCode = await main(process.argv.slice(2));
}
