//! What a worker must not keep once its clients are gone: sessions, held bytes, reservations, fetches, descriptors and files.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::Worker;
use crate::wait::poll;

/// Sums that are zero when nobody is connected.
const ZERO: [&str; 7] = [
    "/sessions",
    "/fetches_in_flight",
    "/grants/held_bytes",
    "/grants/unacknowledged",
    "/cache/reserved_bytes",
    "/cache/unlinked_held_bytes",
    "/cache/unlinked_files",
];
/// A clean-up that takes longer than this never comes: the longest deadline of the daemon is 10 s.
const DEADLINE: Duration = Duration::from_secs(60);
/// The kernel's mark of a socket that listens, in `/proc/<pid>/net/tcp`.
const LISTENING: &str = "0A";

/// The descriptors of a worker to which nobody is connected.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    descriptors: usize,
}

impl Baseline {
    /// Of a worker to which nobody is connected.
    pub fn of(worker: &mut Worker) -> Self {
        let descriptors = Descriptors::of(worker).others.len();
        Self { descriptors }
    }

    /// Waits until nothing is left of the clients that are gone; panics with what is.
    ///
    /// The worker may have been restarted meanwhile. Connections to the origin that it keeps for later do not count, nor
    /// do descriptors of files in the cache, of which it has a limited number.
    #[track_caller]
    pub fn assert_nothing_left(&self, worker: &mut Worker) {
        let mut left = String::new();
        let clean = poll(DEADLINE, &mut || {
            left = self.left(worker);
            left.is_empty()
        });
        assert!(clean, "after {DEADLINE:?} {} still has {left}", worker.node());
    }

    fn left(self, worker: &mut Worker) -> String {
        let status = worker.status();
        let mut left = String::new();
        for pointer in ZERO {
            let value = status.pointer(pointer).and_then(Value::as_u64);
            if value != Some(0) {
                let _ = write!(left, "{pointer} = {value:?}, ");
            }
        }
        for file in worker.temporary_files() {
            let _ = write!(left, "{}, ", file.display());
        }
        let descriptors = Descriptors::of(worker);
        if !descriptors.deleted.is_empty() {
            let _ = write!(left, "deleted files {:?}, ", descriptors.deleted);
        }
        if descriptors.others.len() > self.descriptors {
            let _ = write!(
                left,
                "{} descriptors instead of {}: {:?}",
                descriptors.others.len(),
                self.descriptors,
                descriptors.others
            );
        }
        left
    }
}

/// What the descriptors of a process are.
#[derive(Debug, Default)]
struct Descriptors {
    /// Of files that are gone.
    deleted: Vec<PathBuf>,
    /// Of neither files of the cache nor connections that the process made.
    others: Vec<PathBuf>,
}

impl Descriptors {
    fn of(worker: &mut Worker) -> Self {
        let process = PathBuf::from(format!("/proc/{}", worker.process().pid()));
        let made = connections_made(&process);
        let mut found = Self::default();
        let entries = fs::read_dir(process.join("fd")).expect("the worker runs");
        for entry in entries.flatten() {
            // One that was closed since is none.
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let in_cache = [worker.cache_dir(), worker.granted_dir()]
                .iter()
                .any(|directory| target.starts_with(directory.join("v1/blocks")));
            let name = target.to_string_lossy();
            if name.ends_with(" (deleted)") {
                found.deleted.push(target);
            } else if !in_cache && !made.contains(name.as_ref()) {
                found.others.push(target);
            }
        }
        found
    }
}

/// The sockets in a process's network namespace whose connection was made from there, as descriptors' targets spell them.
fn connections_made(process: &Path) -> HashSet<String> {
    let table = |name| fs::read_to_string(process.join("net").join(name)).unwrap_or_default();
    let tables = [table("tcp"), table("tcp6")];
    let mut sockets = Vec::new();
    for line in tables.iter().flat_map(|table| table.lines().skip(1)) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] {
            let port = local.rsplit(':').next().unwrap_or_default().to_owned();
            sockets.push((port, state == LISTENING, inode.to_owned()));
        }
    }
    let listening: HashSet<String> = sockets
        .iter()
        .filter(|(_, listens, _)| *listens)
        .map(|(port, ..)| port.clone())
        .collect();
    sockets
        .into_iter()
        .filter(|(port, listens, _)| !listens && !listening.contains(port))
        .map(|(.., inode)| format!("socket:[{inode}]"))
        .collect()
}
