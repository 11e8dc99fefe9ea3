//! Whether a request that failed is sent again, and when. The only place that decides it; what it costs a store in all
//! is [`budget`](super::budget)'s. Pure; callers pass time and chance.

use std::time::Duration;

use tokio::time::Instant;

use crate::origin::Error;

/// The longest pause before the first retry; it doubles with each. A pause is a random part of it ("full jitter",
/// Amazon's builders' library): who failed together does not come back together.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// The same for a store that asks for fewer requests; the AWS SDKs wait as long.
const FIRST_BACKOFF_WHEN_THROTTLED: Duration = Duration::from_millis(500);
/// Readers wait meanwhile.
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// How a store's requests are retried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) max_retries: u32,
    /// No retry begins later than this after the request did.
    pub(super) timeout: Duration,
}

/// Why an attempt gave nothing.
#[derive(Debug)]
pub(in crate::origin) struct Failure {
    pub(in crate::origin) error: Error,
    /// The reply says that it is a success, and is no answer to the request.
    pub(in crate::origin) is_wrong_reply: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            is_wrong_reply: false,
        }
    }
}

/// One request's retries.
#[derive(Debug)]
pub(in crate::origin) struct Retries {
    policy: Policy,
    begun: Instant,
    failures: u32,
    /// A wrong reply was answered by asking once more.
    asked_again: bool,
    /// Wrong replies that were another generation's.
    other_generations: u32,
}

impl Retries {
    pub(super) fn new(policy: Policy, now: Instant) -> Self {
        Self {
            policy,
            begun: now,
            failures: 0,
            asked_again: false,
            other_generations: 0,
        }
    }

    /// How long to wait before sending it again; `None`: the failure is the answer. `chance` is between 0 and 1.
    pub(super) fn pause(&mut self, failure: &Failure, now: Instant, chance: f64) -> Option<Duration> {
        // It says nothing about the object, it may be a mix-up of something in between: the store gets a second chance.
        if failure.is_wrong_reply {
            self.other_generations += u32::from(matches!(failure.error, Error::Changed { .. }));
            return (!std::mem::replace(&mut self.asked_again, true)).then_some(Duration::ZERO);
        }
        // Credentials are refreshed at a pace of their own.
        let passes = failure.error.is_retryable() && !matches!(failure.error, Error::Credentials { .. });
        if !passes || self.failures >= self.policy.max_retries {
            return None;
        }
        let first = match failure.error {
            Error::Throttled { .. } => FIRST_BACKOFF_WHEN_THROTTLED,
            _ => FIRST_BACKOFF,
        };
        let backoff = first
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST_BACKOFF);
        let pause = failure.error.retry_after().unwrap_or_default() + backoff.mul_f64(chance);
        let in_time = now.saturating_duration_since(self.begun) + pause <= self.policy.timeout;
        in_time.then(|| {
            self.failures += 1;
            pause
        })
    }

    /// What readers are told of a failure that is not retried.
    pub(super) fn verdict(&self, failure: Failure) -> Error {
        match failure.error {
            // Final for readers: not on the word of a single reply that should not have come at all.
            Error::Changed { path } if failure.is_wrong_reply && self.other_generations < 2 => {
                Error::BadReply {
                    endpoint: path.to_string().into(),
                    reason: "its etag or size is not that of the generation asked for".into(),
                }
            }
            error => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        max_retries: 3,
        timeout: Duration::from_secs(20),
    };

    fn failure(error: Error) -> Failure {
        error.into()
    }

    fn throttled(retry_after: Option<u64>) -> Failure {
        failure(Error::Throttled {
            endpoint: "e".into(),
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    fn timeout() -> Failure {
        failure(Error::Timeout { endpoint: "e".into() })
    }

    fn changed() -> Error {
        Error::Changed {
            path: "s3://b/k".parse().unwrap(),
        }
    }

    #[test]
    fn pauses_double_are_a_random_part_of_that_and_come_to_an_end() {
        let now = Instant::now();
        let pauses = |failure: &dyn Fn() -> Failure, chance: f64, policy: Policy| {
            let mut retries = Retries::new(policy, now);
            std::iter::from_fn(|| {
                retries
                    .pause(&failure(), now, chance)
                    .map(|pause| pause.as_millis())
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(pauses(&timeout, 1.0, POLICY), [50, 100, 200]);
        assert_eq!(pauses(&timeout, 0.5, POLICY), [25, 50, 100]);
        assert_eq!(pauses(&timeout, 0.0, POLICY), [0, 0, 0]);
        let patient = Policy {
            max_retries: 8,
            ..POLICY
        };
        assert_eq!(
            pauses(&timeout, 1.0, patient),
            [50, 100, 200, 400, 800, 1600, 2000, 2000]
        );
        assert_eq!(pauses(&|| throttled(None), 1.0, POLICY), [500, 1000, 2000]);
    }

    #[test]
    fn a_store_that_says_how_long_to_wait_is_given_that_long_or_not_asked_again() {
        let now = Instant::now();
        let mut retries = Retries::new(POLICY, now);
        let pause = retries.pause(&throttled(Some(7)), now, 0.5);
        assert_eq!(pause, Some(Duration::from_millis(7250)));
        assert_eq!(retries.pause(&throttled(Some(30)), now, 0.5), None);
        let later = now + Duration::from_millis(19_990);
        assert_eq!(
            retries.pause(&timeout(), later, 1.0),
            None,
            "no retry begins after 20 s"
        );
    }

    #[test]
    fn what_would_not_pass_is_not_sent_again() {
        let now = Instant::now();
        let mut retries = Retries::new(POLICY, now);
        let credentials = Error::Credentials {
            store: "s".into(),
            reason: "r".into(),
        };
        for error in [changed(), credentials] {
            assert_eq!(retries.pause(&failure(error), now, 1.0), None);
        }
    }

    #[test]
    fn an_object_has_changed_only_on_the_word_of_two_wrong_replies_or_of_the_store_itself() {
        let now = Instant::now();
        let wrong = || Failure {
            error: changed(),
            is_wrong_reply: true,
        };
        let nonsense = || Failure {
            error: Error::BadReply {
                endpoint: "e".into(),
                reason: "r".into(),
            },
            is_wrong_reply: true,
        };
        let mut retries = Retries::new(POLICY, now);
        assert_eq!(retries.verdict(failure(changed())).code(), "changed");
        assert_eq!(retries.pause(&wrong(), now, 1.0), Some(Duration::ZERO));
        // As when the budget allows no second request.
        assert_eq!(retries.verdict(wrong()).code(), "bad_reply");
        assert_eq!(retries.pause(&wrong(), now, 1.0), None);
        assert_eq!(retries.verdict(wrong()).code(), "changed");
        let mut retries = Retries::new(POLICY, now);
        assert_eq!(retries.pause(&nonsense(), now, 1.0), Some(Duration::ZERO));
        assert_eq!(retries.pause(&wrong(), now, 1.0), None);
        assert_eq!(retries.verdict(wrong()).code(), "bad_reply");
    }
}
