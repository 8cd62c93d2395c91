import { describe, expect, test } from "bun:test";
import { isJsonObject, parseJson, stringifyJson } from "../../src/platform/json.ts";

describe("JSON with whole integers", () => {
  test.each([
    "9007199254740993",
    "18446744073709551615",
    "-9223372036854775808",
    "123456789012345678901234567890",
  ])("carries %s digit for digit", (digits) => {
    const text = `{"seed":${digits}}`;
    expect(stringifyJson(parseJson(text))).toBe(text);
  });

  test("leaves ordinary numbers, floats and digit strings alone", () => {
    const text = '{"a":1,"b":0.5,"c":1e+21,"d":"1234567890123456789012","e":9007199254740991}';
    expect(stringifyJson(parseJson(text))).toBe(text);
    expect(parseJson(text)).toEqual({
      a: 1,
      b: 0.5,
      c: 1e21,
      d: "1234567890123456789012",
      e: 9007199254740991,
    });
  });

  test("makes __proto__ an ordinary key", () => {
    const value = parseJson('{"__proto__":{"polluted":true},"n":12345678901234567890}');
    expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
    expect("polluted" in {}).toBe(false);
  });

  test("throws a SyntaxError on text that is no JSON", () => {
    expect(() => parseJson("{")).toThrow(SyntaxError);
  });
});

test("isJsonObject tells objects from lists and null", () => {
  expect([{}, [], null, "x"].map(isJsonObject)).toEqual([true, false, false, false]);
});
