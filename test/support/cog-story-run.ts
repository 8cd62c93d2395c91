/** Plays a story on our server. */
import { startChild } from "./cog-child.ts";
import { Receiver } from "./cog-receiver.ts";
import { startTwin } from "./cog-server.ts";
import type { Story } from "./cog-stories.ts";
import { Stage } from "./cog-stories.ts";

/** The receiver a story needs. */
export function receiverOf(story: Story): Receiver {
  return new Receiver({
    ...story.receiver,
    ...(story.setup === undefined ? {} : { setup: story.setup }),
  });
}

/** Answers and effects as plain JSON, addresses of this run left out. */
export function plain(facts: unknown): unknown {
  const text = JSON.stringify(facts) ?? "null";
  return JSON.parse(text.replaceAll(/http:\/\/127\.0\.0\.1:\d+/g, "<origin>"));
}

export async function playOnOurs(story: Story): Promise<unknown> {
  using receiver = receiverOf(story);
  if (story.ends === true) {
    await using child = await startChild([], {
      ...story.env,
      ...(story.streaming === true ? { TWIN_STREAMING: "1" } : {}),
    });
    return plain(await story.play(new Stage(child, receiver)));
  }
  await using twin = await startTwin({
    streaming: story.streaming ?? false,
    wait: story.setup !== "held",
    env: { ...story.env, COG_MAX_CONCURRENCY: String(story.slots ?? 1) },
    ...(story.setup === undefined ? {} : { setupUrl: `${receiver.origin}/setup` }),
    serve: {
      flags: story.uploads === true ? { uploadUrl: `${receiver.origin}/up/77x` } : {},
      timings: { shutdownGraceMs: 0, webhookGraceMs: 0 },
    },
  });
  return plain(await story.play(new Stage({ port: twin.server.port }, receiver)));
}
