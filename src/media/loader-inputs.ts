/**
 * Which inputs of which nodes name a file or a folder to load. A table for ComfyUI's own nodes and the well-known packs;
 * what an engine declares as an upload input counts too. Text of any other input is never taken for a file.
 */
import type { NodeDefinitions } from "../workflow/definitions.ts";

/** `path` inputs take a path of the file system where the others take a name below the input folder. */
export type LoaderForm = "name" | "path" | "folder" | "folder-path";

export interface LoaderInput {
  readonly form: LoaderForm;
  /** Folder that a name without annotation is looked up in. */
  readonly root: "input" | "output";
}

const NAME: LoaderInput = { form: "name", root: "input" };
const FOLDER: LoaderInput = { form: "folder", root: "input" };
const PATH: LoaderInput = { form: "path", root: "input" };
const FOLDER_PATH: LoaderInput = { form: "folder-path", root: "input" };

const LOADERS: Readonly<Record<string, Readonly<Record<string, LoaderInput>>>> = {
  LoadImage: { image: NAME },
  LoadImageMask: { image: NAME },
  LoadImageOutput: { image: { form: "name", root: "output" } },
  LoadAudio: { audio: NAME },
  LoadVideo: { file: NAME },
  LoadLatent: { latent: NAME },
  Load3D: { model_file: NAME },
  Load3DAnimation: { model_file: NAME },
  Load3DAdvanced: { model_file: NAME },
  LoadImageDataSetFromFolder: { folder: FOLDER },
  LoadImageTextDataSetFromFolder: { folder: FOLDER },
  LoadVideoDataSetFromFolder: { folder: FOLDER },
  LoadVideoTextDataSetFromFolder: { folder: FOLDER },
  LoadImageSetFromFolderNode: { folder: FOLDER },
  LoadImageTextSetFromFolderNode: { folder: FOLDER },
  // VideoHelperSuite.
  VHS_LoadVideo: { video: NAME },
  VHS_LoadVideoFFmpeg: { video: NAME },
  VHS_LoadVideoPath: { video: PATH },
  VHS_LoadVideoFFmpegPath: { video: PATH },
  VHS_LoadImagePath: { image: PATH },
  VHS_LoadAudio: { audio_file: PATH },
  VHS_LoadAudioUpload: { audio: NAME },
  VHS_LoadImages: { directory: FOLDER },
  VHS_LoadImagesPath: { directory: FOLDER_PATH },
  // Inspire, AnimateDiff.
  "LoadImage //Inspire": { image: NAME },
  ADE_LoadVideoUpload: { video: NAME },
  LoadVideoUpload: { video: NAME },
};

/** How a node loads by one of its inputs; undefined when that input names nothing to load. */
export function loaderInput(
  classType: string,
  input: string,
  definitions?: NodeDefinitions,
): LoaderInput | undefined {
  const row = Object.hasOwn(LOADERS, classType) ? LOADERS[classType] : undefined;
  if (row !== undefined && Object.hasOwn(row, input)) {
    return row[input];
  }
  return definitions?.input(classType, input)?.upload === undefined ? undefined : NAME;
}

/** A loader's value taken apart: ComfyUI drops the brackets and exactly one character before them. */
export interface AnnotatedName {
  readonly name: string;
  readonly root: "input" | "output" | "temp" | undefined;
}

/** Reads `a.png [output]`. */
export function parseAnnotation(value: string): AnnotatedName {
  const match = /^(.*).\[(input|output|temp)\]$/s.exec(value);
  const root = match?.[2];
  if (match === null || (root !== "input" && root !== "output" && root !== "temp")) {
    return { name: value, root: undefined };
  }
  return { name: match[1] ?? "", root };
}
