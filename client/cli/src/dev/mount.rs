//! Read-only bind mounts, undone when dropped.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const NOTHING: Option<&str> = None;

/// A second, read-only view of a directory.
pub(crate) struct ReadOnlyMount {
    at: PathBuf,
}

impl ReadOnlyMount {
    /// Shows `directory` read-only at `at`, which exists.
    pub(crate) fn new(directory: &Path, at: &Path) -> nix::Result<Self> {
        // One may be left from a `dev` that was killed.
        undo(at);
        mount(Some(directory), at, NOTHING, MsFlags::MS_BIND, NOTHING)?;
        let mounted = Self { at: at.to_owned() };
        mount(NOTHING, at, NOTHING, MsFlags::MS_PRIVATE, NOTHING)?;
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NOTHING, at, NOTHING, read_only, NOTHING)?;
        Ok(mounted)
    }
}

impl Drop for ReadOnlyMount {
    fn drop(&mut self) {
        undo(&self.at);
    }
}

fn undo(at: &Path) {
    // Mounts pile up; EINVAL says that there is none.
    while umount2(at, MntFlags::MNT_DETACH).is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_shows_and_cannot_be_written_through_the_mount() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (cache, view) = (directory.path().join("cache"), directory.path().join("view"));
        std::fs::create_dir(&cache).unwrap();
        std::fs::create_dir(&view).unwrap();
        let Ok(mounted) = ReadOnlyMount::new(&cache, &view) else {
            // A container's root that may not mount.
            return;
        };
        std::fs::write(cache.join("file"), "x").unwrap();
        assert_eq!(std::fs::read(view.join("file")).unwrap(), b"x");
        let refused = std::fs::write(view.join("file"), "y").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        drop(mounted);
        assert!(!view.join("file").exists());
    }
}
