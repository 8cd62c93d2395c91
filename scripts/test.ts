/**
 * `npm test`: lint, types and the suite, closed by one line of the form `312 passed, 0 failed, 4 skipped`.
 * `--long` runs the slow files (kill rounds, soaks, fuzzing) instead, or those of them that are named; further
 * arguments go to `bun test`.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PROJECT_ROOT } from "../src/platform/project-root.ts";

interface Step {
  readonly name: string;
  readonly command: readonly string[];
}

interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: readonly string[];
}

const bun = process.execPath;
const isLong = process.argv.includes("--long");
const rest = process.argv.slice(2).filter((argument) => argument !== "--long");
const junit = join(tmpdir(), `cog-comfyui-junit-${process.pid}.xml`);

const checks: readonly Step[] = [
  { name: "lint", command: [bun, "x", "biome", "ci", "--colors=off", "."] },
  { name: "types", command: [bun, "x", "tsc", "--noEmit"] },
];

async function run(command: readonly string[]): Promise<number> {
  const child = Bun.spawn([...command], {
    cwd: PROJECT_ROOT,
    stdio: ["ignore", "inherit", "inherit"],
  });
  return await child.exited;
}

/** The long files: `bun test` runs a file that is named in full even where the configuration ignores it by pattern. */
function testCommand(): string[] {
  const report = ["--reporter=junit", `--reporter-outfile=${junit}`, "--only-failures", ...rest];
  if (!isLong) {
    // Tests wait on conditions; this is only how long a hung one may hold up a slow, busy machine.
    return [bun, "test", "--timeout=60000", ...report];
  }
  const isChosen = rest.some((argument) => argument.endsWith(".long.test.ts"));
  // Containers have a tier of their own, which brings an engine first: `npm run test:container`.
  const files = isChosen
    ? []
    : [...new Bun.Glob("test/**/*.long.test.ts").scanSync(PROJECT_ROOT)]
        .filter((file) => !file.startsWith("test/container/"))
        .sort();
  return [
    bun,
    "test",
    "--path-ignore-patterns=",
    "--timeout=600000",
    ...report,
    ...files.map((file) => `./${file}`),
  ];
}

function unescapeXml(text: string): string {
  return text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&apos;", "'")
    .replaceAll("&amp;", "&");
}

function readReport(): Counts {
  if (!existsSync(junit)) {
    return { passed: 0, failed: 0, skipped: [] };
  }
  const xml = readFileSync(junit, "utf8");
  rmSync(junit);
  const cases = [...xml.matchAll(/<testcase name="([^"]*)"[^>]*?(\/>|>([\s\S]*?)<\/testcase>)/g)];
  const has = (mark: string) => cases.filter((found) => (found[3] ?? "").includes(mark));
  const skipped = has("<skipped").map((found) => unescapeXml(found[1] ?? ""));
  const failed = has("<failure").length + has("<error").length;
  return { passed: cases.length - failed - skipped.length, failed, skipped };
}

const failedChecks: string[] = [];
if (!isLong && rest.length === 0) {
  for (const { name, command } of checks) {
    if ((await run(command)) !== 0) {
      failedChecks.push(name);
    }
  }
}
const testExit = await run(testCommand());
const { passed, failed, skipped } = readReport();
for (const title of skipped) {
  process.stdout.write(`skipped: ${title}\n`);
}
for (const name of failedChecks) {
  process.stdout.write(`failed: ${name}\n`);
}
// A run that broke before it could count (a syntax error, a crash) is a failure even with no failed test.
const broken = testExit !== 0 && failed === 0 ? 1 : 0;
const failures = failed + failedChecks.length + broken;
process.stdout.write(`${passed} passed, ${failures} failed, ${skipped.length} skipped\n`);
process.exit(failures === 0 ? 0 : 1);
