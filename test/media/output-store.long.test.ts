/** The output store against a real S3 server: `versitygw` (`go install github.com/versity/versitygw/cmd/versitygw@latest`) over a folder. */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync } from "node:fs";
import { OutputStore } from "../../src/media/output-store.ts";
import { HttpClient } from "../../src/platform/http.ts";
import { tempDir } from "../support/temp-dir.ts";

const program = Bun.which("versitygw");
const ACCESS = "test-access";
const SECRET = "test-secret-key";

function freePort(): number {
  const listener = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { data: () => undefined },
  });
  const { port } = listener;
  listener.stop(true);
  return port;
}

if (program === null) {
  test.skip("a real S3 server: skipped, versitygw is not on PATH", () => undefined);
} else {
  test("a real S3 server takes outputs, and anybody reads them by their addresses", async () => {
    using dir = tempDir({
      "small.png": "\x89PNG",
      "ümlaut big.bin": new Uint8Array(9_000_000).fill(7),
    });
    mkdirSync(dir.join("store/results"), { recursive: true });
    mkdirSync(dir.join("meta"));
    const endpoint = `http://127.0.0.1:${freePort()}`;
    await using server = Bun.spawn(
      [program, "--port", endpoint.replace("http://", ""), "posix", "--nometa", dir.join("store")],
      {
        env: { ROOT_ACCESS_KEY_ID: ACCESS, ROOT_SECRET_ACCESS_KEY: SECRET, HOME: dir.path },
        stdio: ["ignore", "ignore", "ignore"],
      },
    );
    const answers = async (): Promise<boolean> =>
      await fetch(endpoint).then(
        () => true,
        () => false,
      );
    while (!(await answers())) {
      expect(server.exitCode).toBeNull();
      await Bun.sleep(10);
    }
    const http = new HttpClient();
    const store = (secret: string) =>
      new OutputStore({
        url: "s3://results/out",
        env: {
          AWS_ACCESS_KEY_ID: ACCESS,
          AWS_SECRET_ACCESS_KEY: secret,
          AWS_ENDPOINT_URL_S3: endpoint,
        },
        http,
        retryDelayMs: 1,
      });
    const files = [dir.join("small.png"), dir.join("ümlaut big.bin")];
    const urls = await store(SECRET).put(files, "run-1");
    for (const [index, url] of urls.entries()) {
      const body = Buffer.from(await (await fetch(url)).arrayBuffer());
      expect(body.equals(readFileSync(files[index] ?? ""))).toBe(true);
    }
    expect((await fetch(urls[0]?.replace("small", "other") ?? "")).status).toBe(403);
    await expect(store("wrong").put(files, "run-2")).rejects.toMatchObject({
      code: "AUTH_FORBIDDEN",
    });
    await http.close();
    server.kill();
  }, 60_000);
}
