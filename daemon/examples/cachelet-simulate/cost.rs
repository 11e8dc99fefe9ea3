//! What the policy itself costs: nanoseconds a call, bytes a file.

use std::fmt::Write;
use std::time::Duration;

use cachelet_protocol::block::{PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cacheletd::store::eviction::{BlockHash, Eviction, Tuning};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const TABLES_BYTES: u64 = 64 << 10;
const CALLS: u64 = 1_000_000;

/// Measures with so many files of two pages, and says what it measured.
pub(crate) fn measure(files: u64, seed: u64) -> String {
    let mut random = StdRng::seed_from_u64(seed);
    let now = |second| Duration::from_secs(second);
    let memory = resident_bytes();
    let mut policy = Eviction::new(files * (TABLES_BYTES + 2 * PAGE_BYTES), Tuning::default());
    let mut text = format!("{files} files, {CALLS} calls each, seed {seed}; time on the processor:\n");
    let mut show = |name: &str, calls: u64, took: Duration| {
        let _ = writeln!(
            text,
            "  {name:28} {:7.0} ns",
            took.as_nanos() as f64 / calls as f64
        );
    };

    let insert = |policy: &mut Eviction, file| {
        policy.insert(FileId(file), BlockHash(file), TABLES_BYTES, now(0));
        policy.filled(FileId(file), BlockHash(file), PageIndex(0), PAGE_BYTES, now(0));
        policy.filled(FileId(file), BlockHash(file), PageIndex(1), PAGE_BYTES, now(0));
    };
    let began = on_processor();
    (0..files).for_each(|file| insert(&mut policy, file));
    show(
        "insert and fill two pages",
        files,
        on_processor().saturating_sub(began),
    );
    let taken = resident_bytes().saturating_sub(memory);

    let chosen: Vec<FileId> = (0..CALLS)
        .map(|_| FileId(random.random_range(0..files)))
        .collect();
    let pages = PageSet::span(0..2);
    let mut time = |name: &str, policy: &mut Eviction, call: &mut dyn FnMut(&mut Eviction, FileId)| {
        let began = on_processor();
        chosen.iter().for_each(|file| call(policy, *file));
        show(name, CALLS, on_processor().saturating_sub(began));
    };
    time("used, the same round", &mut policy, &mut |policy, file| {
        policy.used(file, BlockHash(file.0), pages, now(1));
    });
    time("used, another round", &mut policy, &mut |policy, file| {
        policy.used(file, BlockHash(file.0), pages, now(100));
    });
    time("leased and released", &mut policy, &mut |policy, file| {
        policy.set_leased(file, true);
        policy.set_leased(file, false);
    });
    let mut next = files;
    time("evict one, insert another", &mut policy, &mut |policy, _| {
        let victim = policy.idle().next().expect("there are files");
        policy.evict(victim, BlockHash(victim.0));
        insert(policy, next);
        next += 1;
    });
    let grown = resident_bytes().saturating_sub(memory);
    let _ = writeln!(
        text,
        "  {:28} {:7.0} bytes",
        "memory for each file",
        taken as f64 / files as f64
    );
    let _ = writeln!(
        text,
        "  with {} ghosts, for each file {:4.0} bytes",
        policy.ghosts(),
        grown as f64 / files as f64
    );
    text
}

/// How long this thread has been on a processor: what else the machine does counts only by what it takes from the caches.
fn on_processor() -> Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = times.split(' ').next().and_then(|time| time.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}
