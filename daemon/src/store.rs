//! Blocks on a local disk: files, presence, space, eviction, leases, recovery.
//!
//! Owns a cache directory and everything in it. Synchronous and thread-safe: calls that may touch the disk belong on a
//! blocking pool and say so; everything else only takes a lock that is never held across I/O.
//!
//! Invariants
//! * A page that is [`Block::present`] holds exactly the object's bytes, or the disk lied since this life wrote or
//!   verified them (or the last stop vouched for them): [`BlockStore::read`] notices even that.
//! * A published file is never truncated, extended, punched, reused or overwritten. Eviction unlinks it; who holds a
//!   descriptor keeps reading its bytes, and they count until they are *proved* free.
//! * `committed + reserved + unlinked + quarantined + foreign <= quota` for every reservation granted, and the file
//!   system keeps its free-space floor.
//! * A [`FileId`] names one file for good, over restarts.
//! * No byte that a user chose is part of a path.
//!
//! Does not know origins, peers, clients' protocols, or when to evict for any reason but space.
//!
//! | module | owns |
//! |---|---|
//! | `format` | the block file's bytes |
//! | `layout`, `marker` | paths, the directory's lock, the epoch, the clean-stop marker |
//! | `ledger`, `eviction` | who owes which bytes; the order of eviction (both pure) |
//! | `block` | a block in memory |
//! | `lookup`, `recovery` | from identity to block: by memory, by path, by scanning everything |
//! | `pages` | writing, reading and verifying pages |
//! | `durability` | bringing written pages to disk |
//! | `scrub` | finding what the disk has lost |
//! | `health`, `probe` | whether the disk may be trusted with blocks (pure); asking it, and telling what changed |
//! | `admission`, `retire` | making room; taking files out of the cache, reclaiming and quarantining them |
//! | `grant` | descriptors for readers, and the read-only path they come through |
//! | `wipe` | removing the whole of it, for good |
//! | `lease`, `descriptors` | proof that nobody holds a file; the daemon's own descriptors |

mod admission;
mod block;
mod descriptors;
mod durability;
mod error;
// Public for the trace simulator, which replays traces against this very code; not for the daemon's other modules.
pub mod eviction;
mod format;
mod grant;
mod health;
mod layout;
mod lease;
mod ledger;
mod lookup;
mod marker;
mod pages;
mod probe;
mod recovery;
mod retire;
mod scrub;
mod status;
mod wipe;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cachelet_protocol::block::{BlockIndex, BlockSize};
use cachelet_protocol::ids::{Epoch, FileId, ObjectId, SessionId};
use cachelet_protocol::residency::Residency;

use block::Key;
use descriptors::Descriptors;
use durability::Dirty;
use eviction::{Eviction, Tuning};
use health::Disk;
use layout::Layout;
use ledger::Ledger;
use marker::Suspects;

pub use admission::{FillGuard, Reservation};
pub use block::{Block, BlockIdentity, ObjectIdentity};
pub use error::Error;
pub use format::{CRC_OFFSET, DATA_OFFSET, Damage, HEADER_CHARGE, check_header, with_header_checksum};
pub use grant::{Grant, GrantStatus};
pub use health::{DiskChange, DiskState, DiskStatus};
pub use recovery::Recovery;
pub use retire::{Forget, Forgotten};
pub use scrub::ScrubPosition;
pub use status::{BlockStatus, LedgerSnapshot};
pub use wipe::{Wiped, wipe};

/// How many damaged files are kept for inspection.
pub const MAX_QUARANTINED_FILES: usize = 8;

/// What a store is opened with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cache directory. Created if it is missing.
    pub directory: PathBuf,
    /// Where a second, read-only mount of `directory` is.
    pub read_only_path: Option<PathBuf>,
    /// What grants require.
    pub grants: GrantPolicy,
    /// Most bytes the cache may take.
    pub quota_bytes: u64,
    /// Share of the file system, in percent, that stays free whatever the quota says.
    pub min_free_percent: u8,
    /// The size of blocks. Files of another block size are dropped.
    pub block_size: BlockSize,
    /// Most descriptors of block files that are kept open.
    pub max_open_files: usize,
    /// An operation of a healthy disk takes no longer than this; zero: slowness says nothing about the disk.
    pub slow_disk: Duration,
    /// How long an offline disk is left alone before it is tried again.
    pub disk_retry: Duration,
}

/// What granting descriptors requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantPolicy {
    /// The read-only path, and that it passes its test. Otherwise nothing is granted.
    Required,
    /// Nothing: without a working read-only path, descriptors come from the cache directory itself, and whoever has
    /// the rights to the file can re-open them for writing. For development on one's own machine.
    Unprotected,
}

/// Why a file left the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Its bytes were needed.
    Space,
    /// Somebody said that the object is no longer wanted.
    Invalidated,
    /// It is damaged.
    Corrupt(Damage),
    /// It could not be written or brought to disk.
    WriteFailed,
    /// Somebody else removed or replaced it.
    Vanished,
}

/// Something happened that other parts of the daemon react to.
///
/// Events come from the thread that caused them, so handling one is quick and calls nothing that touches the disk; cheap
/// calls of the store are fine. Events of different threads about one block may come in either order: whoever keeps
/// state asks the store for it.
#[derive(Debug)]
pub enum Event {
    /// There is more, or nothing any more, of a block here.
    BlockChanged {
        /// Which block.
        identity: BlockIdentity,
        /// How much of it is here now.
        residency: Residency,
        /// Its file was found on disk: that says nothing about whether its generation is still the newest.
        found: bool,
    },
    /// A file left the cache. Who holds it should close it.
    Evicted {
        /// The file.
        file_id: FileId,
        /// The block it held.
        identity: BlockIdentity,
        /// The sessions that lease it.
        sessions: Vec<SessionId>,
        /// Why.
        reason: Reason,
    },
    /// A damaged file was found, and put in quarantine. If it was in the cache, `Evicted` follows.
    Corrupt {
        /// The object that the file was filed under.
        object: ObjectId,
        /// The block that the file was filed under.
        index: BlockIndex,
        /// Where it is now.
        path: PathBuf,
        /// How it is damaged.
        damage: Damage,
    },
    /// The disk failed the store in something that no caller waits for.
    Failed(Error),
    /// The disk is no longer how it was.
    Disk(DiskChange),
    /// The disk is offline: who holds the file should close it, though it is still in the cache.
    Recalled {
        /// The file.
        file_id: FileId,
        /// The sessions that lease it.
        sessions: Vec<SessionId>,
    },
}

type Listener = Box<dyn Fn(Event) + Send + Sync>;

/// The blocks of one cache directory. A cheap handle.
#[derive(Clone)]
pub struct BlockStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    layout: Layout,
    epoch: Epoch,
    next_file: AtomicU64,
    grants: grant::Source,
    suspects: Suspects,
    disk: Disk,
    /// Where the policy's time begins.
    opened: Instant,
    descriptors: Descriptors,
    listener: Listener,
    /// Held by the scan, so that there is one. Taken before everything else.
    recovering: Mutex<()>,
    state: Mutex<State>,
    /// Signalled when a key is no longer busy, the scan is over, or the last page write is.
    changed: Condvar,
    /// Holds the directory's lock.
    _lock: File,
}

/// Everything that changes together. Never locked across I/O; taken after a block's `writer`.
struct State {
    ledger: Ledger,
    eviction: Eviction,
    /// The blocks in the cache.
    index: BTreeMap<Key, Arc<Block>>,
    /// The same blocks by their files.
    files: HashMap<FileId, Arc<Block>>,
    /// Blocks whose path somebody works on: looks for, creates, or removes.
    busy: HashSet<Key>,
    /// Blocks whose file should be gone and could not be removed: nobody gets to see it again.
    banned: HashMap<Key, FileId>,
    /// Files that left the cache and are not proved free.
    unlinked: HashMap<FileId, Arc<File>>,
    /// Damaged files, oldest first, by the id they are charged under.
    quarantine: VecDeque<(FileId, PathBuf)>,
    /// Files with pages that may not be on disk.
    dirty: Dirty,
    /// Page writes in flight.
    writes: usize,
    recovered: bool,
    closed: bool,
    counts: Counts,
}

/// What the store counts for its status.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    pages: u64,
    evictions: u64,
    corruptions: u64,
    foreign_files: u64,
    reclaimed_bytes: u64,
    hit_bytes: u64,
    syncs: u64,
    failed_syncs: u64,
    scrubbed_bytes: u64,
    scrub_findings: u64,
    scrub_passes: u64,
}

/// Whether a running daemon holds the cache directory now.
pub fn is_held(directory: &Path) -> bool {
    Layout::of(directory).is_locked()
}

impl BlockStore {
    /// Opens a cache directory: creates what is missing, takes its lock, starts a new epoch, tests the read-only path.
    ///
    /// Blocks can be found at once; space is given out once [`BlockStore::recover`] has run. Touches the disk.
    pub fn open(config: Config, listener: impl Fn(Event) + Send + Sync + 'static) -> Result<Self, Error> {
        config.check()?;
        let layout = Layout::create(&config.directory)?;
        let held = layout.take_lock(&config.directory)?;
        // A wipe may have ended since: what it took away is made again, now that none can begin.
        Layout::create(&config.directory)?;
        let epoch = layout.next_epoch()?;
        let suspects = marker::take(&layout)?;
        recovery::sweep_temporary(&layout)?;
        grant::check_leases(&layout)?;
        let grants = grant::Source::open(&config, &layout)?;
        let state = State {
            ledger: Ledger::new(config.quota_bytes),
            eviction: Eviction::new(config.quota_bytes, Tuning::default()),
            index: BTreeMap::new(),
            files: HashMap::new(),
            busy: HashSet::new(),
            banned: HashMap::new(),
            unlinked: HashMap::new(),
            quarantine: VecDeque::new(),
            dirty: Dirty::default(),
            writes: 0,
            recovered: false,
            closed: false,
            counts: Counts::default(),
        };
        let disk = Disk::new(config.slow_disk, config.disk_retry);
        let inner = Inner {
            descriptors: Descriptors::new(config.max_open_files),
            next_file: AtomicU64::new((epoch.0 << 32) + 1),
            listener: Box::new(listener),
            recovering: Mutex::new(()),
            state: Mutex::new(state),
            changed: Condvar::new(),
            _lock: held,
            config,
            layout,
            epoch,
            grants,
            suspects,
            disk,
            opened: Instant::now(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// This life's epoch.
    pub fn epoch(&self) -> Epoch {
        self.inner.epoch
    }

    /// The size of blocks.
    pub fn block_size(&self) -> BlockSize {
        self.inner.config.block_size
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    /// The time that the order of eviction goes by.
    fn uptime(&self) -> Duration {
        self.inner.opened.elapsed()
    }

    fn emit(&self, event: Event) {
        (self.inner.listener)(event);
    }

    fn new_file_id(&self) -> FileId {
        // 2^32 ids a life. An overflow would need more than one file a second since the epoch began, which is unix time,
        // and would still only meet ids of an epoch that can never begin.
        FileId(self.inner.next_file.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Debug for BlockStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockStore")
            .field("directory", &self.inner.config.directory)
            .field("epoch", &self.inner.epoch)
            .finish_non_exhaustive()
    }
}

impl Config {
    fn check(&self) -> Result<(), Error> {
        let least = HEADER_CHARGE + self.block_size.bytes();
        let bad = |key, value: String, reason: String| Err(Error::Config { key, value, reason });
        if self.quota_bytes < least {
            let reason = format!("one block takes {least} bytes; give the cache at least that");
            return bad("quota_bytes", self.quota_bytes.to_string(), reason);
        }
        if self.min_free_percent > 99 {
            let reason = "it is the share of the disk to leave free, from 0 to 99".to_owned();
            return bad("min_free_percent", self.min_free_percent.to_string(), reason);
        }
        if self.max_open_files == 0 {
            let reason = "the store needs at least one descriptor".to_owned();
            return bad("max_open_files", self.max_open_files.to_string(), reason);
        }
        Ok(())
    }
}

/// Locks, also after a panic elsewhere: what happens under these locks is straight-line bookkeeping that leaves nothing
/// half-done, and a cache that panics for ever after would be in everybody's way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
