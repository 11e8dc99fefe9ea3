//! What can go wrong in the store, told apart by what the caller does about it.

use std::io;
use std::path::{Path, PathBuf};

use cachelet_protocol::block::PageSet;
use cachelet_protocol::ids::FileId;

use super::format::Damage;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configured value cannot work.
    #[error("cannot use {key} = {value}: {reason}")]
    Config {
        /// The key, as [`super::Config`] spells it.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why not, and what to do about it.
        reason: String,
    },
    /// Another daemon uses the cache directory.
    #[error(
        "cannot use directory {}: another daemon (pid {pid}) holds {}/v1/lock; stop it or configure another directory",
        directory.display(), directory.display()
    )]
    Locked {
        /// The cache directory.
        directory: PathBuf,
        /// The holder's process id as it wrote it down, or `unknown`.
        pid: String,
    },
    /// A file operation failed.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not even eviction could make room now.
    #[error(
        "no space for {needed_bytes} bytes: {used_bytes} of the quota's {quota_bytes} bytes are used ({held_bytes} of \
         them in evicted files that readers hold) and {free_bytes} bytes of the file system are free above its floor"
    )]
    NoSpace {
        /// What was asked for.
        needed_bytes: u64,
        /// Everything the ledger counts.
        used_bytes: u64,
        /// Of these, the bytes of unlinked files that are still held.
        held_bytes: u64,
        /// The quota.
        quota_bytes: u64,
        /// Free bytes of the file system above the configured floor.
        free_bytes: u64,
    },
    /// The block was evicted or invalidated meanwhile; look it up again.
    #[error("block file {file_id} was evicted meanwhile")]
    Evicted {
        /// The file that is gone.
        file_id: FileId,
    },
    /// The block's file was found damaged and is in quarantine; fill the block again, into a new file.
    #[error("block file {file_id} is damaged ({damage}) and was put in quarantine")]
    Corrupt {
        /// The damaged file.
        file_id: FileId,
        /// How it was damaged.
        damage: Damage,
    },
    /// A file that is not this version's to touch is where the block's would be.
    #[error(
        "cannot use {}: its format version {version} is not known here; remove it once no other version of the daemon \
         needs it",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The format version it claims.
        version: u32,
    },
    /// The disk is out of use until it has proved itself again.
    #[error("the disk of {} is offline ({reason})", directory.display())]
    Offline {
        /// The cache directory.
        directory: PathBuf,
        /// What it did.
        reason: String,
    },
    /// Pages that were asked for are not there.
    #[error("pages {missing:?} of block file {file_id} are absent")]
    Absent {
        /// The file.
        file_id: FileId,
        /// What is not there.
        missing: PageSet,
    },
    /// Space cannot be given out until everything in the cache directory is accounted for.
    #[error("the cache directory is still being scanned")]
    Recovering,
    /// The store was closed cleanly and takes no more pages.
    #[error("the store is closed")]
    Closed,
    /// No descriptors are granted.
    #[error("grants are disabled: {reason}")]
    GrantsDisabled {
        /// Why.
        reason: String,
    },
    /// The caller asked for something that no block has: a page or range behind its end, a page of another length.
    #[error("invalid request to block file {file_id}: {reason}")]
    Request {
        /// The file.
        file_id: FileId,
        /// What was wrong.
        reason: String,
    },
    /// The object has no such block.
    #[error("object of {size_bytes} bytes has no block {index}")]
    NoSuchBlock {
        /// The object's size.
        size_bytes: u64,
        /// The block asked for.
        index: u32,
    },
    /// The clean-stop marker could not be written as a promise, because pages could not be written to disk.
    #[error("cannot write {failed} block files to disk: {first}")]
    Sync {
        /// How many files failed; they were dropped from the cache.
        failed: usize,
        /// The first failure.
        first: io::Error,
    },
    /// The time given for bringing pages to disk was over first: the clean-stop marker counts only until the machine
    /// restarts.
    #[error("{files} block files were not written to disk in time")]
    Unsynced {
        /// How many files are left.
        files: usize,
    },
    /// Files that should be gone are still in the cache directory: no clean-stop marker may vouch for them.
    #[error("{files} block files that must not be used could not be removed")]
    NotRemoved {
        /// How many.
        files: usize,
    },
}

impl Error {
    pub(super) fn io(attempt: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            attempt,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the block should simply be looked up (or created) again: its file is gone, the block is not.
    pub fn wants_new_file(&self) -> bool {
        match self {
            Self::Evicted { .. } | Self::Corrupt { .. } => true,
            Self::Config { .. }
            | Self::Locked { .. }
            | Self::Io { .. }
            | Self::NoSpace { .. }
            | Self::Foreign { .. }
            | Self::Offline { .. }
            | Self::Absent { .. }
            | Self::Recovering
            | Self::Closed
            | Self::GrantsDisabled { .. }
            | Self::Request { .. }
            | Self::NoSuchBlock { .. }
            | Self::Sync { .. }
            | Self::Unsynced { .. }
            | Self::NotRemoved { .. } => false,
        }
    }
}
