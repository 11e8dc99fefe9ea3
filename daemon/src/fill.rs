//! Bringing missing pages in: from a worker that holds them, else from the origin.
//!
//! One fetch in flight for each page, whoever asks. Adjacent pages join into one ranged request. A fetch belongs to this
//! module and not to who asked for it: a reader that goes away cancels nobody else's pages, and a reader goes on as soon as
//! its own pages have landed. Memory for pages on their way to the disk is bounded.

mod fetch;
mod flight;
mod health;
mod holder;
mod peer;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cachelet_protocol::block::{BlockIndex, PAGE_BYTES, PageSet};
use cachelet_protocol::ids::{FileId, Generation, ObjectId, ObjectName, PathId};
use cachelet_protocol::wire::Priority;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::FillConfig;
use crate::metrics::{Metrics, Source};
use crate::origin::{self, RangeRequest, Store, Urgency};
use crate::store::{self, Block, BlockIdentity, BlockStore, FillGuard, ObjectIdentity};

pub use peer::Peers;

use fetch::Fetcher;
use flight::Flight;

/// How often a block that was evicted or found corrupt under a fill is begun anew.
const RESTARTS: u32 = 4;

/// What the fetches that somebody began have brought in so far, in bytes.
#[derive(Debug, Default)]
pub struct Tally {
    origin: AtomicU64,
    peer: AtomicU64,
}

impl Tally {
    /// Bytes have come.
    pub fn count(&self, source: Source, bytes: u64) {
        let counter = match source {
            Source::Origin => &self.origin,
            Source::Peer => &self.peer,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came from there.
    pub fn so_far(&self, source: Source) -> u64 {
        match source {
            Source::Origin => &self.origin,
            Source::Peer => &self.peer,
        }
        .load(Ordering::Relaxed)
    }
}

/// One generation of one object, opened: everything a fill needs to know of it.
#[derive(Debug)]
pub struct OpenObject {
    /// The store it is in.
    pub store: Arc<Store>,
    /// Selects the GET on versioned buckets.
    pub version_id: Option<String>,
    /// What the location index knows it by.
    pub path_id: PathId,
    /// Of whoever opened it: what its fetches bring in is counted there.
    pub tally: Arc<Tally>,
    identity: Arc<ObjectIdentity>,
}

impl OpenObject {
    /// Opens a generation of an object in `store`, for whose count `tally` is.
    pub fn new(
        store: Arc<Store>,
        name: ObjectName,
        generation: Generation,
        version_id: Option<String>,
        tally: Arc<Tally>,
    ) -> Self {
        let path_id = name.path_id();
        Self {
            store,
            version_id,
            path_id,
            tally,
            identity: Arc::new(ObjectIdentity::new(name, generation)),
        }
    }

    /// Its name.
    pub fn name(&self) -> &ObjectName {
        self.identity.name()
    }

    /// The generation that was opened.
    pub fn generation(&self) -> &Generation {
        self.identity.generation()
    }

    /// What its blocks are filed under.
    pub fn object_id(&self) -> ObjectId {
        self.identity.id()
    }

    /// The identity of one of its blocks.
    pub fn block(&self, index: BlockIndex) -> BlockIdentity {
        BlockIdentity::new(Arc::clone(&self.identity), index)
    }

    /// A ranged GET of this generation.
    pub fn range(&self, range: Range<u64>) -> RangeRequest {
        RangeRequest {
            path: self.name().path.clone(),
            generation: self.generation().clone(),
            version_id: self.version_id.clone(),
            range,
        }
    }
}

/// Why pages could not be brought in.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The origin failed.
    #[error(transparent)]
    Origin(Arc<origin::Error>),
    /// The cache has no room and can make none.
    #[error("the cache has no room: {0}")]
    NoSpace(Arc<store::Error>),
    /// The cache directory failed.
    #[error("the cache directory failed: {0}")]
    Store(Arc<store::Error>),
    /// The pages did not land in time.
    #[error("the pages did not arrive within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The daemon is going away.
    #[error("the daemon is stopping")]
    Stopping,
}

/// A block whose wanted pages are present, kept from eviction as long as this lives.
#[derive(Debug)]
pub struct Filled {
    /// The block.
    pub block: Arc<Block>,
    _guard: FillGuard,
}

/// Fills blocks. Clones share the state.
#[derive(Debug, Clone)]
pub struct Filler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: BlockStore,
    fetcher: Fetcher,
    flights: Mutex<HashMap<FileId, Vec<Arc<Flight>>>>,
    max_request_pages: u32,
    timeout: Duration,
    tasks: TaskTracker,
    cancel: CancellationToken,
    /// What waits for the disk goes on without it once it is offline.
    offline: watch::Sender<bool>,
}

impl Filler {
    /// Fills blocks of `store`, asking `peers` before the origin.
    pub fn new(store: BlockStore, peers: Option<Peers>, config: &FillConfig, metrics: Metrics) -> Self {
        let memory_pages = (config.memory.as_u64() / PAGE_BYTES).max(1) as usize;
        let shared = Shared {
            fetcher: Fetcher {
                store: store.clone(),
                peers,
                metrics,
                memory: Arc::new(Semaphore::new(memory_pages)),
            },
            store,
            flights: Mutex::default(),
            max_request_pages: (config.max_request.as_u64() / PAGE_BYTES).max(1) as u32,
            timeout: config.timeout,
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            offline: watch::Sender::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Waits until `wanted` pages of a block are present and verified, fetching what is missing.
    ///
    /// Cancel-safe: fetches that were begun go on for whoever else wants them.
    pub async fn demand(
        &self,
        object: &Arc<OpenObject>,
        index: BlockIndex,
        wanted: PageSet,
    ) -> Result<Filled, Error> {
        self.bring_in(object, index, wanted, Priority::Demand).await
    }

    /// The same for pages that nobody reads yet: they wait for every reader, and for what is read ahead of readers.
    pub async fn load(
        &self,
        object: &Arc<OpenObject>,
        index: BlockIndex,
        wanted: PageSet,
    ) -> Result<Filled, Error> {
        self.bring_in(object, index, wanted, Priority::Load).await
    }

    async fn bring_in(
        &self,
        object: &Arc<OpenObject>,
        index: BlockIndex,
        wanted: PageSet,
        priority: Priority,
    ) -> Result<Filled, Error> {
        let timeout = self.shared.timeout;
        let landed = async {
            tokio::time::timeout(timeout, self.land(object, index, wanted, priority))
                .await
                .unwrap_or(Err(Error::Deadline(timeout)))
        };
        self.unless_offline(landed).await
    }

    /// Begins to fetch what is missing of `wanted`, and waits for none of it.
    pub async fn readahead(
        &self,
        object: &Arc<OpenObject>,
        index: BlockIndex,
        wanted: PageSet,
    ) -> Result<(), Error> {
        self.check_disk()?;
        let filled = self.create(object, index).await?;
        self.launch(&filled, object, wanted, Priority::Readahead)
            .map(drop)
    }

    /// What is cached of a block already, if anything, without fetching.
    pub async fn cached(&self, identity: &BlockIdentity) -> Result<Option<Arc<Block>>, Error> {
        self.check_disk()?;
        if let Some(block) = self.shared.store.peek(identity) {
            return Ok(Some(block));
        }
        let identity = identity.clone();
        self.on_disk(move |store| store.find(&identity)).await
    }

    /// Runs disk work on the blocking pool. Fails when the disk is offline, also while it waits.
    pub async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BlockStore) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.unless_offline(on_disk(&self.shared.store, work)).await
    }

    /// The same, whether the disk is in use or not.
    pub async fn on_any_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BlockStore) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, Error> {
        on_disk(&self.shared.store, work).await
    }

    /// The disk went offline, or came back.
    pub fn disk_changed(&self) {
        let offline = self.check_disk().is_err();
        self.shared.offline.send_replace(offline);
    }

    fn check_disk(&self) -> Result<(), Error> {
        let checked = self.shared.store.check_disk();
        checked.map_err(|error| Error::Store(Arc::new(error)))
    }

    /// Waits for work of the disk, but not for a disk that is offline: its work may never end.
    async fn unless_offline<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.check_disk()?;
        let mut offline = self.shared.offline.subscribe();
        tokio::select! {
            biased;
            done = work => done,
            _ = offline.wait_for(|offline| *offline) => {
                Err(Error::Store(Arc::new(self.shared.store.offline())))
            }
        }
    }

    /// Stops: fetches under way end, readers get [`Error::Stopping`].
    pub async fn stop(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Peers that are left out at the moment, because they do not answer.
    pub fn peers_left_out(&self) -> usize {
        self.shared.fetcher.peers.as_ref().map_or(0, Peers::left_out)
    }

    /// Fetches under way now.
    pub fn in_flight(&self) -> usize {
        self.shared.flights().values().map(Vec::len).sum()
    }

    async fn land(
        &self,
        object: &Arc<OpenObject>,
        index: BlockIndex,
        wanted: PageSet,
        priority: Priority,
    ) -> Result<Filled, Error> {
        let mut restarts = 0;
        loop {
            let landed = async {
                let filled = self.create(object, index).await?;
                self.land_in(&filled, object, wanted, priority).await?;
                Ok(filled)
            };
            match landed.await {
                Ok(filled) => return Ok(filled),
                // The file was evicted or found corrupt meanwhile: the block gets a new one.
                Err(Error::Store(error)) if error.wants_new_file() && restarts < RESTARTS => restarts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn create(&self, object: &Arc<OpenObject>, index: BlockIndex) -> Result<Filled, Error> {
        let identity = object.block(index);
        let block = match self.shared.store.peek(&identity) {
            Some(block) => block,
            None => self.on_disk(move |store| store.find_or_create(&identity)).await?,
        };
        let guard = self
            .shared
            .store
            .begin_fill(&block)
            .map_err(|error| Error::Store(Arc::new(error)))?;
        Ok(Filled { block, _guard: guard })
    }

    async fn land_in(
        &self,
        filled: &Filled,
        object: &Arc<OpenObject>,
        wanted: PageSet,
        priority: Priority,
    ) -> Result<(), Error> {
        for flight in self.launch(filled, object, wanted, priority)? {
            flight.landed(wanted).await?;
        }
        if !filled.block.present().contains_all(wanted) {
            let block = Arc::clone(&filled.block);
            self.on_disk(move |store| store.verify(&block, wanted)).await?;
        }
        Ok(())
    }

    /// Begins fetches for the missing pages nobody fetches yet; the flights that `wanted` waits for.
    fn launch(
        &self,
        filled: &Filled,
        object: &Arc<OpenObject>,
        wanted: PageSet,
        priority: Priority,
    ) -> Result<Vec<Arc<Flight>>, Error> {
        let block = &filled.block;
        let mut flights = self.shared.flights();
        let under_way = flights
            .get(&block.file_id())
            .map(Vec::as_slice)
            .unwrap_or_default();
        let covered = under_way
            .iter()
            .fold(PageSet::EMPTY, |pages, flight| pages.union(flight.pages()));
        // Read after the flights are locked: a page is in a flight until it is on disk. Unverified pages first: a page
        // only ever moves from there to the present ones.
        let missing = wanted.difference(block.unverified()).difference(block.present());
        let begun: Vec<Arc<Flight>> = missing
            .difference(covered)
            .runs(self.shared.max_request_pages)
            .map(|run| Arc::new(Flight::new(PageSet::span(run), Urgency::new(priority))))
            .collect();
        for flight in &begun {
            let guard = self
                .shared
                .store
                .begin_fill(block)
                .map_err(|error| Error::Store(Arc::new(error)))?;
            flights
                .entry(block.file_id())
                .or_default()
                .push(Arc::clone(flight));
            self.take_off(Arc::clone(flight), Arc::clone(block), Arc::clone(object), guard);
        }
        let under_way = flights
            .get(&block.file_id())
            .map(Vec::as_slice)
            .unwrap_or_default();
        let awaited = |flight: &&Arc<Flight>| !flight.pages().intersection(missing).is_empty();
        let awaited: Vec<_> = under_way.iter().filter(awaited).cloned().collect();
        if priority == Priority::Demand {
            awaited.iter().for_each(|flight| flight.urgency().promote());
        }
        Ok(awaited)
    }

    fn take_off(&self, flight: Arc<Flight>, block: Arc<Block>, object: Arc<OpenObject>, guard: FillGuard) {
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let outcome = tokio::select! {
                () = shared.cancel.cancelled() => Err(Error::Stopping),
                outcome = shared.fetcher.fetch(&flight, &block, &object) => outcome,
            };
            let mut flights = shared.flights();
            if let Some(under_way) = flights.get_mut(&block.file_id()) {
                under_way.retain(|other| !Arc::ptr_eq(other, &flight));
                if under_way.is_empty() {
                    flights.remove(&block.file_id());
                }
            }
            drop(flights);
            flight.end(outcome);
            drop(guard);
        });
    }
}

impl Shared {
    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<FileId, Vec<Arc<Flight>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs disk work on the blocking pool.
async fn on_disk<T: Send + 'static>(
    store: &BlockStore,
    work: impl FnOnce(&BlockStore) -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Error> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error @ store::Error::NoSpace { .. })) => Err(Error::NoSpace(Arc::new(error))),
        Ok(Err(error)) => Err(Error::Store(Arc::new(error))),
        Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
        Err(_) => Err(Error::Stopping),
    }
}
