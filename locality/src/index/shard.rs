//! A part of the index behind one lock: packed records in 64-byte slots, found by path id.
//!
//! Slots live in chunks, so that growth never moves them and never doubles memory; the hash table holds 4-byte slot
//! numbers. Together 70 to 76 bytes an object whose record fits its slot.

use cachelet_protocol::ids::PathId;
use hashbrown::HashTable;

use super::record::{Record, TaggedSegment};
use super::{Outcome, Tag};

/// Slots in a chunk: 4 KiB of them.
const CHUNK_SLOTS: usize = 64;
/// Record bytes that a slot holds itself; makes a slot 64 bytes.
const INLINE_BYTES: usize = 46;

#[derive(Debug, Default)]
pub(super) struct Shard {
    by_path: HashTable<u32>,
    chunks: Vec<Box<[Slot]>>,
    free: Option<u32>,
    /// Bytes of records that do not fit their slots.
    spilled_bytes: usize,
    /// Holdings in all records.
    segments: usize,
    /// Records are written here before they go to their slot.
    scratch: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Slot {
    path: [u8; 16],
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    /// Unused; the next unused slot.
    Free(Option<u32>),
    Inline {
        length: u8,
        bytes: [u8; INLINE_BYTES],
    },
    Spilled(Box<[u8]>),
}

const _: () = assert!(
    size_of::<Slot>() == 64,
    "the memory budget counts on 64-byte slots"
);

/// What one worker says of one segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update<'a> {
    /// The tag under which this report is kept.
    pub(super) tag: Tag,
    /// The worker's earlier tags: what they say of the segment is replaced.
    pub(super) older: &'a [Tag],
}

/// What a shard holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) objects: usize,
    pub(super) segments: usize,
    pub(super) bytes: usize,
}

impl Shard {
    /// Takes over a segment's state. `report` holds exactly one segment, possibly empty (nothing held any more).
    pub(super) fn apply(&mut self, path: &PathId, report: &Record, update: Update<'_>) -> Outcome {
        let [segment] = report.holdings.as_slice() else {
            return Outcome::Forgotten;
        };
        let held = !segment.residency.is_empty();
        let Some(slot) = self.find(path) else {
            if !held {
                return Outcome::Forgotten;
            }
            self.insert(path, report);
            return Outcome::Applied;
        };
        let mut record = Record::decode(self.bytes(slot));
        let before = record.holdings.len();
        if record.generation == report.generation {
            record.confirmed_unix_ms = record.confirmed_unix_ms.max(report.confirmed_unix_ms);
            record.holdings.retain(|known| {
                known.segment != segment.segment
                    || (known.tag != update.tag && !update.older.contains(&known.tag))
            });
            if held {
                record.holdings.push(*segment);
            }
        } else if !held {
            // A worker may hold two generations; what it says of one says nothing of the other.
            return Outcome::Forgotten;
        } else if report.confirmed_unix_ms < record.confirmed_unix_ms {
            return Outcome::Outdated;
        } else {
            record = report.clone();
        }
        self.segments = self.segments + record.holdings.len() - before;
        if record.holdings.is_empty() {
            self.remove(slot);
        } else {
            self.write(slot, &record);
        }
        if held {
            Outcome::Applied
        } else {
            Outcome::Forgotten
        }
    }

    pub(super) fn look_up(&self, path: &PathId) -> Option<Record> {
        self.find(path).map(|slot| Record::decode(self.bytes(slot)))
    }

    /// Removes every holding that `keep` refuses, and the objects that nobody holds then.
    pub(super) fn retain(&mut self, keep: impl Fn(&TaggedSegment) -> bool) {
        for slot in 0..(self.chunks.len() * CHUNK_SLOTS) as u32 {
            if matches!(self.slot(slot).body, Body::Free(_)) {
                continue;
            }
            let mut record = Record::decode(self.bytes(slot));
            let before = record.holdings.len();
            record.holdings.retain(&keep);
            self.segments -= before - record.holdings.len();
            if record.holdings.is_empty() {
                self.remove(slot);
            } else if record.holdings.len() < before {
                self.write(slot, &record);
            }
        }
        let Self { by_path, chunks, .. } = self;
        if by_path.len() < by_path.capacity() / 4 {
            by_path.shrink_to(by_path.len() * 2, |slot| hash(&slot_in(chunks, *slot).path));
        }
        if self.by_path.is_empty() {
            *self = Self::default();
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            objects: self.by_path.len(),
            segments: self.segments,
            bytes: self.by_path.allocation_size()
                + self.chunks.len() * CHUNK_SLOTS * size_of::<Slot>()
                + self.chunks.capacity() * size_of::<Box<[Slot]>>()
                + self.spilled_bytes,
        }
    }

    fn find(&self, path: &PathId) -> Option<u32> {
        let path = path.as_bytes();
        self.by_path
            .find(hash(path), |slot| self.slot(*slot).path == *path)
            .copied()
    }

    fn slot(&self, slot: u32) -> &Slot {
        slot_in(&self.chunks, slot)
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS]
    }

    fn bytes(&self, slot: u32) -> &[u8] {
        match &self.slot(slot).body {
            Body::Free(_) => &[],
            Body::Inline { length, bytes } => &bytes[..usize::from(*length)],
            Body::Spilled(bytes) => bytes,
        }
    }

    fn insert(&mut self, path: &PathId, record: &Record) {
        let slot = self.free.unwrap_or_else(|| self.grow());
        if let Body::Free(next) = self.slot(slot).body {
            self.free = next;
        }
        self.slot_mut(slot).path = *path.as_bytes();
        self.write(slot, record);
        self.segments += record.holdings.len();
        let Self { by_path, chunks, .. } = self;
        by_path.insert_unique(hash(path.as_bytes()), slot, |slot| {
            hash(&slot_in(chunks, *slot).path)
        });
    }

    /// Adds a chunk of free slots and returns the first.
    fn grow(&mut self) -> u32 {
        let first = (self.chunks.len() * CHUNK_SLOTS) as u32;
        let end = first + CHUNK_SLOTS as u32;
        let free = |slot: u32| Slot {
            path: [0; 16],
            body: Body::Free((slot + 1 < end).then_some(slot + 1)),
        };
        self.chunks.push((first..end).map(free).collect());
        first
    }

    fn write(&mut self, slot: u32, record: &Record) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        record.encode(&mut scratch);
        let body = if scratch.len() <= INLINE_BYTES {
            let mut bytes = [0; INLINE_BYTES];
            bytes[..scratch.len()].copy_from_slice(&scratch);
            Body::Inline {
                length: scratch.len() as u8,
                bytes,
            }
        } else {
            Body::Spilled(scratch.as_slice().into())
        };
        self.put(slot, body);
        // A hot block on thousands of nodes must not leave its buffer behind in every shard.
        if scratch.capacity() <= 4096 {
            self.scratch = scratch;
        }
    }

    fn remove(&mut self, slot: u32) {
        let path = self.slot(slot).path;
        if let Ok(entry) = self.by_path.find_entry(hash(&path), |other| *other == slot) {
            entry.remove();
        }
        let next = self.free.replace(slot);
        self.put(slot, Body::Free(next));
    }

    fn put(&mut self, slot: u32, body: Body) {
        let spilled = |body: &Body| match body {
            Body::Spilled(bytes) => bytes.len(),
            Body::Free(_) | Body::Inline { .. } => 0,
        };
        self.spilled_bytes += spilled(&body);
        let old = std::mem::replace(&mut self.slot_mut(slot).body, body);
        self.spilled_bytes -= spilled(&old);
    }
}

fn slot_in(chunks: &[Box<[Slot]>], slot: u32) -> &Slot {
    &chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS]
}

/// Path ids are SHA-256 output: any eight of their bytes are a hash. The first byte chose the shard.
fn hash(path: &[u8; 16]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&path[8..]);
    u64::from_le_bytes(bytes)
}
