/** Requests as nobody would send them, for the fuzzing of the server: any method, path, header and body. */
import fc from "fast-check";
import { GRAPH } from "./cog-requests.ts";
import { rawExchange } from "./raw-http.ts";

export interface FuzzRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly body: string;
}

/** Longer than any answer should take; a request without one is a failure. */
const ANSWER_MS = 10_000;

const token = fc.stringMatching(/^[A-Za-z0-9._~%!$&'()*+,;=:@-]{0,20}$/);
const method = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom("POST", "PUT") },
  { weight: 2, arbitrary: fc.constantFrom("GET", "HEAD", "DELETE", "PATCH", "OPTIONS") },
);
const path = fc.oneof(
  { weight: 4, arbitrary: fc.constant("/predictions") },
  { weight: 3, arbitrary: token.map((id) => `/predictions/${id}`) },
  { weight: 2, arbitrary: token.map((id) => `/predictions/${id}/cancel`) },
  { weight: 1, arbitrary: token.map((id) => `/trainings/${id}`) },
  { weight: 1, arbitrary: fc.constantFrom("/", "/health-check", "/openapi.json", "/trainings") },
  { weight: 1, arbitrary: fc.array(token, { maxLength: 5 }).map((parts) => `/${parts.join("/")}`) },
);

/** Most requests find a route: what is odd about them must get further than the router. */
const route = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.oneof(
      fc.constant(["POST", "/predictions"] as const),
      token.map((id) => ["PUT", `/predictions/${id}`] as const),
      token.map((id) => ["POST", `/predictions/${id}/cancel`] as const),
      fc.constant(["POST", "/trainings"] as const),
      token.map((id) => ["PUT", `/trainings/${id}`] as const),
    ),
  },
  { weight: 2, arbitrary: fc.tuple(method, path) },
);

const anyText = fc.string({ unit: "binary", maxLength: 40 });
const inputValue = fc.oneof(
  fc.jsonValue({ maxDepth: 3 }),
  fc.constantFrom(GRAPH, "webp", "png", 95, true, "data:,x", "data:image/png;base64,aGk="),
  fc.constantFrom("http://127.0.0.1:1/a.png", "http://", "https://", "file:///etc/passwd", "data:"),
);
const inputs = fc.oneof(
  fc.dictionary(
    fc.constantFrom(
      "workflow_json",
      "input_file",
      "output_format",
      "output_quality",
      "__proto__",
      "x",
    ),
    inputValue,
    { maxKeys: 5 },
  ),
  fc.jsonValue(),
);
const envelope = fc
  .record(
    {
      id: fc.oneof(anyText, fc.jsonValue({ maxDepth: 1 })),
      input: inputs,
      context: fc.oneof(fc.dictionary(anyText, anyText), fc.jsonValue({ maxDepth: 1 })),
      webhook: fc.oneof(
        fc.constantFrom("http://127.0.0.1:1/", "x", "http://["),
        fc.jsonValue({ maxDepth: 1 }),
      ),
      webhook_events_filter: fc.oneof(
        fc.subarray(["start", "output", "logs", "completed", "nonsense"]),
        fc.jsonValue({ maxDepth: 1 }),
      ),
    },
    { requiredKeys: [] },
  )
  .map((value) => JSON.stringify(value));
const valid = fc
  .record(
    {
      id: anyText,
      input: fc.record(
        {
          workflow_json: fc.constant(GRAPH),
          output_format: fc.constantFrom("webp", "png", "jpg"),
          output_quality: fc.nat({ max: 100 }),
          input_file: fc.constantFrom(
            "data:,x",
            "data:image/png;base64,aGk=",
            "http://127.0.0.1:1/a",
          ),
          unknown: fc.jsonValue({ maxDepth: 2 }),
        },
        { requiredKeys: ["workflow_json"] },
      ),
      context: fc.dictionary(anyText, anyText, { maxKeys: 3 }),
      webhook: fc.constantFrom("http://127.0.0.1:1/", "x", "http://["),
      webhook_events_filter: fc.subarray(["start", "output", "logs", "completed"]),
    },
    { requiredKeys: ["input"] },
  )
  .map((value) => JSON.stringify(value));
const mutilated = fc
  .tuple(envelope, fc.nat(), fc.nat({ max: 5 }), anyText)
  .map(([text, at, length, junk]) => {
    const place = at % (text.length + 1);
    return text.slice(0, place) + junk + text.slice(place + length);
  });
const body = fc.oneof(
  { weight: 8, arbitrary: valid },
  { weight: 4, arbitrary: envelope },
  { weight: 2, arbitrary: mutilated },
  { weight: 1, arbitrary: fc.json() },
  { weight: 1, arbitrary: anyText },
  { weight: 1, arbitrary: fc.nat({ max: 400 }).map((depth) => '{"input":'.repeat(depth)) },
);

const header = fc.oneof(
  fc.tuple(
    fc.constant("content-type"),
    fc.oneof(
      { weight: 6, arbitrary: fc.constant("application/json") },
      { weight: 1, arbitrary: fc.stringMatching(/^[\x21-\x7e]{0,30}$/) },
    ),
  ),
  fc.tuple(fc.constant("prefer"), fc.constantFrom("respond-async", "wait", "")),
  fc.tuple(fc.constant("accept"), fc.constantFrom("text/event-stream", "*/*", "application/json")),
  fc.tuple(
    fc.constantFrom("traceparent", "tracestate", "x-anything"),
    fc.stringMatching(/^[\x21-\x7e]{0,40}$/),
  ),
);

export const fuzzRequest: fc.Arbitrary<FuzzRequest> = fc
  .record({
    route,
    headers: fc
      .array(header, { maxLength: 4 })
      .map((headers) => [["content-type", "application/json"] as const, ...headers])
      .map((headers) => [...new Map(headers)]),
    body,
  })
  .map(({ route: [verb, target], headers, body: text }) => ({
    method: verb,
    path: target,
    headers,
    body: text,
  }));

/** Sends it; the status, or 0 when the server closed the connection without an answer. */
export async function sendFuzz(port: number, request: FuzzRequest): Promise<number> {
  const lines = [
    `${request.method} ${request.path} HTTP/1.1`,
    "host: fuzz",
    "connection: close",
    `content-length: ${Buffer.byteLength(request.body)}`,
    ...request.headers.map(([name, value]) => `${name}: ${value}`),
  ];
  const exchange = rawExchange(port, `${lines.join("\r\n")}\r\n\r\n${request.body}`);
  const timer = Promise.withResolvers<"late">();
  const handle = setTimeout(() => timer.resolve("late"), ANSWER_MS);
  try {
    const answer = await Promise.race([exchange.answer, timer.promise]);
    if (answer === "late") {
      throw new Error(`no answer to ${JSON.stringify(request)}`);
    }
    return answer?.status ?? 0;
  } finally {
    clearTimeout(handle);
    exchange.leave();
  }
}
