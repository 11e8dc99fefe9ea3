//! Who knows the future.

use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

use cachelet_protocol::block::{MAX_PAGES_PER_BLOCK, PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::ids::FileId;

use super::replay::{Hits, Policy, warm_up_reads};
use super::trace::{Action, Trace};

/// Not again.
const NEVER: u32 = u32::MAX;

/// Belady's optimum over single pages, tables free of charge: the page that is read latest goes, be it the one that was just
/// read. Pages are of one size, so this bounds what any policy can reach, by bytes.
pub(crate) fn by_pages(trace: &Trace) -> Hits {
    let reads: Vec<(u32, PageSet)> = reads(trace).collect();
    let page_of = |block: u32, page: PageIndex| (block * MAX_PAGES_PER_BLOCK + page.0) as usize;
    let mut last_seen = vec![NEVER; (trace.blocks * MAX_PAGES_PER_BLOCK) as usize];
    let mut next_reads = Vec::new();
    for (at, (block, pages)) in reads.iter().enumerate().rev() {
        for page in pages.iter() {
            next_reads.push(std::mem::replace(
                &mut last_seen[page_of(*block, page)],
                at as u32,
            ));
        }
    }
    // From here on: when each page in the cache is read next.
    let mut cached = vec![None; last_seen.len()];
    let mut latest = BinaryHeap::new();
    let mut free = trace.cache_bytes / PAGE_BYTES;
    let mut hits = Hits::default();
    let warm_up = warm_up_reads(trace);
    // The reads were noted last first.
    for (at, (block, pages)) in reads.iter().enumerate() {
        let mut found = 0;
        let nexts = next_reads.split_off(next_reads.len() - pages.len() as usize);
        for (page, next) in pages.iter().zip(nexts) {
            let id = page_of(*block, page);
            if cached[id].replace(next).is_some() {
                found += 1;
            } else if free > 0 {
                free -= 1;
            } else {
                latest.push((next, id));
                drop_latest(&mut latest, &mut cached);
                continue;
            }
            latest.push((next, id));
        }
        if at >= warm_up {
            hits.add(pages.len().into(), found);
        }
    }
    hits
}

fn drop_latest(latest: &mut BinaryHeap<(u32, usize)>, cached: &mut [Option<u32>]) {
    while let Some((next, id)) = latest.pop() {
        // Others were read meanwhile, and stand elsewhere.
        if cached[id] == Some(next) {
            cached[id] = None;
            return;
        }
    }
}

fn reads(trace: &Trace) -> impl Iterator<Item = (u32, PageSet)> {
    trace.events.iter().filter_map(|event| match event.action {
        Action::Read(pages) => Some((event.block, pages)),
        _ => None,
    })
}

/// Belady's rule for whole blocks, leased or not: the block that is read latest goes. Blocks differ in size, so this is not the
/// optimum, which nobody can compute, but what its rule reaches where blocks go as a whole.
pub(crate) struct ByBlocks {
    /// When each block is read, last first.
    reads: Vec<Vec<u32>>,
    /// The event that happens now.
    now: u32,
    order: BTreeSet<(u32, FileId)>,
    entries: HashMap<FileId, (u32, u32, bool)>,
}

impl ByBlocks {
    pub(crate) fn new(trace: &Trace) -> Self {
        let mut by_block = vec![Vec::new(); trace.blocks as usize];
        for (at, event) in trace.events.iter().enumerate().rev() {
            if matches!(event.action, Action::Read(_)) {
                by_block[event.block as usize].push(at as u32);
            }
        }
        Self {
            reads: by_block,
            now: 0,
            order: BTreeSet::new(),
            entries: HashMap::new(),
        }
    }

    fn replace(&mut self, file: FileId) {
        let Some((block, next, filling)) = self.entries.get_mut(&file) else {
            return;
        };
        self.order.remove(&(NEVER - *next, file));
        let reads = &mut self.reads[*block as usize];
        while reads.last().is_some_and(|at| *at <= self.now) {
            reads.pop();
        }
        *next = reads.last().copied().unwrap_or(NEVER);
        if !*filling {
            self.order.insert((NEVER - *next, file));
        }
    }
}

impl Policy for ByBlocks {
    fn insert(&mut self, file: FileId, block: u32, _now: Duration) {
        self.entries.insert(file, (block, NEVER, false));
        self.replace(file);
    }

    fn filled(&mut self, _file: FileId, _block: u32, _page: PageIndex, _now: Duration) {}

    fn used(&mut self, _file: FileId, _block: u32, _pages: PageSet, _now: Duration) {}

    fn set_leased(&mut self, _file: FileId, _leased: bool) {}

    fn set_filling(&mut self, file: FileId, filling: bool) {
        if let Some(entry) = self.entries.get_mut(&file) {
            entry.2 = filling;
        }
        self.replace(file);
    }

    fn victim(&mut self) -> Option<FileId> {
        self.order.first().map(|(_, file)| *file)
    }

    fn evict(&mut self, file: FileId, _block: u32) {
        if let Some((_, next, _)) = self.entries.remove(&file) {
            self.order.remove(&(NEVER - next, file));
        }
    }

    fn read(&mut self, file: FileId, event: u32) {
        self.now = event;
        self.replace(file);
    }
}

/// Who knows only how often each block is read in the whole trace, for each page of it that is: what no policy that goes by
/// frequency can expect to exceed, for it has to find that out.
pub(crate) struct ByFrequency {
    /// Reads of a page, in thousandths.
    worth: Vec<u64>,
    order: BTreeSet<(u64, FileId)>,
    entries: HashMap<FileId, u64>,
}

impl ByFrequency {
    pub(crate) fn new(trace: &Trace) -> Self {
        let mut all = vec![(0, PageSet::EMPTY); trace.blocks as usize];
        for (block, pages) in reads(trace) {
            let (count, distinct) = &mut all[block as usize];
            *count += u64::from(pages.len());
            *distinct = distinct.union(pages);
        }
        let worth = all
            .into_iter()
            .map(|(count, distinct)| count * 1000 / u64::from(distinct.len().max(1)));
        Self {
            worth: worth.collect(),
            order: BTreeSet::new(),
            entries: HashMap::new(),
        }
    }
}

impl Policy for ByFrequency {
    fn insert(&mut self, file: FileId, block: u32, _now: Duration) {
        let worth = self.worth[block as usize];
        self.entries.insert(file, worth);
        self.order.insert((worth, file));
    }

    fn filled(&mut self, _file: FileId, _block: u32, _page: PageIndex, _now: Duration) {}

    fn used(&mut self, _file: FileId, _block: u32, _pages: PageSet, _now: Duration) {}

    fn set_leased(&mut self, _file: FileId, _leased: bool) {}

    fn set_filling(&mut self, file: FileId, filling: bool) {
        let place = (self.entries[&file], file);
        if filling {
            self.order.remove(&place);
        } else {
            self.order.insert(place);
        }
    }

    fn victim(&mut self) -> Option<FileId> {
        self.order.first().map(|(_, file)| *file)
    }

    fn evict(&mut self, file: FileId, _block: u32) {
        if let Some(worth) = self.entries.remove(&file) {
            self.order.remove(&(worth, file));
        }
    }
}
