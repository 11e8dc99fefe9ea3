//! One fetch under way: which pages, which of them have landed, and how it ended.

use cachelet_protocol::block::{PageIndex, PageSet};
use tokio::sync::watch;

use super::Error;
use crate::origin::Urgency;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Flight {
    pages: PageSet,
    urgency: Urgency,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    landed: PageSet,
    outcome: Option<Result<(), Error>>,
}

impl Flight {
    pub(super) fn new(pages: PageSet, urgency: Urgency) -> Self {
        Self {
            pages,
            urgency,
            progress: watch::Sender::new(Progress::default()),
        }
    }

    pub(super) fn pages(&self) -> PageSet {
        self.pages
    }

    /// Whether a reader waits for it. Grows when one comes.
    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    /// The pages that are still to come.
    pub(super) fn missing(&self) -> PageSet {
        self.pages.difference(self.progress.borrow().landed)
    }

    pub(super) fn land(&self, page: PageIndex) {
        self.progress.send_modify(|progress| progress.landed.insert(page));
    }

    /// Pages that need not come: they are present already.
    pub(super) fn land_all(&self, pages: PageSet) {
        self.progress
            .send_modify(|progress| progress.landed = progress.landed.union(pages.intersection(self.pages)));
    }

    pub(super) fn end(&self, outcome: Result<(), Error>) {
        self.progress
            .send_modify(|progress| progress.outcome = Some(outcome));
    }

    /// Waits until the flight's share of `wanted` has landed. Fails if it ends without.
    pub(super) async fn landed(&self, wanted: PageSet) -> Result<(), Error> {
        let share = wanted.intersection(self.pages);
        let mut progress = self.progress.subscribe();
        let there = |progress: &Progress| progress.landed.contains_all(share) || progress.outcome.is_some();
        let progress = match progress.wait_for(there).await {
            Ok(progress) => progress.clone(),
            Err(_) => return Err(Error::Stopping),
        };
        if progress.landed.contains_all(share) {
            return Ok(());
        }
        progress.outcome.unwrap_or(Err(Error::Stopping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Error {
        Error::Stopping
    }

    #[tokio::test]
    async fn a_waiter_goes_on_when_its_pages_have_landed() {
        let flight = Flight::new(PageSet::span(0..4), Urgency::demand());
        flight.land(PageIndex(2));
        flight.landed(PageSet::span(2..3)).await.unwrap();
        assert_eq!(
            flight.missing(),
            PageSet::span(0..4).difference(PageSet::one(PageIndex(2)))
        );
        flight.end(Err(error()));
        flight.landed(PageSet::one(PageIndex(2))).await.unwrap();
        assert!(flight.landed(PageSet::span(2..4)).await.is_err());
    }

    #[tokio::test]
    async fn pages_of_another_flight_are_not_waited_for() {
        let flight = Flight::new(PageSet::span(0..2), Urgency::demand());
        flight.landed(PageSet::span(4..8)).await.unwrap();
    }
}
