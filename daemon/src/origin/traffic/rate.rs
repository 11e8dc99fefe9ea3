//! A rate that is kept on average: whoever is let in may take more than is left, and the next one waits until that is
//! made up for. So a request need not know in advance when its bytes come. Pure; callers pass the time.

use std::time::Duration;

use tokio::time::Instant;

/// How long a rate may go unused and be made up for later. Stores and networks that count do so by the second: a tenth
/// of that shows in no limit of theirs.
const SAVED: Duration = Duration::from_millis(100);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    /// When everything that was taken is made up for.
    paid_at: Instant,
}

impl Rate {
    pub(super) fn new(per_second: u64, now: Instant) -> Self {
        Self {
            per_second: per_second.max(1) as f64,
            paid_at: now,
        }
    }

    /// When the next one may be let in, if that is not now.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        (self.paid_at > now).then_some(self.paid_at)
    }

    /// Somebody was let in who takes so much.
    pub(super) fn take(&mut self, amount: u64, now: Instant) {
        let earliest = now.checked_sub(SAVED).unwrap_or(now);
        self.paid_at = self.paid_at.max(earliest) + Duration::from_secs_f64(amount as f64 / self.per_second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_on_average_however_large_a_piece_is() {
        let start = Instant::now();
        let mut now = start;
        let mut rate = Rate::new(1000, now);
        for _ in 0..20 {
            if let Some(until) = rate.wait_until(now) {
                now = until;
            }
            rate.take(5000, now);
        }
        // The last one is let in when the 19 before it are paid for.
        let expected = Duration::from_secs(5) * 19;
        let off = (now - start).abs_diff(expected);
        assert!(off < Duration::from_millis(1), "{off:?}");
    }

    #[test]
    fn an_hour_of_nothing_saves_up_a_tenth_of_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(100, start);
        let now = start + Duration::from_hours(1);
        let mut let_in = 0;
        while rate.wait_until(now).is_none() {
            rate.take(1, now);
            let_in += 1;
        }
        assert_eq!(let_in, 11, "ten saved, and one who is waited for");
    }
}
