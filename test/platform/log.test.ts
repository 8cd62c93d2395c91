import { describe, expect, test } from "bun:test";
import type { LogRecord } from "../../src/platform/log.ts";
import { createLogger } from "../../src/platform/log.ts";
import { Redactor } from "../../src/platform/redact.ts";

describe("createLogger", () => {
  test("writes Cog's JSON form: timestamp with microseconds, level, fields, target", () => {
    const lines: string[] = [];
    createLogger({ write: (line) => lines.push(line) })
      .child("cog_comfyui::weights", { prediction_id: "p1" })
      .warn("slow", { ms: 3 });
    const { timestamp, ...rest } = JSON.parse(lines[0] ?? "");
    expect(timestamp).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/);
    expect(rest).toEqual({
      level: "WARN",
      fields: { message: "slow", prediction_id: "p1", ms: 3 },
      target: "cog_comfyui::weights",
    });
  });

  test("drops lines below its level but lets the observer see them", () => {
    const lines: string[] = [];
    const seen: LogRecord[] = [];
    const log = createLogger({
      level: "warn",
      write: (line) => lines.push(line),
      observe: (record) => seen.push(record),
    });
    log.info("quiet");
    log.error("loud");
    expect([lines.length, seen.length]).toEqual([1, 2]);
  });

  test("masks secrets in message and fields", () => {
    const lines: string[] = [];
    const log = createLogger({
      redactor: new Redactor(["hunter2hunter2"]),
      write: (line) => lines.push(line),
    });
    log.info("token hunter2hunter2", { url: "https://h/?token=hunter2hunter2" });
    expect(lines.join()).not.toContain("hunter2");
  });
});
