//! One flight from take-off to landing: sources, pages out of a byte stream, and writes that overlap with receiving.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cachelet_protocol::block::PageIndex;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::flight::Flight;
use super::holder::Holder;
use super::peer::Peers;
use super::{Error, OpenObject, on_disk};
use crate::metrics::{Metrics, Outcome, Source};
use crate::origin::Urgency;
use crate::store::{Block, BlockStore};

/// Pages of one flight being written while the next is received.
const WRITES_AT_ONCE: usize = 4;

#[derive(Debug)]
pub(super) struct Fetcher {
    pub(super) store: BlockStore,
    pub(super) peers: Option<Peers>,
    pub(super) metrics: Metrics,
    /// One permit a page in memory.
    pub(super) memory: Arc<Semaphore>,
}

impl Fetcher {
    /// Brings the flight's pages in: from a peer that holds them, else from the origin; what a peer leaves out, the origin
    /// gives.
    pub(super) async fn fetch(
        &self,
        flight: &Arc<Flight>,
        block: &Arc<Block>,
        object: &OpenObject,
    ) -> Result<(), Error> {
        flight.land_all(block.present());
        if let Some(peers) = &self.peers {
            for holder in peers
                .holders(object, block.identity().index(), flight.missing())
                .await
            {
                match self.from_peer(peers, &holder, flight, block, object).await {
                    Ok(()) => self.metrics.count_fetch(Source::Peer, Outcome::Complete),
                    Err(problem) => {
                        self.metrics.count_fetch(Source::Peer, Outcome::Failed);
                        debug!(peer = holder.node, %problem, "a peer did not give its pages; going on without it");
                    }
                }
                if flight.missing().is_empty() {
                    return Ok(());
                }
            }
        }
        let outcome = self.from_origin(flight, block, object).await;
        match &outcome {
            Ok(()) => self.metrics.count_fetch(Source::Origin, Outcome::Complete),
            Err(error) => {
                self.metrics.count_fetch(Source::Origin, Outcome::Failed);
                warn!(object = %object.name().path, block = %block.identity().index(), %error, "fetching pages failed; readers get the error");
            }
        }
        outcome
    }

    async fn from_peer(
        &self,
        peers: &Peers,
        holder: &Holder,
        flight: &Arc<Flight>,
        block: &Arc<Block>,
        object: &OpenObject,
    ) -> Result<(), PeerOrDisk> {
        let mut writes = PageWrites::new(self, flight, block);
        for run in flight
            .missing()
            .intersection(holder.pages_of(block.length()))
            .runs(u32::MAX)
        {
            let mut pages = peers
                .read(
                    holder,
                    object,
                    block.identity().index(),
                    self.block_start(block),
                    block.length(),
                    run,
                )
                .await?;
            while let Some((page, bytes)) = pages.next().await? {
                self.metrics.count_fill(Source::Peer, bytes.len() as u64);
                object.tally.count(Source::Peer, bytes.len() as u64);
                let permit = self.memory_for_a_page().await;
                writes.write(page, bytes, permit).await?;
            }
        }
        Ok(writes.finish().await?)
    }

    async fn from_origin(
        &self,
        flight: &Arc<Flight>,
        block: &Arc<Block>,
        object: &OpenObject,
    ) -> Result<(), Error> {
        let mut writes = PageWrites::new(self, flight, block);
        for run in flight.missing().runs(u32::MAX) {
            self.run_from_origin(run, flight.urgency(), block, object, &mut writes)
                .await?;
        }
        writes.finish().await
    }

    async fn run_from_origin(
        &self,
        run: Range<u32>,
        urgency: &Urgency,
        block: &Arc<Block>,
        object: &OpenObject,
        writes: &mut PageWrites<'_>,
    ) -> Result<(), Error> {
        let origin_error = |error| Error::Origin(Arc::new(error));
        let start = self.block_start(block);
        let range =
            start + PageIndex(run.start).start()..start + PageIndex(run.end).start().min(block.length());
        let request = object.range(range);
        let stream = object.store.get_when_due(&request, urgency).await;
        let mut stream = stream.map_err(origin_error)?;
        // Not before its turn: who waits for that may hold no memory, or what was read ahead keeps it from who goes first.
        let mut permit = self.memory_for_a_page().await;
        let mut page = PageIndex(run.start);
        let mut buffer = BytesMut::with_capacity(page.length_in(block.length()) as usize);
        while let Some(chunk) = stream.next().await {
            let mut chunk: Bytes = chunk.map_err(origin_error)?;
            self.metrics.count_fill(Source::Origin, chunk.len() as u64);
            object.tally.count(Source::Origin, chunk.len() as u64);
            while !chunk.is_empty() {
                let wanted = page.length_in(block.length()) as usize;
                let taken = chunk.split_to(chunk.len().min(wanted - buffer.len()));
                buffer.extend_from_slice(&taken);
                if buffer.len() == wanted {
                    writes.write(page, buffer.split().freeze(), permit).await?;
                    page = PageIndex(page.0 + 1);
                    permit = self.memory_for_a_page().await;
                    buffer.reserve(page.length_in(block.length()) as usize);
                }
            }
        }
        // The stream errs rather than ends early or late; a page that did not come is missed by who waits for it.
        debug_assert_eq!(page.0, run.end);
        Ok(())
    }

    fn block_start(&self, block: &Block) -> u64 {
        self.store.block_size().start_of(block.identity().index())
    }

    async fn memory_for_a_page(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.memory)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }
}

/// Why a peer's pages did not land.
#[derive(Debug, thiserror::Error)]
enum PeerOrDisk {
    #[error(transparent)]
    Peer(#[from] super::holder::Error),
    #[error(transparent)]
    Disk(#[from] Error),
}

/// Writes of one flight's pages, a few at a time. A page lands as soon as it is written.
struct PageWrites<'a> {
    fetcher: &'a Fetcher,
    flight: &'a Arc<Flight>,
    block: &'a Arc<Block>,
    under_way: JoinSet<Result<(), Error>>,
}

impl<'a> PageWrites<'a> {
    fn new(fetcher: &'a Fetcher, flight: &'a Arc<Flight>, block: &'a Arc<Block>) -> Self {
        Self {
            fetcher,
            flight,
            block,
            under_way: JoinSet::new(),
        }
    }

    async fn write(
        &mut self,
        page: PageIndex,
        bytes: Bytes,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Error> {
        while self.under_way.len() >= WRITES_AT_ONCE {
            self.join_one().await?;
        }
        let store = self.fetcher.store.clone();
        let (block, flight) = (Arc::clone(self.block), Arc::clone(self.flight));
        self.under_way.spawn(async move {
            on_disk(&store, move |store| {
                let reservation = store.reserve(bytes.len() as u64)?;
                store.write_page(&block, page, &bytes, reservation)?;
                drop(permit);
                Ok(())
            })
            .await?;
            flight.land(page);
            Ok(())
        });
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), Error> {
        match self.under_way.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(join)) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Some(Err(_)) => Err(Error::Stopping),
            None => Ok(()),
        }
    }

    async fn finish(mut self) -> Result<(), Error> {
        while !self.under_way.is_empty() {
            self.join_one().await?;
        }
        Ok(())
    }
}
