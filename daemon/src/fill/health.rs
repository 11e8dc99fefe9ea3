//! Which peers are worth asking: a [`Breaker`] for each that is, or lately was, in trouble. When one opens, whoever else
//! waits for that peer goes on at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::peer::Holder;
use crate::breaker::{Breaker, Rule};
use crate::metrics::{Metrics, Trouble};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Health {
    /// By address. A peer that was never in trouble has none.
    breakers: Mutex<HashMap<String, Breaker>>,
    /// Sent to whenever a breaker opens.
    opened: watch::Sender<()>,
    metrics: Metrics,
}

impl Health {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            breakers: Mutex::default(),
            opened: watch::Sender::new(()),
            metrics,
        }
    }

    /// Whether a holder is left out at the moment; counts if it is.
    pub(super) fn skips(&self, holder: &Holder) -> bool {
        let breakers = self.breakers();
        let skipping = breakers
            .get(&holder.address)
            .filter(|breaker| breaker.is_skipped(Instant::now()));
        if let Some(breaker) = skipping {
            self.metrics.count_peer_skip(breaker.trouble());
        }
        skipping.is_some()
    }

    /// How many peers are left out at the moment.
    pub(super) fn skipped_now(&self) -> usize {
        let now = Instant::now();
        let breakers = self.breakers();
        breakers
            .values()
            .filter(|breaker| breaker.is_skipped(now))
            .count()
    }

    /// Whether a request may ask this holder now.
    pub(super) fn admit<'a>(&'a self, holder: &'a Holder) -> Option<Request<'a>> {
        let mut breakers = self.breakers();
        let period = match breakers.get_mut(&holder.address) {
            None => 0,
            Some(breaker) => match breaker.admit(Instant::now()) {
                Some(period) => period,
                None => {
                    self.metrics.count_peer_skip(breaker.trouble());
                    return None;
                }
            },
        };
        Some(Request {
            health: self,
            holder,
            period,
        })
    }

    fn breakers(&self) -> MutexGuard<'_, HashMap<String, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request to a peer that may be asked. Tells how it goes; dropped without a word it has learnt nothing.
#[derive(Debug)]
pub(super) struct Request<'a> {
    health: &'a Health,
    holder: &'a Holder,
    period: u64,
}

impl Request<'_> {
    /// The peer answered something.
    pub(super) fn answered(&self) {
        let mut breakers = self.health.breakers();
        let Some(breaker) = breakers.get_mut(&self.holder.address) else {
            return;
        };
        if breaker.answered(self.period, Instant::now()) {
            info!(
                peer = self.holder.node,
                address = self.holder.address,
                "the peer answers again; it is asked as before"
            );
        }
    }

    /// The peer did not answer.
    pub(super) fn failed(&self, trouble: Trouble, problem: &super::peer::Error) {
        let now = Instant::now();
        let mut breakers = self.health.breakers();
        breakers.retain(|_, breaker| !breaker.is_forgotten(now));
        let breaker = breakers
            .entry(self.holder.address.clone())
            .or_insert_with(|| Breaker::new(Rule::ONE_OF_SEVERAL, now));
        let was_open = breaker.is_open();
        let Some(skip) = breaker.failed(self.period, trouble, now, rand::random_range(0.5..1.0)) else {
            return;
        };
        if !was_open {
            warn!(
                peer = self.holder.node, address = self.holder.address, %problem, skip_ms = skip.as_millis(),
                "the peer does not answer; fetches go on without it, and one tries it again later"
            );
        }
        drop(breakers);
        self.health.opened.send_replace(());
    }

    /// Ends when another request finds that the peer does not answer.
    pub(super) async fn given_up_elsewhere(&self) {
        let mut opened = self.health.opened.subscribe();
        loop {
            opened.mark_unchanged();
            let over = self
                .health
                .breakers()
                .get(&self.holder.address)
                .is_some_and(|breaker| breaker.is_over(self.period));
            if over || opened.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if let Some(breaker) = self.health.breakers().get_mut(&self.holder.address) {
            breaker.abandoned(self.period, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::breaker::{FORGET_AFTER, LONGEST_SKIP};

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_peer_goes_on_when_another_finds_it_silent() {
        let health = Health::new(Metrics::default());
        let [peer, other] = [Holder::at("10.0.0.1:7001"), Holder::at("10.0.0.2:7001")];
        let finder = health.admit(&peer).expect("nothing is known of it");
        let waiter = health.admit(&peer).expect("nothing is known of it");
        let elsewhere = health.admit(&other).expect("nothing is known of it");
        let problem = super::super::peer::Error::Timeout(Duration::from_millis(200));
        tokio::join!(waiter.given_up_elsewhere(), async {
            finder.failed(Trouble::Silent, &problem);
        });
        let undisturbed = tokio::time::timeout(FORGET_AFTER, elsewhere.given_up_elsewhere());
        assert!(undisturbed.await.is_err(), "the other peer is well");
        let now = health.admit(&peer);
        assert!(now.is_some(), "its time is over by now");
        assert!(health.admit(&peer).is_none() && health.skips(&peer));
        assert_eq!(health.skipped_now(), 1);
        now.expect("one tries").answered();
        assert_eq!(health.skipped_now(), 0);
        elsewhere.failed(Trouble::Silent, &problem);
        tokio::time::advance(LONGEST_SKIP + FORGET_AFTER).await;
        health
            .admit(&peer)
            .expect("it is well")
            .failed(Trouble::Silent, &problem);
        assert_eq!(
            health.breakers().len(),
            1,
            "who is not asked any more is forgotten"
        );
    }
}
