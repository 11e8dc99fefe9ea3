//! A directory as a store: its files are the objects of its buckets.
//!
//! Invariants:
//! * A key is resolved beneath the root only, by the kernel (`openat2`, `RESOLVE_BENEATH`): neither `..`, nor a
//!   symbolic link, nor a rename in between leads out. A key that the kernel would take for another one (`a//b`,
//!   `./a`, `a/`) is refused.
//! * A generation is inode, change time and size. The change time is set by the kernel whenever data or inode change
//!   and by nobody else; it is looked at again after each piece read and before the piece is handed on.
//! * A file that changed less than two seconds ago is not cacheable: two writes within one tick of the kernel's clock
//!   leave the same change time (4 ms on common kernels, up to 2 s on file systems such as FAT).
//!
//! What it cannot see is a write through a shared mapping that the kernel has not noticed yet.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cachelet_protocol::ids::{Etag, Generation, ObjectPath};
use futures::{StreamExt, stream};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use tokio::task::spawn_blocking;

use super::checked::ExactBody;
use super::config::{ConfigError, StoreConfig};
use super::{ByteStream, Clock, Error, ObjectMeta, RangeRequest};

/// How long a file must have been left alone before its change time pins its bytes.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// Bytes read between two looks at the file.
const PIECE_BYTES: u64 = 1 << 20;
/// `openat2` gives `EAGAIN` when a rename elsewhere made its walk uncertain.
const OPEN_ATTEMPTS: usize = 8;

/// What identifies a state of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed_s: i64,
    changed_ns: i64,
    size_bytes: u64,
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
            size_bytes: metadata.size(),
        }
    }

    fn generation(self) -> Generation {
        let changed_ns = i128::from(self.changed_s) * 1_000_000_000 + i128::from(self.changed_ns);
        let etag = Etag::new(format!("i{}-c{changed_ns}", self.inode)).expect("digits and letters");
        Generation {
            etag,
            size_bytes: self.size_bytes,
        }
    }

    /// Whether the file has been left alone for long enough. A change time in the future is not trusted.
    fn is_settled(self, now: SystemTime) -> bool {
        let since = u64::try_from(self.changed_s).unwrap_or(0);
        let nanos = u32::try_from(self.changed_ns).unwrap_or(0);
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::new(since, nanos))
            .and_then(|changed| now.duration_since(changed).ok())
            .is_some_and(|age| age >= SETTLED_AFTER)
    }
}

#[derive(Debug)]
pub(super) struct Directory {
    store: Box<str>,
    root: PathBuf,
    clock: Clock,
}

impl Directory {
    pub(super) fn new(config: &StoreConfig, clock: Clock) -> Self {
        let root = config.root.clone().unwrap_or_default();
        Self {
            store: config.name.as_str().into(),
            root,
            clock,
        }
    }

    pub(super) async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, Error> {
        let (_, stamp) = self.open(path).await?;
        let settled = stamp.is_settled(self.clock.now());
        Ok(ObjectMeta {
            generation: settled.then(|| stamp.generation()),
            size_bytes: stamp.size_bytes,
            version_id: None,
        })
    }

    /// The caller has checked that the range is not empty and lies within the generation.
    pub(super) async fn get(&self, request: &RangeRequest) -> Result<ByteStream, Error> {
        let path = &request.path;
        let (file, stamp) = self.open(path).await?;
        if stamp.generation() != request.generation {
            return Err(Error::Changed { path: path.clone() });
        }
        if !stamp.is_settled(self.clock.now()) {
            return Err(Error::NotCacheable {
                path: path.clone(),
                reason: "it changed less than two seconds ago",
            });
        }
        let reader = Reader {
            file: Arc::new(file),
            stamp,
            path: path.clone(),
            endpoint: self.describe(),
        };
        let pieces = stream::try_unfold((reader, request.range.clone()), |(reader, rest)| async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let end = rest.end.min(rest.start + PIECE_BYTES);
            let piece = reader.read(rest.start..end).await?;
            Ok(Some((piece, (reader, end..rest.end))))
        });
        let length = request.range.end - request.range.start;
        Ok(ExactBody::new(pieces.boxed(), length, self.describe()).boxed())
    }

    /// Whether the directory is there and may be entered.
    pub(super) async fn check(&self) -> Result<(), Error> {
        let root = self.root.clone();
        let outcome = spawn_blocking(move || open_root(&root)).await;
        let problem = match outcome
            .map_err(|_| Errno::EINTR)
            .and_then(|opened| opened.map(drop))
        {
            Ok(()) => return Ok(()),
            Err(Errno::ENOENT) => "does not exist: create it, or mount it",
            Err(Errno::ENOTDIR) => "is no directory",
            Err(Errno::EACCES | Errno::EPERM) => "may not be read by the daemon: check its owner and mode",
            Err(_) => "cannot be opened",
        };
        Err(Error::Config(ConfigError {
            store: self.store.clone(),
            key: "root",
            value: format!("{:?}", self.root.display().to_string()).into(),
            problem: problem.into(),
        }))
    }

    async fn open(&self, path: &ObjectPath) -> Result<(File, Stamp), Error> {
        let key = path.key.as_str();
        let spelled_once = !key.contains('\0') && !key.split('/').any(|part| matches!(part, "" | "." | ".."));
        if !spelled_once {
            let reason = "its key has an empty, `.` or `..` segment, a slash at an end, or a zero byte";
            return Err(Error::UnsupportedKey {
                path: path.clone(),
                reason,
            });
        }
        let (root, key) = (self.root.clone(), key.to_owned());
        let outcome = spawn_blocking(move || open_beneath(&root, &key)).await;
        let path = path.clone();
        match outcome.unwrap_or(Err(Errno::EINTR)) {
            Ok(Some(opened)) => Ok(opened),
            // A directory, or nothing that holds bytes: pipes, sockets and devices are no objects.
            Ok(None) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::ENXIO) => {
                Err(Error::NotFound { path, code: None })
            }
            Err(Errno::EACCES | Errno::EPERM) => Err(Error::PermissionDenied { path, code: None }),
            Err(Errno::EXDEV | Errno::ELOOP) => Err(Error::UnsupportedKey {
                path,
                reason: "a symbolic link in its key leads out of the store's root",
            }),
            Err(errno) => Err(self.unavailable(errno)),
        }
    }

    pub(super) fn describe(&self) -> Box<str> {
        format!("store {:?} in {}", self.store, self.root.display()).into()
    }

    fn unavailable(&self, errno: Errno) -> Error {
        Error::Unavailable {
            endpoint: self.describe(),
            reason: errno.desc().into(),
        }
    }
}

fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    let directory = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
        .open(root)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    Ok(directory.into())
}

/// Opens a regular file beneath the root; `None` if there is something else.
fn open_beneath(root: &Path, key: &str) -> Result<Option<(File, Stamp)>, Errno> {
    // Opened anew each time: the root may be a mount that comes and goes.
    let root = open_root(root)?;
    let how = OpenHow::new()
        // NONBLOCK: opening a pipe must not wait for its writer. It has no effect on regular files.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut attempts = 0;
    let file = loop {
        attempts += 1;
        match openat2(&root, key, how) {
            Err(Errno::EAGAIN) if attempts < OPEN_ATTEMPTS => {}
            outcome => break File::from(outcome?),
        }
    };
    let metadata = file
        .metadata()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    Ok(metadata.is_file().then(|| (file, Stamp::of(&metadata))))
}

struct Reader {
    file: Arc<File>,
    stamp: Stamp,
    path: ObjectPath,
    endpoint: Box<str>,
}

impl Reader {
    async fn read(&self, range: std::ops::Range<u64>) -> Result<Bytes, Error> {
        let file = Arc::clone(&self.file);
        let outcome = spawn_blocking(move || -> std::io::Result<(Vec<u8>, Stamp)> {
            let mut piece = vec![0; usize::try_from(range.end - range.start).expect("at most PIECE_BYTES")];
            file.read_exact_at(&mut piece, range.start)?;
            Ok((piece, Stamp::of(&file.metadata()?)))
        });
        let changed = || Error::Changed {
            path: self.path.clone(),
        };
        match outcome
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::Interrupted.into()))
        {
            Ok((piece, stamp)) if stamp == self.stamp => Ok(piece.into()),
            Ok(_) => Err(changed()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(changed()),
            Err(error) => {
                let reason = format!("reading a file failed: {}", error.kind());
                Err(Error::Unavailable {
                    endpoint: self.endpoint.clone(),
                    reason: reason.into(),
                })
            }
        }
    }
}
