//! Finding this node's daemon: whichever socket in the directory answers.
//!
//! Names are never compared: a socket is named after its worker's UUID, which a client cannot know. Sockets that nobody
//! listens on any more refuse the connection and are skipped; so are names that a daemon uses while it binds.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

/// The sockets in `directory`, the newest first.
pub(crate) fn sockets(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut sockets: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_temporary(&name.to_string_lossy()) {
            continue;
        }
        // It may be gone by now: then it is no daemon's.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.file_type().is_socket() {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            sockets.push((modified, entry.path()));
        }
    }
    sockets.sort_by(|a, b| b.cmp(a));
    Ok(sockets.into_iter().map(|(_, path)| path).collect())
}

fn is_temporary(name: &str) -> bool {
    name.starts_with('.') || name.ends_with('~') || name.contains(".tmp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::AT_FDCWD;
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_sockets_with_lasting_names_are_found_the_newest_first() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b-old", "a-new", ".hidden", "c.tmp", "d.tmp123"] {
            drop(UnixListener::bind(directory.path().join(name)).unwrap());
        }
        fs::write(directory.path().join("file"), "").unwrap();
        let earlier = TimeSpec::new(1_000_000_000, 0);
        let old = directory.path().join("b-old");
        utimensat(
            AT_FDCWD,
            &old,
            &earlier,
            &earlier,
            UtimensatFlags::NoFollowSymlink,
        )
        .unwrap();
        let found = sockets(directory.path()).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a-new", "b-old"]);
    }
}
