//! What this worker tells the locality service, and what it asks it.
//!
//! One stream a replica: `Register`, a full report, then deltas (coalesced for [`COALESCE`]) and heartbeats. A stream that
//! ends is begun anew, with backoff; a worker without a service serves on. Replicas are the addresses behind the
//! service's name, resolved anew every [`RESOLVE_EVERY`].

mod inventory;
mod stream;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cachelet_protocol::block::BlockIndex;
use cachelet_protocol::grpc;
use cachelet_protocol::grpc::locality_client::LocalityClient;
use cachelet_protocol::ids::{Generation, ObjectName};
use cachelet_protocol::residency::Residency;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::breaker::{Breaker, Rule};
use crate::metrics::{Metrics, Trouble};
use inventory::Inventory;

/// Changes are collected for this long before they are sent.
const COALESCE: Duration = Duration::from_millis(500);
/// How often the service's name is resolved.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// The facts a heartbeat carries, as they are now.
pub type HeartbeatSource = Arc<dyn Fn() -> grpc::Heartbeat + Send + Sync>;

/// Reports to every replica of the service. Clones share the state.
#[derive(Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter")
            .field("node", &self.shared.registration.node)
            .finish_non_exhaustive()
    }
}

/// What became of a block here.
#[derive(Debug, Clone, Copy)]
pub struct BlockChange {
    /// The block's place in its object.
    pub block: BlockIndex,
    /// How much of it is held now.
    pub residency: Residency,
    /// It was found on disk rather than filled: nobody confirmed its generation.
    pub found: bool,
}

struct Shared {
    inventory: Mutex<Inventory>,
    registration: grpc::Register,
    heartbeat: HeartbeatSource,
    /// Wakes the streams for a heartbeat out of turn: the worker starts draining.
    state_changed: Notify,
}

impl Reporter {
    /// A reporter for a worker that registers with `registration`.
    pub fn new(registration: grpc::Register, heartbeat: HeartbeatSource) -> Self {
        let shared = Shared {
            inventory: Mutex::default(),
            registration,
            heartbeat,
            state_changed: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Says what is held of a block now.
    pub fn block_changed(&self, name: &ObjectName, generation: &Generation, change: BlockChange) {
        // What was found on disk may be an old generation: it must not pass for the newest one.
        let confirmed_unix_ms = if change.found {
            0
        } else {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_millis() as u64
        };
        self.shared.inventory().set(
            name,
            generation,
            change.block,
            change.residency,
            confirmed_unix_ms,
        );
    }

    /// Sends a heartbeat on every stream at once.
    pub fn state_changed(&self) {
        self.shared.state_changed.notify_waiters();
    }

    /// Reports until cancelled. `service` is the URL of the service's gRPC side.
    pub async fn run(self, service: String, cancel: CancellationToken) {
        let streams = TaskTracker::new();
        let running: Arc<Mutex<HashSet<SocketAddr>>> = Arc::default();
        let mut known_problem = String::new();
        while !cancel.is_cancelled() {
            match resolve(&service).await {
                Ok(addresses) => {
                    known_problem.clear();
                    for address in addresses {
                        if !running
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .insert(address)
                        {
                            continue;
                        }
                        let (shared, running, cancel) =
                            (self.shared.clone(), running.clone(), cancel.clone());
                        streams.spawn(async move {
                            stream::report_to(address, &shared, &cancel).await;
                            running
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .remove(&address);
                        });
                    }
                }
                Err(problem) if problem != known_problem => {
                    warn!(%service, %problem, "cannot resolve the locality service; retrying");
                    known_problem = problem;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(RESOLVE_EVERY) => {}
            }
        }
        streams.close();
        streams.wait().await;
        info!("stopped reporting");
    }
}

impl Shared {
    fn inventory(&self) -> std::sync::MutexGuard<'_, Inventory> {
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn resolve(service: &str) -> Result<Vec<SocketAddr>, String> {
    let authority = service.trim_start_matches("http://").trim_end_matches('/');
    let addresses = tokio::net::lookup_host(authority)
        .await
        .map_err(|error| error.to_string())?;
    Ok(addresses.collect())
}

/// Asks the service who holds what. Answers are kept for a second, so that a scan does not ask for every page.
#[derive(Debug, Clone)]
pub struct Holders {
    client: LocalityClient<Channel>,
    recent: Arc<Mutex<Answers>>,
    breaker: Arc<Mutex<Breaker>>,
    metrics: Metrics,
}

/// A segment whose holders are asked for: path id, etag, size, segment.
type SegmentQuestion = (Vec<u8>, String, u64, u32);

/// Answers, and when they came.
type Answers = HashMap<SegmentQuestion, (Instant, Vec<grpc::Holder>)>;

/// How long an answer is used.
const ANSWER_AGE: Duration = Duration::from_secs(1);
/// How long a question may take: a cold read waits for it.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(200);
/// Answers kept; the oldest go first when it is reached.
const MAX_ANSWERS: usize = 4096;

impl Holders {
    /// Asks the service at `service` (a URL), connecting when first needed.
    pub fn new(service: &str, metrics: Metrics) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(service.to_owned())?
            .connect_timeout(QUESTION_TIMEOUT)
            .timeout(QUESTION_TIMEOUT);
        Ok(Self {
            client: LocalityClient::new(endpoint.connect_lazy()),
            recent: Arc::default(),
            breaker: Arc::new(Mutex::new(Breaker::new(Rule::ONE_OF_SEVERAL, Instant::now()))),
            metrics,
        })
    }

    /// The live workers that hold something of a segment; none if the service does not answer in time, or lately did not.
    pub async fn of(&self, request: grpc::LocateRequest) -> Vec<grpc::Holder> {
        let question = (
            request.path_id.clone(),
            request.etag.clone(),
            request.size_bytes,
            request.segment,
        );
        let now = Instant::now();
        if let Some((at, holders)) = self.answers().get(&question)
            && now - *at < ANSWER_AGE
        {
            return holders.clone();
        }
        let Some(holders) = self.ask(request, now).await else {
            return Vec::new();
        };
        let mut answers = self.answers();
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (at, _)| now - *at < ANSWER_AGE);
            if answers.len() >= MAX_ANSWERS {
                answers.clear();
            }
        }
        answers.insert(question, (now, holders.clone()));
        holders
    }

    /// What the service says. `None`: it did not answer, or is not asked at the moment.
    async fn ask(&self, request: grpc::LocateRequest, now: Instant) -> Option<Vec<grpc::Holder>> {
        let Some(period) = self.breaker().admit(now) else {
            self.metrics.service_skips.inc();
            return None;
        };
        let outcome = self.client.clone().locate(request).await;
        let (now, waited) = (Instant::now(), now.elapsed());
        let mut breaker = self.breaker();
        let problem = match outcome {
            Ok(reply) => {
                if breaker.answered(period, now) {
                    info!("the locality service answers again; peers are asked as before");
                }
                return Some(reply.into_inner().holders);
            }
            Err(problem) => problem,
        };
        let trouble = if waited < QUESTION_TIMEOUT {
            Trouble::Broken
        } else {
            Trouble::Silent
        };
        let was_open = breaker.is_open();
        if let Some(skip) = breaker.failed(period, trouble, now, rand::random_range(0.5..1.0))
            && !was_open
        {
            warn!(
                problem = problem.message(),
                skip_ms = skip.as_millis(),
                "the locality service does not say who holds what; fetches go to the origin, and one asks again later"
            );
        }
        None
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
