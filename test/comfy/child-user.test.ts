import { expect, test } from "bun:test";
import { childEnv } from "../../src/comfy/child-env.ts";

const OPTIONS = { offline: true, pass: [] };

test("a process whose uid has no name gets one, so that torch can ask who it is", () => {
  expect(childEnv({ PATH: "/bin" }, OPTIONS)["USER"]).toBe("cog");
  expect(childEnv({ LOGNAME: "me" }, OPTIONS)["USER"]).toBe("me");
  expect(childEnv({ USER: "me" }, OPTIONS)["USER"]).toBe("me");
});
