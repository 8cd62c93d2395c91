/** Inputs described in zod become Cog's document, and requests are checked against it in Cog's words. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { z } from "zod";
import {
  boolInput,
  choiceInput,
  fileInput,
  filesInput,
  floatInput,
  intInput,
  requiredFileInput,
  secretInput,
  stringInput,
} from "../../src/cog/inputs.ts";
import { inputSchema, openApiDocument, propertiesOf, schemasOf } from "../../src/cog/openapi.ts";
import {
  validateInput,
  withInjectedNulls,
  withoutUnknown,
  wrongDefaults,
} from "../../src/cog/validate.ts";
import type { JsonValue } from "../../src/platform/json.ts";

const Example = z.object({
  prompt: stringInput({ minLength: 1, maxLength: 2000, description: "What to draw." }),
  init_image: fileInput({ description: "Start from this picture.", accept: "image/*" }),
  tiling: boolInput({ default: false, description: "Make the result tile." }),
  sampler: choiceInput(["euler", "dpmpp_2m", "ddim"], {
    default: "euler",
    description: "Sampler name.",
  }),
  steps: intInput({ default: 20, min: 1, max: 50, description: "Denoising steps." }),
});
const OUTPUT = {
  type: "array",
  items: { type: "string", format: "uri" },
  "x-cog-array-type": "iterator",
};
const document = openApiDocument({ inputs: Example, output: OUTPUT, streaming: true }, "0.22.0");
const schema = inputSchema(document, "prediction");

function fragment(field: z.ZodType): unknown {
  const doc = openApiDocument({ inputs: z.object({ field }), output: {}, streaming: false }, "1");
  return propertiesOf(inputSchema(doc, "prediction"))["field"];
}

describe("the OpenAPI document", () => {
  test("describes the inputs of cog_protocol.md §20.5 as Cog does", () => {
    expect(schema).toEqual({
      title: "Input",
      type: "object",
      required: ["prompt"],
      properties: {
        prompt: {
          description: "What to draw.",
          maxLength: 2000,
          minLength: 1,
          title: "Prompt",
          type: "string",
          "x-order": 0,
        },
        init_image: {
          default: null,
          description: "Start from this picture.",
          format: "uri",
          nullable: true,
          title: "Init Image",
          type: "string",
          "x-cog-accept": "image/*",
          "x-order": 1,
        },
        tiling: {
          default: false,
          description: "Make the result tile.",
          title: "Tiling",
          type: "boolean",
          "x-order": 2,
        },
        sampler: {
          allOf: [{ $ref: "#/components/schemas/sampler" }],
          default: "euler",
          description: "Sampler name.",
          "x-order": 3,
        },
        steps: {
          default: 20,
          description: "Denoising steps.",
          maximum: 50,
          minimum: 1,
          title: "Steps",
          type: "integer",
          "x-order": 4,
        },
      },
    });
    expect(schemasOf(document)["sampler"]).toEqual({
      title: "sampler",
      description: "An enumeration.",
      enum: ["euler", "dpmpp_2m", "ddim"],
      type: "string",
    });
    expect(schemasOf(document)["Output"]).toEqual({ ...OUTPUT, title: "Output" });
  });

  test.each([
    ["a float", floatInput({ min: 0.5, default: 1 }), { type: "number", minimum: 0.5, default: 1 }],
    ["an integer without limits", intInput({}), { type: "integer" }],
    [
      "a secret",
      secretInput({ description: "d" }),
      {
        type: "string",
        format: "password",
        writeOnly: true,
        "x-cog-secret": true,
        default: "",
        description: "d",
      },
    ],
    ["a required file", requiredFileInput({}), { type: "string", format: "uri" }],
    [
      "files",
      filesInput({}),
      { type: "array", items: { type: "string", format: "uri" }, default: null, nullable: true },
    ],
    ["a pattern", stringInput({ pattern: /^[a-z]+$/ }), { type: "string", pattern: "^[a-z]+$" }],
    [
      "an old input",
      boolInput({ default: true, deprecated: true }),
      { type: "boolean", default: true, deprecated: true },
    ],
    [
      "a union",
      z.union([z.string(), z.number()]),
      { anyOf: [{ type: "string" }, { type: "number" }] },
    ],
    ["an object", z.record(z.string(), z.unknown()), { type: "object" }],
    ["a list", z.array(z.int()), { type: "array", items: { type: "integer" } }],
  ])("writes %s", (_name, field, expected) => {
    expect(fragment(field)).toEqual({ ...expected, title: "Field", "x-order": 0 });
  });

  test("names trainings only where the model has them", () => {
    const both = openApiDocument(
      {
        inputs: Example,
        trainingInputs: z.object({ data: requiredFileInput({}) }),
        output: OUTPUT,
        streaming: true,
      },
      "1",
    );
    expect(Object.keys(Object(both["paths"]))).toContain("/trainings/{training_id}/cancel");
    expect(Object.keys(Object(document["paths"]))).not.toContain("/trainings");
    expect(inputSchema(both, "training")["title"]).toBe("TrainingInput");
    expect(inputSchema(document, "training")["title"]).toBe("Input");
  });

  test("finds defaults that violate their own limits", () => {
    const bad = openApiDocument(
      {
        inputs: z.object({ steps: intInput({ default: 99, max: 50 }) }),
        output: {},
        streaming: false,
      },
      "1",
    );
    expect(wrongDefaults(bad)).toEqual(["steps: 99 is greater than the maximum of 50"]);
    expect(wrongDefaults(document)).toEqual([]);
  });
});

describe("validation", () => {
  test("reports every mistake in Cog's order, the missing ones last", () => {
    expect(validateInput({ steps: 0, sampler: "x" }, schema, document)).toEqual([
      {
        loc: ["body", "input", "sampler"],
        msg: '"x" is not one of ["euler","dpmpp_2m","ddim"]',
        type: "value_error",
      },
      {
        loc: ["body", "input", "steps"],
        msg: "0 is less than the minimum of 1",
        type: "value_error",
      },
      { loc: ["body", "input", "prompt"], msg: "Field required", type: "value_error.missing" },
    ]);
  });

  test.each<[string, z.ZodType, JsonValue, string[]]>([
    ["too long", stringInput({ maxLength: 1 }), "😀😀", ['"😀😀" is longer than 1 character']],
    ["long enough in code points", stringInput({ maxLength: 2 }), "😀😀", []],
    ["too short", stringInput({ minLength: 3 }), "a", ['"a" is shorter than 3 characters']],
    ["pattern", stringInput({ pattern: /^[a-z]+$/ }), "BAD", ['"BAD" does not match "^[a-z]+$"']],
    ["a whole float", intInput({}), 5, []],
    ["a big integer", intInput({}), 2n ** 70n, []],
    ["an element", z.array(z.int()), [1, "x"], ['"x" is not of type "integer"']],
    [
      "a union",
      z.union([z.string(), z.number()]),
      true,
      ["true is not valid under any of the schemas listed in the 'anyOf' keyword"],
    ],
    ["null for an optional file", fileInput({}), null, ['null is not of type "string"']],
    ["a secret is masked", secretInput({}), 12345, ['"**********" is not of type "string"']],
  ])("%s", (_name, field, value, messages) => {
    const doc = openApiDocument({ inputs: z.object({ field }), output: {}, streaming: false }, "1");
    const problems = validateInput({ field: value }, inputSchema(doc, "prediction"), doc);
    expect(problems.map(({ msg }) => msg)).toEqual(messages);
  });

  test("points into lists and escapes slashes in names", () => {
    const doc = openApiDocument(
      { inputs: z.object({ "a/b": z.array(z.int()) }), output: {}, streaming: false },
      "1",
    );
    const [problem] = validateInput({ "a/b": [1, "x"] }, inputSchema(doc, "prediction"), doc);
    expect(problem?.loc).toEqual(["body", "input", "a~1b/1"]);
  });

  test("takes any JSON without throwing, and loc is three strings", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const json: JsonValue = JSON.parse(JSON.stringify(value));
        for (const { loc } of validateInput(json, schema, document)) {
          expect(loc.map((step) => typeof step)).toEqual(["string", "string", "string"]);
        }
      }),
    );
  });

  test("drops members the schema does not name, whatever they are called", () => {
    const { input, dropped } = withoutUnknown(
      JSON.parse('{"prompt":"a","foo":1,"toString":2,"__proto__":3}'),
      schema,
    );
    expect(input).toEqual({ prompt: "a" });
    expect(dropped).toEqual(["foo", "toString", "__proto__"]);
  });

  test("gives null only to nullable inputs without a default", () => {
    const nullable = {
      properties: { a: { type: "string", nullable: true }, b: { nullable: true, default: null } },
    };
    expect(withInjectedNulls({}, nullable)).toEqual({ a: null });
  });
});
