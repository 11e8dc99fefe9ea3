//! Who may send a request to a store now: so many at a time, at most at a rate, the most urgent first.
//!
//! How many follows the store: a reply that asks for fewer requests, or none in time, halves the limit; a success while
//! the limit was used up adds to it, one for each round of requests (additive increase, multiplicative decrease, as TCP
//! does). Amazon's advice for reading S3 is one request at a time for each 85 to 90 MB/s that are wanted, about 15 for
//! 10 Gb/s (`optimizing-performance-design-patterns` in its user guide).
//!
//! Invariant: `in_flight` is the number of [`Slot`]s alive, those on their way to who waits for them included.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cachelet_protocol::wire::Priority;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::rate::Rate;
use super::urgency::Urgency;

/// The limit at first: by Amazon's figure good for 20 Gb/s, and half of the default maximum, so that a thousand daemons
/// that start together leave a store room to say that this is too much.
const FIRST_LIMIT: u32 = 32;
/// The least that the limit falls to: one request that hangs must not keep all others waiting.
const LEAST_LIMIT: u32 = 4;

/// The rates of a store, where it has any.
#[derive(Debug, Default)]
pub(super) struct Rates {
    pub(super) requests: Option<Rate>,
    pub(super) bytes: Option<Rate>,
}

impl Rates {
    fn wait_until(&self, now: Instant) -> Option<Instant> {
        let rates = [&self.requests, &self.bytes];
        let waits = rates
            .into_iter()
            .flatten()
            .filter_map(|rate| rate.wait_until(now));
        waits.max()
    }

    fn take(&mut self, bytes: u64, now: Instant) {
        if let Some(requests) = &mut self.requests {
            requests.take(1, now);
        }
        if let Some(rate) = &mut self.bytes {
            rate.take(bytes, now);
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Slots {
    state: Mutex<State>,
    /// Told when a slot is free that only a rate keeps from being used.
    free: Notify,
    least: u32,
    most: u32,
}

#[derive(Debug)]
struct State {
    limit: u32,
    /// Successes of this round.
    successes: u32,
    in_flight: u32,
    /// When the limit was halved last: requests that began before tell nothing new.
    halved: Option<Instant>,
    rates: Rates,
    queue: BTreeMap<Place, Waiter>,
    next: u64,
}

/// See [`Slots::counts`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) in_flight: u32,
    pub(super) waiting: usize,
    /// Of these, those that a reader waits for.
    pub(super) demands_waiting: usize,
    pub(super) limit: u32,
}

/// Where somebody stands: by urgency, then by who came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: u8,
    number: u64,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    slot: oneshot::Sender<Slot>,
}

/// Nobody is let in any more: the queue was sent away.
#[derive(Debug)]
pub(super) struct SentAway;

impl Slots {
    pub(super) fn new(most: u32, rates: Rates) -> Arc<Self> {
        let state = State {
            limit: FIRST_LIMIT.min(most),
            successes: 0,
            in_flight: 0,
            halved: None,
            rates,
            queue: BTreeMap::new(),
            next: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            free: Notify::new(),
            least: LEAST_LIMIT.min(most),
            most,
        })
    }

    /// Waits for a request's turn. It is going to bring so many bytes.
    pub(super) async fn acquire(self: &Arc<Self>, urgency: &Urgency, bytes: u64) -> Result<Slot, SentAway> {
        let (sender, mut granted) = oneshot::channel();
        let mut queued = self.enqueue(urgency.now(), bytes, sender);
        loop {
            // Before looking: it hears what is told from here on.
            let free = self.free.notified();
            let wait_until = self.admit(Instant::now());
            let rate_allows = async {
                match wait_until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                slot = &mut granted => return slot.map_err(|_| SentAway),
                () = urgency.promoted(), if !queued.is_first_class() => queued.promote(),
                () = rate_allows => {}
                () = free => {}
            }
        }
    }

    /// A slot, if one is free and nobody waits.
    pub(super) fn try_acquire(self: &Arc<Self>, bytes: u64, now: Instant) -> Option<Slot> {
        let mut state = self.state();
        let free = state.queue.is_empty() && state.has_room() && state.rates.wait_until(now).is_none();
        free.then(|| {
            let saturated = state.take(bytes, now);
            self.slot(now, saturated)
        })
    }

    /// A request that has a slot sends another one in its place.
    pub(super) fn again(&self, bytes: u64, now: Instant) {
        self.state().rates.take(bytes, now);
    }

    /// Everybody who waits gets [`SentAway`].
    pub(super) fn send_away(&self) {
        let queue = std::mem::take(&mut self.state().queue);
        drop(queue);
    }

    /// How many there are of everybody.
    pub(super) fn counts(&self) -> Counts {
        let state = self.state();
        let demands = |place: &&Place| place.rank == Priority::Demand as u8;
        Counts {
            in_flight: state.in_flight,
            waiting: state.queue.len(),
            demands_waiting: state.queue.keys().take_while(demands).count(),
            limit: state.limit,
        }
    }

    fn enqueue(self: &Arc<Self>, priority: Priority, bytes: u64, slot: oneshot::Sender<Slot>) -> Queued<'_> {
        let mut state = self.state();
        let place = Place {
            rank: priority as u8,
            number: state.next,
        };
        state.next += 1;
        state.queue.insert(place, Waiter { bytes, slot });
        Queued { slots: self, place }
    }

    /// Lets in whom it can. Says when to try again, if only a rate keeps somebody out.
    fn admit(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        loop {
            let mut state = self.state();
            if state.queue.is_empty() || !state.has_room() {
                return None;
            }
            if let Some(until) = state.rates.wait_until(now) {
                return Some(until);
            }
            let (_, waiter) = state.queue.pop_first()?;
            let saturated = state.take(waiter.bytes, now);
            drop(state);
            // Gives its place back by itself if nobody waits there any more.
            drop(waiter.slot.send(self.slot(now, saturated)));
        }
    }

    fn slot(self: &Arc<Self>, begun: Instant, saturated: bool) -> Slot {
        Slot {
            slots: Arc::clone(self),
            begun,
            saturated,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.in_flight < self.limit
    }

    /// Says whether that was the last place.
    fn take(&mut self, bytes: u64, now: Instant) -> bool {
        self.in_flight += 1;
        self.rates.take(bytes, now);
        !self.has_room()
    }
}

/// A place in the queue, left when this is dropped.
struct Queued<'a> {
    slots: &'a Slots,
    place: Place,
}

impl Queued<'_> {
    fn is_first_class(&self) -> bool {
        self.place.rank == Priority::Demand as u8
    }

    fn promote(&mut self) {
        let promoted = Place {
            rank: Priority::Demand as u8,
            ..self.place
        };
        let mut state = self.slots.state();
        // Gone: the slot is on its way.
        if let Some(waiter) = state.queue.remove(&self.place) {
            state.queue.insert(promoted, waiter);
        }
        self.place = promoted;
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.slots.state().queue.remove(&self.place);
    }
}

/// The right to have one request under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    begun: Instant,
    saturated: bool,
}

impl Slot {
    /// The request got everything it asked for.
    pub(super) fn succeeded(&self) {
        if !self.saturated {
            return;
        }
        let mut state = self.slots.state();
        state.successes += 1;
        if state.successes >= state.limit {
            state.successes = 0;
            state.limit = (state.limit + 1).min(self.slots.most);
        }
    }

    /// The store said that this is too much, or nothing at all. Says whether that lowered the limit.
    pub(super) fn overloaded(&self, now: Instant) -> bool {
        let mut state = self.slots.state();
        if state.halved.is_some_and(|halved| self.begun <= halved) {
            return false;
        }
        state.halved = Some(now);
        state.successes = 0;
        let limit = (state.limit / 2).max(self.slots.least);
        std::mem::replace(&mut state.limit, limit) > limit
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.state().in_flight -= 1;
        if self.slots.admit(Instant::now()).is_some() {
            self.slots.free.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    fn slots(most: u32) -> Arc<Slots> {
        Slots::new(most, Rates::default())
    }

    fn in_flight_and_waiting(slots: &Slots) -> (u32, usize) {
        let counts = slots.counts();
        (counts.in_flight, counts.waiting)
    }

    fn take(slots: &Arc<Slots>, count: u32) -> Vec<Slot> {
        let all = (0..count).map(|_| slots.try_acquire(0, Instant::now()).expect("there is room"));
        all.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn demand_goes_before_readahead_and_who_came_first_goes_first() {
        let slots = slots(1);
        let mut held = take(&slots, 1);
        let order = Mutex::new(Vec::new());
        let wait = |name: &'static str, urgency: Urgency| {
            let (slots, order) = (&slots, &order);
            async move {
                let slot = slots.acquire(&urgency, 0).await.expect("nobody is sent away");
                order.lock().unwrap().push(name);
                // Somebody else runs before the next one is let in.
                tokio::task::yield_now().await;
                drop(slot);
            }
        };
        let [ahead, promoted] = [
            Urgency::new(Priority::Readahead),
            Urgency::new(Priority::Readahead),
        ];
        tokio::join!(
            wait("ahead", ahead),
            wait("promoted", promoted.clone()),
            wait("first", Urgency::demand()),
            wait("second", Urgency::demand()),
            async {
                tokio::task::yield_now().await;
                promoted.promote();
                tokio::time::sleep(Duration::from_millis(1)).await;
                held.clear();
            }
        );
        // It asked before the two.
        assert_eq!(*order.lock().unwrap(), ["promoted", "first", "second", "ahead"]);
        assert_eq!(in_flight_and_waiting(&slots), (0, 0));
    }

    #[tokio::test]
    async fn the_limit_halves_once_a_round_down_to_a_floor_and_grows_while_it_is_used_up() {
        let slots = slots(64);
        let limit = || slots.counts().limit;
        assert_eq!(limit(), FIRST_LIMIT);
        let round = take(&slots, 8);
        assert!(round[0].overloaded(Instant::now()));
        assert!(
            !round[1].overloaded(Instant::now()),
            "it was sent before the limit was halved"
        );
        assert_eq!(limit(), 16);
        drop(round);
        for expected in [8, 4, 4] {
            tokio::time::sleep(Duration::from_millis(1)).await;
            take(&slots, 1)[0].overloaded(Instant::now());
            assert_eq!(limit(), expected);
        }
        let unhurried = take(&slots, 3);
        unhurried.iter().for_each(Slot::succeeded);
        assert_eq!(limit(), 4, "nobody needed more");
        let last = take(&slots, 1);
        (0..3).for_each(|_| last[0].succeeded());
        assert_eq!(limit(), 4, "not quite one round");
        last[0].succeeded();
        assert_eq!(limit(), 5);
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_no_slot_behind() {
        let slots = slots(1);
        let held = take(&slots, 1);
        let urgency = Urgency::demand();
        let mut gone = Box::pin(slots.acquire(&urgency, 0));
        assert!((&mut gone).now_or_never().is_none());
        assert_eq!(slots.counts().waiting, 1);
        // The slot is on its way when he goes.
        drop(held);
        assert_eq!(in_flight_and_waiting(&slots), (1, 0));
        drop(gone);
        assert_eq!(in_flight_and_waiting(&slots), (0, 0));
        let mut gone = Box::pin(slots.acquire(&urgency, 0));
        let held = (&mut gone)
            .now_or_never()
            .expect("it is free")
            .expect("nobody is sent away");
        let mut waits = Box::pin(slots.acquire(&urgency, 0));
        assert!((&mut waits).now_or_never().is_none());
        drop(waits);
        assert_eq!(in_flight_and_waiting(&slots), (1, 0));
        let mut waits = Box::pin(slots.acquire(&urgency, 0));
        assert!((&mut waits).now_or_never().is_none());
        slots.send_away();
        assert!((&mut waits).now_or_never().expect("at once").is_err());
        drop(held);
        assert_eq!(in_flight_and_waiting(&slots), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_slot_hears_of_it_although_a_rate_keeps_it_from_him_then() {
        let now = Instant::now();
        let rates = Rates {
            requests: None,
            bytes: Some(Rate::new(1 << 20, now)),
        };
        let slots = Slots::new(1, rates);
        let urgency = Urgency::demand();
        let held = slots.acquire(&urgency, 0).await.expect("at once");
        let waits = slots.acquire(&urgency, 0);
        let (waited, ()) = tokio::join!(waits, async {
            tokio::task::yield_now().await;
            slots.again(4 << 20, Instant::now());
            drop(held);
        });
        assert!(waited.is_ok());
        assert!(
            now.elapsed() >= Duration::from_millis(3900),
            "{:?}",
            now.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn rates_hold_and_the_urgent_go_first_when_one_does() {
        let now = Instant::now();
        let rates = Rates {
            requests: Some(Rate::new(1000, now)),
            bytes: Some(Rate::new(1 << 20, now)),
        };
        let slots = Slots::new(8, rates);
        let urgencies = [Priority::Readahead, Priority::Readahead, Priority::Demand].map(Urgency::new);
        // The first one is let in before the others come, and takes the bytes of four seconds.
        let first = slots.acquire(&urgencies[0], 4 << 20).await.expect("at once");
        assert_eq!(now.elapsed(), Duration::ZERO);
        assert!(slots.try_acquire(0, Instant::now()).is_none());
        drop(first);
        let wait = |index: usize| {
            let slots = &slots;
            let urgency = &urgencies[index];
            async move {
                drop(
                    slots
                        .acquire(urgency, 1 << 20)
                        .await
                        .expect("nobody is sent away"),
                );
                now.elapsed().as_millis()
            }
        };
        let (ahead, demand) = tokio::join!(wait(1), wait(2));
        assert!((3890..=4002).contains(&demand), "{demand}");
        assert!((4890..=5002).contains(&ahead), "{ahead}");
    }
}
