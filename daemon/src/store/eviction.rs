//! Which block goes first when room is needed: pure, without I/O and without a clock of its own.
//!
//! A new block is on *probation*, in the order of last use. One that proves itself is *kept*, in the order of its worth:
//! how many bytes were used for each byte that it holds, where what was used longer ago counts less. The block used longest
//! ago of those on probation is kept when there is room, or when it is worth clearly more than the least of the kept;
//! otherwise it goes, and a *ghost* remembers what it was worth, for the case that it comes back.
//!
//! * **What a use is.** One scan of a block by one task is many touches: page writes, reports every ten seconds. The touches
//!   of a file belong to one *round*, for [`Tuning::round`] from its first, and a page counts once a round. So only a page
//!   that was filled or read in an earlier round is used again. Pages count whole: what a hit saves is a request.
//! * **Time** is in used bytes: nothing gets old while nothing is used.
//! * **Beside LRU.** A [`Shadow`] follows what plain LRU would hold. While LRU would do better, probation's share grows and
//!   what was used long ago counts for less, until the order is much like LRU's; while it would do worse, the reverse.
//! * **Over a restart** only the files' times are known: recovered files are kept in the order of these, and worth less than
//!   any of this life until they are used.
//!
//! Blocks that somebody leases come after all others, and blocks that are being filled are nobody's victims. Every call is
//! O(log n): a fresh cache's blocks are kept a few with each that comes, so that the first eviction need not move them all.
//! A file takes 64 bytes in a hash table and 16 in a
//! tree, a ghost 24 in a table and 16 in a queue, before what tables, trees and queues leave empty; the shadow is of bounded
//! size. `docs/eviction.md` has what was measured.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use cachelet_protocol::block::{PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::ids::FileId;

/// Places of this life's blocks start here, behind every place that comes from a file's times.
const FIRST_LIVE_PLACE: u64 = 1 << 63;
/// Most blocks that the shadow of plain LRU follows.
const SHADOW_BLOCKS: usize = 8192;
/// Most files that one page's coming moves from probation to where they are kept: more than come with it.
const KEPT_WITH_A_PAGE: usize = 2;
/// Most files that choosing a victim moves. More wait only after a change of many at once, such as the end of a session that
/// leased them; then the victim is the one used longest ago.
const KEPT_WITH_A_VICTIM: usize = 64;
/// The unit of a file's held bytes.
const HELD_UNIT_BYTES: u64 = 1 << 10;
/// Worth nothing: the logarithm of 0.
const NOTHING: f32 = f32::NEG_INFINITY;

/// What can be tuned. The defaults are what the trace simulator found.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// How long the touches of a file are one use, from the first of them.
    pub round: Duration,
    /// After how many fillings of the cache, in used bytes, a use counts half: when probation has its least share, and when
    /// it has its most.
    pub half_life: [f64; 2],
    /// How many uses of the whole block at once a block is worth at most.
    pub most_worth: f32,
    /// How many times the worth of the least kept block one on probation must be worth to take its place.
    pub margin: f32,
    /// Probation's share of the cache: the least, and the most.
    pub probation: [f64; 2],
    /// How far ahead of LRU, in the unit of `adapt`, is remembered.
    pub trust: f64,
    /// How much of the cache probation gains for each filling of the cache that LRU would have had, and loses for what it
    /// would have lost.
    pub adapt: f64,
    /// After how many fillings without further proof LRU's lead is forgotten: an order like LRU's that finds nothing in the
    /// cache gets no proof against itself.
    pub forget: f64,
    /// How many ghosts there may be for each known file.
    pub ghosts_per_file: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            round: Duration::from_secs(60),
            half_life: [8.0, 0.25],
            most_worth: 8.0,
            margin: 1.5,
            probation: [0.1, 0.9],
            trust: 2.0,
            adapt: 4.0,
            forget: 24.0,
            ghosts_per_file: 1,
        }
    }
}

/// A block by 64 bits of its identity. If two blocks share them, one inherits the other's worth: nothing else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub u64);

/// The order of eviction of one cache directory. Knows nothing about the ledger, files or leases' owners.
#[derive(Debug)]
pub struct Eviction {
    tuning: Tuning,
    /// What the cache held when it last had to evict; before that, what it may hold.
    capacity_bytes: u64,
    probation: Segment,
    kept: Segment,
    entries: HashMap<FileId, Entry>,
    ghosts: Ghosts,
    next_place: u64,
    shadow: Shadow,
    /// Half-lives that have passed.
    age: f64,
    /// By how much plain LRU would have done better, in fillings of the cache times [`Tuning::adapt`], at most 1; below 0, it
    /// would have done worse.
    lru_ahead: f64,
}

/// Files in the order in which they go.
#[derive(Debug, Default)]
struct Segment {
    idle: BTreeSet<(u64, FileId)>,
    leased: BTreeSet<(u64, FileId)>,
    held_bytes: u64,
}

/// 48 bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The pages that counted in this round.
    counted: PageSet,
    /// By what it stands in its segment's order.
    place: u64,
    /// Binary logarithm of the bytes used, each grown by a factor of two for each half-life that had passed then: the
    /// order of such figures does not change as time passes.
    used: f32,
    /// The same for each held byte, of earlier files of the block.
    past: f32,
    held: u32,
    round_began_seconds: u32,
    kept: bool,
    state: State,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Leased,
    /// Being filled; leased or not.
    Filling {
        leased: bool,
    },
}

/// What lets a file on probation be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// That there is room.
    Room,
    /// That, or being worth clearly more than the least of the kept.
    RoomOrWorth,
}

/// What this round says about plain LRU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It would have done the same.
    None,
    /// It would have had what is fetched now.
    LruHadIt,
    /// It would have lost what is used now.
    LruLostIt,
}

impl Eviction {
    /// For a cache that may hold so many bytes.
    pub fn new(capacity_bytes: u64, tuning: Tuning) -> Self {
        Self {
            lru_ahead: 0.0,
            capacity_bytes: capacity_bytes.max(1),
            probation: Segment::default(),
            kept: Segment::default(),
            entries: HashMap::new(),
            ghosts: Ghosts::default(),
            next_place: FIRST_LIVE_PLACE,
            shadow: Shadow::default(),
            age: 0.0,
            tuning,
        }
    }

    /// Adds a new file that holds `held_bytes` (its tables, say) and no page yet. `now` is any clock that never goes back.
    pub fn insert(&mut self, file: FileId, block: BlockHash, held_bytes: u64, now: Duration) {
        self.forget(file);
        let past = self.ghosts.take(block).unwrap_or(NOTHING);
        let lru_had_it = self.shadow.holds(block) == Some(true);
        let entry = Entry {
            counted: PageSet::EMPTY,
            place: self.new_place(),
            used: NOTHING,
            past,
            held: held_units(held_bytes),
            round_began_seconds: seconds(now),
            kept: false,
            state: State::Idle,
            verdict: if lru_had_it {
                Verdict::LruHadIt
            } else {
                Verdict::None
            },
        };
        self.place(file, entry);
    }

    /// Adds a file from an earlier life, that goes before all of this life until it is used; among its like by `age_rank` (greater
    /// = newer).
    pub fn insert_recovered(&mut self, file: FileId, held_bytes: u64, age_rank: u64) {
        self.forget(file);
        let entry = Entry {
            counted: PageSet::EMPTY,
            place: age_rank.min(FIRST_LIVE_PLACE - 1),
            used: NOTHING,
            past: NOTHING,
            held: held_units(held_bytes),
            round_began_seconds: 0,
            kept: true,
            state: State::Idle,
            verdict: Verdict::None,
        };
        self.place(file, entry);
    }

    /// A page was written to a file, `bytes` long. Unknown files are ignored.
    pub fn filled(&mut self, file: FileId, block: BlockHash, page: PageIndex, bytes: u64, now: Duration) {
        let Some(mut entry) = self.lift(file) else { return };
        self.begin_round(&mut entry, block, now);
        entry.counted.insert(page);
        entry.held += held_units(bytes);
        if entry.verdict == Verdict::LruHadIt {
            self.adapt(bytes as f64);
        }
        self.count(&mut entry, bytes);
        self.touch(file, block, entry);
        self.settle(KEPT_WITH_A_PAGE, Admission::Room);
    }

    /// Pages of a file were read. Unknown files are ignored.
    pub fn used(&mut self, file: FileId, block: BlockHash, pages: PageSet, now: Duration) {
        let Some(mut entry) = self.lift(file) else { return };
        self.begin_round(&mut entry, block, now);
        let again = pages.difference(entry.counted);
        entry.counted = entry.counted.union(pages);
        let bytes = (u64::from(again.len()) * PAGE_BYTES).min(entry.held_bytes());
        if bytes > 0 {
            if entry.verdict == Verdict::LruLostIt {
                self.adapt(-(bytes as f64));
            }
            self.count(&mut entry, bytes);
        }
        self.touch(file, block, entry);
    }

    /// Says whether anybody leases a file; its place stays. Unknown files are ignored.
    pub fn set_leased(&mut self, file: FileId, leased: bool) {
        if let Some(mut entry) = self.lift(file) {
            entry.state = match (entry.state, leased) {
                (State::Filling { .. }, leased) => State::Filling { leased },
                (_, true) => State::Leased,
                (_, false) => State::Idle,
            };
            self.place(file, entry);
        }
    }

    /// Says whether a file is being filled: then it is nobody's victim. Unknown files are ignored.
    pub fn set_filling(&mut self, file: FileId, filling: bool) {
        if let Some(mut entry) = self.lift(file) {
            let leased = matches!(entry.state, State::Leased | State::Filling { leased: true });
            entry.state = match (filling, leased) {
                (true, leased) => State::Filling { leased },
                (false, true) => State::Leased,
                (false, false) => State::Idle,
            };
            self.place(file, entry);
        }
    }

    /// Forgets a file: its bytes are no longer wanted.
    pub fn forget(&mut self, file: FileId) {
        self.lift(file);
        self.entries.remove(&file);
    }

    /// Forgets a file that had to make room, but not what its block was worth.
    pub fn evict(&mut self, file: FileId, block: BlockHash) {
        self.capacity_bytes = (self.probation.held_bytes + self.kept.held_bytes).max(1);
        if let Some(entry) = self.lift(file) {
            self.entries.remove(&file);
            let most = self.tuning.ghosts_per_file * (self.entries.len() + 1);
            self.ghosts.insert(block, entry.worth(), most);
        }
    }

    /// Files that nobody leases or fills, in the order in which they go.
    ///
    /// The first is the right one now; the others are for the case that it cannot go.
    pub fn idle(&mut self) -> impl Iterator<Item = FileId> {
        self.settle(KEPT_WITH_A_VICTIM, Admission::RoomOrWorth);
        let (first, then) = if self.takes_from_probation() {
            (&self.probation, &self.kept)
        } else {
            (&self.kept, &self.probation)
        };
        first.idle.iter().chain(&then.idle).map(|(_, file)| *file)
    }

    /// Files that somebody leases and nobody fills, in the order in which they go.
    pub fn leased(&self) -> impl Iterator<Item = FileId> {
        let both = self.probation.leased.iter().chain(&self.kept.leased);
        both.map(|(_, file)| *file)
    }

    /// How many ghosts there are.
    pub fn ghosts(&self) -> usize {
        self.ghosts.worth.len()
    }

    /// Probation's share of the cache now.
    pub fn probation_share(&self) -> f64 {
        let [least, most] = self.tuning.probation;
        least + (most - least) * self.lru_ahead.max(0.0)
    }

    /// Moves from probation to the kept what has earned it, `most` files at most, until either has its share.
    fn settle(&mut self, most: usize, admission: Admission) {
        for _ in 0..most {
            let Some(file) = self.earned(admission) else {
                return;
            };
            if let Some(mut entry) = self.lift(file) {
                entry.kept = true;
                entry.place = kept_place(entry.worth());
                self.place(file, entry);
            }
        }
    }

    /// The file used longest ago of those on probation, if it is to be kept.
    fn earned(&self, admission: Admission) -> Option<FileId> {
        let due = match admission {
            Admission::Room => self.probation.held_bytes > self.probation_target(),
            Admission::RoomOrWorth => self.takes_from_probation(),
        };
        let (_, file) = self.probation.idle.first().copied().filter(|_| due)?;
        let entry = self.entries.get(&file)?;
        let room = self.capacity_bytes.saturating_sub(self.probation_target());
        if self.kept.held_bytes + entry.held_bytes() <= room {
            return Some(file);
        }
        let worth = |file| self.entries.get(&file).map_or(NOTHING, Entry::worth);
        let (_, least) = self.kept.idle.first().copied()?;
        let better = entry.worth() > worth(least) + self.tuning.margin.log2();
        (admission == Admission::RoomOrWorth && better).then_some(file)
    }

    fn takes_from_probation(&self) -> bool {
        !self.probation.idle.is_empty()
            && (self.probation.held_bytes > self.probation_target() || self.kept.idle.is_empty())
    }

    #[expect(clippy::cast_sign_loss, reason = "a share is never negative")]
    fn probation_target(&self) -> u64 {
        let thousandths = (self.probation_share() * 1000.0).round() as u64;
        self.capacity_bytes / 1000 * thousandths
    }

    fn begin_round(&self, entry: &mut Entry, block: BlockHash, now: Duration) {
        let now = seconds(now);
        let due = u64::from(now.saturating_sub(entry.round_began_seconds)) >= self.tuning.round.as_secs();
        let recovered = entry.place < FIRST_LIVE_PLACE;
        if due || recovered {
            entry.counted = PageSet::EMPTY;
            entry.round_began_seconds = now;
            let lost = !recovered && self.shadow.holds(block) == Some(false);
            entry.verdict = if lost { Verdict::LruLostIt } else { Verdict::None };
        }
    }

    /// Counts so many bytes of a file as used.
    fn count(&mut self, entry: &mut Entry, bytes: u64) {
        let fillings = bytes as f64 / self.capacity_bytes as f64;
        self.age += fillings / self.half_life();
        if self.lru_ahead > 0.0 {
            self.lru_ahead = (self.lru_ahead - fillings / self.tuning.forget).max(0.0);
        }
        let most = self.age as f32 + (self.tuning.most_worth * entry.held_bytes() as f32).log2();
        entry.used = add(entry.used, self.age as f32 + (bytes as f32).log2()).min(most);
    }

    /// Makes a file the one used last.
    fn touch(&mut self, file: FileId, block: BlockHash, mut entry: Entry) {
        self.shadow.touch(block, entry.held, self.capacity_bytes);
        if !entry.kept {
            entry.place = self.new_place();
        } else if entry.place >= FIRST_LIVE_PLACE || entry.used > NOTHING {
            entry.place = kept_place(entry.worth());
        }
        self.place(file, entry);
    }

    fn adapt(&mut self, bytes: f64) {
        let step =
            self.tuning.adapt * bytes * self.shadow.blocks_for_each() as f64 / self.capacity_bytes as f64;
        self.lru_ahead = (self.lru_ahead + step).clamp(-self.tuning.trust, 1.0);
    }

    fn half_life(&self) -> f64 {
        let [long, short] = self.tuning.half_life;
        let way = self.lru_ahead.max(0.0);
        long.powf(1.0 - way) * short.powf(way)
    }

    fn new_place(&mut self) -> u64 {
        self.next_place += 1;
        self.next_place
    }

    /// Takes a file out of its order; [`Self::place`] puts it back.
    fn lift(&mut self, file: FileId) -> Option<Entry> {
        let entry = *self.entries.get(&file)?;
        let segment = self.segment(entry.kept);
        segment.held_bytes -= entry.held_bytes();
        if let Some(order) = segment.order(entry.state) {
            order.remove(&(entry.place, file));
        }
        Some(entry)
    }

    fn place(&mut self, file: FileId, entry: Entry) {
        let segment = self.segment(entry.kept);
        segment.held_bytes += entry.held_bytes();
        if let Some(order) = segment.order(entry.state) {
            order.insert((entry.place, file));
        }
        self.entries.insert(file, entry);
        // Room that others had taken on the disk comes back without an eviction.
        self.capacity_bytes = self
            .capacity_bytes
            .max(self.probation.held_bytes + self.kept.held_bytes);
    }

    fn segment(&mut self, kept: bool) -> &mut Segment {
        if kept { &mut self.kept } else { &mut self.probation }
    }
}

impl Segment {
    /// `None`: files that are being filled stand in no order.
    fn order(&mut self, state: State) -> Option<&mut BTreeSet<(u64, FileId)>> {
        match state {
            State::Idle => Some(&mut self.idle),
            State::Leased => Some(&mut self.leased),
            State::Filling { .. } => None,
        }
    }
}

impl Entry {
    /// Binary logarithm of the uses of each held byte.
    fn worth(&self) -> f32 {
        let own = self.used - (self.held_bytes().max(1) as f32).log2();
        add(own, self.past)
    }

    fn held_bytes(&self) -> u64 {
        u64::from(self.held) * HELD_UNIT_BYTES
    }
}

/// Ghosts, those evicted longest ago forgotten first.
#[derive(Debug, Default)]
struct Ghosts {
    worth: HashMap<BlockHash, (u32, f32)>,
    /// By the stamp that the table has for them; others were taken meanwhile.
    order: VecDeque<(u32, BlockHash)>,
    next_stamp: u32,
}

impl Ghosts {
    fn take(&mut self, block: BlockHash) -> Option<f32> {
        self.worth.remove(&block).map(|(_, worth)| worth)
    }

    fn insert(&mut self, block: BlockHash, worth: f32, most: usize) {
        self.next_stamp = self.next_stamp.wrapping_add(1);
        self.worth.insert(block, (self.next_stamp, worth));
        self.order.push_back((self.next_stamp, block));
        while self.worth.len() > most || self.order.len() > 2 * most {
            let Some((stamp, block)) = self.order.pop_front() else {
                return;
            };
            if self
                .worth
                .get(&block)
                .is_some_and(|(current, _)| *current == stamp)
            {
                self.worth.remove(&block);
            }
        }
    }
}

/// What plain LRU would hold, of a sample of all blocks when there are many: those whose hash ends in so many zeros.
#[derive(Debug, Default)]
struct Shadow {
    order: BTreeSet<(u64, BlockHash)>,
    entries: HashMap<BlockHash, (u64, u32)>,
    held: u64,
    next_place: u64,
    /// The bits that are zero in the hashes of the sample.
    mask: u64,
}

impl Shadow {
    /// Whether LRU would have the block; `None` if it is not in the sample.
    fn holds(&self, block: BlockHash) -> Option<bool> {
        self.samples(block).then(|| self.entries.contains_key(&block))
    }

    /// For how many blocks each of the sample stands.
    fn blocks_for_each(&self) -> u64 {
        self.mask + 1
    }

    fn samples(&self, block: BlockHash) -> bool {
        // Hashes are as good as their makers.
        block.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & self.mask == 0
    }

    fn touch(&mut self, block: BlockHash, held: u32, capacity_bytes: u64) {
        if !self.samples(block) {
            return;
        }
        self.remove(block);
        self.next_place += 1;
        self.order.insert((self.next_place, block));
        self.entries.insert(block, (self.next_place, held));
        self.held += u64::from(held);
        if self.entries.len() > SHADOW_BLOCKS {
            self.mask = self.mask << 1 | 1;
            let left: Vec<_> = self
                .entries
                .keys()
                .filter(|block| !self.samples(**block))
                .copied()
                .collect();
            left.into_iter().for_each(|block| self.remove(block));
        }
        let most = capacity_bytes / HELD_UNIT_BYTES / self.blocks_for_each();
        while self.held > most
            && let Some((_, oldest)) = self.order.first().copied()
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, block: BlockHash) {
        if let Some((place, held)) = self.entries.remove(&block) {
            self.order.remove(&(place, block));
            self.held -= u64::from(held);
        }
    }
}

/// The binary logarithm of the sum of two figures given by theirs.
fn add(a: f32, b: f32) -> f32 {
    let (more, less) = if a > b { (a, b) } else { (b, a) };
    if less == NOTHING {
        more
    } else {
        more + (1.0 + (less - more).exp2()).log2()
    }
}

/// A place in the order of worth: integers in the order of the floats.
fn kept_place(worth: f32) -> u64 {
    let bits = worth.to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    FIRST_LIVE_PLACE | u64::from(ordered)
}

fn held_units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(HELD_UNIT_BYTES)).unwrap_or(u32::MAX)
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
