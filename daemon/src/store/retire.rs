//! Taking files out of the cache: eviction, invalidation and quarantine; and proving their bytes free.
//!
//! A retired block is out of the index at once; its path is `busy` until the file is gone from it, so nobody finds the
//! old file under the name of the new one. A file that should go because of what is in it and cannot be removed makes
//! its block unusable here (`banned`); one that should merely make room stays.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cachelet_protocol::ids::{FileId, ObjectName};

use super::block::{Inode, Key};
use super::health::Operation;
use super::ledger::Place;
use super::{
    Block, BlockStore, Damage, Error, Event, HEADER_CHARGE, MAX_QUARANTINED_FILES, Reason, State, layout,
    lease,
};

/// Whether [`BlockStore::forget`] forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget {
    /// It does.
    Now,
    /// It only counts what it would forget.
    NotYet,
}

/// What [`BlockStore::forget`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// Objects, whatever their generations.
    pub objects: u64,
    /// Their blocks.
    pub blocks: u64,
    /// Bytes of the objects in these blocks.
    pub bytes: u64,
}

/// What came of retiring a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its bytes are free.
    Freed(u64),
    /// It left the cache; its bytes are held, or kept in quarantine.
    Held,
    /// There was nothing to retire.
    Gone,
    /// It could not be removed.
    Failed,
}

impl BlockStore {
    /// Drops every block of an object, whatever its generation, fills in flight or not; how many that were. Touches the
    /// disk; waits for the directory's scan, for that alone finds the generations which nobody has asked for.
    pub fn invalidate(&self, name: &ObjectName) -> Result<u32, Error> {
        let forgotten = self.forget(Forget::Now, |other| other == name)?;
        Ok(forgotten.blocks.try_into().unwrap_or(u32::MAX))
    }

    /// The same for every object that is `wanted`, whose name may be seen once for each of its blocks.
    pub fn forget(&self, forget: Forget, wanted: impl Fn(&ObjectName) -> bool) -> Result<Forgotten, Error> {
        let blocks: Vec<_> = {
            let state = self.once_recovered()?;
            let same = state
                .index
                .values()
                .filter(|block| wanted(block.identity().object().name()));
            same.map(Arc::clone).collect()
        };
        let names: HashSet<_> = blocks
            .iter()
            .map(|block| block.identity().object().name())
            .collect();
        let pages = |block: &Arc<Block>| block.pages().all().bytes_in(block.length());
        let forgotten = Forgotten {
            objects: names.len() as u64,
            blocks: blocks.len() as u64,
            bytes: blocks.iter().map(pages).sum(),
        };
        if forget == Forget::Now {
            blocks.iter().for_each(|block| self.remove(block));
        }
        Ok(forgotten)
    }

    /// Drops one block, fills in flight or not. Touches the disk.
    pub fn remove(&self, block: &Arc<Block>) {
        self.retire(block, &Reason::Invalidated);
    }

    /// Proves as many unlinked files free as it can, and returns how many bytes that gave back. Touches the disk.
    pub fn reclaim(&self) -> u64 {
        let files: Vec<FileId> = self.state().unlinked.keys().copied().collect();
        files.into_iter().filter_map(|file| self.prove_free(file)).sum()
    }

    /// Tries again to remove the files that should be gone; how many could not be removed. Touches the disk.
    pub(super) fn remove_banned(&self) -> usize {
        let banned: Vec<(Key, FileId)> = {
            let state = self.state();
            state.banned.iter().map(|(key, file)| (*key, *file)).collect()
        };
        let mut left = 0;
        for (key, id) in banned {
            let path = self.inner.layout.block(key);
            // Nobody else touches the path: a banned key cannot be claimed. Without a descriptor the bytes could not be
            // proved free.
            let kept = self.inner.descriptors.get(id);
            let file = kept.or_else(|| layout::block_options().open(&path).ok().map(Arc::new));
            if let Err(error) = unlink(&path) {
                left += 1;
                self.emit(Event::Failed(error));
                continue;
            }
            self.inner.descriptors.take(id);
            let mut state = self.state();
            state.banned.remove(&key);
            match file {
                Some(file) => {
                    state.ledger.relocate(id, Place::Unlinked);
                    state.unlinked.insert(id, file);
                }
                None => _ = state.ledger.reclaim(id),
            }
            self.inner.descriptors.set_pinned(state.unlinked.len());
            drop(state);
            self.prove_free(id);
        }
        left
    }

    /// Takes a block's file out of the cache. For space only if no fill is in flight.
    pub(super) fn retire(&self, block: &Arc<Block>, reason: &Reason) -> Outcome {
        if !self.begin_retirement(block, reason) {
            return Outcome::Gone;
        }
        // Nobody leases a retired block any more: these are all.
        let sessions = self.state().ledger.holders(block.file_id()).to_vec();
        let removed = self.remove_file(block, reason);
        match self.end_retirement(block, reason, removed) {
            Ok(()) => {}
            Err(error) => {
                self.emit(Event::Failed(error));
                if *reason == Reason::Space {
                    return Outcome::Failed;
                }
            }
        }
        self.emit(Event::Evicted {
            file_id: block.file_id(),
            identity: block.identity().clone(),
            sessions,
            reason: reason.clone(),
        });
        self.emit_residency_lost(block);
        self.trim_quarantine();
        self.prove_free(block.file_id())
            .map_or(Outcome::Held, Outcome::Freed)
    }

    /// Puts a damaged block's file in quarantine, and says so.
    pub(super) fn condemn(&self, block: &Arc<Block>, damage: Damage) -> Error {
        self.retire(block, &Reason::Corrupt(damage.clone()));
        Error::Corrupt {
            file_id: block.file_id(),
            damage,
        }
    }

    /// Puts a file that never made it into memory in quarantine. The caller holds the key's claim.
    pub(super) fn quarantine_path(&self, key: Key, bytes: u64, damage: Damage) -> Result<(), Error> {
        let id = self.new_file_id();
        let from = self.inner.layout.block(key);
        let path = self.inner.layout.quarantined(id, key);
        self.watched(Operation::Remove, || std::fs::rename(&from, &path))
            .map_err(|error| Error::io("put in quarantine", &from, error))?;
        {
            let mut state = self.state();
            state.ledger.adopt(id, bytes, Place::Quarantined);
            state.quarantine.push_back((id, path.clone()));
            state.counts.corruptions += 1;
        }
        self.emit(Event::Corrupt {
            object: key.object,
            index: key.index,
            path,
            damage,
        });
        self.trim_quarantine();
        Ok(())
    }

    /// Removes a file that never made it into memory. The caller holds the key's claim.
    pub(super) fn discard_path(&self, key: Key, file: File, bytes: u64) -> Result<(), Error> {
        let path = self.inner.layout.block(key);
        self.watched(Operation::Remove, || std::fs::remove_file(&path))
            .map_err(|error| Error::io("remove", &path, error))?;
        let id = self.new_file_id();
        {
            let mut state = self.state();
            state.ledger.adopt(id, bytes, Place::Unlinked);
            state.unlinked.insert(id, Arc::new(file));
            self.inner.descriptors.set_pinned(state.unlinked.len());
        }
        self.prove_free(id);
        Ok(())
    }

    /// Removes the oldest file from quarantine; `None` if there is none.
    pub(super) fn drop_oldest_quarantined(&self) -> Option<Outcome> {
        let (id, path) = self.state().quarantine.pop_front()?;
        // Opened first: without a descriptor its bytes could not be proved free.
        let file = layout::block_options().open(&path);
        match (
            self.watched(Operation::Remove, || std::fs::remove_file(&path)),
            file,
        ) {
            (Ok(()), Ok(file)) => {
                {
                    let mut state = self.state();
                    state.ledger.relocate(id, Place::Unlinked);
                    state.unlinked.insert(id, Arc::new(file));
                    self.inner.descriptors.set_pinned(state.unlinked.len());
                }
                Some(self.prove_free(id).map_or(Outcome::Held, Outcome::Freed))
            }
            (Ok(()), Err(_)) => Some(Outcome::Freed(self.state().ledger.reclaim(id))),
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
                Some(Outcome::Freed(self.state().ledger.reclaim(id)))
            }
            (Err(error), _) => {
                // Its bytes stay charged: they are there.
                self.emit(Event::Failed(Error::io("remove from quarantine", &path, error)));
                Some(Outcome::Failed)
            }
        }
    }

    pub(super) fn trim_quarantine(&self) {
        while self.state().quarantine.len() > MAX_QUARANTINED_FILES {
            self.drop_oldest_quarantined();
        }
    }

    /// Frees an unlinked file's bytes if nobody else holds it.
    fn prove_free(&self, id: FileId) -> Option<u64> {
        let file = {
            let mut state = self.state();
            // Somebody in this process still reads or writes through this descriptor, which no lease would notice.
            state
                .unlinked
                .get(&id)
                .filter(|file| Arc::strong_count(file) == 1)?;
            state.unlinked.remove(&id)?
        };
        let free = lease::is_sole_holder(&file).unwrap_or(false);
        if free {
            // The bytes are free when the descriptor is closed, and only then.
            drop(file);
            let mut state = self.state();
            let bytes = state.ledger.reclaim(id);
            state.counts.reclaimed_bytes += bytes;
            self.inner.descriptors.set_pinned(state.unlinked.len());
            Some(bytes)
        } else {
            self.state().unlinked.insert(id, file);
            None
        }
    }

    /// Takes a block out of the index and makes its path busy; false if there is nothing (more) to retire.
    fn begin_retirement(&self, block: &Arc<Block>, reason: &Reason) -> bool {
        let key = block.identity().key();
        let mut state = self.state();
        while state.busy.contains(&key) && !block.is_retired() {
            state = self
                .inner
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if block.is_retired() || (*reason == Reason::Space && block.has_fills()) {
            return false;
        }
        block.set_retired(true);
        let waiting = state.dirty.remove(block.file_id());
        state.busy.insert(key);
        state.index.remove(&key);
        state.files.remove(&block.file_id());
        match reason {
            Reason::Space => state.eviction.evict(block.file_id(), key.hash()),
            _ => state.eviction.forget(block.file_id()),
        }
        state.counts.pages -= u64::from(block.pages().all().len());
        drop(state);
        // Closing may do I/O: outside the lock. What waited for the disk need not get there any more.
        drop(waiting);
        true
    }

    /// Makes the ledger and the index say what became of the file.
    fn end_retirement(
        &self,
        block: &Arc<Block>,
        reason: &Reason,
        removed: Result<Removed, Error>,
    ) -> Result<(), Error> {
        let key = block.identity().key();
        let file_id = block.file_id();
        if removed.is_ok() {
            self.inner.descriptors.take(file_id);
        }
        let result = {
            let mut state = self.state();
            state.busy.remove(&key);
            let result = match removed {
                Ok(Removed::Unlinked(file)) => {
                    state.ledger.relocate(file_id, Place::Unlinked);
                    state.unlinked.insert(file_id, file);
                    Ok(())
                }
                Ok(Removed::Quarantined(path)) => {
                    state.ledger.relocate(file_id, Place::Quarantined);
                    state.quarantine.push_back((file_id, path));
                    Ok(())
                }
                Ok(Removed::NotThere) => {
                    state.ledger.reclaim(file_id);
                    Ok(())
                }
                Err(error) => {
                    if *reason == Reason::Space {
                        revive(&mut state, block, self.uptime());
                    } else {
                        state.banned.insert(key, file_id);
                    }
                    Err(error)
                }
            };
            if *reason == Reason::Space && result.is_ok() {
                state.counts.evictions += 1;
            }
            self.inner.descriptors.set_pinned(state.unlinked.len());
            result
        };
        self.inner.changed.notify_all();
        result
    }

    fn remove_file(&self, block: &Arc<Block>, reason: &Reason) -> Result<Removed, Error> {
        let key = block.identity().key();
        let path = self.inner.layout.block(key);
        let file = match self.inner.descriptors.get(block.file_id()) {
            Some(file) => file,
            None => match layout::block_options().open(&path) {
                Ok(file) => Arc::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removed::NotThere),
                Err(error) => return Err(Error::io("open", &path, error)),
            },
        };
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("inspect", &path, error))?;
        if Inode::of(&metadata) != block.inode {
            return Ok(Removed::NotThere);
        }
        if let Reason::Corrupt(damage) = reason {
            let to = self.inner.layout.quarantined(self.new_file_id(), key);
            match self.watched(Operation::Remove, || std::fs::rename(&path, &to)) {
                Ok(()) => {
                    self.state().counts.corruptions += 1;
                    self.emit(Event::Corrupt {
                        object: key.object,
                        index: key.index,
                        path: to.clone(),
                        damage: damage.clone(),
                    });
                    return Ok(Removed::Quarantined(to));
                }
                // Nothing to look at then, but out of the cache it must go.
                Err(error) => self.emit(Event::Failed(Error::io("put in quarantine", &path, error))),
            }
        }
        self.watched(Operation::Remove, || unlink(&path))?;
        Ok(Removed::Unlinked(file))
    }
}

enum Removed {
    Unlinked(Arc<File>),
    Quarantined(std::path::PathBuf),
    NotThere,
}

/// Puts a block back whose file could not be removed.
fn revive(state: &mut State, block: &Arc<Block>, now: Duration) {
    block.set_retired(false);
    let leased = !state.ledger.holders(block.file_id()).is_empty();
    state.index.insert(block.identity().key(), Arc::clone(block));
    state.files.insert(block.file_id(), Arc::clone(block));
    let held_bytes = HEADER_CHARGE + block.pages().all().bytes_in(block.length());
    let hash = block.identity().key().hash();
    state.eviction.insert(block.file_id(), hash, held_bytes, now);
    state.eviction.set_leased(block.file_id(), leased);
    state.dirty.mark(block.file_id(), now);
    state.counts.pages += u64::from(block.pages().all().len());
}

fn unlink(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

/// What a file that is not in the ledger's terms takes of the disk.
pub(super) fn allocated_bytes(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks() * 512
}
