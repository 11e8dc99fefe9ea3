//! Whether a disk may be trusted with blocks: a state machine for each cache directory, and the watch over its operations.
//!
//! ```text
//! healthy --3 strikes--> suspect --a failed probe, or 3 errors more--> offline --after a while--> probation
//!    ^                      |                                             ^                          |   |
//!    +---- a calm minute ---+                                             +------ a failed probe ----+   |
//!    +------------------------------- 3 probes that pass -----------------------------------------------+
//! ```
//!
//! A *strike* is an operation that the disk failed, as the block layer and file systems say it ([`is_disk_error`]; a full
//! disk is none), or one that took longer than a healthy disk takes, seen even while it is still under way. Operations that
//! are throttled by design (bulk writes, fdatasync) have more patience, for they say how busy a disk is and not how it is.
//!
//! A *probe* writes a small file, brings it to disk, reads it back and removes it. Probes ask a disk that nobody else does,
//! and prove one that is struck: they run now and then while it is healthy, and at short intervals while it is in doubt. That
//! operations are slow makes a disk suspect, for it may only be busy; a probe that is slow twice takes it out of use.
//!
//! While a disk is offline nothing is created, granted or read there. What waits for it is told to go elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::format::Damage;
use super::{Error, lock};

/// Strikes that take a disk from healthy to suspect, and errors that take it from there to offline. HDFS takes a volume out at its first
/// error, Alluxio never; one error may be a bad sector of one file, three within [`WINDOW`] are the disk's.
const STRIKES: usize = 3;
/// Slow operations of probes that do, too.
const SLOW_PROBES: usize = 2;
/// Strikes further back than this are forgotten, and a suspect without new ones is healthy again.
const WINDOW: Duration = Duration::from_secs(60);
/// Probes of a healthy disk: often enough that one which only clients read from, out of the daemon's sight, is found out.
const PROBE_HEALTHY: Duration = Duration::from_secs(10);
/// Probes of a disk in doubt.
const PROBE_DOUBTED: Duration = Duration::from_millis(500);
/// Probes that must pass one after the other before an offline disk is used again.
const PASSES: u32 = 3;
/// The longest time before an offline disk is tried again; each failure doubles it.
const MAX_RETRY: Duration = Duration::from_secs(600);
/// How many times as long as others the operations may take that are throttled by design.
const THROTTLED: u32 = 4;

/// How a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// In use.
    Healthy,
    /// In use, and watched.
    Suspect,
    /// Not in use.
    Offline,
    /// Not in use, and about to be again if it passes.
    Probation,
}

impl DiskState {
    /// As logs, metrics and status spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Offline => "offline",
            Self::Probation => "probation",
        }
    }

    /// Every state.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Suspect, Self::Offline, Self::Probation];

    fn is_usable(self) -> bool {
        match self {
            Self::Healthy | Self::Suspect => true,
            Self::Offline | Self::Probation => false,
        }
    }
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a disk is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Open,
    Read,
    Create,
    Write,
    Sync,
    Remove,
    Probe,
    ProbeThrottled,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Remove => "remove",
            Self::Probe | Self::ProbeThrottled => "probe",
        }
    }

    fn is_probe(self) -> bool {
        matches!(self, Self::Probe | Self::ProbeThrottled)
    }

    /// How long it may take where `slow` is too long for one that nothing throttles; `None`: as long as it likes.
    fn patience(self, slow: Duration) -> Option<Duration> {
        match self {
            Self::Open | Self::Read | Self::Probe => Some(slow),
            Self::Create | Self::Write | Self::Remove | Self::ProbeThrottled => Some(slow * THROTTLED),
            Self::Sync => None,
        }
    }
}

/// Why a disk was struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strike {
    /// It failed an operation.
    Error(Errno),
    /// It took too long for one.
    Slow(Duration),
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(errno) => write!(f, "{errno}"),
            Self::Slow(took) => write!(f, "slow, {} ms and more", took.as_millis()),
        }
    }
}

/// A disk is no longer how it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChange {
    /// What it was.
    pub from: DiskState,
    /// What it is.
    pub to: DiskState,
    /// Why.
    pub reason: String,
}

/// What a disk has been through, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStatus {
    /// How it is.
    pub state: DiskState,
    /// For how long.
    pub since: Duration,
    /// Operations that it failed in this life.
    pub errors: u64,
    /// Operations that took too long in this life.
    pub slow: u64,
    /// Why it is not healthy, or was not the last time.
    pub reason: Option<String>,
}

/// What a strike says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    error: bool,
    probe: bool,
}

/// The decisions, without a clock and without a disk.
#[derive(Debug)]
struct Health {
    state: DiskState,
    since: Duration,
    /// The last ones, as many as can matter.
    strikes: VecDeque<(Duration, Kind)>,
    passes: u32,
    retry: Duration,
    first_retry: Duration,
    next_probe: Duration,
    /// When it came back last.
    back: Option<Duration>,
    reason: Option<String>,
}

impl Health {
    fn new(first_retry: Duration) -> Self {
        Self {
            state: DiskState::Healthy,
            since: Duration::ZERO,
            strikes: VecDeque::new(),
            passes: 0,
            retry: first_retry,
            first_retry,
            next_probe: PROBE_HEALTHY,
            back: None,
            reason: None,
        }
    }

    /// Something struck the disk.
    fn struck(&mut self, now: Duration, kind: Kind, why: &dyn fmt::Display) -> Option<DiskChange> {
        if self.strikes.len() > 4 * STRIKES {
            self.strikes.pop_front();
        }
        self.strikes.push_back((now, kind));
        self.forget(now);
        self.passes = 0;
        // What is in doubt is looked at, at once and then again and again.
        let wait = if self.strikes.len() > 1 {
            PROBE_DOUBTED
        } else {
            Duration::ZERO
        };
        self.next_probe = self.next_probe.min(now + wait);
        let count = |which: fn(Kind) -> bool| self.strikes.iter().filter(|(_, kind)| which(*kind)).count();
        match self.state {
            DiskState::Healthy if self.strikes.len() >= STRIKES => {
                let change = self.turn(DiskState::Suspect, now, why);
                // What led here does not count twice, but that a probe was slow is about now.
                self.strikes
                    .extend((kind.probe && !kind.error).then_some((now, kind)));
                Some(change)
            }
            DiskState::Suspect
                if count(|kind| kind.error) >= STRIKES
                    || count(|kind| kind.error && kind.probe) > 0
                    || count(|kind| kind.probe) >= SLOW_PROBES =>
            {
                Some(self.go_offline(now, why))
            }
            DiskState::Probation if kind.probe => Some(self.go_offline(now, why)),
            DiskState::Healthy | DiskState::Suspect | DiskState::Offline | DiskState::Probation => None,
        }
    }

    /// A probe passed.
    fn passed(&mut self, now: Duration) -> Option<DiskChange> {
        self.forget(now);
        self.passes += 1;
        match self.state {
            DiskState::Suspect if self.strikes.is_empty() && now.saturating_sub(self.since) >= WINDOW => {
                Some(self.turn(DiskState::Healthy, now, &"a minute without trouble"))
            }
            DiskState::Probation if self.passes >= PASSES => {
                let why = format!("{PASSES} probes passed");
                self.back = Some(now);
                Some(self.turn(DiskState::Healthy, now, &why))
            }
            DiskState::Healthy | DiskState::Suspect | DiskState::Offline | DiskState::Probation => None,
        }
    }

    /// What comes of the time that has passed.
    fn tick(&mut self, now: Duration) -> Option<DiskChange> {
        self.forget(now);
        let over = self.state == DiskState::Offline && now.saturating_sub(self.since) >= self.retry;
        over.then(|| {
            let why = format!("{} s have passed", self.retry.as_secs());
            self.turn(DiskState::Probation, now, &why)
        })
    }

    /// Whether a probe is due. If so, the next one is due later.
    fn take_probe(&mut self, now: Duration) -> bool {
        let due = self.state != DiskState::Offline && now >= self.next_probe;
        if due {
            self.next_probe = now
                + if self.is_in_doubt() {
                    PROBE_DOUBTED
                } else {
                    PROBE_HEALTHY
                };
        }
        due
    }

    fn is_in_doubt(&self) -> bool {
        self.state != DiskState::Healthy || !self.strikes.is_empty()
    }

    fn go_offline(&mut self, now: Duration, why: &dyn fmt::Display) -> DiskChange {
        // A disk that fails again soon after it came back waits longer, as one that fails its probation.
        let just_back = self
            .back
            .is_some_and(|back| now.saturating_sub(back) < self.retry);
        self.retry = if self.state == DiskState::Probation || just_back {
            (self.retry * 2).min(MAX_RETRY)
        } else {
            self.first_retry
        };
        self.turn(DiskState::Offline, now, why)
    }

    fn turn(&mut self, state: DiskState, now: Duration, why: &dyn fmt::Display) -> DiskChange {
        let from = std::mem::replace(&mut self.state, state);
        let reason = why.to_string();
        self.since = now;
        self.passes = 0;
        self.strikes.clear();
        self.next_probe = now;
        if state != DiskState::Healthy && state != DiskState::Probation {
            self.reason = Some(reason.clone());
        }
        DiskChange {
            from,
            to: state,
            reason,
        }
    }

    fn forget(&mut self, now: Duration) {
        while self
            .strikes
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW)
        {
            self.strikes.pop_front();
        }
    }
}

/// The watch over one disk. Cheap to ask; shared by everybody who uses the disk.
#[derive(Debug)]
pub(super) struct Disk {
    opened: Instant,
    /// Longer takes no operation of a healthy disk; `None`: slowness is no strike.
    slow: Option<Duration>,
    offline: AtomicBool,
    errors: AtomicU64,
    slowness: AtomicU64,
    health: Mutex<Health>,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    next: u64,
    operations: BTreeMap<u64, (Operation, Instant)>,
}

/// What an operation failed with, as far as it says something about the disk.
pub(super) trait Failure {
    fn errno(&self) -> Option<Errno>;
}

impl Failure for io::Error {
    fn errno(&self) -> Option<Errno> {
        self.raw_os_error().map(Errno::from_raw)
    }
}

impl Failure for Errno {
    fn errno(&self) -> Option<Errno> {
        Some(*self)
    }
}

impl Failure for Damage {
    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Unreadable(errno) => Some(*errno),
            Self::Size { .. }
            | Self::Magic
            | Self::HeaderChecksum
            | Self::HeaderField(_)
            | Self::Misplaced
            | Self::FileId
            | Self::Word(_)
            | Self::Data(_) => None,
        }
    }
}

impl Failure for Error {
    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => source.errno(),
            _ => None,
        }
    }
}

impl Disk {
    pub(super) fn new(slow: Duration, retry: Duration) -> Self {
        Self {
            opened: Instant::now(),
            slow: Some(slow).filter(|slow| !slow.is_zero()),
            offline: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            slowness: AtomicU64::new(0),
            health: Mutex::new(Health::new(retry)),
            under_way: Mutex::default(),
        }
    }

    /// Whether nothing may be asked of it but probes.
    pub(super) fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Acquire)
    }

    pub(super) fn status(&self) -> DiskStatus {
        let health = lock(&self.health);
        DiskStatus {
            state: health.state,
            since: self.opened.elapsed().saturating_sub(health.since),
            errors: self.errors.load(Ordering::Relaxed),
            slow: self.slowness.load(Ordering::Relaxed),
            reason: health.reason.clone(),
        }
    }

    /// Does something with the disk, under watch. The changes that come of it are the caller's to tell.
    pub(super) fn run<T, E: Failure>(
        &self,
        operation: Operation,
        work: impl FnOnce() -> Result<T, E>,
    ) -> (Result<T, E>, Vec<DiskChange>) {
        let began = Instant::now();
        let id = {
            let mut under_way = lock(&self.under_way);
            under_way.next += 1;
            let id = under_way.next;
            under_way.operations.insert(id, (operation, began));
            id
        };
        let result = work();
        let took = began.elapsed();
        // One that the watch has struck already is not there any more.
        let unstruck = lock(&self.under_way).operations.remove(&id).is_some();
        let mut changes = Vec::new();
        if let Err(error) = &result
            && let Some(errno) = error.errno()
        {
            changes.extend(self.failed(operation, errno));
        } else if unstruck && self.is_slow(operation, took) {
            changes.extend(self.strike(operation, Strike::Slow(took)));
        }
        (result, changes)
    }

    /// Somebody else's operation failed.
    pub(super) fn failed(&self, operation: Operation, errno: Errno) -> Option<DiskChange> {
        is_disk_error(errno)
            .then(|| self.strike(operation, Strike::Error(errno)))
            .flatten()
    }

    /// Whether there is any reason to look at what it does.
    pub(super) fn is_in_doubt(&self) -> bool {
        lock(&self.health).is_in_doubt()
    }

    /// Whether it should be probed now, by who asks.
    pub(super) fn take_probe(&self) -> bool {
        lock(&self.health).take_probe(self.opened.elapsed())
    }

    /// Strikes for what is under way for too long; what comes of that and of the time that has passed.
    pub(super) fn tick(&self) -> Vec<DiskChange> {
        let mut late = Vec::new();
        lock(&self.under_way).operations.retain(|_, (operation, began)| {
            let took = began.elapsed();
            let slow = self.is_slow(*operation, took);
            if slow {
                late.push((*operation, took));
            }
            !slow
        });
        let strikes = late
            .into_iter()
            .map(|(operation, took)| (operation, Strike::Slow(took)));
        let mut changes: Vec<_> = strikes
            .filter_map(|(operation, strike)| self.strike(operation, strike))
            .collect();
        changes.extend(lock(&self.health).tick(self.opened.elapsed()));
        changes
    }

    /// A probe passed; one that did not has struck.
    pub(super) fn passed(&self) -> Option<DiskChange> {
        let mut health = lock(&self.health);
        let change = health.passed(self.opened.elapsed());
        self.offline.store(!health.state.is_usable(), Ordering::Release);
        change
    }

    fn is_slow(&self, operation: Operation, took: Duration) -> bool {
        let patience = self.slow.and_then(|slow| operation.patience(slow));
        patience.is_some_and(|patience| took > patience)
    }

    fn strike(&self, operation: Operation, strike: Strike) -> Option<DiskChange> {
        match strike {
            Strike::Error(_) => &self.errors,
            Strike::Slow(_) => &self.slowness,
        }
        .fetch_add(1, Ordering::Relaxed);
        let why = format!("{}: {strike}", operation.as_str());
        let mut health = lock(&self.health);
        let kind = Kind {
            error: matches!(strike, Strike::Error(_)),
            probe: operation.is_probe(),
        };
        let change = health.struck(self.opened.elapsed(), kind, &why);
        self.offline.store(!health.state.is_usable(), Ordering::Release);
        change
    }
}

/// Whether an error is the disk's: what the block layer makes of a device's failures (`blk_errors` in `block/blk-core.c`),
/// and what ext4 and xfs answer once they have given up on a device. A full disk, a missing file and a process without
/// descriptors are none.
pub(super) fn is_disk_error(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EIO
            | Errno::ENODATA
            | Errno::ETIMEDOUT
            | Errno::ENOLINK
            | Errno::EREMOTEIO
            | Errno::EBADE
            | Errno::EILSEQ
            | Errno::ENODEV
            | Errno::ENXIO
            | Errno::ENOMEDIUM
            | Errno::EROFS
            | Errno::EUCLEAN
            | Errno::EBADMSG
            | Errno::ESHUTDOWN
            | Errno::ENOTCONN
            | Errno::ECONNABORTED
            | Errno::ESTALE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn struck(health: &mut Health, now: u64, error: bool, probe: bool) -> Option<DiskState> {
        let change = health.struck(at(now), Kind { error, probe }, &"EIO");
        change.map(|change| change.to)
    }

    fn strike(health: &mut Health, now: u64) -> Option<DiskState> {
        struck(health, now, true, false)
    }

    fn probe(health: &mut Health, now: u64, passes: bool) -> Option<DiskState> {
        if passes {
            health.passed(at(now)).map(|change| change.to)
        } else {
            struck(health, now, true, true)
        }
    }

    #[test]
    fn three_errors_make_a_disk_suspect_and_three_more_take_it_offline() {
        let mut health = Health::new(RETRY);
        assert_eq!((strike(&mut health, 1), strike(&mut health, 2)), (None, None));
        assert_eq!(strike(&mut health, 3), Some(DiskState::Suspect));
        assert_eq!((strike(&mut health, 4), strike(&mut health, 5)), (None, None));
        assert_eq!(strike(&mut health, 6), Some(DiskState::Offline));
        assert_eq!(strike(&mut health, 7), None, "it cannot sink deeper");
    }

    #[test]
    fn a_busy_disk_is_suspect_and_only_probes_that_are_slow_twice_take_it_offline() {
        let mut health = Health::new(RETRY);
        assert_eq!(
            (0..3).find_map(|now| struck(&mut health, now, false, false)),
            Some(DiskState::Suspect)
        );
        assert_eq!(
            (3..50).find_map(|now| struck(&mut health, now, false, false)),
            None
        );
        assert_eq!(struck(&mut health, 50, false, true), None);
        assert_eq!(struck(&mut health, 51, false, true), Some(DiskState::Offline));
        assert!(health.strikes.len() <= 5 * STRIKES);
    }

    #[test]
    fn errors_that_lie_far_apart_are_forgotten_and_a_calm_suspect_is_healthy_again() {
        let mut health = Health::new(RETRY);
        for minute in 0..10 {
            assert_eq!(strike(&mut health, minute * 61), None);
        }
        (1000..1003).for_each(|now| _ = strike(&mut health, now));
        assert_eq!(health.state, DiskState::Suspect);
        assert_eq!(probe(&mut health, 1061, true), None);
        assert_eq!(probe(&mut health, 1062, true), Some(DiskState::Healthy));
    }

    #[test]
    fn a_probe_that_fails_takes_a_suspect_offline_and_three_that_pass_bring_it_back() {
        let mut health = Health::new(RETRY);
        (1..=3).for_each(|now| _ = strike(&mut health, now));
        assert!(health.take_probe(at(3)), "a suspect is looked at at once");
        assert_eq!(probe(&mut health, 4, false), Some(DiskState::Offline));
        assert_eq!(
            (health.tick(at(33)), health.take_probe(at(33))),
            (None, false),
            "it is left alone"
        );
        let change = health.tick(at(34));
        assert_eq!(change.map(|change| change.to), Some(DiskState::Probation));
        assert!(health.take_probe(at(34)));
        assert_eq!(
            (probe(&mut health, 35, true), probe(&mut health, 36, true)),
            (None, None)
        );
        assert_eq!(probe(&mut health, 37, true), Some(DiskState::Healthy));
    }

    #[test]
    fn each_failed_probation_doubles_the_time_until_the_next_up_to_ten_minutes() {
        let mut health = Health::new(RETRY);
        (0..6).for_each(|_| _ = strike(&mut health, 0));
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..7 {
            let offline = now;
            while health.tick(at(now)).is_none() {
                now += 1;
            }
            waits.push(now - offline);
            assert_eq!(probe(&mut health, now, false), Some(DiskState::Offline));
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
    }

    #[test]
    fn a_healthy_disk_is_probed_now_and_then_and_a_struck_one_soon() {
        let mut health = Health::new(RETRY);
        let probes = |from: u64, to: u64, health: &mut Health| {
            (from..to).filter(|now| health.take_probe(at(*now))).count()
        };
        assert_eq!(probes(0, 101, &mut health), 10);
        strike(&mut health, 101);
        assert_eq!(probes(102, 112, &mut health), 10);
    }

    #[test]
    fn an_operation_that_hangs_strikes_while_it_is_under_way_and_only_once() {
        let disk = Disk::new(Duration::from_millis(1), RETRY);
        let (_, changes) = disk.run(Operation::Read, || {
            std::thread::sleep(Duration::from_millis(5));
            disk.tick();
            disk.tick();
            Ok::<_, io::Error>(())
        });
        assert_eq!((changes, disk.status().slow), (vec![], 1));
        let patient = Disk::new(Duration::ZERO, RETRY);
        let (_, changes) = patient.run(Operation::Read, || {
            std::thread::sleep(Duration::from_millis(5));
            patient.tick();
            Ok::<_, io::Error>(())
        });
        assert_eq!(
            (changes, patient.status().slow),
            (vec![], 0),
            "slowness is no strike there"
        );
    }

    #[test]
    fn a_full_disk_and_a_missing_file_say_nothing_about_the_disk() {
        let disk = Disk::new(Duration::ZERO, RETRY);
        for errno in [
            Errno::ENOSPC,
            Errno::EDQUOT,
            Errno::ENOENT,
            Errno::EMFILE,
            Errno::EINTR,
        ] {
            for _ in 0..10 {
                let (_, changes) = disk.run(Operation::Write, || Err::<(), _>(errno));
                assert_eq!(changes, []);
            }
        }
        assert_eq!(
            (disk.status().errors, disk.status().state),
            (0, DiskState::Healthy)
        );
        for _ in 0..6 {
            let (outcome, _) = disk.run(Operation::Write, || Err::<(), _>(Errno::EIO));
            assert_eq!(outcome, Err(Errno::EIO), "it is passed on");
        }
        assert!(disk.is_offline());
        assert_eq!(disk.status().errors, 6);
    }
}
