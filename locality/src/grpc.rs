//! The workers' side: gRPC streams of reports, and look-ups of peers.

use std::sync::Arc;
use std::time::Duration;

use cachelet_protocol::grpc::locality_server::Locality;
use cachelet_protocol::grpc::service_message::Kind as ToWorker;
use cachelet_protocol::grpc::worker_message::Kind as FromWorker;
use cachelet_protocol::grpc::{
    LocateReply, LocateRequest, Refused, Registered, Resync, ServiceMessage, WorkerMessage,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::cluster::{Cluster, StreamEnded};
use crate::membership::Admission;
use crate::metrics::{self, Word};
use crate::report::{Kind, Progress};

/// How long a new stream may take to register.
const REGISTER_WITHIN: Duration = Duration::from_secs(10);
/// Messages to a worker that may wait to be sent. A worker that reads nothing is sent nothing more.
const MESSAGES_WAITING: usize = 16;

type ToStream = mpsc::Sender<Result<ServiceMessage, Status>>;

/// The gRPC service.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    cluster: Arc<Cluster>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Reports {
    /// Streams run as tasks of `tasks` and end when `stop` is cancelled.
    pub(crate) fn new(cluster: Arc<Cluster>, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { cluster, tasks, stop }
    }
}

#[tonic::async_trait]
impl Locality for Reports {
    type ReportStream = ReceiverStream<Result<ServiceMessage, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (to_worker, messages) = mpsc::channel(MESSAGES_WAITING);
        let stream = ReportStream {
            cluster: Arc::clone(&self.cluster),
            from_worker: request.into_inner(),
            to_worker: to_worker.clone(),
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                ended = stream.run() => ended,
                () = stop.cancelled() => Err(Status::unavailable("the service is stopping: report to another replica")),
            };
            if let Err(status) = ended {
                // A worker that no longer reads learns it from the stream's end.
                let _ = to_worker.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateReply>, Status> {
        let holders = self
            .cluster
            .locate(request.get_ref())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(LocateReply { holders }))
    }
}

struct ReportStream {
    cluster: Arc<Cluster>,
    from_worker: Streaming<WorkerMessage>,
    to_worker: ToStream,
}

/// Counts a stream for as long as it is open.
struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl From<StreamEnded> for Status {
    fn from(ended: StreamEnded) -> Self {
        Self::failed_precondition(ended.to_string())
    }
}

impl ReportStream {
    async fn run(mut self) -> Result<(), Status> {
        let _open = Open::new(&self.cluster.metrics.report_streams);
        let first = tokio::time::timeout(REGISTER_WITHIN, self.from_worker.message())
            .await
            .map_err(|_| {
                Status::deadline_exceeded("the stream's first message did not come: send `Register`")
            })??;
        let Some(WorkerMessage {
            sequence,
            kind: Some(FromWorker::Register(register)),
        }) = first
        else {
            return Err(Status::invalid_argument(
                "the stream's first message must be `Register`",
            ));
        };
        self.count("register");
        let node: String = register.node.chars().take(80).collect();
        let from = match self.cluster.register(register) {
            Ok(admission) => admission,
            Err(refusal) => {
                warn!(%node, %refusal, "worker refused");
                let message = refusal.to_string();
                return self.send(ToWorker::Refused(Refused { message })).await;
            }
        };
        self.send(ToWorker::Registered(Registered {
            lease_ms: self.cluster.lease().as_millis() as u64,
            heartbeat_ms: self.cluster.heartbeat().as_millis() as u64,
        }))
        .await?;
        let ended = self.reports(&from, Progress::after_register(sequence)).await;
        match &ended {
            Ok(()) => {
                info!(%node, "report stream ended by the worker; it is lost unless it is back within its lease");
            }
            Err(status) => info!(%node, reason = status.message(), "report stream ended"),
        }
        ended
    }

    async fn reports(&mut self, from: &Admission, mut progress: Progress) -> Result<(), Status> {
        // A worker that is silent for longer than its lease must register again anyhow.
        let silence = self.cluster.lease() * 2;
        loop {
            let next = tokio::time::timeout(silence, self.from_worker.message()).await;
            let Some(message) = next.map_err(|_| Status::from(StreamEnded))?? else {
                return Ok(());
            };
            self.cluster.heard(from)?;
            self.take(from, message, &mut progress).await?;
        }
    }

    async fn take(
        &self,
        from: &Admission,
        message: WorkerMessage,
        progress: &mut Progress,
    ) -> Result<(), Status> {
        let (kind, word, segments) = match message.kind {
            Some(FromWorker::Full(full)) => (Kind::Full { last: full.last }, "full", full.segments),
            Some(FromWorker::Delta(delta)) => (Kind::Delta, "delta", delta.segments),
            Some(FromWorker::Heartbeat(heartbeat)) => {
                self.cluster.heartbeat_of(from, &heartbeat)?;
                (Kind::Heartbeat, "heartbeat", Vec::new())
            }
            Some(FromWorker::Register(_)) => {
                return Err(Status::invalid_argument(
                    "a stream registers once: open another to register again",
                ));
            }
            // A newer worker's message that this service does not know: it counts as a sign of life.
            None => (Kind::Heartbeat, "unknown", Vec::new()),
        };
        self.count(word);
        let steps = progress.arrived(message.sequence, kind);
        if steps.begin_full {
            self.cluster.begin_full(from)?;
        }
        self.cluster.apply(from, segments).await?;
        if steps.finish_full {
            self.cluster.finish_full(from)?;
        }
        if let Some(reason) = steps.resync {
            let word = Word(reason.word());
            self.cluster
                .metrics
                .resyncs
                .get_or_create(&metrics::ResyncReason { reason: word })
                .inc();
            debug!(worker = ?from.worker, %reason, "asking for a full report");
            let reason = reason.to_string();
            self.send(ToWorker::Resync(Resync { reason })).await?;
        }
        Ok(())
    }

    async fn send(&self, kind: ToWorker) -> Result<(), Status> {
        self.to_worker
            .send(Ok(ServiceMessage { kind: Some(kind) }))
            .await
            .map_err(|_| Status::cancelled("the worker has gone"))
    }

    fn count(&self, kind: &'static str) {
        let kind = metrics::Kind { kind: Word(kind) };
        self.cluster.metrics.report_messages.get_or_create(&kind).inc();
    }
}
