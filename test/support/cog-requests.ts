/**
 * Single requests beyond the recorded ones, each with something odd about it. What Cog's own server answers to them is
 * kept in test/contract/cog-answers.json, written by scripts/cog-reference.ts; ours must answer the same.
 */

/** A workflow that the twins run at once. */
export const GRAPH = '{"1":{"class_type":"EmptyImage","inputs":{"batch_size":1}}}';
const GOOD = JSON.stringify({ input: { workflow_json: GRAPH, output_format: "png" } });
const JSON_TYPE = "content-type: application/json";

export interface OddRequest {
  readonly name: string;
  /** Without Host, Content-Length and Connection, which are added. */
  readonly head: string;
  readonly body?: string | undefined;
}

function get(path: string, ...headers: string[]): OddRequest {
  return plain("GET", path, ...headers);
}

function plain(method: string, path: string, ...headers: string[]): OddRequest {
  return {
    name: [method, path, ...headers].join(" "),
    head: [`${method} ${path} HTTP/1.1`, ...headers].join("\r\n"),
  };
}

function post(name: string, body: string, ...headers: string[]): OddRequest {
  return send("POST /predictions", name, body, ...headers);
}

function send(route: string, name: string, body: string, ...headers: string[]): OddRequest {
  return { name, body, head: [`${route} HTTP/1.1`, JSON_TYPE, ...headers].join("\r\n") };
}

/** A body as it may stand in a title: short, control characters escaped. */
function shown(text: string): string {
  const short = text.length > 60 ? `${text.slice(0, 60)}… (${text.length})` : text;
  return short.replace(/\p{Cc}/gu, (character) => JSON.stringify(character).slice(1, -1));
}

function input(value: unknown): OddRequest {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return post(`input ${shown(text)}`, `{"input":${text}}`);
}

const PATHS = [
  "/health",
  "/metrics",
  "/predictions/",
  "/predictions//cancel",
  "/predictions/x/",
  "/predictions/x/cancel/",
  "/predictions/x/cancel/y",
  "/trainings/",
  "//health-check",
  "/health-check//",
  "/HEALTH-CHECK",
  "/openapi.json/",
  "/openapi",
  "/favicon.ico",
  "/%68ealth-check",
  "/predictions?x=1",
];
const METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"];
const ROUTES = [
  "/",
  "/health-check",
  "/openapi.json",
  "/predictions",
  "/predictions/x",
  "/predictions/x/cancel",
  "/trainings",
  "/trainings/x",
  "/trainings/x/cancel",
];

const CONTENT_TYPES = [
  "application/x-www-form-urlencoded",
  "multipart/form-data; boundary=x",
  "application/x-ndjson",
  "application/ld+json",
  "application/vnd.api+json; version=1",
  "application/json;charset=latin1",
  "application/json ; charset=utf-8",
  "text/json",
  "image/svg+xml",
  "application/+json",
  "application/json+x",
  "json",
  "application/json, text/plain",
  "application/json;",
  "application/json; charset",
  'application/json; charset="utf-8"',
  "application/json;a=b;c=d",
  "application/json; a=b ; c=d",
  "application/json;;a=b",
  "application/vnd+json+x",
  "application/x+y+json",
  "application /json",
  "application/json/x",
  "APPLICATION/JSON",
  "",
  "*/*",
];

const BAD_JSON: readonly string[] = [
  "",
  " ",
  "\n",
  "{",
  "{}x",
  "{} {}",
  "[1,2",
  "nul",
  "nulL",
  "tru",
  "fals",
  "falsy",
  "01",
  "-",
  "1.",
  "1e",
  "1e+",
  ".5",
  "+1",
  "-x",
  "'a'",
  '"abc',
  '"a\\x"',
  '"a\\u12"',
  '"a\\u12xy"',
  '"\\ud800\\u0041"',
  '"\\udc00"',
  '"\t"',
  '{"input":{"a":1,}}',
  '{"input":{,}}',
  '{"input":[1,]}',
  '{"input":[1 2]}',
  '{"input":{"a" 1}}',
  '{"input":{"a":}}',
  '{"input":{"a":1 "b":2}}',
  '{"input":{a:1}}',
  '{"input":{"a":1e400}}',
  '{"input":{"a":-1e400}}',
  '{"input":{"a":01}}',
  '{"input":{"a":NaN}}',
  '{"input":{"a":Infinity}}',
  '{"input":{"a":"\\ud800"}}',
  '{"input":{"a":"\\ud83d\\ude00x\\q"}}',
  '{"input":{"a":"x\ny"}}',
  '{"input":\n{"a":\n\n  tru}}',
  '{"input":{"é":tru}}',
  '{"input":{}',
  '{"input":{}}}',
  '{"input":{}}]',
  '{"input":{}} // done',
  '/* x */{"input":{}}',
  '{"input" {}}',
  '{"input"}',
  '{"id":"a"',
  '{"id":"a",',
  '{"id":"a",}',
  '{"x":{"y":[1,{"z":tru}]}}',
  '{"context":{"a":"b",}}',
  '{"webhook_events_filter":["start",]}',
  '{"webhook_events_filter":["start"',
  `{"input":{"a":${"[".repeat(140)}${"]".repeat(140)}}}`,
  `{"input":{"a":${"[".repeat(125)}${"]".repeat(125)}}}`,
  `{"input":{"a":${"[".repeat(126)}${"]".repeat(126)}}}`,
  `{"x":${"[".repeat(140)}${"]".repeat(140)}}`,
  '{"input":{"a":1}}\u0000',
  '{"x":[1,]}',
  '{"x":{"a":1,}}',
  '{"x":[1 2]}',
  '{"x":{"a":1 "b"}}',
  '{"x":{"a" 1}}',
  '{"x":{1:1}}',
  '{"x":[',
  '{"x":{',
  '{"x":{"a":',
  '{"x":[[1],{"a":1}',
  '{"x":1e999,"y":"\\ud800","id":5}',
  '{"x":"\\q"}',
  '{"x":"\\u12"}',
  '{"x":-}',
  '{"x":1.e}',
  '{"input":[tru]}',
  '{"input":[1,[2,{"a":[0,nul]}]]}',
  '{"input":{"a":{"b":1,}}}',
  '{"input":{"a":1e}}',
  '{"input":{"a":1e+}}',
  '{"input":{"a":-}}',
  '{"input":{"a":1.}}',
  "1e5x",
  "-01",
  "0x10",
  "1_000",
  '{"\\ud800":1}',
  '{"input":{"\\ud800":1}}',
  '{"input":{"a":"\u007f"}}x',
];

const WRONG_SHAPES: readonly string[] = [
  "5",
  "-5",
  "5.5",
  "1e3",
  "18446744073709551616",
  '"x"',
  "true",
  "false",
  "null",
  "[]",
  '["a"]',
  '["a",{},{},null]',
  '["a",{},{},null,[],1]',
  "[5,{},{},null,[]]",
  '{"id":5}',
  '{"id":5.5}',
  '{"id":-5}',
  '{"id":true}',
  '{"id":["a"]}',
  '{"id":{"a":1}}',
  '{"id":5,',
  '{"context":null}',
  '{"context":5}',
  '{"context":"x"}',
  '{"context":[]}',
  '{"context":{"a":1}}',
  '{"context":{"a":null}}',
  '{"context":{"a":{}}}',
  '{"context":{"a":["b"]}}',
  '{"context":{"a":true}}',
  '{"webhook":5}',
  '{"webhook":{}}',
  '{"webhook":[]}',
  '{"webhook":false}',
  '{"webhook_events_filter":null}',
  '{"webhook_events_filter":"start"}',
  '{"webhook_events_filter":{}}',
  '{"webhook_events_filter":5}',
  '{"webhook_events_filter":["foo"]}',
  '{"webhook_events_filter":["start","Output"]}',
  '{"webhook_events_filter":[5]}',
  '{"webhook_events_filter":[null]}',
  '{"webhook_events_filter":[["start"]]}',
  '{"webhook_events_filter":[{"start":null}]}',
  '{"webhook_events_filter":[true]}',
  '{"webhook_events_filter":[{}]}',
  '{"webhook_events_filter":[{"foo":null}]}',
  '{"webhook_events_filter":[{"start":1}]}',
  '{"webhook_events_filter":[{"start":null,"output":null}]}',
  '["a",null,{}]',
  '["a",{},{},null,["foo"]]',
  "[null,{},null,null,[]]",
  '{"id":"a","id":"b"}',
  '{"id":null,"id":"b"}',
  '{"input":{},"input":{}}',
  '{"webhook":null,"webhook":null}',
  '{"context":{},"context":{}}',
  '{"id":"a\\"b",\n"webhook":\n 5}',
  '{"id":"é","webhook":5}',
  '{"input":1e400,"id":5}',
];

const INPUTS: readonly unknown[] = [
  { output_quality: -1 },
  { output_quality: 101 },
  { output_quality: 5.5 },
  { output_quality: null },
  { output_quality: [] },
  { output_quality: {} },
  { output_quality: "" },
  '{"output_quality":5.0,"workflow_json":1}',
  '{"output_quality":500.0}',
  '{"output_quality":1e2,"workflow_json":2.50}',
  '{"output_quality":1e3}',
  '{"output_quality":-0.0,"workflow_json":-0.0}',
  '{"output_quality":-0,"workflow_json":-0}',
  '{"output_quality":1e-7}',
  '{"output_quality":0.00001}',
  '{"output_quality":0.000001}',
  '{"output_quality":123456789012345680}',
  '{"output_quality":1234567890123456789}',
  '{"output_quality":9223372036854775808}',
  '{"output_quality":18446744073709551615}',
  '{"output_quality":18446744073709551616}',
  '{"output_quality":-9223372036854775808}',
  '{"output_quality":-9223372036854775809}',
  '{"output_quality":1e15}',
  '{"output_quality":1e16}',
  '{"output_quality":1.5e16}',
  '{"output_quality":1e17}',
  '{"output_quality":1e21}',
  '{"output_quality":1e22}',
  '{"output_quality":1.7976931348623157e308}',
  '{"output_quality":123456.789e3}',
  '{"output_quality":0.1}',
  { output_format: "" },
  { output_format: "WEBP" },
  { output_format: ["webp"] },
  { output_format: true },
  { output_format: 1.5 },
  { output_format: 'a"b\\c/\u0001\u00e9\u2028😀' },
  { workflow_json: true },
  { workflow_json: ["a", null, 1.5, { z: 1, a: 2 }] },
  { workflow_json: { b: 1, a: { d: 1, c: 2 } } },
  { workflow_json: "é", input_file: false },
  { randomise_seeds: 1 },
  { randomise_seeds: 0 },
  { randomise_seeds: "false" },
  { randomise_seeds: [] },
  { return_temp_files: null, force_reset_cache: 2 },
  { input_file: null },
  { input_file: {} },
  { skip_weight_check: "x", download_missing_weights: 1, output_quality: "y" },
  { unknown: null, output_quality: 1000 },
  [],
  [1],
  "null",
  '"text"',
  "5",
  "5.0",
  "true",
  '{"a":1,"output_quality":{"b":[1,2.0,{"z":null,"y":"x"}],"a":1e2}}',
  '{"output_quality":1,"output_quality":"twice"}',
];

const ACCEPTS = [
  "text/event-stream",
  "text/event-stream;q=0.5",
  "text/event-stream ;q=1",
  " text/event-stream",
  "application/json, text/event-stream",
  "application/json,text/event-stream;charset=utf-8",
  "text/*",
  "Text/Event-Stream",
  "text/event-streams",
  "*/*",
];

const PREFERS = [
  "Respond-Async",
  "respond-async;x=1",
  "respond-async, wait",
  "wait=60",
  '"respond-async"',
  "",
];

const IDS = [
  "a%20b",
  "%C3%A9",
  "a%zz",
  "a%",
  "a%2",
  "%FF",
  "%C3",
  "..",
  ".",
  "%2e",
  "..%2fx",
  "a:b",
  "a@b",
  "a&b=c",
  "a,b",
  "a$b",
  "a!b*",
  "a'b",
  "a(b)",
  "a~b",
  "%EF%BB%BFx",
  "a%3Fb",
  "a%23b",
  "%25",
  "a|b",
  "-",
  "%7B%7D",
];

/** All of them, in the order they are sent. */
export function oddRequests(): OddRequest[] {
  return [
    ...PATHS.map((path) => get(path)),
    ...ROUTES.flatMap((route) =>
      METHODS.map((method) => plain(method, route)).filter(
        ({ name }) => !/^(POST|PUT) \/(predictions|trainings)(\/x)?$/.test(name),
      ),
    ),
    get("/health-check", "accept: text/html"),
    get("/health-check?x=/y#z"),
    ...CONTENT_TYPES.map((type) => ({
      name: `content type "${type}"`,
      head: `POST /predictions HTTP/1.1\r\ncontent-type: ${type}`,
      body: GOOD,
    })),
    { name: "no content type", head: "POST /predictions HTTP/1.1", body: GOOD },
    ...BAD_JSON.map((body) => post(`body ${shown(body)}`, body)),
    ...WRONG_SHAPES.map((body) => post(`shape ${shown(body)}`, body)),
    ...INPUTS.map(input),
    ...ACCEPTS.map((accept) => post(`accept ${accept}`, GOOD, `accept: ${accept}`)),
    ...PREFERS.map((prefer) => post(`prefer ${prefer}`, GOOD, `prefer: ${prefer}`)),
    ...IDS.map((id) => send(`PUT /predictions/${id}`, `PUT id ${id}`, GOOD)),
    ...IDS.map((id) => plain("POST", `/predictions/${id}/cancel`)),
    send("PUT /predictions/one", "PUT with another id", '{"id":"two"}'),
    send("PUT /predictions/one", "PUT with the same id", '{"id":"one","input":{}}'),
    send("PUT /predictions/a%20b", "PUT with the decoded id", '{"id":"a b"}'),
    send("PUT /predictions/a%20b", "PUT with the encoded id", '{"id":"a%20b"}'),
    send("PUT /predictions/%FF", "PUT bad id before bad body", "{"),
    send("PUT /trainings/one", "training with another id", '{"id":"two"}'),
    send("PUT /trainings/one", "training asks for a stream", GOOD, "accept: text/event-stream"),
    send("PUT /trainings/one", "mismatch and stream", '{"id":"2"}', "accept: text/event-stream"),
    send("PUT /predictions/one", "mismatch and stream ", '{"id":"2"}', "accept: text/event-stream"),
    send("POST /trainings", "training bad input", '{"input":{"output_quality":"x"}}'),
    send("POST /trainings", "training bad body", "{"),
    post("bad input and stream", '{"input":5}', "accept: text/event-stream"),
    post("webhook is no address", '{"input":{"output_quality":-1},"webhook":"nonsense"}'),
    post("filter empty", '{"webhook_events_filter":[]}'),
    post("filter twice the same", '{"webhook_events_filter":["start","start"]}'),
    post("five positions", '["p",{},{},null,[]]'),
    post("context of texts", '{"context":{"a":"b"}}'),
    post("deep unknown member", `{"x":${"[".repeat(100)}${"]".repeat(100)}}`),
    post("empty id", '{"id":""}'),
    post("emoji id", '{"id":"😀"}'),
    post("escaped id", '{"id":"\\u0041\\n"}'),
  ];
}

/** The bytes to send. */
export function frame(request: OddRequest, port: number): string {
  const body = request.body ?? "";
  const length = request.body === undefined ? "" : `content-length: ${Buffer.byteLength(body)}\r\n`;
  return `${request.head}\r\nhost: 127.0.0.1:${port}\r\n${length}connection: close\r\n\r\n${body}`;
}
