/** What the embedded engine says of its nodes, against the `/object_info` of real servers. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import type { Json } from "../support/embedded.ts";
import { TestEngine } from "../support/embedded.ts";
import { casePath, describeCases } from "../support/shared.ts";

/** Inputs whose values changed with the version, or are files of the machine; only their kind is compared. */
const OTHER_VALUES =
  /^(?:CLIPLoader\.type|DualCLIPLoader\.type|\w+\.(?:sampler_name|scheduler|config_name))$/;

/** `[type, config]` in one form: real servers leave out an empty config. */
function inputKind(path: string, [type, config = {}]: Json, isOld: boolean): Json {
  const { advanced, tooltip, control_after_generate, multiselect, ...rest } = config;
  if (OTHER_VALUES.test(path)) {
    return Array.isArray(type) ? "classic combo" : type;
  }
  // 0.3.64 has other hints for widgets and a few other ranges.
  return isOld ? [Array.isArray(type) ? "classic combo" : type] : [type, rest];
}

function comparable(name: string, info: Json, isOld: boolean): Json {
  const table = (inputs: Json) =>
    Object.fromEntries(
      Object.entries<Json>(inputs ?? {}).map(([input, spec]) => [
        input,
        inputKind(`${name}.${input}`, spec, isOld),
      ]),
    );
  return {
    required: table(info.input.required),
    optional: table(info.input.optional),
    order: info.input_order.required,
    output: info.output,
    output_name: info.output_name,
    output_node: info.output_node,
    ...(isOld
      ? {}
      : { hidden: info.input.hidden, module: info.python_module, category: info.category }),
  };
}

describeCases("object_info_core.json", () => {
  describe.each([
    ["0.33.0", "object_info_core.json"],
    ["0.3.64", "object_info_core_0.3.64.json"],
  ])("as %s", (version, file) => {
    const isOld = version === "0.3.64";
    const real: Json = JSON.parse(readFileSync(casePath(file), "utf8"));

    test("every class looks as the real one", async () => {
      await using engine = new TestEngine({}, ["--compat", version]);
      const ours: Json = await engine.get("/object_info");
      const pairs = (info: Json) =>
        Object.fromEntries(
          Object.keys(ours).map((name) => [
            name,
            info[name] === undefined ? "no such class" : comparable(name, info[name], isOld),
          ]),
        );
      expect(pairs(ours)).toEqual(pairs(real));
    });
  });
});
