//! Which peers are worth asking: a [`Breaker`] for each that was asked lately. When one opens, whoever else waits for that
//! peer goes on at once.
//!
//! One request without an answer opens it, unless the peer was heard meanwhile: a peer that streams to others is slow for
//! this one, and nobody else has to do without it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::holder::{Error, Holder};
use crate::breaker::{Breaker, FORGET_AFTER, Rule};
use crate::metrics::{Metrics, Trouble};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Health {
    /// By address.
    peers: Mutex<HashMap<String, Peer>>,
    /// Sent to whenever a breaker opens.
    opened: watch::Sender<()>,
    /// How long a peer may take to its first byte.
    first_byte: Duration,
    metrics: Metrics,
}

#[derive(Debug)]
struct Peer {
    breaker: Breaker,
    /// When a frame of it arrived last, whoever had asked.
    heard: Option<Instant>,
}

impl Health {
    pub(super) fn new(first_byte: Duration, metrics: Metrics) -> Self {
        Self {
            peers: Mutex::default(),
            opened: watch::Sender::new(()),
            first_byte,
            metrics,
        }
    }

    /// Whether a holder is left out at the moment; counts if it is.
    pub(super) fn skips(&self, holder: &Holder) -> bool {
        let peers = self.peers();
        let skipped = peers
            .get(&holder.address)
            .filter(|peer| peer.breaker.is_skipped(Instant::now()));
        if let Some(peer) = skipped {
            self.metrics.count_peer_skip(peer.breaker.trouble());
        }
        skipped.is_some()
    }

    /// How many peers are left out at the moment.
    pub(super) fn skipped_now(&self) -> usize {
        let now = Instant::now();
        let peers = self.peers();
        peers.values().filter(|peer| peer.breaker.is_skipped(now)).count()
    }

    /// Whether a request may ask this holder now.
    pub(super) fn admit<'a>(&'a self, holder: &'a Holder) -> Option<Request<'a>> {
        let now = Instant::now();
        let mut peers = self.peers();
        if !peers.contains_key(&holder.address) {
            peers.retain(|_, peer| !peer.is_forgotten(now));
        }
        let peer = peers.entry(holder.address.clone()).or_insert_with(|| Peer {
            breaker: Breaker::new(Rule::ONE_OF_SEVERAL, now),
            heard: None,
        });
        let Some(period) = peer.breaker.admit(now) else {
            self.metrics.count_peer_skip(peer.breaker.trouble());
            return None;
        };
        Some(Request {
            health: self,
            holder,
            period,
        })
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<String, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn is_forgotten(&self, now: Instant) -> bool {
        let silent = |heard: Instant| now.saturating_duration_since(heard) >= FORGET_AFTER;
        self.breaker.is_forgotten(now) && self.heard.is_none_or(silent)
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
    /// A frame of the peer has arrived.
    pub(super) fn heard(&self) {
        let now = Instant::now();
        let mut peers = self.health.peers();
        let Some(peer) = peers.get_mut(&self.holder.address) else {
            return;
        };
        peer.heard = Some(now);
        if peer.breaker.answered(self.period, now) {
            info!(
                peer = self.holder.node,
                address = self.holder.address,
                "the peer answers again; it is asked as before"
            );
        }
    }

    /// The peer did not answer.
    pub(super) fn failed(&self, trouble: Trouble, problem: &Error) {
        let now = Instant::now();
        let mut peers = self.health.peers();
        peers.retain(|address, peer| *address == self.holder.address || !peer.is_forgotten(now));
        let Some(peer) = peers.get_mut(&self.holder.address) else {
            return;
        };
        let since = |heard: Instant| now.saturating_duration_since(heard);
        let is_heard = peer
            .heard
            .is_some_and(|heard| since(heard) < self.health.first_byte);
        if trouble == Trouble::Silent && is_heard && !peer.breaker.is_open() {
            debug!(
                peer = self.holder.node, address = self.holder.address, %problem,
                "the peer is slow for this fetch, which goes on without it; it answers others"
            );
            return;
        }
        let was_open = peer.breaker.is_open();
        let jitter = rand::random_range(0.5..1.0);
        let Some(skip) = peer.breaker.failed(self.period, trouble, now, jitter) else {
            return;
        };
        if !was_open {
            warn!(
                peer = self.holder.node, address = self.holder.address, %problem, skip_ms = skip.as_millis(),
                "the peer does not answer; fetches go on without it, and one tries it again later"
            );
        }
        drop(peers);
        self.health.opened.send_replace(());
    }

    /// Ends when another request finds that the peer does not answer.
    pub(super) async fn given_up_elsewhere(&self) {
        let mut opened = self.health.opened.subscribe();
        loop {
            opened.mark_unchanged();
            let over = self
                .health
                .peers()
                .get(&self.holder.address)
                .is_some_and(|peer| peer.breaker.is_over(self.period));
            if over || opened.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if let Some(peer) = self.health.peers().get_mut(&self.holder.address) {
            peer.breaker.abandoned(self.period, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::LONGEST_SKIP;

    const FIRST_BYTE: Duration = Duration::from_millis(200);

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_peer_goes_on_when_another_finds_it_silent() {
        let health = Health::new(FIRST_BYTE, Metrics::default());
        let [peer, other] = [Holder::at("10.0.0.1:7001"), Holder::at("10.0.0.2:7001")];
        let finder = health.admit(&peer).expect("nothing is known of it");
        let waiter = health.admit(&peer).expect("nothing is known of it");
        let elsewhere = health.admit(&other).expect("nothing is known of it");
        let problem = Error::Timeout(FIRST_BYTE);
        tokio::join!(waiter.given_up_elsewhere(), async {
            finder.failed(Trouble::Silent, &problem);
        });
        let undisturbed = tokio::time::timeout(FORGET_AFTER, elsewhere.given_up_elsewhere());
        assert!(undisturbed.await.is_err(), "the other peer is well");
        let now = health.admit(&peer);
        assert!(now.is_some(), "its time is over by now");
        assert!(health.admit(&peer).is_none() && health.skips(&peer));
        assert_eq!(health.skipped_now(), 1);
        now.expect("one tries").heard();
        assert_eq!(health.skipped_now(), 0);
        elsewhere.failed(Trouble::Silent, &problem);
        tokio::time::advance(LONGEST_SKIP + FORGET_AFTER).await;
        health
            .admit(&peer)
            .expect("it is well")
            .failed(Trouble::Silent, &problem);
        assert_eq!(health.peers().len(), 1, "who is not asked any more is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_heard_meanwhile_is_slow_for_one_fetch_and_left_out_by_none() {
        let health = Health::new(FIRST_BYTE, Metrics::default());
        let peer = Holder::at("10.0.0.1:7001");
        let problem = Error::Timeout(FIRST_BYTE);
        let ask = || health.admit(&peer).expect("it is not left out");
        let (streaming, late) = (ask(), ask());
        tokio::time::advance(FIRST_BYTE / 2).await;
        streaming.heard();
        tokio::time::advance(FIRST_BYTE / 2).await;
        late.failed(Trouble::Silent, &problem);
        assert!(!health.skips(&peer), "the other one hears it");
        // What was heard before the wait began proves nothing.
        let late = ask();
        tokio::time::advance(FIRST_BYTE).await;
        late.failed(Trouble::Silent, &problem);
        assert!(health.skips(&peer));
        // Nor does a frame to an old request when the one that tries it again waits in vain.
        tokio::time::advance(LONGEST_SKIP).await;
        let trial = ask();
        streaming.heard();
        trial.failed(Trouble::Silent, &problem);
        assert!(health.skips(&peer));
    }
}
