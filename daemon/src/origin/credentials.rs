//! Credentials that outlive a failed refresh.
//!
//! A [`Source`] fetches one identity's credentials; [`Refreshing`] keeps them. Invariants:
//! * whoever asks gets the kept credential at once while it is valid: a refresh runs beside the readers, never in
//!   front of them, and one at a time;
//! * a failed refresh changes nothing but the time of the next attempt: an unexpired credential stays in use;
//! * without a valid credential, everybody waits for the same fetch and gets its error, and the source is left alone
//!   for a moment after each failure.
//!
//! Time is tokio's, so that a test can drive it; the wall clock is read once, when a credential arrives.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// A refresh begins when this much of a credential's life is left (a fifth of it, for short-lived ones).
const REFRESH_BEFORE: Duration = Duration::from_mins(5);
/// A credential with less than this left is not used: the request must still arrive with it.
const LAST_USE_BEFORE: Duration = Duration::from_secs(15);
/// Pause between two attempts to refresh a credential that is still valid.
const RETRY_VALID: Duration = Duration::from_secs(10);
/// Pause between two attempts when there is no valid credential: readers fail at once in between.
const RETRY_INVALID: Duration = Duration::from_secs(1);

/// A credential as a source gave it.
#[derive(Debug, Clone)]
pub(super) struct Fetched<C> {
    pub(super) credential: Arc<C>,
    /// How long it is valid from now on; `None`: it does not expire.
    pub(super) valid_for: Option<Duration>,
    /// When to ask the source again although the credential does not expire, because its file may have been replaced.
    pub(super) reread_after: Option<Duration>,
}

/// Why there is no credential: what was tried and what to do about it, without a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Missing(pub(super) Box<str>);

/// Where one identity's credentials come from.
#[async_trait]
pub(super) trait Source<C>: fmt::Debug + Send + Sync + 'static {
    async fn fetch(&self) -> Result<Fetched<C>, Missing>;
}

type Fetch<C> = Shared<BoxFuture<'static, Result<Arc<C>, Missing>>>;

/// The credentials of one source, kept fresh.
pub(super) struct Refreshing<C> {
    inner: Arc<Inner<C>>,
}

struct Inner<C> {
    store: Box<str>,
    source: Box<dyn Source<C>>,
    state: Mutex<State<C>>,
}

struct State<C> {
    kept: Option<Kept<C>>,
    in_flight: Option<(Fetch<C>, AbortOnDropHandle<()>)>,
    /// No attempt before this time.
    not_before: Option<Instant>,
    last_error: Option<Missing>,
}

struct Kept<C> {
    credential: Arc<C>,
    usable_until: Option<Instant>,
    refresh_at: Option<Instant>,
}

impl<C> fmt::Debug for Refreshing<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshing")
            .field("source", &self.inner.source)
            .finish_non_exhaustive()
    }
}

impl<C> Drop for Refreshing<C> {
    fn drop(&mut self) {
        // The fetch in flight keeps `inner` alive; without this it would outlive the store until its timeout.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .in_flight = None;
    }
}

impl<C: Send + Sync + 'static> Refreshing<C> {
    /// `store`: the store's name, for the log.
    pub(super) fn new(store: &str, source: impl Source<C>) -> Self {
        let state = State {
            kept: None,
            in_flight: None,
            not_before: None,
            last_error: None,
        };
        Self {
            inner: Arc::new(Inner {
                store: store.into(),
                source: Box::new(source),
                state: Mutex::new(state),
            }),
        }
    }

    /// A valid credential: the kept one, or one that is fetched now. Cancelling the call cancels no fetch.
    pub(super) async fn get(&self) -> Result<Arc<C>, Missing> {
        let fetch = {
            let mut state = self.inner.lock();
            let now = Instant::now();
            let usable = state
                .kept
                .as_ref()
                .filter(|kept| kept.usable_until.is_none_or(|until| now < until));
            let may_try = state.not_before.is_none_or(|time| now >= time);
            if let Some(kept) = usable {
                let credential = Arc::clone(&kept.credential);
                if kept.refresh_at.is_some_and(|time| now >= time) && may_try {
                    drop(self.inner.start(&mut state));
                }
                return Ok(credential);
            }
            match (&state.last_error, &state.in_flight) {
                (Some(error), None) if !may_try => return Err(error.clone()),
                _ => self.inner.start(&mut state),
            }
        };
        fetch.await
    }
}

impl<C: Send + Sync + 'static> Inner<C> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State<C>> {
        // Every change of the state is a single assignment after the fallible part, so a panic leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fetch in flight, or a new one in a task of its own.
    fn start(self: &Arc<Self>, state: &mut State<C>) -> Fetch<C> {
        if let Some((fetch, _)) = &state.in_flight {
            return fetch.clone();
        }
        let inner = Arc::clone(self);
        let fetch: Fetch<C> = async move {
            let result = inner.source.fetch().await;
            inner.finish(result)
        }
        .boxed()
        .shared();
        let driver = tokio::spawn(fetch.clone().map(drop));
        state.in_flight = Some((fetch.clone(), AbortOnDropHandle::new(driver)));
        fetch
    }

    fn finish(&self, result: Result<Fetched<C>, Missing>) -> Result<Arc<C>, Missing> {
        let mut state = self.lock();
        // Dropping the handle aborts the task that runs this very code, at its next await: there is none.
        state.in_flight = None;
        let now = Instant::now();
        match result {
            Ok(fetched) => {
                let credential = Arc::clone(&fetched.credential);
                state.kept = Some(Kept::from(fetched, now));
                state.last_error = None;
                // A source that hands out nearly expired credentials is asked again, but not without end.
                state.not_before = Some(now + RETRY_INVALID);
                Ok(credential)
            }
            Err(error) => {
                let valid = state
                    .kept
                    .as_ref()
                    .is_some_and(|kept| kept.usable_until.is_none_or(|until| now < until));
                // Without a valid credential the readers are told, and what becomes of them is logged there.
                if valid {
                    tracing::warn!(store = %self.store, %error, "refreshing credentials failed: the kept ones stay in use");
                }
                state.not_before = Some(now + if valid { RETRY_VALID } else { RETRY_INVALID });
                state.last_error = Some(error.clone());
                Err(error)
            }
        }
    }
}

impl<C> Kept<C> {
    fn from(fetched: Fetched<C>, now: Instant) -> Self {
        let usable_until = fetched
            .valid_for
            .map(|life| now + life.saturating_sub(LAST_USE_BEFORE));
        let refresh_at = match fetched.valid_for {
            Some(life) => Some(now + life.saturating_sub(REFRESH_BEFORE.min(life / 5).max(LAST_USE_BEFORE))),
            None => fetched.reread_after.map(|pause| now + pause),
        };
        Self {
            credential: fetched.credential,
            usable_until,
            refresh_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Hands out `credential-<n>` with a life of an hour; each fetch waits for a permit, then fails if told so.
    #[derive(Debug)]
    struct Fake {
        fetches: AtomicUsize,
        failing: AtomicUsize,
        gate: Semaphore,
        life: Option<Duration>,
    }

    #[derive(Debug, Clone)]
    struct Handle(Arc<Fake>);

    #[async_trait]
    impl Source<String> for Handle {
        async fn fetch(&self) -> Result<Fetched<String>, Missing> {
            let number = self.0.fetches.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.gate.acquire().await.unwrap().forget();
            if self.0.failing.load(Ordering::SeqCst) > 0 {
                return Err(Missing("the token service is down".into()));
            }
            let credential = Arc::new(format!("credential-{number}"));
            Ok(Fetched {
                credential,
                valid_for: self.0.life,
                reread_after: Some(Duration::from_mins(1)),
            })
        }
    }

    fn fake(life: Option<Duration>) -> (Handle, Refreshing<String>) {
        let fake = Fake {
            fetches: AtomicUsize::new(0),
            failing: AtomicUsize::new(0),
            gate: Semaphore::new(1000),
            life,
        };
        let handle = Handle(Arc::new(fake));
        (handle.clone(), Refreshing::new("lake", handle))
    }

    const HOUR: Duration = Duration::from_hours(1);

    impl Handle {
        fn fetches(&self) -> usize {
            self.0.fetches.load(Ordering::SeqCst)
        }
        fn fail(&self, failing: bool) {
            self.0.failing.store(usize::from(failing), Ordering::SeqCst);
        }
    }

    /// Lets spawned tasks run until none is ready.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unexpired_credential_survives_failed_refreshes() {
        let (source, credentials) = fake(Some(HOUR));
        assert_eq!(*credentials.get().await.unwrap(), "credential-1");
        source.fail(true);
        tokio::time::advance(HOUR.saturating_sub(Duration::from_secs(290))).await;
        for _ in 0..27 {
            assert_eq!(*credentials.get().await.unwrap(), "credential-1");
            settle().await;
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!(
            source.fetches() > 20,
            "each pause is followed by another attempt: {}",
            source.fetches()
        );
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(
            credentials.get().await.unwrap_err(),
            Missing("the token service is down".into())
        );
        source.fail(false);
        tokio::time::advance(RETRY_INVALID).await;
        assert!(credentials.get().await.unwrap().starts_with("credential-"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_never_holds_up_a_reader() {
        let (source, credentials) = fake(Some(HOUR));
        credentials.get().await.unwrap();
        source.0.gate.forget_permits(1000);
        tokio::time::advance(HOUR.saturating_sub(Duration::from_secs(200))).await;
        for _ in 0..100 {
            assert_eq!(
                credentials.get().now_or_never().unwrap().unwrap().as_str(),
                "credential-1"
            );
        }
        settle().await;
        assert_eq!(source.fetches(), 2, "one refresh at a time");
        source.0.gate.add_permits(1);
        settle().await;
        assert_eq!(*credentials.get().await.unwrap(), "credential-2");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_without_a_credential_share_one_fetch_and_a_cancelled_one_harms_nobody() {
        let (source, credentials) = fake(Some(HOUR));
        source.0.gate.forget_permits(1000);
        assert!(
            credentials.get().now_or_never().is_none(),
            "the first caller gives up while the fetch runs"
        );
        let (first, second) = (credentials.get(), credentials.get());
        source.0.gate.add_permits(1);
        assert_eq!(first.await.unwrap(), second.await.unwrap());
        assert_eq!(source.fetches(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_source_is_left_alone_for_a_moment() {
        let (source, credentials) = fake(Some(HOUR));
        source.fail(true);
        for _ in 0..50 {
            credentials.get().await.unwrap_err();
        }
        assert_eq!(source.fetches(), 1);
        tokio::time::advance(RETRY_INVALID).await;
        credentials.get().await.unwrap_err();
        assert_eq!(source.fetches(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_from_files_are_read_again_and_outlive_an_unreadable_file() {
        let (source, credentials) = fake(None);
        assert_eq!(*credentials.get().await.unwrap(), "credential-1");
        tokio::time::advance(Duration::from_secs(61)).await;
        credentials.get().await.unwrap();
        settle().await;
        assert_eq!(*credentials.get().await.unwrap(), "credential-2");
        source.fail(true);
        tokio::time::advance(HOUR * 1000).await;
        credentials.get().await.unwrap();
        settle().await;
        assert_eq!(*credentials.get().await.unwrap(), "credential-2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_lived_credential_is_used_for_most_of_its_life() {
        let (source, credentials) = fake(Some(Duration::from_secs(100)));
        credentials.get().await.unwrap();
        tokio::time::advance(Duration::from_secs(79)).await;
        credentials.get().await.unwrap();
        settle().await;
        assert_eq!(source.fetches(), 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        credentials.get().await.unwrap();
        settle().await;
        assert_eq!(source.fetches(), 2);
    }
}
