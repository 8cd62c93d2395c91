import { describe, expect, test } from "bun:test";
import { AppError } from "../../src/platform/errors.ts";
import { Credentials } from "../../src/weights/credentials.ts";
import type { Trust } from "../../src/weights/plan-types.ts";
import type { SourceSettings } from "../../src/weights/sources.ts";
import { addressOf, looksLikeArchive } from "../../src/weights/sources.ts";

const settings: SourceSettings = { credentials: new Credentials() };

function address(
  url: string,
  trust: Trust = "operator",
  more: Partial<SourceSettings> = {},
): string {
  return addressOf({ url, trust }, { ...settings, ...more }).url;
}

function refusal(run: () => unknown): AppError {
  try {
    run();
  } catch (error) {
    if (error instanceof AppError) {
      return error;
    }
  }
  throw new Error("nothing was refused");
}

describe("addresses become the address of the file", () => {
  const Hub = "https://huggingface.co/org/repo/resolve/main/sub/a.safetensors";
  test.each([
    [Hub, Hub],
    [Hub.replace("resolve", "blob"), Hub],
    [Hub.replace("resolve", "raw"), Hub],
    [`${Hub}?download=true`, Hub],
    [Hub.replace("huggingface.co", "hf.co"), Hub],
    ["hf://org/repo/sub/a.safetensors", Hub],
    ["hf://org/repo@abc123/a b.bin", "https://huggingface.co/org/repo/resolve/abc123/a%20b.bin"],
    [
      "hf://org/repo@refs%2Fpr%2F1/a.bin",
      "https://huggingface.co/org/repo/resolve/refs%2Fpr%2F1/a.bin",
    ],
    ["hf://datasets/org/repo/a.bin", "https://huggingface.co/datasets/org/repo/resolve/main/a.bin"],
    [
      "https://civitai.com/api/download/models/456?type=Model",
      "https://civitai.com/api/download/models/456?type=Model",
    ],
    [
      "https://civitai.com/models/123/some-name?modelVersionId=456",
      "https://civitai.com/api/download/models/456",
    ],
    [
      "https://civitai.red/models/123?modelVersionId=456",
      "https://civitai.red/api/download/models/456",
    ],
    ["https://github.com/o/r/blob/main/w.pth", "https://github.com/o/r/raw/main/w.pth"],
    [
      "https://github.com/o/r/releases/download/v1/w.pth",
      "https://github.com/o/r/releases/download/v1/w.pth",
    ],
    ["https://user:pw@example.com/a.bin#part", "https://example.com/a.bin"],
    ["file:///models/a.bin", "/models/a.bin"],
    ["/models/with space/a.bin", "/models/with space/a.bin"],
    ["s3://bucket/dir/a.bin", "https://bucket.s3.amazonaws.com/dir/a.bin"],
    ["s3://dotted.bucket/a.bin", "https://s3.amazonaws.com/dotted.bucket/a.bin"],
  ])("%s", (given, expected) => {
    expect(address(given)).toBe(expected);
  });

  test("HF_ENDPOINT serves hf:// and the Hub's own addresses", () => {
    const credentials = new Credentials({ hfEndpoint: "https://mirror.example/" });
    expect(address("hf://o/r/a.bin", "operator", { credentials })).toBe(
      "https://mirror.example/o/r/resolve/main/a.bin",
    );
    expect(address("https://huggingface.co/o/r/blob/main/a.bin", "operator", { credentials })).toBe(
      "https://mirror.example/o/r/resolve/main/a.bin",
    );
  });

  test("s3 with keys is signed for the endpoint given, and anonymous without", () => {
    const endpoint = "http://127.0.0.1:7070";
    const signed = address("s3://b/k.bin", "operator", {
      s3: { accessKeyId: "id", secretAccessKey: "secret", endpoint, region: "us-east-1" },
    });
    expect(signed).toStartWith(`${endpoint}/b/k.bin?`);
    expect(signed).toContain("X-Amz-Signature=");
    expect(signed).not.toContain("secret");
    expect(address("s3://b/k.bin", "operator", { s3: { endpoint } })).toBe(`${endpoint}/b/k.bin`);
  });
});

describe("what holds no file is refused with the link to copy", () => {
  test.each([
    ["https://civitai.com/models/123/some-name", "modelVersionId"],
    ["https://huggingface.co/org/repo", "resolve/main"],
    ["https://huggingface.co/org/repo/tree/main/vae", "resolve/main"],
    ["hf://org/repo", "hf://owner/repo/path"],
    ["s3://bucket", "s3://bucket/path"],
    ["gopher://x/y", "https"],
    ["just words", "https://"],
  ])("%s", (given, hint) => {
    const error = refusal(() => address(given));
    expect(error.code).toBe("DOWNLOAD_REFUSED");
    expect(error.hint).toContain(hint);
  });

  test("a request may name neither s3 nor files of the machine nor hosts outside of the list", () => {
    expect(refusal(() => address("s3://b/k", "request")).code).toBe("DOWNLOAD_REFUSED");
    expect(refusal(() => address("file:///etc/passwd", "request")).code).toBe("DOWNLOAD_REFUSED");
    expect(refusal(() => address("/etc/passwd", "request")).code).toBe("DOWNLOAD_REFUSED");
    const allowedHosts = ["huggingface.co", "*.example.com"];
    const error = refusal(() =>
      address("https://evil.net/a.safetensors", "request", { allowedHosts }),
    );
    expect(error.hint).toContain("WEIGHTS_ALLOWED_HOSTS");
    expect(address("https://cdn.example.com/a.safetensors", "request", { allowedHosts })).toContain(
      "cdn",
    );
  });
});

test("archives are told by the end of their address", () => {
  const at = (url: string): boolean => looksLikeArchive({ url, trust: "operator" });
  expect(at("https://weights.replicate.delivery/default/x.safetensors.tar")).toBe(true);
  expect(at("https://h/x.tar.gz?sig=1")).toBe(true);
  expect(at("https://h/x.safetensors")).toBe(false);
});

describe("credentials go to their own host only", () => {
  const credentials = new Credentials({
    operator: { huggingFace: "hf_operator", civitai: "civ_operator" },
  });
  const bearer = (url: string, trust: Trust = "operator", own = credentials): string | undefined =>
    own.headersFor(url, trust)["authorization"];

  test.each([
    ["https://huggingface.co/a", "Bearer hf_operator"],
    ["https://civitai.com/api/download/models/1", "Bearer civ_operator"],
    ["https://civitai.red/api/download/models/1", "Bearer civ_operator"],
    ["http://huggingface.co/a", undefined],
    ["https://huggingface.co.evil.net/a", undefined],
    ["https://evil.net/huggingface.co", undefined],
    ["https://cdn-lfs.huggingface.co/a", undefined],
    ["https://cas-bridge.xethub.hf.co/a", undefined],
    ["https://b2.civitai.com/file", undefined],
    ["https://huggingface.co:8443/a", undefined],
  ])("%s", (url, expected) => {
    expect(bearer(url)).toBe(expected);
  });

  test("a request's sources never get the operator's tokens, only the request's own", () => {
    expect(bearer("https://huggingface.co/a", "request")).toBeUndefined();
    const withOwn = credentials.withRequest({ huggingFace: "hf_mine" });
    expect(bearer("https://huggingface.co/a", "request", withOwn)).toBe("Bearer hf_mine");
    expect(bearer("https://civitai.com/a", "request", withOwn)).toBeUndefined();
    expect(bearer("https://civitai.com/a", "operator", withOwn)).toBe("Bearer civ_operator");
  });

  test("a token with a line break can't make a second header", () => {
    const odd = new Credentials({ operator: { huggingFace: "hf_a\r\nx-evil: 1" } });
    expect(bearer("https://huggingface.co/a", "operator", odd)).toBe("Bearer hf_ax-evil:1");
  });
});
