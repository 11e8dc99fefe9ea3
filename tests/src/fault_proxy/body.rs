//! An answer's body on its way to the client: counted, paced, cut or stalled.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::time::Instant;

use super::{Shared, UnderWay};

/// Small enough for an even pace, big enough to cost nothing without one.
const PIECE_BYTES: usize = 64 << 10;
/// A pause shorter than this is kept for the next piece: timers are no finer.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// A connection that fell behind, because a timer was late or the client was, may catch up this much: without it every
/// late timer would take from the bandwidth.
const CREDIT: Duration = Duration::from_millis(5);

/// How a body ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// As the server's does.
    Whole,
    /// The connection is closed.
    Cut { after_bytes: u64 },
    /// Nothing more comes.
    Stall { after_bytes: u64 },
}

impl End {
    fn after_bytes(self) -> Option<u64> {
        match self {
            Self::Whole => None,
            Self::Cut { after_bytes } | Self::Stall { after_bytes } => Some(after_bytes),
        }
    }
}

/// When a connection may send again; its requests share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    free_at: Arc<Mutex<Option<Instant>>>,
}

impl Pace {
    /// Waits until what was sent before has taken its time, and accounts for `bytes` more.
    async fn take(&self, bytes: usize, bytes_per_second: u64) {
        let cost = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        let start = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let start = free_at.map_or(now, |at| at.max(now - CREDIT));
            *free_at = Some(start + cost);
            start
        };
        if start.saturating_duration_since(Instant::now()) >= SHORTEST_PAUSE {
            tokio::time::sleep_until(start).await;
        }
    }
}

/// A body with everything that happens to it.
pub(super) struct Tap {
    body: Incoming,
    /// Received from the server, not yet sent.
    pending: Bytes,
    /// What may still be sent before the end; `None` without bound.
    left: Option<u64>,
    end: End,
    pace: Pace,
    counts_as_data: bool,
    /// Ends with the body.
    _under_way: UnderWay,
    shared: Arc<Shared>,
}

impl Tap {
    pub(super) fn new(
        body: Incoming,
        end: End,
        pace: Pace,
        counts_as_data: bool,
        under_way: UnderWay,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            body,
            pending: Bytes::new(),
            left: end.after_bytes(),
            end,
            pace,
            counts_as_data,
            _under_way: under_way,
            shared,
        }
    }

    pub(super) fn into_body(self) -> UnsyncBoxBody<Bytes, io::Error> {
        let pieces = stream::unfold(Some(self), |tap| async move {
            let mut tap = tap?;
            match tap.next().await {
                Some(Ok(piece)) => Some((Ok(Frame::data(piece)), Some(tap))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.left == Some(0) {
            match self.end {
                End::Whole => return None,
                End::Stall { .. } => std::future::pending().await,
                End::Cut { .. } => {
                    // The connection flushes what it has while it waits for the next piece.
                    tokio::task::yield_now().await;
                    return Some(Err(io::Error::other("cut by the test")));
                }
            }
        }
        while self.pending.is_empty() {
            match self.body.frame().await? {
                Ok(frame) => self.pending = frame.into_data().unwrap_or_default(),
                Err(error) => return Some(Err(io::Error::other(error))),
            }
        }
        let most = self
            .left
            .map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES as u64) as usize);
        let piece = self.pending.split_to(most.min(self.pending.len()));
        let bandwidth = self.shared.plan().bandwidth;
        if let Some(bytes_per_second) = bandwidth {
            self.pace.take(piece.len(), bytes_per_second).await;
        }
        if let Some(left) = &mut self.left {
            *left -= piece.len() as u64;
        }
        let bytes = piece.len() as u64;
        self.shared.bytes_sent.fetch_add(bytes, Ordering::AcqRel);
        if self.counts_as_data {
            self.shared.data_bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        Some(Ok(piece))
    }
}
