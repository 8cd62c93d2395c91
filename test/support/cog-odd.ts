/** Sends the odd requests to a server and tells what is characteristic of each answer. */
import { answerFacts } from "./cog-facts.ts";
import type { OddRequest } from "./cog-requests.ts";
import { frame, oddRequests } from "./cog-requests.ts";
import type { RawAnswer } from "./raw-http.ts";
import { rawExchange } from "./raw-http.ts";

/** Cog hands its slot back a moment after the answer: a 409 means asking again. */
const MAX_TRIES = 200;

async function ask(port: number, request: OddRequest): Promise<RawAnswer | undefined> {
  for (let tries = 1; ; tries += 1) {
    const answer = await rawExchange(port, frame(request, port)).answer;
    if (answer?.status !== 409 || tries >= MAX_TRIES) {
      return answer;
    }
    await Bun.sleep(10);
  }
}

/** By name of the request: status, type, body, and the exact text where it is plain text. */
export async function oddAnswers(port: number): Promise<Record<string, unknown>> {
  const answers: Record<string, unknown> = {};
  for (const request of oddRequests()) {
    const answer = await ask(port, request);
    const isText = answer?.headers.get("content-type")?.startsWith("text/plain") ?? false;
    const length = Number(answer?.headers.get("content-length"));
    answers[request.name] = {
      ...answerFacts(answer),
      ...(isText ? { body: answer?.body } : {}),
      // How long depends on versions and logs; that it is told does not.
      ...(request.head.startsWith("HEAD ") ? { hasLength: length > 0 } : {}),
    };
  }
  return answers;
}
