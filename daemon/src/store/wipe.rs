//! Removes what daemons made in a cache directory, and nothing else.
//!
//! Goes by the layout's names and by the kind of each file, from directory to directory without following a symbolic link,
//! so that nothing outside of the tree can be reached. What is not a daemon's stays where it is, together with the
//! directories around it. The lock is held throughout, and goes last: a wipe that was cut short can be repeated.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::Error;
use super::layout::{self, Layout};

/// What a wipe came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wiped {
    /// Files removed.
    pub files: u64,
    /// Bytes that they took on disk.
    pub bytes: u64,
    /// What is there and is not a daemon's.
    pub left: Vec<PathBuf>,
}

/// Removes everything that daemons made below `directory`; the directory itself stays. One without a cache in it is fine.
///
/// Refuses a directory that a daemon holds, and one that has a `v1` which no daemon made.
pub fn wipe(directory: &Path) -> Result<Wiped, Error> {
    let mut wiped = Wiped::default();
    let root = match Dir::open(directory, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::ENOENT) => return Ok(wiped),
        Err(errno) => return Err(Error::io("open", directory, errno)),
    };
    let path = Layout::of(directory).root().to_owned();
    let v1 = name_of(&path);
    match subdirectory(&root, v1) {
        Ok(mut tree) => {
            if !entries(&mut tree, &path)?.is_empty() {
                let _lock = hold(&tree, directory)?;
                wiped.sweep(&mut tree, &path)?;
            }
            remove_empty(&root, &path)?;
        }
        Err(Errno::ENOENT) => {}
        Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(foreign(directory, "v1 is not a directory")),
        Err(errno) => return Err(Error::io("open", &path, errno)),
    }
    let mut root = root;
    for name in entries(&mut root, directory)? {
        if name != v1.as_bytes() {
            wiped.left.push(join(directory, &name));
        }
    }
    Ok(wiped)
}

impl Wiped {
    /// Empties `v1`, whose lock this process holds.
    fn sweep(&mut self, tree: &mut Dir, path: &Path) -> Result<(), Error> {
        self.shards(tree, &path.join("blocks"))?;
        self.files(tree, &path.join("tmp"), layout::is_temporary)?;
        self.files(tree, &path.join("quarantine"), layout::is_quarantined)?;
        let mut lock = None;
        for name in entries(tree, path)? {
            match name.as_slice() {
                b"lock" => lock = Some(name),
                b"epoch" | b"clean" => self.file(tree, path, &name)?,
                // A directory that could not be emptied says itself what is left in it.
                b"blocks" | b"tmp" | b"quarantine" if is_directory(tree, path, &name)? => {}
                _ => self.left.push(join(path, &name)),
            }
        }
        // While anything stays, the lock stays: it is what the tree is known by.
        match lock {
            Some(lock) if entries(tree, path)?.len() == 1 => self.file(tree, path, &lock),
            Some(_) | None => Ok(()),
        }
    }

    fn shards(&mut self, tree: &Dir, path: &Path) -> Result<(), Error> {
        let Some(mut blocks) = self.open(tree, path)? else {
            return Ok(());
        };
        for name in entries(&mut blocks, path)? {
            let shard = std::str::from_utf8(&name).ok().and_then(layout::parse_shard);
            match shard {
                Some(byte) => self.files(&blocks, &join(path, &name), |name| {
                    Layout::parse_block(byte, name).is_some()
                })?,
                None => self.left.push(join(path, &name)),
            }
        }
        remove_empty(tree, path)
    }

    /// Removes the plain files of a directory that have a daemon's names, and the directory if it is empty then.
    fn files(&mut self, parent: &Dir, path: &Path, is_ours: impl Fn(&str) -> bool) -> Result<(), Error> {
        let Some(mut directory) = self.open(parent, path)? else {
            return Ok(());
        };
        for name in entries(&mut directory, path)? {
            if std::str::from_utf8(&name).is_ok_and(&is_ours) {
                self.file(&directory, path, &name)?;
            } else {
                self.left.push(join(path, &name));
            }
        }
        remove_empty(parent, path)
    }

    /// Removes one file if it is a plain one.
    fn file(&mut self, directory: &Dir, path: &Path, name: &[u8]) -> Result<(), Error> {
        let found = stat(directory, path, name)?;
        if found.st_mode & libc::S_IFMT != libc::S_IFREG {
            self.left.push(join(path, name));
            return Ok(());
        }
        unlinkat(directory, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir)
            .map_err(|errno| Error::io("remove", &join(path, name), errno))?;
        self.files += 1;
        // Blocks of 512 bytes, whatever the file system's own are.
        self.bytes += found.st_blocks.unsigned_abs() * 512;
        Ok(())
    }

    /// A directory of the layout; `None` where there is none. Something else of its name is left.
    fn open(&mut self, parent: &Dir, path: &Path) -> Result<Option<Dir>, Error> {
        match subdirectory(parent, name_of(path)) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                // What is directly below `v1` is listed with the rest of it.
                if path.parent().and_then(Path::file_name) == Some(OsStr::new("blocks")) {
                    self.left.push(path.to_owned());
                }
                Ok(None)
            }
            Err(errno) => Err(Error::io("open", path, errno)),
        }
    }
}

/// Takes the lock of a tree that a daemon made.
fn hold(tree: &Dir, directory: &Path) -> Result<File, Error> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = openat(tree, "lock", flags, Mode::empty()).map(File::from);
    let lock = match opened {
        Ok(lock) if lock.metadata().is_ok_and(|found| found.is_file()) => lock,
        Ok(_) | Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO | Errno::EISDIR) => {
            return Err(foreign(directory, "v1 has no lock of a daemon in it"));
        }
        Err(errno) => return Err(Error::io("open", &Layout::of(directory).lock(), errno)),
    };
    layout::lock(&lock, directory)?;
    // Another wipe may have ended, and a daemon begun, since the file was opened.
    if !layout::is_lock(&lock, &Layout::of(directory).lock()) {
        return Err(Error::Locked {
            directory: directory.to_owned(),
            pid: "unknown".to_owned(),
        });
    }
    Ok(lock)
}

fn foreign(directory: &Path, what: &str) -> Error {
    Error::Config {
        key: "directory",
        value: directory.display().to_string(),
        reason: format!(
            "{what}, so it does not look like a cache directory, and nothing was removed; if it is one, remove its \
             contents by hand"
        ),
    }
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().expect("paths of the layout have a name")
}

fn join(path: &Path, name: &[u8]) -> PathBuf {
    path.join(OsStr::from_bytes(name))
}

fn subdirectory(parent: &Dir, name: &OsStr) -> nix::Result<Dir> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Dir::openat(parent.as_fd(), name, flags, Mode::empty())
}

/// The names in a directory, but for itself and its parent.
fn entries(directory: &mut Dir, path: &Path) -> Result<Vec<Vec<u8>>, Error> {
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry.map_err(|errno| Error::io("list", path, errno))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn stat(directory: &Dir, path: &Path, name: &[u8]) -> Result<FileStat, Error> {
    fstatat(directory, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|errno| Error::io("inspect", &join(path, name), errno))
}

fn is_directory(directory: &Dir, path: &Path, name: &[u8]) -> Result<bool, Error> {
    Ok(stat(directory, path, name)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Removes a directory that nothing is left in.
fn remove_empty(parent: &Dir, path: &Path) -> Result<(), Error> {
    match unlinkat(parent, name_of(path), UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Error::io("remove", path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const OBJECT: &str = "abababababababababababababababab";

    /// A cache directory as a daemon leaves it, in a directory with neighbours.
    fn cache() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("cache");
        fs::create_dir_all(outer.path().join("precious")).unwrap();
        fs::write(outer.path().join("precious/letter"), "dear").unwrap();
        let layout = Layout::create(&directory).unwrap();
        drop(layout.take_lock(&directory).unwrap());
        layout.next_epoch().unwrap();
        for (file, text) in [
            (format!("v1/blocks/ab/{OBJECT}.0"), "a block"),
            (format!("v1/quarantine/0000000000000007-{OBJECT}.3"), "damaged"),
            ("v1/tmp/00000000000000ff".to_owned(), "half a block"),
            ("v1/clean".to_owned(), "a marker"),
        ] {
            fs::write(directory.join(file), text).unwrap();
        }
        (outer, directory)
    }

    fn left(wiped: &Wiped, directory: &Path) -> Vec<String> {
        let relative = |path: &PathBuf| path.strip_prefix(directory).unwrap().display().to_string();
        let mut left: Vec<_> = wiped.left.iter().map(relative).collect();
        left.sort();
        left
    }

    #[test]
    fn everything_that_a_daemon_made_goes_and_the_directory_stays() {
        let (outer, directory) = cache();
        let wiped = wipe(&directory).unwrap();
        assert_eq!((wiped.files, wiped.left.len()), (6, 0), "{wiped:?}");
        assert!(wiped.bytes >= 6 * 512, "{wiped:?}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        assert!(outer.path().join("precious/letter").exists());
        // Nothing is there any more, and that is fine.
        assert_eq!(wipe(&directory).unwrap(), Wiped::default());
        fs::remove_dir(&directory).unwrap();
        assert_eq!(wipe(&directory).unwrap(), Wiped::default());
    }

    #[test]
    fn a_directory_that_a_daemon_holds_is_left_alone() {
        let (_outer, directory) = cache();
        let held = Layout::of(&directory).take_lock(&directory).unwrap();
        let error = wipe(&directory).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        assert!(directory.join(format!("v1/blocks/ab/{OBJECT}.0")).exists());
        drop(held);
        wipe(&directory).unwrap();
    }

    #[test]
    fn a_directory_that_is_no_cache_is_refused_untouched() {
        let outer = tempfile::tempdir().unwrap();
        for make in [
            |directory: &Path| fs::write(directory.join("v1"), "a file"),
            |directory: &Path| symlink("/etc", directory.join("v1")),
            |directory: &Path| fs::create_dir_all(directory.join("v1/blocks/ab")),
            |directory: &Path| fs::create_dir_all(directory.join("v1/lock")),
            |directory: &Path| {
                fs::create_dir_all(directory.join("v1"))?;
                symlink("/etc/passwd", directory.join("v1/lock"))
            },
        ] {
            let directory = tempfile::tempdir_in(outer.path()).unwrap();
            make(directory.path()).unwrap();
            let before = walk(directory.path());
            let error = wipe(directory.path()).unwrap_err().to_string();
            assert!(error.contains("does not look like a cache"), "{error}");
            assert_eq!(walk(directory.path()), before);
        }
    }

    #[test]
    fn what_is_not_a_daemons_stays_and_is_named() {
        let (outer, directory) = cache();
        let block = |index: u32| format!("v1/blocks/ab/{OBJECT}.{index}");
        let v1 = |name: &str| directory.join("v1").join(name);
        fs::write(directory.join("notes.txt"), "mine").unwrap();
        fs::write(v1("readme"), "mine").unwrap();
        fs::write(v1("blocks/ab/notes.txt"), "mine").unwrap();
        fs::write(v1("blocks/stray"), "mine").unwrap();
        // The right name in the wrong shard, and a name that is right but for its spelling.
        fs::write(v1(&format!("blocks/ac/{OBJECT}.0")), "mine").unwrap();
        fs::write(v1(&format!("blocks/ab/{OBJECT}.007")), "mine").unwrap();
        fs::write(v1("tmp/backup.tar"), "mine").unwrap();
        fs::create_dir(directory.join(block(9))).unwrap();
        fs::create_dir(v1("quarantine/more")).unwrap();
        let expected = [
            "notes.txt".to_owned(),
            format!("v1/blocks/ab/{OBJECT}.007"),
            block(9),
            "v1/blocks/ab/notes.txt".to_owned(),
            format!("v1/blocks/ac/{OBJECT}.0"),
            "v1/blocks/stray".to_owned(),
            "v1/quarantine/more".to_owned(),
            "v1/readme".to_owned(),
            "v1/tmp/backup.tar".to_owned(),
        ];
        for turn in 0..2 {
            let wiped = wipe(&directory).unwrap();
            assert_eq!(left(&wiped, &directory), expected, "turn {turn}");
            assert_eq!(wiped.files, if turn == 0 { 5 } else { 0 }, "all but the lock");
        }
        assert_eq!(fs::read_to_string(v1("tmp/backup.tar")).unwrap(), "mine");
        assert!(!directory.join(block(0)).exists() && v1("lock").exists());
        assert!(outer.path().join("precious/letter").exists());
    }

    #[test]
    fn symbolic_links_lead_nowhere() {
        let (outer, directory) = cache();
        let precious = outer.path().join("precious");
        fs::write(precious.join(format!("{OBJECT}.5")), "dear").unwrap();
        fs::write(precious.join("0000000000000001"), "dear").unwrap();
        let v1 = directory.join("v1");
        // A link of a block's name, one in place of a shard, and one in place of a whole directory.
        symlink(precious.join("letter"), v1.join(format!("blocks/ab/{OBJECT}.5"))).unwrap();
        fs::remove_dir(v1.join("blocks/cd")).unwrap();
        symlink(&precious, v1.join("blocks/cd")).unwrap();
        fs::remove_dir_all(v1.join("tmp")).unwrap();
        symlink(&precious, v1.join("tmp")).unwrap();
        fs::remove_file(v1.join("epoch")).unwrap();
        symlink(precious.join("letter"), v1.join("epoch")).unwrap();
        let before = walk(&precious);
        let wiped = wipe(&directory).unwrap();
        let expected = [
            format!("v1/blocks/ab/{OBJECT}.5"),
            "v1/blocks/cd".to_owned(),
            "v1/epoch".to_owned(),
            "v1/tmp".to_owned(),
        ];
        assert_eq!(left(&wiped, &directory), expected);
        assert_eq!(walk(&precious), before);
    }

    #[test]
    fn a_wipe_that_was_cut_short_is_finished_by_the_next_one() {
        let (_outer, directory) = cache();
        let v1 = directory.join("v1");
        fs::remove_dir_all(v1.join("blocks")).unwrap();
        fs::remove_file(v1.join("clean")).unwrap();
        wipe(&directory).unwrap();
        assert!(!v1.exists());
        // Even one that came as far as the lock.
        fs::create_dir(&v1).unwrap();
        assert_eq!(wipe(&directory).unwrap(), Wiped::default());
        assert!(!v1.exists());
    }

    #[test]
    fn a_daemon_that_waited_for_the_lock_of_a_wiped_directory_does_not_take_it() {
        let (_outer, directory) = cache();
        let stale = File::open(directory.join("v1/lock")).unwrap();
        wipe(&directory).unwrap();
        let layout = Layout::create(&directory).unwrap();
        let _held = layout.take_lock(&directory).unwrap();
        assert!(!layout::is_lock(&stale, &layout.lock()));
    }

    /// Every path below, sorted.
    fn walk(directory: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                found.extend(walk(&entry.path()));
            }
            found.push(entry.path());
        }
        found.sort();
        found
    }
}
