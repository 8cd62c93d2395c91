/**
 * `predict`: one prediction here and now, with the flags of `cog predict`: `-i name=value`, `-i name=@file`, `-o PATH`,
 * `--json '{…}'`. Setup runs first, as it would in a container.
 */
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import type { z } from "zod";
import { fileKind, inputSchema, openApiDocument, propertiesOf } from "../cog/openapi.ts";
import { COG_VERSION } from "../cog/service.ts";
import { validateInput } from "../cog/validate.ts";
import { InputError, messageOf } from "../platform/errors.ts";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject, parseJson, stringifyJson } from "../platform/json.ts";
import { readOverrides, readSetting } from "../workflow/overrides.ts";
import type { Command, Invocation } from "./command.ts";
import { EXIT, UsageError } from "./command.ts";
import { SET_OPTION } from "./look.ts";
import { ensureWritable, writeOutputs } from "./output-files.ts";
import type { CliServices } from "./services.ts";

export const predict: Command<CliServices> = {
  name: "predict",
  summary: "Run one workflow here, as `cog predict` does",
  usage: "-i workflow_json=@FILE [-i input_file=@FILE] [--set name=value] [-o PATH]",
  options: {
    ...SET_OPTION,
    input: {
      type: "string",
      short: "i",
      multiple: true,
      value: "name=value|name=@file",
      help: "an input; @file takes it from a file",
    },
    output: {
      type: "string",
      short: "o",
      value: "PATH",
      help: "where files are written: a name or a folder (output.N.ext)",
    },
    inputs: { type: "string", value: "JSON|@file|@-", help: "all inputs as one JSON object" },
  },
  examples: [
    "bin/cog-comfyui predict -i workflow_json=@examples/api_workflows/resize.json -i input_file=@photo.png -o out/",
    "bin/cog-comfyui predict -o out/        (runs the weight-free example)",
    "bin/cog-comfyui predict -i workflow_json=@w.json --set 6.text='a cat' --set KSampler.seed=7",
    "WORKFLOW=my_api.json bin/cog-comfyui predict -i prompt='a cat'",
  ],
  run: async (invocation, services, terminal) => {
    const output = invocation.text("output")?.replace(/^@/, "");
    ensureWritable(output);
    const predictor = services.predictor();
    const log = (line: string): void => terminal.err(`${line}\n`);
    const { signal } = services;
    const isServed = services.config.WORKFLOW !== undefined;
    // What a served workflow takes is known after setup; what is wrong with other inputs is told before it.
    const early = isServed ? undefined : await readInputs(invocation, services.inputs);
    await predictor.setup(undefined, { signal });
    const input = early ?? (await readInputs(invocation, predictor.inputs));
    const started = performance.now();
    const files = await predictor.predict(input, { signal });
    const seconds = (performance.now() - started) / 1000;
    const written = writeOutputs(files, output);
    predictor.comfyui.cleanup(files);
    if (invocation.json) {
      const document = { status: "succeeded", output: written, metrics: { predict_time: seconds } };
      terminal.out(`${stringifyJson(document, 2)}\n`);
    } else {
      for (const path of written) {
        log(`Written output to: ${path}`);
      }
    }
    return EXIT.done;
  },
};

/** The inputs of the command line, typed and checked as the server would. @throws UsageError, InputError */
export async function readInputs(
  invocation: Pick<Invocation, "text" | "texts">,
  inputs: z.ZodObject,
): Promise<Record<string, unknown>> {
  const document = openApiDocument(
    {
      inputs,
      output: { type: "array", items: { type: "string", format: "uri" } },
      streaming: false,
    },
    COG_VERSION,
  );
  const schema = inputSchema(document, "prediction");
  const properties = propertiesOf(schema);
  const all = await readAll(invocation.text("inputs"));
  const single = await Promise.all(
    invocation.texts("input").map((pair) => readPair(pair, properties)),
  );
  const given = withSettings({ ...all, ...Object.fromEntries(single) }, invocation.texts("set"));
  refuseUnknown(given, properties);
  const problems = validateInput(given, schema, document);
  if (problems.length > 0) {
    const lines = problems.map(({ loc, msg }) => `- ${loc.at(-1)}: ${msg}`);
    throw new InputError("INPUT_INVALID", `The inputs are not valid:\n${lines.join("\n")}`);
  }
  return given;
}

/** `--set` is a shorter way to write the input `overrides`. */
function withSettings(given: JsonObject, settings: readonly string[]): JsonObject {
  if (settings.length === 0) {
    return given;
  }
  const { overrides } = given;
  const values = typeof overrides === "string" ? readOverrides(overrides) : {};
  const set = Object.fromEntries(settings.map(readSetting));
  return { ...given, overrides: stringifyJson({ ...values, ...set }) };
}

async function readAll(given: string | undefined): Promise<JsonObject> {
  if (given === undefined) {
    return {};
  }
  const source = given === "@-" || given === "-" ? "/dev/stdin" : given.replace(/^@/, "");
  const text = given.startsWith("@") || given === "-" ? await readText(source) : given;
  try {
    const value = parseJson(text);
    if (isJsonObject(value)) {
      return value;
    }
  } catch (cause) {
    throw new UsageError(`--inputs is not JSON: ${messageOf(cause)}`);
  }
  throw new UsageError("--inputs must be a JSON object of input names and values");
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(resolve(path), "utf8");
  } catch (cause) {
    throw new UsageError(`${path} can't be read: ${messageOf(cause)}`);
  }
}

/** One `-i`. Files stay paths; a text input takes the file's content, as the `cog` CLI's data URL would. */
async function readPair(pair: string, properties: JsonObject): Promise<[string, JsonValue]> {
  const equals = pair.indexOf("=");
  if (equals <= 0) {
    throw new UsageError(`-i ${pair}: the form is name=value`);
  }
  const name = pair.slice(0, equals);
  const value = pair.slice(equals + 1).replace(/^"(.*)"$/s, "$1");
  const property = properties[name];
  if (fileKind(property) !== undefined) {
    const path = value.replace(/^@/, "");
    return [name, /^[a-z][a-z0-9+.-]*:/i.test(path) ? path : resolve(path)];
  }
  if (value.startsWith("@")) {
    return [name, await readWorkflowText(value.slice(1))];
  }
  return [name, coerced(value, property)];
}

/** A picture that holds a workflow is no text: it goes on as a data URL. */
async function readWorkflowText(path: string): Promise<string> {
  try {
    const bytes = await readFile(resolve(path));
    return /\.(json|txt)$/i.test(path)
      ? bytes.toString("utf8")
      : `data:application/octet-stream;base64,${bytes.toString("base64")}`;
  } catch (cause) {
    throw new UsageError(`${path} can't be read: ${messageOf(cause)}`);
  }
}

/** Numbers and truth values by the schema; anything else stays text, for the check to judge. */
function coerced(value: string, property: JsonValue | undefined): JsonValue {
  const type = isJsonObject(property) ? property["type"] : undefined;
  if (type === "boolean" && /^(true|false)$/i.test(value)) {
    return value.toLowerCase() === "true";
  }
  if (
    (type === "integer" || type === "number") &&
    value.trim() !== "" &&
    Number.isFinite(Number(value))
  ) {
    return Number(value);
  }
  return value;
}

function refuseUnknown(given: JsonObject, properties: JsonObject): void {
  if (Object.hasOwn(given, "overrides") && !Object.hasOwn(properties, "overrides")) {
    throw new UsageError(
      "WORKFLOW is served: only its named inputs can be set, no others",
      `Set one of these with -i: ${Object.keys(properties).join(", ")}.`,
    );
  }
  const unknown = Object.keys(given).filter((name) => !Object.hasOwn(properties, name));
  if (unknown.length > 0) {
    throw new UsageError(
      `Unknown input${unknown.length === 1 ? "" : "s"}: ${unknown.join(", ")}`,
      `The inputs are: ${Object.keys(properties).join(", ")}.`,
    );
  }
}
