//! How long a caller waits, all in all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::error::Error;

/// A client's request timeout: changed at any time, for what is begun from then on.
#[derive(Debug)]
pub(crate) struct RequestTimeout(AtomicU64);

impl RequestTimeout {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self(AtomicU64::new(nanoseconds(timeout)))
    }

    pub(crate) fn set(&self, timeout: Duration) {
        self.0.store(nanoseconds(timeout), Ordering::Relaxed);
    }

    /// Something begins that may take this long.
    pub(crate) fn begin(&self) -> Deadline {
        Deadline::after(Duration::from_nanos(self.0.load(Ordering::Relaxed)))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// When a caller stops waiting, whatever it waits for by then: a lock, a connection, an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    began: Instant,
    patience: Duration,
}

impl Deadline {
    pub(crate) fn after(patience: Duration) -> Self {
        Self {
            began: Instant::now(),
            patience,
        }
    }

    /// How much time is left.
    pub(crate) fn left(self) -> Duration {
        self.patience.saturating_sub(self.began.elapsed())
    }

    /// The error of a caller that has waited until now.
    pub(crate) fn missed(self, operation: &'static str) -> Error {
        Error::Timeout {
            operation,
            after: self.patience,
        }
    }

    pub(crate) fn began(self) -> Instant {
        self.began
    }

    /// Locks a mutex whose holders keep to deadlines of their own. Who gets it too late gives it to the next at once,
    /// so that a queue of waiters takes no longer than one of them.
    pub(crate) fn lock<'mutex, T>(
        self,
        mutex: &'mutex Mutex<T>,
        operation: &'static str,
    ) -> Result<MutexGuard<'mutex, T>, Error> {
        match mutex.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
        let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        if self.left() == Duration::ZERO {
            return Err(self.missed(operation));
        }
        Ok(guard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_timeout_counts_for_what_begins_afterwards() {
        let timeout = RequestTimeout::new(Duration::from_hours(1));
        let before = timeout.begin();
        timeout.set(Duration::ZERO);
        assert!(before.left() > Duration::from_mins(59));
        assert_eq!(timeout.begin().left(), Duration::ZERO);
        timeout.set(Duration::MAX);
        assert!(timeout.begin().left() > Duration::from_hours(1));
    }

    #[test]
    fn a_lock_that_comes_too_late_is_given_on() {
        let mutex = Mutex::new(());
        let waiters: Vec<Result<(), Error>> = std::thread::scope(|scope| {
            let held = mutex.lock().unwrap();
            let wait = || {
                let deadline = Deadline::after(Duration::from_millis(1));
                deadline.lock(&mutex, "waiting").map(drop)
            };
            let waiters: Vec<_> = (0..4).map(|_| scope.spawn(wait)).collect();
            let deadline = Instant::now() + Duration::from_millis(20);
            while Instant::now() < deadline {
                std::thread::yield_now();
            }
            drop(held);
            waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect()
        });
        // A thread that came after the lock was free has it; whoever waited for it has an error.
        for waiter in waiters {
            assert!(matches!(
                waiter,
                Ok(())
                    | Err(Error::Timeout {
                        operation: "waiting",
                        ..
                    })
            ));
        }
        assert!(
            Deadline::after(Duration::ZERO)
                .lock(&mutex, "a free lock")
                .is_ok()
        );
    }
}
