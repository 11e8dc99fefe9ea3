//! Fills that warm the cache: a command asks for pages that no reader waits for, here where their block belongs.
//!
//! Nothing of what is brought in goes to whoever asks. All loads together have at most [`RUNS_AT_ONCE`] requests of
//! [`RUN_PAGES`] pages under way, however many callers ask for however much, and however long the origin takes: the rest
//! waits its turn, in the order of asking, and ends with its caller. A question is answered within [`PATIENCE`], with what
//! is present by then.

use std::sync::Arc;
use std::time::Duration;

use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::{BypassReason, Ready};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::Context;
use super::refusal::Refusal;
use crate::fill::{self, Filler, OpenObject};

/// Requests of all loads under way at a time. A fill holds up to 5 pages in memory (one that arrives and four that are
/// being written), so these take a third of `fill.memory`'s 64 by default, and readers have the rest.
const RUNS_AT_ONCE: usize = 4;
/// Pages of one request: `fill.max_request` by default.
const RUN_PAGES: u32 = 8;
/// An answer comes within this time: far less than what callers wait for one, so that a slow origin or a long queue is
/// told from a daemon that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// The loads under way.
#[derive(Debug)]
pub struct Loads {
    turns: Arc<Semaphore>,
    runs: TaskTracker,
}

impl Default for Loads {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(RUNS_AT_ONCE)),
            runs: TaskTracker::new(),
        }
    }
}

impl Loads {
    /// Waits until nothing is under way; the fills end first.
    pub async fn stop(&self) {
        self.runs.close();
        self.runs.wait().await;
    }
}

/// Brings pages of a block in, as far as that comes in time, and says which pages it has.
pub(super) async fn load(
    context: &Context,
    object: &Arc<OpenObject>,
    block: BlockIndex,
    wanted: PageSet,
) -> Result<Ready, Refusal> {
    if let Ok(outcome) = timeout(PATIENCE, bring_in(context, object, block, wanted)).await {
        outcome?;
    }
    let cached = context.filler.cached(&object.block(block)).await?;
    Ok(cached.map_or(
        Ready {
            file_id: FileId(0),
            present: PageSet::EMPTY,
        },
        |block| Ready {
            file_id: block.file_id(),
            present: block.present(),
        },
    ))
}

/// Cancel-safe: a run that was begun goes on, with its turn, and no other is.
async fn bring_in(
    context: &Context,
    object: &Arc<OpenObject>,
    block: BlockIndex,
    wanted: PageSet,
) -> Result<(), Refusal> {
    for run in wanted.runs(RUN_PAGES) {
        let turn = Arc::clone(&context.loads.turns)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        if context.is_draining() {
            return Err(Refusal::bypass(BypassReason::Draining, "this daemon is stopping"));
        }
        let (filler, object) = (context.filler.clone(), Arc::clone(object));
        let landed = context.loads.runs.spawn(async move {
            let _turn = turn;
            land(&filler, &object, block, PageSet::span(run)).await
        });
        match landed.await {
            Ok(outcome) => outcome?,
            Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Err(_) => return Err(fill::Error::Stopping.into()),
        }
    }
    Ok(())
}

/// Ends when the run's fetches have.
async fn land(
    filler: &Filler,
    object: &Arc<OpenObject>,
    block: BlockIndex,
    run: PageSet,
) -> Result<(), fill::Error> {
    loop {
        match filler.load(object, block, run).await {
            // Readers are not kept waiting any longer, but the fetches go on.
            Err(fill::Error::Deadline(_)) => {}
            outcome => return outcome.map(drop),
        }
    }
}
