import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { ENV_NAMES } from "../../src/platform/env.ts";

const ROOT = join(import.meta.dir, "../..");
const FOLDER = join(ROOT, "docs/deploy");
const read = (file: string): string => readFileSync(join(ROOT, file), "utf8");
const known = new Set(ENV_NAMES);

const Compose = z.looseObject({
  services: z.looseObject({
    predictor: z.looseObject({
      environment: z.record(z.string(), z.unknown()),
      ports: z.array(z.string()),
      volumes: z.array(z.string()),
      read_only: z.literal(true),
      cap_drop: z.array(z.string()),
    }),
  }),
});

const Probe = z.looseObject({ httpGet: z.object({ path: z.string(), port: z.string() }) });
const Deployment = z.looseObject({
  kind: z.literal("Deployment"),
  spec: z.looseObject({
    template: z.looseObject({
      spec: z.looseObject({
        containers: z.array(
          z.looseObject({
            env: z.array(z.looseObject({ name: z.string() })),
            readinessProbe: Probe,
            livenessProbe: Probe,
            volumeMounts: z.array(z.object({ name: z.string(), mountPath: z.string() })),
          }),
        ),
        volumes: z.array(z.looseObject({ name: z.string() })),
      }),
    }),
  }),
});

const { predictor } = Compose.parse(Bun.YAML.parse(read("compose.yaml"))).services;
const documents = z.array(z.unknown()).parse(Bun.YAML.parse(read("docs/deploy/kubernetes.yaml")));
const pod = Deployment.parse(documents.at(-1)).spec.template.spec;

describe("compose.yaml", () => {
  test("sets only variables that the server reads", () => {
    expect(Object.keys(predictor.environment).filter((name) => !known.has(name))).toEqual([]);
  });

  test("publishes to this machine only, with everything dropped and volumes for what is kept", () => {
    expect(predictor.ports.every((port) => port.startsWith("127.0.0.1:"))).toBe(true);
    expect(predictor.cap_drop).toEqual(["ALL"]);
    expect(predictor.volumes).toEqual(["models:/models", "store:/cache"]);
  });
});

describe("kubernetes.yaml", () => {
  test("sets only variables that the server reads", () => {
    const names = pod.containers.flatMap(({ env }) => env.map(({ name }) => name));
    expect(names.filter((name) => !known.has(name))).toEqual([]);
  });

  test("is ready by the weights, alive by the process", () => {
    expect(pod.containers[0]?.readinessProbe.httpGet.path).toBe("/readyz");
    expect(pod.containers[0]?.livenessProbe.httpGet.path).toBe("/health-check");
  });

  test("mounts only volumes that it has", () => {
    const volumes = pod.volumes.map(({ name }) => name).sort();
    const mounts = pod.containers.flatMap(({ volumeMounts }) =>
      volumeMounts.map(({ name }) => name),
    );
    expect(mounts.sort()).toEqual(volumes);
  });
});

describe("deployment pages", () => {
  const pages = readdirSync(FOLDER).filter((name) => name.endsWith(".md"));

  test("there is one for each kind of place", () => {
    expect(pages.sort()).toEqual(["docker.md", "kubernetes.md", "replicate.md", "runpod.md"]);
  });

  test.each(pages)("%s names only files that are there", (page) => {
    const text = readFileSync(join(FOLDER, page), "utf8");
    const named = [...text.matchAll(/\b(?:docs|examples|scripts|bin)\/[\w./-]+\w/g)]
      .map((match) => match[0])
      .filter((path) => !existsSync(join(ROOT, path)));
    expect(named).toEqual([]);
  });

  test.each(pages)("%s names only variables that are read somewhere", (page) => {
    const text = readFileSync(join(FOLDER, page), "utf8");
    const dockerfile = `${read("Dockerfile")}${read("docs/deploy/Dockerfile.weights")}${read("compose.yaml")}`;
    const names = [...text.matchAll(/`([A-Z][A-Z0-9]*_[A-Z0-9_]+)/g)].map(
      (match) => match[1] ?? "",
    );
    const unknown = names.filter((name) => !(known.has(name) || dockerfile.includes(name)));
    expect([...new Set(unknown)]).toEqual(
      ["STARTING", "SETUP_FAILED"].filter((word) => unknown.includes(word)),
    );
  });
});
