import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { bareUrl, Redactor, redactUrl } from "../../src/platform/redact.ts";

describe("redactUrl", () => {
  test.each([
    [
      "https://civitai.com/api/download/models/1?token=abc123&type=Model",
      "https://civitai.com/api/download/models/1?token=***&type=Model",
    ],
    ["https://u:pw@host/x", "https://***:***@host/x"],
    [
      "https://b.s3.amazonaws.com/k?X-Amz-Signature=ff00&X-Amz-Date=1",
      "https://b.s3.amazonaws.com/k?X-Amz-Signature=***&X-Amz-Date=***",
    ],
    ["https://host/x?a=1", "https://host/x?a=1"],
    ["not a url", "not a url"],
    ["data:image/png;base64,iVBORw0KGgo", "data:image/png;base64,…"],
  ])("shows %s as %s", (url, expected) => {
    expect(redactUrl(url)).toBe(expected);
  });
});

test("bareUrl keeps only what identifies the object", () => {
  expect(bareUrl("https://u:p@host/a/b?X-Amz-Signature=1#f")).toBe("https://host/a/b");
});

describe("Redactor", () => {
  test("masks secrets it was told, bearer tokens, known token forms and URLs inside a sentence", () => {
    const redactor = new Redactor(["correct-horse"]);
    const text =
      "GET https://h/x?token=topsecret with Authorization: Bearer abcdefghij, hf_abcdefghijklmnop and correct-horse";
    const clean = redactor.text(text);
    for (const secret of ["topsecret", "abcdefghij", "hf_abcdefghijklmnop", "correct-horse"]) {
      expect(clean).not.toContain(secret);
    }
    expect(clean).toContain("https://h/x?token=***");
  });

  test("never lets a known secret through, whatever surrounds it", () => {
    const secret = "s3cr3t-t0ken-value";
    const redactor = new Redactor([secret]);
    fc.assert(
      fc.property(fc.string(), fc.string(), (before, after) => {
        expect(redactor.text(`${before}${secret}${after}`)).not.toContain(secret);
      }),
    );
  });

  test("forgets a secret of one request", () => {
    const redactor = new Redactor();
    redactor.add("request-token");
    expect(redactor.text("request-token")).toBe("***");
    redactor.remove("request-token");
    expect(redactor.text("request-token")).toBe("request-token");
  });
});
