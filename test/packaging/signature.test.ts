import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { committedDocument, renderSignature } from "../../scripts/signature.ts";
import {
  boolInput,
  choiceInput,
  fileInput,
  floatInput,
  intInput,
  requiredFileInput,
  secretInput,
  stringInput,
} from "../../src/cog/inputs.ts";
import { openApiDocument } from "../../src/cog/openapi.ts";

const ROOT = join(import.meta.dir, "../..");
const python = Bun.which("python3");

function signatureOf(inputs: z.ZodObject): string {
  const output = { type: "array", items: { type: "string", format: "uri" } };
  return renderSignature(openApiDocument({ inputs, output, streaming: false }, "0.0.0"));
}

/** The parameters alone. */
function parametersOf(inputs: z.ZodObject): string {
  const [, rest = ""] = signatureOf(inputs).split("        self,\n");
  return rest.split("    ) -> List[Path]:")[0] ?? "";
}

describe("cog/signature.py", () => {
  test("is what predict.ts says; else run bun scripts/signature.ts", async () => {
    const committed = readFileSync(join(ROOT, "cog/signature.py"), "utf8");
    expect(committed).toBe(renderSignature(await committedDocument()));
  });

  test("writes each kind of input as Cog's Python has it, in the order of the zod object", () => {
    const inputs = z.object({
      text: stringInput({ description: 'Say "so"\nand more', default: "", maxLength: 9 }),
      needed: requiredFileInput({ description: "A file", accept: "image/*" }),
      count: intInput({ default: 3, min: 0, max: 100 }),
      weight: floatInput({ default: 0.5 }),
      hint: fileInput({}),
      how: choiceInput(["webp", "jpg"], { default: "webp" }),
      isNew: boolInput({ default: true }),
      token: secretInput({}),
    });
    expect(parametersOf(inputs)).toMatchInlineSnapshot(`
      "        text: str = Input(
                  description='''Say "so"
      and more''',
                  default="",
                  max_length=9,
              ),
              needed: Path = Input(
                  description="A file",
                  accept="image/*",
              ),
              count: int = Input(
                  default=3,
                  ge=0,
                  le=100,
              ),
              weight: float = Input(
                  default=0.5,
              ),
              hint: Optional[Path] = Input(
                  default=None,
              ),
              how: str = Input(
                  default="webp",
                  choices=["webp", "jpg"],
              ),
              isNew: bool = Input(
                  default=True,
              ),
              token: Secret = Input(
                  default="",
              ),
      "
    `);
  });

  test("refuses a text that the CLI would read otherwise than Python", () => {
    const inputs = z.object({ text: stringInput({ description: `it's a "text"`, default: "" }) });
    expect(() => signatureOf(inputs)).toThrow("one kind of quotes");
  });

  test("refuses an input that Python's signature can't express", () => {
    expect(() => signatureOf(z.object({ list: z.array(z.string()) }))).toThrow("type array");
  });

  test.if(python !== null)("is Python", async () => {
    const program = "import ast, sys; ast.parse(sys.stdin.read())";
    const child = Bun.spawn([python ?? "python3", "-c", program], {
      stdin: new Blob([readFileSync(join(ROOT, "cog/signature.py"))]),
      stdout: "ignore",
      stderr: "pipe",
    });
    expect({ err: await new Response(child.stderr).text(), code: await child.exited }).toEqual({
      err: "",
      code: 0,
    });
  });
});
