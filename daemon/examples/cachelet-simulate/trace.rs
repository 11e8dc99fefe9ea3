//! Traces as a daemon sees them: pages demanded by tasks, what their clients report of it, and the leases they hold.
//!
//! A task reads one block through a descriptor, up to 8 MiB at a time; its client reports the touched pages every ten seconds
//! and gives the descriptor back a minute after the last read. Tasks run side by side on a few slots.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use cachelet_protocol::block::{MAX_PAGES_PER_BLOCK, PAGE_BYTES, PageIndex, PageSet};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Every trace by name.
pub(crate) const NAMES: [&str; 6] = ["zipf", "scan", "loop", "parquet", "drift", "pipeline"];

/// Tasks at the same time. With the rate below, what reads 128 GiB takes a quarter of an hour.
const SLOTS: u64 = 8;
/// What a task reads and computes on at once, and the least time that takes.
const STEP_PAGES: u32 = 8;
const STEP_MILLIS: u64 = 200;
/// A client reports what it read this often, and closes what it did not read from for so long.
const REPORT_MILLIS: u64 = 10_000;
const IDLE_CLOSE_MILLIS: u64 = 60_000;

/// What happens to a block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    /// Somebody takes hold of it.
    Lease,
    /// Pages are read: those that are not there are fetched.
    Read(PageSet),
    /// A client says what it read.
    Report(PageSet),
    /// Somebody lets go of it.
    Release,
}

/// Something that happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) block: u32,
    pub(crate) action: Action,
}

/// What happened, in order.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) name: &'static str,
    pub(crate) cache_bytes: u64,
    pub(crate) blocks: u32,
    pub(crate) events: Vec<Event>,
}

impl Trace {
    /// The same, with each page as a block of its own.
    pub(crate) fn by_pages(&self) -> Self {
        let one = PageSet::one(PageIndex(0));
        let events = self.events.iter().flat_map(|event| {
            let (pages, action) = match event.action {
                Action::Read(pages) => (pages, Some(Action::Read(one))),
                Action::Report(pages) => (pages, Some(Action::Report(one))),
                Action::Lease | Action::Release => (PageSet::EMPTY, None),
            };
            action.into_iter().flat_map(move |action| {
                pages.iter().map(move |page| Event {
                    block: event.block * MAX_PAGES_PER_BLOCK + page.0,
                    action,
                    ..*event
                })
            })
        });
        Self {
            events: events.collect(),
            blocks: self.blocks * MAX_PAGES_PER_BLOCK,
            ..*self
        }
    }
}

/// The trace of this name.
pub(crate) fn generate(name: &str, seed: u64, cache_bytes: u64) -> Trace {
    let name = NAMES
        .into_iter()
        .find(|known| *known == name)
        .expect("a trace's name is checked before");
    let mut tasks = Tasks::new(seed, cache_bytes);
    match name {
        "zipf" => zipf(&mut tasks, false),
        "drift" => zipf(&mut tasks, true),
        "scan" => hot_set_under_scans(&mut tasks),
        "loop" => long_loop(&mut tasks),
        "parquet" => parquet(&mut tasks),
        _ => pipeline(&mut tasks),
    }
    tasks.into_trace(name)
}

/// Whole blocks of all sizes, the k-th most popular one read as k^-0.9; ten times what fits. With `drift`, every
/// filling of the cache a twentieth of the blocks changes places at random.
fn zipf(tasks: &mut Tasks, drift: bool) {
    let blocks = tasks.add_blocks(10 * tasks.cache_pages(), 8..=MAX_PAGES_PER_BLOCK);
    let mut ranks = blocks.clone();
    ranks.shuffle(&mut tasks.random);
    let popularity = Popularity::zipf(ranks.len(), 0.9);
    let mut until_drift = tasks.cache_pages();
    tasks.until(20, |tasks| {
        let block = ranks[popularity.draw(&mut tasks.random)];
        let pages = tasks.all_of(block);
        tasks.run(block, pages);
        until_drift = until_drift.saturating_sub(u64::from(pages.len()));
        if drift && until_drift == 0 {
            until_drift = tasks.cache_pages();
            for _ in 0..ranks.len() / 20 {
                let (a, b) = (
                    tasks.random.random_range(0..ranks.len()),
                    tasks.random.random_range(0..ranks.len()),
                );
                ranks.swap(a, b);
            }
        }
    });
}

/// Two fifths of the cache are hot and get a third of the reads; the others scan a table of 2.5 times the cache, over and over.
fn hot_set_under_scans(tasks: &mut Tasks) {
    let hot = tasks.add_blocks(tasks.cache_pages() * 2 / 5, 8..=MAX_PAGES_PER_BLOCK);
    let table = tasks.add_blocks(
        tasks.cache_pages() * 5 / 2,
        MAX_PAGES_PER_BLOCK..=MAX_PAGES_PER_BLOCK,
    );
    let mut scan = table.iter().copied().cycle();
    let (mut of_hot, mut of_scan) = (0, 0);
    tasks.until(20, |tasks| {
        let block = if of_hot * 2 < of_scan {
            hot[tasks.random.random_range(0..hot.len())]
        } else {
            scan.next().expect("a table is not empty")
        };
        let pages = tasks.all_of(block);
        *(if hot.binary_search(&block).is_ok() {
            &mut of_hot
        } else {
            &mut of_scan
        }) += u64::from(pages.len());
        tasks.run(block, pages);
    });
}

/// One and a half times what fits, over and over.
fn long_loop(tasks: &mut Tasks) {
    let blocks = tasks.add_blocks(tasks.cache_pages() * 3 / 2, 8..=MAX_PAGES_PER_BLOCK);
    let mut next = blocks.into_iter().cycle();
    tasks.until(15, |tasks| {
        let block = next.next().expect("there is a block");
        let pages = tasks.all_of(block);
        tasks.run(block, pages);
    });
}

/// Eight partitions at a time, together half of what fits; each is read whole five times, then never again, and a new one comes:
/// what LRU is made for.
fn pipeline(tasks: &mut Tasks) {
    let partition_pages = tasks.cache_pages() / 16;
    let mut live: Vec<(Vec<u32>, u32)> = Vec::new();
    tasks.until(15, |tasks| {
        if live.len() < 8 {
            let blocks = tasks.add_blocks(partition_pages, 32..=MAX_PAGES_PER_BLOCK);
            live.push((blocks, 5));
        }
        let at = tasks.random.random_range(0..live.len());
        live[at].1 -= 1;
        for block in live[at].0.clone() {
            let pages = tasks.all_of(block);
            tasks.run(block, pages);
        }
        live.retain(|(_, reads)| *reads > 0);
    });
}

/// Tables of files with two row groups of 16 columns and a footer. A query takes a table (Zipf 1.0), a few of its columns
/// (Zipf 1.2, in the table's own order) and the newest part of its files, or all of them; one in fifty reads everything.
fn parquet(tasks: &mut Tasks) {
    const COLUMNS: usize = 16;
    let tables: Vec<Table> = (0..40)
        .map(|_| {
            let files = tasks.add_blocks(tasks.cache_pages() / 4 / 5 * 4, 32..=MAX_PAGES_PER_BLOCK);
            let mut columns: Vec<usize> = (0..COLUMNS).collect();
            columns.shuffle(&mut tasks.random);
            let weights: Vec<f64> = (0..COLUMNS)
                .map(|_| tasks.random.random_range(0.2..3.0))
                .collect();
            Table {
                files,
                columns,
                weights,
            }
        })
        .collect();
    let (of_tables, of_columns) = (
        Popularity::zipf(tables.len(), 1.0),
        Popularity::zipf(COLUMNS, 1.2),
    );
    tasks.until(45, |tasks| {
        let table = &tables[of_tables.draw(&mut tasks.random)];
        let everything = tasks.random.random_range(0..50) == 0;
        let mut columns: Vec<usize> = if everything {
            (0..COLUMNS).collect()
        } else {
            let count = tasks.random.random_range(1..=5);
            (0..count)
                .map(|_| table.columns[of_columns.draw(&mut tasks.random)])
                .collect()
        };
        columns.sort_unstable();
        columns.dedup();
        let newest = [4, 4, 2, 1][tasks.random.random_range(0..4)];
        let from = if everything {
            0
        } else {
            table.files.len() - table.files.len() / newest
        };
        for file in &table.files[from..] {
            let pages = table.pages(tasks.pages[*file as usize], &columns);
            tasks.run(*file, pages);
        }
    });
}

struct Table {
    files: Vec<u32>,
    /// From the most to the least popular.
    columns: Vec<usize>,
    weights: Vec<f64>,
}

impl Table {
    /// The footer and the chunks of these columns in both row groups.
    #[expect(clippy::cast_sign_loss, reason = "shares of a file are never negative")]
    fn pages(&self, file_pages: u32, columns: &[usize]) -> PageSet {
        let group_bytes = (u64::from(file_pages) * PAGE_BYTES - (64 << 10)) / 2;
        let total: f64 = self.weights.iter().sum();
        let mut pages = PageSet::one(PageIndex(file_pages - 1));
        for group in 0..2 {
            for column in columns {
                let share =
                    |columns: &[f64]| (columns.iter().sum::<f64>() / total * group_bytes as f64) as u64;
                let start = group * group_bytes + share(&self.weights[..*column]);
                let end = group * group_bytes + share(&self.weights[..=*column]);
                pages = pages.union(PageSet::covering(start..end));
            }
        }
        pages
    }
}

/// Draws numbers, small ones more often.
struct Popularity(Vec<f64>);

impl Popularity {
    fn zipf(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=count).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self(cumulative.collect())
    }

    fn draw(&self, random: &mut StdRng) -> usize {
        let at = random.random_range(0.0..*self.0.last().expect("there is something to draw"));
        self.0.partition_point(|sum| *sum <= at)
    }
}

/// Tasks, as they come to run.
struct Tasks {
    random: StdRng,
    cache_bytes: u64,
    /// How many pages each block has.
    pages: Vec<u32>,
    events: Vec<Event>,
    /// When each slot is free again.
    slots: BinaryHeap<Reverse<u64>>,
    read_pages: u64,
}

impl Tasks {
    fn new(seed: u64, cache_bytes: u64) -> Self {
        // A smaller cache is filled as fast as a large one: what is correlated stays as correlated as it was.
        let slots = ((SLOTS * cache_bytes) >> 37).max(1);
        Self {
            random: StdRng::seed_from_u64(seed),
            cache_bytes,
            pages: Vec::new(),
            events: Vec::new(),
            slots: (0..slots).map(Reverse).collect(),
            read_pages: 0,
        }
    }

    fn cache_pages(&self) -> u64 {
        self.cache_bytes / PAGE_BYTES
    }

    /// Blocks that have this many pages together.
    fn add_blocks(&mut self, pages: u64, sizes: std::ops::RangeInclusive<u32>) -> Vec<u32> {
        let first = self.pages.len() as u32;
        let mut left = pages;
        while left > 0 {
            let size = self.random.random_range(sizes.clone());
            self.pages.push(size);
            left = left.saturating_sub(u64::from(size));
        }
        (first..self.pages.len() as u32).collect()
    }

    fn all_of(&self, block: u32) -> PageSet {
        PageSet::span(0..self.pages[block as usize])
    }

    /// Until so many times the cache was read.
    fn until(&mut self, times: u64, mut step: impl FnMut(&mut Self)) {
        while self.read_pages < times * self.cache_pages() {
            step(self);
        }
    }

    /// One task that reads these pages of a block.
    fn run(&mut self, block: u32, pages: PageSet) {
        let Reverse(start) = self.slots.pop().expect("there is a slot");
        // Some tasks have much to compute.
        let step = STEP_MILLIS * self.random.random_range(1..=6);
        let mut push = |at, action| {
            let at = Duration::from_millis(at);
            self.events.push(Event { at, block, action });
        };
        push(start, Action::Lease);
        let mut now = start;
        let mut touched = PageSet::EMPTY;
        for run in pages.runs(STEP_PAGES) {
            let run = PageSet::span(run);
            push(now, Action::Read(run));
            touched = touched.union(run);
            if now / REPORT_MILLIS != (now + step) / REPORT_MILLIS {
                push(now + step, Action::Report(touched));
                touched = PageSet::EMPTY;
            }
            now += step;
        }
        let next_report = now.next_multiple_of(REPORT_MILLIS);
        if !touched.is_empty() {
            push(next_report, Action::Report(touched));
        }
        push(now.max(next_report) + IDLE_CLOSE_MILLIS, Action::Release);
        self.read_pages += u64::from(pages.len());
        self.slots.push(Reverse(now));
    }

    fn into_trace(mut self, name: &'static str) -> Trace {
        self.events.sort_by_key(|event| event.at);
        Trace {
            name,
            cache_bytes: self.cache_bytes,
            blocks: self.pages.len() as u32,
            events: self.events,
        }
    }
}
