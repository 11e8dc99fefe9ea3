//! The UUID-named domain socket: bound under a temporary name, made ready, then renamed, so that no client ever meets
//! a socket that is not accepting.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use cachelet_protocol::ids::WorkerUuid;
use nix::unistd::{Gid, chown};
use tracing::info;

/// Longest path of a Unix socket on Linux (`sun_path` has 108 bytes, the last is zero).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path is longer than the kernel takes.
    #[error(
        "local.socket_dir = {directory}: the socket's path would have {length} bytes, the kernel takes {MAX_SOCKET_PATH_BYTES}; \
         choose a directory that is at least {} bytes shorter", length - MAX_SOCKET_PATH_BYTES
    )]
    PathTooLong {
        /// The directory.
        directory: PathBuf,
        /// The socket path's length in bytes.
        length: usize,
    },
    /// Another daemon with this worker's UUID accepts connections.
    #[error(
        "a daemon already accepts connections at {0}; stop it first, or give this one another worker.uuid"
    )]
    InUse(PathBuf),
    /// Something failed.
    #[error(
        "local.socket_dir = {directory}: cannot {action}: {source}; the directory must exist and be writable by the daemon"
    )]
    Io {
        /// The directory.
        directory: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// The bound socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl LocalSocket {
    /// Binds the worker's socket in `directory`, mode 0660, for `group`; removes sockets there that nobody accepts on.
    pub fn bind(directory: &Path, uuid: WorkerUuid, group: Option<u32>) -> Result<Self, SocketError> {
        let path = directory.join(uuid.to_string());
        let temporary = directory.join(format!(".{uuid}"));
        let length = temporary.as_os_str().len();
        if length > MAX_SOCKET_PATH_BYTES {
            return Err(SocketError::PathTooLong {
                directory: directory.to_owned(),
                length,
            });
        }
        let failed = |action| {
            move |source| SocketError::Io {
                directory: directory.to_owned(),
                action,
                source,
            }
        };
        fs::create_dir_all(directory).map_err(failed("create it"))?;
        if UnixStream::connect(&path).is_ok() {
            return Err(SocketError::InUse(path));
        }
        remove_stale(directory).map_err(failed("remove stale sockets"))?;
        let listener = UnixListener::bind(&temporary).map_err(failed("bind a socket"))?;
        let ready = || {
            if let Some(group) = group {
                chown(&temporary, None, Some(Gid::from_raw(group)))?;
            }
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))?;
            listener.set_nonblocking(true)?;
            fs::rename(&temporary, &path)
        };
        if let Err(source) = ready() {
            let _ = fs::remove_file(&temporary);
            return Err(failed("set the socket's group and mode (local.socket_group)")(
                source,
            ));
        }
        Ok(Self {
            path,
            listener: Some(listener),
        })
    }

    /// Where clients find it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once, in non-blocking mode.
    pub fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// Removes the socket's file: no client finds it any more.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What is in a directory of sockets once those of daemons that are gone are removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sockets removed.
    pub removed: u64,
    /// Everything else.
    pub left: Vec<PathBuf>,
}

/// Removes daemons' sockets that refuse connections: their daemon is gone. Everything else is left alone.
pub fn remove_stale(directory: &Path) -> io::Result<Swept> {
    let mut swept = Swept::default();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let ours = entry.file_type()?.is_socket() && entry.file_name().to_str().is_some_and(is_name);
        match ours.then(|| UnixStream::connect(&path)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                info!(path = %path.display(), "removing the socket of a daemon that is gone");
                fs::remove_file(&path)?;
                swept.removed += 1;
            }
            _ => swept.left.push(path),
        }
    }
    Ok(swept)
}

/// Whether a socket is named as a daemon names it: by its UUID, with a dot before it until it is ready.
fn is_name(name: &str) -> bool {
    name.strip_prefix('.')
        .unwrap_or(name)
        .parse::<WorkerUuid>()
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuid() -> WorkerUuid {
        "0b4c9d7e-12ab-4cde-8f01-23456789abcd".parse().unwrap()
    }

    #[test]
    fn a_bound_socket_accepts_under_its_uuid_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let socket = LocalSocket::bind(directory.path(), uuid(), None).unwrap();
        let path = directory.path().join(uuid().to_string());
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no temporary name is left"
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let stale = directory.path().join("11111111-2222-3333-4444-555555555555");
        drop(UnixListener::bind(&stale).unwrap());
        fs::write(directory.path().join("notes.txt"), "not a socket").unwrap();
        drop(UnixListener::bind(directory.path().join("others.sock")).unwrap());
        let first = LocalSocket::bind(directory.path(), uuid(), None).unwrap();
        assert!(!stale.exists());
        for others in ["notes.txt", "others.sock"] {
            assert!(directory.path().join(others).exists(), "{others}");
        }
        assert!(matches!(
            LocalSocket::bind(directory.path(), uuid(), None),
            Err(SocketError::InUse(_))
        ));
        UnixStream::connect(first.path()).unwrap();
    }

    #[test]
    fn a_path_that_the_kernel_does_not_take_is_refused_with_its_length() {
        let directory = PathBuf::from(format!("/tmp/{}", "d".repeat(90)));
        let error = LocalSocket::bind(&directory, uuid(), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("133 bytes") && error.contains("107"), "{error}");
        assert!(!directory.exists());
    }
}
