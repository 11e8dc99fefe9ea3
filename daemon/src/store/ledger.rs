//! Who owes which bytes: a pure state machine, without I/O and without order.
//!
//! A byte is *reserved* before it is written, *committed* once its page is, *unlinked* while a file that left the cache
//! may still be held by somebody, *quarantined* while a damaged file is kept for inspection, and then it is free again:
//! `reserve -> create/commit -> lease -> unlink | quarantine -> reclaim`. What is charged for a file is exact by
//! definition: 64 KiB + the lengths of its pages, which is never less than what the file system allocates for it.
//!
//! Invariant: a reservation is granted only if the sum of all classes stays within the quota. Only what is *found* on
//! disk (adopted) can exceed it, after the quota was lowered.

use std::collections::{HashMap, HashSet};

use cachelet_protocol::ids::{FileId, SessionId};

/// Where the bytes of a file count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the cache.
    Cached,
    /// Out of the cache, and not proved free.
    Unlinked,
    /// Damaged and kept for inspection.
    Quarantined,
}

/// The bytes of every class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub(super) reserved: u64,
    pub(super) committed: u64,
    pub(super) unlinked: u64,
    pub(super) quarantined: u64,
    pub(super) foreign: u64,
}

impl Totals {
    /// All classes together.
    pub(super) fn sum(self) -> u64 {
        self.reserved + self.committed + self.unlinked + self.quarantined + self.foreign
    }
}

#[derive(Debug)]
struct File {
    charge: u64,
    place: Place,
    sessions: Vec<SessionId>,
}

#[derive(Debug, Default)]
struct Session {
    files: HashSet<FileId>,
    bytes: u64,
}

/// The ledger of one cache directory.
#[derive(Debug)]
pub(super) struct Ledger {
    quota: u64,
    totals: Totals,
    /// Every byte that ever passed from reserved to written: lets a free-space figure taken earlier be corrected.
    ever_written: u64,
    files: HashMap<FileId, File>,
    sessions: HashMap<SessionId, Session>,
}

impl Ledger {
    pub(super) fn new(quota: u64) -> Self {
        Self {
            quota,
            totals: Totals::default(),
            ever_written: 0,
            files: HashMap::new(),
            sessions: HashMap::new(),
        }
    }

    pub(super) fn quota(&self) -> u64 {
        self.quota
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    pub(super) fn ever_written(&self) -> u64 {
        self.ever_written
    }

    /// How many bytes are too many for a reservation of `bytes`.
    pub(super) fn shortage(&self, bytes: u64) -> u64 {
        self.totals.sum().saturating_add(bytes).saturating_sub(self.quota)
    }

    /// Reserves, if the quota allows.
    pub(super) fn reserve(&mut self, bytes: u64) -> bool {
        let granted = self.shortage(bytes) == 0;
        if granted {
            self.totals.reserved += bytes;
        }
        granted
    }

    /// Gives a reservation back.
    pub(super) fn unreserve(&mut self, bytes: u64) {
        self.totals.reserved -= bytes;
    }

    /// A new file, paid for with a reservation.
    pub(super) fn create(&mut self, file: FileId, reserved: u64) {
        self.totals.reserved -= reserved;
        self.ever_written += reserved;
        self.insert(file, reserved, Place::Cached);
    }

    /// A file that was found on disk. False if the ledger has one of this id already.
    pub(super) fn adopt(&mut self, file: FileId, charge: u64, place: Place) -> bool {
        let new = !self.files.contains_key(&file);
        if new {
            self.insert(file, charge, place);
        }
        new
    }

    /// Counts bytes in the cache directory that are not this store's to touch.
    pub(super) fn add_foreign(&mut self, bytes: u64) {
        self.totals.foreign += bytes;
    }

    /// Bytes written to a file, paid for with a reservation. They count wherever the file is by now; false if it is not
    /// in the cache any more.
    pub(super) fn commit(&mut self, file: FileId, reserved: u64) -> bool {
        self.totals.reserved -= reserved;
        self.ever_written += reserved;
        let Some(entry) = self.files.get_mut(&file) else {
            return false;
        };
        entry.charge += reserved;
        let place = entry.place;
        for session in &entry.sessions {
            if let Some(session) = self.sessions.get_mut(session) {
                session.bytes += reserved;
            }
        }
        *self.class(place) += reserved;
        place == Place::Cached
    }

    /// A file left the cache for `place`. Unknown files are ignored.
    pub(super) fn relocate(&mut self, file: FileId, place: Place) {
        let Some(entry) = self.files.get_mut(&file) else {
            return;
        };
        let (from, charge) = (std::mem::replace(&mut entry.place, place), entry.charge);
        *self.class(from) -= charge;
        *self.class(place) += charge;
    }

    /// A file's bytes are proved free, and with them every lease of it. Returns the bytes.
    pub(super) fn reclaim(&mut self, file: FileId) -> u64 {
        let Some(entry) = self.files.remove(&file) else {
            return 0;
        };
        *self.class(entry.place) -= entry.charge;
        for session in entry.sessions {
            self.leave(session, file, entry.charge);
        }
        entry.charge
    }

    /// A session holds a file from now on. True if nobody held it before.
    pub(super) fn lease(&mut self, session: SessionId, file: FileId) -> bool {
        let Some(entry) = self.files.get_mut(&file) else {
            return false;
        };
        if entry.sessions.contains(&session) {
            return false;
        }
        entry.sessions.push(session);
        let of_session = self.sessions.entry(session).or_default();
        of_session.files.insert(file);
        of_session.bytes += entry.charge;
        entry.sessions.len() == 1
    }

    /// A session says that it holds a file no more. True if nobody does now.
    pub(super) fn release(&mut self, session: SessionId, file: FileId) -> bool {
        let Some(entry) = self.files.get_mut(&file) else {
            return false;
        };
        let Some(at) = entry.sessions.iter().position(|holder| *holder == session) else {
            return false;
        };
        entry.sessions.swap_remove(at);
        let (charge, unheld) = (entry.charge, entry.sessions.is_empty());
        self.leave(session, file, charge);
        unheld
    }

    /// A session is over. Returns the files that nobody holds now.
    pub(super) fn release_session(&mut self, session: SessionId) -> Vec<FileId> {
        let files: Vec<FileId> = self
            .sessions
            .get(&session)
            .into_iter()
            .flat_map(|s| s.files.iter().copied())
            .collect();
        files
            .into_iter()
            .filter(|file| self.release(session, *file))
            .collect()
    }

    /// The sessions that lease a file.
    pub(super) fn holders(&self, file: FileId) -> &[SessionId] {
        self.files.get(&file).map_or(&[], |entry| &entry.sessions)
    }

    /// Every file that somebody leases, and who does.
    pub(super) fn leased(&self) -> impl Iterator<Item = (FileId, Vec<SessionId>)> {
        let leased = self.files.iter().filter(|(_, file)| !file.sessions.is_empty());
        leased.map(|(id, file)| (*id, file.sessions.clone()))
    }

    /// The bytes of all files a session leases.
    pub(super) fn held_bytes(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).map_or(0, |session| session.bytes)
    }

    /// How many sessions lease anything.
    pub(super) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    fn insert(&mut self, file: FileId, charge: u64, place: Place) {
        *self.class(place) += charge;
        self.files.insert(
            file,
            File {
                charge,
                place,
                sessions: Vec::new(),
            },
        );
    }

    fn leave(&mut self, session: SessionId, file: FileId, charge: u64) {
        let Some(of_session) = self.sessions.get_mut(&session) else {
            return;
        };
        of_session.files.remove(&file);
        of_session.bytes -= charge;
        if of_session.files.is_empty() {
            self.sessions.remove(&session);
        }
    }

    fn class(&mut self, place: Place) -> &mut u64 {
        match place {
            Place::Cached => &mut self.totals.committed,
            Place::Unlinked => &mut self.totals.unlinked,
            Place::Quarantined => &mut self.totals.quarantined,
        }
    }
}

#[cfg(test)]
mod tests;
