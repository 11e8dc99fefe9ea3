//! The daemon's own descriptors of block files: a bounded number, the ones used last kept open.
//!
//! A descriptor is shared by everybody who works with the file at the moment; closing it here only means that it is
//! closed when the last of them is done. There is never more than one *kept* descriptor of a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cachelet_protocol::ids::FileId;

use super::lock;

/// The kept descriptors.
#[derive(Debug)]
pub(super) struct Descriptors {
    max_open: usize,
    /// Descriptors kept elsewhere (of unlinked files) that count against the same limit.
    pinned: AtomicUsize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<FileId, (Arc<File>, u64)>,
    by_use: BTreeMap<u64, FileId>,
    next_use: u64,
}

impl Descriptors {
    pub(super) fn new(max_open: usize) -> Self {
        Self {
            max_open,
            pinned: AtomicUsize::new(0),
            kept: Mutex::default(),
        }
    }

    /// The kept descriptor of a file.
    pub(super) fn get(&self, id: FileId) -> Option<Arc<File>> {
        lock(&self.kept).mark_used(id)
    }

    /// Keeps a descriptor, unless one of the same file is kept already; returns the one that is. Closes idle ones.
    pub(super) fn keep(&self, id: FileId, file: Arc<File>) -> Arc<File> {
        let (file, closed) = {
            let mut kept = lock(&self.kept);
            let file = if let Some(earlier) = kept.mark_used(id) {
                earlier
            } else {
                kept.insert(id, Arc::clone(&file));
                file
            };
            let room = self
                .max_open
                .saturating_sub(self.pinned.load(Ordering::Relaxed))
                .max(1);
            (file, kept.shrink_to(room))
        };
        // Closing may do I/O: outside the lock.
        drop(closed);
        file
    }

    /// Gives the kept descriptor of a file away.
    pub(super) fn take(&self, id: FileId) -> Option<Arc<File>> {
        lock(&self.kept).remove(id)
    }

    /// Says how many descriptors are held elsewhere.
    pub(super) fn set_pinned(&self, count: usize) {
        self.pinned.store(count, Ordering::Relaxed);
    }

    /// How many descriptors are kept here.
    pub(super) fn count(&self) -> usize {
        lock(&self.kept).files.len()
    }
}

impl Kept {
    fn mark_used(&mut self, id: FileId) -> Option<Arc<File>> {
        let (file, used) = self.files.get_mut(&id)?;
        self.by_use.remove(used);
        *used = self.next_use;
        self.by_use.insert(self.next_use, id);
        self.next_use += 1;
        Some(Arc::clone(file))
    }

    fn insert(&mut self, id: FileId, file: Arc<File>) {
        self.files.insert(id, (file, self.next_use));
        self.by_use.insert(self.next_use, id);
        self.next_use += 1;
    }

    fn remove(&mut self, id: FileId) -> Option<Arc<File>> {
        let (file, used) = self.files.remove(&id)?;
        self.by_use.remove(&used);
        Some(file)
    }

    fn shrink_to(&mut self, room: usize) -> Vec<Arc<File>> {
        let mut closed = Vec::new();
        while self.files.len() > room {
            let Some((_, id)) = self.by_use.pop_first() else {
                break;
            };
            closed.extend(self.files.remove(&id).map(|(file, _)| file));
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").unwrap())
    }

    #[test]
    fn the_descriptor_used_longest_ago_is_closed_first() {
        let descriptors = Descriptors::new(2);
        descriptors.keep(FileId(1), file());
        descriptors.keep(FileId(2), file());
        assert!(descriptors.get(FileId(1)).is_some());
        descriptors.keep(FileId(3), file());
        assert!(descriptors.get(FileId(2)).is_none());
        assert!(descriptors.get(FileId(1)).is_some() && descriptors.get(FileId(3)).is_some());
    }

    #[test]
    fn pinned_descriptors_count_against_the_limit() {
        let descriptors = Descriptors::new(3);
        descriptors.set_pinned(2);
        (0..3).for_each(|id| drop(descriptors.keep(FileId(id), file())));
        assert_eq!(descriptors.count(), 1);
    }

    #[test]
    fn a_file_has_one_kept_descriptor() {
        let descriptors = Descriptors::new(2);
        let first = descriptors.keep(FileId(1), file());
        assert!(Arc::ptr_eq(&first, &descriptors.keep(FileId(1), file())));
        assert!(Arc::ptr_eq(&first, &descriptors.take(FileId(1)).unwrap()));
        assert_eq!(descriptors.count(), 0);
    }
}
