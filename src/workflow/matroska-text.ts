/** The tags of a WebM or Matroska file, where ComfyUI's SaveWEBM keeps prompt and workflow. */

export interface MatroskaTag {
  readonly key: string;
  readonly text: string;
}

/** Elements that lead to the tags, by their id. */
const SEGMENT = 0x18538067;
const TAGS = 0x1254c367;
const TAG = 0x7373;
const SIMPLE_TAG = 0x67c8;
const TAG_NAME = 0x45a3;
const TAG_STRING = 0x4487;

const CONTAINERS: ReadonlySet<number> = new Set([SEGMENT, TAGS, TAG]);

/** True for the first bytes of a Matroska file. */
export function isMatroska(view: Buffer): boolean {
  return view.length > 4 && view.readUInt32BE(0) === 0x1a45dfa3;
}

/** Every tag of the file. What lies behind a cluster of unknown size (a live recording) is not looked at. */
export function readMatroskaTags(view: Buffer): { texts: MatroskaTag[]; truncated: boolean } {
  const texts: MatroskaTag[] = [];
  const waiting: Buffer[] = [view];
  let truncated = false;
  for (let level = waiting.pop(); level !== undefined; level = waiting.pop()) {
    for (let at = 0; at < level.length; ) {
      const element = readElement(level, at);
      if (element === undefined) {
        truncated = true;
        break;
      }
      const body = level.subarray(element.from, element.to);
      if (CONTAINERS.has(element.id)) {
        waiting.push(body);
      } else if (element.id === SIMPLE_TAG) {
        texts.push(...readSimpleTag(body));
      }
      at = element.to;
    }
  }
  return { texts, truncated };
}

function readSimpleTag(body: Buffer): MatroskaTag[] {
  let key: string | undefined;
  let text: string | undefined;
  for (let at = 0; at < body.length; ) {
    const element = readElement(body, at);
    if (element === undefined) {
      break;
    }
    const value = body.subarray(element.from, element.to).toString("utf8");
    key = element.id === TAG_NAME ? value.toLowerCase() : key;
    text = element.id === TAG_STRING ? value.replace(/\0+$/, "") : text;
    at = element.to;
  }
  return key === undefined || text === undefined ? [] : [{ key, text }];
}

interface Element {
  readonly id: number;
  readonly from: number;
  readonly to: number;
}

/** The element at a place, or undefined when it doesn't fit. Always ends behind its start, so that a walk ends. */
function readElement(view: Buffer, at: number): Element | undefined {
  const id = readVariable(view, at, 4);
  const size = id === undefined ? undefined : readVariable(view, at + id.length, 8);
  if (id === undefined || size === undefined) {
    return undefined;
  }
  const from = at + id.length + size.length;
  // The id keeps its length mark, the size doesn't; a size of all ones means "to the end".
  const isUnknown = size.value === 2 ** (7 * size.length) - 1;
  const to = isUnknown ? view.length : from + size.value;
  return to > view.length ? undefined : { id: id.marked, from, to };
}

/** A number whose leading zero bits tell its length. */
function readVariable(
  view: Buffer,
  at: number,
  longest: number,
): { value: number; marked: number; length: number } | undefined {
  const first = view[at] ?? 0;
  const length = Math.clz32(first) - 23;
  if (first === 0 || length > longest || at + length > view.length) {
    return undefined;
  }
  // The mark is taken off first: with it a long size would need more digits than a number has.
  let value = first & (0xff >> length);
  for (let index = 1; index < length; index += 1) {
    value = value * 256 + (view[at + index] ?? 0);
  }
  return { value, marked: value + 2 ** (7 * length), length };
}
