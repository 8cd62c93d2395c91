/** Results of nodes, kept from prompt to prompt under a signature that doesn't depend on node ids. */
import type { JsonObject, JsonValue } from "../../platform/json.ts";
import { isJsonObject, stringifyJson } from "../../platform/json.ts";
import { linkOf } from "../../workflow/graph.ts";
import type { EngineFolders } from "./folders.ts";
import { memoryLeft, memoryLimit } from "./memory.ts";
import type { NodeRegistry } from "./nodes/registry.ts";
import type { NodeValue } from "./values.ts";
import { bytesOf } from "./values.ts";

export interface CachedResult {
  readonly outputs: readonly NodeValue[];
  readonly ui: JsonObject | undefined;
}

export type CacheMode =
  /** Everything while memory lasts: ComfyUI's default since 0.4. */
  | { readonly kind: "ram" }
  /** What the previous prompt used: the default of 0.3.64. */
  | { readonly kind: "classic" }
  | { readonly kind: "lru"; readonly entries: number }
  | { readonly kind: "none" };

/** Kept pictures may take this much, or a quarter of the memory if that is less: each pixel is twelve bytes. */
const MAX_CACHED_BYTES = 1024 ** 3;
const MAX_CACHED_SHARE = 0.25;
/** Below this much free memory nothing is kept. */
const MIN_FREE_BYTES = 512 * 1024 ** 2;

export class ResultCache {
  readonly #mode: CacheMode;
  readonly #entries = new Map<string, CachedResult>();
  #bytes = 0;

  constructor(mode: CacheMode) {
    this.#mode = mode;
  }

  get(signature: string): CachedResult | undefined {
    const found = this.#entries.get(signature);
    if (found !== undefined) {
      // Last used last: the first entry is the one to go.
      this.#entries.delete(signature);
      this.#entries.set(signature, found);
    }
    return found;
  }

  set(signature: string, result: CachedResult): void {
    this.#remove(signature);
    this.#entries.set(signature, result);
    this.#bytes += sizeOf(result);
    this.#trim();
  }

  /** A prompt of these signatures starts. */
  begin(signatures: ReadonlySet<string>): void {
    if (this.#mode.kind === "classic") {
      for (const signature of this.#entries.keys()) {
        if (!signatures.has(signature)) {
          this.#remove(signature);
        }
      }
    }
  }

  clear(): void {
    this.#entries.clear();
    this.#bytes = 0;
  }

  #remove(signature: string): void {
    const known = this.#entries.get(signature);
    if (known !== undefined) {
      this.#bytes -= sizeOf(known);
      this.#entries.delete(signature);
    }
  }

  #isTooMuch(): boolean {
    const mode = this.#mode;
    if (mode.kind === "none" || (mode.kind === "lru" && this.#entries.size > mode.entries)) {
      return true;
    }
    return (
      this.#bytes > Math.min(MAX_CACHED_BYTES, memoryLimit() * MAX_CACHED_SHARE) ||
      (this.#bytes > 0 && memoryLeft() < MIN_FREE_BYTES)
    );
  }

  #trim(): void {
    for (const signature of this.#entries.keys()) {
      if (!this.#isTooMuch()) {
        return;
      }
      this.#remove(signature);
    }
  }
}

function sizeOf({ outputs }: CachedResult): number {
  return outputs.reduce<number>((sum, value) => sum + bytesOf(value), 0);
}

export interface SignatureOptions {
  readonly prompt: JsonObject;
  readonly registry: NodeRegistry;
  readonly folders: EngineFolders;
}

/** NaN in ComfyUI: equal to nothing, so the node always runs. */
function unequalToAll(): string {
  return `changed ${crypto.randomUUID()}`;
}

class Signatures {
  readonly known = new Map<string, string>();
  readonly #options: SignatureOptions;
  /** Nodes on the way from the first one; a node that needs itself has no signature. */
  readonly #path = new Set<string>();

  constructor(options: SignatureOptions) {
    this.#options = options;
  }

  async of(id: string): Promise<string> {
    const ready = this.known.get(id);
    if (ready !== undefined || this.#path.has(id)) {
      return ready ?? unequalToAll();
    }
    this.#path.add(id);
    const text = (await this.#parts(id)).join("\0");
    this.#path.delete(id);
    const signature = new Bun.CryptoHasher("sha1").update(text).digest("hex");
    this.known.set(id, signature);
    return signature;
  }

  async #parts(id: string): Promise<string[]> {
    const { prompt, registry, folders } = this.#options;
    const node = prompt[id];
    const className = isJsonObject(node) ? String(node["class_type"]) : "";
    const inputs = isJsonObject(node) && isJsonObject(node["inputs"]) ? node["inputs"] : {};
    const definition = registry.get(className);
    const parts = [className, definition?.hidden?.includes("UNIQUE_ID") === true ? id : ""];
    if (definition?.fingerprint !== undefined) {
      parts.push(await definition.fingerprint(inputs, folders).catch(unequalToAll));
    }
    for (const name of Object.keys(inputs).sort()) {
      parts.push(`${name}=${await this.#input(inputs[name] ?? null)}`);
    }
    return parts;
  }

  async #input(value: JsonValue): Promise<string> {
    const link = linkOf(value);
    return link === undefined || !Object.hasOwn(this.#options.prompt, link.nodeId)
      ? stringifyJson(value)
      : `<${await this.of(link.nodeId)}:${link.slot}>`;
  }
}

/** Signatures of all nodes of a prompt: class, inputs, fingerprint of files, and the same of everything upstream. */
export async function signaturesOf(
  options: SignatureOptions,
): Promise<ReadonlyMap<string, string>> {
  const signatures = new Signatures(options);
  for (const id of Object.keys(options.prompt)) {
    await signatures.of(id);
  }
  return signatures.known;
}
