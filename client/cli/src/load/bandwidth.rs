//! A token bucket over what is asked for: whoever takes bytes waits until the rate allows for those before.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Bandwidth {
    bytes_per_second: Option<u64>,
    /// When what was taken so far is paid for.
    paid_at: Mutex<Instant>,
}

impl Bandwidth {
    /// So many bytes a second; `None`: as many as there are.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            paid_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes bytes, and says how long to wait before they may be asked for. Nothing is saved up while nobody takes.
    pub(super) fn take(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else {
            return Duration::ZERO;
        };
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*paid_at).max(now);
        *paid_at = begin + Duration::from_secs_f64(bytes as f64 / rate as f64);
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_paid_for_by_those_who_come_later() {
        let now = Instant::now();
        let bandwidth = Bandwidth::new(Some(1000));
        let second = Duration::from_secs(1);
        let later = now + 10 * second;
        assert_eq!(bandwidth.take(2000, later), Duration::ZERO);
        assert_eq!(bandwidth.take(500, later), 2 * second);
        assert_eq!(bandwidth.take(500, later + second), second + second / 2);
        // Idle time is not saved up.
        assert_eq!(bandwidth.take(1000, later + 60 * second), Duration::ZERO);
        assert_eq!(bandwidth.take(1, later + 60 * second), second);
        assert_eq!(Bandwidth::new(None).take(u64::MAX, now), Duration::ZERO);
    }
}
