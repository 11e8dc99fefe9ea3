//! One stream to one replica of the locality service.

use std::net::SocketAddr;
use std::time::Duration;

use cachelet_protocol::grpc::locality_client::LocalityClient;
use cachelet_protocol::grpc::{Delta, FullReport, Segment, WorkerMessage, service_message, worker_message};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::{debug, info, warn};

use super::{COALESCE, Shared};

/// Segments in one message: well below gRPC's limit of 4 MiB a message.
const SEGMENTS_PER_MESSAGE: usize = 8192;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("the service ended the stream: {0}")]
    Status(Box<tonic::Status>),
    #[error("the service closed the stream")]
    Closed,
    #[error("registration was refused: {0}")]
    Refused(String),
}

/// Reports to one replica, beginning anew whenever the stream ends, until cancelled.
pub(super) async fn report_to(replica: SocketAddr, shared: &Shared, cancel: &CancellationToken) {
    let mut backoff = FIRST_BACKOFF;
    let mut last_problem = String::new();
    loop {
        let begun = Instant::now();
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = report_once(replica, shared) => ended,
        };
        if begun.elapsed() > LONGEST_BACKOFF {
            backoff = FIRST_BACKOFF;
        }
        let problem = ended.to_string();
        if problem == last_problem {
            debug!(%replica, %problem, "still not reporting");
        } else {
            warn!(%replica, %problem, "not reporting to the locality service; retrying");
            last_problem = problem;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..1.0))) => {}
        }
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

/// Messages out, numbered.
struct Outbox {
    sender: mpsc::Sender<WorkerMessage>,
    sequence: u64,
}

impl Outbox {
    async fn send(&mut self, kind: worker_message::Kind) -> Result<(), Ended> {
        self.sequence += 1;
        let message = WorkerMessage {
            sequence: self.sequence,
            kind: Some(kind),
        };
        self.sender.send(message).await.map_err(|_| Ended::Closed)
    }

    async fn send_everything(&mut self, segments: Vec<Segment>) -> Result<(), Ended> {
        let mut rest = segments;
        loop {
            let chunk: Vec<Segment> = rest.drain(..rest.len().min(SEGMENTS_PER_MESSAGE)).collect();
            let last = rest.is_empty();
            self.send(worker_message::Kind::Full(FullReport {
                segments: chunk,
                last,
            }))
            .await?;
            if last {
                return Ok(());
            }
        }
    }
}

async fn report_once(replica: SocketAddr, shared: &Shared) -> Ended {
    let subscription = shared.inventory().subscribe();
    let ended = converse(replica, shared, subscription)
        .await
        .unwrap_or_else(|ended| ended);
    shared.inventory().unsubscribe(subscription);
    ended
}

async fn converse(
    replica: SocketAddr,
    shared: &Shared,
    subscription: super::inventory::Subscription,
) -> Result<Ended, Ended> {
    let endpoint = Endpoint::from_shared(format!("http://{replica}"))?.connect_timeout(CONNECT_TIMEOUT);
    let mut client = LocalityClient::new(endpoint.connect().await?);
    let (sender, receiver) = mpsc::channel(16);
    let mut outbox = Outbox { sender, sequence: 0 };
    outbox
        .send(worker_message::Kind::Register(shared.registration.clone()))
        .await?;
    let status = |status| Ended::Status(Box::new(status));
    let mut replies = client
        .report(ReceiverStream::new(receiver))
        .await
        .map_err(status)?
        .into_inner();
    let registered = match replies
        .message()
        .await
        .map_err(status)?
        .and_then(|message| message.kind)
    {
        Some(service_message::Kind::Registered(registered)) => registered,
        Some(service_message::Kind::Refused(refused)) => return Err(Ended::Refused(refused.message)),
        Some(service_message::Kind::Resync(_)) | None => return Err(Ended::Closed),
    };
    info!(%replica, lease_ms = registered.lease_ms, "registered with the locality service");

    let everything = shared.inventory().everything(subscription);
    outbox
        .send(worker_message::Kind::Heartbeat((shared.heartbeat)()))
        .await?;
    outbox.send_everything(everything).await?;

    let mut heartbeats = interval(Duration::from_millis(registered.heartbeat_ms.max(100)));
    heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_delta = Instant::now() + COALESCE;
    loop {
        tokio::select! {
            reply = replies.message() => match reply.map_err(status)?.and_then(|message| message.kind) {
                Some(service_message::Kind::Resync(resync)) => {
                    info!(%replica, reason = resync.reason, "sending a full report");
                    let everything = shared.inventory().everything(subscription);
                    outbox.send_everything(everything).await?;
                }
                Some(service_message::Kind::Refused(refused)) => return Err(Ended::Refused(refused.message)),
                Some(service_message::Kind::Registered(_)) => {}
                None => return Err(Ended::Closed),
            },
            () = shared.state_changed.notified() => {
                outbox.send(worker_message::Kind::Heartbeat((shared.heartbeat)())).await?;
            }
            _ = heartbeats.tick() => {
                outbox.send(worker_message::Kind::Heartbeat((shared.heartbeat)())).await?;
            }
            () = sleep_until(next_delta) => {
                next_delta = Instant::now() + COALESCE;
                let mut changes = shared.inventory().changes(subscription);
                while !changes.is_empty() {
                    let segments = changes.drain(..changes.len().min(SEGMENTS_PER_MESSAGE)).collect();
                    outbox.send(worker_message::Kind::Delta(Delta { segments })).await?;
                }
            }
        }
    }
}
