/**
 * Reads JSON as Cog's own parser does (cog_protocol.md §1.1): the same things are refused, with the same words and
 * the place in bytes. `JSON.parse` can't stand in: it takes lone surrogates, `1e400`, any depth and a byte order mark,
 * forgets duplicate members, and rounds the integers that are seeds.
 */
import type { JsonObject, JsonValue } from "../platform/json.ts";

/** Containers within containers, the outermost counted: the first one beyond is refused. */
const MAX_DEPTH = 127;

/** A JSON number whose spelling matters: `5.0` is not printed as `5` in a validation message. */
export class ExactNumber {
  readonly text: string;
  readonly value: number;

  constructor(text: string) {
    this.text = text;
    this.value = Number(text);
  }
}

/** Text that is no JSON. `message` is the parser's own, with path and place. */
export class JsonSyntaxError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "JsonSyntaxError";
  }
}

type PathStep = string | number;

const BLANK = /[ \t\n\r]*/y;
/** Up to a quote, an escape or a control character. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: those are what ends the run
const PLAIN_TEXT = /[^"\\\u0000-\u001f]*/y;
const DIGITS = /[0-9]*/y;
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

export interface JsonReaderOptions {
  /** Numbers with a fraction or an exponent, and integers beyond 64 bits, come as {@link ExactNumber}. */
  readonly exact?: boolean;
}

interface StringOptions {
  /** Escapes of half a surrogate pair are no mistake: nobody will read the text. */
  readonly anyEscape?: boolean;
}

/** A cursor over one JSON text. */
export class JsonReader {
  readonly text: string;
  #exact: boolean;
  readonly #path: PathStep[] = [];
  #at = 0;
  #depth = 0;

  constructor(text: string, options: JsonReaderOptions = {}) {
    this.text = text;
    this.#exact = options.exact ?? false;
  }

  /** The first character of the next token, "" at the end. */
  peek(): string {
    BLANK.lastIndex = this.#at;
    BLANK.test(this.text);
    this.#at = BLANK.lastIndex;
    return this.text[this.#at] ?? "";
  }

  /** Fails when anything but blanks is left. */
  end(): void {
    if (this.peek() !== "") {
      throw this.failAhead("trailing characters");
    }
  }

  value(): JsonValue {
    const first = this.peek();
    switch (first) {
      case "":
        throw this.failAhead("EOF while parsing a value");
      case "{":
        return this.#object();
      case "[":
        return this.#array();
      case '"':
        return this.string();
      case "t":
        return this.#word("true", true);
      case "f":
        return this.#word("false", false);
      case "n":
        return this.#word("null", null);
      default:
        if (first === "-" || (first >= "0" && first <= "9")) {
          return this.#number();
        }
        throw this.failAhead("expected value");
    }
  }

  /**
   * Calls `member` for each member of the object that begins here, its value not yet read; before that `named`, when
   * only the key has been read.
   */
  members(member: (key: string) => void, named?: (key: string) => void): void {
    this.#enter();
    this.#at += 1;
    this.#path.push("?");
    for (let isFirst = true; ; isFirst = false) {
      const next = this.peek();
      if (next === "}") {
        break;
      }
      if (next === "") {
        throw this.failAhead("EOF while parsing an object");
      }
      if (!isFirst) {
        this.#separator(next, "}", "expected `,` or `}`", "EOF while parsing a value");
      }
      if (this.peek() !== '"') {
        throw this.failAhead("key must be a string");
      }
      const key = this.string();
      this.#path.pop();
      named?.(key);
      this.#colon();
      this.#path.push(key);
      member(key);
      this.#path[this.#path.length - 1] = "?";
    }
    this.#at += 1;
    this.#path.pop();
    this.#depth -= 1;
  }

  /**
   * Calls `element` for each element of the array that begins here, its value not yet read; false = one too many.
   */
  elements(element: (index: number) => boolean): void {
    this.#enter();
    this.#at += 1;
    for (let index = 0; ; index += 1) {
      const next = this.peek();
      if (next === "]") {
        break;
      }
      if (next === "") {
        throw this.failAhead("EOF while parsing a list");
      }
      if (index > 0) {
        this.#separator(next, "]", "expected `,` or `]`", "EOF while parsing a value");
      }
      this.#path.push(index);
      const isWanted = element(index);
      this.#path.pop();
      if (!isWanted) {
        throw this.failAhead("trailing characters");
      }
    }
    this.#at += 1;
    this.#depth -= 1;
  }

  /** Reads an object that must have exactly one member: its key by `named`, its value by `member`. */
  single<T>(named: (key: string) => T, member: () => void): T {
    this.#at += 1;
    if (this.peek() !== '"') {
      throw this.failAhead("expected value");
    }
    const key = this.string();
    const result = named(key);
    this.#colon();
    this.#path.push(key);
    member();
    this.#path.pop();
    if (this.peek() !== "}") {
      throw this.fail("expected value");
    }
    this.#at += 1;
    return result;
  }

  /** One value whose numbers are told apart by their spelling. */
  exactValue(): JsonValue | ExactNumber {
    const before = this.#exact;
    this.#exact = true;
    try {
      return this.value();
    } finally {
      this.#exact = before;
    }
  }

  /** Passes over one value without keeping it: any depth, any size of number, no path. */
  skip(): void {
    const closers: string[] = [];
    do {
      const first = this.peek();
      if (first === "{" || first === "[") {
        this.#at += 1;
        closers.push(first === "{" ? "}" : "]");
        const next = this.peek();
        if (next === "" && first === "[") {
          throw this.failAhead("EOF while parsing a list");
        }
        if (next !== closers.at(-1)) {
          this.#skipKey(first === "{");
          continue;
        }
      } else {
        this.#skipScalar(first);
      }
      this.#skipEnds(closers);
    } while (closers.length > 0);
  }

  string(options: StringOptions = {}): string {
    const start = this.#at + 1;
    this.#at = start;
    this.#skipPlain();
    if (this.text[this.#at] === '"') {
      this.#at += 1;
      return this.text.slice(start, this.#at - 1);
    }
    let result = this.text.slice(start, this.#at);
    for (;;) {
      const stop = this.text[this.#at];
      if (stop === '"') {
        this.#at += 1;
        return result;
      }
      if (stop === undefined) {
        throw this.fail("EOF while parsing a string");
      }
      this.#at += 1;
      if (stop !== "\\") {
        throw this.fail("control character (\\u0000-\\u001F) found while parsing a string");
      }
      result += this.#escape(options.anyEscape ?? false);
      const from = this.#at;
      this.#skipPlain();
      result += this.text.slice(from, this.#at);
    }
  }

  /** An error at what was read last. */
  fail(message: string): JsonSyntaxError {
    return new JsonSyntaxError(`${this.#prefix()}${message} ${this.place(this.#at)}`);
  }

  /** An error at the byte that comes next. */
  failAhead(message: string): JsonSyntaxError {
    const isEnd = this.#at >= this.text.length;
    return new JsonSyntaxError(
      `${this.#prefix()}${message} ${this.place(this.#at, isEnd ? 0 : 1)}`,
    );
  }

  /** Where reading stands, as an error names it. */
  here(): string {
    return this.place(this.#at);
  }

  /** `path: ` of the member being read, "" at the top. */
  get path(): string {
    return this.#prefix();
  }

  place(index: number, furtherBytes = 0): string {
    const before = this.text.slice(0, index);
    const lineStart = before.lastIndexOf("\n") + 1;
    const line = before.split("\n").length;
    const column = Buffer.byteLength(before.slice(lineStart)) + furtherBytes;
    return `at line ${line} column ${column}`;
  }

  #prefix(): string {
    const path = this.#path
      .map((step) => (typeof step === "number" ? `[${step}]` : `.${step}`))
      .join("")
      .replace(/^\./, "");
    return path === "" || path === "?" ? "" : `${path}: `;
  }

  #enter(): void {
    this.#depth += 1;
    if (this.#depth > MAX_DEPTH) {
      throw this.failAhead("recursion limit exceeded");
    }
  }

  #object(): JsonObject {
    const object: JsonObject = {};
    this.members((key) => {
      const value = this.value();
      if (key === "__proto__") {
        Object.defineProperty(object, key, {
          value,
          enumerable: true,
          configurable: true,
          writable: true,
        });
      } else {
        object[key] = value;
      }
    });
    return object;
  }

  #array(): JsonValue[] {
    const list: JsonValue[] = [];
    this.elements(() => {
      list.push(this.value());
      return true;
    });
    return list;
  }

  #separator(next: string, close: string, expected: string, eof: string): void {
    if (next !== ",") {
      throw this.failAhead(expected);
    }
    this.#at += 1;
    const after = this.peek();
    if (after === close) {
      throw this.failAhead("trailing comma");
    }
    if (after === "") {
      throw this.failAhead(eof);
    }
  }

  #colon(): void {
    const next = this.peek();
    if (next !== ":") {
      throw this.failAhead(next === "" ? "EOF while parsing an object" : "expected `:`");
    }
    this.#at += 1;
  }

  #word<T extends JsonValue>(word: string, value: T): T {
    for (const letter of word) {
      const next = this.text[this.#at];
      if (next !== letter) {
        if (next !== undefined) {
          this.#at += 1;
        }
        throw this.fail(next === undefined ? "EOF while parsing a value" : "expected ident");
      }
      this.#at += 1;
    }
    return value;
  }

  #number(): JsonValue {
    const text = this.#numberText();
    const number = Number(text);
    if (!Number.isFinite(number)) {
      throw this.fail("number out of range");
    }
    // Minus zero is a float, like everything with a point or an exponent.
    return this.#numberValue(text, number, /^(?:\d+|-[1-9]\d*)$/.test(text));
  }

  /** The spelling of the number that begins here, checked step by step as errors are told. */
  #numberText(): string {
    const start = this.#at;
    this.#take("-");
    if (!this.#take("0")) {
      this.#digits();
    } else if (/\d/.test(this.text[this.#at] ?? "")) {
      throw this.failAhead("invalid number");
    }
    if (this.#take(".")) {
      this.#digits();
    }
    if (this.#take("e") || this.#take("E")) {
      this.#take("+") || this.#take("-");
      this.#digits();
    }
    return this.text.slice(start, this.#at);
  }

  #take(character: string): boolean {
    const isThere = this.text[this.#at] === character;
    this.#at += isThere ? 1 : 0;
    return isThere;
  }

  #digits(): void {
    DIGITS.lastIndex = this.#at;
    DIGITS.test(this.text);
    if (DIGITS.lastIndex === this.#at) {
      throw this.#at >= this.text.length
        ? this.failAhead("EOF while parsing a value")
        : this.failAhead("invalid number");
    }
    this.#at = DIGITS.lastIndex;
  }

  #skipScalar(first: string): void {
    if (first === '"') {
      this.string({ anyEscape: true });
    } else if (first === "-" || (first >= "0" && first <= "9")) {
      this.#numberText();
    } else {
      this.value();
    }
  }

  /** Behind a value: passes over the ends of containers, up to where the next value begins. */
  #skipEnds(closers: string[]): void {
    for (let closer = closers.at(-1); closer !== undefined; closer = closers.at(-1)) {
      const next = this.peek();
      if (next === ",") {
        this.#at += 1;
        this.#skipKey(closer === "}");
        return;
      }
      if (next !== closer) {
        const container = closer === "}" ? "an object" : "a list";
        const eof = `EOF while parsing ${container}`;
        throw this.failAhead(next === "" ? eof : `expected \`,\` or \`${closer}\``);
      }
      this.#at += 1;
      closers.pop();
    }
  }

  #skipKey(isObject: boolean): void {
    if (!isObject) {
      return;
    }
    const next = this.peek();
    if (next !== '"') {
      throw this.failAhead(next === "" ? "EOF while parsing an object" : "key must be a string");
    }
    this.string({ anyEscape: true });
    this.#colon();
  }

  #numberValue(text: string, number: number, isInteger: boolean): JsonValue {
    const integer = isInteger && !Number.isSafeInteger(number) ? BigInt(text) : undefined;
    const isFloat = !isInteger || (integer !== undefined && !fitsIn64Bits(integer));
    if (this.#exact && isFloat) {
      // The exact tree is only printed and compared by the validator, which knows the class.
      return new ExactNumber(text) as unknown as JsonValue;
    }
    return integer ?? number;
  }

  #skipPlain(): void {
    PLAIN_TEXT.lastIndex = this.#at;
    PLAIN_TEXT.test(this.text);
    this.#at = PLAIN_TEXT.lastIndex;
  }

  #escape(isAny: boolean): string {
    const letter = this.text[this.#at];
    if (letter === undefined) {
      throw this.fail("EOF while parsing a string");
    }
    this.#at += 1;
    if (letter !== "u") {
      const plain = ESCAPES[letter];
      if (plain === undefined) {
        throw this.fail("invalid escape");
      }
      return plain;
    }
    const unit = this.#hex();
    if (isAny) {
      return "";
    }
    if (unit >= 0xdc00 && unit <= 0xdfff) {
      throw this.fail("lone leading surrogate in hex escape");
    }
    if (unit < 0xd800 || unit > 0xdbff) {
      return String.fromCharCode(unit);
    }
    if (this.text.slice(this.#at, this.#at + 2) !== "\\u") {
      this.#at = Math.min(this.#at + 1, this.text.length);
      throw this.fail("unexpected end of hex escape");
    }
    this.#at += 2;
    const low = this.#hex();
    if (low < 0xdc00 || low > 0xdfff) {
      throw this.fail("lone leading surrogate in hex escape");
    }
    return String.fromCharCode(unit, low);
  }

  #hex(): number {
    const digits = this.text.slice(this.#at, this.#at + 4);
    if (digits.length < 4) {
      this.#at = this.text.length;
      throw this.fail("EOF while parsing a string");
    }
    this.#at += 4;
    if (!/^[0-9a-fA-F]{4}$/.test(digits)) {
      throw this.fail("invalid escape");
    }
    return Number.parseInt(digits, 16);
  }
}

function fitsIn64Bits(integer: bigint): boolean {
  return integer >= -(2n ** 63n) && integer < 2n ** 64n;
}
