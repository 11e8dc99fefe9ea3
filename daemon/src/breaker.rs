//! Whether to ask somebody who may hang: a circuit breaker.
//!
//! Somebody who hangs costs who asks the whole patience, and would cost every request the same again. So requests that get
//! no answer open the breaker, the first one or the last of many as the [`Rule`] says, and nobody asks for a while. After
//! that one request tries again: an answer, whatever it says, closes the breaker; silence opens it for twice as long.
//!
//! A state machine without a clock or I/O: callers pass the time.

use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Trouble;

/// How long somebody is left out first: long beside what a try costs (200 ms), short beside a lease (10 s), after which the
/// locality service names a hung worker no more.
const FIRST_SKIP: Duration = Duration::from_secs(2);
/// How long at most, and so how soon somebody who answers again is asked.
pub(crate) const LONGEST_SKIP: Duration = Duration::from_secs(30);
/// Who was well for this long starts anew; who was left out for this long and not asked again has left.
pub(crate) const FORGET_AFTER: Duration = Duration::from_mins(1);

/// What opens a breaker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Whether a single request without an answer does.
    silence_suffices: bool,
    /// Failures that do if nothing but them comes,
    failures: u32,
    /// and if that has been so for this long.
    lasting: Duration,
}

impl Rule {
    /// For somebody without whom things go on nearly as well. Three failures without a wait, such as refused connections.
    pub(crate) const ONE_OF_SEVERAL: Self = Self {
        silence_suffices: true,
        failures: 3,
        lasting: Duration::ZERO,
    };
    /// For a store: what it does not give, nobody else here has. Of requests half of which fail by chance, ten in a row
    /// fail once in a thousand times; a second is longer than a load balancer takes to put aside a server that died.
    pub(crate) const THE_ONLY_ONE: Self = Self {
        silence_suffices: false,
        failures: 10,
        lasting: Duration::from_secs(1),
    };
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Breaker {
    rule: Rule,
    state: State,
    /// Grows whenever what earlier requests tell becomes worthless.
    period: u64,
    since: Instant,
    failures: u32,
    /// When the first of them came.
    failing_since: Instant,
    openings: u32,
    trouble: Trouble,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing,
}

impl Breaker {
    pub(crate) fn new(rule: Rule, now: Instant) -> Self {
        Self {
            rule,
            state: State::Closed,
            period: 0,
            since: now,
            failures: 0,
            failing_since: now,
            openings: 0,
            trouble: Trouble::Silent,
        }
    }

    /// Whether nobody may ask now.
    pub(crate) fn is_skipped(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => false,
            State::Open { until } => now < until,
            // One that never tells, because its task is gone, holds the place for so long only.
            State::Probing => now < self.since + LONGEST_SKIP,
        }
    }

    /// Whether a request may ask now; if so, its period. It tells how that went.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.is_skipped(now) {
            return None;
        }
        if self.is_open() {
            self.state = State::Probing;
            self.since = now;
            self.period += 1;
        }
        Some(self.period)
    }

    /// A request was answered. Says whether that closed the breaker.
    pub(crate) fn answered(&mut self, period: u64, now: Instant) -> bool {
        if self.is_over(period) {
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

    /// A request was not answered. Says for how long nobody may ask, if that opened the breaker. `jitter` is
    /// between 0.5 and 1.
    pub(crate) fn failed(
        &mut self,
        period: u64,
        trouble: Trouble,
        now: Instant,
        jitter: f64,
    ) -> Option<Duration> {
        if self.is_over(period) {
            return None;
        }
        if self.failures == 0 {
            self.failing_since = now;
        }
        self.failures += 1;
        let Rule {
            silence_suffices,
            failures,
            lasting,
        } = self.rule;
        let nothing_else = self.failures >= failures && now - self.failing_since >= lasting;
        let silent = silence_suffices && trouble == Trouble::Silent;
        if !(self.state == State::Probing || silent || nothing_else) {
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
    pub(crate) fn abandoned(&mut self, period: u64, now: Instant) {
        if period == self.period && self.state == State::Probing {
            self.state = State::Open { until: now };
        }
    }

    /// What went wrong last.
    pub(crate) fn trouble(&self) -> Trouble {
        self.trouble
    }

    /// Whether it is open, a try under way included.
    pub(crate) fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// Whether what an admitted request tells is worthless by now: others found out first.
    pub(crate) fn is_over(&self, period: u64) -> bool {
        period != self.period
    }

    /// Whether it need not be kept.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        let last = match self.state {
            State::Closed | State::Probing => self.since,
            State::Open { until } => until,
        };
        now.saturating_duration_since(last) >= FORGET_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Trouble::{Broken, Silent};

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
        let mut breaker = Breaker::new(Rule::ONE_OF_SEVERAL, now);
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
        let mut breaker = Breaker::new(Rule::ONE_OF_SEVERAL, now);
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
        let mut breaker = Breaker::new(Rule::ONE_OF_SEVERAL, now);
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
        let mut breaker = Breaker::new(Rule::ONE_OF_SEVERAL, now);
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
    fn a_store_is_left_out_only_when_nothing_but_failures_has_come_for_a_while() {
        let start = Instant::now();
        let rule = Rule::THE_ONLY_ONE;
        let mut breaker = Breaker::new(rule, start);
        let fail = |breaker: &mut Breaker, now: Instant| {
            let period = breaker.admit(now).expect("it is asked");
            breaker.failed(period, Silent, now, 1.0)
        };
        // However many fail together, a moment is not an outage.
        assert!((0..100).all(|_| fail(&mut breaker, start).is_none()));
        let period = breaker.admit(start).expect("it is asked");
        breaker.answered(period, start);
        // Nor are a few failures, however far apart.
        let mut now = start;
        for _ in 1..rule.failures {
            now += Duration::from_mins(1);
            assert_eq!(fail(&mut breaker, now), None);
        }
        assert_eq!(fail(&mut breaker, now), Some(FIRST_SKIP));
        assert_eq!(breaker.admit(now), None);
        now += FIRST_SKIP;
        assert_eq!(
            fail(&mut breaker, now),
            Some(FIRST_SKIP * 2),
            "one try in vain is enough then"
        );
    }

    #[test]
    fn a_peer_that_answers_only_now_and_then_is_left_out_longer_each_time_and_a_healed_one_starts_anew() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(Rule::ONE_OF_SEVERAL, now);
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
        let mut breaker = Breaker::new(Rule::ONE_OF_SEVERAL, now);
        let until = open(&mut breaker, now);
        let probe = breaker.admit(until).expect("one tries");
        breaker.abandoned(probe, until);
        assert!(breaker.admit(until).is_some());
        assert!(!breaker.is_skipped(until + LONGEST_SKIP), "this one is gone");
        assert!(breaker.admit(until + LONGEST_SKIP).is_some());
    }

    #[test]
    fn what_is_long_over_is_forgotten() {
        let now = Instant::now();
        let mut breaker = Breaker::new(Rule::ONE_OF_SEVERAL, now);
        let until = open(&mut breaker, now);
        assert!(!breaker.is_forgotten(until));
        assert!(
            breaker.is_forgotten(until + FORGET_AFTER),
            "nobody asks for it: it has left"
        );
        let probe = breaker.admit(until).expect("one tries");
        assert!(
            !breaker.is_forgotten(until + LONGEST_SKIP),
            "the try may still tell"
        );
        breaker.answered(probe, until);
        assert!(!breaker.is_forgotten(until));
        assert!(breaker.is_forgotten(until + FORGET_AFTER));
    }
}
