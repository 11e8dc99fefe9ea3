//! One store's traffic: who asks it when, how often one request is sent, and when it is left alone.
//!
//! Every request goes through [`Traffic::ask`], and so through all of this:
//!
//! * **Breaker**: a store that fails every request is left out for a while; its readers get the typed error at once.
//! * **Slots**: so many requests at a time as the store bears, at most at the configured rates, demand before readahead
//!   ([`slots`]).
//! * **Retries**: what passes is sent again after a random pause ([`retry`]). The libraries beneath retry nothing.
//! * **Hedges**: a reply later than 95 of 100 is asked for a second time, and the first to come is used.
//! * **Budget**: retries and hedges together are at most a tenth of the requests asked for ([`budget`]).
//!
//! A request has its slot until its reply is read to the end, its pauses between attempts before the first byte excepted.

mod budget;
mod latency;
mod rate;
mod retry;
mod slots;
mod urgency;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{Error, StoreConfig};
use crate::breaker::{Breaker, Rule};
use crate::metrics::{Metrics, StoreLabels, Trouble};

pub(super) use retry::{Failure, Retries};
pub use urgency::Urgency;

use budget::Budget;
use latency::FirstBytes;
use rate::Rate;
use retry::Policy;
use slots::{Counts, Rates, SentAway, Slot, Slots};

/// How a store is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrafficStatus {
    /// Requests under way.
    pub in_flight: u32,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Of these, those that a reader waits for.
    pub demands_waiting: usize,
    /// How many may be under way now.
    pub limit: u32,
    /// What is wrong with it, if it is left out.
    pub left_out: Option<Trouble>,
    /// A reply later than this is asked for a second time; `None` while too few are known.
    pub late_after: Option<Duration>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Traffic {
    endpoint: Box<str>,
    slots: Arc<Slots>,
    state: Mutex<State>,
    policy: Policy,
    hedging: bool,
    metrics: Metrics,
    labels: StoreLabels,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    budget: Budget,
    first_bytes: FirstBytes,
}

/// What an error says of the store as a whole.
enum Sign {
    /// It answers.
    Answers,
    /// It fails.
    Fails(Trouble),
    /// It has more to do than it can.
    Overloaded(Trouble),
    /// It was not asked.
    Nothing,
}

impl Sign {
    fn of(error: &Error) -> Self {
        match error {
            Error::NotFound { .. }
            | Error::PermissionDenied { .. }
            | Error::Changed { .. }
            | Error::BadReply { .. } => Self::Answers,
            Error::Unavailable { .. } => Self::Fails(Trouble::Broken),
            Error::Throttled { .. } => Self::Overloaded(Trouble::Broken),
            Error::Timeout { .. } => Self::Overloaded(Trouble::Silent),
            Error::UnsupportedKey { .. }
            | Error::NotCacheable { .. }
            | Error::InvalidRange { .. }
            | Error::NotServed { .. }
            | Error::LeftOut { .. }
            | Error::Credentials { .. }
            | Error::Config(_) => Self::Nothing,
        }
    }
}

impl Traffic {
    /// The traffic of the store that `endpoint` describes.
    pub(super) fn new(
        config: &StoreConfig,
        endpoint: Box<str>,
        hedging: bool,
        metrics: Metrics,
    ) -> Arc<Self> {
        let now = Instant::now();
        let rates = Rates {
            requests: config
                .max_requests_per_second
                .map(|most| Rate::new(u64::from(most), now)),
            bytes: config.max_bandwidth.map(|most| Rate::new(most.as_u64(), now)),
        };
        let state = State {
            breaker: Breaker::new(Rule::THE_ONLY_ONE, now),
            budget: Budget::new(now),
            first_bytes: FirstBytes::default(),
        };
        Arc::new(Self {
            endpoint,
            slots: Slots::new(config.max_concurrent_requests, rates),
            state: Mutex::new(state),
            policy: Policy {
                max_retries: config.max_retries,
                timeout: config.retry_timeout,
            },
            hedging: hedging && config.hedging,
            metrics,
            labels: StoreLabels {
                store: config.name.clone(),
            },
        })
    }

    /// Sends a request until it is answered or its retries are used up. It is going to bring so many bytes, and holds
    /// its [`Turn`] until they are there.
    pub(super) async fn ask<T, F>(
        self: &Arc<Self>,
        urgency: &Urgency,
        bytes: u64,
        send: impl Fn() -> F,
    ) -> Result<(T, Turn, Retries), Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let now = Instant::now();
        let mut retries = Retries::new(self.policy, now);
        self.state().budget.earn(now);
        let mut last = None;
        loop {
            let failure = match self.attempt(urgency, bytes, &send).await {
                Ok((reply, turn)) => return Ok((reply, turn, retries)),
                Err(failure) => failure,
            };
            // That it was left out meanwhile is no news to who has seen it fail.
            if let Error::LeftOut { .. } = failure.error
                && let Some(earlier) = last
            {
                return Err(earlier);
            }
            match self.pause(&mut retries, &failure) {
                Some(pause) => sleep(pause).await,
                None => return Err(retries.verdict(failure)),
            }
            last = Some(retries.verdict(failure));
        }
    }

    /// Sends the rest of a request whose reply broke off, in the turn that it has.
    pub(super) async fn resume<T, F>(
        &self,
        turn: &Turn,
        retries: &mut Retries,
        mut failure: Failure,
        bytes: u64,
        send: impl Fn() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        loop {
            let now = Instant::now();
            let pause = (!self.is_left_out(now))
                .then(|| self.pause(retries, &failure))
                .flatten();
            let Some(pause) = pause else {
                return Err(retries.verdict(failure));
            };
            sleep(pause).await;
            self.slots.again(bytes, Instant::now());
            self.count_request();
            match send().await {
                Ok(reply) => return Ok(reply),
                Err(next) => {
                    turn.failed(&next.error);
                    failure = next;
                }
            }
        }
    }

    /// How the store is doing.
    pub(super) fn status(&self) -> TrafficStatus {
        let Counts {
            in_flight,
            waiting,
            demands_waiting,
            limit,
        } = self.slots.counts();
        let state = self.state();
        TrafficStatus {
            in_flight,
            waiting,
            demands_waiting,
            limit,
            left_out: state.breaker.is_open().then(|| state.breaker.trouble()),
            late_after: state.first_bytes.late_after(),
        }
    }

    async fn attempt<T, F>(
        self: &Arc<Self>,
        urgency: &Urgency,
        bytes: u64,
        send: &impl Fn() -> F,
    ) -> Result<(T, Turn), Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if self.is_left_out(Instant::now()) {
            return Err(self.left_out());
        }
        let slot = self.slots.acquire(urgency, bytes).await;
        let slot = slot.map_err(|SentAway| self.left_out())?;
        let now = Instant::now();
        let period = self.state().breaker.admit(now).ok_or_else(|| self.left_out())?;
        let turn = Turn {
            traffic: Arc::clone(self),
            slot,
            period,
        };
        self.count_request();
        // Only a reply with bytes is worth asking for twice.
        let patience = if self.hedging && bytes > 0 && urgency.is_demand() {
            self.state().first_bytes.late_after()
        } else {
            None
        };
        let outcome = match patience {
            Some(patience) => self.hedged(patience, bytes, send).await,
            None => send().await,
        };
        match outcome {
            Ok(reply) => {
                turn.answered();
                if bytes > 0 {
                    self.state().first_bytes.add(now.elapsed());
                }
                Ok((reply, turn))
            }
            Err(failure) => {
                turn.failed(&failure.error);
                Err(failure)
            }
        }
    }

    /// Sends a request, and once more if its reply is late and that can be afforded: the first good reply is used.
    async fn hedged<T, F>(&self, patience: Duration, bytes: u64, send: &impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut first = std::pin::pin!(send());
        tokio::select! {
            biased;
            outcome = &mut first => return outcome,
            () = sleep(patience) => {}
        }
        let now = Instant::now();
        let Some(_slot) = self.slots.try_acquire(bytes, now) else {
            return first.await;
        };
        if !self.state().budget.spend_on_hedge(now) {
            return first.await;
        }
        self.metrics.origin_hedges.get_or_create(&self.labels).inc();
        self.count_request();
        let mut second = std::pin::pin!(send());
        let won = || self.metrics.origin_hedges_won.get_or_create(&self.labels).inc();
        tokio::select! {
            biased;
            outcome = &mut first => match outcome {
                Err(failure) if failure.error.is_retryable() => {
                    second.await.inspect(|_| _ = won())
                }
                outcome => outcome,
            },
            outcome = &mut second => match outcome {
                Err(failure) if failure.error.is_retryable() => first.await,
                outcome => outcome.inspect(|_| _ = won()),
            },
        }
    }

    fn pause(&self, retries: &mut Retries, failure: &Failure) -> Option<Duration> {
        let now = Instant::now();
        let pause = retries.pause(failure, now, rand::random())?;
        if !self.state().budget.spend_on_retry(now) {
            self.metrics
                .origin_retries_refused
                .get_or_create(&self.labels)
                .inc();
            return None;
        }
        self.metrics.origin_retries.get_or_create(&self.labels).inc();
        debug!(store = self.labels.store, error = %failure.error, pause_ms = pause.as_millis(), "a request failed; it is sent again");
        Some(pause)
    }

    fn is_left_out(&self, now: Instant) -> bool {
        self.state().breaker.is_skipped(now)
    }

    fn left_out(&self) -> Failure {
        self.metrics.origin_skips.get_or_create(&self.labels).inc();
        Failure::from(Error::LeftOut {
            endpoint: self.endpoint.clone(),
        })
    }

    fn count_request(&self) {
        self.metrics.origin_requests.get_or_create(&self.labels).inc();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of one request: its slot, and what its store's breaker hears of it. Held until the reply is read.
#[derive(Debug)]
pub(super) struct Turn {
    traffic: Arc<Traffic>,
    slot: Slot,
    period: u64,
}

impl Turn {
    /// Everything that was asked for has come.
    pub(super) fn completed(&self) {
        self.slot.succeeded();
    }

    /// The reply broke off. The store did answer, so its breaker is not told.
    pub(super) fn broke_off(&self, error: &Error) {
        if let Sign::Overloaded(_) = Sign::of(error) {
            self.overloaded(error);
        }
    }

    fn answered(&self) {
        if self.traffic.state().breaker.answered(self.period, Instant::now()) {
            info!(
                store = self.traffic.labels.store,
                "the store answers again; it is asked as before"
            );
        }
    }

    fn failed(&self, error: &Error) {
        let trouble = match Sign::of(error) {
            Sign::Answers => return self.answered(),
            Sign::Nothing => return,
            Sign::Fails(trouble) => trouble,
            Sign::Overloaded(trouble) => {
                self.overloaded(error);
                trouble
            }
        };
        let now = Instant::now();
        let mut state = self.traffic.state();
        let was_open = state.breaker.is_open();
        let skip = state
            .breaker
            .failed(self.period, trouble, now, rand::random_range(0.5..1.0));
        drop(state);
        let Some(skip) = skip else { return };
        if !was_open {
            warn!(
                store = self.traffic.labels.store, %error, skip_ms = skip.as_millis(),
                "the store fails every request; readers of what is not cached are told so at once, and one request tries it again later"
            );
        }
        self.traffic.slots.send_away();
    }

    fn overloaded(&self, error: &Error) {
        if self.slot.overloaded(Instant::now()) {
            let limit = self.traffic.slots.counts().limit;
            debug!(store = self.traffic.labels.store, %error, limit, "the store is asked for less at a time");
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.traffic
            .state()
            .breaker
            .abandoned(self.period, Instant::now());
    }
}
