/** One HTTP exchange over a bare socket, byte for byte as a test wrote it: clients and URL parsers tidy too much. */

import type { Socket } from "node:net";
import { connect } from "node:net";

export interface RawAnswer {
  readonly version: string;
  readonly status: number;
  readonly headers: ReadonlyMap<string, string>;
  readonly body: string;
}

export interface RawExchange {
  /** The whole answer; undefined when the connection ended before there was one. */
  readonly answer: Promise<RawAnswer | undefined>;
  /** Settles when the status line and headers are there (or the connection ended). */
  readonly begun: Promise<void>;
  /** Closes the connection from our side. */
  leave(): void;
  /** What came so far. */
  sofar(): RawAnswer | undefined;
}

/** Sends `request` (already framed) and reads one answer. */
export function rawExchange(port: number, request: string): RawExchange {
  const socket: Socket = connect(port, "127.0.0.1");
  const chunks: Buffer[] = [];
  const begun = Promise.withResolvers<void>();
  const done = Promise.withResolvers<RawAnswer | undefined>();
  const isHead = request.startsWith("HEAD ");
  const parsed = (isEnd: boolean): RawAnswer | undefined =>
    parseAnswer(Buffer.concat(chunks), isEnd, isHead);
  socket.on("connect", () => socket.write(request));
  socket.on("data", (chunk) => {
    chunks.push(Buffer.from(chunk));
    if (Buffer.concat(chunks).includes("\r\n\r\n")) {
      begun.resolve();
    }
    const answer = parsed(false);
    if (answer !== undefined) {
      done.resolve(answer);
      socket.destroy();
    }
  });
  const end = (): void => {
    begun.resolve();
    done.resolve(parsed(true));
  };
  socket.on("error", end);
  socket.on("close", end);
  return {
    answer: done.promise,
    begun: begun.promise,
    leave: () => void socket.destroy(),
    sofar: () => parsed(true),
  };
}

function parseAnswer(bytes: Buffer, isEnd: boolean, isHead: boolean): RawAnswer | undefined {
  const split = bytes.indexOf("\r\n\r\n");
  if (split < 0) {
    return undefined;
  }
  const head = parseHead(bytes.subarray(0, split).toString("latin1"), "\r\n");
  const rest = bytes.subarray(split + 4);
  const length = head.headers.get("content-length");
  if (isHead || head.status === 204) {
    return { ...head, body: "" };
  }
  if (head.headers.get("transfer-encoding") === "chunked") {
    const body = dechunk(rest);
    return body.isWhole || isEnd ? { ...head, body: body.text } : undefined;
  }
  if (length !== undefined) {
    const isWhole = rest.byteLength >= Number(length);
    return isWhole || isEnd
      ? { ...head, body: rest.subarray(0, Number(length)).toString() }
      : undefined;
  }
  return isEnd ? { ...head, body: rest.toString() } : undefined;
}

/** Status line and headers. */
export function parseHead(text: string, eol: string): Omit<RawAnswer, "body"> {
  const [first = "", ...lines] = text.split(eol);
  const [version = "", status = "0"] = first.split(" ");
  const headers = new Map(
    lines
      .filter((line) => line !== "")
      .map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
      }),
  );
  return { version, status: Number(status), headers };
}

function dechunk(bytes: Buffer): { readonly text: string; readonly isWhole: boolean } {
  const parts: Buffer[] = [];
  let at = 0;
  for (;;) {
    const line = bytes.indexOf("\r\n", at);
    if (line < 0) {
      return { text: Buffer.concat(parts).toString(), isWhole: false };
    }
    const size = Number.parseInt(bytes.subarray(at, line).toString(), 16);
    if (size === 0) {
      return { text: Buffer.concat(parts).toString(), isWhole: true };
    }
    parts.push(bytes.subarray(line + 2, line + 2 + size));
    at = line + 2 + size + 2;
  }
}
