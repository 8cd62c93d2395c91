/** Names that somebody may have meant. */

/** Names compared beyond this length differ in ways that no typo explains. */
const MAX_LENGTH = 80;

/** Candidates looked at; a folder may hold thousands of files. */
const MAX_CANDIDATES = 5000;

/** The candidates nearest to a name, best first: same letters, one in the other, few edits. */
export function nearNames(name: string, candidates: Iterable<string>, limit = 3): string[] {
  const wanted = plain(name);
  const scored: { candidate: string; score: number }[] = [];
  for (const candidate of candidates) {
    if (scored.length >= MAX_CANDIDATES) {
      break;
    }
    scored.push({ candidate, score: distance(wanted, plain(candidate)) });
  }
  // A name of one letter is near to every other one, which helps nobody.
  const bound = Math.min(Math.max(2, wanted.length / 3), wanted.length - 1);
  return scored
    .filter(({ score }) => score <= bound)
    .sort((one, other) => one.score - other.score)
    .slice(0, limit)
    .map(({ candidate }) => candidate);
}

/** ` (did you mean 'a' or 'b'?)`, or nothing. */
export function didYouMean(near: readonly string[]): string {
  return near.length === 0
    ? ""
    : ` (did you mean ${near.map((name) => `'${name}'`).join(" or ")}?)`;
}

/** Case and separators are what people get wrong most. */
function plain(name: string): string {
  return name
    .toLowerCase()
    .replace(/[\s_./\\:-]+/g, "")
    .slice(0, MAX_LENGTH);
}

/** Edits between two texts; one that contains the other counts as near. */
function distance(one: string, other: string): number {
  if (one.length > 2 && other.length > 2 && (one.includes(other) || other.includes(one))) {
    return Math.min(1, Math.abs(one.length - other.length));
  }
  let row = Array.from({ length: other.length + 1 }, (_none, index) => index);
  for (let left = 1; left <= one.length; left += 1) {
    const next = [left];
    for (let right = 1; right <= other.length; right += 1) {
      const swap = one[left - 1] === other[right - 1] ? 0 : 1;
      next.push(
        Math.min((next[right - 1] ?? 0) + 1, (row[right] ?? 0) + 1, (row[right - 1] ?? 0) + swap),
      );
    }
    row = next;
  }
  return row[other.length] ?? 0;
}
