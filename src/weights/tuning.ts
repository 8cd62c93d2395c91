/** Every threshold of the data plane, each with its reason. Tests shorten them; operators need not touch them. */

export interface Tuning {
  /** 16 pay off under per-connection caps; more only annoy servers (downloader.md B.2). */
  readonly connectionsPerFile: number;
  readonly connectionsPerOrigin: number;
  readonly connectionsTotal: number;
  /** A polite beginning; doubled while the rate still rises. */
  readonly startConnections: number;
  readonly rampIntervalMs: number;
  /** Large files at once: they share the connections anyway. */
  readonly filesAtOnce: number;
  readonly smallFilesAtOnce: number;
  /** Under this a file is one request of the small lane. */
  readonly smallFileBytes: number;
  /** Bytes between journal lines; by size unless set. */
  readonly chunkBytes: number | undefined;
  /** Longest a server may take to answer at all. */
  readonly headersTimeoutMs: number;
  /** A connection without a byte for this long is dropped. */
  readonly stallTimeoutMs: number;
  /** A connection under this rate for this long is dropped when its siblings are much faster. */
  readonly slowBytesPerSecond: number;
  readonly slowWindowMs: number;
  /** Tries without a single new byte before a source is given up. */
  readonly attempts: number;
  readonly firstRetryDelayMs: number;
  readonly maxRetryDelayMs: number;
  /** Bad ranges in a row before a source is given up. */
  readonly rangeFaults: number;
  /** A signed address is renewed at most this often without progress. */
  readonly renewals: number;
  /** Signed addresses with less life than this are renewed before they fail. */
  readonly renewBeforeMs: number;
  /** Not worth a request of its own. */
  readonly minStealBytes: number;
  /** How often rates are measured and connections looked at. */
  readonly tickMs: number;
  /** For one file, from its first byte to its last; none by default, the stall rules do. */
  readonly fileDeadlineMs: number | undefined;
  /** How often another process that downloads the same file is looked at. */
  readonly busyPollMs: number;
  /** Without progress for this long, we download it ourselves all the same. */
  readonly busyPatienceMs: number;
  readonly progressIntervalMs: number;
}

export const DEFAULT_TUNING: Tuning = {
  connectionsPerFile: 16,
  connectionsPerOrigin: 16,
  connectionsTotal: 32,
  startConnections: 4,
  rampIntervalMs: 50,
  filesAtOnce: 3,
  smallFilesAtOnce: 8,
  smallFileBytes: 8 * 1024 * 1024,
  chunkBytes: undefined,
  headersTimeoutMs: 15_000,
  stallTimeoutMs: 10_000,
  slowBytesPerSecond: 64 * 1024,
  slowWindowMs: 20_000,
  attempts: 8,
  firstRetryDelayMs: 500,
  maxRetryDelayMs: 30_000,
  rangeFaults: 3,
  renewals: 3,
  renewBeforeMs: 60_000,
  minStealBytes: 256 * 1024,
  tickMs: 50,
  fileDeadlineMs: undefined,
  busyPollMs: 150,
  busyPatienceMs: 60_000,
  progressIntervalMs: 200,
};
