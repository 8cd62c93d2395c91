/**
 * Building blocks for a model's inputs. A model describes them as one zod object; each field below carries what the
 * OpenAPI document says about it (title, description, default, limits), so that zod stays the only source of types:
 * `z.output` of the object is what `predict` receives.
 */
import { z } from "zod";

interface About {
  readonly description?: string;
  /** Shown by forms; the name in words unless given. */
  readonly title?: string;
  /** Still accepted, no longer offered. */
  readonly deprecated?: boolean;
}

interface TextAbout extends About {
  readonly minLength?: number;
  readonly maxLength?: number;
  /** Searched anywhere in the text, as JSON Schema does. */
  readonly pattern?: RegExp;
}

interface NumberAbout extends About {
  readonly min?: number;
  readonly max?: number;
}

interface FileAbout extends About {
  /** MIME types or extensions that a file picker offers, for example `image/*`. */
  readonly accept?: string;
}

function metaOf(about: About): Record<string, unknown> {
  return {
    ...(about.description === undefined ? {} : { description: about.description }),
    ...(about.title === undefined ? {} : { title: about.title }),
    ...(about.deprecated === true ? { deprecated: true } : {}),
  };
}

/** A text. */
export function stringInput(
  about: TextAbout & { readonly default: string },
): z.ZodDefault<z.ZodString>;
export function stringInput(about: TextAbout): z.ZodString;
export function stringInput(
  about: TextAbout & { readonly default?: string },
): z.ZodString | z.ZodDefault<z.ZodString> {
  let field = z.string();
  field = about.minLength === undefined ? field : field.min(about.minLength);
  field = about.maxLength === undefined ? field : field.max(about.maxLength);
  field = about.pattern === undefined ? field : field.regex(about.pattern);
  field = field.meta(metaOf(about));
  return about.default === undefined ? field : field.default(about.default);
}

/** A whole number, limits included. */
export function intInput(about: NumberAbout & { readonly default: number }): z.ZodDefault<z.ZodInt>;
export function intInput(about: NumberAbout): z.ZodInt;
export function intInput(
  about: NumberAbout & { readonly default?: number },
): z.ZodInt | z.ZodDefault<z.ZodInt> {
  let field = z.int();
  field = about.min === undefined ? field : field.min(about.min);
  field = about.max === undefined ? field : field.max(about.max);
  field = field.meta(metaOf(about));
  return about.default === undefined ? field : field.default(about.default);
}

/** Any number, limits included. */
export function floatInput(
  about: NumberAbout & { readonly default: number },
): z.ZodDefault<z.ZodNumber>;
export function floatInput(about: NumberAbout): z.ZodNumber;
export function floatInput(
  about: NumberAbout & { readonly default?: number },
): z.ZodNumber | z.ZodDefault<z.ZodNumber> {
  let field = z.number();
  field = about.min === undefined ? field : field.min(about.min);
  field = about.max === undefined ? field : field.max(about.max);
  field = field.meta(metaOf(about));
  return about.default === undefined ? field : field.default(about.default);
}

/** Yes or no. */
export function boolInput(about: About & { readonly default: boolean }): z.ZodDefault<z.ZodBoolean>;
export function boolInput(about: About): z.ZodBoolean;
export function boolInput(
  about: About & { readonly default?: boolean },
): z.ZodBoolean | z.ZodDefault<z.ZodBoolean> {
  const field = z.boolean().meta(metaOf(about));
  return about.default === undefined ? field : field.default(about.default);
}

type Choices<T extends string> = z.ZodEnum<{ [K in T]: K }>;

/** One of a few words; in the document a component of its own, as Cog writes choices. */
export function choiceInput<const T extends string>(
  choices: readonly [T, ...T[]],
  about: About & { readonly default: NoInfer<T> },
): z.ZodDefault<Choices<T>>;
export function choiceInput<const T extends string>(
  choices: readonly [T, ...T[]],
  about: About,
): Choices<T>;
export function choiceInput<const T extends string>(
  choices: readonly [T, ...T[]],
  about: About & { readonly default?: NoInfer<T> },
): Choices<T> | z.ZodDefault<Choices<T>> {
  const field = z.enum([...choices] as [T, ...T[]]).meta(metaOf(about)) as unknown as Choices<T>;
  if (about.default === undefined) {
    return field;
  }
  const wrapped: z.ZodDefault<Choices<T>> = z._default(field, about.default as never);
  return wrapped;
}

/** A file: the client sends an http(s) or data URL, the model gets a path, or undefined when none was sent. */
export function fileInput(about: FileAbout): z.ZodOptional<z.ZodString> {
  return requiredFileInput(about).optional();
}

/** A file that must be sent. */
export function requiredFileInput(about: FileAbout): z.ZodString {
  return z.string().meta({
    ...metaOf(about),
    format: "uri",
    ...(about.accept === undefined ? {} : { "x-cog-accept": about.accept }),
  });
}

/** A list of files, each fetched to a path. */
export function filesInput(about: FileAbout): z.ZodOptional<z.ZodArray<z.ZodString>> {
  return z
    .array(z.string().meta({ format: "uri" }))
    .meta({
      ...metaOf(about),
      ...(about.accept === undefined ? {} : { "x-cog-accept": about.accept }),
    })
    .optional();
}

/** A credential: masked wherever it would be shown. Optional, "" unless given. */
export function secretInput(about: About): z.ZodDefault<z.ZodString> {
  return z
    .string()
    .meta({ ...metaOf(about), format: "password", writeOnly: true, "x-cog-secret": true })
    .default("");
}
