/** HTTP answers in the forms that ComfyUI's web framework gives them. */
import { stringifyJson } from "../../platform/json.ts";

export function json(body: unknown, status = 200): Response {
  return new Response(stringifyJson(body), {
    status,
    headers: { "content-type": "application/json; charset=utf-8" },
  });
}

export function bare(status: number): Response {
  return new Response("", { status, headers: { "content-type": "application/octet-stream" } });
}

/** What an exception in a handler becomes. */
export function crash(): Response {
  return new Response("500 Internal Server Error\n\nServer got itself in trouble", {
    status: 500,
    headers: { "content-type": "text/plain; charset=utf-8" },
  });
}
