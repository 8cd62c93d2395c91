/**
 * What a command of `bin/cog-comfyui` is, and how a command line becomes one: options, `--help`, usage errors.
 * Exit codes: 0 done, 1 failed, 2 wrong usage, 3 weights missing, 130 interrupted.
 */
import { parseArgs } from "node:util";
import { AppError } from "../platform/errors.ts";
import { stringifyJson } from "../platform/json.ts";

export const EXIT = { done: 0, failed: 1, usage: 2, missing: 3, interrupted: 130 } as const;

export interface OptionSpec {
  readonly type: "boolean" | "string";
  readonly short?: string;
  readonly multiple?: boolean;
  /** What stands for the value in the help: `name=value`. */
  readonly value?: string;
  readonly help: string;
}

/** What a command sees of its command line. */
export interface Invocation {
  readonly words: readonly string[];
  readonly json: boolean;
  flag(name: string): boolean;
  text(name: string): string | undefined;
  texts(name: string): readonly string[];
}

/** Where a command writes: its result to `out`, everything else to `err`. */
export interface Terminal {
  out(text: string): void;
  err(text: string): void;
  /** True when a person is looking: progress bars are drawn only then. */
  readonly isInteractive: boolean;
}

export interface Command<Services> {
  /** One or two words: `serve`, `weights check`. */
  readonly name: string;
  readonly summary: string;
  /** What follows the name in the usage line. */
  readonly usage: string;
  readonly options?: Readonly<Record<string, OptionSpec>>;
  /** Least and most positional words. */
  readonly words?: readonly [number, number];
  /** Examples shown by `--help`, each a full command line. */
  readonly examples?: readonly string[];
  run(invocation: Invocation, services: Services, terminal: Terminal): Promise<number>;
}

/** The command line itself is wrong: exit 2. */
export class UsageError extends AppError {
  constructor(message: string, hint?: string) {
    super("INPUT_INVALID", message, { hint });
  }
}

const COMMON: Readonly<Record<string, OptionSpec>> = {
  json: { type: "boolean", help: "print one JSON document to standard output" },
  help: { type: "boolean", short: "h", help: "show this help" },
};

/** The command that the first words name, and the rest of the line; undefined when there is none. */
export function findCommand<Services>(
  argv: readonly string[],
  commands: readonly Command<Services>[],
): { readonly command: Command<Services>; readonly rest: readonly string[] } | undefined {
  for (const length of [2, 1]) {
    const name = argv.slice(0, length).join(" ");
    const command = commands.find((candidate) => candidate.name === name);
    if (command !== undefined) {
      return { command, rest: argv.slice(length) };
    }
  }
  return undefined;
}

/**
 * Reads the options of one command.
 * @throws UsageError naming the option that is unknown or lacks its value
 */
export function parseInvocation<Services>(
  command: Command<Services>,
  argv: readonly string[],
): Invocation {
  const specs = { ...command.options, ...COMMON };
  const options = Object.fromEntries(
    Object.entries(specs).map(([name, { type, short, multiple }]) => [
      name,
      {
        type,
        ...(short === undefined ? {} : { short }),
        ...(multiple === undefined ? {} : { multiple }),
      },
    ]),
  );
  let parsed: ReturnType<typeof parseArgs>;
  try {
    parsed = parseArgs({ args: [...argv], options, allowPositionals: true, strict: true });
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.split(". ")[0] : String(cause);
    throw new UsageError(`${reason}`, `See \`cog-comfyui ${command.name} --help\`.`);
  }
  const [least, most] = command.words ?? [0, 0];
  const words = parsed.positionals;
  if (parsed.values["help"] !== true && (words.length < least || words.length > most)) {
    throw new UsageError(
      words.length < least
        ? `\`${command.name}\` needs ${least === 1 ? "an argument" : `${least} arguments`}: ${command.usage}`
        : `\`${command.name}\` does not take "${words[most]}"`,
      `Usage: cog-comfyui ${command.name} ${command.usage}`,
    );
  }
  const { values } = parsed;
  return {
    words,
    json: values["json"] === true,
    flag: (name) => values[name] === true,
    text: (name) => {
      const value = values[name];
      return typeof value === "string" ? value : undefined;
    },
    texts: (name) => {
      const value = values[name];
      return Array.isArray(value) ? value.filter((item) => typeof item === "string") : [];
    },
  };
}

/** The help of one command. */
export function describeCommand<Services>(command: Command<Services>): string {
  const rows = Object.entries({ ...command.options, ...COMMON }).map(([name, spec]) => {
    const value = spec.type === "string" ? ` ${spec.value ?? "VALUE"}` : "";
    return [
      `${spec.short === undefined ? "    " : `-${spec.short}, `}--${name}${value}`,
      spec.help,
    ] as const;
  });
  const width = Math.max(...rows.map(([left]) => left.length));
  const examples = command.examples ?? [];
  return [
    `${command.summary}`,
    "",
    `Usage: cog-comfyui ${command.name} ${command.usage}`.trimEnd(),
    "",
    ...rows.map(([left, help]) => `  ${left.padEnd(width)}  ${help}`),
    ...(examples.length === 0 ? [] : ["", "Examples:", ...examples.map((line) => `  ${line}`)]),
    "",
  ].join("\n");
}

/** The overview of all commands. */
export function describeCommands<Services>(commands: readonly Command<Services>[]): string {
  const width = Math.max(...commands.map(({ name }) => name.length));
  return [
    "cog-comfyui: ComfyUI workflows as a Cog-compatible API whose weight loading never surprises.",
    "",
    "Usage: cog-comfyui COMMAND [OPTIONS]        (without a command: serve)",
    "",
    ...commands.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`),
    "",
    "`cog-comfyui COMMAND --help` tells more. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 weights missing, 130 interrupted.",
    "",
  ].join("\n");
}

/** Prints an error for people or, with `--json`, as one document; returns the exit code that goes with it. */
export function reportError(error: unknown, json: boolean, terminal: Terminal): number {
  const known = error instanceof AppError ? error : undefined;
  if (json) {
    const message = error instanceof Error ? error.message : String(error);
    terminal.out(
      `${stringifyJson({ error: known?.toJSON() ?? { code: "INTERNAL", message } }, 2)}\n`,
    );
  } else if (known !== undefined) {
    terminal.err(`${known.describe()}\n`);
  } else {
    // Not one of ours: a bug, whose stack is what its reporter needs.
    terminal.err(
      `Internal error: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    );
  }
  if (error instanceof UsageError) {
    return EXIT.usage;
  }
  switch (known?.code) {
    case "WEIGHTS_MISSING":
      return EXIT.missing;
    case "CONFIG_INVALID":
      return EXIT.usage;
    case "CANCELED":
      return EXIT.interrupted;
    default:
      return EXIT.failed;
  }
}

/** Finds, parses and runs a command. The only place where a command's error becomes an exit code. */
export async function runCommand<Services>(
  argv: readonly string[],
  commands: readonly Command<Services>[],
  context: { readonly services: Services; readonly terminal: Terminal },
): Promise<number> {
  const { services, terminal } = context;
  const found = findCommand(argv, commands);
  if (found === undefined) {
    const wantsHelp = argv.some((word) => word === "--help" || word === "-h" || word === "help");
    const group = commands.filter(({ name }) => name.startsWith(`${argv[0]} `));
    (wantsHelp ? terminal.out : terminal.err)(
      describeCommands(group.length > 0 ? group : commands),
    );
    if (wantsHelp) {
      return EXIT.done;
    }
    terminal.err(`\n"${argv.slice(0, 2).join(" ")}" is no command.\n`);
    return EXIT.usage;
  }
  const asksJson = argv.includes("--json");
  try {
    const invocation = parseInvocation(found.command, found.rest);
    if (invocation.flag("help")) {
      terminal.out(describeCommand(found.command));
      return EXIT.done;
    }
    return await found.command.run(invocation, services, terminal);
  } catch (error) {
    return reportError(error, asksJson, terminal);
  }
}
