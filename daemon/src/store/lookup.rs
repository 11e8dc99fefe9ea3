//! From a block's identity to its file: in memory, else by its path, else (if asked) by creating it.
//!
//! Whoever works on a path claims its key first, so a path has one worker and a file one [`Block`].

use cachelet_protocol::residency::Residency;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use cachelet_protocol::block::{BlockIndex, PageSet};

use super::block::{Inode, Key, Pages};
use super::format::{Decoded, Header, TABLES_END, presence};
use super::health::Operation;
use super::layout::{block_options, create_options};
use super::ledger::Place;
use super::retire::allocated_bytes;
use super::{
    Block, BlockIdentity, BlockStore, DATA_OFFSET, Damage, Error, Event, HEADER_CHARGE, Reason, Reservation,
};

/// The right to work on a key's path.
pub(super) struct Claim<'a> {
    store: &'a BlockStore,
    key: Key,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.store.state().busy.remove(&self.key);
        self.store.inner.changed.notify_all();
    }
}

/// What is known of a key.
pub(super) enum Claimed<'a> {
    /// Its block is in memory.
    Loaded(Arc<Block>),
    /// Nothing: look for it.
    Unknown(Claim<'a>),
}

/// A file that passed every test, and what it says.
struct Found {
    file: File,
    inode: Inode,
    header: Header,
    length: u64,
    present: PageSet,
    /// When it was last used or written, in nanoseconds since 1970.
    age_rank: u64,
}

/// A file that did not, with what it takes of the disk.
enum Refused {
    Damaged { damage: Damage, bytes: u64 },
    OtherBlockSize { file: File, bytes: u64 },
    Failed(Error),
}

impl BlockStore {
    /// The block if it is in memory. Cheap, and never wrong; a block that is not in memory may still be on disk until
    /// the scan is over.
    pub fn peek(&self, id: &BlockIdentity) -> Option<Arc<Block>> {
        self.state().index.get(&id.key()).cloned()
    }

    /// The block, if it is here. Touches the disk unless it is in memory.
    ///
    /// A damaged file, or one that belongs to another block, goes to quarantine: then there is none.
    pub fn find(&self, id: &BlockIdentity) -> Result<Option<Arc<Block>>, Error> {
        self.check_disk()?;
        match self.claim(id.key())? {
            Claimed::Loaded(block) => Ok(Some(block)),
            Claimed::Unknown(claim) => self.load(&claim, Some(id)),
        }
    }

    /// The block, in a new file without pages if it is not here. Touches the disk; may evict.
    pub fn find_or_create(&self, id: &BlockIdentity) -> Result<Arc<Block>, Error> {
        if let Some(block) = self.find(id)? {
            return Ok(block);
        }
        let length = id.length(self.block_size());
        if length == 0 {
            let size_bytes = id.object().generation().size_bytes;
            return Err(Error::NoSuchBlock {
                size_bytes,
                index: id.index().0,
            });
        }
        // Not while the key is claimed: making room may wait for the scan, which may wait for the key.
        let reservation = self.reserve(HEADER_CHARGE)?;
        match self.claim(id.key())? {
            Claimed::Loaded(block) => Ok(block),
            Claimed::Unknown(claim) => match self.load(&claim, Some(id))? {
                Some(block) => Ok(block),
                None => self.create(&claim, id, length, reservation),
            },
        }
    }

    pub(super) fn claim(&self, key: Key) -> Result<Claimed<'_>, Error> {
        let mut state = self.state();
        loop {
            if let Some(block) = state.index.get(&key) {
                return Ok(Claimed::Loaded(Arc::clone(block)));
            }
            if state.banned.contains_key(&key) {
                let path = self.inner.layout.block(key);
                let refused = io::Error::other("it should be gone and could not be removed");
                return Err(Error::io("use", &path, refused));
            }
            if state.busy.insert(key) {
                return Ok(Claimed::Unknown(Claim { store: self, key }));
            }
            state = self
                .inner
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Looks for the claimed key's file. `expected`: whose it must be, beyond what its name says.
    pub(super) fn load(
        &self,
        claim: &Claim<'_>,
        expected: Option<&BlockIdentity>,
    ) -> Result<Option<Arc<Block>>, Error> {
        let key = claim.key;
        let found = match self.inspect(key, expected) {
            Ok(found) => found,
            Err(Refused::Failed(error)) => return Err(error),
            Err(Refused::Damaged { damage, bytes }) => {
                return self.quarantine_path(key, bytes, damage).map(|()| None);
            }
            Err(Refused::OtherBlockSize { file, bytes }) => {
                return self.discard_path(key, file, bytes).map(|()| None);
            }
        };
        let Some(found) = found else { return Ok(None) };
        let file_id = found.header.file_id;
        let suspect = self.inner.suspects.contains(file_id);
        let pages = if suspect {
            Pages {
                verified: PageSet::EMPTY,
                unverified: found.present,
            }
        } else {
            Pages {
                verified: found.present,
                unverified: PageSet::EMPTY,
            }
        };
        let identity = self.share_object(found.header.identity);
        let block = Arc::new(Block::new(identity, file_id, found.length, found.inode, pages));
        let charge = HEADER_CHARGE + found.present.bytes_in(found.length);
        let adopted = {
            let mut state = self.state();
            let adopted = state.ledger.adopt(file_id, charge, Place::Cached);
            if adopted {
                state.eviction.insert_recovered(file_id, charge, found.age_rank);
                state.index.insert(key, Arc::clone(&block));
                state.files.insert(file_id, Arc::clone(&block));
                state.counts.pages += u64::from(found.present.len());
            }
            adopted
        };
        if !adopted {
            return self.quarantine_path(key, charge, Damage::FileId).map(|()| None);
        }
        if expected.is_some() {
            self.inner.descriptors.keep(file_id, Arc::new(found.file));
        }
        self.emit_residency(&block, Residency::None, true);
        Ok(Some(block))
    }

    /// The kept descriptor of a block's file, or a new one. A block whose file somebody else removed is retired.
    pub(super) fn file_of(&self, block: &Arc<Block>) -> Result<Arc<File>, Error> {
        let file_id = block.file_id();
        if block.is_retired() {
            return Err(Error::Evicted { file_id });
        }
        if let Some(file) = self.inner.descriptors.get(file_id) {
            return Ok(file);
        }
        let path = self.inner.layout.block(block.identity().key());
        let opened = self.watched(Operation::Open, || {
            let file = block_options().open(&path)?;
            Ok::<_, io::Error>((Inode::of(&file.metadata()?), file))
        });
        let file = match opened {
            Ok((inode, file)) if inode == block.inode => file,
            Ok(_) => return Err(self.vanished(block)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.vanished(block)),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let file = self.inner.descriptors.keep(file_id, Arc::new(file));
        if block.is_retired() {
            // It may have been retired, and its descriptor taken, before this one was kept.
            self.inner.descriptors.take(file_id);
            return Err(Error::Evicted { file_id });
        }
        Ok(file)
    }

    /// A block's path shows another file, or none: nothing can be done with the block any more.
    pub(super) fn vanished(&self, block: &Arc<Block>) -> Error {
        self.retire(block, &Reason::Vanished);
        Error::Evicted {
            file_id: block.file_id(),
        }
    }

    /// Says how much of a block is here, if that is not what it was.
    pub(super) fn emit_residency(&self, block: &Block, before: Residency, found: bool) {
        let residency = block.residency();
        if residency != before {
            self.emit(Event::BlockChanged {
                identity: block.identity().clone(),
                residency,
                found,
            });
        }
    }

    /// Says that nothing of a block is here any more, if something was.
    pub(super) fn emit_residency_lost(&self, block: &Block) {
        if block.residency() != Residency::None {
            let identity = block.identity().clone();
            self.emit(Event::BlockChanged {
                identity,
                residency: Residency::None,
                found: false,
            });
        }
    }

    fn create(
        &self,
        claim: &Claim<'_>,
        id: &BlockIdentity,
        length: u64,
        reservation: Reservation,
    ) -> Result<Arc<Block>, Error> {
        let file_id = self.new_file_id();
        let header = Header {
            file_id,
            block_size: self.block_size(),
            identity: id.clone(),
        };
        let temporary = self.inner.layout.temporary_file(&format!("{:016x}", file_id.0));
        let path = self.inner.layout.block(claim.key);
        let write = || {
            let file = create_options().create_new(true).open(&temporary)?;
            file.write_all_at(&header.encode(), 0)?;
            file.set_len(DATA_OFFSET + length)?;
            let inode = Inode::of(&file.metadata()?);
            // Nothing is there to be replaced: the key is claimed, and the directory ours.
            std::fs::rename(&temporary, &path)?;
            Ok((file, inode))
        };
        let (file, inode) = self
            .watched(Operation::Create, write)
            .map_err(|error: io::Error| {
                let _ = std::fs::remove_file(&temporary);
                Error::io("create", &path, error)
            })?;
        let identity = self.share_object(id.clone());
        let block = Arc::new(Block::new(identity, file_id, length, inode, Pages::default()));
        let file = self.inner.descriptors.keep(file_id, Arc::new(file));
        let now = self.uptime();
        let mut state = self.state();
        state.ledger.create(file_id, reservation.spend());
        state
            .eviction
            .insert(file_id, claim.key.hash(), HEADER_CHARGE, now);
        state.index.insert(claim.key, Arc::clone(&block));
        state.files.insert(file_id, Arc::clone(&block));
        let most = self.inner.config.max_open_files / 2;
        state.dirty.wrote(file_id, HEADER_CHARGE, &file, now, most);
        Ok(block)
    }

    fn inspect(&self, key: Key, expected: Option<&BlockIdentity>) -> Result<Option<Found>, Refused> {
        let path = self.inner.layout.block(key);
        let failed = |attempt, error| Refused::Failed(Error::io(attempt, &path, error));
        let file = match self.watched(Operation::Open, || block_options().open(&path)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", error)),
        };
        let metadata = file.metadata().map_err(|error| failed("inspect", error))?;
        let damaged = |damage| Refused::Damaged {
            damage,
            bytes: allocated_bytes(&metadata),
        };
        if !metadata.is_file() {
            return Err(damaged(Damage::Magic));
        }
        let mut tables = vec![0; TABLES_END];
        self.watched(Operation::Read, || file.read_exact_at(&mut tables, 0))
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => damaged(Damage::Size {
                    expected_bytes: DATA_OFFSET,
                    actual_bytes: metadata.len(),
                }),
                _ => damaged(Damage::unreadable(&error)),
            })?;
        let header = match Header::decode(&tables) {
            Decoded::Header(header) => header,
            Decoded::Foreign(version) => {
                return Err(Refused::Failed(Error::Foreign {
                    path: path.clone(),
                    version,
                }));
            }
            Decoded::Damaged(damage) => return Err(damaged(damage)),
        };
        if header.identity.key() != key || expected.is_some_and(|expected| header.identity != *expected) {
            return Err(damaged(Damage::Misplaced));
        }
        // Ids of this life are in memory; of a later one, they came from another directory.
        if header.file_id.0 >> 32 >= self.inner.epoch.0 {
            return Err(damaged(Damage::FileId));
        }
        if header.block_size != self.block_size() {
            return Err(Refused::OtherBlockSize {
                bytes: allocated_bytes(&metadata),
                file,
            });
        }
        let length = header.identity.length(header.block_size);
        let expected_bytes = DATA_OFFSET + length;
        if metadata.len() != expected_bytes {
            return Err(damaged(Damage::Size {
                expected_bytes,
                actual_bytes: metadata.len(),
            }));
        }
        let present = presence(&tables, &key.object, key.index, length).map_err(damaged)?;
        let time = |time: io::Result<std::time::SystemTime>| {
            let since = time.ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        };
        let age_rank = time(metadata.accessed())
            .max(time(metadata.modified()))
            .unwrap_or(0);
        let inode = Inode::of(&metadata);
        Ok(Some(Found {
            file,
            inode,
            header,
            length,
            present,
            age_rank,
        }))
    }

    /// The same identity, sharing its object with the object's other blocks in memory.
    fn share_object(&self, identity: BlockIdentity) -> BlockIdentity {
        let first = Key {
            object: identity.object().id(),
            index: BlockIndex(0),
        };
        let state = self.state();
        match state.index.range(first..).next() {
            Some((_, sibling)) if sibling.identity().object() == identity.object() => {
                BlockIdentity::new(Arc::clone(sibling.identity().object()), identity.index())
            }
            _ => identity,
        }
    }
}
