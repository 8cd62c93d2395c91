import { describe, expect, test } from "bun:test";
import { AppError } from "../../src/platform/errors.ts";
import { AddressGuard } from "../../src/platform/guard.ts";

async function codeOf(guard: AddressGuard, url: string): Promise<string> {
  try {
    await guard.check(url);
    return "allowed";
  } catch (error) {
    return error instanceof AppError ? error.code : String(error);
  }
}

describe("AddressGuard", () => {
  const closed = new AddressGuard([]);

  test.each([
    ["http://127.0.0.1/", "loopback"],
    ["http://127.1:5000/", "loopback written short"],
    ["http://2130706433/", "loopback as one number"],
    ["http://0x7f000001/", "loopback in hexadecimal"],
    ["http://localhost:8188/", "a name for loopback"],
    ["http://[::1]/", "IPv6 loopback"],
    ["http://[::ffff:10.0.0.1]/", "IPv4 mapped into IPv6"],
    ["http://[64:ff9b::a00:1]/", "IPv4 behind NAT64"],
    ["http://[fd12:3456::1]/", "unique local IPv6"],
    ["http://[fe80::1]/", "link-local IPv6"],
    ["http://10.1.2.3/", "a private network"],
    ["http://172.31.255.255/", "a private network"],
    ["http://192.168.0.10/", "a private network"],
    ["http://169.254.1.1/", "link-local"],
    ["http://100.64.0.1/", "carrier-grade NAT"],
    ["http://0.0.0.0/", "this host"],
    ["ftp://example.com/", "another scheme"],
    ["file:///etc/passwd", "a file"],
  ])("refuses %s (%s)", async (url) => {
    expect(await codeOf(closed, url)).toBe("FETCH_REFUSED");
  });

  test("lets public addresses through", async () => {
    expect(await codeOf(closed, "https://93.184.216.34/a")).toBe("allowed");
    expect(await codeOf(closed, "https://[2606:2800:220:1::1]/a")).toBe("allowed");
  });

  test("opens exactly the hosts and networks that the operator lists", async () => {
    const guard = new AddressGuard(["10.1.0.0/16", "localhost"]);
    expect(await codeOf(guard, "http://10.1.9.9/")).toBe("allowed");
    expect(await codeOf(guard, "http://10.2.9.9/")).toBe("FETCH_REFUSED");
    expect(await codeOf(guard, "http://localhost/")).toBe("allowed");
    expect(await codeOf(guard, "http://127.0.0.1/")).toBe("FETCH_REFUSED");
  });

  test("never opens the cloud metadata service, whatever is listed", async () => {
    for (const guard of [new AddressGuard(["1"]), new AddressGuard(["169.254.0.0/16"])]) {
      expect(await codeOf(guard, "http://169.254.169.254/latest/meta-data/")).toBe("FETCH_REFUSED");
      expect(await codeOf(guard, "http://[::ffff:169.254.169.254]/")).toBe("FETCH_REFUSED");
    }
    expect(await codeOf(new AddressGuard(["1"]), "http://192.168.1.1/")).toBe("allowed");
  });

  test("names the variable that would allow a refused address", async () => {
    const guard = new AddressGuard([], { variable: "WEBHOOK_ALLOW_PRIVATE" });
    const refused = await guard
      .check("http://127.0.0.1:9/hook?token=abcdef")
      .catch((error) => error);
    expect(refused.hint).toContain("WEBHOOK_ALLOW_PRIVATE");
    expect(refused.message).not.toContain("abcdef");
  });
});
