//! Directories of a test, and the reaper that removes them even when the test process is killed.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use nix::mount::{MntFlags, umount2};

/// A directory for one test, removed with everything in it when dropped; what is mounted beneath it is unmounted first.
///
/// Its path is short (a socket beneath it must fit in 107 bytes) and no other test's.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
}

impl TestDir {
    /// Creates an empty directory; `label` is for people who look at it while the test runs.
    pub fn new(label: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cachelet-{label}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        reap_at_exit(&path);
        std::fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("cannot create the test directory {}: {error}", path.display()));
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path beneath the directory; nothing is created.
    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// Creates a directory beneath this one (and those between), and returns its path.
    pub fn create_dir(&self, relative: impl AsRef<Path>) -> PathBuf {
        let path = self.join(relative);
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        path
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes a directory with everything in it; what is mounted beneath is unmounted first, and never removed.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    for mount in mounts_beneath(path) {
        // Detached, because a process that is just dying may still hold it.
        umount2(&mount, MntFlags::MNT_DETACH)?;
    }
    // Removing must never follow a mount that could not be undone.
    let left = mounts_beneath(path);
    if left.is_empty() {
        std::fs::remove_dir_all(path)
    } else {
        Err(std::io::Error::other(format!("{left:?} is still mounted there")))
    }
}

/// The root of this repository.
pub fn repository_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate is in the workspace")
}

/// The mount points below `dir`, the innermost and latest first.
fn mounts_beneath(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|escaped| PathBuf::from(unescape(escaped)))
        .filter(|mount| mount.starts_with(dir))
        .collect();
    mounts.reverse();
    mounts
}

/// The kernel writes space, tab, newline and backslash of a mount point as `\` and three octal digits.
fn unescape(escaped: &str) -> String {
    let mut plain = escaped.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, character);
    }
    plain
}

/// Reads directories, one a line, until this process is gone (the pipe closes however it ends), then removes those that
/// are left. It retries, because this process's children may still be dying.
const REAPER: &str = r#"
while IFS= read -r dir; do set -- "$@" "$dir"; done
for dir; do
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        [ -e "$dir" ] || break
        awk -v below="$dir/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | tac |
            while IFS= read -r mount; do umount --lazy "$mount"; done
        rm -rf --one-file-system -- "$dir" && break
        sleep 0.2
    done
done
"#;

fn reap_at_exit(path: &Path) {
    static REAPING: LazyLock<Mutex<Child>> = LazyLock::new(|| {
        let child = Command::new("sh")
            .args(["-c", REAPER, "reaper"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in the terminal is for the tests; the reaper ends after them.
            .process_group(0)
            .spawn()
            .expect("sh is on every Linux system");
        Mutex::new(child)
    });
    let mut reaper = REAPING.lock().unwrap_or_else(PoisonError::into_inner);
    let stdin = reaper.stdin.as_mut().expect("stdin was asked for");
    writeln!(stdin, "{}", path.display()).expect("the reaper reads until this process ends");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }

    #[test]
    fn a_directory_is_gone_with_its_value() {
        let dir = TestDir::new("dir");
        std::fs::write(dir.create_dir("a/b").join("file"), "x").unwrap();
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}
