//! What happens once a life: sweeping, scanning everything there is, and stopping cleanly.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cachelet_protocol::ids::FileId;

use super::layout::Layout;
use super::ledger::Place;
use super::lookup::Claimed;
use super::marker::{Marker, Suspects, boot_id};
use super::retire::{Outcome, allocated_bytes};
use super::{BlockStore, Error, Event, lock};

/// Threads of the scan: it waits for the disk, and small reads want a queue.
const SCAN_THREADS: usize = 4;

/// What a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Blocks in the cache now, those found on demand before included.
    pub blocks: u64,
    /// Their pages.
    pub pages: u64,
    /// Files left alone because they are not this version's.
    pub foreign_files: u64,
    /// Damaged files found by now.
    pub corruptions: u64,
    /// Files evicted because the quota is lower than what was there.
    pub evictions: u64,
}

impl BlockStore {
    /// Accounts for every file in the cache directory, once; then lets space be given out. Serving need not wait for it.
    /// Touches the disk for long: give it a thread of its own.
    pub fn recover(&self) -> Recovery {
        let _once = lock(&self.inner.recovering);
        if !self.state().recovered {
            self.adopt_quarantine();
            let next_shard = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for _ in 0..SCAN_THREADS {
                    scope.spawn(|| {
                        while let Ok(shard) = u8::try_from(next_shard.fetch_add(1, Ordering::Relaxed)) {
                            self.scan(shard);
                        }
                    });
                }
            });
            self.fit_quota();
            self.state().recovered = true;
            self.inner.changed.notify_all();
        }
        let state = self.state();
        Recovery {
            blocks: state.files.len() as u64,
            pages: state.counts.pages,
            foreign_files: state.counts.foreign_files,
            corruptions: state.counts.corruptions,
            evictions: state.counts.evictions,
        }
    }

    /// Stops taking pages, brings everything to disk and leaves the marker by which the next life trusts what it finds.
    /// Reading goes on. Touches the disk for long; what is not on disk after `patience` is left to the kernel.
    pub fn close_clean(&self, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        {
            let mut state = self.state();
            state.closed = true;
            self.inner.changed.notify_all();
            while state.writes > 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::Unsynced {
                        files: state.dirty.len(),
                    });
                }
                let waited = self.inner.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let synced = self.sync_all(deadline);
        // What is banned is damaged, or was never brought to disk: the next life must not be told to trust it.
        let files = self.remove_banned();
        if files > 0 {
            return Err(Error::NotRemoved { files });
        }
        let unverified = {
            let state = self.state();
            let loaded = state
                .files
                .values()
                .filter(|block| !block.unverified().is_empty());
            let mut unverified: Vec<FileId> = loaded.map(|block| block.file_id()).collect();
            match &self.inner.suspects {
                // What the scan did not reach is as suspect as it was: no promise can be made for it.
                Suspects::Everything if !state.recovered => return synced,
                Suspects::Everything => {}
                Suspects::Only(files) => {
                    unverified.extend(files.iter().filter(|file| !state.files.contains_key(file)));
                }
            }
            unverified
        };
        let marker = Marker {
            boot: boot_id().unwrap_or_default(),
            synced: synced.is_ok(),
            unverified,
        };
        self.inner
            .layout
            .write_whole(&self.inner.layout.clean_marker(), marker.encode().as_bytes())?;
        synced
    }

    fn scan(&self, shard: u8) {
        let path = self.inner.layout.shard(shard);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => return self.emit(Event::Failed(Error::io("list", &path, error))),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.emit(Event::Failed(Error::io("list", &path, error))),
            };
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(|name| Layout::parse_block(shard, name)) else {
                self.count_foreign(&entry);
                continue;
            };
            let loaded = self.claim(key).and_then(|claimed| match claimed {
                Claimed::Loaded(_) => Ok(()),
                Claimed::Unknown(claim) => self.load(&claim, None).map(drop),
            });
            if let Err(error) = loaded {
                self.count_foreign(&entry);
                self.emit(Event::Failed(error));
            }
        }
    }

    /// Counts a file that stays where it is and is not a block of this store.
    fn count_foreign(&self, entry: &std::fs::DirEntry) {
        let bytes = entry.metadata().map_or(0, |metadata| allocated_bytes(&metadata));
        let mut state = self.state();
        state.ledger.add_foreign(bytes);
        state.counts.foreign_files += 1;
    }

    /// Counts what earlier lives left in quarantine.
    fn adopt_quarantine(&self) {
        let Ok(entries) = std::fs::read_dir(self.inner.layout.quarantine()) else {
            return;
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        // Names begin with the id given out when the file came here, which only grows.
        paths.sort_unstable();
        {
            let mut state = self.state();
            for path in paths.into_iter().rev() {
                let bytes = std::fs::symlink_metadata(&path).map_or(0, |metadata| allocated_bytes(&metadata));
                let id = self.new_file_id();
                state.ledger.adopt(id, bytes, Place::Quarantined);
                // In front: what this life put there already is newer.
                state.quarantine.push_front((id, path));
            }
        }
        self.trim_quarantine();
    }

    /// Evicts what a lowered quota has no room for.
    fn fit_quota(&self) {
        loop {
            let shortage = self.state().ledger.shortage(0);
            if shortage == 0 {
                return;
            }
            match self.make_room(shortage) {
                Some(Outcome::Freed(_) | Outcome::Held | Outcome::Gone) => {}
                Some(Outcome::Failed) | None => return,
            }
        }
    }
}

/// Removes what a life that ended in between left without its final name.
pub(super) fn sweep_temporary(layout: &Layout) -> Result<(), Error> {
    let path = layout.temporary();
    let entries = std::fs::read_dir(&path).map_err(|error| Error::io("list", &path, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", &path, error))?;
        std::fs::remove_file(entry.path()).map_err(|error| Error::io("remove", &entry.path(), error))?;
    }
    Ok(())
}
