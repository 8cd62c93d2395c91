/**
 * The engine's input folder as we use it: every input lies in a folder named by its content, so that equal inputs of
 * two runs are one file under one name (ComfyUI's cache then holds), and different ones never meet. A folder goes
 * when the last run that uses it is over. Files are real files: ComfyUI refuses links that lead elsewhere.
 */
import { copyFileSync, existsSync, linkSync, mkdirSync, renameSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, posix } from "node:path";
import { fileError, joinInside, makeFolder, removeTree } from "../platform/files.ts";
import type { EngineFiles } from "../workflow/engine-files.ts";

/** Enough of a sha256 that two inputs never meet by chance. */
const KEY_LENGTH = 20;
const SCRATCH = ".incoming";
/** Old versions of Load3D list nothing but what lies below this folder. */
const MODELS_3D = "3d";
const MODEL_3D_NAME = /\.(gltf|glb|obj|fbx|stl|ply|splat|spz|ksplat)$/i;

/** A file to be shelved: where it lies now, and its name within the folder. */
export interface ShelvedFile {
  readonly path: string;
  readonly name: string;
}

export class InputShelf {
  readonly engine: EngineFiles;
  readonly #users = new Map<string, number>();

  constructor(engine: EngineFiles) {
    this.engine = engine;
  }

  /** A folder for what comes in, on the same file system as the shelf where there is one. */
  makeScratch(): string {
    const root = this.engine.dirs === undefined ? tmpdir() : this.engine.dirs.input;
    const scratch = join(root, SCRATCH, crypto.randomUUID());
    makeFolder(scratch);
    return scratch;
  }

  /**
   * Takes files in under the key of their content; they stay until {@link release}.
   * @returns the folder's name, and the name a loader takes for each file
   */
  async take(
    sha256: string,
    files: readonly ShelvedFile[],
    signal?: AbortSignal,
  ): Promise<{ key: string; names: ReadonlyMap<string, string> }> {
    const content = sha256.slice(0, KEY_LENGTH);
    const is3d = files.some(({ name }) => MODEL_3D_NAME.test(name));
    const key = is3d ? posix.join(MODELS_3D, content) : content;
    // Counted first: a run that ends meanwhile must not clear the folder.
    this.#users.set(key, (this.#users.get(key) ?? 0) + 1);
    try {
      const names = new Map<string, string>();
      for (const file of files) {
        signal?.throwIfAborted();
        names.set(file.name, await this.#place(key, file, signal));
      }
      return { key, names };
    } catch (error) {
      this.release(key);
      throw error;
    }
  }

  /** A run no longer needs what it took. */
  release(key: string): void {
    const users = (this.#users.get(key) ?? 1) - 1;
    if (users > 0) {
      this.#users.set(key, users);
      return;
    }
    this.#users.delete(key);
    if (this.engine.dirs !== undefined) {
      removeTree(join(this.engine.dirs.input, key));
    }
  }

  async #place(key: string, file: ShelvedFile, signal: AbortSignal | undefined): Promise<string> {
    const name = posix.join(key, file.name);
    if (this.engine.dirs === undefined) {
      return await this.engine.putInput(file.path, name, signal);
    }
    const target = joinInside(this.engine.dirs.input, name);
    if (!existsSync(target)) {
      try {
        mkdirSync(dirname(target), { recursive: true });
        publish(file.path, target);
      } catch (error) {
        throw fileError(error, target, "write");
      }
    }
    return name;
  }
}

/** Gives a file its place in one step, so that no node ever reads half of it. The original may be a client's: it stays. */
function publish(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch {
    // Another file system, or one without hard links.
    const partial = `${to}.${crypto.randomUUID()}.part`;
    copyFileSync(from, partial);
    renameSync(partial, to);
  }
}
