//! Making room: reservations within the quota and above the free-space floor, and blocks that must stay for now.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cachelet_protocol::ids::{FileId, SessionId};
use nix::sys::statvfs::statvfs;

use super::health::Operation;
use super::retire::Outcome;
use super::{Block, BlockStore, Error, Reason, State, lock};

/// How long a reservation or an invalidation waits for the scan of the directory before it says so: longer than a scan of 100,000 files.
const RECOVERY_WAIT: Duration = Duration::from_secs(10);
/// After so many files that could not be removed in one reservation, the disk is to blame.
const MAX_FAILED_EVICTIONS: u32 = 3;

/// Bytes that are set aside; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    store: BlockStore,
    bytes: u64,
}

impl Reservation {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` out of this reservation into another one; `None` if it has fewer.
    pub fn split(&mut self, bytes: u64) -> Option<Reservation> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(Reservation {
            store: self.store.clone(),
            bytes,
        })
    }

    /// Ends the reservation; the ledger must be told what became of the bytes.
    pub(super) fn spend(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.store.state().ledger.unreserve(self.bytes);
        }
    }
}

/// A fill in flight: its block is not evicted until this is dropped.
#[derive(Debug)]
pub struct FillGuard {
    store: BlockStore,
    block: Arc<Block>,
}

impl FillGuard {
    /// The block being filled.
    pub fn block(&self) -> &Arc<Block> {
        &self.block
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        let mut state = self.store.state();
        if self.block.end_fill() {
            state.eviction.set_filling(self.block.file_id(), false);
        }
    }
}

/// What the file system had to spare above its floor, when the ledger had seen `written` bytes written.
#[derive(Debug, Clone, Copy)]
struct Spare {
    bytes: u64,
    written: u64,
}

impl BlockStore {
    /// Reserves `bytes`, evicting what is worth least if need be. Touches the disk; waits for the directory's scan.
    ///
    /// Blocks with a fill in flight are never evicted, leased blocks only when nothing else is left, and of these only
    /// as many as are missing: their bytes come back when their holders let go, so the reservation itself fails with
    /// [`Error::NoSpace`] and succeeds later.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, Error> {
        self.check_disk()?;
        let spare = self.measure_spare()?;
        let mut freed = 0;
        let mut failures = 0;
        let mut reclaimed = false;
        loop {
            let (shortage, disk) = {
                let mut state = self.once_recovered()?;
                let totals = state.ledger.totals();
                let since = state.ledger.ever_written() - spare.written;
                let disk = (spare.bytes + freed).saturating_sub(since);
                let wanted = totals.reserved.saturating_add(bytes);
                let shortage = state.ledger.shortage(bytes).max(wanted.saturating_sub(disk));
                if shortage == 0 && state.ledger.reserve(bytes) {
                    return Ok(Reservation {
                        store: self.clone(),
                        bytes,
                    });
                }
                (shortage, disk)
            };
            if !std::mem::replace(&mut reclaimed, true) {
                freed += self.reclaim();
                continue;
            }
            match self.make_room(shortage) {
                Some(Outcome::Freed(bytes)) => freed += bytes,
                Some(Outcome::Held | Outcome::Gone) => {}
                Some(Outcome::Failed) if failures < MAX_FAILED_EVICTIONS => failures += 1,
                Some(Outcome::Failed) | None => return Err(self.no_space(bytes, disk)),
            }
        }
    }

    /// Keeps a block from being evicted until the guard is dropped. Cheap.
    pub fn begin_fill(&self, block: &Arc<Block>) -> Result<FillGuard, Error> {
        // Under the lock that eviction chooses its victim under.
        let mut state = self.state();
        if block.is_retired() {
            return Err(Error::Evicted {
                file_id: block.file_id(),
            });
        }
        if block.add_fill() {
            state.eviction.set_filling(block.file_id(), true);
        }
        Ok(FillGuard {
            store: self.clone(),
            block: Arc::clone(block),
        })
    }

    /// A reader's hint that it read `bytes` of a file, in these pages: it counts for the file's worth. Cheap.
    ///
    /// The hint is not trusted: it moves nothing but the order of eviction and a counter, and the bytes that are counted
    /// (and returned) are at most 64 times the file's present pages, or those of `pages`, which is more than a report
    /// interval can hold on any node.
    pub fn used(&self, file: FileId, bytes: u64, pages: cachelet_protocol::block::PageSet) -> u64 {
        let mut state = self.state();
        let Some(block) = state.files.get(&file) else {
            return 0;
        };
        let present = block.present().intersection(pages);
        let hash = block.identity().key().hash();
        let hit = bytes.min(present.bytes_in(block.length()).saturating_mul(64));
        state.counts.hit_bytes += hit;
        if !present.is_empty() {
            state.eviction.used(file, hash, present, self.uptime());
        }
        hit
    }

    /// A session closed a file. Its bytes are free only when [`BlockStore::reclaim`] has proved it. Cheap.
    pub fn release(&self, session: SessionId, file: FileId) {
        let mut state = self.state();
        if state.ledger.release(session, file) {
            state.eviction.set_leased(file, false);
        }
    }

    /// A session is over. Cheap.
    pub fn release_session(&self, session: SessionId) {
        let mut state = self.state();
        for file in state.ledger.release_session(session) {
            state.eviction.set_leased(file, false);
        }
    }

    /// The bytes of all files that a session leases, evicted ones included. Cheap.
    pub fn held_bytes(&self, session: SessionId) -> u64 {
        self.state().ledger.held_bytes(session)
    }

    /// The state, once the directory's scan is over: everything is known, and space may be given out.
    pub(super) fn once_recovered(&self) -> Result<MutexGuard<'_, State>, Error> {
        let deadline = Instant::now() + RECOVERY_WAIT;
        let mut state = self.state();
        loop {
            if state.closed {
                return Err(Error::Closed);
            }
            if state.recovered {
                return Ok(state);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Recovering);
            }
            let waited = self.inner.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes one more file out of the cache for `shortage` missing bytes; `None` if there is none to take.
    pub(super) fn make_room(&self, shortage: u64) -> Option<Outcome> {
        let victim = {
            let mut state = self.state();
            let State {
                eviction,
                files,
                busy,
                ledger,
                ..
            } = &mut *state;
            // Blocks with a fill in flight are no candidates. Of the others, few are busy: being created or removed.
            let evictable = |file: FileId| {
                let block = files.get(&file)?;
                let free = !busy.contains(&block.identity().key());
                free.then(|| Arc::clone(block))
            };
            let idle = eviction.idle().find_map(evictable);
            idle.or_else(|| {
                // What is unlinked already comes back some time; more victims would not bring it sooner.
                let enough = ledger.totals().unlinked >= shortage;
                if enough {
                    None
                } else {
                    eviction.leased().find_map(evictable)
                }
            })
        };
        match victim {
            Some(block) => Some(self.retire(&block, &Reason::Space)),
            None => self.drop_oldest_quarantined(),
        }
    }

    fn measure_spare(&self) -> Result<Spare, Error> {
        // Before the figure is taken: what is written in between then counts twice, not never.
        let written = lock(&self.inner.state).ledger.ever_written();
        let root = self.inner.layout.root();
        let disk = self
            .watched(Operation::Open, || statvfs(root))
            .map_err(|errno| Error::io("ask for the free space of", root, errno))?;
        let unit = disk.fragment_size();
        let floor = disk.blocks().saturating_mul(unit) / 100 * u64::from(self.inner.config.min_free_percent);
        let bytes = disk.blocks_available().saturating_mul(unit).saturating_sub(floor);
        Ok(Spare { bytes, written })
    }

    fn no_space(&self, needed_bytes: u64, free_bytes: u64) -> Error {
        let state = self.state();
        let totals = state.ledger.totals();
        Error::NoSpace {
            needed_bytes,
            used_bytes: totals.sum(),
            held_bytes: totals.unlinked,
            quota_bytes: state.ledger.quota(),
            free_bytes,
        }
    }
}
