//! Which peers are worth asking: a circuit breaker for each.
//!
//! A peer that hangs costs who asks it the time to the first byte, and would cost every fetch the same again. So the first
//! fetch that it leaves without an answer opens its breaker: whoever else waits for it goes on at once, and nobody asks
//! it for a while. After that one fetch tries it again: an answer, whatever it says, closes the breaker; silence opens it
//! for twice as long.
//!
//! [`Breaker`] is a state machine without a clock; [`Health`] keeps one for each peer that is, or lately was, in trouble.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::peer::Holder;
use crate::metrics::{Metrics, PeerTrouble};

/// How long a peer is left out first: long beside what a try costs (200 ms), short beside a lease (10 s), after which the
/// service names a hung worker no more.
const FIRST_SKIP: Duration = Duration::from_secs(2);
/// How long it is left out at most, and so how soon a peer that answers again is used.
const LONGEST_SKIP: Duration = Duration::from_secs(30);
/// Failures without a wait, such as a refused connection, that open a breaker if nothing but them comes.
const FAILURES_TO_OPEN: u32 = 3;
/// A peer that was well for this long starts anew; one that was left out for this long and not asked again has left.
const FORGET_AFTER: Duration = Duration::from_mins(1);

/// One peer's breaker.
#[derive(Debug)]
struct Breaker {
    state: State,
    /// Grows whenever what earlier requests tell becomes worthless.
    period: u64,
    since: Instant,
    failures: u32,
    openings: u32,
    trouble: PeerTrouble,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing,
}

impl Breaker {
    fn new(now: Instant) -> Self {
        Self {
            state: State::Closed,
            period: 0,
            since: now,
            failures: 0,
            openings: 0,
            trouble: PeerTrouble::Silent,
        }
    }

    fn is_skipped(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => false,
            State::Open { until } => now < until,
            State::Probing => true,
        }
    }

    /// Whether a request may ask now; if so, its period. It tells how that went.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.is_skipped(now) {
            return None;
        }
        if let State::Open { .. } = self.state {
            self.state = State::Probing;
            self.period += 1;
        }
        Some(self.period)
    }

    /// A request was answered. Says whether that closed the breaker.
    fn answered(&mut self, period: u64, now: Instant) -> bool {
        if period != self.period {
            return false;
        }
        self.failures = 0;
        let closed = self.state == State::Probing;
        if closed {
            self.state = State::Closed;
            self.since = now;
        }
        closed
    }

    /// A request was not answered. Says for how long the peer is left out, if that opened the breaker. `jitter` is
    /// between 0.5 and 1.
    fn failed(&mut self, period: u64, trouble: PeerTrouble, now: Instant, jitter: f64) -> Option<Duration> {
        if period != self.period {
            return None;
        }
        self.failures += 1;
        let opens = self.state == State::Probing
            || trouble == PeerTrouble::Silent
            || self.failures >= FAILURES_TO_OPEN;
        if !opens {
            return None;
        }
        if self.state == State::Closed && now - self.since >= FORGET_AFTER {
            self.openings = 0;
        }
        let skip = FIRST_SKIP
            .saturating_mul(1 << self.openings.min(16))
            .min(LONGEST_SKIP)
            .mul_f64(jitter);
        self.state = State::Open { until: now + skip };
        self.since = now;
        self.period += 1;
        self.failures = 0;
        self.openings += 1;
        self.trouble = trouble;
        Some(skip)
    }

    /// A request ended without having learnt anything: another one may try.
    fn abandoned(&mut self, period: u64, now: Instant) {
        if period == self.period && self.state == State::Probing {
            self.state = State::Open { until: now };
        }
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        let last = match self.state {
            State::Closed => self.since,
            State::Open { until } => until,
            State::Probing => return false,
        };
        now.saturating_duration_since(last) >= FORGET_AFTER
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Health {
    /// By address. A peer that was never in trouble has none.
    breakers: Mutex<HashMap<String, Breaker>>,
    /// Sent to whenever a breaker opens.
    opened: watch::Sender<()>,
    metrics: Metrics,
}

impl Health {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            breakers: Mutex::default(),
            opened: watch::Sender::new(()),
            metrics,
        }
    }

    /// Whether a holder is left out at the moment; counts if it is.
    pub(super) fn skips(&self, holder: &Holder) -> bool {
        let breakers = self.breakers();
        let skipping = breakers
            .get(&holder.address)
            .filter(|breaker| breaker.is_skipped(Instant::now()));
        if let Some(breaker) = skipping {
            self.metrics.count_peer_skip(breaker.trouble);
        }
        skipping.is_some()
    }

    /// How many peers are left out at the moment.
    pub(super) fn skipped_now(&self) -> usize {
        let now = Instant::now();
        let breakers = self.breakers();
        breakers
            .values()
            .filter(|breaker| breaker.is_skipped(now))
            .count()
    }

    /// Whether a request may ask this holder now.
    pub(super) fn admit<'a>(&'a self, holder: &'a Holder) -> Option<Request<'a>> {
        let mut breakers = self.breakers();
        let period = match breakers.get_mut(&holder.address) {
            None => 0,
            Some(breaker) => match breaker.admit(Instant::now()) {
                Some(period) => period,
                None => {
                    self.metrics.count_peer_skip(breaker.trouble);
                    return None;
                }
            },
        };
        Some(Request {
            health: self,
            holder,
            period,
        })
    }

    fn breakers(&self) -> MutexGuard<'_, HashMap<String, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request to a peer that may be asked. Tells how it goes; dropped without a word it has learnt nothing.
#[derive(Debug)]
pub(super) struct Request<'a> {
    health: &'a Health,
    holder: &'a Holder,
    period: u64,
}

impl Request<'_> {
    /// The peer answered something.
    pub(super) fn answered(&self) {
        let mut breakers = self.health.breakers();
        let Some(breaker) = breakers.get_mut(&self.holder.address) else {
            return;
        };
        if breaker.answered(self.period, Instant::now()) {
            info!(
                peer = self.holder.node,
                address = self.holder.address,
                "the peer answers again; it is asked as before"
            );
        }
    }

    /// The peer did not answer.
    pub(super) fn failed(&self, trouble: PeerTrouble, problem: &super::peer::Error) {
        let now = Instant::now();
        let mut breakers = self.health.breakers();
        let breaker = breakers
            .entry(self.holder.address.clone())
            .or_insert_with(|| Breaker::new(now));
        let was_open = breaker.state != State::Closed;
        let Some(skip) = breaker.failed(self.period, trouble, now, rand::random_range(0.5..1.0)) else {
            return;
        };
        if !was_open {
            warn!(
                peer = self.holder.node, address = self.holder.address, %problem, skip_ms = skip.as_millis(),
                "the peer does not answer; fetches go on without it, and one tries it again later"
            );
        }
        breakers.retain(|_, breaker| !breaker.is_forgotten(now));
        drop(breakers);
        self.health.opened.send_replace(());
    }

    /// Ends when another request finds that the peer does not answer.
    pub(super) async fn given_up_elsewhere(&self) {
        let mut opened = self.health.opened.subscribe();
        loop {
            opened.mark_unchanged();
            let over = self
                .health
                .breakers()
                .get(&self.holder.address)
                .is_some_and(|breaker| breaker.period != self.period);
            if over || opened.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if let Some(breaker) = self.health.breakers().get_mut(&self.holder.address) {
            breaker.abandoned(self.period, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PeerTrouble::{Broken, Silent};

    const MS: Duration = Duration::from_millis(1);

    /// Opens a breaker by silence, and says until when.
    fn open(breaker: &mut Breaker, now: Instant) -> Instant {
        let period = breaker.admit(now).expect("it is asked");
        now + breaker
            .failed(period, Silent, now, 1.0)
            .expect("silence opens it")
    }

    #[test]
    fn silence_opens_a_breaker_and_one_request_tries_again_when_its_time_is_over() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let until = open(&mut breaker, now);
        assert_eq!(until - now, FIRST_SKIP);
        assert_eq!(breaker.admit(until - MS), None);
        let probe = breaker.admit(until).expect("one tries");
        assert_eq!(breaker.admit(until), None, "the others do not");
        assert!(breaker.answered(probe, until + MS));
        assert!(breaker.admit(until + MS).is_some());
    }

    #[test]
    fn each_try_in_vain_doubles_the_time_up_to_a_limit_and_jitter_shortens_it() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        let mut skips = Vec::new();
        for _ in 0..7 {
            let until = open(&mut breaker, now);
            skips.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(skips, [2, 4, 8, 16, 30, 30, 30]);
        let period = breaker.admit(now).expect("it is asked");
        assert_eq!(breaker.failed(period, Silent, now, 0.5), Some(LONGEST_SKIP / 2));
    }

    #[test]
    fn requests_that_waited_together_count_once() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let periods = [breaker.admit(now), breaker.admit(now), breaker.admit(now)];
        let opened = periods.map(|period| breaker.failed(period.expect("it is asked"), Silent, now, 1.0));
        assert_eq!(opened, [Some(FIRST_SKIP), None, None]);
        // Nor does what one of them hears late close it.
        assert!(!breaker.answered(periods[1].expect("it was asked"), now));
        assert!(breaker.is_skipped(now));
    }

    #[test]
    fn failures_without_a_wait_open_it_only_if_nothing_else_comes() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let fail = |breaker: &mut Breaker| {
            let period = breaker.admit(now).expect("it is asked");
            breaker.failed(period, Broken, now, 1.0)
        };
        assert_eq!((fail(&mut breaker), fail(&mut breaker)), (None, None));
        let period = breaker.admit(now).expect("it is asked");
        assert!(!breaker.answered(period, now), "it was not open");
        assert_eq!((fail(&mut breaker), fail(&mut breaker)), (None, None));
        assert_eq!(fail(&mut breaker), Some(FIRST_SKIP));
    }

    #[test]
    fn a_peer_that_answers_only_now_and_then_is_left_out_longer_each_time_and_a_healed_one_starts_anew() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        for expected in [FIRST_SKIP, FIRST_SKIP * 2, FIRST_SKIP * 4] {
            let until = open(&mut breaker, now);
            assert_eq!(until - now, expected);
            now = until;
            let probe = breaker.admit(now).expect("one tries");
            assert!(breaker.answered(probe, now));
        }
        now += FORGET_AFTER;
        assert_eq!(open(&mut breaker, now) - now, FIRST_SKIP);
    }

    #[test]
    fn a_try_that_ends_without_a_word_leaves_its_place_to_the_next() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let until = open(&mut breaker, now);
        let probe = breaker.admit(until).expect("one tries");
        breaker.abandoned(probe, until);
        assert!(breaker.admit(until).is_some());
    }

    #[test]
    fn what_is_long_over_is_forgotten() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let until = open(&mut breaker, now);
        assert!(!breaker.is_forgotten(until));
        assert!(
            breaker.is_forgotten(until + FORGET_AFTER),
            "nobody asks for it: it has left"
        );
        let probe = breaker.admit(until).expect("one tries");
        assert!(!breaker.is_forgotten(until + FORGET_AFTER));
        breaker.answered(probe, until);
        assert!(!breaker.is_forgotten(until));
        assert!(breaker.is_forgotten(until + FORGET_AFTER));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_peer_goes_on_when_another_finds_it_silent() {
        let health = Health::new(Metrics::default());
        let [peer, other] = [Holder::at("10.0.0.1:7001"), Holder::at("10.0.0.2:7001")];
        let finder = health.admit(&peer).expect("nothing is known of it");
        let waiter = health.admit(&peer).expect("nothing is known of it");
        let elsewhere = health.admit(&other).expect("nothing is known of it");
        let problem = super::super::peer::Error::Timeout(200 * MS);
        tokio::join!(waiter.given_up_elsewhere(), async {
            finder.failed(Silent, &problem);
        });
        let undisturbed = tokio::time::timeout(FORGET_AFTER, elsewhere.given_up_elsewhere());
        assert!(undisturbed.await.is_err(), "the other peer is well");
        let now = health.admit(&peer);
        assert!(now.is_some(), "its time is over by now");
        assert!(health.admit(&peer).is_none() && health.skips(&peer));
        assert_eq!(health.skipped_now(), 1);
        now.expect("one tries").answered();
        assert_eq!(health.skipped_now(), 0);
        elsewhere.failed(Silent, &problem);
        tokio::time::advance(LONGEST_SKIP + FORGET_AFTER).await;
        health.admit(&peer).expect("it is well").failed(Silent, &problem);
        assert_eq!(
            health.breakers().len(),
            1,
            "who is not asked any more is forgotten"
        );
    }
}
