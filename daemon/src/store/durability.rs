//! Bringing written pages to disk, and what happens when that fails.
//!
//! Written pages are in the page cache; the kernel writes them when it likes, and may fail to long after `write` said that
//! all is well. So each file with new pages is fdatasynced within seconds, those that wait longest first, by threads that no
//! reader and no fill waits for.
//!
//! A file that cannot be brought to disk leaves the cache at once and is never tried again: after a failed writeback the
//! kernel calls its pages clean and may drop them, and a second fdatasync says that all is well (Rebello et al., "Can
//! Applications Recover from fsync Failures?", ATC 2020). What is read of the file then is whatever the disk held before.
//! Between the kernel's failure and the fdatasync that tells of it only the client's own check (`verify_reads`) protects.
//!
//! The failure is told to descriptors that are open, or to the next one while the kernel keeps the inode in memory. A file
//! therefore keeps a descriptor as long as it waits, for as many files as half of [`super::Config::max_open_files`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cachelet_protocol::ids::FileId;

use super::health::Operation;
use super::{BlockStore, Error, Event, Reason, lock};

/// A single thread brings so many files to disk; for more there are [`SYNC_THREADS`], whose requests the file system's
/// journal joins.
const FILES_FOR_ONE_THREAD: usize = 16;
const SYNC_THREADS: usize = 4;

/// Files with pages that may not be on disk, in the order in which they began to wait.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    files: HashMap<FileId, Waiting>,
    order: BTreeSet<(Duration, FileId)>,
    bytes: u64,
    descriptors: usize,
}

/// What waits of one file.
#[derive(Debug, Default)]
struct Waiting {
    since: Duration,
    bytes: u64,
    file: Option<Arc<File>>,
}

impl Dirty {
    /// A file has something new, or is about to. It waits from the first time on.
    pub(super) fn mark(&mut self, file: FileId, now: Duration) {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.files.entry(file) {
            vacant.insert(Waiting {
                since: now,
                ..Waiting::default()
            });
            self.order.insert((now, file));
        }
    }

    /// So many bytes were written to a file through this descriptor, which stays open as long as they wait; unless
    /// `most_descriptors` do already.
    pub(super) fn wrote(
        &mut self,
        id: FileId,
        bytes: u64,
        file: &Arc<File>,
        now: Duration,
        most_descriptors: usize,
    ) {
        self.mark(id, now);
        let Some(waiting) = self.files.get_mut(&id) else {
            return;
        };
        waiting.bytes += bytes;
        self.bytes += bytes;
        if waiting.file.is_none() && self.descriptors < most_descriptors {
            waiting.file = Some(Arc::clone(file));
            self.descriptors += 1;
        }
    }

    /// Forgets a file. Its descriptor, if it kept one, is the caller's to close, outside of locks.
    pub(super) fn remove(&mut self, file: FileId) -> Option<Arc<File>> {
        let waiting = self.files.remove(&file)?;
        self.order.remove(&(waiting.since, file));
        self.bytes -= waiting.bytes;
        self.descriptors -= usize::from(waiting.file.is_some());
        waiting.file
    }

    /// Takes the file that waits longest out, if it has waited since `until` or earlier.
    fn take_due(&mut self, until: Duration) -> Option<(FileId, Option<Arc<File>>)> {
        let (_, file) = self.order.first().copied().filter(|(since, _)| *since <= until)?;
        Some((file, self.remove(file)))
    }

    /// How many have waited since `until` or earlier; no more than `most` are counted.
    fn due(&self, until: Duration, most: usize) -> usize {
        let due = self.order.iter().take_while(|(since, _)| *since <= until);
        due.take(most).count()
    }

    pub(super) fn contains(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What came of a round.
#[derive(Debug, Default)]
struct Round {
    failed: usize,
    first: Option<io::Error>,
}

impl BlockStore {
    /// Brings the files to disk whose pages have waited for `age` or longer. Touches the disk for long.
    ///
    /// Files that fail are retired; the error says how many those were.
    pub fn sync_dirty(&self, age: Duration) -> Result<(), Error> {
        // What is written from now on waits for the next round.
        match self.uptime().checked_sub(age) {
            Some(until) => self.sync_until(until, None),
            None => Ok(()),
        }
    }

    /// Brings everything to disk that was written by now, if that can be done before `deadline`. Touches the disk for long.
    pub(super) fn sync_all(&self, deadline: Instant) -> Result<(), Error> {
        self.sync_until(Duration::MAX, Some(deadline))?;
        match self.state().dirty.len() {
            0 => Ok(()),
            files => Err(Error::Unsynced { files }),
        }
    }

    fn sync_until(&self, until: Duration, deadline: Option<Instant>) -> Result<(), Error> {
        let round = Mutex::new(Round::default());
        let work = || {
            while deadline.is_none_or(|deadline| Instant::now() < deadline) {
                let Some((id, file)) = self.state().dirty.take_due(until) else {
                    return;
                };
                if let Err(error) = self.sync_file(id, file) {
                    let mut round = lock(&round);
                    round.failed += 1;
                    round.first.get_or_insert(error);
                }
            }
        };
        let due = self.state().dirty.due(until, FILES_FOR_ONE_THREAD + 1);
        if due > FILES_FOR_ONE_THREAD {
            std::thread::scope(|scope| (0..SYNC_THREADS).for_each(|_| _ = scope.spawn(work)));
        } else {
            work();
        }
        let Round { failed, first } = round.into_inner().unwrap_or_default();
        first.map_or(Ok(()), |first| Err(Error::Sync { failed, first }))
    }

    /// Brings one file to disk, or retires it.
    fn sync_file(&self, id: FileId, kept: Option<Arc<File>>) -> Result<(), io::Error> {
        let Some(block) = self.state().files.get(&id).cloned() else {
            return Ok(());
        };
        let file = match kept.map_or_else(|| self.file_of(&block), Ok) {
            Ok(file) => Ok(file),
            Err(Error::Evicted { .. }) => return Ok(()),
            Err(Error::Io { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        };
        let synced = file.and_then(|file| self.watched(Operation::Sync, || file.sync_data()));
        {
            let counts = &mut self.state().counts;
            match &synced {
                Ok(()) => counts.syncs += 1,
                Err(_) => counts.failed_syncs += 1,
            }
        }
        synced.inspect_err(|error| {
            self.retire(&block, &Reason::WriteFailed);
            let path = self.inner.layout.block(block.identity().key());
            // An error cannot be cloned; its number says all that there is.
            let copy = error
                .raw_os_error()
                .map_or_else(|| io::Error::from(error.kind()), io::Error::from_raw_os_error);
            self.emit(Event::Failed(Error::io("write to disk", &path, copy)));
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").expect("every system has it"))
    }

    #[test]
    fn files_come_in_the_order_in_which_they_began_to_wait() {
        let mut dirty = Dirty::default();
        let at = Duration::from_secs;
        dirty.wrote(FileId(2), 5, &file(), at(1), 9);
        dirty.mark(FileId(1), at(2));
        dirty.wrote(FileId(2), 7, &file(), at(3), 9);
        assert_eq!((dirty.len(), dirty.bytes()), (2, 12));
        assert!(
            dirty.take_due(Duration::ZERO).is_none(),
            "none has waited for so long"
        );
        assert_eq!(
            (dirty.due(at(1), 9), dirty.due(at(9), 9), dirty.due(at(9), 1)),
            (1, 2, 1)
        );
        let (first, kept) = dirty.take_due(at(1)).expect("it has waited long enough");
        assert_eq!((first, kept.is_some()), (FileId(2), true));
        assert!(dirty.take_due(at(1)).is_none());
        assert_eq!(dirty.take_due(at(2)).map(|(id, _)| id), Some(FileId(1)));
        assert_eq!((dirty.len(), dirty.bytes(), dirty.descriptors), (0, 0, 0));
    }

    #[test]
    fn only_so_many_files_keep_a_descriptor_while_they_wait() {
        let mut dirty = Dirty::default();
        for id in 0..5 {
            dirty.wrote(FileId(id), 1, &file(), Duration::ZERO, 2);
        }
        assert_eq!(dirty.descriptors, 2);
        assert!(dirty.remove(FileId(0)).is_some() && dirty.remove(FileId(4)).is_none());
        dirty.wrote(FileId(4), 1, &file(), Duration::ZERO, 2);
        assert_eq!((dirty.descriptors, dirty.len()), (2, 4));
    }
}
