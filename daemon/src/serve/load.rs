//! Fills that warm the cache: a command asks for pages that no reader waits for, here where their block belongs.
//!
//! Nothing of what is brought in goes to whoever asks. All loads together have at most [`RUNS_AT_ONCE`] requests of
//! [`RUN_PAGES`] pages under way, however many callers ask for however much: the rest waits its turn, in the order of
//! asking, and ends with its caller. A question is answered within [`PATIENCE`], with what is present by then.

use std::sync::Arc;
use std::time::Duration;

use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::{BypassReason, Ready};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Context;
use super::refusal::Refusal;
use crate::fill::OpenObject;

/// Requests of all loads under way at a time. A fill holds up to 5 pages in memory (one that arrives and four that are
/// being written), so these take a third of `fill.memory`'s 64 by default, and readers have the rest.
const RUNS_AT_ONCE: usize = 4;
/// Pages of one request: `fill.max_request` by default.
const RUN_PAGES: u32 = 8;
/// An answer comes within this time: far less than what callers wait for one, so that a slow origin or a long queue is
/// told from a daemon that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// The turns of loads.
#[derive(Debug)]
pub struct Loads(Semaphore);

impl Default for Loads {
    fn default() -> Self {
        Self(Semaphore::new(RUNS_AT_ONCE))
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

/// Cancel-safe: a request that was begun goes on, and no other is.
async fn bring_in(
    context: &Context,
    object: &Arc<OpenObject>,
    block: BlockIndex,
    wanted: PageSet,
) -> Result<(), Refusal> {
    for run in wanted.runs(RUN_PAGES) {
        let _turn = context
            .loads
            .0
            .acquire()
            .await
            .expect("the semaphore is never closed");
        if context.is_draining() {
            return Err(Refusal::bypass(BypassReason::Draining, "this daemon is stopping"));
        }
        let run = PageSet::span(run);
        // The fetches are begun as readahead; what follows only waits for them.
        context.filler.readahead(object, block, run).await?;
        context.filler.demand(object, block, run).await?;
    }
    Ok(())
}
