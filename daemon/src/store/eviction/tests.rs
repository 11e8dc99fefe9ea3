//! The policy alone, with sizes and times of the tests' choice.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BLOCK_PAGES: u32 = 16;
const BLOCK_BYTES: u64 = BLOCK_PAGES as u64 * PAGE_BYTES;

/// A cache of ten blocks, and the block and the file of the same number are one.
struct Cache {
    policy: Eviction,
    now: Duration,
}

impl Cache {
    fn new() -> Self {
        Self {
            policy: Eviction::new(10 * BLOCK_BYTES, Tuning::default()),
            now: Duration::ZERO,
        }
    }

    fn another_round(&mut self) {
        self.now += Tuning::default().round;
    }

    /// A task reads a block that is not there: its pages come one by one, and the client reports them, some of them twice.
    fn fetch(&mut self, number: u64, pages: u32) {
        let (file, hash) = (FileId(number), BlockHash(number));
        self.policy.insert(file, hash, 0, self.now);
        for page in 0..pages {
            self.policy
                .filled(file, hash, PageIndex(page), PAGE_BYTES, self.now);
        }
        self.read(number, 0..pages);
    }

    fn read(&mut self, number: u64, pages: std::ops::Range<u32>) {
        let pages = PageSet::span(pages);
        self.policy
            .used(FileId(number), BlockHash(number), pages, self.now);
    }

    fn idle(&mut self) -> Vec<u64> {
        self.policy.idle().map(|file| file.0).collect()
    }

    fn evict(&mut self) -> u64 {
        let victim = self.policy.idle().next().unwrap();
        self.policy.evict(victim, BlockHash(victim.0));
        victim.0
    }

    /// Fetches a block into a full cache; what had to go for it.
    fn turn_over(&mut self, number: u64) -> u64 {
        let victim = self.evict();
        self.fetch(number, BLOCK_PAGES);
        victim
    }
}

/// Ten full blocks, all of one use.
fn full() -> Cache {
    let mut cache = Cache::new();
    (0..10).for_each(|number| cache.fetch(number, BLOCK_PAGES));
    cache
}

#[test]
fn many_touches_by_one_task_are_one_use() {
    let mut cache = full();
    // One task touches block 0 for most of a round; block 1 is read by one task now, and by another one later.
    for second in 1..Tuning::default().round.as_secs() {
        cache.now = Duration::from_secs(second);
        cache.read(0, 0..BLOCK_PAGES);
        cache.policy.set_leased(FileId(0), second % 2 == 1);
    }
    cache.policy.set_leased(FileId(0), false);
    cache.another_round();
    cache.read(1, 0..BLOCK_PAGES);
    let worth = |cache: &Cache, file| cache.policy.entries[&FileId(file)].worth();
    assert!(
        (worth(&cache, 0) - worth(&cache, 2)).abs() < 0.1,
        "no more than a block read once"
    );
    assert!(worth(&cache, 1) > worth(&cache, 2) + 0.9, "twice as much");
}

#[test]
fn a_slow_scan_that_touches_each_page_once_is_one_use() {
    let mut cache = full();
    cache.policy.forget(FileId(9));
    cache.policy.insert(FileId(9), BlockHash(9), 0, cache.now);
    for page in 0..BLOCK_PAGES {
        // A page a round: a task that computes for long.
        cache.another_round();
        cache
            .policy
            .filled(FileId(9), BlockHash(9), PageIndex(page), PAGE_BYTES, cache.now);
        cache.read(9, page..page + 1);
    }
    let entry = &cache.policy.entries[&FileId(9)];
    let uses = entry.worth() - cache.policy.age as f32;
    assert!(uses.exp2() <= 1.01, "{} uses of each byte", uses.exp2());
}

#[test]
fn room_that_others_took_and_gave_back_is_the_caches_again() {
    let mut cache = full();
    let whole = cache.policy.capacity_bytes;
    for number in 0..9 {
        cache.policy.evict(FileId(number), BlockHash(number));
    }
    assert!(cache.policy.capacity_bytes < whole / 2);
    (20..29).for_each(|number| cache.fetch(number, BLOCK_PAGES));
    assert_eq!(cache.policy.capacity_bytes, 10 * BLOCK_BYTES);
}

#[test]
fn a_hot_set_survives_scans_that_are_larger_than_the_cache() {
    let mut cache = full();
    let mut evicted = Vec::new();
    for round in 0..20 {
        cache.another_round();
        (0..4).for_each(|hot| cache.read(hot, 0..BLOCK_PAGES));
        (0..10).for_each(|of_scan| evicted.push(cache.turn_over(100 + round * 10 + of_scan)));
    }
    assert!(evicted.iter().all(|number| *number >= 4), "{evicted:?}");
}

#[test]
fn a_loop_larger_than_the_cache_keeps_most_of_what_fits() {
    let mut cache = full();
    let mut misses = 0;
    for step in 0..150_u64 {
        let number = step % 15;
        if step % 15 == 0 {
            cache.another_round();
        }
        if cache.policy.entries.contains_key(&FileId(number)) {
            cache.read(number, 0..BLOCK_PAGES);
        } else {
            misses += 1;
            cache.turn_over(number);
        }
    }
    // LRU misses every time; to keep nine and to let the others come and go is 60 misses, and a few to learn it.
    assert!(misses <= 90, "{misses} of 150");
}

/// A cache of so many files of one page each, filled for the first time; `leased` by somebody meanwhile, or not. No call may
/// keep more than a few files.
fn filled_for_the_first_time(files: u64, leased: bool) -> Cache {
    let mut cache = Cache::new();
    cache.policy = Eviction::new(files * PAGE_BYTES, Tuning::default());
    for number in 0..files {
        let before = cache.policy.kept.idle.len();
        cache
            .policy
            .insert(FileId(number), BlockHash(number), 0, cache.now);
        cache.policy.set_leased(FileId(number), leased);
        let (file, hash) = (FileId(number), BlockHash(number));
        cache
            .policy
            .filled(file, hash, PageIndex(0), PAGE_BYTES, cache.now);
        let kept = cache.policy.kept.idle.len() - before;
        assert!(kept <= KEPT_WITH_A_PAGE, "{kept} files were kept with one page");
    }
    cache
}

#[test]
fn the_first_eviction_of_a_full_cache_finds_nearly_everything_kept_already() {
    const FILES: u64 = 20_000;
    let mut cache = filled_for_the_first_time(FILES, false);
    let before = cache.policy.kept.idle.len();
    assert!(before as u64 >= FILES / 100 * 89, "{before} files are kept");
    cache.fetch(FILES, 1);
    let victim = cache.evict();
    let kept = cache.policy.kept.idle.len() - before;
    assert!(
        kept <= KEPT_WITH_A_VICTIM,
        "{kept} files were kept with one victim"
    );
    // What came first fills the kept's share; of the others, the first goes.
    assert!(victim.abs_diff(FILES / 10 * 9) <= 2, "{victim}");
}

#[test]
fn a_session_that_ends_leaves_nothing_that_one_call_must_move_as_a_whole() {
    const FILES: u64 = 20_000;
    let mut cache = filled_for_the_first_time(FILES, true);
    (0..FILES).for_each(|number| cache.policy.set_leased(FileId(number), false));
    assert_eq!(
        cache.policy.kept.idle.len(),
        0,
        "leased files stay where they are"
    );
    let mut calls = 0;
    loop {
        let before = cache.policy.kept.idle.len();
        if before as u64 >= FILES / 100 * 89 {
            break;
        }
        let victim = cache.policy.idle().next().unwrap();
        let kept = cache.policy.kept.idle.len() - before;
        assert!((1..=KEPT_WITH_A_VICTIM).contains(&kept), "{kept} with one victim");
        cache.policy.evict(victim, BlockHash(victim.0));
        cache.fetch(FILES + calls, 1);
        calls += 1;
    }
    assert!(calls > 200, "{calls}");
}

#[test]
fn a_block_of_which_little_is_read_again_goes_before_a_small_one_that_is_read_whole() {
    let mut cache = Cache::new();
    cache.fetch(0, BLOCK_PAGES);
    cache.fetch(1, 2);
    (2..10).for_each(|number| cache.fetch(number, BLOCK_PAGES));
    for _ in 0..3 {
        cache.another_round();
        cache.read(0, 0..2);
        cache.read(1, 0..2);
    }
    let order = cache.idle();
    let place = |number| order.iter().position(|other| *other == number).unwrap();
    assert!(place(0) < place(1), "{order:?}");
}

#[test]
fn a_block_that_comes_back_is_worth_what_it_was_worth_before() {
    let mut cache = full();
    for _ in 0..4 {
        cache.another_round();
        cache.read(5, 0..BLOCK_PAGES);
    }
    cache.policy.evict(FileId(5), BlockHash(5));
    cache.another_round();
    cache.fetch(5, BLOCK_PAGES);
    assert_eq!(cache.policy.ghosts(), 0);
    cache.fetch(10, BLOCK_PAGES);
    let entries = &cache.policy.entries;
    let worth = |file| entries[&FileId(file)].worth();
    assert!(worth(5) > worth(10) + 1.0);
}

#[test]
fn a_block_that_is_no_longer_wanted_leaves_no_ghost() {
    let mut cache = full();
    cache.policy.forget(FileId(5));
    assert_eq!(cache.policy.ghosts(), 0);
}

#[test]
fn recovered_files_come_before_this_lifes_by_their_age_until_they_are_used() {
    let mut cache = full();
    cache.policy.insert_recovered(FileId(20), BLOCK_BYTES, u64::MAX);
    cache.policy.insert_recovered(FileId(21), BLOCK_BYTES, 5);
    cache.policy.insert_recovered(FileId(22), BLOCK_BYTES, 6);
    assert_eq!(cache.idle()[..3], [21, 22, 20]);
    cache.read(21, 0..BLOCK_PAGES);
    assert_eq!(cache.idle()[..2], [22, 20]);
}

#[test]
fn what_is_being_filled_is_nobodys_victim_and_leased_files_go_last() {
    let mut cache = full();
    cache.policy.set_filling(FileId(0), true);
    cache.policy.set_leased(FileId(1), true);
    cache.policy.set_filling(FileId(2), true);
    cache.policy.set_leased(FileId(2), true);
    assert!(cache.idle().iter().all(|number| *number > 2));
    assert_eq!(cache.policy.leased().collect::<Vec<_>>(), [FileId(1)]);
    cache.policy.set_filling(FileId(2), false);
    assert_eq!(cache.policy.leased().collect::<Vec<_>>(), [FileId(1), FileId(2)]);
    cache.policy.set_filling(FileId(0), false);
    assert!(cache.idle().contains(&0));
}

#[test]
fn when_lru_would_do_better_the_order_becomes_lrus() {
    let mut cache = full();
    // Each block is read twice, six other reads apart, and never again: nothing is worth keeping for long.
    let mut misses = 0;
    for step in 0..4000_u64 {
        cache.now += Duration::from_secs(20);
        for number in [100 + step, 100 + step.saturating_sub(3)] {
            if cache.policy.entries.contains_key(&FileId(number)) {
                cache.read(number, 0..BLOCK_PAGES);
            } else {
                misses += u64::from(step >= 2000);
                cache.turn_over(number);
            }
        }
    }
    assert!(
        cache.policy.probation_share() > 0.5,
        "{}",
        cache.policy.probation_share()
    );
    assert!(misses < 2600, "{misses} misses of 4000, where LRU has 2000");
}

#[test]
fn the_shadow_of_lru_follows_a_bounded_sample() {
    let mut shadow = Shadow::default();
    let blocks = 20 * SHADOW_BLOCKS as u64;
    for block in 0..blocks {
        shadow.touch(BlockHash(block), 1, u64::MAX);
        assert!(shadow.entries.len() <= SHADOW_BLOCKS);
        assert_eq!(shadow.entries.len(), shadow.order.len());
    }
    let followed = shadow.entries.len() as u64 * shadow.blocks_for_each();
    assert!(followed.abs_diff(blocks) < blocks / 10, "{followed} of {blocks}");
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64),
    Recover(u64, u64),
    Fill(u64, u32),
    Use(u64, u128),
    Lease(u64, bool),
    Filling(u64, bool),
    Forget(u64),
    Evict,
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let file = 0u64..12;
    prop_oneof![
        4 => file.clone().prop_map(Op::Insert),
        1 => (file.clone(), 0u64..100).prop_map(|(f, age)| Op::Recover(f, age)),
        6 => (file.clone(), 0..BLOCK_PAGES).prop_map(|(f, page)| Op::Fill(f, page)),
        4 => (file.clone(), any::<u128>()).prop_map(|(f, pages)| Op::Use(f, pages)),
        2 => (file.clone(), any::<bool>()).prop_map(|(f, on)| Op::Lease(f, on)),
        2 => (file.clone(), any::<bool>()).prop_map(|(f, on)| Op::Filling(f, on)),
        1 => file.prop_map(Op::Forget),
        3 => Just(Op::Evict),
        1 => (0u64..100).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn the_victims_are_the_known_files_each_once(ops in prop::collection::vec(op(), 0..200)) {
        let mut cache = Cache::new();
        // By file: leased, being filled, bytes.
        let mut model: BTreeMap<u64, (bool, bool, u64)> = BTreeMap::new();
        let mut most_files = 0;
        for op in ops {
            match op {
                Op::Insert(file) => {
                    cache.policy.insert(FileId(file), BlockHash(file), 1 << 16, cache.now);
                    model.insert(file, (false, false, 1 << 16));
                }
                Op::Recover(file, age) => {
                    cache.policy.insert_recovered(FileId(file), BLOCK_BYTES, age);
                    model.insert(file, (false, false, BLOCK_BYTES));
                }
                Op::Fill(file, page) => {
                    cache.policy.filled(FileId(file), BlockHash(file), PageIndex(page), PAGE_BYTES, cache.now);
                    model.entry(file).and_modify(|entry| entry.2 += PAGE_BYTES);
                }
                Op::Use(file, bits) => {
                    let pages = PageSet::from_bits(bits);
                    cache.policy.used(FileId(file), BlockHash(file), pages, cache.now);
                }
                Op::Lease(file, leased) => {
                    cache.policy.set_leased(FileId(file), leased);
                    model.entry(file).and_modify(|entry| entry.0 = leased);
                }
                Op::Filling(file, filling) => {
                    cache.policy.set_filling(FileId(file), filling);
                    model.entry(file).and_modify(|entry| entry.1 = filling);
                }
                Op::Forget(file) => {
                    cache.policy.forget(FileId(file));
                    model.remove(&file);
                }
                Op::Evict => {
                    let victim = cache.policy.idle().next();
                    if let Some(victim) = victim {
                        cache.policy.evict(victim, BlockHash(victim.0));
                        prop_assert!(model.remove(&victim.0).is_some());
                    }
                }
                Op::Wait(seconds) => cache.now += Duration::from_secs(seconds),
            }
            most_files = most_files.max(model.len());
            let of = |leased| -> Vec<u64> {
                let files = model.iter().filter(|(_, entry)| entry.0 == leased && !entry.1);
                files.map(|(file, _)| *file).collect()
            };
            let mut idle = cache.idle();
            idle.sort_unstable();
            prop_assert_eq!(idle, of(false));
            let mut leased: Vec<u64> = cache.policy.leased().map(|file| file.0).collect();
            leased.sort_unstable();
            prop_assert_eq!(leased, of(true));
            let held = cache.policy.probation.held_bytes + cache.policy.kept.held_bytes;
            prop_assert_eq!(held, model.values().map(|entry| entry.2).sum::<u64>());
            prop_assert!(cache.policy.ghosts() <= cache.policy.tuning.ghosts_per_file * (most_files + 1));
            prop_assert!(cache.policy.ghosts.order.len() <= 2 * cache.policy.tuning.ghosts_per_file * (most_files + 1));
        }
    }

    #[test]
    fn figures_and_places_are_in_one_order(a in -1e6f32..1e6, b in -1e6f32..1e6) {
        prop_assert_eq!(kept_place(a) < kept_place(b), a < b);
        prop_assert!(kept_place(NOTHING) < kept_place(a));
        let sum = add(a, b);
        prop_assert!(sum >= a.max(b) && sum <= a.max(b) + 1.01);
        prop_assert_eq!(add(a, NOTHING).to_bits(), a.to_bits());
    }
}
