//! Where everything is under a cache directory, and who may use it.
//!
//! ```text
//! v1/lock                          held by the running daemon, with its pid
//! v1/epoch                         the epoch of the daemon's life
//! v1/clean                         what a clean stop left behind, see the `marker` module
//! v1/blocks/<2 hex>/<32 hex>.<n>   block n of the object of this id, filed under the id's first two digits
//! v1/tmp/                          files without their final name yet; swept at start
//! v1/quarantine/                   the last few damaged files
//! ```
//!
//! Directories have mode 0700, files 0600. Names come from ids and numbers only.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cachelet_protocol::block::BlockIndex;
use cachelet_protocol::ids::{Epoch, FileId, ObjectId};
use nix::libc;

use super::Error;
use super::block::{Inode, Key};

/// Names of the files in `tmp` by which a start tests leases and the read-only path.
pub(super) const LEASE_TEST: &str = "lease-test";
pub(super) const READ_ONLY_TEST: &str = "read-only-test";
/// And the one by which the disk's health is asked for.
pub(super) const PROBE: &str = "probe";
pub(super) const PROBE_RENAMED: &str = "probe-renamed";

/// The paths of one cache directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Of the cache directory at `directory`, or of a second mount of it there.
    pub(super) fn of(directory: &Path) -> Self {
        Self {
            root: directory.join("v1"),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn epoch(&self) -> PathBuf {
        self.root.join("epoch")
    }

    pub(super) fn clean_marker(&self) -> PathBuf {
        self.root.join("clean")
    }

    pub(super) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn temporary_file(&self, name: &str) -> PathBuf {
        self.temporary().join(name)
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn quarantined(&self, order: FileId, key: Key) -> PathBuf {
        self.quarantine()
            .join(format!("{:016x}-{}.{}", order.0, key.object, key.index))
    }

    /// The 256 directories of blocks, by the first byte of the object id.
    pub(super) fn shard(&self, first_byte: u8) -> PathBuf {
        self.root.join("blocks").join(format!("{first_byte:02x}"))
    }

    pub(super) fn block(&self, key: Key) -> PathBuf {
        self.shard(key.object.as_bytes()[0])
            .join(format!("{}.{}", key.object, key.index))
    }

    /// The key that a file name in a shard stands for; `None` if it is not spelled exactly as [`Layout::block`] does.
    pub(super) fn parse_block(first_byte: u8, name: &str) -> Option<Key> {
        let (object, index) = name.split_once('.')?;
        let key = Key {
            object: object.parse::<ObjectId>().ok()?,
            index: BlockIndex(index.parse().ok()?),
        };
        let exact = format!("{}.{}", key.object, key.index) == name && key.object.as_bytes()[0] == first_byte;
        exact.then_some(key)
    }

    /// Creates what is missing of the cache directory.
    pub(super) fn create(directory: &Path) -> Result<Self, Error> {
        let layout = Self::of(directory);
        let make = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| Error::Config {
                    key: "directory",
                    value: directory.display().to_string(),
                    reason: format!(
                        "cannot create {}: {error}; make it a directory that uid {} may write to",
                        path.display(),
                        nix::unistd::geteuid()
                    ),
                })
        };
        make(&layout.temporary())?;
        make(&layout.quarantine())?;
        (0..=u8::MAX).try_for_each(|byte| make(&layout.shard(byte)))?;
        Ok(layout)
    }

    /// Whether a process holds the directory. A directory that cannot be looked into is held by nobody known.
    pub(super) fn is_locked(&self) -> bool {
        File::open(self.lock())
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Takes the directory for this process, for as long as the returned file is open.
    pub(super) fn take_lock(&self, directory: &Path) -> Result<File, Error> {
        let path = self.lock();
        let mut file = loop {
            let file = create_options()
                .truncate(false)
                .create(true)
                .open(&path)
                .map_err(|error| cannot_lock(directory, &error))?;
            lock(&file, directory)?;
            // The directory may have been wiped since the file was opened.
            if is_lock(&file, &path) {
                break file;
            }
        };
        let write = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        write.map_err(|error| Error::io("write the lock", &path, error))?;
        Ok(file)
    }

    /// The epoch of a new life: more than the last one's, and at least the unix time, so that it grows over a wipe too.
    pub(super) fn next_epoch(&self) -> Result<Epoch, Error> {
        let path = self.epoch();
        let stored = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u64>().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read the epoch", &path, error)),
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let epoch = stored.map_or(0, |stored| stored.saturating_add(1)).max(now);
        // File ids have 32 bits for it.
        if epoch > u64::from(u32::MAX) {
            return Err(Error::Config {
                key: "directory",
                value: path.display().to_string(),
                reason: format!("its epoch {epoch} is out of range; remove the cache directory's contents"),
            });
        }
        self.write_whole(&path, format!("{epoch}\n").as_bytes())?;
        Ok(Epoch(epoch))
    }

    /// Replaces a file as a whole, for good when this returns.
    pub(super) fn write_whole(&self, path: &Path, contents: &[u8]) -> Result<(), Error> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("callers name a file of the layout");
        let temporary = self.temporary_file(&format!("{name}.new"));
        let write = || {
            let mut file = create_options().truncate(true).create(true).open(&temporary)?;
            file.write_all(contents)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(|error| Error::io("write", path, error))
    }
}

/// Takes a lock file for as long as it is open, or says who has it.
pub(super) fn lock(file: &File, directory: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = Read::take(file, 20).read_to_string(&mut pid);
            let known = read.is_ok() && !pid.trim().is_empty();
            let pid = if known {
                pid.trim().to_owned()
            } else {
                "unknown".to_owned()
            };
            Err(Error::Locked {
                directory: directory.to_owned(),
                pid,
            })
        }
        Err(TryLockError::Error(error)) => Err(cannot_lock(directory, &error)),
    }
}

fn cannot_lock(directory: &Path, error: &io::Error) -> Error {
    Error::Config {
        key: "directory",
        value: directory.display().to_string(),
        reason: format!(
            "cannot lock {}: {error}; make it a directory on a local disk that uid {} may write to",
            Layout::of(directory).lock().display(),
            nix::unistd::geteuid()
        ),
    }
}

/// Whether an open file is the one that is at `path` now.
pub(super) fn is_lock(file: &File, path: &Path) -> bool {
    let inode = |metadata: io::Result<Metadata>| metadata.ok().as_ref().map(Inode::of);
    inode(file.metadata()).is_some_and(|ours| inode(std::fs::symlink_metadata(path)) == Some(ours))
}

/// The first byte of the ids that a shard is for, if its name is spelled as [`Layout::shard`] does.
pub(super) fn parse_shard(name: &str) -> Option<u8> {
    let byte = u8::from_str_radix(name, 16).ok()?;
    (format!("{byte:02x}") == name).then_some(byte)
}

/// Whether a file in `tmp` is one that a daemon makes there: a block's to be, a replacement, or a test's.
pub(super) fn is_temporary(name: &str) -> bool {
    let replacement = matches!(name, "epoch.new" | "clean.new");
    replacement || matches!(name, LEASE_TEST | READ_ONLY_TEST | PROBE | PROBE_RENAMED) || parse_file_id(name)
}

/// Whether a name is spelled as [`Layout::quarantined`] does.
pub(super) fn is_quarantined(name: &str) -> bool {
    let Some((order, block)) = name.split_once('-') else {
        return false;
    };
    let first_byte = block.get(..2).and_then(parse_shard);
    parse_file_id(order) && first_byte.is_some_and(|byte| Layout::parse_block(byte, block).is_some())
}

fn parse_file_id(name: &str) -> bool {
    u64::from_str_radix(name, 16).is_ok_and(|id| format!("{id:016x}") == name)
}

/// Options for a file of our own: mode 0600, no symbolic links followed.
pub(super) fn create_options() -> OpenOptions {
    let mut options = block_options();
    options.mode(0o600);
    options
}

/// Options for a block file: read and write, no symbolic links followed, and no waiting for a pipe's other end.
pub(super) fn block_options() -> OpenOptions {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_spelled_as_the_store_spells_them_are_blocks() {
        let key = Key {
            object: ObjectId::from_bytes([0xab; 16]),
            index: BlockIndex(12),
        };
        let name = format!("{}.12", "ab".repeat(16));
        assert_eq!(Layout::parse_block(0xab, &name), Some(key));
        assert!(
            Layout::of(Path::new("/c"))
                .block(key)
                .ends_with(format!("v1/blocks/ab/{name}"))
        );
        for wrong in [
            "",
            ".",
            "..",
            &name[1..],
            &format!("{name}x"),
            &name.to_uppercase(),
            &name.replace(".12", ".012"),
        ] {
            assert_eq!(Layout::parse_block(0xab, wrong), None, "{wrong}");
        }
        assert_eq!(Layout::parse_block(0xac, &name), None);
    }
}
