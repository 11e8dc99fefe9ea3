//! The order of eviction: a pure list, oldest first, with leased files behind all others.

use std::collections::{BTreeSet, HashMap};

use cachelet_protocol::ids::FileId;

/// Ranks given to files of this life start here, behind every rank that comes from a file's times.
const FIRST_LIVE_RANK: u64 = 1 << 63;

/// Least recently used files first. Knows nothing about bytes, files or leases' owners.
#[derive(Debug)]
pub(super) struct Lru {
    idle: BTreeSet<(u64, FileId)>,
    leased: BTreeSet<(u64, FileId)>,
    entries: HashMap<FileId, Entry>,
    next_rank: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    rank: u64,
    leased: bool,
}

impl Lru {
    pub(super) fn new() -> Self {
        Self {
            idle: BTreeSet::new(),
            leased: BTreeSet::new(),
            entries: HashMap::new(),
            next_rank: FIRST_LIVE_RANK,
        }
    }

    /// Adds a file as the most recently used.
    pub(super) fn insert(&mut self, file: FileId, leased: bool) {
        let rank = self.next_rank;
        self.next_rank += 1;
        self.place(file, Entry { rank, leased });
    }

    /// Adds a file from an earlier life, older than all of this life; among its like by `age_rank` (greater = newer).
    pub(super) fn insert_recovered(&mut self, file: FileId, age_rank: u64) {
        self.place(
            file,
            Entry {
                rank: age_rank.min(FIRST_LIVE_RANK - 1),
                leased: false,
            },
        );
    }

    /// Makes a file the most recently used. Unknown files are ignored.
    pub(super) fn touch(&mut self, file: FileId) {
        if let Some(entry) = self.remove(file) {
            self.insert(file, entry.leased);
        }
    }

    /// Says whether anybody leases a file; its recency stays. Unknown files are ignored.
    pub(super) fn set_leased(&mut self, file: FileId, leased: bool) {
        if let Some(entry) = self.remove(file) {
            self.place(file, Entry { leased, ..entry });
        }
    }

    /// Forgets a file.
    pub(super) fn forget(&mut self, file: FileId) {
        self.remove(file);
    }

    /// Files nobody leases, least recently used first.
    pub(super) fn idle(&self) -> impl Iterator<Item = FileId> {
        self.idle.iter().map(|(_, file)| *file)
    }

    /// Files somebody leases, least recently used first.
    pub(super) fn leased(&self) -> impl Iterator<Item = FileId> {
        self.leased.iter().map(|(_, file)| *file)
    }

    fn remove(&mut self, file: FileId) -> Option<Entry> {
        let entry = self.entries.remove(&file)?;
        let order = if entry.leased {
            &mut self.leased
        } else {
            &mut self.idle
        };
        order.remove(&(entry.rank, file));
        Some(entry)
    }

    fn place(&mut self, file: FileId, entry: Entry) {
        self.remove(file);
        let order = if entry.leased {
            &mut self.leased
        } else {
            &mut self.idle
        };
        order.insert((entry.rank, file));
        self.entries.insert(file, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lru(files: std::ops::Range<u64>) -> Lru {
        let mut lru = Lru::new();
        files.for_each(|file| lru.insert(FileId(file), false));
        lru
    }

    fn idle(lru: &Lru) -> Vec<u64> {
        lru.idle().map(|file| file.0).collect()
    }

    #[test]
    fn the_file_used_last_is_evicted_last() {
        let mut lru = lru(0..3);
        lru.touch(FileId(0));
        assert_eq!(idle(&lru), [1, 2, 0]);
    }

    #[test]
    fn a_released_file_keeps_its_place() {
        let mut lru = lru(0..3);
        lru.set_leased(FileId(1), true);
        assert_eq!(
            (idle(&lru), lru.leased().collect::<Vec<_>>()),
            (vec![0, 2], vec![FileId(1)])
        );
        lru.set_leased(FileId(1), false);
        assert_eq!(idle(&lru), [0, 1, 2]);
    }

    #[test]
    fn recovered_files_come_before_this_lifes_by_their_age() {
        let mut lru = lru(0..1);
        lru.insert_recovered(FileId(10), u64::MAX);
        lru.insert_recovered(FileId(11), 5);
        assert_eq!(idle(&lru), [11, 10, 0]);
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_a_plain_list(ops in prop::collection::vec((0u8..4, 0u64..6), 0..60)) {
            let mut lru = Lru::new();
            let mut list: Vec<(u64, bool)> = Vec::new();
            for (op, file) in ops {
                let at = list.iter().position(|(id, _)| *id == file);
                match (op, at) {
                    (0, None) => {
                        lru.insert(FileId(file), false);
                        list.push((file, false));
                    }
                    (0 | 1, Some(at)) => {
                        lru.touch(FileId(file));
                        let entry = list.remove(at);
                        list.push(entry);
                    }
                    (2, at) => {
                        lru.forget(FileId(file));
                        at.map(|at| list.remove(at));
                    }
                    (_, at) => {
                        lru.set_leased(FileId(file), op == 3);
                        if let Some(at) = at {
                            list[at].1 = op == 3;
                        }
                    }
                }
                let of = |leased| list.iter().filter(|e| e.1 == leased).map(|e| e.0).collect::<Vec<_>>();
                prop_assert_eq!(idle(&lru), of(false));
                prop_assert_eq!(lru.leased().map(|f| f.0).collect::<Vec<_>>(), of(true));
            }
        }
    }
}
