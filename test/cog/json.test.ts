/** JSON as Cog reads and writes it. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { ExactNumber, JsonReader, JsonSyntaxError } from "../../src/cog/json-reader.ts";
import { compareBytes, printFloat, writeJson } from "../../src/cog/json-writer.ts";

function read(text: string): unknown {
  const reader = new JsonReader(text);
  const value = reader.value();
  reader.end();
  return value;
}

function messageFor(text: string): string {
  try {
    read(text);
    return "accepted";
  } catch (error) {
    return error instanceof JsonSyntaxError ? error.message : `not ours: ${String(error)}`;
  }
}

describe("reading", () => {
  test("gives what JSON.parse gives for every document", () => {
    fc.assert(
      fc.property(fc.json({ maxDepth: 6 }), (text) => {
        const ours = writeJson(read(text));
        expect(JSON.parse(ours)).toEqual(JSON.parse(text));
      }),
    );
  });

  test("refuses every text with a message of its own, never with another error", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        expect(messageFor(text)).not.toStartWith("not ours");
      }),
      { numRuns: 2_000 },
    );
  });

  test("refuses or accepts mutilated documents, never with another error", () => {
    const mutilated = fc
      .tuple(
        fc.json({ maxDepth: 4 }),
        fc.nat(),
        fc.constantFrom("", ",", "}", "]", '"', "\\", "1e", ":"),
      )
      .map(([text, at, junk]) => {
        const place = at % (text.length + 1);
        return text.slice(0, place) + junk + text.slice(place + 1);
      });
    fc.assert(
      fc.property(mutilated, (text) => {
        const message = messageFor(text);
        let isJson = true;
        try {
          JSON.parse(text);
        } catch {
          isJson = false;
        }
        // What JSON.parse takes and Cog does not may come before a mistake of either.
        if (!/out of range|hex escape/.test(message)) {
          expect(message === "accepted").toBe(isJson);
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test.each([
    ["an integer beyond 2^53", "12345678901234567890123", 12345678901234567890123n],
    ["a negative one", "-9007199254740993", -9007199254740993n],
    ["an exponent", "1e2", 100],
    ["a pair of surrogates", '"\\ud83d\\ude00"', "😀"],
  ])("keeps %s", (_name, text, value) => {
    expect(read(text)).toBe(value);
  });

  test.each([
    ["an overflowing number", "[1e400]", "[0]: number out of range at line 1 column 6"],
    ["half a surrogate pair", '"\\ud800"', "unexpected end of hex escape at line 1 column 8"],
    ["a byte order mark", "\ufeff{}", "expected value at line 1 column 1"],
    [
      "a control character",
      '{"a":"x\ty"}',
      "a: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 8",
    ],
    ["columns in bytes", '{"é":tru}', "é: expected ident at line 1 column 10"],
    ["lines", '{"a":\n\n  x}', "a: expected value at line 3 column 3"],
    ["a second document", "{} {}", "trailing characters at line 1 column 4"],
  ])("refuses %s", (_name, text, message) => {
    expect(messageFor(text)).toBe(message);
  });

  test("refuses the 128th level and takes the 127th", () => {
    expect(messageFor("[".repeat(127) + "]".repeat(127))).toBe("accepted");
    expect(messageFor("[".repeat(128) + "]".repeat(128))).toContain("recursion limit exceeded");
  });

  test("passes over a value of any depth without recursing", () => {
    const depth = 200_000;
    const reader = new JsonReader(`${"[".repeat(depth)}1e999${"]".repeat(depth)}`);
    reader.skip();
    expect(() => reader.end()).not.toThrow();
  });

  test("makes __proto__ an ordinary member", () => {
    const value = read('{"__proto__":{"polluted":true}}');
    expect(Object.keys(Object(value))).toEqual(["__proto__"]);
    expect("polluted" in {}).toBe(false);
  });

  test("tells numbers by their spelling where asked to", () => {
    const value = new JsonReader("[5.0,5,-0,18446744073709551616]", { exact: true }).value();
    expect(writeJson(value)).toBe("[5.0,5,-0.0,1.8446744073709552e+19]");
    expect(Array.isArray(value) && value[0]).toBeInstanceOf(ExactNumber);
  });
});

describe("writing", () => {
  test("sorts keys at every level by their bytes and leaves no blanks", () => {
    expect(
      writeJson({
        b: [{ z: 1, a: 2 }],
        a: { "10": 1, "9": 2, Z: 3 },
        ...Object.fromEntries([
          ["é", 4],
          ["😀", 5],
          ["\uffee", 6],
        ]),
      }),
    ).toBe('{"a":{"10":1,"9":2,"Z":3},"b":[{"a":2,"z":1}],"é":4,"\uffee":6,"😀":5}');
  });

  test("orders any two keys as their UTF-8 bytes", () => {
    const key = fc.string({ unit: "binary" });
    fc.assert(
      fc.property(key, key, (one, other) => {
        expect(Math.sign(compareBytes(one, other))).toBe(
          Buffer.compare(Buffer.from(one), Buffer.from(other)),
        );
      }),
    );
  });

  test("is read back as what was written", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(JSON.parse(writeJson(value))).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
  });

  test("writes every digit of a big integer and leaves undefined members out", () => {
    expect(writeJson({ seed: 18446744073709551615n, gone: undefined })).toBe(
      '{"seed":18446744073709551615}',
    );
  });

  test.each([
    [5, "5.0"],
    [0.1, "0.1"],
    [1e15, "1000000000000000.0"],
    [1e16, "1e+16"],
    [1.5e16, "1.5e+16"],
    [0.00001, "0.00001"],
    [0.000001, "1e-6"],
    [-0, "-0.0"],
  ])("prints the float %p as %s", (value, text) => {
    expect(printFloat(value)).toBe(text);
  });
});
