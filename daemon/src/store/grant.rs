//! Descriptors for readers, and the read-only path they come through.
//!
//! A descriptor that was opened read-only is not read-only: its holder can re-open `/proc/self/fd/N` for writing if it
//! has the rights to the file, which root in any container has. Opened through a read-only *mount*, that fails with
//! EROFS, for everybody. So grants come through a second, read-only mount of the cache directory, which is tested at
//! start and looked at again at each grant.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cachelet_protocol::block::PageSet;
use cachelet_protocol::ids::{FileId, SessionId};
use nix::libc;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::block::Inode;
use super::health::Operation;
use super::layout::{LEASE_TEST, Layout, READ_ONLY_TEST, create_options};
use super::{Block, BlockStore, CRC_OFFSET, Config, DATA_OFFSET, Error, GrantPolicy, lease};

/// Whether descriptors are granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantStatus {
    /// Through the read-only path.
    Enabled,
    /// Through the cache directory itself: whoever has the rights to a file can re-open it for writing.
    EnabledUnprotected,
    /// Not at all.
    Disabled {
        /// Why, and what to do about it.
        reason: String,
    },
}

/// A read-only descriptor of a block's file. Its open file description is not shared with anybody else.
#[derive(Debug)]
pub struct Grant {
    /// The file.
    pub file_id: FileId,
    /// The descriptor.
    pub fd: OwnedFd,
    /// Where the block's first byte is in the file.
    pub data_offset: u64,
    /// Where the CRC32C of its first 64 KiB is in the file, the others behind it (u32, little-endian).
    pub crc_offset: u64,
    /// The block's length in bytes.
    pub length: u64,
    /// The pages that may be read. The others are holes, or not verified yet.
    pub present: PageSet,
}

/// Where granted descriptors are opened.
#[derive(Debug)]
pub(super) struct Source {
    status: GrantStatus,
    layout: Layout,
}

impl Source {
    /// Tests the configured read-only path.
    pub(super) fn open(config: &Config, layout: &Layout) -> Result<Self, Error> {
        let tested = match &config.read_only_path {
            None => Err("no read_only_path is set; mount the cache directory a second time, read-only, and name it there"
                .to_owned()),
            Some(path) => match test(layout, path) {
                Ok(()) => Ok(Layout::of(path)),
                Err(Refused::Store(error)) => return Err(error),
                Err(Refused::Path(reason)) => {
                    Err(format!("read_only_path = {} does not protect grants: {reason}", path.display()))
                }
            },
        };
        Ok(match (tested, config.grants) {
            (Ok(layout), _) => Self {
                status: GrantStatus::Enabled,
                layout,
            },
            (Err(_), GrantPolicy::Unprotected) => Self {
                status: GrantStatus::EnabledUnprotected,
                layout: layout.clone(),
            },
            (Err(reason), GrantPolicy::Required) => Self {
                status: GrantStatus::Disabled { reason },
                layout: layout.clone(),
            },
        })
    }

    /// `None` if the block's file is not at its path.
    fn open_block(&self, block: &Block) -> Result<Option<File>, Error> {
        let path = self.layout.block(block.identity().key());
        let file = match read_only_options().open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open for granting", &path, error)),
        };
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("inspect", &path, error))?;
        if Inode::of(&metadata) != block.inode {
            return Ok(None);
        }
        if self.status == GrantStatus::Enabled && !is_read_only_mount(&file) {
            let reason = format!("{} is no longer mounted read-only", self.layout.root().display());
            return Err(Error::GrantsDisabled { reason });
        }
        Ok(Some(file))
    }
}

impl BlockStore {
    /// Whether descriptors are granted.
    pub fn grants(&self) -> &GrantStatus {
        &self.inner.grants.status
    }

    /// Opens a block's file for a session, which leases it from then on. Touches the disk.
    pub fn grant(&self, block: &Arc<Block>, session: SessionId) -> Result<Grant, Error> {
        if let GrantStatus::Disabled { reason } = &self.inner.grants.status {
            return Err(Error::GrantsDisabled {
                reason: reason.clone(),
            });
        }
        self.check_disk()?;
        let file_id = block.file_id();
        let had = {
            let mut state = self.state();
            if block.is_retired() {
                return Err(Error::Evicted { file_id });
            }
            let had = state.ledger.holders(file_id).contains(&session);
            if state.ledger.lease(session, file_id) {
                state.eviction.set_leased(file_id, true);
            }
            had
        };
        // Retired in between or not: a descriptor of this very inode shows this block's bytes.
        let opened = match self.watched(Operation::Open, || self.inner.grants.open_block(block)) {
            Ok(Some(file)) => Ok(file),
            Ok(None) if block.is_retired() => Err(Error::Evicted { file_id }),
            Ok(None) => Err(self.not_at_its_path(block)),
            Err(error) => Err(error),
        };
        let file = opened.inspect_err(|_| {
            if !had {
                self.release(session, file_id);
            }
        })?;
        Ok(Grant {
            file_id,
            fd: file.into(),
            data_offset: DATA_OFFSET,
            crc_offset: CRC_OFFSET,
            length: block.length(),
            present: block.present(),
        })
    }

    /// A block that is in the cache, and whose file the granting path does not show.
    fn not_at_its_path(&self, block: &Arc<Block>) -> Error {
        let path = self.inner.layout.block(block.identity().key());
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if Inode::of(&metadata) == block.inode => Error::GrantsDisabled {
                reason: format!(
                    "{} no longer shows what the cache directory holds",
                    self.inner.grants.layout.root().display()
                ),
            },
            _ => self.vanished(block),
        }
    }
}

/// Makes sure that the file system can prove files free.
pub(super) fn check_leases(layout: &Layout) -> Result<(), Error> {
    let path = layout.temporary_file(LEASE_TEST);
    let test = || {
        let file = create_options().truncate(false).create(true).open(&path)?;
        std::fs::remove_file(&path)?;
        lease::is_sole_holder(&file)
    };
    let reason = match test() {
        Ok(true) => return Ok(()),
        Ok(false) => "a lease on a new file was refused".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::Config {
        key: "directory",
        value: layout.root().display().to_string(),
        reason: format!(
            "cannot tell there whether an evicted file is still held (F_SETLEASE: {reason}); use a directory on a local \
             file system such as ext4 or xfs"
        ),
    })
}

enum Refused {
    /// The cache directory itself failed the test's preparation.
    Store(Error),
    /// The read-only path will not do.
    Path(String),
}

fn test(layout: &Layout, read_only_path: &Path) -> Result<(), Refused> {
    let probe = Probe::create(layout).map_err(Refused::Store)?;
    let refused = |reason: String| Err(Refused::Path(reason));
    let path = Layout::of(read_only_path).temporary_file(READ_ONLY_TEST);
    let file = match read_only_options().open(&path) {
        Ok(file) => file,
        Err(error) => {
            return refused(format!(
                "cannot open {} through it: {error}; mount the cache directory there",
                path.display()
            ));
        }
    };
    match file.metadata() {
        Ok(metadata) if Inode::of(&metadata) == probe.inode => {}
        Ok(_) => {
            return refused("it is another directory; mount the cache directory itself there".to_owned());
        }
        Err(error) => return refused(format!("cannot inspect {}: {error}", path.display())),
    }
    let reopened = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    match reopened {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {}
        Ok(_) => {
            return refused(
                "a descriptor from it can be re-opened for writing; mount it read-only".to_owned(),
            );
        }
        Err(error) => {
            return refused(format!(
                "re-opening a descriptor from it for writing fails with {error}, not with EROFS"
            ));
        }
    }
    if is_read_only_mount(&file) {
        Ok(())
    } else {
        refused("its mount is not marked read-only".to_owned())
    }
}

/// A file in the cache directory for the test, removed afterwards.
struct Probe {
    path: PathBuf,
    inode: Inode,
}

impl Probe {
    fn create(layout: &Layout) -> Result<Self, Error> {
        let path = layout.temporary_file(READ_ONLY_TEST);
        let create = || -> io::Result<Inode> {
            let file = create_options().create_new(true).open(&path)?;
            Ok(Inode::of(&file.metadata()?))
        };
        let inode = create().map_err(|error| Error::io("create", &path, error))?;
        Ok(Self { path, inode })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // What stays is swept at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn read_only_options() -> OpenOptions {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

fn is_read_only_mount(file: &File) -> bool {
    fstatvfs(file).is_ok_and(|mount| mount.flags().contains(FsFlags::ST_RDONLY))
}
