//! A trace through a cache without files: what is there, what it takes, and whom the policy throws out.
//!
//! As in the daemon, a block is charged 64 KiB and its present pages, grows page by page, is not evicted while pages of it are
//! fetched, and goes as a whole. Unlike there, evicted bytes are free at once, leased or not.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::time::Duration;

use cachelet_protocol::block::{PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cacheletd::store::eviction::{BlockHash, Eviction};
use serde::Serialize;

use super::trace::{Action, Trace};

/// What a block file takes beside its pages.
pub(crate) const TABLES_BYTES: u64 = 64 << 10;

/// The first fifth of a trace's reads only warms the cache.
const WARM_UP: usize = 5;

/// What was found in the cache.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Hits {
    pub(crate) pages: u64,
    pub(crate) hit_pages: u64,
    pub(crate) reads: u64,
    pub(crate) hit_reads: u64,
}

impl Hits {
    /// Adds a read of `wanted`, of which `found` were there.
    pub(crate) fn add(&mut self, wanted: u64, found: u64) {
        self.pages += wanted;
        self.hit_pages += found;
        self.reads += 1;
        self.hit_reads += u64::from(wanted == found);
    }

    pub(crate) fn by_bytes(&self) -> f64 {
        self.hit_pages as f64 / self.pages.max(1) as f64
    }

    pub(crate) fn by_requests(&self) -> f64 {
        self.hit_reads as f64 / self.reads.max(1) as f64
    }
}

/// How many of a trace's reads only warm the cache.
pub(crate) fn warm_up_reads(trace: &Trace) -> usize {
    let reads = trace
        .events
        .iter()
        .filter(|event| matches!(event.action, Action::Read(_)))
        .count();
    reads / WARM_UP
}

/// Who decides what goes.
pub(crate) trait Policy {
    fn insert(&mut self, file: FileId, block: u32, now: Duration);
    fn filled(&mut self, file: FileId, block: u32, page: PageIndex, now: Duration);
    fn used(&mut self, file: FileId, block: u32, pages: PageSet, now: Duration);
    fn set_leased(&mut self, file: FileId, leased: bool);
    fn set_filling(&mut self, file: FileId, filling: bool);
    fn victim(&mut self) -> Option<FileId>;
    fn evict(&mut self, file: FileId, block: u32);
    /// A file is read, in the trace's event of this number.
    fn read(&mut self, _file: FileId, _event: u32) {}
    /// A figure worth showing when all is over.
    fn remark(&self) -> String {
        String::new()
    }
}

struct Resident {
    file: FileId,
    present: PageSet,
}

struct Cache<'a, P> {
    policy: &'a mut P,
    free_bytes: u64,
    resident: HashMap<u32, Resident>,
    blocks: HashMap<FileId, u32>,
    /// How many hold each block.
    holders: Vec<u32>,
    next_file: u64,
}

/// Replays a trace.
pub(crate) fn replay(trace: &Trace, policy: &mut impl Policy) -> Hits {
    let mut cache = Cache {
        policy,
        free_bytes: trace.cache_bytes,
        resident: HashMap::new(),
        blocks: HashMap::new(),
        holders: vec![0; trace.blocks as usize],
        next_file: 1,
    };
    let mut hits = Hits::default();
    let mut reads = 0;
    let warm_up = warm_up_reads(trace);
    for (number, event) in trace.events.iter().enumerate() {
        match event.action {
            Action::Lease => cache.hold(event.block, 1),
            Action::Release => cache.hold(event.block, -1),
            Action::Report(pages) => {
                if let Some(resident) = cache.resident.get(&event.block) {
                    let pages = pages.intersection(resident.present);
                    cache.policy.used(resident.file, event.block, pages, event.at);
                }
            }
            Action::Read(pages) => {
                let found = cache.read(event.block, pages, event.at);
                cache
                    .policy
                    .read(cache.resident[&event.block].file, number as u32);
                reads += 1;
                if reads > warm_up {
                    hits.add(pages.len().into(), found);
                }
            }
        }
    }
    hits
}

impl<P: Policy> Cache<'_, P> {
    fn hold(&mut self, block: u32, change: i32) {
        let holders = &mut self.holders[block as usize];
        *holders = holders.wrapping_add_signed(change);
        if let Some(resident) = self.resident.get(&block) {
            self.policy.set_leased(resident.file, *holders > 0);
        }
    }

    /// How many of the pages were there. The others are then.
    fn read(&mut self, block: u32, pages: PageSet, now: Duration) -> u64 {
        if !self.resident.contains_key(&block) {
            self.make_room(TABLES_BYTES);
            self.free_bytes -= TABLES_BYTES;
            let file = FileId(self.next_file);
            self.next_file += 1;
            self.policy.insert(file, block, now);
            self.policy.set_leased(file, self.holders[block as usize] > 0);
            self.resident.insert(
                block,
                Resident {
                    file,
                    present: PageSet::EMPTY,
                },
            );
            self.blocks.insert(file, block);
        }
        let Resident { file, present } = self.resident[&block];
        let missing = pages.difference(present);
        if !missing.is_empty() {
            self.policy.set_filling(file, true);
            for page in missing.iter() {
                self.make_room(PAGE_BYTES);
                self.free_bytes -= PAGE_BYTES;
                self.policy.filled(file, block, page, now);
            }
            self.policy.set_filling(file, false);
            self.resident
                .entry(block)
                .and_modify(|resident| resident.present = present.union(pages));
        }
        u64::from(pages.len() - missing.len())
    }

    fn make_room(&mut self, bytes: u64) {
        while self.free_bytes < bytes {
            let file = self
                .policy
                .victim()
                .expect("a full cache has a block that is not being filled");
            let block = self.blocks.remove(&file).expect("a victim is in the cache");
            let resident = self.resident.remove(&block).expect("a victim is in the cache");
            self.policy.evict(file, block);
            self.free_bytes += TABLES_BYTES + u64::from(resident.present.len()) * PAGE_BYTES;
        }
    }
}

impl Policy for Eviction {
    fn insert(&mut self, file: FileId, block: u32, now: Duration) {
        self.insert(file, BlockHash(block.into()), TABLES_BYTES, now);
    }

    fn filled(&mut self, file: FileId, block: u32, page: PageIndex, now: Duration) {
        self.filled(file, BlockHash(block.into()), page, PAGE_BYTES, now);
    }

    fn used(&mut self, file: FileId, block: u32, pages: PageSet, now: Duration) {
        self.used(file, BlockHash(block.into()), pages, now);
    }

    fn set_leased(&mut self, file: FileId, leased: bool) {
        self.set_leased(file, leased);
    }

    fn set_filling(&mut self, file: FileId, filling: bool) {
        self.set_filling(file, filling);
    }

    fn victim(&mut self) -> Option<FileId> {
        let idle = self.idle().next();
        idle.or_else(|| self.leased().next())
    }

    fn evict(&mut self, file: FileId, block: u32) {
        self.evict(file, BlockHash(block.into()));
    }

    fn remark(&self) -> String {
        format!("probation {:.0} %", self.probation_share() * 100.0)
    }
}

/// Least recently used first, leased blocks last.
#[derive(Default)]
pub(crate) struct Lru {
    /// By whether they are leased.
    orders: [BTreeSet<(u64, FileId)>; 2],
    entries: HashMap<FileId, LruEntry>,
    next_rank: u64,
}

#[derive(Clone, Copy, Default)]
struct LruEntry {
    rank: u64,
    leased: bool,
    filling: bool,
}

impl Lru {
    fn change(&mut self, file: FileId, change: impl FnOnce(&mut LruEntry)) {
        let Some(mut entry) = self.entries.remove(&file) else {
            return;
        };
        self.orders[usize::from(entry.leased)].remove(&(entry.rank, file));
        change(&mut entry);
        if !entry.filling {
            self.orders[usize::from(entry.leased)].insert((entry.rank, file));
        }
        self.entries.insert(file, entry);
    }

    fn touch(&mut self, file: FileId) {
        self.next_rank += 1;
        let rank = self.next_rank;
        self.change(file, |entry| entry.rank = rank);
    }
}

impl Policy for Lru {
    fn insert(&mut self, file: FileId, _block: u32, _now: Duration) {
        self.entries.insert(file, LruEntry::default());
        self.touch(file);
    }

    fn filled(&mut self, file: FileId, _block: u32, _page: PageIndex, _now: Duration) {
        self.touch(file);
    }

    fn used(&mut self, file: FileId, _block: u32, _pages: PageSet, _now: Duration) {
        self.touch(file);
    }

    fn set_leased(&mut self, file: FileId, leased: bool) {
        self.change(file, |entry| entry.leased = leased);
    }

    fn set_filling(&mut self, file: FileId, filling: bool) {
        self.change(file, |entry| entry.filling = filling);
    }

    fn victim(&mut self) -> Option<FileId> {
        self.orders.iter().flatten().next().map(|(_, file)| *file)
    }

    fn evict(&mut self, file: FileId, _block: u32) {
        self.change(file, |entry| entry.filling = true);
        self.entries.remove(&file);
    }
}
