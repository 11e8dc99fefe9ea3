//! Waiting for something to become true: the only place of the tests that sleeps.

use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Lets time pass before a fault that may come at any moment, or that has to last for a while. Never a way to wait for something.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Polls `condition` until it holds, and panics with `what` when it does not within `deadline`.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(
        poll(deadline, &mut condition),
        "waited {deadline:?} in vain until {what}"
    );
}

/// Polls `condition` until it holds; false if it does not within `deadline`. It is asked at least once.
pub(crate) fn poll(deadline: Duration, condition: &mut dyn FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
