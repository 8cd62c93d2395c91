/** What the installer asks of a shared store; it knows nothing else of one. */
import type { ObjectIdentity } from "./journal.ts";
import type { InstalledWeight, InstallJob, WeightSource } from "./plan-types.ts";
import type { VerifiedFile } from "./verify.ts";

/** Where a download grows, so that every process of the store finds it. */
export interface Growth {
  /** The `.cog-partial` folder. */
  readonly root: string;
  /** Stands for the destination: the same for all who want the same bytes. */
  readonly key: string;
}

export interface PlaceOptions {
  /** What lies at the job's place is ours, or broken and to be replaced. */
  readonly replace?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface StorePort {
  /** True for a job whose bytes go through the store. */
  handles(job: InstallJob): boolean;
  /** undefined where a job's bytes do not go through the store. */
  growth(job: InstallJob, identity: ObjectIdentity): Growth | undefined;
  /** Puts what the store holds at the job's place, without asking any source; undefined when it holds it not. */
  serve(job: InstallJob, options?: PlaceOptions): Promise<InstalledWeight | undefined>;
  /** Room for a download that is about to begin in `folder`. @throws DownloadError NO_SPACE saying what is pinned by whom */
  reserve(job: InstallJob, folder: string, bytes: number | undefined): Promise<Disposable>;
  /** Takes a verified download in, and puts it at the job's place. */
  take(
    file: VerifiedFile,
    job: InstallJob,
    from: { readonly source: WeightSource; readonly identity: ObjectIdentity },
    options?: PlaceOptions,
  ): Promise<InstalledWeight>;
  /** Takes in a weight that lies at its place already: one out of an archive. Never fails for want of a store. */
  keep(
    installed: InstalledWeight,
    job: InstallJob,
    from: { readonly source: WeightSource; readonly identity: ObjectIdentity },
  ): Promise<void>;
}
