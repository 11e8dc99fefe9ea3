//! What is done for the cache directory in the background: reclaiming, bringing to disk, probing and scrubbing.
//!
//! Each by itself, so that none waits for another; all of it touches the disk on the blocking pool alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::CacheConfig;
use crate::serve::Context;
use crate::store::{BlockStore, ScrubPosition};

/// How often evicted files that somebody holds are asked for.
const RECLAIM_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked for written pages that have waited long enough to be brought to disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long written pages wait: what comes to a file within this time is one write to the disk.
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// How often it is asked whether the disk should be probed.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// How often operations of the disk are looked for that take too long.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// How long the scrubber waits when it has reason to, and how many times for fetches under way.
const SCRUB_PAUSE: Duration = Duration::from_secs(1);
const SCRUB_PATIENCE: u32 = 10;

/// Begins all of it; it ends with `cancel`.
pub(crate) fn begin(
    tasks: &TaskTracker,
    context: &Arc<Context>,
    config: &CacheConfig,
    cancel: &CancellationToken,
) {
    let again = |period, work| {
        tasks.spawn(every(period, context.store.clone(), cancel.clone(), work));
    };
    again(RECLAIM_EVERY, |store| _ = store.reclaim());
    // What fails is reported as an event, too.
    again(SYNC_EVERY, |store| _ = store.sync_dirty(SYNC_AFTER));
    again(PROBE_EVERY, BlockStore::probe_disk);
    tasks.spawn(watch_disk(context.store.clone(), cancel.clone()));
    let rate = config.scrub_rate.as_u64();
    if rate > 0 {
        let context = Arc::clone(context);
        tasks.spawn(scrub(context, rate, config.scrub_period, cancel.clone()));
    }
}

/// Does something for the store's upkeep again and again, on the blocking pool, never twice at a time.
async fn every(period: Duration, store: BlockStore, cancel: CancellationToken, work: fn(&BlockStore)) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let store = store.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || work(&store)).await {
            warn!(%error, "upkeep of the cache directory failed; it is tried again");
        }
    }
}

/// Looks at what the disk has under way, and never waits for it.
async fn watch_disk(store: BlockStore, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(WATCH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => store.watch_disk(),
        }
    }
}

/// Reads what is cached again, so many bytes a second, in passes of which one begins a period after the other.
async fn scrub(context: Arc<Context>, rate: u64, period: Duration, cancel: CancellationToken) {
    let passes = async {
        loop {
            let began = tokio::time::Instant::now();
            scrub_once(&context, rate).await;
            tokio::time::sleep_until(began + period).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = passes => {}
    }
}

async fn scrub_once(context: &Context, rate: u64) {
    while !context.store.ledger().recovered {
        tokio::time::sleep(SCRUB_PAUSE).await;
    }
    let mut position = ScrubPosition::default();
    loop {
        // Fetches come first, but damage is not left alone for ever because of them.
        for _ in 0..SCRUB_PATIENCE {
            if context.filler.in_flight() == 0 {
                break;
            }
            tokio::time::sleep(SCRUB_PAUSE).await;
        }
        let store = context.store.clone();
        let work = move || {
            let read = store.scrub_page(&mut position);
            (position, read)
        };
        let (next, read) = match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => return warn!(%error, "scrubbing failed; it begins anew with the next pass"),
        };
        position = next;
        match read {
            Ok(Some(bytes)) => tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await,
            Ok(None) => return,
            // The disk is out of use.
            Err(_) => tokio::time::sleep(SCRUB_PAUSE).await,
        }
    }
}
