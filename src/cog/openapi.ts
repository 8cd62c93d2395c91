/**
 * The OpenAPI document in Cog's exact shape (cog_protocol.md §20), generated from the zod objects that describe a
 * model's inputs. Requests are validated against what is made here, so what forms show is what the server checks.
 */
import { z } from "zod";
import type { JsonObject, JsonValue } from "../platform/json.ts";
import { isJsonObject } from "../platform/json.ts";
import type { CogModel } from "./predictor.ts";

/** Parts of the model that the document is made of. */
export type DescribedModel = Pick<CogModel, "inputs" | "trainingInputs" | "output" | "streaming">;

const SECRET_FLAG = "x-cog-secret";
/** JSON Schema keywords that zod writes and Cog's generator does not. */
const UNWANTED = ["$schema", "propertyNames", "additionalProperties"];

/** The document of a model. `version` is shown as the version of the API. */
export function openApiDocument(model: DescribedModel, version: string): JsonObject {
  const training = model.trainingInputs;
  const schemas: JsonObject = {
    ...inputComponents("Input", model.inputs),
    ...(training === undefined ? {} : inputComponents("TrainingInput", training)),
    Output: { ...toJson(model.output), title: "Output" },
    ...requestAndResponse("Prediction", "Input", "Output"),
    ...(training === undefined
      ? {}
      : {
          TrainingOutput: { title: "TrainingOutput", type: "object" },
          ...requestAndResponse("Training", "TrainingInput", "TrainingOutput"),
        }),
    ...FIXED_COMPONENTS,
  };
  return {
    openapi: "3.0.2",
    info: { title: "Cog", version },
    components: { schemas },
    paths: {
      "/": { get: { summary: "Root", operationId: "root__get", responses: { "200": ok({}) } } },
      "/health-check": {
        get: {
          summary: "Healthcheck",
          operationId: "healthcheck_health_check_get",
          responses: { "200": ok({}) },
        },
      },
      ...runPaths(PREDICT, model.streaming),
      ...(training === undefined ? {} : runPaths(TRAIN, false)),
    },
  };
}

/** The properties of the input schema for one kind of request, by name. */
export function inputSchema(document: JsonObject, kind: "prediction" | "training"): JsonObject {
  const components = schemasOf(document);
  const schema =
    kind === "training"
      ? (components["TrainingInput"] ?? components["Input"])
      : components["Input"];
  return isJsonObject(schema) ? schema : {};
}

/** `components.schemas` of a document. */
export function schemasOf(document: JsonObject): JsonObject {
  const components = document["components"];
  const schemas = isJsonObject(components) ? components["schemas"] : undefined;
  return isJsonObject(schemas) ? schemas : {};
}

/** Properties of an input schema. */
export function propertiesOf(schema: JsonObject): JsonObject {
  const properties = schema["properties"];
  return isJsonObject(properties) ? properties : {};
}

/** Names of the properties that hold credentials. */
export function secretNames(schema: JsonObject): Set<string> {
  return new Set(
    Object.entries(propertiesOf(schema))
      .filter(([, property]) => isJsonObject(property) && property[SECRET_FLAG] === true)
      .map(([name]) => name),
  );
}

/** How a property takes files: one, a list of them, or not at all. */
export function fileKind(property: JsonValue | undefined): "one" | "list" | undefined {
  if (!isJsonObject(property)) {
    return undefined;
  }
  if (property["type"] === "string" && property["format"] === "uri") {
    return "one";
  }
  const isList = property["type"] === "array" && fileKind(property["items"]) === "one";
  return isList ? "list" : undefined;
}

function inputComponents(name: string, inputs: z.ZodObject): JsonObject {
  const components: JsonObject = {};
  const properties: JsonObject = {};
  const required: string[] = [];
  for (const [order, [field, schema]] of Object.entries(inputs.shape).entries()) {
    const fragment = fieldFragment(schema);
    const isOptional = z.safeParse(schema, undefined).success;
    if (!isOptional) {
      required.push(field);
    }
    if (isOptional && !("default" in fragment)) {
      fragment["default"] = null;
      fragment["nullable"] = true;
    }
    const { enum: choices, type, title, ...rest } = fragment;
    if (choices === undefined) {
      properties[field] = {
        ...rest,
        ...("anyOf" in rest ? {} : { type: type ?? "object" }),
        title: title ?? titleOf(field),
        "x-order": order,
      };
    } else {
      components[field] = {
        title: field,
        description: "An enumeration.",
        enum: choices,
        type: type ?? "string",
      };
      properties[field] = {
        ...rest,
        allOf: [{ $ref: `#/components/schemas/${field}` }],
        "x-order": order,
      };
    }
  }
  components[name] = {
    title: name,
    type: "object",
    properties,
    ...(required.length === 0 ? {} : { required }),
  };
  return components;
}

function fieldFragment(schema: z.core.$ZodType): JsonObject {
  return tidy(toJson(z.toJSONSchema(schema, { io: "input", unrepresentable: "any" })));
}

/** zod's fragment as Cog's generator would have written it. */
function tidy(fragment: JsonObject): JsonObject {
  const clean: JsonObject = {};
  for (const [key, value] of Object.entries(fragment)) {
    if (!UNWANTED.includes(key) && !isImpliedLimit(key, value)) {
      clean[key] = key === "items" && isJsonObject(value) ? tidy(value) : value;
    }
  }
  const types = clean["type"];
  if (Array.isArray(types)) {
    delete clean["type"];
    clean["anyOf"] = types.map((type) => ({ type }));
  }
  return clean;
}

/** zod's integers are safe integers and say so; Cog's have no such limits. */
function isImpliedLimit(key: string, value: JsonValue): boolean {
  return (
    (key === "minimum" && value === Number.MIN_SAFE_INTEGER) ||
    (key === "maximum" && value === Number.MAX_SAFE_INTEGER)
  );
}

/** `output_format` → `Output Format`. */
function titleOf(name: string): string {
  return name.replaceAll("_", " ").replace(/(^|\s)\p{L}/gu, (letter) => letter.toUpperCase());
}

function toJson(value: unknown): JsonObject {
  const copy: unknown = JSON.parse(JSON.stringify(value));
  return isJsonObject(copy) ? copy : {};
}

interface RunWords {
  readonly route: string;
  readonly noun: "prediction" | "training";
  readonly verb: "predict" | "train";
  readonly summary: string;
  readonly description: string;
}

const PREDICT: RunWords = {
  route: "/predictions",
  noun: "prediction",
  verb: "predict",
  summary: "Predict",
  description: "Run a single prediction on the model",
};
const TRAIN: RunWords = {
  route: "/trainings",
  noun: "training",
  verb: "train",
  summary: "Train",
  description: "Run a single training on the model",
};

function runPaths(words: RunWords, streaming: boolean): JsonObject {
  const { route, noun, verb } = words;
  const schemaPrefix = noun === "prediction" ? "Prediction" : "Training";
  const invalid = answer("Validation Error", { $ref: "#/components/schemas/HTTPValidationError" });
  return {
    [route]: {
      post: {
        summary: words.summary,
        description: words.description,
        operationId: `${verb}_${noun}s_post`,
        requestBody: {
          content: {
            "application/json": { schema: { $ref: `#/components/schemas/${schemaPrefix}Request` } },
          },
        },
        responses: {
          "200": ok({ $ref: `#/components/schemas/${schemaPrefix}Response` }),
          "422": invalid,
        },
        ...(streaming ? { "x-cog-streaming": true } : {}),
      },
    },
    [`${route}/{${noun}_id}/cancel`]: {
      post: {
        summary: "Cancel",
        operationId: `cancel_${noun}s__${noun}_id__cancel_post`,
        parameters: [
          {
            in: "path",
            name: `${noun}_id`,
            required: true,
            schema: { title: `${schemaPrefix} Id`, type: "string" },
          },
        ],
        responses: { "200": ok({}), "422": invalid },
      },
    },
  };
}

function answer(description: string, schema: JsonObject): JsonObject {
  return { description, content: { "application/json": { schema } } };
}

function ok(schema: JsonObject): JsonObject {
  return answer("Successful Response", schema);
}

function requestAndResponse(prefix: string, input: string, output: string): JsonObject {
  const text = (title: string): JsonObject => ({ title, type: "string" });
  const moment = (title: string): JsonObject => ({ ...text(title), format: "date-time" });
  const inputRef = { $ref: `#/components/schemas/${input}` };
  return {
    [`${prefix}Request`]: {
      title: `${prefix}Request`,
      type: "object",
      properties: { id: text("Id"), input: inputRef },
    },
    [`${prefix}Response`]: {
      title: `${prefix}Response`,
      type: "object",
      properties: {
        input: inputRef,
        output: { $ref: `#/components/schemas/${output}` },
        id: text("Id"),
        version: text("Version"),
        created_at: moment("Created At"),
        started_at: moment("Started At"),
        completed_at: moment("Completed At"),
        status: text("Status"),
        error: text("Error"),
        logs: text("Logs"),
        metrics: { title: "Metrics", type: "object" },
      },
    },
  };
}

const FIXED_COMPONENTS: JsonObject = {
  Status: {
    title: "Status",
    description: "An enumeration.",
    enum: ["starting", "processing", "succeeded", "canceled", "failed"],
    type: "string",
  },
  HTTPValidationError: {
    title: "HTTPValidationError",
    type: "object",
    properties: {
      detail: {
        title: "Detail",
        type: "array",
        items: { $ref: "#/components/schemas/ValidationError" },
      },
    },
  },
  ValidationError: {
    title: "ValidationError",
    type: "object",
    required: ["loc", "msg", "type"],
    properties: {
      loc: {
        title: "Location",
        type: "array",
        items: { anyOf: [{ type: "string" }, { type: "integer" }] },
      },
      msg: { title: "Message", type: "string" },
      type: { title: "Error Type", type: "string" },
    },
  },
};
