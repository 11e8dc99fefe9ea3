//! The store's side of its disk's health: operations under watch, probes, and what a change means for blocks.

use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::health::{DiskChange, DiskState, DiskStatus, Failure, Operation};
use super::layout::{PROBE, PROBE_RENAMED, create_options};
use super::{BlockStore, Error, Event};

const PROBE_BYTES: usize = 4096;

impl BlockStore {
    /// How the disk is. Cheap.
    pub fn disk(&self) -> DiskStatus {
        self.inner.disk.status()
    }

    /// Whether the disk is in use; if not, why nothing can be had here. Cheap.
    pub fn check_disk(&self) -> Result<(), Error> {
        if self.inner.disk.is_offline() {
            Err(self.offline())
        } else {
            Ok(())
        }
    }

    /// What is answered while the disk is offline.
    pub fn offline(&self) -> Error {
        Error::Offline {
            directory: self.inner.config.directory.clone(),
            reason: self.disk().reason.unwrap_or_default(),
        }
    }

    /// Whether the disk has given any reason lately to look at what it does. Cheap.
    pub fn doubts_disk(&self) -> bool {
        self.inner.disk.is_in_doubt()
    }

    /// Counts what is under way for too long against the disk. Cheap, and meant to be called a few times a second, by a
    /// thread that never waits for the disk.
    pub fn watch_disk(&self) {
        self.tell(self.inner.disk.tick());
    }

    /// Asks the disk how it is, if that is due. Touches the disk; may hang with it.
    pub fn probe_disk(&self) {
        if !self.inner.disk.take_probe() {
            return;
        }
        let struck = |status: &DiskStatus| status.errors + status.slow;
        let before = struck(&self.disk());
        // Others' strikes meanwhile count, too: this is about the disk.
        if self.probe().is_ok() && struck(&self.disk()) == before {
            self.tell(self.inner.disk.passed());
        }
    }

    /// Somebody who reads or sends a file found that the disk fails it. What the file holds cannot be had: it leaves the
    /// cache. Touches the disk.
    pub fn failed_read(&self, block: &std::sync::Arc<super::Block>, errno: Errno) {
        self.tell(self.inner.disk.failed(Operation::Read, errno));
        self.condemn(block, super::Damage::Unreadable(errno));
    }

    /// Does something with the disk, under watch.
    pub(super) fn watched<T, E: Failure>(
        &self,
        operation: Operation,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let (result, changes) = self.inner.disk.run(operation, work);
        self.tell(changes);
        result
    }

    fn probe(&self) -> Result<(), Errno> {
        let first = self.inner.layout.temporary_file(PROBE);
        let path = self.inner.layout.temporary_file(PROBE_RENAMED);
        let run = |operation, work: &mut dyn FnMut() -> std::io::Result<()>| {
            self.watched(operation, work)
                .map_err(|error| error.errno().unwrap_or(Errno::EIO))
        };
        let mut file = None;
        let stamp = self.uptime().as_nanos().to_le_bytes();
        let written: Vec<u8> = stamp.iter().copied().cycle().take(PROBE_BYTES).collect();
        // Names wait for the file system's journal, and that for who else writes.
        run(Operation::ProbeThrottled, &mut || {
            file = Some(create_options().truncate(true).create(true).open(&first)?);
            Ok(())
        })?;
        let Some(file) = file else { return Err(Errno::EIO) };
        let mut read = vec![0; PROBE_BYTES];
        let outcome = run(Operation::Probe, &mut || file.write_all_at(&written, 0))
            .and_then(|()| run(Operation::ProbeThrottled, &mut || file.sync_data()))
            .and_then(|()| run(Operation::ProbeThrottled, &mut || std::fs::rename(&first, &path)))
            .and_then(|()| {
                run(Operation::Probe, &mut || {
                    // From the disk, not from memory.
                    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
                    file.read_exact_at(&mut read, 0)?;
                    if read == written {
                        Ok(())
                    } else {
                        Err(Errno::EBADMSG.into())
                    }
                })
            });
        // What a failed probe leaves is overwritten by the next one, and swept at the next start.
        outcome.and_then(|()| run(Operation::ProbeThrottled, &mut || std::fs::remove_file(&path)))
    }

    fn tell(&self, changes: impl IntoIterator<Item = DiskChange>) {
        for change in changes {
            let to = change.to;
            self.emit(Event::Disk(change));
            match to {
                DiskState::Offline => self.recall(),
                // Only a probe's thread comes here, which waits for the disk anyway.
                DiskState::Healthy => _ = self.remove_banned(),
                DiskState::Suspect | DiskState::Probation => {}
            }
        }
    }

    /// Asks for every file back that somebody leases.
    fn recall(&self) {
        let leased: Vec<_> = {
            let state = self.state();
            state.ledger.leased().collect()
        };
        for (file_id, sessions) in leased {
            self.emit(Event::Recalled { file_id, sessions });
        }
    }
}
