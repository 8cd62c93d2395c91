/** Finds the handler of a request in a table of `METHOD /path/with/*`. */

export interface Call {
  readonly request: Request;
  readonly query: URLSearchParams;
  /** What the `*` parts of the path matched. */
  readonly parts: readonly string[];
}

export type Handler = (call: Call) => Response | Promise<Response>;
export type Routes = Readonly<Record<string, Handler>>;
export type Router = (
  method: string,
  path: string,
) => { handler: Handler; parts: string[] } | undefined;

/** Paths with fewer `*` win, so that a fixed path comes before a pattern. */
export function createRouter(routes: Routes): Router {
  const table = Object.entries(routes)
    .map(([key, handler]) => {
      const [method = "", path = ""] = key.split(" ");
      const parts = path.split("/").map((part) => (part === "*" ? "([^/]+)" : RegExp.escape(part)));
      const pattern = new RegExp(`^${parts.join("/")}$`);
      return { method, handler, pattern, stars: path.split("*").length };
    })
    .sort((a, b) => a.stars - b.stars);
  return (method, path) => {
    for (const row of table) {
      const match = row.method === method ? row.pattern.exec(path) : null;
      if (match !== null) {
        return { handler: row.handler, parts: match.slice(1).map(decodePart) };
      }
    }
    return undefined;
  };
}

/** A part that is badly encoded stands for itself: no file or prompt is called so. */
function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
