//! What both servers work on: the membership and the index under their locks, and what they come to.
//!
//! Locks are held for one call and never across an await. A lost worker is out of the membership's view before the index
//! forgets it, and answers name only whom the view names: there is no moment at which it can be answered.

mod snapshot;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cachelet_protocol::grpc;
use cachelet_protocol::ids::{Etag, Generation, PathId};
use cachelet_protocol::residency::{BLOCKS_PER_SEGMENT, SegmentResidency};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::answer::{AnswerLimits, Answering, Tally};
use crate::api::{LocationsAnswer, LocationsRequest};
use crate::config::Config;
use crate::index::{Index, NotTracked, Outcome, ReportedSegment};
use crate::membership::{
    Admission, Admitted, InvalidRegistration, Load, Membership, Refusal, Registration, Superseded, Terms,
    View,
};
use crate::metrics::{self, Metrics, Word};

/// Segments that are applied without letting other tasks run.
const SEGMENTS_AT_ONCE: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    membership: Mutex<Membership>,
    index: Index,
    pub(crate) metrics: Metrics,
    limits: AnswerLimits,
    lease: Duration,
    heartbeat: Duration,
    ready_grace: Duration,
    started: Instant,
    stopping: AtomicBool,
}

/// A registration that was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRegistered {
    /// It cannot be understood.
    #[error(transparent)]
    Invalid(#[from] InvalidRegistration),
    /// It contradicts what is there.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A stream that may not report any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this stream is no longer the worker's: its lease ended, or a newer stream took its place; register again"
)]
pub(crate) struct StreamEnded;

impl From<Superseded> for StreamEnded {
    fn from(_: Superseded) -> Self {
        Self
    }
}

impl From<NotTracked> for StreamEnded {
    fn from(_: NotTracked) -> Self {
        Self
    }
}

/// A request of a worker that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidMessage(String);

impl Cluster {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            membership: Mutex::new(Membership::new(Terms {
                lease: config.lease,
                lost_rank_kept: config.lost_rank_kept,
            })),
            index: Index::new(),
            metrics: Metrics::new(),
            limits: AnswerLimits {
                max_blocks: config.max_answer_blocks,
                max_nodes: config.max_answer_nodes,
            },
            lease: config.lease,
            heartbeat: config.heartbeat,
            ready_grace: config.ready_grace,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// From here on the replica says that it is not ready.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn membership(&self) -> MutexGuard<'_, Membership> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> Arc<View> {
        self.membership().view()
    }

    /// Takes or refuses a worker.
    pub(crate) fn register(&self, message: grpc::Register) -> Result<Admission, NotRegistered> {
        let admitted = self.admit(message);
        let outcome = match &admitted {
            Ok(Admission {
                kind: Admitted::New(_),
                ..
            }) => "new",
            Ok(Admission {
                kind: Admitted::Replaced(_),
                ..
            }) => "replaced",
            Ok(Admission {
                kind: Admitted::Reconnected,
                ..
            }) => "reconnected",
            Err(_) => "refused",
        };
        let outcome = metrics::Outcome {
            outcome: Word(outcome),
        };
        self.metrics.registrations.get_or_create(&outcome).inc();
        admitted
    }

    fn admit(&self, message: grpc::Register) -> Result<Admission, NotRegistered> {
        let registration = Registration::parse(message)?;
        let (node, uuid, epoch) = (registration.node.clone(), registration.uuid, registration.epoch);
        let admission = self
            .membership()
            .register(registration, Instant::now(), SystemTime::now())?;
        match admission.kind {
            Admitted::Replaced(before) | Admitted::New(Some(before)) => self.index.drop_worker(before),
            Admitted::New(None) | Admitted::Reconnected => {}
        }
        self.index.track(admission.worker);
        info!(%node, %uuid, %epoch, kind = ?admission.kind, "worker registered");
        Ok(admission)
    }

    /// A worker said something: its lease begins anew.
    pub(crate) fn heard(&self, from: &Admission) -> Result<(), StreamEnded> {
        self.membership()
            .heard(from.worker, from.stream, Instant::now())?;
        Ok(())
    }

    /// Takes over a heartbeat's figures.
    pub(crate) fn heartbeat_of(
        &self,
        from: &Admission,
        message: &grpc::Heartbeat,
    ) -> Result<(), StreamEnded> {
        let load = Load {
            draining: message.state() == grpc::WorkerState::Draining,
            capacity_bytes: message.capacity_bytes,
            used_bytes: message.used_bytes,
            unlinked_held_bytes: message.unlinked_held_bytes,
            sessions: message.sessions,
            blocks: message.blocks,
            local_bytes: message.local_bytes,
            peer_bytes: message.peer_bytes,
            origin_bytes: message.origin_bytes,
            grants_enabled: message.grants_enabled,
        };
        self.membership().heartbeat(from.worker, from.stream, load)?;
        Ok(())
    }

    /// A full report begins.
    pub(crate) fn begin_full(&self, from: &Admission) -> Result<(), StreamEnded> {
        self.index.begin_full(from.worker)?;
        Ok(())
    }

    /// A full report is complete.
    pub(crate) fn finish_full(&self, from: &Admission) -> Result<(), StreamEnded> {
        self.index.finish_full(from.worker)?;
        self.membership().synced(from.worker, from.stream)?;
        Ok(())
    }

    /// Takes over reported segments, letting other tasks run now and then. Segments that make no sense are left out,
    /// counted and logged: one defect must not hide everything else that the worker holds.
    pub(crate) async fn apply(
        &self,
        from: &Admission,
        segments: Vec<grpc::Segment>,
    ) -> Result<(), StreamEnded> {
        let mut invalid = Tallied::default();
        let mut segments = segments.into_iter();
        loop {
            let reported: Vec<ReportedSegment> = segments
                .by_ref()
                .take(SEGMENTS_AT_ONCE)
                .filter_map(|segment| segment_of(segment).map_err(|error| invalid.add(error)).ok())
                .collect();
            if reported.is_empty() && segments.len() == 0 {
                break;
            }
            let (mut applied, mut forgotten, mut outdated) = (0, 0, 0);
            self.index.apply(
                from.worker,
                &reported,
                unix_ms(SystemTime::now()),
                |outcome| match outcome {
                    Outcome::Applied => applied += 1,
                    Outcome::Forgotten => forgotten += 1,
                    Outcome::Outdated => outdated += 1,
                },
            )?;
            self.count_segments("applied", applied);
            self.count_segments("forgotten", forgotten);
            self.count_segments("outdated", outdated);
            tokio::task::yield_now().await;
        }
        self.count_segments("invalid", invalid.count);
        if let Some(first) = invalid.first {
            warn!(worker = ?from.worker, count = invalid.count, %first, "reported segments left out");
        }
        Ok(())
    }

    fn count_segments(&self, outcome: &'static str, count: u64) {
        let outcome = metrics::Outcome {
            outcome: Word(outcome),
        };
        self.metrics.segments.get_or_create(&outcome).inc_by(count);
    }

    /// The live workers that hold anything of a segment, for a worker that wants to fill from a peer.
    pub(crate) fn locate(&self, request: &grpc::LocateRequest) -> Result<Vec<grpc::Holder>, InvalidMessage> {
        self.metrics.locates.inc();
        let path = path_id(&request.path_id)?;
        let generation = Generation {
            etag: Etag::new(request.etag.as_str()).map_err(|error| InvalidMessage(error.to_string()))?,
            size_bytes: request.size_bytes,
        };
        let view = self.view();
        let known = self
            .index
            .look_up(&path)
            .filter(|known| known.generation == generation);
        let holdings = known.into_iter().flat_map(|known| known.holdings);
        Ok(holdings
            .filter(|held| held.segment == request.segment)
            .filter_map(|held| {
                let member = &view.members[view.of_worker(held.worker)?];
                member.answerable.then(|| grpc::Holder {
                    node: member.node.to_string(),
                    worker_uuid: member.uuid.as_bytes().to_vec(),
                    data_address: member.data_address.clone(),
                    zone: member.zone.clone(),
                    low_bits: held.residency.low_bits,
                    high_bits: held.residency.high_bits,
                })
            })
            .collect())
    }

    /// Answers a request for locations as JSON. Takes a while for thousands of paths: not for a task that others wait on.
    pub(crate) fn locations(&self, request: &LocationsRequest) -> Vec<u8> {
        let view = self.view();
        let mut answering = Answering::new(&view, request.candidates.as_deref(), self.limits);
        let paths = request
            .paths
            .iter()
            .map(|path| answering.answer(path, |id| self.index.look_up(id)))
            .collect();
        self.count_answers(answering.tally());
        serde_json::to_vec(&LocationsAnswer { locations: paths })
            .expect("answers are strings, numbers and lists")
    }

    fn count_answers(&self, tally: Tally) {
        for (outcome, count) in [
            ("known", tally.known),
            ("no_workers", tally.no_workers),
            ("unknown_store", tally.unknown_store),
            ("unknown_size", tally.unknown_size),
            ("refused", tally.refused),
        ] {
            let outcome = metrics::Outcome {
                outcome: Word(outcome),
            };
            self.metrics.paths.get_or_create(&outcome).inc_by(count);
        }
        for (state, count) in [
            ("resident", tally.resident_blocks),
            ("planned", tally.planned_blocks),
            ("nowhere", tally.nowhere_blocks),
        ] {
            let state = metrics::State { state: Word(state) };
            self.metrics.blocks.get_or_create(&state).inc_by(count);
        }
    }

    /// Ends the leases whose time has come.
    pub(crate) fn expire(&self) {
        let lost = self.membership().expire(Instant::now());
        for (worker, node) in lost {
            self.index.drop_worker(worker);
            self.metrics.leases_expired.inc();
            warn!(%node, lease = ?self.lease, "worker lost: it said nothing for a lease; its blocks are out of answers");
        }
    }

    /// Whether [`Cluster::sweep`] has something to do.
    pub(crate) fn needs_sweep(&self) -> bool {
        self.index.needs_sweep()
    }

    /// Takes back the memory of what lost and resynced workers held. Blocks; one at a time.
    pub(crate) fn sweep(&self) {
        self.index.sweep();
        self.metrics.sweeps.inc();
    }
}

/// How many were wrong, and how the first was.
#[derive(Default)]
struct Tallied {
    count: u64,
    first: Option<InvalidMessage>,
}

impl Tallied {
    fn add(&mut self, error: InvalidMessage) {
        self.count += 1;
        self.first.get_or_insert(error);
    }
}

fn path_id(bytes: &[u8]) -> Result<PathId, InvalidMessage> {
    <[u8; 16]>::try_from(bytes)
        .map(PathId::from_bytes)
        .map_err(|_| InvalidMessage(format!("a path id has {} bytes, expected 16", bytes.len())))
}

/// Parses a reported segment. Which of its 64 blocks the object has is left to answers: they know the block size.
fn segment_of(segment: grpc::Segment) -> Result<ReportedSegment, InvalidMessage> {
    if segment.index > u32::MAX / BLOCKS_PER_SEGMENT {
        return Err(InvalidMessage(format!(
            "segment {} is beyond the last possible block",
            segment.index
        )));
    }
    Ok(ReportedSegment {
        path: path_id(&segment.path_id)?,
        generation: Generation {
            etag: Etag::new(segment.etag).map_err(|error| InvalidMessage(error.to_string()))?,
            size_bytes: segment.size_bytes,
        },
        confirmed_unix_ms: segment.confirmed_unix_ms,
        segment: segment.index,
        residency: SegmentResidency {
            low_bits: segment.low_bits,
            high_bits: segment.high_bits,
        },
    })
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
