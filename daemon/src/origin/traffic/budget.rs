//! How many requests a store gets beyond those that were asked for: retries and hedges. Pure; callers pass the time.
//!
//! Every request that is asked for earns a fraction of one more. Without such a bound an origin that fails a part of its
//! requests gets several times its load just then: gRPC (proposal A6), the AWS SDKs (standard retry mode) and Finagle
//! (`RetryBudget`) throttle retries in this way.

use std::time::Duration;

use tokio::time::Instant;

/// Thousandths of a request: sums of tenths stay exact.
const ONE: u32 = 1000;
/// What a quiet daemon may always spend: three requests with three retries each. Finagle grants as much every second.
pub(super) const RESERVE: u32 = 10;
/// How soon one of the reserve comes back while requests earn less than that: a lasting fault of a store that is hardly
/// used costs it at most one more request a second, until its breaker opens.
const ONE_BACK: Duration = Duration::from_secs(1);
/// The most that is saved up for bad times, as many retries as the AWS SDKs save (500 tokens, 5 a retry).
const MOST: u32 = 100;
/// Of ten requests' earnings one more can be sent.
pub(super) const RETRY_PERCENT: u32 = 10;
/// Hedges alone get no more than half of that, so that they leave retries their share.
pub(super) const HEDGE_PERCENT: u32 = 5;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Budget {
    /// In thousandths, all three.
    level: u32,
    earned_lately: u32,
    hedges: u32,
    since: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            level: RESERVE * ONE,
            earned_lately: 0,
            hedges: 0,
            since: now,
        }
    }

    /// A request was asked for.
    pub(super) fn earn(&mut self, now: Instant) {
        self.refill(now);
        let earned = ONE * RETRY_PERCENT / 100;
        self.level = (self.level + earned).min(MOST * ONE);
        self.hedges = (self.hedges + ONE * HEDGE_PERCENT / 100).min(MOST * ONE);
        self.earned_lately = self.earned_lately.saturating_add(earned);
    }

    /// Whether one more may be sent because one failed; if so, it is paid for.
    pub(super) fn spend_on_retry(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.level < ONE {
            return false;
        }
        self.level -= ONE;
        true
    }

    /// Whether one more may be sent because one is slow; if so, it is paid for. The reserve is for failures.
    pub(super) fn spend_on_hedge(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.hedges < ONE || self.level < (RESERVE + 1) * ONE {
            return false;
        }
        self.hedges -= ONE;
        self.level -= ONE;
        true
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < ONE_BACK {
            return;
        }
        let granted = u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX).min(RESERVE) * ONE;
        let missing = (RESERVE * ONE).saturating_sub(self.level);
        self.level += granted.saturating_sub(self.earned_lately).min(missing);
        self.earned_lately = 0;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(budget: &mut Budget, now: Instant) -> u32 {
        std::iter::from_fn(|| budget.spend_on_retry(now).then_some(())).count() as u32
    }

    #[test]
    fn a_tenth_of_the_requests_may_be_sent_again_however_many_fail() {
        let mut now = Instant::now();
        let mut budget = Budget::new(now);
        let mut spent = 0;
        for _ in 0..10_000 {
            now += Duration::from_millis(1);
            budget.earn(now);
            spent += spend_all(&mut budget, now);
        }
        assert_eq!(spent, RESERVE + 1000);
    }

    #[test]
    fn a_quiet_daemon_can_always_try_again_and_not_without_end() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert_eq!(spend_all(&mut budget, start), RESERVE);
        assert_eq!(spend_all(&mut budget, start + ONE_BACK / 2), 0);
        assert_eq!(spend_all(&mut budget, start + ONE_BACK), 1);
        assert_eq!(
            spend_all(&mut budget, start + Duration::from_hours(1)),
            RESERVE,
            "an hour of nothing saves up no more than the reserve"
        );
    }

    #[test]
    fn good_times_are_saved_up_for_bad_ones_to_a_limit() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        (0..100_000).for_each(|_| budget.earn(now));
        assert_eq!(spend_all(&mut budget, now), MOST);
    }

    #[test]
    fn hedges_are_a_twentieth_of_the_requests_and_leave_the_reserve_to_retries() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        assert!(!budget.spend_on_hedge(now), "nothing is earned yet");
        let mut hedges = 0;
        for _ in 0..1000 {
            budget.earn(now);
            hedges += u32::from(budget.spend_on_hedge(now));
        }
        assert_eq!(hedges, 50);
        (0..1000).for_each(|_| budget.earn(now));
        while budget.spend_on_hedge(now) {}
        assert!(spend_all(&mut budget, now) >= RESERVE);
    }
}
