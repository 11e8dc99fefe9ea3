//! Which worker holds which blocks of which object: path id -> newest generation -> holdings.
//!
//! Invariants:
//! * An object has one generation here: the one that was confirmed last, by a worker's report. An older one is not kept,
//!   and a newer one takes the place of everything known of the older.
//! * Every holding carries a *tag*: one worker's one full report. A tag that has died (its worker is gone, or a newer full
//!   report is complete) is invisible at once; [`Index::sweep`] takes its memory back later. That is how mark-and-sweep
//!   works here, and why losing a worker costs nothing while the lock is held.
//! * A tag's number is reused only after a sweep that began when it was dead has passed every shard.
//!
//! Lock order: `tags`, then one shard. Neither is held across an await.

mod record;
mod shard;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use cachelet_protocol::ids::{Generation, PathId};
use cachelet_protocol::residency::SegmentResidency;

use crate::membership::WorkerId;
use record::{MAX_CONFIRMED_UNIX_MS, Record, TaggedSegment};
use shard::{Shard, Update, Usage};

/// Parts with a lock each: one byte of the path id.
const SHARDS: usize = 256;
/// Full reports of one worker that may be unfinished before the oldest's holdings are let go.
const MAX_OLDER_TAGS: usize = 4;

/// One worker's one full report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Tag(u32);

/// What a worker reports of 64 blocks of one generation of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReportedSegment {
    pub(crate) path: PathId,
    pub(crate) generation: Generation,
    /// When the worker last confirmed the generation, Unix milliseconds.
    pub(crate) confirmed_unix_ms: u64,
    pub(crate) segment: u32,
    pub(crate) residency: SegmentResidency,
}

/// What became of a reported segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is what the index says now.
    Applied,
    /// Nothing is held of it, and the index says so.
    Forgotten,
    /// A newer generation is known.
    Outdated,
}

/// The worker has no place in the index: it was dropped or never began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotTracked;

/// One object as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectResidency {
    pub(crate) generation: Generation,
    pub(crate) confirmed_unix_ms: u64,
    /// In no particular order; at most one for a worker and segment.
    pub(crate) holdings: Vec<Holding>,
}

/// What one worker holds of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) worker: WorkerId,
    pub(crate) segment: u32,
    pub(crate) residency: SegmentResidency,
}

/// The index's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct IndexUsage {
    /// Objects known.
    pub(crate) objects: usize,
    /// Holdings: one for a worker and a segment.
    pub(crate) segments: usize,
    /// Bytes allocated for them.
    pub(crate) bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Index {
    tags: RwLock<Tags>,
    shards: Box<[RwLock<Shard>]>,
}

#[derive(Debug, Default)]
struct Tags {
    /// By tag: the worker it belongs to; `None` for a dead or unused one.
    owners: Vec<Option<WorkerId>>,
    workers: HashMap<WorkerId, WorkerTags>,
    /// Dead and not yet swept.
    dead: BTreeSet<Tag>,
    unused: Vec<Tag>,
}

#[derive(Debug)]
struct WorkerTags {
    current: Tag,
    /// Of earlier full reports that the current one has not replaced yet.
    older: Vec<Tag>,
}

impl Tags {
    fn issue(&mut self, worker: WorkerId) -> Tag {
        if let Some(tag) = self.unused.pop() {
            self.owners[tag.0 as usize] = Some(worker);
            return tag;
        }
        self.owners.push(Some(worker));
        Tag(self.owners.len() as u32 - 1)
    }

    fn kill(&mut self, tag: Tag) {
        self.owners[tag.0 as usize] = None;
        self.dead.insert(tag);
    }

    fn owner(&self, tag: Tag) -> Option<WorkerId> {
        self.owners[tag.0 as usize]
    }
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            tags: RwLock::default(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
        }
    }

    /// Gives a worker its place. What it reports from here on is answered.
    pub(crate) fn track(&self, worker: WorkerId) {
        let mut tags = write(&self.tags);
        if !tags.workers.contains_key(&worker) {
            let current = tags.issue(worker);
            tags.workers.insert(
                worker,
                WorkerTags {
                    current,
                    older: Vec::new(),
                },
            );
        }
    }

    /// Forgets everything a worker holds, at once.
    pub(crate) fn drop_worker(&self, worker: WorkerId) {
        let mut tags = write(&self.tags);
        if let Some(gone) = tags.workers.remove(&worker) {
            gone.older
                .into_iter()
                .chain([gone.current])
                .for_each(|tag| tags.kill(tag));
        }
    }

    /// A full report of the worker begins: what was known stays until it is complete.
    pub(crate) fn begin_full(&self, worker: WorkerId) -> Result<(), NotTracked> {
        let mut tags = write(&self.tags);
        if !tags.workers.contains_key(&worker) {
            return Err(NotTracked);
        }
        let fresh = tags.issue(worker);
        let own = tags.workers.get_mut(&worker).ok_or(NotTracked)?;
        own.older.push(std::mem::replace(&mut own.current, fresh));
        if own.older.len() > MAX_OLDER_TAGS {
            let oldest = own.older.remove(0);
            tags.kill(oldest);
        }
        Ok(())
    }

    /// A full report of the worker is complete: what it did not name is no longer held.
    pub(crate) fn finish_full(&self, worker: WorkerId) -> Result<(), NotTracked> {
        let mut tags = write(&self.tags);
        let own = tags.workers.get_mut(&worker).ok_or(NotTracked)?;
        let replaced = std::mem::take(&mut own.older);
        for tag in replaced {
            tags.kill(tag);
        }
        Ok(())
    }

    /// Takes over the state of some segments, as `worker` reports it. `now_unix_ms` bounds the times it claims: a clock
    /// that runs ahead must not pin an old generation.
    pub(crate) fn apply<'a>(
        &self,
        worker: WorkerId,
        segments: impl IntoIterator<Item = &'a ReportedSegment>,
        now_unix_ms: u64,
        mut outcome: impl FnMut(Outcome),
    ) -> Result<(), NotTracked> {
        // Held throughout: a tag must not die, be swept and be reused between its check and the write.
        let tags = read(&self.tags);
        let own = tags.workers.get(&worker).ok_or(NotTracked)?;
        for reported in segments {
            let report = Record {
                generation: reported.generation.clone(),
                confirmed_unix_ms: reported
                    .confirmed_unix_ms
                    .min(now_unix_ms)
                    .min(MAX_CONFIRMED_UNIX_MS),
                holdings: vec![TaggedSegment {
                    tag: own.current,
                    segment: reported.segment,
                    residency: reported.residency,
                }],
            };
            let update = Update {
                tag: own.current,
                older: &own.older,
            };
            outcome(write(self.shard(&reported.path)).apply(&reported.path, &report, update));
        }
        Ok(())
    }

    /// What is known of an object. `None`: nobody holds anything of it.
    pub(crate) fn look_up(&self, path: &PathId) -> Option<ObjectResidency> {
        let tags = read(&self.tags);
        let record = read(self.shard(path)).look_up(path)?;
        let holdings: Vec<Holding> = record
            .holdings
            .iter()
            .filter_map(|held| {
                Some(Holding {
                    worker: tags.owner(held.tag)?,
                    segment: held.segment,
                    residency: held.residency,
                })
            })
            .collect();
        (!holdings.is_empty()).then_some(ObjectResidency {
            generation: record.generation,
            confirmed_unix_ms: record.confirmed_unix_ms,
            holdings,
        })
    }

    /// Whether dead holdings take up memory.
    pub(crate) fn needs_sweep(&self) -> bool {
        !read(&self.tags).dead.is_empty()
    }

    /// Takes back the memory of all that has died before the call, one shard at a time. Blocks for as long as reading the
    /// whole index takes; look-ups and reports go on meanwhile. One sweep at a time: the caller sees to it.
    pub(crate) fn sweep(&self) {
        let dead = read(&self.tags).dead.clone();
        if dead.is_empty() {
            return;
        }
        for shard in &self.shards {
            write(shard).retain(|held| !dead.contains(&held.tag));
        }
        let mut tags = write(&self.tags);
        for tag in dead {
            tags.dead.remove(&tag);
            tags.unused.push(tag);
        }
    }

    /// How much it holds, dead holdings included.
    pub(crate) fn usage(&self) -> IndexUsage {
        self.shards.iter().fold(IndexUsage::default(), |sum, shard| {
            let Usage {
                objects,
                segments,
                bytes,
            } = read(shard).usage();
            IndexUsage {
                objects: sum.objects + objects,
                segments: sum.segments + segments,
                bytes: sum.bytes + bytes,
            }
        })
    }

    fn shard(&self, path: &PathId) -> &RwLock<Shard> {
        &self.shards[usize::from(path.as_bytes()[0])]
    }
}

/// A panic under one of these locks is a defect of this module that leaves, at worst, a wrong hint: go on.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
