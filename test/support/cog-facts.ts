/**
 * The facts of a run that do not differ between two equal servers, in the form of the recordings' `normalised`. The
 * same functions are applied to the recording itself, which proves them right, and to the run being judged.
 */
import type { Run, Scenario } from "./cog-scenario.ts";
import type { RawAnswer } from "./raw-http.ts";

export type Facts = unknown;

interface JsonMap {
  [key: string]: unknown;
}

const PLAIN_HEADERS = new Set(["content-type", "content-length", "date", "connection"]);
const TERMINAL = ["succeeded", "failed", "canceled"];

function isMap(value: unknown): value is JsonMap {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** True for JSON without blanks whose keys ascend at every level; health has an order of its own. */
function isCompactSorted(text: string): boolean {
  const value = parsed(text);
  const isCompact = !/[\s]/.test(text.replace(/"(?:[^"\\]|\\.)*"/g, '""'));
  const isHealth = isMap(value) && "setup" in value && "version" in value;
  return isCompact && (isHealth || isSorted(value));
}

function isSorted(value: unknown): boolean {
  if (Array.isArray(value)) {
    return value.every(isSorted);
  }
  if (!isMap(value)) {
    return true;
  }
  const keys = Object.keys(value);
  return (
    keys.every((key, at) => at === 0 || (keys[at - 1] ?? "") < key) &&
    keys.every((key) => isSorted(value[key]))
  );
}

/** Replaces what differs from run to run by its kind. */
function masked(value: unknown, isAnswer: boolean): unknown {
  if (!isMap(value)) {
    return value;
  }
  if ("setup" in value && "version" in value) {
    return maskedHealth(value);
  }
  if ("openapi" in value) {
    return maskedDocument(value);
  }
  const isPrediction = "id" in value && "status" in value;
  const isFailure = value["status"] === "failed" || value["status"] === "canceled";
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]): [string, unknown] => {
      switch (key) {
        case "id":
          return [key, /^pred_[0-9a-f]{16}$/.test(String(inner)) ? "<pred_hex>" : inner];
        case "logs":
          return [key, isAnswer && isFailure && inner === "" ? "" : "<text>"];
        case "error":
          return [key, isPrediction ? "<error>" : inner];
        case "cog_version":
          return [key, "<version>"];
        case "metrics":
          return [key, maskedMetrics(inner)];
        case "output":
          return [key, Array.isArray(inner) ? inner.map(maskedOutput) : maskedOutput(inner)];
        default:
          return [key, inner];
      }
    }),
  );
}

/** The document without what its author wrote: versions and the descriptions of inputs. */
function maskedDocument(value: JsonMap): unknown {
  const text = JSON.stringify(value, (_key, inner: unknown) =>
    isMap(inner) && "x-order" in inner ? { ...inner, description: "<text>" } : inner,
  );
  return { ...Object(parsed(text)), info: { title: "Cog", version: "<version>" } };
}

function maskedMetrics(value: unknown): unknown {
  return isMap(value) && typeof value["predict_time"] === "number"
    ? { ...value, predict_time: "<seconds>" }
    : value;
}

function maskedOutput(value: unknown): unknown {
  return typeof value === "string"
    ? value
        .replace(/^(data:[^,]*,).+$/s, "$1<bytes>")
        .replace(/^http:\/\/127\.0\.0\.1:\d+\/up\/.*\.(\w+)$/, "<helper>/up/<name>.$1")
    : value;
}

function maskedHealth(value: JsonMap): JsonMap {
  const setup = isMap(value["setup"]) ? value["setup"] : {};
  const stamp = (text: unknown): string =>
    /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/.test(String(text))
      ? "<rfc3339 +00:00>"
      : String(text);
  return {
    ...value,
    setup: Object.fromEntries(
      Object.entries(setup).map(([key, inner]) => {
        if (key === "logs") {
          return [key, "<text>"];
        }
        return [key, key.endsWith("_at") ? stamp(inner) : inner];
      }),
    ),
    version: { coglet: "<version>" },
  };
}

const DETAIL_PREFIX =
  /^(Failed to (?:parse the request body as JSON|deserialize the JSON body into the target type)): .*$/s;

/** Status, type and body of one answer. */
export function answerFacts(answer: RawAnswer | undefined): JsonMap {
  if (answer === undefined) {
    return { status: "none" };
  }
  const type = answer.headers.get("content-type") ?? null;
  const others = [...answer.headers].filter(
    ([name]) => !PLAIN_HEADERS.has(name) && name !== "transfer-encoding",
  );
  const isJson = type === "application/json";
  const body = isJson
    ? masked(parsed(answer.body), true)
    : answer.body.replace(DETAIL_PREFIX, "$1: <detail>");
  return {
    status: answer.status,
    type,
    body,
    ...(isJson && answer.body !== "" ? { compact_sorted: isCompactSorted(answer.body) } : {}),
    ...(others.length > 0 ? { other_headers: Object.fromEntries(others) } : {}),
  };
}

function hookFacts(run: Run): JsonMap[] {
  // Quick webhooks overtake each other; an earlier state is a shorter one, and the last state comes last.
  const rank = (body: unknown): number =>
    JSON.stringify(body).includes('"processing"')
      ? JSON.stringify(body).length
      : Number.POSITIVE_INFINITY;
  return run.hooks
    .filter(({ body }) => body !== "")
    .map(
      ({ method, body }): JsonMap => ({
        method,
        body: masked(parsed(body), false),
        compact_sorted: isCompactSorted(body),
      }),
    )
    .sort((one, other) => (rank(one["body"]) < rank(other["body"]) ? -1 : 1));
}

function hookBodies(run: Run): JsonMap[] {
  return run.hooks.map(({ body }) => parsed(body)).filter(isMap);
}

function statuses(run: Run): unknown[] {
  return hookFacts(run).map(({ body }) => (isMap(body) ? body["status"] : undefined));
}

function bodyOf(answer: RawAnswer | undefined): JsonMap {
  const value = parsed(answer?.body ?? "");
  return isMap(value) ? value : {};
}

function sseFacts(answer: RawAnswer | undefined): JsonMap {
  const blocks = (answer?.body ?? "")
    .split("\n\n")
    .filter((block) => block !== "" && !block.startsWith(":"));
  const fields = blocks.map((block) => block.split("\n").map((line) => line.split(": ")[0] ?? ""));
  const events = blocks.map((block) => ({
    event: /^event: (.*)$/m.exec(block)?.[1],
    data: parsed(/^data: (.*)$/m.exec(block)?.[1] ?? ""),
  }));
  const logs = events
    .filter(({ event }) => event === "log")
    .map(({ data }) => Object.keys(isMap(data) ? data : {}).join(","));
  return {
    status: answer?.status,
    type: answer?.headers.get("content-type"),
    cache: answer?.headers.get("cache-control"),
    fields: [...new Set(fields.flat())].sort(),
    events: events
      .filter(({ event }) => event !== "log" && event !== "metric")
      .map(({ event, data }) => ({ event, data: maskedEvent(data) })),
    log_shape: [...new Set(logs)],
  };
}

function maskedEvent(data: unknown): unknown {
  return isMap(data) && "chunk" in data
    ? { ...data, chunk: maskedOutput(data["chunk"]) }
    : masked(data, false);
}

function sent(request: string | undefined): JsonMap {
  const body = parsed(request?.split("\r\n\r\n").slice(1).join("\r\n\r\n") ?? "");
  return isMap(body) ? body : {};
}

/** The echo of an input, told by whether it is what was sent. */
function withEcho(facts: JsonMap, request: string | undefined): JsonMap {
  const body = facts["body"];
  const input = sent(request)["input"];
  const isSame =
    isMap(body) &&
    isMap(input) &&
    isMap(body["input"]) &&
    sortedText(body["input"]) === sortedText(input);
  return isSame && isMap(body) ? { ...facts, body: { ...body, input: "<as sent>" } } : facts;
}

function sortedText(value: JsonMap): string {
  return JSON.stringify(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}

const at = (run: Run, index: number): RawAnswer | undefined => run.answers.at(index);
const last = (run: Run): JsonMap => answerFacts(at(run, -1));
const mentionsWeight = (text: unknown): boolean => String(text).includes("conformance-missing");

type Extract = (run: Run, scenario: Scenario) => Facts;

function schemas(run: Run): JsonMap {
  const components = bodyOf(at(run, -1))["components"];
  const all = isMap(components) ? components["schemas"] : undefined;
  return isMap(all) ? all : {};
}

function schemaFacts(run: Run, path: readonly string[]): unknown {
  let value: unknown = schemas(run);
  for (const step of path) {
    value = isMap(value) ? value[step] : undefined;
  }
  return isMap(value) && "description" in value && path.includes("properties")
    ? { ...value, description: "<text>" }
    : value;
}

function paths(run: Run): JsonMap {
  const value = bodyOf(at(run, -1))["paths"];
  return isMap(value) ? value : {};
}

function isFinished(answer: RawAnswer | undefined): unknown {
  return TERMINAL.includes(String(bodyOf(answer)["status"])) ? "a finished prediction" : "no";
}

/** Facts of the scenarios whose form is their own; the first pattern that fits decides. */
const OWN: readonly (readonly [RegExp, Extract])[] = [
  [
    /^(body\.no-content-type|json\.null\.)/,
    (run) => ({ status: at(run, -1)?.status, body: isFinished(at(run, -1)) }),
  ],
  [/^busy\.async$/, (run) => ({ ...last(run), webhooks: run.hooks.length })],
  [/^busy\.openapi$/, (run) => run.answers.slice(1).map((answer) => answer?.status)],
  [/^cancel\.async$/, (run) => ({ cancel: last(run), webhook: hookFacts(run) })],
  [
    /^cancel\.sync$/,
    (run) => ({ cancel: answerFacts(at(run, 1)), answer: answerFacts(at(run, 0)) }),
  ],
  [/^cancel\.training-route$/, (run) => ({ cancel: last(run), status: statuses(run)[0] })],
  [
    /^cors\.none$/,
    (run) =>
      [...(at(run, -1)?.headers.keys() ?? ["?"])].some((name) => name.startsWith("access-control"))
        ? "some"
        : "none",
  ],
  [
    /^disconnect\.retry$/,
    (run) => ({ second: at(run, 1)?.status, first: answerFacts(at(run, 0)) }),
  ],
  [/^disconnect\.sync-post$/, (run) => statuses(run)[0]],
  [/^file\.404-webhook$/, hookFacts],
  [
    /^head\./,
    (run) => ({
      status: at(run, 0)?.status,
      type: at(run, 0)?.headers.get("content-type"),
      length_given: Number(at(run, 0)?.headers.get("content-length")) > 0,
    }),
  ],
  [/^health\.key-order$/, healthOrder],
  [
    /^http\.1\.0$/,
    (run) => ({
      status: at(run, 0)?.status,
      version: at(run, 0)?.version,
      chunked: at(run, 0)?.headers.has("transfer-encoding"),
    }),
  ],
  [/^id\.put-again$/, (run) => run.answers.map(answerFacts)],
  [
    /^id\.(post-(?!pred)|post-pred|put-(dot|encoded|percent|plus|semicolon|tilde))/,
    (run) => ({ ...last(run), id: bodyOf(at(run, -1))["id"] }),
  ],
  [/^openapi\.components$/, (run) => Object.keys(schemas(run)).sort()],
  [/^openapi\.head$/, openapiHead],
  [
    /^openapi\.input\./,
    (run, { name }) =>
      schemaFacts(run, ["Input", "properties", name.slice("openapi.input.".length)]),
  ],
  [/^openapi\.op\.cancel$/, (run) => paths(run)["/predictions/{prediction_id}/cancel"]],
  [/^openapi\.output$/, (run) => schemaFacts(run, ["Output"])],
  [/^openapi\./, (run, { name }) => schemaFacts(run, [name.slice("openapi.".length)])],
  [
    /^put-inflight\.input-stripped$/,
    (run) => ({
      status: at(run, 1)?.status,
      input: Object.keys(
        isMap(bodyOf(at(run, 1))["input"]) ? (bodyOf(at(run, 1))["input"] as JsonMap) : {},
      ).sort(),
    }),
  ],
  [/^put-inflight\./, (run) => withEcho(last(run), run.requests[0])],
  [
    /^setup-failed\.shutdown$/,
    (run) => ({ ...last(run), exit: run.exit?.code, signal: run.exit?.signal }),
  ],
  [/^(setup-failed|starting)\.root$/, (run) => withVersionKind(last(run))],
  [
    /^slots\.cancel-one$/,
    (run) => [
      TERMINAL.slice(1).includes(String(hookOf(run, 0)?.["status"])),
      hookOf(run, 1)?.["status"],
    ],
  ],
  [/^slots\.health-one$/, (run) => run.during],
  [/^sse\.(attach|two)$/, (run) => sseFacts(at(run, -1))],
  [/^sse\.cancel$/, (run) => ({ cancel: at(run, 1)?.status, ...sseFacts(at(run, 0)) })],
  [/^sse\.leave-attached$/, (run) => statuses(run)[0]],
  [/^sse\.schema$/, streamingSchema],
  [/^sse\.webhooks-too$/, hookFacts],
  [
    /^starting\.becomes-ready$/,
    (run) => ({
      health: answerFacts(at(run, 0)),
      openapi: at(run, 1)?.status,
      cancel: at(run, 2)?.status,
      predict: answerFacts(at(run, 3)),
    }),
  ],
  [
    /^stop\.await-explicit$/,
    (run) => ({ after_sigterm: run.during, answer: last(run), exit: run.exit }),
  ],
  [
    /^stop\.shutdown$/,
    (run) => ({
      answer: last(run),
      exit: run.exit,
      after: run.after === "gone" ? "refused" : run.after,
    }),
  ],
  [
    /^stop\.sigterm-sync$/,
    (run) => ({
      new_connections: run.after === "gone" ? "refused" : "taken",
      alive: at(run, 0) !== undefined,
      answer: answerFacts(at(run, 0)),
      exit: run.exit,
    }),
  ],
  [/^stop\./, (run) => run.exit],
  [/^sync\.mime-/, (run) => bodyMember(last(run), "output")],
  [
    /^sync\.fail$/,
    (run) => ({ ...last(run), mentions: mentionsWeight(bodyOf(at(run, -1))["error"]) }),
  ],
  [/^sync\.slow-ok$/, (run) => ({ during: run.during, ...last(run) })],
  [/^upload\.async$/, (run) => ({ hooks: hookFacts(run), puts: run.uploads.length })],
  [
    /^upload\.before-answer$/,
    (run) => ({ at_answer: run.uploadsAtAnswer, later: run.uploads.length }),
  ],
  [/^upload\.fail-no-upload$/, (run) => ({ answer: last(run), puts: run.uploads.length })],
  [/^upload\.location/, (run) => bodyMember(last(run), "output")],
  [/^upload\.plain$/, (run) => ({ answer: last(run), puts: run.uploads.map(uploadFacts) })],
  [/^validate\.async$/, (run) => ({ ...last(run), webhooks: run.hooks.length })],
  [/^webhook\.(all|fail)$/, webhookStory],
  [/^webhook\.auth$/, (run) => run.hooks.map(({ headers }) => headers["authorization"])],
  [/^webhook\.(noretry|start-not-retried|filter-output-fail)/, (run) => run.hooks.length],
  [/^webhook\.filter-/, hookFacts],
  [/^webhook\.not-for-409$/, (run) => ({ status: at(run, -1)?.status, hooks: run.hooks.length })],
  [/^webhook\.redirect-/, redirected],
  [/^webhook\.retry-\d/, retried],
  [
    /^webhook\.same-error$/,
    (run) => ({ error: sameAsHook(run, "error"), id: sameAsHook(run, "id") }),
  ],
  [
    /^webhook\.slow-receiver$/,
    (run) => ({
      quick: at(run, 0) !== undefined,
      status: at(run, 0)?.status,
      free: run.after === "READY",
    }),
  ],
  [/^webhook\.start-before-completed$/, (run) => hookBodies(run).map((body) => body["status"])],
  [
    /^webhook\.trace$/,
    (run) => run.hooks.map(({ headers }) => [headers["traceparent"], headers["tracestate"]]),
  ],
  [/^webhook\.training$/, (run) => ({ answer: last(run), hooks: hookFacts(run) })],
  [/^webhook\.url-query$/, (run) => run.hooks[0]?.path.split("?")[1]],
];

function bodyMember(facts: JsonMap, name: string): unknown {
  return isMap(facts["body"]) ? facts["body"][name] : undefined;
}

function withVersionKind(facts: JsonMap): JsonMap {
  return {
    ...facts,
    body: { ...(isMap(facts["body"]) ? facts["body"] : {}), cog_version: "string" },
  };
}

/** The last body a receiver got, by the order in which receivers were named. */
function hookOf(run: Run, index: number): JsonMap | undefined {
  const urls = run.requests.map((request) => sent(request)["webhook"]).filter(Boolean);
  const path = String(urls[index] ?? "").replace(/^https?:\/\/[^/]*/, "");
  const call = run.hooks.findLast((hook) => hook.path === path);
  const body = parsed(call?.body ?? "");
  return isMap(body) ? body : undefined;
}

function sameAsHook(run: Run, name: string): boolean {
  const value = bodyOf(at(run, 0))[name];
  return value !== undefined && value === hookBodies(run)[0]?.[name];
}

function healthOrder(run: Run): Facts {
  const text = at(run, -1)?.body ?? "";
  const body = bodyOf(at(run, -1));
  const keys = (name: string): string[] => Object.keys(isMap(body[name]) ? body[name] : {});
  return {
    top: Object.keys(body),
    setup: keys("setup"),
    version_first: keys("version")[0],
    compact: isCompactSorted(text),
  };
}

function openapiHead(run: Run): Facts {
  const body = bodyOf(at(run, -1));
  const about = isMap(body["info"]) ? body["info"] : {};
  return {
    status: at(run, -1)?.status,
    type: at(run, -1)?.headers.get("content-type"),
    compact_sorted: isCompactSorted(at(run, -1)?.body ?? ""),
    openapi: body["openapi"],
    title: about["title"],
    version: typeof about["version"],
    top: Object.keys(body),
  };
}

function streamingSchema(run: Run): Facts {
  const route = paths(run)["/predictions"];
  const post = isMap(route) && isMap(route["post"]) ? route["post"] : {};
  return { flag: post["x-cog-streaming"], output: schemaFacts(run, ["Output"]) };
}

function uploadFacts(put: Run["uploads"][number]): JsonMap {
  return {
    method: "PUT",
    path: put.path.replace(/^\/up\/[^/]*\/.*\.(\w+)$/, "<up>/<name>.$1"),
    type: put.type,
    auth: put.authorization,
    length: put.length === String(put.bytes),
    bytes: put.bytes > 0,
  };
}

function webhookStory(run: Run, { name }: Scenario): Facts {
  const facts = hookFacts(run);
  const states = statuses(run);
  const isAll = name === "webhook.all";
  return {
    ...(isAll ? { answer: answerFacts(at(run, 0)) } : {}),
    first: facts[0],
    last: facts.at(-1),
    middle_processing: states.slice(1, -1).every((status) => status === "processing"),
    terminal: states.filter((status) => TERMINAL.includes(String(status))).length,
    ...(isAll
      ? {
          with_output_before_end: hookBodies(run).some(
            (body) => body["status"] === "processing" && "output" in body,
          ),
        }
      : { mentions: hookBodies(run).some((body) => mentionsWeight(body["error"])) }),
  };
}

function redirected(run: Run): Facts {
  const firstPath = String(sent(run.requests[0])["webhook"] ?? "").replace(/^https?:\/\/[^/]*/, "");
  const second = run.hooks.filter(({ path }) => path !== firstPath);
  return {
    first: run.hooks.filter(({ path }) => path === firstPath).length,
    second: second.map(({ method, body, headers }) => ({
      method,
      body: body === "" ? "empty" : "payload",
      auth: headers["authorization"],
    })),
  };
}

/** The first delay of the schedule is 200 ms; a little less is a clock, not a mistake. */
const FIRST_DELAY_MS = 180;

function retried(run: Run): Facts {
  const [first, second] = run.hooks;
  return {
    attempts: run.hooks.length,
    same_body: first?.body === second?.body,
    waited: (second?.atMs ?? 0) - (first?.atMs ?? 0) >= FIRST_DELAY_MS,
  };
}

/** The facts of a run. */
export function factsOf(run: Run, scenario: Scenario): Facts {
  const [, extract] = OWN.find(([name]) => name.test(scenario.name)) ?? [];
  return extract === undefined ? last(run) : extract(run, scenario);
}

/** Every answer and webhook in full: what the named facts leave out must agree as well. */
export function everythingOf(run: Run, scenario: Scenario): Facts {
  const text = JSON.stringify(inFull(run, scenario));
  return parsed(text.replaceAll(/http:\/\/127\.0\.0\.1:\d+/g, "<origin>"));
}

function inFull(run: Run, scenario: Scenario): JsonMap {
  return {
    answers: run.answers.map((answer, index) =>
      answer?.headers.get("content-type") === "text/event-stream"
        ? withoutEvents(sseFacts(answer), scenario)
        : withEcho(answerFacts(answer), run.requests[index]),
    ),
    hooks: hookFacts(run).filter(({ body }) => isMap(body) && body["status"] !== "processing"),
  };
}

/** What a stream that was left had shown depends on when it was left. */
function withoutEvents(facts: JsonMap, scenario: Scenario): JsonMap {
  return scenario.name.startsWith("sse.leave") ? { ...facts, events: [], log_shape: [] } : facts;
}

/** What a stream held, event by event; the number of log lines depends on buffers. */
export function eventFacts(answer: RawAnswer | undefined): Facts {
  return answer?.headers.get("content-type") === "text/event-stream"
    ? sseFacts(answer)
    : answerFacts(answer);
}

/** States of webhooks in the order in which they happened, not in which they arrived. */
export function hookStatuses(hooks: Run["hooks"]): Facts {
  return hookFacts({
    requests: [],
    answers: [],
    hooks,
    uploads: [],
    uploadsAtAnswer: 0,
    during: undefined,
    after: "",
    exit: undefined,
  });
}
