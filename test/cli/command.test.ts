import { describe, expect, test } from "bun:test";
import type { Command, Terminal } from "../../src/cli/command.ts";
import { runCommand } from "../../src/cli/command.ts";
import { AppError, CanceledError } from "../../src/platform/errors.ts";

interface Written extends Terminal {
  readonly lines: { out: string; err: string };
}

function terminal(): Written {
  const lines = { out: "", err: "" };
  return {
    lines,
    out: (text) => {
      lines.out += text;
    },
    err: (text) => {
      lines.err += text;
    },
    isInteractive: false,
  };
}

const commands: Command<null>[] = [
  {
    name: "weights check",
    summary: "Look",
    usage: "FILE… [--set name=value]",
    words: [1, 2],
    options: {
      set: { type: "string", multiple: true, short: "s", value: "name=value", help: "set it" },
    },
    run: (invocation, _services, { out }) => {
      out(JSON.stringify([invocation.words, invocation.texts("set"), invocation.json]));
      return Promise.resolve(0);
    },
  },
  {
    name: "fail",
    summary: "Fails",
    usage: "CODE",
    words: [1, 1],
    run: ({ words: [kind] }) => {
      if (kind === "missing") {
        throw new AppError("WEIGHTS_MISSING", "Missing required weights: a", { hint: "Pull it." });
      }
      throw kind === "canceled" ? new CanceledError() : new Error("a bug");
    },
  },
];

async function run(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const at = terminal();
  const code = await runCommand(argv, commands, { services: null, terminal: at });
  return { code, ...at.lines };
}

describe("runCommand", () => {
  test("finds a two-word command and reads its words and options in any order", async () => {
    expect(await run("weights", "check", "-s", "a=1", "f.json", "--json", "--set", "b=2")).toEqual({
      code: 0,
      out: '[["f.json"],["a=1","b=2"],true]',
      err: "",
    });
  });

  test("answers an unknown option, a missing word and a surplus one with exit 2 and what is right", async () => {
    for (const argv of [
      ["weights", "check", "--nope", "x"],
      ["weights", "check"],
      ["weights", "check", "1", "2", "3"],
    ]) {
      const { code, out, err } = await run(...argv);
      expect([code, out]).toEqual([2, ""]);
      expect(err).toMatch(/--nope|needs an argument|does not take "3"/);
    }
  });

  test("lists a group's commands when only the group is named", async () => {
    const { code, err } = await run("weights");
    expect(code).toBe(2);
    expect(err).toContain("weights check");
    expect(err).not.toContain("Fails");
  });

  test("prints help on standard output and exits 0", async () => {
    expect((await run("--help")).out).toContain("weights check");
    const { code, out } = await run("weights", "check", "--help");
    expect(code).toBe(0);
    expect(out).toContain("--set name=value");
  });

  test("turns errors into exit codes: 3 for missing weights, 130 for a cancel, 1 for a bug", async () => {
    expect(await run("fail", "missing")).toEqual({
      code: 3,
      out: "",
      err: "Missing required weights: a\nPull it.\n",
    });
    expect((await run("fail", "canceled")).code).toBe(130);
    expect((await run("fail", "bug")).code).toBe(1);
  });

  test("prints an error as one JSON document with --json", async () => {
    const { out, err } = await run("fail", "missing", "--json");
    expect(JSON.parse(out)).toEqual({
      error: { code: "WEIGHTS_MISSING", message: "Missing required weights: a", hint: "Pull it." },
    });
    expect(err).toBe("");
  });
});
