//! How late the first byte of a store's replies usually is. Pure.

use std::time::Duration;

/// Replies that the estimate looks back on: enough for a 95th percentile of a dozen late ones, and soon over when the
/// store's pace changes.
const WINDOW: usize = 256;
/// Below this many an estimate of the 95th percentile rests on two or three replies.
const LEAST: usize = 50;
/// How many replies come between two estimates.
const EVERY: usize = 16;
/// No reply is late before this: a page takes as long to arrive (1 MiB at 90 MB/s), and a busy machine's scheduler
/// makes such delays by itself.
const SHORTEST: Duration = Duration::from_millis(10);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct FirstBytes {
    recent: Vec<Duration>,
    next: usize,
    since_estimate: usize,
    late_after: Option<Duration>,
}

impl FirstBytes {
    /// A right reply has begun after this time.
    pub(super) fn add(&mut self, took: Duration) {
        if self.recent.len() < WINDOW {
            self.recent.push(took);
        } else {
            self.recent[self.next] = took;
            self.next = (self.next + 1) % WINDOW;
        }
        self.since_estimate += 1;
        if self.recent.len() >= LEAST && (self.since_estimate >= EVERY || self.late_after.is_none()) {
            self.since_estimate = 0;
            self.late_after = Some(percentile_95(&self.recent).max(SHORTEST));
        }
    }

    /// When a reply is later than 95 of 100; `None` while too few are known.
    pub(super) fn late_after(&self) -> Option<Duration> {
        self.late_after
    }
}

fn percentile_95(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    let place = times.len() * 95 / 100;
    *times.select_nth_unstable(place).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_late_until_fifty_replies_are_known() {
        let mut first_bytes = FirstBytes::default();
        for nth in 1..=LEAST {
            assert_eq!(first_bytes.late_after(), None);
            first_bytes.add(MS * nth as u32 * 10);
        }
        assert_eq!(first_bytes.late_after(), Some(MS * 480));
    }

    #[test]
    fn the_estimate_follows_the_store_and_stays_above_what_a_page_takes() {
        let mut first_bytes = FirstBytes::default();
        (0..1000).for_each(|nth| first_bytes.add(if nth % 10 == 0 { MS * 300 } else { MS * 30 }));
        assert_eq!(
            first_bytes.late_after(),
            Some(MS * 300),
            "one in ten is no outlier"
        );
        (0..WINDOW + EVERY).for_each(|nth| first_bytes.add(if nth % 50 == 0 { MS * 300 } else { MS * 30 }));
        assert_eq!(first_bytes.late_after(), Some(MS * 30), "one in fifty is");
        (0..WINDOW + EVERY).for_each(|_| first_bytes.add(MS));
        assert_eq!(first_bytes.late_after(), Some(SHORTEST));
    }
}
