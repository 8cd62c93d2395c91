/**
 * Which addresses a client may make us talk to (DESIGN §6). Every address of a host is checked after DNS, and the
 * connection is made to the addresses that were checked: a name can't answer twice. What the operator configures
 * is exempt ({@link AddressGuard.open}).
 */
import { lookup } from "node:dns/promises";
import { BlockList, isIP } from "node:net";
import { InputError } from "./errors.ts";
import { redactUrl } from "./redact.ts";

export interface ResolvedAddress {
  readonly address: string;
  readonly family: 4 | 6;
}

/** Not reachable over the public internet: this host, this network, this link, documentation, multicast. */
const PRIVATE_RANGES: readonly (readonly [string, number, "ipv4" | "ipv6"])[] = [
  ["0.0.0.0", 8, "ipv4"],
  ["10.0.0.0", 8, "ipv4"],
  ["100.64.0.0", 10, "ipv4"],
  ["127.0.0.0", 8, "ipv4"],
  ["169.254.0.0", 16, "ipv4"],
  ["172.16.0.0", 12, "ipv4"],
  ["192.0.0.0", 24, "ipv4"],
  ["192.0.2.0", 24, "ipv4"],
  ["192.168.0.0", 16, "ipv4"],
  ["198.18.0.0", 15, "ipv4"],
  ["198.51.100.0", 24, "ipv4"],
  ["203.0.113.0", 24, "ipv4"],
  ["224.0.0.0", 4, "ipv4"],
  ["240.0.0.0", 4, "ipv4"],
  ["::", 128, "ipv6"],
  ["::1", 128, "ipv6"],
  ["2001:db8::", 32, "ipv6"],
  ["fc00::", 7, "ipv6"],
  ["fe80::", 10, "ipv6"],
  ["fec0::", 10, "ipv6"],
  ["ff00::", 8, "ipv6"],
];

/** Services that hand out the machine's credentials. No setting opens them. */
const METADATA_ADDRESSES = new Set([
  "169.254.169.254",
  "169.254.170.2",
  "100.100.100.200",
  "fd00:ec2::254",
]);
const METADATA_HOSTS = new Set(["metadata.google.internal", "metadata.goog", "instance-data"]);

/** IPv6 forms that carry an IPv4 address: mapped, compatible, NAT64. The last 32 bits decide. */
const EMBEDDED_IPV4 = /^(?:::ffff:(?:0:)?|::|64:ff9b::)([0-9a-f]{1,4}):([0-9a-f]{1,4})$/;

function familyName(address: string): "ipv4" | "ipv6" {
  return isIP(address) === 4 ? "ipv4" : "ipv6";
}

/** One spelling per IPv6 address, as the URL standard writes it. */
function canonicalIp(address: string): string {
  return isIP(address) === 6
    ? new URL(`http://[${address.split("%")[0]}]`).hostname.slice(1, -1)
    : address;
}

/** The IPv4 address inside an IPv6 one, if it has that form. */
function embeddedIpv4(address: string): string | undefined {
  const match = EMBEDDED_IPV4.exec(canonicalIp(address));
  if (match === null) {
    return undefined;
  }
  const high = Number.parseInt(match[1] ?? "0", 16);
  const low = Number.parseInt(match[2] ?? "0", 16);
  return [high >> 8, high & 255, low >> 8, low & 255].join(".");
}

function blockList(ranges: readonly (readonly [string, number, "ipv4" | "ipv6"])[]): BlockList {
  const list = new BlockList();
  for (const [network, prefix, family] of ranges) {
    list.addSubnet(network, prefix, family);
  }
  return list;
}

const PRIVATE = blockList(PRIVATE_RANGES);

/** What `ALLOW_PRIVATE_NETWORK` says, taken apart. */
interface Allowance {
  readonly everything: boolean;
  readonly hosts: readonly string[];
  readonly networks: BlockList;
}

function parseAllowance(entries: readonly string[]): Allowance {
  const networks: [string, number, "ipv4" | "ipv6"][] = [];
  const hosts: string[] = [];
  let everything = false;
  for (const entry of entries) {
    const [network = "", prefix] = entry.split("/");
    if (entry === "1" || entry.toLowerCase() === "true") {
      everything = true;
    } else if (isIP(network) !== 0) {
      networks.push([
        network,
        Number(prefix ?? (isIP(network) === 4 ? 32 : 128)),
        familyName(network),
      ]);
    } else if (entry !== "0") {
      hosts.push(entry.toLowerCase());
    }
  }
  return { everything, hosts, networks: blockList(networks) };
}

/** True when `host` is one of the patterns; `*.example.com` takes sub-domains of it. */
export function hostMatches(host: string, patterns: readonly string[]): boolean {
  return patterns.some((pattern) =>
    pattern.startsWith("*.") ? host.endsWith(pattern.slice(1)) : host === pattern,
  );
}

export class AddressGuard {
  /** Lets everything through: for addresses that the operator gave. */
  static readonly open = new AddressGuard([], { enforced: false });

  readonly #allowance: Allowance;
  readonly #enforced: boolean;
  readonly #variable: string;

  /** `allow`: `"1"`, host names, `*.domain`, addresses or CIDRs. `variable` is named in refusals. */
  constructor(
    allow: readonly string[],
    options: { readonly enforced?: boolean; readonly variable?: string } = {},
  ) {
    this.#allowance = parseAllowance(allow);
    this.#enforced = options.enforced ?? true;
    this.#variable = options.variable ?? "ALLOW_PRIVATE_NETWORK";
  }

  get enforced(): boolean {
    return this.#enforced;
  }

  /**
   * Resolves the host of `url` and checks every address it has.
   * @throws InputError FETCH_REFUSED when one of them is inside, FETCH_FAILED when the name is unknown.
   */
  async check(url: string): Promise<readonly ResolvedAddress[]> {
    const parsed = this.#parse(url);
    const host = parsed.hostname.replace(/^\[|\]$/g, "").toLowerCase();
    const addresses = await resolve(host, url);
    for (const { address } of addresses) {
      this.#checkAddress(host, address, url);
    }
    return addresses;
  }

  #parse(url: string): URL {
    let parsed: URL;
    try {
      parsed = new URL(url);
    } catch (cause) {
      throw new InputError("INPUT_INVALID", `"${redactUrl(url)}" is not a valid URL`, { cause });
    }
    if (parsed.protocol !== "http:" && parsed.protocol !== "https:") {
      throw new InputError("FETCH_REFUSED", `${redactUrl(url)} is not an http or https address`);
    }
    return parsed;
  }

  #checkAddress(host: string, address: string, url: string): void {
    if (!this.#enforced) {
      return;
    }
    const plain = embeddedIpv4(address) ?? canonicalIp(address);
    if (METADATA_HOSTS.has(host) || METADATA_ADDRESSES.has(plain)) {
      throw new InputError(
        "FETCH_REFUSED",
        `${redactUrl(url)} is a cloud metadata service, which is never fetched`,
      );
    }
    if (!PRIVATE.check(plain, familyName(plain)) || this.#isAllowed(host, plain)) {
      return;
    }
    throw new InputError(
      "FETCH_REFUSED",
      `${redactUrl(url)} points to ${plain}, inside this machine's own network`,
      { hint: `Use a public address, or have the operator list ${host} in ${this.#variable}.` },
    );
  }

  #isAllowed(host: string, address: string): boolean {
    const { everything, hosts, networks } = this.#allowance;
    return everything || hostMatches(host, hosts) || networks.check(address, familyName(address));
  }
}

async function resolve(host: string, url: string): Promise<readonly ResolvedAddress[]> {
  const literal = isIP(host);
  if (literal === 4 || literal === 6) {
    return [{ address: host, family: literal }];
  }
  try {
    const found = await lookup(host, { all: true });
    return found.map(({ address, family }) => ({ address, family: family === 4 ? 4 : 6 }));
  } catch (cause) {
    throw new InputError("FETCH_FAILED", `The host of ${redactUrl(url)} is unknown`, {
      cause,
      hint: "Check the spelling of the address and that this machine can resolve names.",
      retryable: true,
    });
  }
}
